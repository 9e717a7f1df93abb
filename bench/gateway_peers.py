"""Our gateway and its peers, started in their best configuration, and what they take of the machine.

Peers are installed from PyPI into environments of their own, once: in the user's cache, `caudal-bench`. They keep no
usage and have no limits on, and but for LiteLLM check no key: ours does all of it in every figure.
"""

from __future__ import annotations

import json
import os
import secrets
import signal
import socket
import subprocess
import sys
import time
import urllib.request
from dataclasses import dataclass, field
from pathlib import Path
from typing import IO, Any

import psutil
from platformdirs import user_cache_path

from gateway_control import Control

HERE = Path(__file__).resolve().parent
PEERS = {
    "vllm-router": "vllm-router==0.1.17",
    "sglang-router": "sglang-router==0.3.2",
    "litellm": "litellm[proxy]==1.108.7",  # of 1.110.2 the extra names a package that PyPI does not have
}
KINDS = ("direct", "caudal", *PEERS)
READY_S = 300.0  # LiteLLM imports for minutes where the machine is busy
MODEL = "m"


def free_port() -> int:
    """One that nobody listens on now."""
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        return int(probe.getsockname()[1])


def installed(name: str) -> Path:
    """The folder with the peer's programs; installs it first where it is not there. Raises RuntimeError."""
    package = PEERS[name]
    home = user_cache_path("caudal-bench") / package.replace("[proxy]", "").replace("==", "-")
    if not (home / "whole").exists():
        print(f"installing {package} into {home} (once)", file=sys.stderr, flush=True)
        subprocess.run([sys.executable, "-m", "venv", "--clear", str(home)], check=True)
        command = [str(home / "bin" / "python"), "-m", "pip", "install", "--quiet", package]
        done = subprocess.run(command, capture_output=True, text=True, check=False)
        if done.returncode:
            raise RuntimeError(f"{package} cannot be installed: {done.stderr[-500:]}")
        (home / "whole").touch()
    return home / "bin"


@dataclass
class Program:
    """A process on one core (None: on any), and its children."""

    name: str
    process: subprocess.Popen[bytes]
    log: Path

    @classmethod
    def start(
        cls, folder: Path, name: str, argv: list[str], core: int | None, env: dict[str, str] | None = None
    ) -> Program:
        """Start it; what it says goes into a file of the folder."""
        pinned = [] if core is None else ["taskset", "-c", str(core)]
        log = folder / f"{name}-{time.monotonic_ns()}.log"
        inside = (
            folder / "run" / "in" / "here"
        )  # LiteLLM imports from ../.. of where it runs: not what lies about
        inside.mkdir(parents=True, exist_ok=True)
        dropped: tuple[str, ...] = ("CAUDAL_", "http_proxy", "https_proxy", "HTTP_PROXY", "HTTPS_PROXY")
        if argv[0] != sys.executable:
            dropped += ("PYTHON",)  # a peer has packages of its own
        inherited = {k: v for k, v in os.environ.items() if not k.startswith(dropped)}
        with log.open("wb") as out:
            process = subprocess.Popen(
                [*pinned, *argv], stdout=out, stderr=out, stdin=subprocess.DEVNULL,
                env=inherited | (env or {}), cwd=inside,
            )  # fmt: skip
        return cls(name, process, log)

    def all(self) -> list[psutil.Process]:
        """It and its children."""
        try:
            own = psutil.Process(self.process.pid)
            return [own, *own.children(recursive=True)]
        except psutil.NoSuchProcess:
            return []

    def cpu_s(self) -> float:
        """User and system seconds so far."""
        total = 0.0
        for process in self.all():
            try:
                times = process.cpu_times()
            except psutil.NoSuchProcess:
                continue
            total += times.user + times.system
        return total

    def rss_mib(self) -> float:
        """Of the largest of its processes."""
        found = []
        for process in self.all():
            try:
                found.append(process.memory_info().rss / 2**20)
            except psutil.NoSuchProcess:
                continue
        return max(found, default=0.0)

    def kill(self) -> None:
        """`kill -9`, with its children."""
        for process in reversed(self.all()):
            try:
                process.kill()
            except psutil.NoSuchProcess:
                pass
        self.process.wait()

    def close(self, within_s: float = 3.0) -> None:
        """Ask it to leave; end it where it does not."""
        if self.process.poll() is None:
            self.process.send_signal(signal.SIGTERM)
            try:
                self.process.wait(within_s)
            except subprocess.TimeoutExpired:
                pass
        self.kill()

    def tail(self) -> str:
        """Its last words."""
        return f"{self.name}: " + self.log.read_text(errors="replace")[-1500:]


