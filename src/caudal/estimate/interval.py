"""How far an estimate may be off: factors that hold about four of five measured steps, by what is known.

From the residuals of rows that the fit had never seen (each source left out in turn, `make bench-estimate`), not
from how well the fit matches its own rows. Wider for mixtures of experts, where software moves fastest, for chips
without a published measurement, and for whatever a question left open.
"""

from __future__ import annotations

from collections.abc import Collection

from caudal.estimate.case import Job, Layout

DENSE = 0.145
"""Half width in logarithms: a dense model on a measured kind of chip, its layout stated."""
EXPERTS = 0.31
SHARDED_OVER_NODES = 0.05
"""More, where weights are gathered over the slow network."""
UNMEASURED_CHIP = 0.20
"""More, where nobody measured what the chip's matrix products reach."""
OPEN_LAYOUT = 0.15
OPEN_MICRO_BATCH = 0.03
CONTRADICTED = 0.20
OPEN_PRECISION = 0.20
FOUR_BITS = 0.05
WIDEST = 1.2


OPEN = {
    "precision": OPEN_PRECISION,
    "layout": OPEN_LAYOUT,
    "micro_batch": OPEN_MICRO_BATCH,
    "contradicted": CONTRADICTED,
}


def half_width(job: Job, layout: Layout, open_parts: Collection[str] = ()) -> float:
    """Half width of the 80 % interval, in logarithms."""
    width = EXPERTS if job.model.experts else DENSE
    extra = 0.0
    chip = job.chip
    if not chip.achieved and not chip.like and chip.vendor != "AWS":
        extra = UNMEASURED_CHIP
    if layout.zero >= 3 and job.chips > (chip.scaleup_chips or 1):
        width += SHARDED_OVER_NODES
    if job.precision == "fp4":
        width += FOUR_BITS
    extra += sum(more for part, more in OPEN.items() if part in open_parts)
    return float(min(WIDEST, (width**2 + extra**2) ** 0.5))
