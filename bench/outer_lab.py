"""What a way of agreeing costs in loss, without a network: sites in one process, with the real inner steps, codec and
outer step, against synchronous DDP at equal tokens.

    python bench/outer_lab.py '{"qsr": 4, "bits": 4, "late": 1}' '{"inner_steps": 10, "gradients": false}' ...

Each argument is one way, as JSON; see `Way`. SHAPE=small|middle, TOKENS, SEED, DATA (builtin:tinyworld or a text file).
The last line is one JSON object. A round's update is applied `late` steps into the next round, as over a link that takes
so long. For exploring: the row `loss` of bench/wan.py measures the real thing.
"""

from __future__ import annotations

import json
import os
import sys
import tempfile
import time
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import torch

from caudal.domain.workload import StageSpec, TokenizerSpec, TrainSpec
from caudal.store.blobs import open_blobs
from caudal.train.codec import Encoder
from caudal.train.data.prepare import prepare
from caudal.train.inner import TorchInner
from caudal.train.interface import IdRange, RunPlan, Stage, plan
from caudal.train.layout import initial_state
from caudal.train.outer import Outer
from caudal.train.schedule import learning_rate
from wan_run import MIDDLE, SMALL

SITES = 2
LIKE = Stage("text", "text", 0, 1, 1, 8, 128, 2e-3, 2e-4, 0.05, 0.1)
"""The stage's learning rate: it falls to a tenth by a cosine, as ours do by default."""


@dataclass(frozen=True)
class Way:
    """How sites agree. `sync` of the tokens are taken in step at the beginning; in the last `settle` a round is
    `settle_steps`, applied `settle_late` steps late."""

    inner_steps: int = 10
    bits: int = 8
    late: int = 2
    sync: float = 0.25
    sync_steps: int = 1
    settle: float = 0.0
    settle_steps: int = 2
    settle_late: int = 1
    learning_rate: float = 1.0
    momentum: float = 0.0
    levels: int = 0
    qsr: float = 0.0  # > 0: rounds of so many steps at the highest rate, more as its square falls
    most: int = 64
    rate: float = 2**0.5
    rate_end: float = 0.0  # 0: as `rate`
    rate_from: float = 0.5
    gradients: bool = True  # in step; else parameters
    sync_bits: int = 0  # of gradients; 0: as `bits`
    sync_late: int = 0  # 1: of gradients, whether the next is computed before the last update is there
    hand: str = "own"  # the moments that sites go on with: of their `own` gradients, or the `shared` ones

    def rate_at(self, done: float) -> float:
        """What sites multiply their rates by: the root of two in step, then `rate`, which goes from `rate_from` of the
        tokens on to `rate_end`."""
        if done < self.sync:
            return 2**0.5
        part = max(0.0, (done - self.rate_from) / (1 - self.rate_from))
        return self.rate + ((self.rate_end or self.rate) - self.rate) * part

    def at(self, done: float) -> tuple[int, int, float, float]:
        """Inner steps, how late, and the outer step's two numbers."""
        if done < self.sync:
            return self.sync_steps, 0, 1.0, 0.0
        if self.qsr:
            rate = learning_rate(LIKE, max(0.05, done)) / LIKE.learning_rate
            return min(self.most, round(self.qsr / rate**2)), self.late, self.learning_rate, self.momentum
        if done >= 1 - self.settle:
            return self.settle_steps, self.settle_late, self.learning_rate, self.momentum
        return self.inner_steps, self.late, self.learning_rate, self.momentum


def ddp(inner: TorchInner, run: RunPlan, state: Any) -> float:
    """One process with the batch of all sites: the same step that DDP takes."""
    inner.forget()
    inner.load(state)
    stage = run.stages[0]
    each = stage.batch * SITES
    for start in range(0, stage.ids, each):
        stop = min(stage.ids, start + each)
        # one step over the whole of it: a stage's batch is per site
        batch = inner._samples[0].batch(range(start, stop))
        inner._step(batch, learning_rate(stage, (start + stop) / 2 / stage.ids), stage.weight_decay)
    return inner.evaluate()["val_loss"]


