"""A node's part in a cluster that the site's own nodes make up: the first one is its head, the others join it.

What is run comes from the configuration, with words to be filled in: `{address}` (this node's), `{token_file}`,
`{temp_dir}`, `{head}` (`host:port`), and ports that are the usual ones, or free ones where machines share one:
`{port}`, `{jobs_port}`, `{client_port}`, `{agent_port}`. It is held for as long as the node lives. Knows no cluster
software by itself, but how the head of one of Ray is seen to answer.
"""

from __future__ import annotations

import os
import shutil
import signal
import socket
import subprocess
import sys
import tempfile
import threading
import time
import urllib.error
import urllib.request
from collections.abc import Mapping, Sequence
from contextlib import ExitStack, closing
from pathlib import Path
from typing import Any
from urllib.parse import urlsplit

USUAL = {"port": 6379, "jobs_port": 8265, "client_port": 10001, "agent_port": 52365}
UP_S = 180.0  # a busy machine takes a minute to import Ray
LOOK_S = 0.25
END_S = 0.5  # nothing of ours runs in it by then: a machine that goes need not be polite
SHORT = 40
"""Characters of a folder below which Ray's sockets still have names within Unix's 107."""


class Member:
    """The process that makes this node a part of its cluster."""

    def __init__(self, folder: Path, api_url: str, *, shares_machine: bool) -> None:
        self.address = own_address(api_url)
        self._folder = folder
        self._ports = _free_ports() if shares_machine else dict(USUAL)
        short = len(str(folder)) <= SHORT
        self._temp = str(folder / "tmp") if short else tempfile.mkdtemp(prefix="cn-")
        self._log = folder / "cluster.log"
        self._process: subprocess.Popen[bytes] | None = None

    def start(self, argv: Sequence[str], head: str = "") -> None:
        """Run it. Raises OSError."""
        words = {"address": self.address, "temp_dir": self._temp, "head": head}
        words |= {"token_file": str(self._folder / "cluster-token")}
        words |= {name: str(port) for name, port in self._ports.items()}
        filled = [_filled(word, words) for word in argv]
        bin_dir = str(Path(sys.executable).parent)
        env = {**os.environ, "PATH": f"{bin_dir}:{os.environ.get('PATH', '')}"}
        env.pop("RAY_ADDRESS", None)
        with self._log.open("ab") as log:
            self._process = subprocess.Popen(
                filled, stdin=subprocess.DEVNULL, stdout=log, stderr=log, env=env, start_new_session=True
            )

    def wait_up(self, ending: threading.Event, *, head: bool) -> str:
        """Wait until it belongs to its cluster; why it does not, or empty."""
        deadline = time.monotonic() + UP_S
        while time.monotonic() < deadline:
            if why := self.over():
                return why
            if self._answers() if head else self._said_so():
                return ""
            if ending.wait(LOOK_S):
                return "it was to end before it had joined"
        return f"it did not join within {UP_S:.0f} s: {self._tail()}"

    def over(self) -> str:
        """Why it is no part of its cluster any more; empty as long as it is."""
        code = self._process.poll() if self._process is not None else None
        return "" if code is None else f"what joined the site ended with code {code}: {self._tail()}"

    def head(self) -> Mapping[str, str]:
        """Where others find this head: where nodes join, and where jobs are taken."""
        host = f"[{self.address}]" if ":" in self.address else self.address
        return {
            "address": f"{host}:{self._ports['port']}",
            "jobs": f"http://{host}:{self._ports['jobs_port']}",
        }

    def close(self) -> None:
        """End it, with all of its session."""
        if self._process is not None and self._process.poll() is None:
            self._process.send_signal(signal.SIGTERM)
            try:
                self._process.wait(END_S)
            except subprocess.TimeoutExpired:
                os.killpg(self._process.pid, signal.SIGKILL)
                self._process.wait()
        shutil.rmtree(self._temp, ignore_errors=True)

    def _answers(self) -> bool:
        token = (self._folder / "cluster-token").read_text().strip()
        request = urllib.request.Request(f"{self.head()['jobs']}/api/version")
        request.add_header("Authorization", f"Bearer {token}")
        try:
            with _direct.open(request, timeout=2.0) as answer:
                return bool(answer.status == 200)
        except (OSError, urllib.error.URLError):
            return False

    def _said_so(self) -> bool:
        return b"Ray runtime started" in self._log.read_bytes()

    def _tail(self) -> str:
        try:
            return self._log.read_text(errors="replace").strip()[-300:]
        except OSError:
            return "it says nothing"


_direct = urllib.request.build_opener(urllib.request.ProxyHandler({}))  # a proxy must not see the token


def own_address(api_url: str) -> str:
    """The address by which this machine is seen from where the control API is; nothing is sent."""
    parts = urlsplit(api_url)
    family, kind, protocol, _, target = socket.getaddrinfo(
        parts.hostname, parts.port or 443, type=socket.SOCK_DGRAM
    )[0]
    with socket.socket(family, kind, protocol) as probe:
        probe.connect(target)
        return str(probe.getsockname()[0])


def _free_ports() -> dict[str, int]:
    with ExitStack() as stack:
        made: dict[str, Any] = {n: stack.enter_context(closing(socket.socket())) for n in USUAL}
        for one in made.values():
            one.bind(("127.0.0.1", 0))
        return {name: int(one.getsockname()[1]) for name, one in made.items()}


def _filled(word: str, words: Mapping[str, str]) -> str:
    """A word with what it names; other braces (JSON) stay as they are."""
    for name, text in words.items():
        word = word.replace("{" + name + "}", text)
    return word
