"""How verbs print: JSON for scripts, rich text for people; times, sizes and rates for both."""

from __future__ import annotations

import time
from collections.abc import Sequence
from datetime import datetime
from typing import Any

import click
import msgspec
from rich.console import Console
from rich.markup import escape
from rich.table import Table

json_option = click.option("--json", "as_json", is_flag=True, help="Print JSON with a versioned shape.")

UNFOLDED = 10_000
"""Characters in a line that no terminal cuts: who greps for a name finds it whole."""

STATE_STYLES = {
    "running": "green",
    "ready": "green",
    "active": "green",
    "finished": "cyan",
    "pending": "yellow",
    "suspect": "yellow",
    "stopped": "dim",
    "failed": "bold red",
}


def console(stderr: bool = False) -> Console:
    """A console that writes plain text, and folds nothing, where nobody looks (a pipe, a file)."""
    made = Console(stderr=stderr, highlight=False, soft_wrap=True)
    if not made.is_terminal:
        made.width = UNFOLDED
    return made


def plain(value: object) -> str:
    """Text from elsewhere, for a line or a cell of rich text: its brackets are brackets."""
    return escape(str(value))


def print_json(value: Any) -> None:
    """One JSON document on stdout."""
    click.echo(msgspec.json.format(msgspec.json.encode(value), indent=2).decode())


def table(columns: Sequence[str], rows: Sequence[Sequence[str]]) -> Table:
    """A table without frames; columns that hold numbers are aligned by whoever fills them."""
    result = Table(box=None, pad_edge=False, header_style="bold", padding=(0, 2, 0, 0))
    for column in columns:
        result.add_column(column, overflow="fold")
    for row in rows:
        result.add_row(*row)
    return result


def state(word: str) -> str:
    """A state in its colour."""
    style = STATE_STYLES.get(word)
    return f"[{style}]{word}[/]" if style else word


def ago(at: float | None, now: float | None = None) -> str:
    """How long ago, in one unit; `never` for None."""
    if at is None:
        return "never"
    return f"{duration((now or time.time()) - at)} ago"


def duration(seconds: float) -> str:
    """Seconds as the largest unit that gives at least two."""
    seconds = max(0.0, seconds)
    for unit, size in (("d", 86400), ("h", 3600), ("min", 60)):
        if seconds >= 2 * size:
            return f"{seconds / size:.0f} {unit}"
    return f"{seconds:.0f} s"


def size(count: float) -> str:
    """Bytes with a binary prefix."""
    for unit in ("B", "KiB", "MiB", "GiB"):
        if count < 1024 or unit == "GiB":
            return f"{count:.0f} {unit}" if unit == "B" else f"{count:.1f} {unit}"
        count /= 1024
    raise AssertionError("unreachable")


def count(number: float) -> str:
    """A count with a decimal prefix: 1.2 M."""
    for limit, unit in ((1e9, "G"), (1e6, "M"), (1e4, "k")):
        if number >= limit:
            return f"{number / (1e3 if unit == 'k' else limit):.{0 if unit == 'k' else 2}f} {unit}"
    return f"{number:.0f}"


def clock(at: float) -> str:
    """The local time of day."""
    return datetime.fromtimestamp(at).strftime("%H:%M:%S")