def quantised(x: Any, levels: int) -> Any:
    """Few levels for each number, by the root mean square of its block: Lloyd and Max's for a normal distribution."""
    n = len(x)
    padded = np.zeros(-(-n // 256) * 256, np.float32)
    padded[:n] = x
    grid = padded.reshape(-1, 256)
    scale = np.sqrt(np.mean(np.square(grid), axis=1, keepdims=True)) + 1e-30
    y = grid / scale
    if levels == 3:
        q = np.sign(y) * (np.abs(y) > 0.6120) * np.float32(1.2240)
    else:
        q = np.sign(y) * np.where(np.abs(y) > 0.9816, np.float32(1.510), np.float32(0.4528))
    return (q * scale).reshape(-1)[:n].astype(np.float32)


def in_step(inners: list[TorchInner], run: RunPlan, outer: Outer, way: Way) -> int:
    """The first part of the run, a step a round, on gradients. With `sync_late` a site computes the next while the
    update that the last one became part of is on its way: what it learnt itself it knows at once. Returns how many ids
    are trained."""
    stage, done, bits, encoder = run.stages[0], 0, way.sync_bits or way.bits, Encoder()
    residuals, owns = ([np.zeros_like(outer.state) for _ in inners] for _ in range(2))
    known = outer.state.copy()  # at sites
    while done / stage.ids < way.sync:
        begin, stop = done, min(stage.ids, done + SITES * stage.batch)
        progress = (done / stage.ids, stop / stage.ids)
        parts = []
        for site, inner in enumerate(inners):
            ids = IdRange(done, min(stop, done + stage.batch))
            if ids.size == 0:
                continue
            done = ids.stop
            here = known + owns[site]
            inner.load(here)
            result = inner.gradient(0, [ids], progress, lambda _: False)
            if way.sync_late:
                owns[site] = result.params - here
            left = np.empty_like(here)
            coded = [
                encoder.encode(result.gradient[a:b], residuals[site][a:b], left[a:b], bits)
                for a, b in run.fragments
            ]
            residuals[site] = left
            parts.append((ids.size / (stop - begin), coded))
        if way.sync_late:
            known = outer.state.copy()
        rate = learning_rate(stage, sum(progress) / 2)
        updates = [
            outer.merge_gradients(f, [(w, coded[f]) for w, coded in parts], rate, stage.weight_decay, bits)
            for f in range(len(run.fragments))
        ]
        outer.take(b"".join(updates), 0.0, bits, gradients=True)
        if not way.sync_late:
            known = outer.state.copy()
    for inner in inners:
        inner.load(outer.state)
        if way.hand == "shared":
            mine, adam = inner._optimiser.state[inner._flat], outer.adam
            mine["exp_avg"].copy_(torch.from_numpy(adam._first))
            mine["exp_avg_sq"].copy_(torch.from_numpy(adam._second))
    return done


def caudal(inners: list[TorchInner], run: RunPlan, start_state: Any, way: Way) -> float:
    """Sites that agree in this way; returns the loss of the state that they end with."""
    state = start_state.copy()
    outer = Outer(state, np.zeros_like(state), run.fragments, run.undecayed)
    stage, done = run.stages[0], 0
    residuals = [np.zeros_like(state) for _ in inners]
    shifts: list[Any] = [None for _ in inners]
    for inner in inners:
        inner.forget()
        inner.load(state)
    encoder = Encoder()
    rounds = 0
    if way.gradients:
        done = in_step(inners, run, outer, way)
    while done < stage.ids:
        rounds += done / stage.ids >= way.sync
        steps, late, outer_rate, momentum = way.at(done / stage.ids)
        each = min(stage.batch * steps, -(-(stage.ids - done) // SITES))
        begin, progress = done, (done / stage.ids, min(1.0, (done + each * SITES) / stage.ids))
        parts, learnt = [], []
        for site, inner in enumerate(inners):
            ids = IdRange(begin, min(stage.ids, begin + each))
            begin = ids.stop
            shift = shifts[site]

            def between(step: int, inner: TorchInner = inner, shift: Any = shift, late: int = late) -> bool:
                if step == late and shift is not None:
                    inner.add(0, shift)
                return False

            if ids.size == 0:
                if shift is not None:
                    inner.add(0, shift)
                continue
            result = inner.run(0, [ids], progress, between, way.rate_at(done / stage.ids))
            if shift is not None and late >= result.steps:
                inner.add(0, shift)
                result.params[:] += shift
            mine = result.params - outer.state
            left = np.empty_like(mine)
            if way.levels:
                wanted = mine + residuals[site]
                said = quantised(wanted, way.levels)
                residuals[site] = wanted - said
                parts.append((ids.size, said))
                learnt.append((site, mine))
                continue
            coded = [
                encoder.encode(mine[a:b], residuals[site][a:b], left[a:b], way.bits) for a, b in run.fragments
            ]
            residuals[site] = left
            parts.append((ids.size, coded))
            learnt.append((site, mine))
        total = sum(size for size, _ in parts)
        before = outer.state.copy()
        if way.levels:
            wanted = sum(size / total * said for size, said in parts) * np.float32(outer_rate)
            wanted = (1 + momentum) * wanted + momentum**2 * outer.momentum + outer.residual
            change = quantised(wanted, way.levels)
            outer.residual = wanted - change
            outer.state += change
            outer.momentum[:] = (momentum * outer.momentum + change) / (1 + momentum)
            shifts = [None for _ in inners]
            for site, mine in learnt:
                shifts[site] = change - mine
            done = begin
            continue
        updates = [
            outer.merge(
                f, [(size / total, coded[f]) for size, coded in parts], outer_rate, momentum, way.bits
            )
            for f in range(len(run.fragments))
        ]
        outer.take(b"".join(updates), momentum, way.bits)
        change = outer.state - before
        shifts = [None for _ in inners]
        for site, mine in learnt:
            shifts[site] = change - mine
        done = begin
    print("rounds behind the part in step:", rounds, flush=True)
    inners[0].load(outer.state)
    return inners[0].evaluate()["val_loss"]


def main() -> None:
    """Compare the ways that are told."""
    shape = {"small": SMALL, "middle": MIDDLE}[os.environ.get("SHAPE", "small")]
    tokens, seed = int(os.environ.get("TOKENS", "500000")), int(os.environ.get("SEED", "1"))
    data = os.environ.get("DATA", "builtin:tinyworld")
    stage = StageSpec(
        "text", tokens=tokens, sample_tokens=128, batch=int(os.environ.get("BATCH", "8")), learning_rate=2e-3
    )
    spec = TrainSpec(
        name="lab", data=data, stages=(stage,), model=shape, seed=seed, tokenizer=TokenizerSpec(entries=1024)
    )
    with tempfile.TemporaryDirectory() as folder:
        blobs = open_blobs(Path(folder).as_uri())
        manifest = prepare(spec, blobs, "runs/lab/g1")
        run = plan(spec, manifest)
        files = Path(folder) / "runs/lab/g1/data"
        inners = [TorchInner(run, manifest, files) for _ in range(SITES)]
        state = initial_state(run.shape, run.vocab, run.seed)
        out: dict[str, Any] = {"parameters": run.parameters, "tokens": tokens, "seed": seed}
        started = time.process_time()
        reference = float(os.environ.get("REFERENCE", "0")) or ddp(inners[0], run, state)
        out["ddp"] = round(reference, 5)
        print(json.dumps(out), round(time.process_time() - started), flush=True)
        for told in sys.argv[1:] or ['{"qsr": 4, "bits": 4, "late": 1}', "{}"]:
            started = time.process_time()
            loss = caudal(inners, run, state, Way(**json.loads(told)))
            out[told] = {"val_loss": round(loss, 5), "gap_percent": round(100 * (loss / reference - 1), 3)}
            print(told, out[told], round(time.process_time() - started), flush=True)
    print(json.dumps(out))


if __name__ == "__main__":
    main()
