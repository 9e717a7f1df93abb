"""An inner side in arithmetic: what it learns of ids depends on what it learnt before, as an optimiser's moments do."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import numpy as np

from caudal.train.interface import Between, Flat, IdRange, InnerResult, Moments, RunPlan
from caudal.train.leases import first, size


def lesson(parameters: int, ids: Sequence[IdRange]) -> Flat:
    """What these ids teach who knows nothing."""
    total = np.float32(sum(i for r in ids for i in range(r.start, r.stop)))
    return np.float32(0.01) * np.cos(np.arange(parameters, dtype=np.float32) + total)


class Learner:
    """With `remembers` a quarter of what it learnt last comes with what it learns."""

    def __init__(self, plan: RunPlan, remembers: bool = True) -> None:
        self.plan, self.size, self.remembers = plan, plan.parameters, remembers
        self.params: Flat = np.zeros(self.size, np.float32)
        self.forget()

    def load(self, state: Flat) -> None:
        self.params = state.copy()

    def forget(self) -> None:
        self.memory: Flat = np.zeros(self.size, np.float32)
        self.steps = 0

    def add(self, start: int, change: Flat) -> None:
        self.params[start : start + len(change)] += change

    def moments(self) -> Moments:
        return Moments(self.memory.copy(), self.memory.copy(), self.steps, fresh=False)

    def recall(self, moments: Moments) -> None:
        self.memory, self.steps = moments.first.copy(), moments.steps

    def learn(self, ids: Sequence[IdRange]) -> Flat:
        """What these ids change now."""
        if not self.remembers:
            return lesson(self.size, ids)
        self.memory = lesson(self.size, ids) + np.float32(0.25) * self.memory
        self.steps += 1
        return self.memory

    def run(
        self, stage: int, ids: Sequence[IdRange], progress: Any, between: Between, rate: float = 1.0
    ) -> InnerResult:
        of = self.plan.stages[stage]
        steps = -(-size(ids) // of.batch)
        done = next((step for step in range(steps) if between(step)), steps)
        some = first(ids, done * of.batch)
        self.params = self.params + self.learn(some)
        tokens = size(some) * of.sample_tokens
        return InnerResult(self.params.copy(), tokens, 1.0, done, 1.0, done < steps, lesson(self.size, some))

    gradient = run

    def evaluate(self) -> dict[str, float]:
        return {"val_loss": 1.0}

    def heldout(self) -> dict[str, Any]:
        return {"correct": 1, "of": 2, "samples": []}
