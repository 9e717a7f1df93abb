"""`caudal track`: a run's curve, sent where curves are looked at."""

from __future__ import annotations

import contextlib
import time
from typing import Any

import click

from caudal.cli.client import Client, path
from caudal.cli.output import console
from caudal.domain.errors import ControlAway
from caudal.store.home import home
from caudal.telemetry.trackers import Tracker, open_tracker

PAGE = 1_000
OVER = ("finished", "failed", "stopped")


@click.command("track")
@click.argument("run")
@click.option(
    "--to",
    "destinations",
    metavar="KIND=DESTINATION",
    multiple=True,
    required=True,
    help="jsonl=FILE, tensorboard=FOLDER, wandb=PROJECT, or a kind that is installed beside; several may be given.",
)
@click.option("--once", is_flag=True, help="Send what is there, and end.")
@click.option("--every", default=2.0, show_default=True, help="Seconds between two looks.")
@click.pass_obj
def verb(root: str | None, run: str, destinations: tuple[str, ...], once: bool, every: float) -> None:
    """Send RUN's curve to trackers, from where they were, until the run is over.

    Waits where the control process is away. TensorBoard and W&B need the tracking extra.
    """
    client, opened = Client(home(root)), contextlib.ExitStack()
    client.get(path("workloads", run))  # a name that does not exist is told before anything is made
    with opened:
        trackers: list[Tracker] = []
        for to in destinations:
            trackers.append(open_tracker(run, to))
            opened.callback(trackers[-1].close)
        sent = 0
        while True:
            over = once
            with contextlib.suppress(ControlAway):
                over = once or client.get(path("workloads", run))["state"] in OVER
                sent += _send(client, run, trackers)
            if over:
                break
            time.sleep(max(0.1, every))
    console().print(f"[bold]{run}[/]: {sent} points sent to {', '.join(destinations)}")


def _send(client: Client, run: str, trackers: list[Tracker]) -> int:
    """What is new, to each; returns how many points."""
    sent = 0
    while True:
        after = min(tracker.last for tracker in trackers)
        rows: list[dict[str, Any]] = client.get(path("runs", run, "points"), after=after, limit=PAGE)["items"]
        for row in rows:
            for tracker in trackers:
                if row["seq"] > tracker.last:
                    tracker.add(row["seq"], row["at"], row["values"])
        sent += len(rows)
        if len(rows) < PAGE:
            return sent
