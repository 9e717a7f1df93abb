"""What a question left open, chosen: the micro-batch that is fastest of those that fit.

Decides by the step-time model alone; the layout as a whole is `search`'s.
"""

from __future__ import annotations

from dataclasses import replace

import numpy as np

from caudal.estimate.case import Job, Layout, case
from caudal.estimate.constants import FITTED, Constants
from caudal.estimate.points import Point
from caudal.estimate.step_time import step_time
from caudal.estimate.training_memory import allowed_bytes, memory

MICRO_BATCHES = (1, 2, 3, 4, 6, 8, 10, 12, 16, 20, 24, 32, 48, 64)


def fits(job: Job, layout: Layout) -> bool:
    """Whether it fits, with as much recomputation as is allowed."""
    columns = case([(job, layout)])
    return bool((memory(columns).total <= allowed_bytes(columns))[0])


def settled(point: Point, constants: Constants = FITTED) -> Point:
    """The same point with nothing open but, maybe, the layout."""
    if "layout" in point.open:
        return point
    point = _sharded(point)
    if "micro_batch" not in point.open:
        return point
    share = max(1, point.job.global_batch // point.layout.dp)
    sizes = [m for m in MICRO_BATCHES if share % m == 0]
    columns = case([(point.job, replace(point.layout, micro_batch=m)) for m in sizes])
    times = step_time(columns, constants)
    possible = times.memory.total <= allowed_bytes(columns)
    cost = np.where(possible, times.total, np.inf)
    chosen = sizes[int(np.argmin(cost))] if possible.any() else sizes[0]
    return replace(point, layout=replace(point.layout, micro_batch=chosen), open=point.open - {"micro_batch"})


def _sharded(point: Point) -> Point:
    """Where nobody said how states are sharded and they do not fit, weights are taken to be sharded, too."""
    layout = point.layout
    if "zero" not in point.open or layout.tp * layout.pp > 1 or layout.dp < 2 or fits(point.job, layout):
        return point
    whole = replace(layout, zero=3)
    if not fits(point.job, whole):
        return point
    note = "sharding not stated, and without it does not fit: taken as FSDP"
    return replace(point, layout=whole, notes=(*point.notes, note))
