"""Starts the fake as a process of its own, finds one that runs already, and ends it.

Like the fake of AWS it outlives the control process that started it, as a cloud does: the next one finds it, and its
token, by its state directory.
"""

from __future__ import annotations

import json
import os
import secrets
import subprocess
import sys
import time
from pathlib import Path
from typing import Any

import httpx
import psutil

from caudal.domain.errors import Failed
from caudal.providers.azure_fake import TOKEN_VARIABLE
from caudal.providers.fake_processes import end, recorded

RECORD = "fake.json"
LOG = "fake.log"
READY = "ready http://127.0.0.1:"
READY_S = 60.0
END_S = 30.0
LOOK_S = 0.05


def folder(home: Path, provider: str) -> Path:
    """Where the fake of a provider keeps its state, below a fleet's state directory."""
    return home / "fakes" / provider


def start(state: Path, port: int = 0, *, boot_s: float = 0.5, delete_s: float = 0.5) -> tuple[str, str]:
    """The URL and the token of the fake of that state directory, started where it does not run; its machines are
    processes of this machine. Returns when it answers. Raises Failed, with the end of its log."""
    if found := running(state):
        return found
    state.mkdir(mode=0o700, parents=True, exist_ok=True)
    (state / LOG).unlink(missing_ok=True)
    command = [sys.executable, "-m", "caudal.providers.azure_fake", "--port", str(port), "--processes"]
    command += ["--work-dir", str(state / "machines"), "--boot-s", str(boot_s), "--delete-s", str(delete_s)]
    token = secrets.token_urlsafe(24)
    with (state / LOG).open("ab") as log:
        process = subprocess.Popen(
            command,
            stdin=subprocess.DEVNULL,
            stdout=log,
            stderr=log,
            start_new_session=True,
            env={**os.environ, TOKEN_VARIABLE: token},
        )
    deadline = time.monotonic() + READY_S
    while time.monotonic() < deadline and process.poll() is None:
        said = (state / LOG).read_text(errors="replace")
        line = next((x for x in said.splitlines() if x.startswith(READY)), "")
        if line and said.endswith("\n"):
            record = {"url": line.removeprefix("ready ").strip(), "pid": process.pid, "token": token}
            _write(state / RECORD, {**record, "born": psutil.Process(process.pid).create_time()})
            if found := running(state):
                return found
        time.sleep(LOOK_S)
    if process.poll() is None:
        process.terminate()
        process.wait(END_S)
    said = (state / LOG).read_text(errors="replace")[-2000:].strip()
    raise Failed("the fake of Azure does not start", where=str(state), why=said or "it says nothing")


def running(state: Path) -> tuple[str, str] | None:
    """The URL and the token of the fake that runs there and answers; None where none does."""
    process, record = recorded(state / RECORD)
    if process is None:
        return None
    url, token = str(record["url"]), str(record["token"])
    try:
        headers = {"Authorization": f"Bearer {token}"}
        answer = httpx.get(f"{url}/_caudal/state", headers=headers, timeout=5.0, trust_env=False)
    except httpx.HTTPError:
        return None
    return (url, token) if answer.status_code == 200 else None


def stop(state: Path) -> None:
    """End the fake that runs there, and with it its machines; none is fine. Returns when it is gone."""
    process, _ = recorded(state / RECORD)
    if process is not None:
        end(process, END_S)
    (state / RECORD).unlink(missing_ok=True)


def _write(path: Path, record: dict[str, Any]) -> None:
    """Whole or not at all, for the owner alone: the token lets programs run as us."""
    draft = path.with_name(f".{path.name}.new")
    descriptor = os.open(draft, os.O_WRONLY | os.O_CREAT | os.O_TRUNC, 0o600)
    with os.fdopen(descriptor, "w") as file:
        json.dump(record, file)
    draft.replace(path)
