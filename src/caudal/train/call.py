"""How a worker calls on its site's standby coordinator: started once it takes part, told when nobody coordinates."""

from __future__ import annotations

import asyncio
import sys
from dataclasses import dataclass, field
from typing import Protocol

AGAIN_S = 2.0
"""So often it is told of the same epoch again."""


class Call(Protocol):
    """What a worker says; whose child the standby is, it need not know."""

    async def start(self) -> None:
        """This site takes part."""
        ...

    async def lost(self, epoch: int) -> None:
        """The coordinator of this epoch cannot be reached."""
        ...

    async def end(self) -> None:
        """The run is finished."""
        ...


@dataclass
class Standby:
    """The standby as a child of this process. `config` is the worker's configuration file, which says all that a
    coordinator needs. One that ended is started again at the next word."""

    config: str
    _process: asyncio.subprocess.Process | None = None
    _told: tuple[int, float] = field(default=(0, 0.0))

    async def start(self) -> None:
        """Start it, where it does not run."""
        if self._process is None or self._process.returncode is not None:
            command = (sys.executable, "-m", "caudal.train.standby", self.config)
            self._process = await asyncio.create_subprocess_exec(*command, stdin=asyncio.subprocess.PIPE)

    async def lost(self, epoch: int) -> None:
        """The coordinator of this epoch cannot be reached."""
        now = asyncio.get_running_loop().time()
        if self._told[0] == epoch and now - self._told[1] < AGAIN_S:
            return
        self._told = epoch, now
        await self.start()
        assert self._process is not None and self._process.stdin is not None
        try:
            self._process.stdin.write(f"{epoch}\n".encode())
        except (BrokenPipeError, ConnectionResetError):
            self._process = None  # it has just ended: the next word starts another

    async def end(self, patience_s: float = 10.0) -> None:
        """Close its input, which ends it. A run that is finished is left time to be published."""
        if self._process is None or self._process.returncode is not None:
            return
        assert self._process.stdin is not None
        try:
            self._process.stdin.close()
            await asyncio.wait_for(self._process.wait(), patience_s)
        except TimeoutError:
            self._process.kill()
