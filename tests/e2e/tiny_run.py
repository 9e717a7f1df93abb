"""A coordinator or a worker as a real process, with a model of a few hundred numbers instead of a network.

    python tests/e2e/tiny_run.py coordinator|worker CONFIG [PART]

What it computes is a pure function of the state, the ids and the schedule, so that two runs can be compared.
`TINY_STEP_S` (environment) is how long an inner step takes, `TINY_SPARE_S` when a worker's spare is started. What may
be wrong with it: `TINY_POISON` (ids of samples that teach nothing but NaN, or `all`), `TINY_VERSION` (what the program
says it is), `TINY_CLOCK` (a file with the seconds by which its wall clock is wrong).
"""

from __future__ import annotations

import hashlib
import os
import sys
import time
from collections.abc import Sequence
from dataclasses import replace
from functools import partial
from pathlib import Path
from typing import Any

import msgspec
import numpy as np

import caudal
from caudal.domain.errors import AlreadyExists
from caudal.domain.workload import TrainSpec
from caudal.ports import Blobs
from caudal.train import coordinator, minding, work, worker
from caudal.train.interface import Between, DataManifest, Flat, IdRange, InnerResult, RunPlan, StageData


class TinyInner:
    """Pulls all parameters towards numbers that depend on the samples."""

    def __init__(self, plan: RunPlan, manifest: DataManifest, folder: Path, threads: int) -> None:
        self.plan = plan
        self.size = plan.parameters
        self.params = np.zeros(self.size, np.float32)
        self.step_s = float(os.environ.get("TINY_STEP_S", "0.01"))
        self.poison = os.environ.get("TINY_POISON", "")

    def load(self, state: Flat) -> None:
        self.params = state.copy()

    def forget(self) -> None:
        pass

    def add(self, start: int, change: Flat) -> None:
        self.params[start : start + len(change)] += change

    def run(
        self,
        stage: int,
        ids: Sequence[IdRange],
        progress: tuple[float, float],
        between: Between,
        rate: float = 1.0,
    ) -> InnerResult:
        of = self.plan.stages[stage]
        all_ids = [i for r in ids for i in range(r.start, r.stop)]
        steps = -(-len(all_ids) // of.batch)
        started = time.monotonic()
        for step in range(steps):
            if between(step):
                trained = step * of.batch * of.sample_tokens
                took = time.monotonic() - started
                return InnerResult(self.params.copy(), trained, 1.0, step, took, stopped=True)
            batch = all_ids[step * of.batch : (step + 1) * of.batch]
            target = np.sin(np.arange(self.size, dtype=np.float32) + np.float32(sum(batch) % 7) / 7)
            self.params += np.float32(rate * of.learning_rate) * (target - self.params)
            if self.poison == "all" or {str(i) for i in batch} & set(self.poison.split(",")):
                self.params[:] = np.nan
            time.sleep(self.step_s)
        loss = float(np.mean(np.square(self.params)))
        tokens = len(all_ids) * of.sample_tokens
        return InnerResult(self.params.copy(), tokens, loss, steps, time.monotonic() - started)

    def gradient(
        self,
        stage: int,
        ids: Sequence[IdRange],
        progress: tuple[float, float],
        between: Between,
        rate: float = 1.0,
    ) -> InnerResult:
        before = self.params.copy()

        def first(step: int) -> bool:
            stop = between(step)
            np.copyto(before, self.params)  # with what arrived before the step
            return stop

        result = self.run(stage, ids, progress, first, rate)
        return replace(result, gradient=before - result.params)

    def evaluate(self) -> dict[str, float]:
        return {"val_loss": float(np.mean(np.square(self.params)))}

    def heldout(self) -> dict[str, Any]:
        return {"correct": 1, "of": 2, "samples": []}


def prepare(spec: TrainSpec, blobs: Blobs, prefix: str) -> DataManifest:
    """No data, but a tokenizer, and the manifest."""
    stages = tuple(StageData(s.name, s.kind, 1000, s.sample_tokens) for s in spec.stages)
    tokenizer = b"{}"
    blobs.put(f"{prefix}/data/tokenizer.json", tokenizer)
    files = {"tokenizer.json": hashlib.sha256(tokenizer).hexdigest()}
    manifest = DataManifest(vocab=16, stages=stages, files=files)
    try:
        blobs.put(f"{prefix}/data/manifest.json", msgspec.json.encode(manifest), if_absent=True)
    except AlreadyExists:
        pass
    return manifest


def publish(*_: object) -> int:
    """Nobody serves it."""
    return 1


def set_wrong() -> None:
    """What the environment asks to be wrong with this program."""
    caudal.__version__ = os.environ.get("TINY_VERSION", caudal.__version__)
    if clock := os.environ.get("TINY_CLOCK"):
        right = time.time
        time.time = lambda: right() + float(Path(clock).read_text() or 0)


if __name__ == "__main__":
    role, *words = sys.argv[1:]
    minding.SPARE_AFTER_S = float(os.environ.get("TINY_SPARE_S", minding.SPARE_AFTER_S))
    set_wrong()
    sys.exit(
        coordinator.main(words[0], prepare, publish)
        if role == "coordinator"
        else worker.main(words, partial(work.main, make_inner=TinyInner))
    )
