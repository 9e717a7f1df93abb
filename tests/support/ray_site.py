"""Real Ray clusters for tests: a head, nodes that join it, and what stands between them and the driver.

Everything is started with the product's own commands (drivers/ray/commands.py), small, with a token, in folders of
its own. What was started is ended by its pid, with all its children. Two machines are two network namespaces of the
WAN rig, or one machine's loopback.
"""

from __future__ import annotations

import importlib.util
import os
import secrets
import shutil
import signal
import socket
import subprocess
import sys
import tempfile
import threading
import time
from collections.abc import Callable, Sequence
from contextlib import ExitStack, closing, suppress
from pathlib import Path
from types import TracebackType
from typing import Any

import psutil

from caudal.domain.errors import CaudalError
from caudal.domain.fleet import Resources
from caudal.drivers.ray.commands import head_command, join_command
from caudal.drivers.ray.driver import RayDriver

SIZE = Resources(cpus=4.0, memory_bytes=2 << 30)  # what Ray is told; the gangs of tests take little
SMALL = ("--object-store-memory=80000000",)
UP_S = 180.0  # as a node has it: on a busy machine a head takes more than a minute


def unusable() -> str:
    """Why there can be no Ray here; empty where there can."""
    if sys.platform != "linux":
        return "Ray sites are tested on Linux"
    if importlib.util.find_spec("ray") is None or importlib.util.find_spec("aiohttp") is None:
        return 'needs Ray: pip install "ray[default]"'
    return ""


def free_ports(count: int) -> list[int]:
    """Ports that nobody listens on just now."""
    with ExitStack() as stack:
        made = [stack.enter_context(closing(socket.socket())) for _ in range(count)]
        for one in made:
            one.bind(("127.0.0.1", 0))
        return [one.getsockname()[1] for one in made]


class Node:
    """One `ray start --block`, and all that it started."""

    def __init__(self, process: subprocess.Popen[Any], log: Path) -> None:
        self.process = process
        self.log = log

    def tree(self) -> list[psutil.Process]:
        """The process and its descendants."""
        with suppress(psutil.NoSuchProcess):
            top = psutil.Process(self.process.pid)
            return [top, *top.children(recursive=True)]
        return []

    def raylet(self) -> psutil.Process:
        """Ray's own daemon of the node."""
        return next(p for p in self.tree() if p.name() == "raylet")

    def close(self) -> None:
        """End all of it."""
        tree = self.tree()
        if self.process.poll() is None:
            self.process.send_signal(signal.SIGTERM)
        _, alive = psutil.wait_procs(tree, timeout=5.0)
        for process in alive:
            with suppress(psutil.NoSuchProcess):
                process.kill()
        psutil.wait_procs(alive, timeout=5.0)
        self.process.wait()


