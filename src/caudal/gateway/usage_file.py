"""One journal on the disk: lines are appended and flushed, read from the front, and forgotten from there.

Whoever has a journal open holds a lock on it; one without a lock is what a process left that was killed, and may
be taken over by any other. Knows nothing of what lines say.
"""

from __future__ import annotations

import fcntl
import os
from collections.abc import Iterator
from pathlib import Path

from caudal.store.atomic import make_folders, sync_folder

SUFFIX = ".journal"
MAX_LINE_BYTES = 4 << 20


class JournalFile:
    """Lines from `forgotten` to `size` (in bytes) are kept. Not to be used by two threads at once."""

    def __init__(self, path: Path, descriptor: int, size: int) -> None:
        self.path = path
        self.size = size
        self.forgotten = 0
        self._descriptor = descriptor
        self._uneven = False  # bytes may lie beyond `size`: an append failed half-way

    @classmethod
    def make(cls, path: Path) -> JournalFile:
        """A new, empty one. It gets its name once it is locked, so that nobody takes it over. Raises OSError."""
        make_folders(path.parent)
        unnamed = path.with_suffix(".new")
        descriptor = os.open(unnamed, os.O_RDWR | os.O_CREAT | os.O_EXCL | os.O_APPEND, 0o600)
        try:
            fcntl.flock(descriptor, fcntl.LOCK_EX | fcntl.LOCK_NB)
            unnamed.rename(path)
            sync_folder(path.parent)
        except BaseException:
            os.close(descriptor)
            raise
        return cls(path, descriptor, 0)

    def append(self, lines: bytes) -> None:
        """Have these lines on the disk, all or none. Raises OSError."""
        if self._uneven:
            os.ftruncate(self._descriptor, self.size)
        self._uneven = True
        rest = memoryview(lines)
        while rest:
            rest = rest[os.write(self._descriptor, rest) :]
        os.fsync(self._descriptor)
        self._uneven = False
        self.size += len(lines)

    def read(self, most_bytes: int) -> bytes:
        """Whole lines from the front, as many as fit, at least one; empty where nothing is kept. What is no line (an
        end that was cut off, or far too long) comes alone. Raises OSError."""
        data = b""
        while True:
            left = self.size - self.forgotten - len(data)
            piece = (
                os.pread(self._descriptor, min(most_bytes, left), self.forgotten + len(data)) if left else b""
            )
            data += piece
            whole = data.rfind(b"\n") + 1
            if whole or not piece or len(data) > MAX_LINE_BYTES:
                return data[:whole] or data

    def forget(self, count_bytes: int) -> None:
        """The first bytes are of no use any more. The file is emptied when that is so for all. Raises OSError."""
        self.forgotten += count_bytes
        if self.forgotten == self.size:
            os.ftruncate(self._descriptor, 0)
            self.forgotten = self.size = 0

    def close(self) -> None:
        """Let go of it; what is kept waits for whoever takes it over. An empty one is removed."""
        if not self.size and not self._uneven:
            self.path.unlink(missing_ok=True)
        os.close(self._descriptor)


def left_behind(folder: Path) -> Iterator[JournalFile]:
    """The journals in a folder whose processes are gone; each is now locked by the caller. Raises OSError."""
    for path in sorted(folder.glob("*" + SUFFIX)):
        try:
            descriptor = os.open(path, os.O_RDWR | os.O_APPEND)
        except FileNotFoundError:
            continue  # another one has finished it
        try:
            fcntl.flock(descriptor, fcntl.LOCK_EX | fcntl.LOCK_NB)
            there = path.stat()
        except (BlockingIOError, FileNotFoundError):
            os.close(descriptor)
            continue
        mine = os.fstat(descriptor)
        if mine.st_ino != there.st_ino:
            os.close(descriptor)
            continue
        yield JournalFile(path, descriptor, mine.st_size)
