"""What a process printed, in two files that together never grow past a bound.

A process that prints in a loop would fill the disk of everybody. So what it prints goes through a pipe to
its shim, which writes here: a file that reaches half the bound becomes the older half, and the older half
before it is dropped. A full disk drops text and stops nobody. Knows nothing about gangs.
"""

from __future__ import annotations

import os
from pathlib import Path


class CappedLog:
    """The file `path` and its older half `path.1`, together at most `cap_bytes`."""

    def __init__(self, path: Path, cap_bytes: int) -> None:
        self._path = path
        self._half_bytes = max(1, cap_bytes // 2)
        self._descriptor = self._open()
        self._size_bytes = os.fstat(self._descriptor).st_size

    def write(self, data: bytes) -> None:
        """Append; of a piece larger than half the bound only the end is kept."""
        data = data[-self._half_bytes :]
        try:
            if self._size_bytes + len(data) > self._half_bytes:
                self._rotate()
            self._size_bytes += os.write(self._descriptor, data)
        except OSError:
            return  # the disk is full: losing text is better than stopping the process

    def close(self) -> None:
        """Close the file."""
        os.close(self._descriptor)

    def _open(self) -> int:
        return os.open(self._path, os.O_WRONLY | os.O_APPEND | os.O_CREAT | os.O_CLOEXEC, 0o600)

    def _rotate(self) -> None:
        self._path.replace(older(self._path))
        fresh = self._open()
        os.close(self._descriptor)
        self._descriptor, self._size_bytes = fresh, 0


def older(path: Path) -> Path:
    """Where the older half of a log lies."""
    return path.with_name(path.name + ".1")


def tail(path: Path, tail_bytes: int) -> bytes:
    """The end of a log, over both halves; empty where there is none."""
    newest = _end_of(path, tail_bytes)
    return _end_of(older(path), tail_bytes - len(newest)) + newest


def _end_of(path: Path, tail_bytes: int) -> bytes:
    if tail_bytes <= 0:
        return b""
    try:
        with path.open("rb") as file:
            size_bytes = file.seek(0, os.SEEK_END)
            file.seek(max(0, size_bytes - tail_bytes))
            return file.read(tail_bytes)
    except FileNotFoundError:
        return b""
