"""An engine that is a server of its own: started as a child, watched, drained, ended.

What the child prints goes where the replica's own output goes, so that it is in the gang's log. It gets no
secret: neither on its command line nor from its surroundings. Knows how to start no engine in particular
(vllm.py and sglang.py do), nothing of the model store, of reports or of gateways.
"""

from __future__ import annotations

import ctypes
import http.client
import os
import signal
import socket
import subprocess
import sys
import threading
import time
from abc import ABC, abstractmethod
from collections.abc import Callable, Mapping, Sequence
from typing import Any

import httpx

from caudal.domain.errors import Failed, ModelInvalid, PortInUse
from caudal.ports import EngineCapabilities, EngineLaunch
from caudal.serve.figures import Figure, in_flight, translate
from caudal.serve.opening import read_once

START_S = 1800.0
"""How long loading may take: minutes are usual (weights, compilation, graphs); a child that dies is noticed at
once, so this is met only by one that hangs."""

LOOK_S = 0.1
PROBE_S = 10.0
SCRAPE_BYTES = 8 << 20
QUIET_S = 0.3
TERM_S = 3.0
"""How long the child may take to leave once nothing runs; then it is killed."""

PR_SET_PDEATHSIG = 1  # linux/prctl.h

HELD_BACK = ("CAUDAL_", "VLLM_API_KEY", "SGLANG_API_KEY", "AWS_", "AZURE_", "GOOGLE_", "HF_TOKEN")
"""Beginnings of variables that the child does not get: the control API's address and secret, keys that would
make it refuse our own requests, credentials of stores that it does not talk to."""

MARK = "CAUDAL_GANG_MARK"
"""The one exception: by it the driver finds every process of a gang (drivers/local_folder.py)."""

OFFLINE = {"HF_HUB_OFFLINE": "1", "TRANSFORMERS_OFFLINE": "1", "DO_NOT_TRACK": "1"}
"""The model lies on this machine: nothing is to be fetched, or told to anybody."""


