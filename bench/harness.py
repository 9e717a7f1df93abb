"""What every benchmark shares: where and on what it ran, and its last line, one JSON object."""

from __future__ import annotations

import json
import os
import platform
import subprocess
import sys
import time
from collections.abc import Callable
from pathlib import Path
from statistics import median
from typing import Any

ROOT = Path(__file__).resolve().parents[1]


def machine() -> dict[str, Any]:
    """The machine, and how busy it is: figures of a busy one are not to be quoted."""
    model = next(
        (
            x.split(":", 1)[1].strip()
            for x in Path("/proc/cpuinfo").read_text().splitlines()
            if "model name" in x
        ),
        platform.processor(),
    )
    return {
        "cpu": model,
        "cores": len(os.sched_getaffinity(0)),
        "load_1min": round(os.getloadavg()[0], 2),
        "python": platform.python_version(),
    }


def commit() -> str:
    """The commit that was measured; `+` where files differ from it."""
    git = ("git", "-C", str(ROOT))
    head = subprocess.run([*git, "rev-parse", "--short", "HEAD"], capture_output=True, text=True, check=False)
    dirty = subprocess.run([*git, "status", "--porcelain"], capture_output=True, text=True, check=False)
    return head.stdout.strip() + ("+" if dirty.stdout.strip() else "")


def shared_traces() -> Path:
    """`../shared/data/traces` beside the checkout; of a linked worktree, beside the main one."""
    git = ["git", "-C", str(ROOT), "rev-parse", "--path-format=absolute", "--git-common-dir"]
    done = subprocess.run(git, capture_output=True, text=True, check=False)
    main = Path(done.stdout.strip()).parent if done.returncode == 0 else ROOT
    places = [checkout.parent / "shared" / "data" / "traces" for checkout in (ROOT, main)]
    return next((place for place in places if place.exists()), places[0])


def figure(values: list[float], unit: str, digits: int = 3) -> dict[str, Any]:
    """Median, range and repeats of one measured quantity."""
    return {
        "median": round(median(values), digits),
        "min": round(min(values), digits),
        "max": round(max(values), digits),
        "repeats": len(values),
        "unit": unit,
    }


def timed(call: Callable[[], Any]) -> float:
    """Wall seconds of one call."""
    start = time.perf_counter()
    call()
    return time.perf_counter() - start


def finish(name: str, figures: dict[str, Any]) -> None:
    """Print the last line."""
    print(json.dumps({"name": name, "commit": commit(), "machine": machine(), "figures": figures}))
    sys.stdout.flush()
