"""What a question left open, chosen: the micro-batch that is fastest of those that fit.

Decides by the step-time model alone; the layout as a whole is `search`'s.
"""

from __future__ import annotations

from dataclasses import replace

import numpy as np

from caudal.estimate.case import case
from caudal.estimate.points import Point
from caudal.estimate.step_time import step_time
from caudal.estimate.training_memory import allowed_bytes

MICRO_BATCHES = (1, 2, 3, 4, 6, 8, 10, 12, 16, 20, 24, 32, 48, 64)


def settled(point: Point) -> Point:
    """The same point with nothing open but, maybe, the layout."""
    if "micro_batch" not in point.open or "layout" in point.open:
        return point
    share = max(1, point.job.global_batch // point.layout.dp)
    sizes = [m for m in MICRO_BATCHES if share % m == 0]
    columns = case([(point.job, replace(point.layout, micro_batch=m)) for m in sizes])
    times = step_time(columns)
    fits = times.memory.total <= allowed_bytes(columns)
    cost = np.where(fits, times.total, np.inf)
    chosen = sizes[int(np.argmin(cost))] if fits.any() else sizes[0]
    return replace(point, layout=replace(point.layout, micro_batch=chosen), open=point.open - {"micro_batch"})
