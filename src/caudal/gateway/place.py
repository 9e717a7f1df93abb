"""Which of a gateway's processes this one is, what it shares with the others, and which files are its own."""

from __future__ import annotations

import contextlib
import os
from pathlib import Path

import msgspec


class Place(msgspec.Struct, frozen=True):
    """Process `number` (from 0) of so many. `port` is the one that all listen on, and `folder`, which only their
    owner may enter, holds a unix socket of each."""

    number: int = 0
    processes: int = 1
    port: int = 0
    folder: str = ""

    @property
    def shared(self) -> bool:
        """Whether there are others."""
        return self.processes > 1

    def own(self, file: str) -> str:
        """This process's variant of a state file. Process 0 has the one that a gateway of one process has; the
        others have one beside it, which begins as a copy where that is newer."""
        if not self.number or not file:
            return file
        own = f"{file}.{self.number}"
        with contextlib.suppress(OSError):  # there is none yet, or this process does without
            if _written_at(file) > _written_at(own):
                beside = f"{own}.{os.getpid()}"
                with os.fdopen(os.open(beside, os.O_WRONLY | os.O_CREAT | os.O_TRUNC, 0o600), "wb") as to:
                    to.write(Path(file).read_bytes())
                Path(beside).replace(own)
        return own


def _written_at(file: str) -> float:
    try:
        return Path(file).stat().st_mtime
    except FileNotFoundError:
        return 0.0


ALONE = Place()