class RaySite:
    """One site's cluster. `enter` is what comes before a command for it to run at the site."""

    def __init__(self, name: str, address: str = "127.0.0.1", enter: Sequence[str] = ()) -> None:
        self.name = name
        self.address = address
        self.folder = Path(tempfile.mkdtemp(prefix="cr-"))  # short: Ray's sockets lie in it
        self.token_file = self.folder / "token"
        self.token_file.write_text(secrets.token_hex(32))
        self.token_file.chmod(0o600)
        self.nodes: dict[str, Node] = {}
        self._enter = list(enter)
        self.port, self.jobs_port, client, agent = free_ports(4)
        self._own = (f"--ray-client-server-port={client}", f"--dashboard-agent-listen-port={agent}")

    def __enter__(self) -> RaySite:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self.close()

    @property
    def url(self) -> str:
        """The Jobs API, from the site itself."""
        return f"http://{self.address}:{self.jobs_port}"

    def start_head(
        self, lease_id: str = "", size: Resources = SIZE, more: Sequence[str] = (), defaults: bool = False
    ) -> Node:
        """Start the head; with `defaults` without our health checks. Returns before it is up."""
        command = head_command(
            lease_id or f"{self.name}-0",
            size,
            node_address=self.address,
            token_file=str(self.token_file),
            port=self.port,
            jobs_host=self.address,
            jobs_port=self.jobs_port,
            more=(*SMALL, *self._own, f"--temp-dir={self.folder / 'h'}", *more),
        )
        if defaults:
            command = [word for word in command if not word.startswith("RAY_health_check")]
        return self._start("head", command, [])

    def join(
        self, lease_id: str, address: str = "", enter: Sequence[str] | None = None, size: Resources = SIZE
    ) -> Node:
        """Join a node; in a namespace of its own where `enter` says so."""
        command = join_command(
            lease_id,
            f"{self.address}:{self.port}",
            size,
            token_file=str(self.token_file),
            node_address=address or self.address,
            more=(
                *SMALL,
                f"--dashboard-agent-listen-port={free_ports(1)[0]}",
                f"--temp-dir={self.folder / 'n'}",
            ),
        )
        return self._start(lease_id, command, enter)

    def _start(self, name: str, command: list[str], enter: Sequence[str] | None) -> Node:
        env = {k: v for k, v in os.environ.items() if k not in ("PYTHONPATH", "RAY_ADDRESS")}
        ray_bin = env.get("CAUDAL_TEST_RAY_BIN", str(Path(sys.executable).parent))  # of another Ray than ours
        env["PATH"] = f"{ray_bin}:{env.get('PATH', '')}"
        log = self.folder / f"{name}.log"
        with log.open("wb") as out:
            process = subprocess.Popen(
                [*(enter or self._enter), *command], stdout=out, stderr=out, stdin=subprocess.DEVNULL, env=env
            )
        self.nodes[name] = Node(process, log)
        return self.nodes[name]

    def driver(self, url: str = "", site: str = "", **more: Any) -> RayDriver:
        """A new driver of the site, as the next control process would make it."""
        return RayDriver(site or self.name, url or self.url, token_file=self.token_file, **more)

    def wait_up(self, driver: RayDriver, nodes: int = 1) -> float:
        """Wait until the Jobs API answers and so many nodes live; returns how long that took."""
        began = time.monotonic()
        while time.monotonic() - began < UP_S:
            assert all(n.process.poll() is None for n in self.nodes.values()), self.said()
            with suppress(CaudalError):
                driver.gangs()
                if len(alive_nodes(driver)) >= nodes:
                    return time.monotonic() - began
            time.sleep(0.1)
        raise AssertionError(f"the site does not come up\n{self.said()}")

    def said(self) -> str:
        """The last words of its nodes."""
        return "\n".join(f"== {name}\n{node.log.read_text()[-1500:]}" for name, node in self.nodes.items())

    def close(self) -> None:
        """End everything, and remove the folders."""
        for name in sorted(self.nodes, key=lambda n: n == "head"):  # the head last
            self.nodes[name].close()
        shutil.rmtree(self.folder, ignore_errors=True)


def alive_nodes(driver: RayDriver) -> list[str]:
    """The ids of the nodes that the head believes alive."""
    found = driver._jobs._json("GET", "/nodes?view=summary")["data"]["summary"]
    return [n["raylet"]["nodeId"] for n in found if n["raylet"].get("state") == "ALIVE"]


class Tunnel:
    """A door on this machine's loopback to a service that is reached by `connect`; shut, it swallows and is silent."""

    def __init__(self, connect: Callable[[], socket.socket]) -> None:
        self._connect = connect
        self.shut = False
        self._listener = socket.create_server(("127.0.0.1", 0))
        self.url = f"http://127.0.0.1:{self._listener.getsockname()[1]}"
        threading.Thread(target=self._accept, daemon=True).start()

    def close(self) -> None:
        """No new connections."""
        with suppress(OSError):
            self._listener.shutdown(socket.SHUT_RDWR)
        self._listener.close()

    def _accept(self) -> None:
        while True:
            try:
                near, _ = self._listener.accept()
            except OSError:
                return
            threading.Thread(target=self._join, args=(near,), daemon=True).start()

    def _join(self, near: socket.socket) -> None:
        try:
            far = self._connect()
        except OSError:
            near.close()
            return
        threading.Thread(target=self._carry, args=(far, near), daemon=True).start()
        self._carry(near, far)

    def _carry(self, source: socket.socket, target: socket.socket) -> None:
        with suppress(OSError):
            while data := source.recv(1 << 16):
                if self.shut:
                    continue
                target.sendall(data)
        for end in (source, target):
            with suppress(OSError):
                end.shutdown(socket.SHUT_RDWR)
            end.close()


def through(site: RaySite) -> Tunnel:
    """A door to the site's Jobs API."""
    return Tunnel(lambda: socket.create_connection((site.address, site.jobs_port), 5.0))


class Shared:
    """One head for all tests of a session that need no more than that: a head takes five seconds and 0.7 GB."""

    def __init__(self) -> None:
        self._site: RaySite | None = None

    def get(self) -> RaySite:
        """The site, started when it is first asked for."""
        if self._site is None:
            self._site = RaySite("shared")
            self._site.start_head(lease_id="lease-1")
            self._site.wait_up(self._site.driver())
        return self._site

    def close(self) -> None:
        """End it, if it was ever started."""
        if self._site is not None:
            self._site.close()
            self._site = None


SHARED = Shared()
