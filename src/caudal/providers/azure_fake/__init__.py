"""Azure on this machine: the part of ARM that the provider calls, over HTTP, with faults on demand.

    azure = start(processes=True)          # a child process; ends with this one
    spec = ProviderSpec("azure", "azure", endpoint=azure.url, account=SUBSCRIPTION, resource_group="fleet")
    AzureProvider(spec, ..., credential=FakeCredential(azure.token))
    ...
    azure.stop()

The real SDK talks to it. Its machines are entries in a table, or, with `processes`, local processes that run what the
machine was given as custom data. Everything it was asked for can be looked at and steered below `/_caudal/`
(admin.py). Nothing outlives it.
"""

from __future__ import annotations

import os
import secrets
import subprocess
import sys
from collections.abc import Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import httpx

from caudal.domain.errors import Failed

SUBSCRIPTION = "00000000-0000-4000-8000-0000000caada"
TOKEN_VARIABLE = "CAUDAL_FAKE_TOKEN"
"""Where the fake and `providers.azure.FakeCredential` look for the token that it wants; never on a command line."""

STOP_S = 10.0


@dataclass
class FakeAzure:
    """A fake that runs. `url` is its endpoint; `token` what it wants to see, empty where any token will do."""

    url: str
    token: str = field(repr=False)
    process: subprocess.Popen[str] = field(repr=False)
    _client: httpx.Client = field(
        default_factory=lambda: httpx.Client(timeout=10, trust_env=False), repr=False
    )

    def admin(self, path: str, body: Any = None) -> Any:
        """Look (no body) or steer: `admin("capacity", {...})`. Raises Failed where it does not take it."""
        url = f"{self.url}/_caudal/{path}"
        headers = {"Authorization": f"Bearer {self.token or 'any'}"}
        method = "GET" if body is None else "POST"
        answer = self._client.request(method, url, json=body, headers=headers)
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
    ones of `python -m caudal.providers.azure_fake`. With `processes` it wants a token that is made here: whoever can
    make machines can run programs as us, and other users of this machine reach the port too. Raises Failed."""
    command = [sys.executable, "-m", __name__, "--port", str(port), "--until-stdin-closes", *arguments]
    if processes:
        command.append("--processes")
    if work_dir is not None:
        command += ["--work-dir", str(work_dir)]
    token = secrets.token_urlsafe(24) if processes else ""
    process = subprocess.Popen(
        command,
        stdin=subprocess.PIPE,
        stdout=subprocess.PIPE,
        text=True,
        env={**os.environ, TOKEN_VARIABLE: token},
    )
    assert process.stdout is not None
    said = process.stdout.readline().strip()  # the first line, or the end of its output where it failed
    if not said.startswith("ready http://127.0.0.1:"):
        process.kill()
        raise Failed("the fake of Azure did not start", why=f"exit code {process.wait()}: {said}")
    return FakeAzure(said.removeprefix("ready "), token, process)
