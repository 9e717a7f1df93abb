"""What each host said last, in files: what is told of one that is silent, also by the next control process.

A file that cannot be kept or read is as if nothing was ever said, which only makes the provider more careful.
"""

from __future__ import annotations

import json
from dataclasses import asdict
from pathlib import Path

from caudal.domain.errors import Failed
from caudal.providers.hosts.scripts import Seen, read_claim
from caudal.store.atomic import write_atomic


class Memory:
    """The last words of hosts, one file each below `folder`."""

    def __init__(self, folder: Path) -> None:
        self._folder = folder
        self._known: dict[str, Seen] = {}

    def keep(self, host: str, seen: Seen) -> None:
        """Remember; written only where it changes."""
        if self.last(host) == seen:
            return
        self._known[host] = seen
        row = {"claim": asdict(seen.claim) if seen.claim else None, "code": seen.code, "why": seen.why}
        try:
            self._folder.mkdir(parents=True, exist_ok=True, mode=0o700)
            write_atomic(self._folder / f"{host}.json", json.dumps(row).encode(), mode=0o600)
        except OSError:
            return  # the next process will have to wait for the host itself

    def last(self, host: str) -> Seen | None:
        """What it said last; None where that is not known."""
        if host not in self._known:
            try:
                row = json.loads((self._folder / f"{host}.json").read_bytes())
                claim = read_claim(json.dumps(row["claim"]), host) if row["claim"] else None
                self._known[host] = Seen(claim, row["code"], str(row["why"]))
            except (OSError, ValueError, KeyError, TypeError, Failed):
                return None
        return self._known[host]
