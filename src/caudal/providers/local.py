"""This machine as a provider: one machine per site, its cores and memory shared out between the sites.

A machine is a file `SITE.json` below `machines_dir`, created only if absent and tagged with the lease, so
the list survives every control process. Nothing is bought and nothing boots: what is listed runs, at
price 0. Knows nothing about processes.
"""

from __future__ import annotations

import fcntl
import hashlib
import json
import os
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import Any

from caudal.catalog.local import offer as local_offer
from caudal.catalog.local import share
from caudal.domain.errors import NoCapacity, StorageFailed, Unreachable
from caudal.domain.fleet import Machine, MachineState, Offer, SiteSpec

PROVIDER = "local"
LOCK = ".lock"
FIELDS = {"id", "site", "machine_type", "lease_id", "token"}


class LocalProvider:
    """Implements `ports.Provider` for the sites that name the provider `local`; others are left out.

    `cpus` and `memory_bytes` are the whole machine's; `as_of` is the date on the offers.
    """

    def __init__(
        self, machines_dir: Path, sites: Sequence[SiteSpec], cpus: int, memory_bytes: int, as_of: str
    ) -> None:
        self._dir = machines_dir
        self._as_of = as_of
        names = [site.name for site in sites if site.provider == PROVIDER]
        self._types = share(cpus, memory_bytes, names) if names else {}

    def offers(self) -> Sequence[Offer]:
        """One per site; `available` is 1 while the site has no machine, then 0. Raises Unreachable."""
        taken = {machine.site for machine in self.machines()}
        return [
            local_offer(site, machine_type, self._as_of, available=0 if site in taken else 1)
            for site, machine_type in self._types.items()
        ]

    def acquire(self, lease_id: str, offer: Offer, token: str) -> None:
        """Tag the site's machine with the lease. The same lease or token gets no second one. Raises
        NoCapacity where another lease has it or the site is none of ours, StorageFailed."""
        if offer.site not in self._types:
            raise NoCapacity(f"this machine has no site {offer.site}", where=f"provider {PROVIDER}")
        with self._alone():
            rows = self._rows()
            if any(row["lease_id"] == lease_id or row["token"] == token for row in rows):
                return
            holder = next((row["lease_id"] for row in rows if row["site"] == offer.site), None)
            if holder is not None:
                raise NoCapacity(
                    f"the machine of site {offer.site} is held by lease {holder}",
                    where=f"provider {PROVIDER}",
                )
            self._write(offer, lease_id, token)

    def release(self, machine_id: str) -> None:
        """Take the machine off the list; one that is not on it (any more) is fine. Raises StorageFailed."""
        with self._alone():
            for row in self._rows():
                if row["id"] == machine_id:
                    self._remove(row["site"])

    def machines(self) -> Sequence[Machine]:
        """All machines that are held, by site; also those of sites that the fleet no longer has. Raises
        Unreachable."""
        return [
            Machine(
                id=row["id"],
                site=row["site"],
                machine_type=row["machine_type"],
                state=MachineState.RUNNING,
                lease_id=row["lease_id"],
                address="127.0.0.1",
            )
            for row in self._rows()
        ]

    def _file(self, site: str) -> Path:
        return self._dir / f"{site}.json"

    def _rows(self) -> list[dict[str, Any]]:
        try:
            paths = sorted(path for path in self._dir.iterdir() if path.suffix == ".json")
        except FileNotFoundError:
            return []  # nothing was ever acquired
        except OSError as error:
            raise self._unreadable(self._dir, str(error)) from error
        return [row for path in paths if (row := self._read(path)) is not None]

    def _read(self, path: Path) -> dict[str, Any] | None:
        """One machine; None where it was released between the listing and the look."""
        try:
            row = json.loads(path.read_bytes())
        except FileNotFoundError:
            return None
        except (OSError, ValueError) as error:
            raise self._unreadable(path, str(error)) from error
        if not isinstance(row, dict) or not row.keys() >= FIELDS:
            raise self._unreadable(path, "it does not say which machine and whose")
        return row

    def _write(self, offer: Offer, lease_id: str, token: str) -> None:
        # The id holds the lease: a late release of the lease before must not take the next one's machine.
        digest = hashlib.sha256(f"{offer.site}\n{lease_id}".encode()).hexdigest()[:12]
        row = {
            "id": f"{PROVIDER}-{offer.site}-{digest}",
            "site": offer.site,
            "machine_type": offer.machine_type.name,
            "lease_id": lease_id,
            "token": token,
        }
        draft = self._dir / f".{offer.site}.draft"  # alone in here: no other writes it
        try:
            draft.write_text(json.dumps(row))
            draft.replace(self._file(offer.site))
        except OSError as error:
            draft.unlink(missing_ok=True)
            raise self._failed(error) from error

    def _remove(self, site: str) -> None:
        try:
            self._file(site).unlink(missing_ok=True)
        except OSError as error:
            raise self._failed(error) from error

    @contextmanager
    def _alone(self) -> Iterator[None]:
        """Look and write as one step: a second control process that does not know yet that it has lost the
        leadership may be about to do the same."""
        try:
            self._dir.mkdir(mode=0o700, parents=True, exist_ok=True)
            descriptor = os.open(self._dir / LOCK, os.O_RDWR | os.O_CREAT | os.O_CLOEXEC, 0o600)
        except OSError as error:
            raise self._failed(error) from error
        try:
            fcntl.flock(descriptor, fcntl.LOCK_EX)
            yield
        finally:
            os.close(descriptor)

    def _unreadable(self, path: Path, why: str) -> Unreachable:
        return Unreachable(
            "cannot read this machine's own list",
            where=str(path),
            why=why,
            remedy="make the file readable; where it is damaged, stop what runs and delete it",
        )

    def _failed(self, error: OSError) -> StorageFailed:
        return StorageFailed(
            "cannot write this machine's own list",
            where=str(self._dir),
            why=str(error),
            remedy="free disk space there, or make the folder writable",
        )
