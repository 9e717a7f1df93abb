"""All layouts of a model on so many chips, and the fastest that fit.

Every combination of tensor, pipeline, context and expert parallelism, interleaving, sharding, micro-batch and
recomputation that divides evenly; timed in blocks of columns, a hundred thousand in about a second. Where none
fits: by how much the least hungry one fails, and what would make it fit. Knows no prices.
"""

from __future__ import annotations

import math
from collections.abc import Iterable, Mapping
from dataclasses import dataclass, replace
from typing import Any

import numpy as np

from caudal.estimate.case import LAYOUT_FIELDS, Job, Layout, Vector, grid
from caudal.estimate.constants import FITTED, Constants
from caudal.estimate.step_time import step_time
from caudal.estimate.training_memory import allowed_bytes, memory

GIB = 2**30
BLOCK = 8192
"""Layouts timed at once: columns of this size stay in the cache."""
MICRO_BATCHES = (1, 2, 4, 8, 16)
MOST_TENSOR = 64
SHORTEST_PART = 1024
"""Tokens of a sequence that context parallelism leaves on a chip at least."""
INTERLEAVED = 8
MOST_WASTE = 1.15
"""Uneven stages are tried while the fullest has no more than this of the mean."""
MOST_LAYOUTS = 2_000_000


@dataclass(frozen=True)
class Timed:
    """A layout with its step time and memory."""

    layout: Layout
    step_time_s: float
    memory_bytes: float
    reason: str


@dataclass(frozen=True)
class Found:
    """The best layouts, fastest first, of `tried`, of which `feasible` fit. Where none fits, `smallest` is the
    least hungry and `why` says what is missing."""

    layouts: tuple[Timed, ...]
    tried: int
    feasible: int
    smallest: Layout
    why: str = ""


def _divisors(number: int, most: int) -> list[int]:
    return [d for d in range(1, min(number, most) + 1) if number % d == 0]


def _powers(most: int) -> list[int]:
    return [1 << n for n in range(max(1, most).bit_length())]


def _units(job: Job) -> int:
    return job.chips * job.chip.cores


