"""What a site's optimiser knows, on the site's own disk: for the process that comes after one that was killed.

Moments that begin at nothing are most of what a killed process costs a run. The file says of which part of the run they are
(the slot's, of a round and its epoch), and counts only where the ledger has that part: a round whose update sites have
seen may still be one that was never committed. It is written seldom and without waiting for the disk, so that after
a machine's crash it may be torn; then its checksum says so. Knows nothing of connections.
"""

from __future__ import annotations

import os
import time
import zlib
from dataclasses import dataclass
from pathlib import Path

import msgspec
import numpy as np

from caudal.domain.errors import CaudalError
from caudal.ports import Blobs
from caudal.train import ledger
from caudal.train.config import WorkerConfig
from caudal.train.interface import Moments
from caudal.train.log import say

EVERY_S = 10.0
"""Between two writes, at least."""

SHARE = 0.01
"""Of the time is spent on writing at most."""


class Head(msgspec.Struct, frozen=True):
    """The file's first line. `check`: crc32 of the numbers behind it."""

    plan: str
    round: int
    epoch: int
    steps: int
    fresh: bool
    numbers: int
    check: int


@dataclass(frozen=True, slots=True)
class Known:
    """Moments as they were after a slot's part of `round`, which `epoch` committed."""

    round: int
    epoch: int
    moments: Moments


class Memory:
    """A slot's file. `plan`: the hash of the run's; moments of another are of no use."""

    def __init__(self, path: Path, plan: str) -> None:
        self.path, self._plan = path, plan
        self._next_at = 0.0
        self._busy = False

    @staticmethod
    def of(config: WorkerConfig, plan: str) -> Memory:
        """In the site's cache."""
        name = f"{config.run}-g{config.generation}-{config.slot[0]}.bin"
        return Memory(Path(config.cache_dir) / "moments" / name, plan)

    def due(self) -> bool:
        """Whether it is time to write; then nobody else is told so until that is done."""
        if self._busy or time.monotonic() < self._next_at:
            return False
        self._busy = True
        return True

    def write(self, known: Known) -> None:
        """In place of what was there. A disk that takes nothing is told of, and no reason to stop."""
        began = time.monotonic()
        try:
            self._write(known)
        except OSError as error:
            say(f"{self.path}: the optimiser's moments cannot be kept: {error}")
            began -= 60.0  # a hundred times that from now on
        took_s = time.monotonic() - began
        self._next_at, self._busy = time.monotonic() + max(EVERY_S, took_s / SHARE), False

    def _write(self, known: Known) -> None:
        of = known.moments
        check = zlib.crc32(of.second.data, zlib.crc32(of.first.data))
        head = Head(self._plan, known.round, known.epoch, of.steps, of.fresh, len(of.first), check)
        self.path.parent.mkdir(parents=True, exist_ok=True)
        beside = self.path.with_suffix(f".{os.getpid()}")
        with beside.open("wb") as file:
            file.write(msgspec.json.encode(head) + b"\n")
            file.write(of.first.data)
            file.write(of.second.data)
        beside.replace(self.path)

    def read(self, size: int, blobs: Blobs, prefix: str, slot: str) -> Known | None:
        """What the process before this one knew, where that is of this run of `size` parameters and in its ledger."""
        known = self._read(size)
        if known is None:
            return None
        try:
            link = ledger.read_entry(blobs, prefix, known.round)
        except CaudalError as error:
            say(f"the optimiser's moments of before are left: {error.one_line()}")
            return None
        there = link is not None and link.entry.epoch == known.epoch
        return known if link and there and slot in {p.worker for p in link.entry.sites} else None

    def _read(self, size: int) -> Known | None:
        try:
            with self.path.open("rb") as file:
                head = msgspec.json.decode(file.readline(), type=Head)
                if (head.plan, head.numbers) != (self._plan, size):
                    return None
                first, second = (np.fromfile(file, np.float32, size) for _ in range(2))
        except (OSError, msgspec.DecodeError):
            return None
        whole = len(second) == size and zlib.crc32(second.data, zlib.crc32(first.data)) == head.check
        moments = Moments(first, second, head.steps, head.fresh)
        return Known(head.round, head.epoch, moments) if whole else None

    def end(self) -> None:
        """The run is over: nobody needs it any more."""
        self.path.unlink(missing_ok=True)
