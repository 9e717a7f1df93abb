"""A gateway process's line to its parent: reports go out as lines of JSON, and its end says that the parent is gone.

The process's standard input and output are the line; what else is printed goes to standard error.
"""

from __future__ import annotations

import asyncio
import os
from typing import Any

import msgspec

from caudal.gateway.place import Place


class Line:
    """To be made once, first of all. Raises ValueError where no parent is at the other end."""

    def __init__(self) -> None:
        self._out = os.dup(1)
        os.dup2(2, 1)
        self.place = msgspec.json.decode(_first_line(), type=Place)
        self.parent_gone = asyncio.Event()
        self._left = b""
        os.set_blocking(self._out, False)

    def watch(self) -> None:
        """From now on the event tells when the parent is gone. In the loop's thread."""
        asyncio.get_running_loop().add_reader(0, self._read)

    def update(self, **status: Any) -> None:
        """Report. Never waits: a report is left out while the parent has not taken the one before."""
        self._push()
        if not self._left:
            self._left = msgspec.json.encode(status) + b"\n"
            self._push()

    def last(self, **status: Any) -> None:
        """Report why this process ends; waits until the parent has it."""
        os.set_blocking(self._out, True)
        self._left += msgspec.json.encode(status) + b"\n"
        self._push()

    def _push(self) -> None:
        try:
            while self._left:
                self._left = self._left[os.write(self._out, self._left) :]
        except BlockingIOError:
            pass  # it is slow: the rest goes first the next time
        except OSError:
            self._left = b""  # it is gone, which `parent_gone` tells

    def _read(self) -> None:
        if not os.read(0, 4096):
            asyncio.get_running_loop().remove_reader(0)
            self.parent_gone.set()


def _first_line() -> bytes:
    data = b""
    while not data.endswith(b"\n") and len(data) < 10_000:
        byte = os.read(0, 1)
        if not byte:
            break
        data += byte
    return data
