"""Starts the fake as a process of its own, finds one that runs already, and ends it.

The fake outlives the control process that started it, as a cloud does: the next one finds it by its state directory.
Imports neither moto nor anything that is slow.
"""

from __future__ import annotations

import fcntl
import os
import subprocess
import sys
import time
import urllib.error
import urllib.request
from pathlib import Path

from caudal.domain.errors import Failed
from caudal.providers.fake_processes import end, recorded

RECORD = "fake.json"
LOG = "fake.log"
LOCK = "fake.lock"
READY_S = 30.0  # moto takes two seconds to load, more on a busy machine
END_S = 30.0
LOOK_S = 0.05


def folder(home: Path, provider: str) -> Path:
    """Where the fake of a provider keeps its state, below a fleet's state directory."""
    return home / "fakes" / provider


def start(
    state: Path, port: int = 0, *, machines: bool = True, boot_s: float = 0.5, stop_s: float = 0.5
) -> str:
    """The URL of the fake of that state directory, started where it does not run. Returns when it answers. Raises
    Failed, with the end of its log."""
    url = running(state)
    if url:
        return url
    state.mkdir(mode=0o700, parents=True, exist_ok=True)
    (state / RECORD).unlink(missing_ok=True)
    command = [sys.executable, "-m", "caudal.providers.aws_fake", "--state", str(state), "--port", str(port)]
    command += ["--boot-s", str(boot_s), "--stop-s", str(stop_s), *(["--machines"] if machines else [])]
    with (state / LOG).open("ab") as log:
        process = subprocess.Popen(
            command, stdin=subprocess.DEVNULL, stdout=log, stderr=log, start_new_session=True
        )
    deadline = time.monotonic() + READY_S
    while time.monotonic() < deadline:
        url = running(state)
        if url:
            return url
        if process.poll() is not None:
            break
        time.sleep(LOOK_S)
    if process.poll() is None:
        process.terminate()
        process.wait(END_S)
    said = (state / LOG).read_text(errors="replace")[-2000:].strip()
    raise Failed("the fake of AWS does not start", where=str(state), why=said or "it says nothing")


def running(state: Path) -> str:
    """The URL of the fake that runs there and answers; empty where none does."""
    process, record = recorded(state / RECORD)
    if process is None:
        return ""
    url = str(record.get("url", ""))
    try:
        with urllib.request.urlopen(f"{url}/_caudal/health", timeout=5.0) as answer:
            return url if answer.status == 200 else ""
    except (OSError, urllib.error.URLError):
        return ""


def stop(state: Path) -> None:
    """End the fake that runs there, and with it its machines; none is fine. Returns when it is gone."""
    process, _ = recorded(state / RECORD)
    if process is None:
        return
    end(process, END_S)
    (state / RECORD).unlink(missing_ok=True)


def lock(state: Path) -> int | None:
    """The descriptor that holds the state directory for this process; None where another holds it."""
    descriptor = os.open(state / LOCK, os.O_RDWR | os.O_CREAT | os.O_CLOEXEC, 0o600)
    try:
        fcntl.flock(descriptor, fcntl.LOCK_EX | fcntl.LOCK_NB)
    except BlockingIOError:
        os.close(descriptor)
        return None
    return descriptor
