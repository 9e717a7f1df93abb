"""A child process with a line to it, for the first process of a gang. Knows nothing about what it is for.

Words are lines. Down goes `go N`: take part, as start number N inside the gang. Up come `part` (the coordinator
has welcomed me), `lost EPOCH` (its coordinator cannot be reached) and `meant` (what I end with now is final).
"""

from __future__ import annotations

import ctypes
import signal
import socket
import subprocess
import sys
from collections.abc import Sequence
from dataclasses import dataclass
from functools import cache
from typing import Any

PR_SET_PDEATHSIG = 1
GO, PART, LOST, MEANT = "go", "part", "lost", "meant"


@dataclass(eq=False)
class Child:
    """`line` is the other end of its standard input, which carries words both ways."""

    process: subprocess.Popen[bytes]
    line: socket.socket
    meant: bool = False  # it said that its exit code is final
    silent: bool = False  # its end of the line is closed
    _kept: bytes = b""

    @staticmethod
    def start(command: Sequence[str]) -> Child:
        """Start it, to end with this process. Raises OSError."""
        ours, theirs = socket.socketpair()
        try:
            # Safe: this process has one thread, and the library is loaded before the fork.
            process = subprocess.Popen(command, stdin=theirs.fileno(), preexec_fn=_dies_with_parent())
        except OSError:
            ours.close()
            raise
        finally:
            theirs.close()
        ours.setblocking(False)
        return Child(process, ours)

    def tell(self, word: str) -> None:
        """Say a word to it; one that has just ended does not hear it."""
        try:
            self.line.send(f"{word}\n".encode())
        except OSError:
            pass

    def words(self) -> list[str]:
        """What it has said since."""
        found: list[bytes] = []
        try:
            while data := self.line.recv(4096):
                *lines, self._kept = (self._kept + data).split(b"\n")
                found += lines
            self.silent = True
        except BlockingIOError:
            pass
        except OSError:
            self.silent = True
        return [word.decode(errors="replace") for word in found]

    def ended(self) -> int | None:
        """Its exit code, below zero a signal; None while it runs."""
        return self.process.poll()

    def wait(self, patience_s: float) -> None:
        """Give it time to end by itself."""
        try:
            self.process.wait(patience_s)
        except subprocess.TimeoutExpired:
            pass

    def close(self) -> None:
        """End the line, and with it the child."""
        self.line.close()

    def kill(self) -> None:
        """End it now; returns when it has ended."""
        self.process.kill()
        self.process.wait()
        self.line.close()


@cache
def _dies_with_parent() -> Any:
    """For a child to call after the fork: from then on the kernel kills it when its parent dies. Not on Linux:
    None; there its line alone ends it."""
    if sys.platform != "linux":
        return None
    libc = ctypes.CDLL(None, use_errno=True)
    return lambda: libc.prctl(PR_SET_PDEATHSIG, signal.SIGKILL, 0, 0, 0)
