"""Azure on this machine: the part of ARM that the provider calls, over HTTP, with faults on demand.

    azure = start(processes=True)          # a child process; ends with this one
    spec = ProviderSpec("azure", "azure", endpoint=azure.url, account=SUBSCRIPTION, resource_group="fleet")
    ...
    azure.stop()

The real SDK talks to it. Its machines are entries in a table, or, with `processes`, local processes that run what the
machine was given as custom data. Everything it was asked for can be looked at and steered below `/_caudal/`
(admin.py). Nothing outlives it.
"""

from __future__ import annotations

import subprocess
import sys
from collections.abc import Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import httpx

from caudal.domain.errors import Failed

SUBSCRIPTION = "00000000-0000-4000-8000-0000000caada"
START_S = 30.0
STOP_S = 10.0


@dataclass
class FakeAzure:
    """A fake that runs. `url` is its endpoint."""

    url: str
    process: subprocess.Popen[str] = field(repr=False)
    _client: httpx.Client = field(
        default_factory=lambda: httpx.Client(timeout=10, trust_env=False), repr=False
    )

    def admin(self, path: str, body: Any = None) -> Any:
        """Look (no body) or steer: `admin("capacity", {...})`. Raises Failed where it does not take it."""
        url = f"{self.url}/_caudal/{path}"
        answer = self._client.get(url) if body is None else self._client.post(url, json=body)
        if answer.status_code != 200:
            raise Failed(f"the fake of Azure refused {path}", why=answer.text)
        return answer.json()

    def stop(self) -> None:
        """End it and all its machines; once more is fine."""
        self._client.close()
        if self.process.stdin is not None and not self.process.stdin.closed:
            self.process.stdin.close()  # it ends by itself when nobody holds this pipe
        try:
            self.process.wait(STOP_S)
        except subprocess.TimeoutExpired:
            self.process.kill()
            self.process.wait()


def start(
    port: int = 0, *, processes: bool = False, work_dir: Path | None = None, arguments: Sequence[str] = ()
) -> FakeAzure:
    """Start it as a child on the loopback and wait until it answers; port 0 takes a free one. `arguments` are further
    ones of `python -m caudal.providers.azure_fake`. Raises Failed."""
    command = [sys.executable, "-m", __name__, "--port", str(port), "--until-stdin-closes", *arguments]
    if processes:
        command.append("--processes")
    if work_dir is not None:
        command += ["--work-dir", str(work_dir)]
    process = subprocess.Popen(command, stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True)
    assert process.stdout is not None
    said = process.stdout.readline().strip()  # the first line, or the end of its output where it failed
    if not said.startswith("ready http://127.0.0.1:"):
        process.kill()
        raise Failed("the fake of Azure did not start", why=f"exit code {process.wait()}: {said}")
    return FakeAzure(said.removeprefix("ready "), process)
