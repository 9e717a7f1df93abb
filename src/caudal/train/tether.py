"""The line between a child of the gang's first process and that process: the child's standard input, both ways.

When the line ends, the first process is gone, and the child ends at once, whatever it is doing.
"""

from __future__ import annotations

import asyncio
import os
import threading
from concurrent.futures import Future

from caudal.train.child import GO, LOST, MEANT, PART

TERMINATED = 143


class Tether:
    """The child's end. It is also how a worker calls on its standby, which is not its own child: see call.py."""

    def __init__(self, line: int = 0) -> None:
        self._line = line
        self._going: Future[int] = Future()
        threading.Thread(target=self._read, name="tether", daemon=True).start()

    async def go(self) -> int:
        """Wait for the word; returns which start inside the gang this is."""
        return await asyncio.wrap_future(self._going)

    async def start(self) -> None:
        """This site takes part: from now on it has a standby."""
        self._say(PART)

    async def lost(self, epoch: int) -> None:
        """The coordinator of this epoch cannot be reached."""
        self._say(f"{LOST} {epoch}")

    async def end(self) -> None:
        """The first process ends the standby when the worker has ended."""

    def meant(self) -> None:
        """The exit code that follows is the gang's."""
        self._say(MEANT)

    def _say(self, word: str) -> None:
        try:
            os.write(self._line, f"{word}\n".encode())
        except OSError:
            pass  # the first process is gone: the reading thread ends this one

    def _read(self) -> None:
        kept = b""
        while data := _received(self._line):
            *lines, kept = (kept + data).split(b"\n")
            for line in lines:
                word, _, number = line.decode().partition(" ")
                if word == GO and not self._going.done():
                    self._going.set_result(int(number))
        os._exit(TERMINATED)


def _received(line: int) -> bytes:
    try:
        return os.read(line, 4096)
    except OSError:
        return b""
