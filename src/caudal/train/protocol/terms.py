"""What a coordinator is told at its start. Values."""

from __future__ import annotations

from dataclasses import dataclass

from caudal.train.interface import RunPlan


@dataclass(frozen=True, slots=True)
class Terms:
    """What a coordinator is told at its start. `sites` is how many are expected; `evaluate_every` counts
    rounds of `inner_steps` (a synchronous round counts by its one step), `checkpoint_every` any rounds."""

    plan: RunPlan
    generation: int
    epoch: int
    sites: int
    evaluate_every: int
    checkpoint_every: int
