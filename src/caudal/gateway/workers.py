"""A gateway of several processes: the parent, which starts them, starts again those that die, and speaks for all.

They listen on one port (SO_REUSEPORT: the kernel deals connections out). The parent carries no request: when it is
gone they end, each with its grace. Knows nothing of models.
"""

from __future__ import annotations

import asyncio
import contextlib
import errno
import logging
import shutil
import signal
import sys
import tempfile
from asyncio.subprocess import PIPE, Process
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import msgspec

from caudal.domain.errors import CaudalError, Failed, PortInUse, UsageError
from caudal.gateway.book import Book
from caudal.gateway.held_port import hold_port
from caudal.gateway.place import Place
from caudal.gateway.process import GRACE_S, REPORT_S, GatewayConfig, Reports, port_in_use
from caudal.gateway.restarts import Restarts
from caudal.gateway.siblings import PAST, answer_at

log = logging.getLogger("caudal.gateway")

LINE_BYTES = 16 << 20
KILL_S = GRACE_S + 1.5
"""After SIGTERM; a gang is given 10 s."""


ERRORS: dict[str, type[CaudalError]] = {kind.code: kind for kind in (PortInUse, UsageError, Failed)}
"""What a process may fail with that starting it again does not help against."""


async def serve_all(config: GatewayConfig, config_file: Path, reporter: Reports) -> None:
    """Run a gateway of `config.processes` until SIGTERM or SIGINT. Raises PortInUse, and what its processes fail
    with where starting them again does not help."""
    try:
        port, held = await hold_port(config.host, config.port)
    except OSError as error:
        if error.errno != errno.EADDRINUSE:
            raise
        raise port_in_use(config.host, config.port) from error
    folder = tempfile.mkdtemp(
        prefix="caudal-gateway-"
    )  # for its owner only; its name is short, as sockets need it
    parent = Parent(config, config_file, port, folder, reporter)
    try:
        await parent.run()
    finally:
        for one in held:
            one.close()
        shutil.rmtree(folder, ignore_errors=True)


class Parent:
    """The processes of one gateway."""

    def __init__(
        self, config: GatewayConfig, config_file: Path, port: int, folder: str, reporter: Reports
    ) -> None:
        self._config = config
        self._config_file = config_file
        self._place = Place(0, config.processes, port, folder)
        self._reporter = reporter
        self._book = Book(config.processes)
        self._url = config.url(port)
        self._running: dict[int, Process] = {}
        self._news = asyncio.Event()
        self._end = asyncio.Event()
        self._failed: CaudalError | None = None

    async def run(self) -> None:
        """Until told to end. Raises what the processes failed with."""
        loop = asyncio.get_running_loop()
        for number in (signal.SIGTERM, signal.SIGINT):
            loop.add_signal_handler(number, self._end.set)
        past = await answer_at(Path(self._place.folder) / PAST, lambda: self._book.past)
        reporting = loop.create_task(self._report())
        keeping = [loop.create_task(self._keep(number)) for number in range(self._config.processes)]
        for task in (reporting, *keeping):
            task.add_done_callback(self._unless_bug)
        await self._end.wait()
        reporting.cancel()
        self._reporter.update(ready=False)
        await self._stop(keeping)
        past.close()
        for task in keeping:
            if task.done():
                task.result()
        if self._failed is not None:
            raise self._failed

    def _unless_bug(self, task: asyncio.Task[None]) -> None:
        """A bug here ends the gateway, so that it is started again as a whole, rather than a part of it."""
        if not task.cancelled() and task.exception() is not None:
            log.error("the gateway's parent failed", exc_info=task.exception())
            self._end.set()

    async def _keep(self, number: int) -> None:
        """One process, again and again."""
        loop = asyncio.get_running_loop()
        restarts = Restarts()
        while not self._end.is_set():
            began = loop.time()
            error, how = await self._once(number)
            self._book.gone(number)
            self._news.set()
            if self._end.is_set():
                return
            wait_s = restarts.died(loop.time() - began)
            if error is not None or wait_s is None:
                why = f"{how}, {restarts.early} times in a row soon after its start"
                self._failed = error or Failed("a process of the gateway cannot be kept running", why=why)
                self._end.set()
                return
            log.warning("process %d of the gateway %s: it is started again in %.1f s", number, how, wait_s)
            with contextlib.suppress(TimeoutError):
                await asyncio.wait_for(self._end.wait(), wait_s)

    async def _once(self, number: int) -> tuple[CaudalError | None, str]:
        """Start a process and hear it until it ends; returns its own error, if it had one, and how it ended."""
        argv = (sys.executable, "-m", "caudal.gateway", str(self._config_file), "--worker", str(number))
        try:
            process = await asyncio.create_subprocess_exec(*argv, stdin=PIPE, stdout=PIPE, limit=LINE_BYTES)
        except OSError as why:
            return None, f"could not be started ({why})"
        self._running[number] = process
        assert process.stdin is not None
        place = msgspec.structs.replace(self._place, number=number)
        with contextlib.suppress(OSError, RuntimeError):  # it is dead already, and is found so below
            process.stdin.write(msgspec.json.encode(place) + b"\n")
        if self._end.is_set():
            process.terminate()
        error = await self._hear(number, process)
        code = await process.wait()
        del self._running[number]
        return error, f"ended with signal {-code}" if code < 0 else f"ended with code {code}"

    async def _hear(self, number: int, process: Process) -> CaudalError | None:
        """Take its reports until it says no more."""
        assert process.stdout is not None
        try:
            while (line := await process.stdout.readline()).endswith(b"\n"):
                said: dict[str, Any] = msgspec.json.decode(line, type=dict[str, Any])
                if "error" in said:
                    return _error(said["error"])
                if self._book.heard(number, said):
                    self._news.set()
        except (ValueError, msgspec.DecodeError) as wrong:
            log.error("process %d of the gateway says what cannot be read: %s", number, wrong)
            process.kill()
        return None

    async def _report(self) -> None:
        loop = asyncio.get_running_loop()
        while True:
            self._news.clear()
            self._reporter.update(url=self._url, **self._book.report(loop.time()))
            with contextlib.suppress(TimeoutError):
                await asyncio.wait_for(self._news.wait(), REPORT_S)

    async def _stop(self, keeping: list[asyncio.Task[None]]) -> None:
        """End all, with their grace."""
        self._signal(signal.SIGTERM)
        _, slow = await asyncio.wait(keeping, timeout=KILL_S)
        if slow:
            self._signal(signal.SIGKILL)
            await asyncio.wait(slow, timeout=1.0)

    def _signal(self, number: int) -> None:
        for process in self._running.values():
            with contextlib.suppress(ProcessLookupError):
                process.send_signal(number)


def _error(said: Mapping[str, str]) -> CaudalError:
    """A process's error as it was there."""
    kind = ERRORS.get(said["code"], Failed)
    return kind(said["what"], where=said["where"], why=said["why"], remedy=said["remedy"])