def _inside(job: Job, units: int) -> Iterable[tuple[int, int, int]]:
    """Tensor, pipeline and context parallelism that divide the model, the sequence and the chips."""
    model = job.model
    domain = (job.chip.scaleup_chips or 8) * job.chip.cores
    context = [
        c for c in _powers(max(1, job.seq_len // SHORTEST_PART)) if job.seq_len % (2 * c) == 0 or c == 1
    ]
    for tp in _powers(min(MOST_TENSOR, max(domain, 8))):
        if model.heads % tp or units % tp:
            continue
        for pp in _divisors(units // tp, model.layers):
            if -(-model.layers // pp) * pp > MOST_WASTE * model.layers:
                continue
            for cp in context:
                if units % (tp * pp * cp) == 0:
                    yield tp, pp, cp


def _expert_ways(job: Job, inside: int) -> list[int]:
    if not job.model.experts:
        return [1]
    return [e for e in _powers(job.model.experts) if job.model.experts % e == 0 and inside % e == 0]


def _chunks(layers: int, pp: int) -> list[int]:
    """Virtual stages that come out even, embedding and head counting as a layer each where plain layers do not."""
    if pp == 1:
        return [1]
    if layers % pp and (layers + 2) % pp:
        return [1]
    whole = layers if layers % pp == 0 else layers + 2
    return _divisors(whole // pp, INTERLEAVED)


def candidates(job: Job) -> dict[str, Vector]:
    """Columns of all layouts that divide evenly, before memory is looked at."""
    units = _units(job)
    rows: list[tuple[int, ...]] = []
    for tp, pp, cp in _inside(job, units):
        dp = units // (tp * pp * cp)
        if job.global_batch % dp:
            continue
        chunks = _chunks(job.model.layers, pp)
        for ep in _expert_ways(job, tp * cp * dp):
            for micro in MICRO_BATCHES:
                if job.global_batch // dp % micro:
                    continue
                for vp in chunks:
                    # Interleaving wants whole groups of pp micro-batches.
                    if vp > 1 and (job.global_batch // (dp * micro)) % pp:
                        continue
                    for zero in (1, 3) if pp == 1 and dp > 1 else (1,):
                        for recompute in (0, 2):
                            rows.append((tp, pp, dp, ep, cp, vp, zero, 0, micro, recompute, 1))
        if len(rows) > MOST_LAYOUTS:
            break
    table = np.array(rows, dtype=np.float64).reshape(-1, len(LAYOUT_FIELDS))
    return {name: np.ascontiguousarray(table[:, at]) for at, name in enumerate(LAYOUT_FIELDS)}


def _block(columns: dict[str, Vector], start: int) -> dict[str, Vector]:
    return {name: values[start : start + BLOCK] for name, values in columns.items()}


def timed(
    job: Job, columns: dict[str, Vector], constants: Constants = FITTED
) -> tuple[Vector, Vector, Vector]:
    """Seconds, bytes and bytes allowed of every layout."""
    count = len(columns["tp"])
    seconds, used, room = np.empty(count), np.empty(count), np.empty(count)
    for start in range(0, count, BLOCK):
        part = slice(start, min(start + BLOCK, count))
        c = grid(job, _block(columns, start))
        times = step_time(c, constants)
        seconds[part], used[part], room[part] = times.total, times.memory.total, allowed_bytes(c)
    return seconds, used, room


def layout_at(columns: dict[str, Vector], at: int) -> Layout:
    """One row as a layout."""
    values: dict[str, Any] = {name: int(columns[name][at]) for name in LAYOUT_FIELDS}
    values["sequence_parallel"] = bool(values["sequence_parallel"])
    return Layout(**values)


def search(
    job: Job, best: int = 5, constants: Constants = FITTED, pinned: Mapping[str, int] | None = None
) -> Found:
    """The fastest layouts that fit; see `Found` for what is said where none does. `pinned` columns of a layout
    have that value in all of them."""
    columns = candidates(job)
    for name, value in (pinned or {}).items():
        kept = columns[name] == value
        columns = {column: values[kept] for column, values in columns.items()}
    count = len(columns["tp"])
    if not count:
        why = f"no layout divides {job.chips} chips, a batch of {job.global_batch} and {job.model.layers} layers evenly"
        return Found((), 0, 0, Layout(dp=job.chips), why)
    seconds, used, room = timed(job, columns, constants)
    fits = used <= room
    smallest = layout_at(columns, int(np.argmin(used)))
    if not fits.any():
        return Found((), count, 0, smallest, _misfit(job, float(used.min()), float(room[0])))
    cost = np.where(fits, seconds, np.inf)
    order = np.argsort(cost, kind="stable")[: min(best, int(fits.sum()))]
    cores = job.chip.cores
    first = float(seconds[order[0]])
    layouts = tuple(
        Timed(
            layout_at(columns, int(at)), float(seconds[at]), float(used[at]) * cores,
            _reason(job, columns, int(at), float(seconds[at]) / first, constants),
        )
        for at in order
    )  # fmt: skip
    return Found(layouts, count, int(fits.sum()), smallest)


COMPUTING = ("matrix products", "experts", "attention", "elementwise", "vocabulary", "routing")


def _reason(job: Job, columns: dict[str, Vector], at: int, ratio: float, constants: Constants) -> str:
    c = grid(job, {name: values[at : at + 1] for name, values in columns.items()})
    times = step_time(c, constants)
    total = float(times.total[0])
    parts = {name: float(np.ravel(value)[0]) / total for name, value in times.items.items()}
    computing = sum(parts[name] for name in COMPUTING)
    others = sorted(((v, n) for n, v in parts.items() if n not in COMPUTING), reverse=True)[:2]
    lost = ", ".join(f"{name} {share:.0%}" for share, name in others if share >= 0.005)
    slower = "" if ratio < 1.0005 else f"{ratio - 1:.1%} slower; "
    return f"{slower}{computing:.0%} computing" + (f"; {lost}" if lost else "")


def _misfit(job: Job, least: float, room: float) -> str:
    cores = job.chip.cores
    short = (least - room) * cores / GIB
    said = (
        f"nothing fits: the least hungry of all layouts needs {least * cores / GIB:.1f} GiB a chip, "
        f"{short:.1f} GiB more than there is"
    )
    enough = _enough_chips(job)
    if enough is not None:
        return f"{said}; {enough} chips would do (with a batch of at least {max(job.global_batch, 1)})"
    return f"{said}; no number of these chips up to {MOST_CHIPS:,} would do"


MOST_CHIPS = 1 << 17


def _enough_chips(job: Job) -> int | None:
    """The next doubling of the chips that holds it; the batch grows with them where it must."""
    chips = job.chips
    while chips < MOST_CHIPS:
        chips *= 2
        batch = math.lcm(job.global_batch, chips) if job.global_batch < chips else job.global_batch
        more = replace(job, chips=chips, global_batch=batch)
        columns = candidates(more)
        if not len(columns["tp"]):
            continue
        for start in range(0, len(columns["tp"]), BLOCK):
            c = grid(more, _block(columns, start))
            if (memory(c).total <= allowed_bytes(c)).any():
                return chips
    return None
