"""The processes of one gateway ask each other what they count, over unix sockets in a folder of their own.

Whoever connects is given the text of a scrape, and that is all. Knows nothing of what is counted.
"""

from __future__ import annotations

import asyncio
import contextlib
import shutil
from collections.abc import Callable
from pathlib import Path

from caudal.gateway.place import Place
from caudal.gateway.sums import sum_of_texts

ANSWER_S = 0.3
"""A process that takes longer is left out: the sum says of how many it is."""

MOST_BYTES = 8 << 20
PAST = "past"
"""The parent's socket: what processes counted that are gone."""


class Siblings:
    """One process's socket, and its way to the others'."""

    def __init__(self, folder: Path, place: Place, text: Callable[[], bytes]) -> None:
        self._folder = folder
        self._place = place
        self._text = text
        self._server: asyncio.Server | None = None

    async def start(self) -> None:
        """Answer. Raises OSError."""
        self._server = await answer_at(self._folder / str(self._place.number), self._text)

    def close(self) -> None:
        """Answer no more."""
        if self._server is not None:
            self._server.close()
        with contextlib.suppress(OSError):
            (self._folder / str(self._place.number)).unlink(missing_ok=True)

    async def gather(self, own: bytes) -> bytes:
        """This process's text and those of the others that answer within ANSWER_S, added."""
        others = [str(n) for n in range(self._place.processes) if n != self._place.number]
        found = await asyncio.gather(*(ask(self._folder / name) for name in [*others, PAST]))
        return sum_of_texts([own, *found])


def leave(folder: Path) -> None:
    """Remove the folder, in place of a parent that is gone; the last of the processes does."""
    with contextlib.suppress(OSError):
        if all(path.name == PAST for path in folder.iterdir()):
            shutil.rmtree(folder)


async def answer_at(path: Path, text: Callable[[], bytes]) -> asyncio.Server:
    """Give whoever connects to a unix socket the text of that moment. Raises OSError."""

    async def answer(_reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        try:
            writer.write(text())
            await asyncio.wait_for(writer.drain(), ANSWER_S)
        except (OSError, TimeoutError):
            pass  # who asked has left
        finally:
            writer.close()

    path.unlink(missing_ok=True)  # of a predecessor that was killed
    return await asyncio.start_unix_server(answer, str(path))


async def ask(path: Path) -> bytes:
    """What a process answers; nothing where it does not in time."""
    try:
        async with asyncio.timeout(ANSWER_S):
            reader, writer = await asyncio.open_unix_connection(str(path), limit=MOST_BYTES)
            try:
                return await _whole(reader)
            finally:
                writer.close()
    except (OSError, TimeoutError, ValueError):
        return b""


async def _whole(reader: asyncio.StreamReader) -> bytes:
    data = bytearray()
    while part := await reader.read(1 << 16):
        data += part
        if len(data) > MOST_BYTES:
            raise ValueError("more than metrics are")
    return bytes(data)