@dataclass
class Front:
    """A gateway at a port, with the key that opens it. The direct way has no program."""

    name: str
    port: int
    key: str = "none"
    program: Program | None = None

    def cpu_s(self) -> float:
        """What it took so far."""
        return self.program.cpu_s() if self.program else 0.0

    def close(self) -> None:
        """End it."""
        if self.program:
            self.program.close()


def answers(port: int, key: str, model: str = MODEL) -> str:
    """Empty where a request there is answered well, else why not."""
    body = {"model": model, "max_tokens": 1, "messages": [{"role": "user", "content": "Hello"}]}
    headers = {"content-type": "application/json", "authorization": f"Bearer {key}"}
    url = f"http://127.0.0.1:{port}/v1/chat/completions"
    opener = urllib.request.build_opener(urllib.request.ProxyHandler({}))
    try:
        with opener.open(
            urllib.request.Request(url, json.dumps(body).encode(), headers), timeout=10.0
        ) as answer:
            return "" if b'"choices"' in answer.read() else "no choices in its answer"
    except OSError as error:
        return str(error)


def until_answers(front: Front, model: str = MODEL) -> Front:
    """Wait for its first good answer. Raises RuntimeError with its last words."""
    give_up = time.monotonic() + READY_S
    while why := answers(front.port, front.key, model):
        program = front.program
        if time.monotonic() > give_up or (program and program.process.poll() is not None):
            said = program.tail() if program else ""
            front.close()
            raise RuntimeError(f"{front.name} does not answer: {why}\n{said}")
        time.sleep(0.1)
    return front


@dataclass
class Yard:
    """Where the processes of a row run: gateways on one core, all else on another. Ends them all."""

    folder: Path
    gateway_core: int | None
    other_core: int | None
    more: dict[str, Any] = field(default_factory=dict)  # fields of our gateway's configuration
    control: Control = field(default_factory=Control)
    programs: list[Program] = field(default_factory=list)

    def mock(self, replica: dict[str, float] | None = None, core: int | None = -1) -> tuple[Program, int]:
        """A mock backend that answers, and its port."""
        port = free_port()
        told: dict[str, Any] = {"port": port} | ({"replica": replica} if replica else {})
        argv = [sys.executable, str(HERE / "gateway_mock.py"), json.dumps(told)]
        program = self.run(f"mock-{port}", argv, self.other_core if core == -1 else core)
        listening(program, port)
        return program, port

    def run(self, name: str, argv: list[str], core: int | None, env: dict[str, str] | None = None) -> Program:
        """A program that ends with the row at last."""
        self.programs.append(Program.start(self.folder, name, argv, core, env))
        return self.programs[-1]

    def front(self, kind: str, backends: list[int], slots: int = 256, bound: int = 0) -> Front:
        """A gateway of that kind in front of mocks at these ports. With `bound` a router passes on no more at once, and
        refuses the rest. Raises RuntimeError."""
        urls = [f"http://127.0.0.1:{port}" for port in backends]
        if kind == "direct":
            return Front(kind, backends[0])
        if kind == "caudal":
            self.control.route(MODEL, [self.replica(url, slots) for url in urls])
            return self.ours("north")
        port = free_port()
        env = {"LITELLM_LOG": "ERROR", "LITELLM_LOCAL_MODEL_COST_MAP": "True", "RUST_LOG": "warn"}
        key = "sk-" + secrets.token_hex(32) if kind == "litellm" else "none"
        argv = (
            _litellm(self.folder, port, urls, key) if kind == "litellm" else _router(kind, port, urls, bound)
        )
        return until_answers(Front(kind, port, key, self.run(kind, argv, self.gateway_core, env)))

    def ours(self, site: str, model: str = MODEL) -> Front:
        """Caudal's gateway, which asks this yard's control: keys required, limits, usage and metrics on."""
        port, folder = free_port(), self.folder / f"gateway-{time.monotonic_ns()}"
        folder.mkdir()
        told = {
            "host": "127.0.0.1", "port": port, "site": site, "gang": f"gateway-{port}", "keys": "required",
            "routes_url": f"{self.control.url}/routes", "state_file": str(folder / "routes.json"),
            "keys_url": f"{self.control.url}/gateway/keys", "keys_file": str(folder / "keys.json"),
            "usage_url": f"{self.control.url}/gateway/usage", "usage_dir": str(folder / "usage"),
        }  # fmt: skip
        (folder / "config.json").write_text(json.dumps(told | self.more))
        argv = [sys.executable, "-m", "caudal.gateway", str(folder / "config.json")]
        program = self.run(f"caudal-{site}", argv, self.gateway_core)
        return until_answers(Front("caudal", port, self.control.secret, program), model)

    @staticmethod
    def replica(url: str, slots: int, site: str = "north", draining: bool = False) -> dict[str, Any]:
        """A row of the routes."""
        gang = f"replica-{url.rpartition(':')[2]}"
        return {"gang": gang, "url": url, "site": site, "slots": slots, "version": 1, "draining": draining}

    def close(self) -> None:
        """End everything."""
        for program in reversed(self.programs):
            program.close()
        self.control.close()

    def __enter__(self) -> Yard:
        return self

    def __exit__(self, *_: object) -> None:
        self.close()


