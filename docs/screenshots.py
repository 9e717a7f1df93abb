"""Pictures of the running thing: the terminal's live view (SVG) and the web page (PNG). `make screenshots`.

Runs `caudal up` over a state directory of its own with examples/starter, waits until the run is under way and
the assistant answers, and takes both. The page needs Chromium (`apt-get install chromium`); without it only
the terminal is taken, and that is said.
"""

from __future__ import annotations

import io
import re
import shutil
import signal
import subprocess
import sys
import tempfile
import time
from pathlib import Path

from rich.console import Console

from caudal.cli.client import Client
from caudal.cli.live import Follower, picture
from caudal.domain.errors import CaudalError
from caudal.store.home import home

FOLDER = Path(__file__).parent / "img"
UNDER_WAY_ROUNDS = 120
WAIT_S = 180


def under_way(follower: Follower) -> bool:
    """Whether there is something to see: rounds of two sites, and a model that answers."""
    run = next((w for w in follower.status["workloads"] if w["kind"] == "train"), None)
    ready = any(m["ready_replicas"] for m in follower.status["models"])
    return bool(run and (run["progress"].get("round") or 0) >= UNDER_WAY_ROUNDS and ready)


def terminal(follower: Follower) -> None:
    """The live view as an SVG."""
    out = Console(record=True, width=100, file=io.StringIO())
    out.print(picture(follower.status, follower.curves, follower.events))
    # Without the fonts that the picture would have its reader's browser fetch from elsewhere.
    drawn = re.sub(r"@font-face \{.*?\}\s*", "", out.export_svg(title="make up"), flags=re.DOTALL)
    (FOLDER / "terminal.svg").write_text(drawn)


def page(url: str) -> None:
    """The web page as a PNG, by headless Chromium."""
    chromium = shutil.which("chromium") or shutil.which("google-chrome")
    if chromium is None:
        print("no Chromium here: the page was not taken")
        return
    with tempfile.TemporaryDirectory() as profile:
        subprocess.run(
            [
                chromium,
                *("--headless", "--no-sandbox", "--disable-gpu", "--no-first-run", "--hide-scrollbars"),
                *("--disable-background-networking", "--disable-component-update", "--disable-sync"),
                f"--user-data-dir={profile}",
                "--window-size=1280,800",
                "--virtual-time-budget=9000",
                f"--screenshot={FOLDER / 'page.png'}",
                url,
            ],
            check=True,
            capture_output=True,
            timeout=120,
        )


def main() -> None:
    """Start, wait, take, stop."""
    FOLDER.mkdir(exist_ok=True)
    with tempfile.TemporaryDirectory() as root:
        words = [sys.executable, "-m", "caudal.cli", "--home", root, "up"]
        fleet = subprocess.Popen(words, stdout=subprocess.DEVNULL, cwd=FOLDER.parents[1])
        try:
            client = Client(home(root))
            deadline = time.monotonic() + WAIT_S
            follower: Follower | None = None
            while time.monotonic() < deadline:
                time.sleep(1.0)
                try:
                    client = Client(home(root))
                    follower = follower or Follower(client)
                    follower.refresh()
                except CaudalError:
                    continue
                if under_way(follower):
                    break
            assert follower is not None, "the control process did not answer"
            terminal(follower)
            page(client.url)
        finally:
            fleet.send_signal(signal.SIGINT)
            fleet.wait(timeout=60)


if __name__ == "__main__":
    main()
