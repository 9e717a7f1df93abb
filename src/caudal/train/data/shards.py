"""Flat arrays in files of bounded size: written as they come, read as one array.

An array that fits one shard is `STEM.bin`, a longer one `STEM-00000.bin`, `STEM-00001.bin` ... Knows nothing of what
the numbers mean.
"""

from __future__ import annotations

import hashlib
from bisect import bisect_right
from collections.abc import Callable, Iterable
from pathlib import Path
from typing import Any, BinaryIO

import numpy as np
from numpy.typing import NDArray

Put = Callable[[str, Path], None]
"""Keep the file under the name; the file is not changed afterwards."""


class ShardWriter:
    """One array on its way. At most two shards lie in `folder` at a time: the one being written, and the first,
    whose name is not known before there is a second."""

    def __init__(self, folder: Path, stem: str, dtype: np.dtype[Any], shard_bytes: int, put: Put) -> None:
        self._folder, self._stem, self._dtype, self._put = folder, stem, dtype, put
        self._room = max(1, shard_bytes // dtype.itemsize)
        self._hashes: list[str] = []
        self._first: Path | None = None
        self._used = 0
        self.written = 0
        """Numbers, in all shards."""
        self._open()

    def add(self, numbers: NDArray[Any]) -> None:
        """Put the numbers at the end. Raises OSError, StorageFailed."""
        data = np.ascontiguousarray(numbers, dtype=self._dtype).reshape(-1)
        while len(data):
            if self._used == self._room:
                self._roll()
            some, data = data[: self._room - self._used], data[self._room - self._used :]
            self._file.write(some.data)
            self._hash.update(some.data)
            self._used += len(some)
            self.written += len(some)

    def close(self) -> dict[str, str]:
        """Keep what is left; the names of all shards with their sha256, in order."""
        path = self._finish()
        if self._first is None:
            self._keep(f"{self._stem}.bin", path)
            return {f"{self._stem}.bin": self._hashes[0]}
        self._keep_first()
        self._keep(self._name(len(self._hashes) - 1), path)
        return {self._name(number): digest for number, digest in enumerate(self._hashes)}

    def abandon(self) -> None:
        """Let go of the file; what was written is of no use."""
        self._file.close()

    def _name(self, number: int) -> str:
        return f"{self._stem}-{number:05}.bin"

    def _open(self) -> None:
        self._hash, self._used = hashlib.sha256(), 0
        self._file: BinaryIO = (self._folder / self._name(len(self._hashes))).open("wb")

    def _finish(self) -> Path:
        self._file.close()
        self._hashes.append(self._hash.hexdigest())
        return self._folder / self._name(len(self._hashes) - 1)

    def _roll(self) -> None:
        path = self._finish()
        if len(self._hashes) == 1:
            self._first = path
        else:
            self._keep_first()
            self._keep(path.name, path)
        self._open()

    def _keep_first(self) -> None:
        if self._first is not None and self._first.exists():
            self._keep(self._first.name, self._first)

    def _keep(self, name: str, path: Path) -> None:
        self._put(name, path)
        path.unlink()


class Shards:
    """The array again, mapped from its files, not read."""

    def __init__(self, files: Iterable[Path], dtype: np.dtype[Any]) -> None:
        self._parts = [np.memmap(file, dtype=dtype, mode="r") for file in files]
        self._starts = [0]
        for part in self._parts:
            self._starts.append(self._starts[-1] + len(part))

    def __len__(self) -> int:
        return self._starts[-1]

    def read(self, start: int, stop: int) -> NDArray[Any]:
        """The numbers `start` ... `stop - 1`, which may lie in several shards."""
        assert 0 <= start <= stop <= len(self)
        number = bisect_right(self._starts, start) - 1
        found = []
        while start < stop:
            begin = self._starts[number]
            found.append(self._parts[number][start - begin : stop - begin])
            start = min(stop, self._starts[number + 1])
            number += 1
        if len(found) == 1:
            return found[0]
        return np.concatenate(found) if found else np.zeros(0, np.uint8)


def named(files: Iterable[str], stem: str) -> list[str]:
    """Of a manifest's file names those of one array, in order."""
    return sorted(name for name in files if name == f"{stem}.bin" or name.startswith(f"{stem}-"))