def listening(program: Program, port: int) -> None:
    """Wait until somebody listens there. Raises RuntimeError."""
    give_up = time.monotonic() + READY_S
    while True:
        try:
            socket.create_connection(("127.0.0.1", port), 1.0).close()
            return
        except OSError:
            if time.monotonic() > give_up or program.process.poll() is not None:
                raise RuntimeError(f"nobody listens\n{program.tail()}") from None
            time.sleep(0.02)


def _router(kind: str, port: int, urls: list[str], bound: int) -> list[str]:
    """A Rust router: round robin is its fastest policy, and the only fair one without a cache to know about."""
    bounded = ["--max-concurrent-requests", str(bound), "--queue-size", "0"] if bound else []
    module = {"vllm-router": "vllm_router.launch_router", "sglang-router": "sglang_router.launch_router"}[
        kind
    ]
    python, level = str(installed(kind) / "python"), "warning" if kind == "vllm-router" else "warn"
    place = ["--host", "127.0.0.1", "--port", str(port), "--prometheus-port", str(free_port())]
    return [
        python,
        "-m",
        module,
        *place,
        *bounded,
        "--policy",
        "round_robin",
        "--log-level",
        level,
        "--worker-urls",
        *urls,
    ]


def _litellm(folder: Path, port: int, urls: list[str], key: str) -> list[str]:
    """LiteLLM's proxy with one worker, as it has one core; no callbacks, no database. It does not start without a key."""
    models = [
        {
            "model_name": MODEL,
            "litellm_params": {"model": f"openai/{MODEL}", "api_base": f"{url}/v1", "api_key": "none"},
        }
        for url in urls
    ]
    path = folder / f"litellm-{port}.yaml"  # JSON is YAML
    told = {
        "model_list": models,
        "router_settings": {"num_retries": 2},
        "general_settings": {"master_key": key},
    }
    path.write_text(json.dumps(told))
    program = str(installed("litellm") / "litellm")
    return [program, "--config", str(path), "--host", "127.0.0.1", "--port", str(port), "--num_workers", "1"]


class Load:
    """The load client as a process: `told` in, its last line out, and what the gateways took meanwhile."""

    def __init__(self, told: dict[str, Any], core: int | None) -> None:
        pinned = [] if core is None else ["taskset", "-c", str(core)]
        argv = [*pinned, sys.executable, str(HERE / "gateway_load.py"), json.dumps(told)]
        self._process = subprocess.Popen(argv, stdout=subprocess.PIPE, text=True)
        assert self._process.stdout is not None
        self._out: IO[str] = self._process.stdout

    def until(self, word: str) -> None:
        """Wait until it says so. Raises RuntimeError where it ends before."""
        if self._out.readline().strip() != word:
            self._process.kill()
            raise RuntimeError("the load client failed")

    def result(self) -> Any:
        """What came of it."""
        line = self._out.readline()
        self._process.wait()
        if not line:
            raise RuntimeError("the load client failed")
        return json.loads(line)


def measured(told: dict[str, Any], front: Front, core: int | None) -> dict[str, Any]:
    """One closed load on a gateway, with the CPU seconds that the gateway took in the measured time."""
    ask = {"key": front.key, **told.get("ask", {})}
    load = Load({"do": "closed", "port": front.port, **told, "ask": ask}, core)
    load.until("measuring")
    cpu_s, at = front.cpu_s(), time.monotonic()
    load.until("measured")
    used_s, wall_s = front.cpu_s() - cpu_s, time.monotonic() - at
    result: dict[str, Any] = load.result()
    result |= {"cpu_s": used_s, "wall_s": wall_s, "busy": used_s / wall_s}
    return result
