"""The learning rate over a stage: a linear rise, then a cosine. Pure, without torch."""

from __future__ import annotations

import math

from caudal.train.interface import Stage

FRESH_STEPS = 4
"""Steps over which an optimiser without moments (a worker that joined late, a coordinator that took over) rises to its rate.
With twenty, whoever loses them every few steps hardly learns: that was most of what such a loss cost (docs/adr/0013)."""


def learning_rate(stage: Stage, progress: float) -> float:
    """The rate at `progress` (0 to 1) of the stage."""
    progress = min(max(progress, 0.0), 1.0)
    if progress < stage.warmup_fraction:
        return stage.learning_rate * progress / stage.warmup_fraction
    rest = 1 - stage.warmup_fraction
    done = (progress - stage.warmup_fraction) / rest if rest > 0 else 1.0
    above = stage.learning_rate - stage.final_learning_rate
    return stage.final_learning_rate + above * 0.5 * (1 + math.cos(math.pi * done))


def fresh_factor(steps: int) -> float:
    """What the rate is multiplied by when the optimiser has seen only so many steps."""
    return min(1.0, (steps + 1) / FRESH_STEPS)
