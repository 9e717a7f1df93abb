"""What all rows of the gateway's benchmark are told, and the turns that systems take."""

from __future__ import annotations

import sys
import time
from collections.abc import Callable
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any

from gateway_peers import Front, Yard
from harness import figure


@dataclass(frozen=True)
class Options:
    """`systems`: who takes part. Cores: None is any. `gateway`: more fields of our gateway's configuration."""

    cache: Path
    repeats: int
    quick: bool
    systems: tuple[str, ...]
    traces: Path
    gateway_core: int | None = 0
    other_core: int | None = 1
    gateway: dict[str, Any] = field(default_factory=dict)
    warm_s: float = 5.0  # longer than the slowest system takes for a request: it must not begin cold
    seconds: float = 10.0
    connections: int = 64
    chunk_streams: tuple[int, ...] = (64, 128)
    kill_streams: int = 16
    site_streams: int = 16
    site_engine: str = "llama.cpp"
    site_tokens: int = 60
    site_opening: bool = (
        True  # whether replicas were told the system prompt of the load (ServedModel.opening)
    )
    engine_tokens: int = 64
    engine_slo: str = "standard"
    overload: float = 3.0
    overload_s: float = 240.0
    overload_speed: float = 4.0
    overload_replicas: int = 2
    overload_slots: int = 32
    interactive_share: float = 0.6
    patience_s: float = 60.0
    soak_s: float = 600.0

    def yard(self) -> Yard:
        """A place for a row's processes."""
        folder = self.cache / f"row-{time.monotonic_ns()}"
        folder.mkdir(parents=True)
        return Yard(folder, self.gateway_core, self.other_core, self.gateway)

    def say(self, text: str) -> None:
        """What is going on, for who watches."""
        print(f"{time.strftime('%H:%M:%S')} {text}", file=sys.stderr, flush=True)


def fronts(options: Options, yard: Yard, backends: list[int], skip: tuple[str, ...] = ()) -> dict[str, Front]:
    """All systems in front of the same backends; one that cannot be had is left out, and said to be."""
    found = {}
    for kind in options.systems:
        if kind in skip:
            continue
        try:
            found[kind] = yard.front(kind, backends)
        except (RuntimeError, OSError) as error:
            if kind in ("direct", "caudal"):
                raise
            options.say(f"{kind} takes no part: {error}")
    return found


def startable(options: Options, skip: tuple[str, ...] = ()) -> dict[str, Front]:
    """The systems that can be started, for rows that start them anew for every repeat. None of them runs."""
    found: dict[str, Front] = {}
    for kind in options.systems:
        if kind in ("direct", *skip):
            continue
        with options.yard() as yard:
            found |= fronts(replace(options, systems=(kind,)), yard, [yard.mock()[1]])
    return found


def turns(
    options: Options, found: dict[str, Front], measure: Callable[[Front], dict[str, float] | None]
) -> dict[str, list[dict[str, float]]]:
    """Every system once in each repeat, so that what else the machine does meets all of them alike.
    `measure` gives None where nothing was answered in the measured time: no figure comes of that."""
    rows: dict[str, list[dict[str, float]]] = {name: [] for name in found}
    for repeat in range(options.repeats):
        order = list(found) if repeat % 2 == 0 else list(reversed(found))
        for name in order:
            row = measure(found[name])
            options.say(f"repeat {repeat}: {name} {row or 'answered nothing in the measured time'}")
            if row is not None:
                rows[name].append(row | {"repeat": repeat})
    return rows


def gathered(rows: dict[str, list[dict[str, float]]], units: dict[str, str]) -> dict[str, Any]:
    """Figures by system and by name."""
    return {
        system: {name: figure([row[name] for row in taken], unit) for name, unit in units.items()}
        if taken
        else {"nothing": "it answered nothing in the measured time"}
        for system, taken in rows.items()
    }


def ratio(
    figures: dict[str, Any], name: str, ours: str, others: tuple[str, ...], best: Callable[..., float]
) -> float | None:
    """Our median over the best of the others'; None without one of them."""
    theirs = [figures[other][name]["median"] for other in others if name in figures.get(other, {})]
    if name not in figures.get(ours, {}) or not theirs or not best(theirs):
        return None
    return round(float(figures[ours][name]["median"] / best(theirs)), 3)
