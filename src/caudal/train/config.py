"""The configuration file that a gang of a run is started with. Holds the run's token: never logged."""

from __future__ import annotations

from pathlib import Path
from typing import TypeVar

import msgspec

from caudal.domain.errors import UsageError
from caudal.domain.workload import TrainSpec

MOST_RESTARTS = 999
"""So often a worker is started again inside its gang; then the gang is."""


class GangConfig(msgspec.Struct, frozen=True, kw_only=True):
    """What coordinator and worker are both told."""

    run: str
    generation: int
    site: str
    gang: str
    blobs_url: str
    cache_dir: str
    spec: TrainSpec
    token: str
    certificates: str = ""  # the folder of them; none: plain connections, on loopback only
    given: bool = (
        False  # a script of the user's trains: the plan is in the store, there is no data to prepare
    )

    @property
    def prefix(self) -> str:
        """Where the run's objects lie."""
        return f"runs/{self.run}/g{self.generation}"

    @property
    def slot(self) -> tuple[str, int]:
        """The gang's slot and incarnation: `starter.worker.1-3` is the third start of one worker."""
        slot, _, incarnation = self.gang.rpartition("-")
        return (slot, int(incarnation)) if slot and incarnation.isdigit() else (self.gang, 1)


class CoordinatorConfig(GangConfig, frozen=True, kw_only=True):
    """What a coordinator is told. It listens on `host`, on a port of the system's choice."""

    host: str = "127.0.0.1"


class WorkerConfig(GangConfig, frozen=True, kw_only=True):
    """What a worker is told. Its standby coordinator listens on `host`; `standby` False: it has none. `restart`
    is not in the file: which start inside its gang a worker is, from 0."""

    threads: int = 1
    host: str = "127.0.0.1"
    standby: bool = True
    restart: int = 0

    @property
    def incarnation(self) -> int:
        """Of two workers of a slot the coordinator keeps that with the higher one: the later start inside a
        gang, and the gang that was started later."""
        return self.slot[1] * (MOST_RESTARTS + 1) + self.restart


C = TypeVar("C", bound=GangConfig)


def read_config(path: Path, kind: type[C]) -> C:
    """The file, checked; the folder of certificates may be named from where the file lies. Raises UsageError."""
    try:
        read = msgspec.json.decode(path.read_bytes(), type=kind)
        cache = str(Path(read.cache_dir).expanduser())
        beside = str(path.parent / read.certificates) if read.certificates else ""
        return msgspec.structs.replace(read, cache_dir=cache, certificates=beside)
    except (OSError, msgspec.DecodeError) as error:
        raise UsageError(
            "the configuration cannot be read",
            where=str(path),
            why=str(error),
            remedy="gangs are started by the control process; by hand, copy a file that it wrote",
        ) from None
