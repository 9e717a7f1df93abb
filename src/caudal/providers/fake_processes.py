"""What the launchers of fakes share: the process that a record names, and its end."""

from __future__ import annotations

import json
import time
from pathlib import Path
from typing import Any

import psutil

LOOK_S = 0.05


def recorded(file: Path) -> tuple[psutil.Process | None, dict[str, Any]]:
    """The process that the record names, if it is still that one, and the record; else None and nothing."""
    try:
        found = json.loads(file.read_text())
        process = psutil.Process(int(found["pid"]))
        if process.create_time() == found["born"] and lives(process):
            return process, found
    except (OSError, ValueError, KeyError, psutil.NoSuchProcess):
        pass  # nobody wrote a record, or who did is gone
    return None, {}


def lives(process: psutil.Process) -> bool:
    """Whether it is more than what its parent has not yet collected."""
    try:
        return bool(process.is_running() and process.status() != psutil.STATUS_ZOMBIE)
    except psutil.NoSuchProcess:
        return False


def end(process: psutil.Process, within_s: float) -> None:
    """Ask it to end, and make it end after that long. Returns when it is gone; what it kept loses its power with it."""
    for signal in (process.terminate, process.kill):
        try:
            signal()
        except psutil.NoSuchProcess:
            return  # it was quicker
        deadline = time.monotonic() + within_s
        while lives(process):
            if time.monotonic() > deadline:
                break
            time.sleep(LOOK_S)
        else:
            return
