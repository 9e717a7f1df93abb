"""The terminal's view of a fleet that runs: reads the public API, as anybody could.

A live picture in a terminal; plain lines, one per thing that happened, anywhere else.
"""

from __future__ import annotations

import time
from collections.abc import Callable
from typing import Any

from rich.console import Console, Group, RenderableType
from rich.live import Live
from rich.progress_bar import ProgressBar
from rich.table import Table
from rich.text import Text

from caudal.cli.client import Client
from caudal.cli.events import line
from caudal.cli.output import count, duration, plain, state
from caudal.domain.errors import CaudalError

REFRESH_S = 1.0
LINE_EVERY_S = 15.0
EVENTS_SHOWN = 6
SPARKS = "▁▂▃▄▅▆▇█"

Done = Callable[[dict[str, Any]], bool]


def never(status: dict[str, Any]) -> bool:
    """Follow until interrupted."""
    return False


def sparkline(values: list[float], width: int = 30) -> str:
    """The values as bars, the newest on the right."""
    if not values:
        return ""
    step = max(1, len(values) // width)
    shown = values[::step][-width:]
    low, high = min(shown), max(shown)
    span = (high - low) or 1.0
    return "".join(SPARKS[min(7, int((v - low) / span * 7.999))] for v in shown)


def progress_text(progress: dict[str, Any]) -> str:
    """A run's progress in one line of words."""
    parts = [str(progress.get("phase", "starting"))]
    if progress.get("stage"):
        parts.append(str(progress["stage"]))
    if progress.get("round") is not None:
        parts.append(f"round {progress['round']}")
    if progress.get("loss") is not None:
        parts.append(f"loss {progress['loss']:.3f}")
    if progress.get("val_loss") is not None:
        parts.append(f"val {progress['val_loss']:.3f}" + _bits(progress))
    if progress.get("tokens_per_s"):
        parts.append(f"{count(progress['tokens_per_s'])} tokens/s")
    if progress.get("wait_share") is not None:
        parts.append(f"waits {progress['wait_share']:.1%}")
    if progress.get("mfu") is not None:
        parts.append(f"MFU {progress['mfu']:.1%}")
    heldout = progress.get("heldout")
    if heldout:
        parts.append(f"held-out {heldout['correct']}/{heldout['of']}")
    if progress.get("error"):
        parts.append(f"trouble: {progress['error']}")
    return "  ".join(parts)


def _bits(progress: dict[str, Any]) -> str:
    bits = progress.get("val_bits_per_byte")
    return f" ({bits:.2f} bits/byte)" if bits is not None else ""


def _fraction(progress: dict[str, Any]) -> float:
    total = progress.get("ids_total") or 0
    return float(progress.get("ids_done") or 0) / total if total else 0.0


def _left(progress: dict[str, Any]) -> str:
    speed = progress.get("tokens_per_s") or 0
    left = (progress.get("tokens_total") or 0) - (progress.get("tokens_done") or 0)
    return f"about {duration(left / speed)} left" if speed and left > 0 else ""


def _run(workload: dict[str, Any], curve: list[float]) -> RenderableType:
    progress = workload["progress"]
    grid = Table.grid(padding=(0, 2))
    fraction = _fraction(progress)
    grid.add_row(
        f"[bold]{workload['name']}[/] {state(workload['state'])}",
        ProgressBar(total=1.0, completed=fraction, width=30),
        f"{fraction:4.0%} {_left(progress)}",
    )
    rows: list[RenderableType] = [grid, Text("  " + progress_text(progress))]
    if curve:
        rows.append(Text("  loss " + sparkline(curve), style="cyan"))
    sites = progress.get("sites") or {}
    for name in sorted(sites):
        site = sites[name]
        loss = f"loss {site['loss']:.3f}  " if site.get("loss") is not None else ""
        speed = f"{count(site['tokens_per_s'])} tokens/s" if site.get("tokens_per_s") else ""
        rows.append(Text(f"  {name:<10} {site.get('state', ''):<10} {loss}{speed}", style="dim"))
    if workload["reason"] and workload["state"] in ("pending", "failed"):
        rows.append(Text(f"  {workload['reason']}", style="yellow"))
    return Group(*rows)


def _service(workload: dict[str, Any], models: dict[str, Any]) -> RenderableType:
    rows: list[RenderableType] = [Text.from_markup(f"[bold]{workload['name']}[/] {state(workload['state'])}")]
    for name in workload["models"]:
        model = models.get(name)
        ready = model["ready_replicas"] if model else 0
        word = f"{ready} ready" if ready else ("starting" if model else "not there yet")
        rows.append(Text(f"  {name:<26} {word}", style="" if ready else "yellow"))
    if workload["reason"] and workload["state"] in ("pending", "failed"):
        rows.append(Text(f"  {workload['reason']}", style="dim"))
    return Group(*rows)


def picture(
    status: dict[str, Any], curves: dict[str, list[float]], events: list[dict[str, Any]]
) -> RenderableType:
    """The whole view for one moment."""
    models = {m["id"]: m for m in status["models"]}
    parts: list[RenderableType] = [Text("")]
    for workload in status["workloads"]:
        if workload["kind"] == "train":
            parts.append(_run(workload, curves.get(workload["name"], [])))
        else:
            parts.append(_service(workload, models))
        parts.append(Text(""))
    gateway = "ready" if status["gateway_ready"] else "starting"
    parts.append(Text.from_markup(f"gateway {status['gateway_url']}/v1 {state(gateway)}"))
    parts.extend(Text.from_markup(line(event), overflow="ellipsis") for event in events[-EVENTS_SHOWN:])
    parts.append(Text("Ctrl-C leaves; what was reached is kept", style="dim"))
    return Group(*parts)


class Follower:
    """Keeps what the views show: the newest status, the curves, the last events."""

    def __init__(self, client: Client) -> None:
        self._client = client
        self.status: dict[str, Any] = {}
        self.curves: dict[str, list[float]] = {}
        self.events: list[dict[str, Any]] = []
        self._after = client.get("/events", newest=True, limit=EVENTS_SHOWN)["items"]
        self._seen = self._after[-1]["seq"] if self._after else 0
        self.events.extend(self._after)
        self._points: dict[str, int] = {}

    def refresh(self) -> list[dict[str, Any]]:
        """Ask again; returns the events that are new."""
        self.status = self._client.get("/status")
        fresh: list[dict[str, Any]] = self._client.get("/events", after=self._seen, limit=500)["items"]
        if fresh:
            self._seen = fresh[-1]["seq"]
            self.events = [*self.events, *fresh][-50:]
        for workload in self.status["workloads"]:
            if workload["kind"] == "train":
                self._curve(workload["name"])
        return fresh

    def _curve(self, run: str) -> None:
        after = self._points.get(run, -1)
        for point in self._client.get(f"/runs/{run}/points", after=after)["items"]:
            self._points[run] = point["seq"]
            loss = point["values"].get("loss")
            if loss is not None:
                self.curves.setdefault(run, []).append(float(loss))


def follow_live(client: Client, out: Console, done: Done = never) -> None:
    """Draw the view until `done` says so or Ctrl-C. A control process that hangs a moment is waited for."""
    follower = Follower(client)
    with Live(console=out, refresh_per_second=4, transient=False) as live:
        while True:
            try:
                follower.refresh()
            except CaudalError as error:
                live.update(Text(error.one_line(), style="yellow"))
            else:
                live.update(picture(follower.status, follower.curves, follower.events))
                if done(follower.status):
                    return
            time.sleep(REFRESH_S)


def follow_lines(client: Client, out: Console, done: Done = never) -> None:
    """Print every event, and each run's progress every quarter of a minute, as plain lines."""
    follower = Follower(client)
    for event in follower.events:
        out.print(line(event))
    last, trouble = 0.0, ""
    while True:
        try:
            fresh = follower.refresh()
        except CaudalError as error:
            if error.what != trouble:
                trouble = error.what
                out.print(plain(error.one_line()))
            time.sleep(1.0)
            continue
        trouble = ""
        for event in fresh:
            out.print(line(event))
        if time.monotonic() - last >= LINE_EVERY_S:
            last = time.monotonic()
            for workload in follower.status["workloads"]:
                if workload["progress"] and workload["state"] == "running":
                    fraction = _fraction(workload["progress"])
                    said = plain(progress_text(workload["progress"]))
                    out.print(f"{workload['name']} {fraction:.0%} {said}")
        if done(follower.status):
            return
        time.sleep(REFRESH_S)
