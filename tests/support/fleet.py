"""A whole fleet for a test: `caudal up` as a real process over a state directory of its own."""

from __future__ import annotations

import contextlib
import os
import signal
import socket
import subprocess
import sys
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import httpx
import psutil

POLL_S = 0.1

RUN = """\
type: train
name: tiny
data: builtin:tinyworld
tokenizer: {{kind: bpe, entries: 512}}
model: {{layers: 2, heads: 2, kv_heads: 1, width: 64, ffn_width: 160, context: 128}}
stages:
  - {{name: pretrain, kind: text, tokens: {tokens}, sample_tokens: 64, batch: 8}}
  - {{name: chat, kind: chat, tokens: 20000, sample_tokens: 64, batch: 8}}
evaluate_every_rounds: 20
checkpoint_every_rounds: 5
resources: {{cpus: 0.4, memory_bytes: 256MiB}}
"""

SERVICE = """\
type: service
name: assistant
models:
  - {id: tiny, run: tiny, context: 128, slots: 2, resources: {cpus: 0.1, memory_bytes: 256MiB}}
"""


def free_port() -> int:
    """A port that nothing listens on now."""
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        return int(probe.getsockname()[1])


class Fleet:
    """One state directory, and the control process over it while there is one."""

    def __init__(self, root: Path, tokens: int, service: bool = False) -> None:
        self.root = root
        self.home = root / "home"
        self.api_port, self.gateway_port = free_port(), free_port()
        self.files = root / "files"
        self.files.mkdir(parents=True)
        (self.files / "fleet.yaml").write_text(
            "type: fleet\nname: test\nsites: [{name: north}, {name: south}]\n"
            f"api: {{port: {self.api_port}}}\ngateway: {{port: {self.gateway_port}}}\n"
        )
        (self.files / "run.yaml").write_text(RUN.format(tokens=tokens))
        if service:
            (self.files / "service.yaml").write_text(SERVICE)
        self.process: subprocess.Popen[bytes] | None = None
        self.output = root / "up.log"
        self._seen: set[tuple[int, float]] = set()

    @property
    def url(self) -> str:
        """The control API."""
        return f"http://127.0.0.1:{self.api_port}/api/v1"

    @property
    def openai(self) -> str:
        """The gateway's OpenAI-compatible address."""
        return f"http://127.0.0.1:{self.gateway_port}/v1"

    def caudal(self, *words: str, timeout_s: float = 60.0) -> subprocess.CompletedProcess[str]:
        """Run a verb on this state directory."""
        return subprocess.run(
            [sys.executable, "-m", "caudal.cli", "--home", str(self.home), *words],
            capture_output=True,
            text=True,
            timeout=timeout_s,
            check=False,
        )

    def up(self, *words: str) -> None:
        """Start `caudal up` and wait until its API answers."""
        with self.output.open("ab") as log:
            self.process = subprocess.Popen(
                [sys.executable, "-m", "caudal.cli", "--home", str(self.home), "up", str(self.files), *words],
                stdout=log,
                stderr=subprocess.STDOUT,
                start_new_session=True,
            )
        self.wait_for(self.answers, 30, "the control API")

    def answers(self) -> bool:
        """Whether the control API answers."""
        assert self.process is not None
        if self.process.poll() is not None:
            raise AssertionError(
                f"caudal up ended with {self.process.returncode}:\n{self.output.read_text()}"
            )
        with contextlib.suppress(httpx.TransportError):
            return httpx.get(f"{self.url}/version", timeout=2.0, trust_env=False).status_code == 200
        return False

    def get(self, path: str) -> Any:
        """A GET of the control API."""
        return httpx.get(f"{self.url}{path}", timeout=10.0, trust_env=False).json()

    def workload(self, name: str = "tiny") -> dict[str, Any]:
        """One workload's view."""
        found: dict[str, Any] = self.get(f"/workloads/{name}")
        return found

    def round(self) -> int:
        """The run's last committed round; 0 before the first."""
        return int(self.workload()["progress"].get("round") or 0)

    def ready(self, model: str = "tiny") -> bool:
        """Whether a replica of the model answers."""
        return any(m["id"] == model and m["ready_replicas"] for m in self.get("/status")["models"])

    def pids(self, slot: str) -> list[int]:
        """The pids of the slot's live gang, from its processes' own command lines."""
        gang = next(g["id"] for g in self.get("/gangs")["items"] if g["slot"] == slot)
        return [p.pid for p in self.children() if self._gang_of(p) == gang]

    def children(self) -> list[psutil.Process]:
        """All processes whose command line names this state directory, but the control process."""
        found = []
        for process in psutil.process_iter():
            with contextlib.suppress(psutil.Error):
                words = process.cmdline()
                if any(str(self.home / "gangs") in word for word in words):
                    found.append(process)
        return found

    def _gang_of(self, process: psutil.Process) -> str:
        """The gang whose program (not whose shim) the process is."""
        with contextlib.suppress(psutil.Error):
            words = process.cmdline()
            if not any("local_shim" in word for word in words):
                for word in words:
                    if str(self.home / "gangs") in word:
                        return Path(word).relative_to(self.home / "gangs").parts[0]
        return ""

    def wait_for(self, condition: Callable[[], Any], seconds: float, what: str) -> Any:
        """Wait until the condition is truthy; fail with what the fleet says."""
        deadline = time.monotonic() + seconds
        while time.monotonic() < deadline:
            with contextlib.suppress(httpx.TransportError, KeyError, StopIteration):
                found = condition()
                if found:
                    return found
            time.sleep(POLL_S)
        tail = self.output.read_text()[-4000:] if self.output.exists() else ""
        raise AssertionError(f"not within {seconds} s: {what}\n{tail}")

    def wait_finished(self, seconds: float = 90) -> None:
        """Wait until the run is finished; fail at once where it failed."""

        def over() -> bool:
            state = self.workload()["state"]
            assert state != "failed", self.workload()["reason"]
            return bool(state == "finished")

        self.wait_for(over, seconds, "the run to finish")

    def kill_control(self) -> None:
        """kill -9 of the control process."""
        assert self.process is not None
        self.process.kill()
        self.process.wait()

    def kill_everything(self) -> None:
        """kill -9 of all that belongs to this fleet."""
        if self.process is not None and self.process.poll() is None:
            self.kill_control()
        for process in self.children():
            with contextlib.suppress(psutil.NoSuchProcess):
                process.kill()
        self.wait_for(lambda: not self.children(), 10, "everything to be dead")

    def leave(self) -> int:
        """Ctrl-C; returns the exit code."""
        assert self.process is not None
        os.kill(self.process.pid, signal.SIGINT)
        return self.process.wait(timeout=60)

    def audit(self) -> None:
        """The run's audit must be clean."""
        audit = self.caudal("audit", "tiny", "--json")
        assert audit.returncode == 0, audit.stdout + audit.stderr
