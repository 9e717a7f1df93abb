"""A worker whose inner steps take a fixed time and no processor: `python bench/wan_site.py CONFIG`.

All else is the real worker. So what a network costs is seen without what the emulated network itself takes
of the same two cores. BENCH_STEP_S is how long a step takes; BENCH_TORCH=1 has it load torch first, as the
real one does, so that starting takes as long.
"""

from __future__ import annotations

import os
import sys
import time
from collections.abc import Sequence
from dataclasses import replace
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np

from caudal.train import work, worker
from caudal.train.interface import Between, DataManifest, Flat, IdRange, InnerResult, RunPlan


class FixedInner:
    """Sleeps instead of computing, and moves the parameters a little, so that deltas are not empty."""

    def __init__(self, plan: RunPlan, manifest: DataManifest, folder: Path, threads: int) -> None:
        if os.environ.get("BENCH_TORCH"):
            import torch  # as long as the real one takes

            torch.set_num_threads(threads)
        self.size = plan.parameters
        self._plan = plan
        self._step_s = float(os.environ["BENCH_STEP_S"])
        self._params = np.zeros(self.size, np.float32)
        self._moves = np.random.Generator(np.random.PCG64(plan.seed)).normal(0, 1e-4, self.size)
        self._moves = self._moves.astype(np.float32)

    def load(self, state: Flat) -> None:
        """Take over the parameters."""
        self._params = state.astype(np.float32)

    def forget(self) -> None:
        """There are no moments."""

    def add(self, start: int, change: Flat) -> None:
        """Add to some of them."""
        self._params[start : start + len(change)] += change

    def run(
        self,
        stage: int,
        ids: Sequence[IdRange],
        progress: tuple[float, float],
        between: Between,
        rate: float = 1.0,
    ) -> InnerResult:
        """Sleep through the steps."""
        of, started = self._plan.stages[stage], time.monotonic()
        count = sum(some.size for some in ids)
        steps = -(-count // of.batch)
        due = started
        for step in range(steps):
            if between(step):
                trained = step * of.batch * of.sample_tokens
                took = time.monotonic() - started
                return InnerResult(self._params.copy(), trained, 1.0, step, took, stopped=True)
            due += self._step_s
            self._params += self._moves
            time.sleep(max(0.0, due - time.monotonic()))
        tokens = count * of.sample_tokens
        return InnerResult(self._params.copy(), tokens, 1.0, steps, time.monotonic() - started)

    def gradient(
        self,
        stage: int,
        ids: Sequence[IdRange],
        progress: tuple[float, float],
        between: Between,
        rate: float = 1.0,
    ) -> InnerResult:
        """Sleep through the step."""
        return replace(self.run(stage, ids, progress, between, rate), gradient=self._moves)

    def evaluate(self) -> dict[str, float]:
        """Nothing is learnt."""
        return {"val_loss": 1.0}

    def heldout(self) -> dict[str, Any]:
        """No questions."""
        return {"correct": 0, "of": 0, "samples": []}


if __name__ == "__main__":
    sys.exit(worker.main(sys.argv[1:], partial(work.main, make_inner=FixedInner)))
