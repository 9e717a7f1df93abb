"""An object of a store as a file that is read in pieces: for data that is larger than memory, or than the disk.

Knows nothing of what the bytes mean; blobs.py explains what goes wrong.
"""

from __future__ import annotations

import io
from collections.abc import Callable
from contextlib import AbstractContextManager
from typing import BinaryIO, cast

import obstore
from obstore.store import ObjectStore

AHEAD_BYTES = 4 << 20
"""What one request asks for."""


def open_object(
    store: ObjectStore, path: str, explained: Callable[[], AbstractContextManager[None]]
) -> BinaryIO:
    """The object as a binary file that can be read and sought in; `explained` turns errors into the domain's,
    now and at each read."""
    with explained():
        reader = obstore.open_reader(store, path, buffer_size=AHEAD_BYTES)
    return cast(BinaryIO, io.BufferedReader(_Object(reader, explained), AHEAD_BYTES))


class _Object(io.RawIOBase):
    """obstore's reader with the words of Python's files."""

    def __init__(
        self, reader: obstore.ReadableFile, explained: Callable[[], AbstractContextManager[None]]
    ) -> None:
        self._reader, self._explained = reader, explained

    def readable(self) -> bool:
        """It is."""
        return True

    def seekable(self) -> bool:
        """It is."""
        return True

    def tell(self) -> int:
        """The place of the next byte."""
        return int(self._reader.tell())

    def seek(self, offset: int, whence: int = io.SEEK_SET) -> int:
        """Go to a place; nothing is read yet."""
        with self._explained():
            return int(self._reader.seek(offset, whence))

    def readinto(self, buffer: memoryview) -> int:  # type: ignore[override]
        """Fill the buffer as far as there are bytes; 0 at the end."""
        with self._explained():
            data = memoryview(self._reader.read(len(buffer)))
        buffer[: len(data)] = data
        return len(data)
