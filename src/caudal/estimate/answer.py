"""One question about training, answered: step time and memory item by item, tokens, utilisation, an interval.

The numbers are `step_time`'s and `training_memory`'s; this puts them together for one case. Sites that are far
apart are `sites`'.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np

from caudal.domain.transformer import Transformer
from caudal.estimate.case import (
    UNKNOWN_LINK_BYTES_PER_S,
    Case,
    Job,
    Layout,
    Vector,
    achieved_share,
    case,
    peak,
)
from caudal.estimate.choose import settled
from caudal.estimate.constants import FITTED, Constants
from caudal.estimate.interval import half_width
from caudal.estimate.points import Point
from caudal.estimate.search import search
from caudal.estimate.step_time import StepTime, step_time
from caudal.estimate.training_memory import allowed_bytes

GIB = 2**30
MEMORY_ITEMS = ("weights", "gradients", "optimizer", "activations", "buffers", "fragmentation")


@dataclass(frozen=True)
class Estimate:
    """Of one step. Memory is per chip, the largest of all; `fits` against what may be planned with."""

    job: Job
    layout: Layout
    step_time_s: float
    step_time_s_lo: float
    step_time_s_hi: float
    items_s: dict[str, float]
    memory_bytes: float
    memory_items: dict[str, float]
    memory_allowed_bytes: float
    recomputed: float
    notes: tuple[str, ...] = ()

    @property
    def fits(self) -> bool:
        """Whether it fits."""
        return self.memory_bytes <= self.memory_allowed_bytes

    @property
    def tokens_per_s(self) -> float:
        """Of all chips."""
        return self.job.global_batch * self.job.seq_len / self.step_time_s

    @property
    def model_flops_per_s(self) -> float:
        """Per chip, without what is recomputed."""
        return self.tokens_per_s * flops_per_token(self.job.model, self.job.seq_len) / self.job.chips

    @property
    def mfu(self) -> float:
        """Of the dense peak in the precision of the matrix products."""
        return self.model_flops_per_s / peak(self.job.chip, self.job.precision)


def flops_per_token(model: Transformer, seq_len: int) -> float:
    """6 per parameter that a token is multiplied with, and 12·L·h·s for attention (PaLM's convention: the whole
    square, though half of it is masked)."""
    table = model.embedding_parameters / (1 if model.tied else 2)
    multiplied = model.active_parameters - model.embedding_parameters + table
    width = model.heads * (model.qk_dim + model.v_dim) / 2
    return 6 * multiplied + 12 * model.layers * width * seq_len


def estimates(points: Sequence[Point], constants: Constants = FITTED) -> list[Estimate]:
    """Of so many questions at once. What they left open is chosen first."""
    ready = [whole(settled(point)) for point in points]
    if not ready:
        return []
    columns = case([(point.job, point.layout) for point in ready])
    times = step_time(columns, constants)
    allowed = np.broadcast_to(allowed_bytes(columns), times.total.shape)
    return [_one(point, columns, times, allowed, at) for at, point in enumerate(ready)]


def whole(point: Point) -> Point:
    """With a layout: the best that was found where none was stated."""
    if "layout" not in point.open:
        return point
    found = search(point.job, best=1)
    if not found.layouts:
        return Point(point.job, found.smallest, (*point.notes, found.why), point.open)
    return Point(point.job, found.layouts[0].layout, point.notes, point.open)


def _guessed(job: Job) -> list[str]:
    """What the catalogue does not know of the chip, and what was taken instead."""
    which, notes = job.chip, []
    if not which.achieved and not which.like and which.vendor not in ("AWS", "Google"):
        share = achieved_share(which, job.precision)
        notes.append(
            f"nobody published what matrix products reach on {which.name}: taken as {share:.0%} of the peak"
        )
    if which.scaleup_bytes_per_s is None or which.scaleup_chips is None:
        notes.append(
            f"the links of {which.name} are not all published: taken as {UNKNOWN_LINK_BYTES_PER_S / 1e9:g} GB/s"
        )
    return notes


def _one(point: Point, columns: Case, times: StepTime, allowed: Vector, at: int) -> Estimate:
    shape = times.total.shape
    cores = round(point.layout.chips / point.job.chips) if point.layout.chips > point.job.chips else 1

    def value(of: Vector) -> float:
        return float(np.broadcast_to(of, shape)[at])

    seconds = value(times.total)
    if not math.isfinite(seconds) or seconds <= 0:
        raise ArithmeticError(f"a step of {seconds} s")
    factor = math.exp(half_width(point.job, point.layout, point.open))
    notes = [*point.notes, *_guessed(point.job)]
    memory = value(times.memory.total) * cores
    room = float(allowed[at]) * cores
    if memory > room:
        notes.append(f"does not fit: {(memory - room) / GIB:.1f} GiB a chip too much")
    recomputed = value(times.memory.recomputed)
    if point.layout.recompute < 0 and recomputed > 0:
        notes.append(f"recomputation taken as needed: {recomputed:.0%} of the layers")
    return Estimate(
        point.job, point.layout, seconds, seconds / factor, seconds * factor,
        {name: value(part) for name, part in times.items.items()},
        memory, {name: value(getattr(times.memory, name)) * cores for name in MEMORY_ITEMS},
        room, recomputed, tuple(notes),
    )  # fmt: skip