class ChildEngine(ABC):
    """ports.Engine for a server that is started by a command and speaks OpenAI's API, `/health` and `/metrics`.

    `table` translates its metrics (figures.py); `environment` are variables that it is given besides."""

    name: str
    table: Mapping[str, str]
    environment: Mapping[str, str] = {}

    def __init__(self) -> None:
        self.url = ""
        self._arguments: tuple[str, ...] = ()
        self._model = ""
        self._child: subprocess.Popen[bytes] | None = None
        self._ending = False
        self._gone = threading.Event()
        self._tell: Callable[[], None] = lambda: None

    @abstractmethod
    def command(self, launch: EngineLaunch, port: int) -> Sequence[str]:
        """What to execute. Raises Failed where the engine is not installed."""

    @abstractmethod
    def capabilities(self) -> EngineCapabilities:
        """What it understands, as it was started."""

    def start(self, launch: EngineLaunch) -> None:
        """Start the child and wait until it answers; called from a thread that lives as long as the replica (its
        end would be the child's). Raises ModelInvalid, PortInUse, Failed."""
        assert self._child is None
        if not (launch.path / "config.json").is_file():
            raise ModelInvalid(
                "this is not a Hugging Face directory",
                where=str(launch.path),
                why=f"{self.name} reads config.json and *.safetensors, and there is no config.json",
                remedy="serve it with `engine: llama.cpp`, or publish or pull the model as a directory",
            )
        port = launch.port or _free_port(launch.host)
        if launch.port and _listens(launch.host, port):
            raise PortInUse(f"port {port} is taken", where=f"engine of {launch.model_id}")
        command = [*self.command(launch, port), *launch.arguments]
        self._arguments, self._model = launch.arguments, launch.model_id
        self._child = _spawn(command, child_environment(os.environ, self.environment))
        threading.Thread(target=self._wait, name=f"{self.name} child", daemon=True).start()
        self.url = f"http://{launch.host}:{port}"
        try:
            self._until_ready(launch)
        except BaseException:
            self.kill()
            raise

    def open_with(self, opening: str) -> int:
        """Once: its prefixes serve all requests. Raises Failed where it refuses."""
        if not opening or not self.capabilities().chat:
            return 0
        try:
            return read_once(self.url, self._model, opening)
        except (httpx.HTTPError, KeyError, ValueError) as error:
            raise Failed("the opening could not be read", where=self.name, why=str(error)) from error

    def when_gone(self, tell: Callable[[], None]) -> None:
        """Call `tell` when the child has ended and nobody had asked it to."""
        self._tell = tell
        if self._gone.is_set() and not self._ending:
            tell()

    def healthy(self) -> bool:
        """Whether the child lives and says that it is well (waits up to 10 s)."""
        return not self._gone.is_set() and self._get("/health")[0] == 200

    def figures(self) -> Mapping[str, Figure]:
        """Its metrics under vLLM's names."""
        status, text = self._get("/metrics")
        return translate(text, self.table) if status == 200 else {}

    def stop(self) -> None:
        """Wait until nothing runs or waits, twice in a row; then have the child leave. Takes as long as the
        longest request: callers that have a deadline `kill`."""
        quiet = 0
        while not self._gone.is_set() and quiet < 2:
            busy = in_flight(self.figures())
            quiet = quiet + 1 if busy == 0 else 0
            self._gone.wait(QUIET_S if quiet else LOOK_S)
        self._ending = True
        self._signal(signal.SIGTERM)
        if not self._gone.wait(TERM_S):
            self.kill()

    def kill(self) -> None:
        """End the child and what it started, now."""
        self._ending = True
        self._signal(signal.SIGKILL)
        if self._child is not None:
            self._gone.wait(TERM_S)

    def _until_ready(self, launch: EngineLaunch) -> None:
        end = time.monotonic() + START_S
        while not self._gone.wait(LOOK_S):
            if self._ending:
                raise Failed(f"{self.name} was told to end while it was loading", where=launch.model_id)
            if self.healthy():
                return
            if time.monotonic() > end:
                why = f"it does not answer at {self.url}/health after {START_S:g} s"
                raise Failed(f"{self.name} started and is not ready", where=launch.model_id, why=why)
        code = self._child.returncode if self._child is not None else None
        ended = f"was ended by signal {-code}" if code is not None and code < 0 else f"ended with {code}"
        raise ModelInvalid(
            f"{self.name} cannot serve the model",
            where=str(launch.path),
            why=f"its process {ended}. The lines above, from {self.name}, say what it found.",
            remedy="`caudal logs` shows them. Not enough memory, an unknown architecture and a wrong "
            "`engine_args` are the usual reasons.",
        )

    def _wait(self) -> None:
        """Wait for the child's end; what it leaves behind ends with it. It is reaped last: until then its group
        cannot be a stranger's."""
        child = self._child
        assert child is not None
        if sys.platform == "linux":
            os.waitid(os.P_PID, child.pid, os.WEXITED | os.WNOWAIT)
            self._signal(signal.SIGKILL)
        child.wait()
        self._gone.set()
        if not self._ending:
            self._tell()

    def _signal(self, number: signal.Signals) -> None:
        """To the child's whole session: engines start processes of their own."""
        child = self._child
        if child is None or self._gone.is_set():
            return
        try:
            os.killpg(child.pid, number)
        except (ProcessLookupError, PermissionError):
            pass  # nothing is left of it

    def _get(self, path: str) -> tuple[int, str]:
        """Status and text; 0 where it does not answer."""
        host, _, port = self.url.removeprefix("http://").rpartition(":")
        connection = http.client.HTTPConnection(host, int(port), timeout=PROBE_S)
        try:
            connection.request("GET", path)
            response = connection.getresponse()
            return response.status, response.read(SCRAPE_BYTES).decode(errors="replace")
        except (OSError, http.client.HTTPException):
            return 0, ""
        finally:
            connection.close()


def child_environment(own: Mapping[str, str], more: Mapping[str, str]) -> dict[str, str]:
    """What the child is started with: the replica's own surroundings without secrets."""
    kept = {k: v for k, v in own.items() if k == MARK or not k.startswith(HELD_BACK)}
    return {**kept, **OFFLINE, **more}


def _spawn(command: Sequence[str], environment: Mapping[str, str]) -> subprocess.Popen[bytes]:
    """Start it in a session of its own: the SIGTERM that ends the gang must not cut off what it answers."""
    try:
        return subprocess.Popen(
            command,
            env=environment,
            stdin=subprocess.DEVNULL,
            start_new_session=True,
            preexec_fn=_die_with_parent(),
        )
    except OSError as error:
        raise Failed(
            f"{command[0]} cannot be started", why=error.strerror or str(error), remedy="run `caudal doctor`"
        ) from error


def _die_with_parent() -> Callable[[], Any] | None:
    """On Linux the kernel kills the child when the replica dies, even by SIGKILL. The library is found before
    the fork: loading one after it is no good time."""
    if sys.platform != "linux":
        return None
    libc = ctypes.CDLL(None)
    return lambda: libc.prctl(PR_SET_PDEATHSIG, signal.SIGKILL, 0, 0, 0)


def _free_port(host: str) -> int:
    """One that is free now. Another program may take it before the child does: then the child ends, and the
    replica is started again with another one."""
    with socket.socket(socket.AF_INET6 if ":" in host else socket.AF_INET) as probe:
        probe.bind((host, 0))
        return int(probe.getsockname()[1])


def _listens(host: str, port: int) -> bool:
    with socket.socket(socket.AF_INET6 if ":" in host else socket.AF_INET) as probe:
        probe.settimeout(1.0)
        return probe.connect_ex((host, port)) == 0
