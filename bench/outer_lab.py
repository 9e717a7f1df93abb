"""What a way of agreeing costs in loss, without a network: sites in one process, with the real inner steps, codec and
outer step, against synchronous DDP at equal tokens.

    python bench/outer_lab.py '{"qsr": 2, "bits": 2}' '{"inner_steps": 10, "gradients": false}' ...

Each argument is one way, as JSON; see `Way`. SHAPE=small|middle, TOKENS, SEED, SITES, DATA (builtin:tinyworld or a text
file), REFERENCE (DDP's loss where it is known). The last line is one JSON object. A round's update is applied `late`
steps into the next round, as over a link that takes so long. Sites can be killed, too. For exploring: the rows `loss` and
`chaos` of bench/wan.py measure the real thing.
"""

from __future__ import annotations

import json
import os
import random
import sys
import tempfile
import time
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np

from caudal.domain.workload import StageSpec, TokenizerSpec, TrainSpec
from caudal.store.blobs import open_blobs
from caudal.train.codec import Encoder
from caudal.train.data.prepare import prepare
from caudal.train.inner import TorchInner
from caudal.train.interface import IdRange, RunPlan, Stage, plan
from caudal.train.layout import initial_state
from caudal.train.leases import Pool, size
from caudal.train.outer import Outer
from caudal.train.schedule import fresh_factor, learning_rate
from wan_run import MIDDLE, SMALL

SITES = int(os.environ.get("SITES", "2"))
LIKE = Stage("text", "text", 0, 1, 1, 8, 128, 2e-3, 2e-4, 0.05, 0.1)
"""The stage's learning rate: it falls to a tenth by a cosine, as ours do by default."""


@dataclass(frozen=True)
class Way:
    """How sites agree. `sync` of the tokens are taken in step at the beginning, or `sync_steps` where that is fewer.

    With `kills` a site's work of a round is lost so often, and with it what `lose` names: its `residual`, its `moments`
    (else it goes on with those from before the round). Its ids are trained again later. With `takeovers` a round's
    coordinator is followed by another so often, which begins without residual and moments."""

    inner_steps: int = 10
    bits: int = 2
    late: int = 1
    sync: float = 0.25
    sync_steps: int = 1_000_000
    sync_bits: int = 0  # 0: as `bits`
    gradients: bool = True  # in step; else parameters
    learning_rate: float = 1.0
    momentum: float = 0.0
    qsr: float = 0.0  # > 0: rounds of so many steps at the highest rate, more as its square falls
    most: int = 64
    rate: float = SITES**0.5
    kills: float = 0.0
    takeovers: float = 0.0
    ends: bool = False  # whether the first of them ends the part in step
    lose: str = "residual,moments"
    chance: int = 0

    def steps(self, done: float) -> int:
        """A round's inner steps, behind the part in step."""
        if self.qsr:
            rate = learning_rate(LIKE, max(0.05, done)) / LIKE.learning_rate
            return min(self.most, round(self.qsr / rate**2))
        return self.inner_steps


@dataclass
class Site:
    """One site. `shift`: what the last update changes at it, which it has not heard of yet."""

    inner: TorchInner
    residual: Any
    shift: Any = None

    def encode(self, x: Any, run: RunPlan, bits: int) -> list[bytearray]:
        """What it sends of a vector; the rest is said later."""
        left, encoder = np.empty_like(x), Encoder()
        coded = [encoder.encode(x[a:b], self.residual[a:b], left[a:b], bits) for a, b in run.fragments]
        self.residual = left
        return coded


class Lab:
    """A run of sites that agree in one way."""

    def __init__(self, inners: list[TorchInner], run: RunPlan, state: Any, way: Way) -> None:
        self.run, self.way, self.stage = run, way, run.stages[0]
        self.outer = Outer(state.copy(), np.zeros_like(state), run.fragments, run.undecayed)
        self.pool = Pool(self.stage.ids)
        self.sites = [Site(inner, np.zeros_like(state)) for inner in inners]
        self.chance = random.Random(way.chance)
        self.rounds = self.steps = self.killed = self.takeovers = 0
        for site in self.sites:
            site.inner.forget()
            site.inner.load(state)

    def loss(self) -> float:
        """Train it, and return the loss of the state that it ends with."""
        way, in_step = self.way, way_in_step(self.way)
        while not self.pool.done:
            done = size(self.pool.committed) / self.stage.ids
            ended = way.ends and self.takeovers > 0
            if in_step and (done >= way.sync or self.steps >= way.sync_steps or ended):
                in_step = False
                for site in self.sites:
                    site.inner.load(self.outer.state)
                    site.residual[:] = 0
            self.steps += 1
            alike = done < way.sync and not way.gradients  # parameters in step
            self.round(in_step, 1 if in_step or alike else way.steps(done))
            if self.chance.random() < way.takeovers:
                self.takeovers += 1
                self.outer.residual[:] = 0
                self.outer.adam = None
        print(
            f"rounds behind the part in step {self.rounds}, killed {self.killed}, takeovers {self.takeovers}"
        )
        self.sites[0].inner.load(self.outer.state)
        return self.sites[0].inner.evaluate()["val_loss"]

    def round(self, gradients: bool, steps: int) -> None:
        """One round: leases, work, and the update of what came of it."""
        self.rounds += not gradients
        free = size(self.pool.free)
        begun, each = self.stage.ids - free, min(self.stage.batch * steps, -(-free // SITES))
        leases = [self.pool.lease(str(s), each, 0, self.stage.ids) for s in range(SITES)]
        progress = (begun / self.stage.ids, (begun + sum(size(ids) for ids in leases)) / self.stage.ids)
        lost = [self.chance.random() < self.way.kills for _ in leases]
        if all(lost):
            lost[0] = False
        parts = []
        for number, (site, ids) in enumerate(zip(self.sites, leases, strict=True)):
            if lost[number]:
                self.kill(site)
                self.pool.give_back(str(number))
            elif ids:
                parts.append((str(number), site, size(ids), *self.work(site, ids, progress, gradients)))
            elif site.shift is not None:
                site.inner.add(0, site.shift)
                site.shift = None
        self.merge(parts, progress, gradients)

    def kill(self, site: Site) -> None:
        """What it knows since its last round is gone."""
        self.killed += 1
        site.shift = None
        if "residual" in self.way.lose:
            site.residual[:] = 0
        if "moments" in self.way.lose:
            site.inner.forget()

    def work(
        self, site: Site, ids: tuple[IdRange, ...], progress: tuple[float, float], gradients: bool
    ) -> tuple[Any, list[bytearray]]:
        """What a site learns of these samples, and what it sends."""
        way, inner, shift = self.way, site.inner, site.shift
        site.shift = None
        if gradients:
            inner.load(self.outer.state)
            result = inner.gradient(0, ids, progress, lambda _: False)
            return None, site.encode(result.gradient, self.run, way.sync_bits or way.bits)
        if shift is None:
            inner.load(self.outer.state)

        def between(step: int) -> bool:
            if step == way.late and shift is not None:
                inner.add(0, shift)
            return False

        result = inner.run(0, ids, progress, between, way.rate)
        if shift is not None and way.late >= result.steps:
            inner.add(0, shift)
            result.params[:] += shift
        mine = result.params - self.outer.state
        return mine, site.encode(mine, self.run, way.bits)

    def merge(self, parts: list[Any], progress: tuple[float, float], gradients: bool) -> None:
        """The outer step."""
        way, outer, total = self.way, self.outer, sum(part[2] for part in parts)
        before, cuts = outer.state.copy(), range(len(self.run.fragments))
        weighted = [[(count / total, coded[f]) for _, _, count, _, coded in parts] for f in cuts]
        bits = way.bits
        if gradients:
            bits = way.sync_bits or way.bits
            steps = outer.adam.steps if outer.adam else 0
            rate = learning_rate(self.stage, sum(progress) / 2)
            rate *= fresh_factor(steps) if self.steps - 1 > steps else 1.0
            decay = self.stage.weight_decay
            updates = [outer.merge_gradients(f, weighted[f], rate, decay, bits) for f in cuts]
        else:
            updates = [outer.merge(f, weighted[f], way.learning_rate, way.momentum, bits) for f in cuts]
        outer.take(b"".join(updates), 0.0 if gradients else way.momentum, bits, gradients=gradients)
        self.pool.commit([name for name, *_ in parts])
        change = outer.state - before
        for _, site, _, mine, _ in parts:
            site.shift = None if mine is None else change - mine


def way_in_step(way: Way) -> bool:
    """Whether sites agree on gradients at the beginning."""
    return way.gradients and way.sync > 0


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
        out: dict[str, Any] = {"parameters": run.parameters, "tokens": tokens, "seed": seed, "sites": SITES}
        started = time.process_time()
        reference = float(os.environ.get("REFERENCE", "0")) or ddp(inners[0], run, state)
        out["ddp"] = round(reference, 5)
        print(json.dumps(out), round(time.process_time() - started), flush=True)
        for told in sys.argv[1:] or ['{"qsr": 2, "bits": 2}', "{}"]:
            started = time.process_time()
            loss = Lab(inners, run, state, Way(**json.loads(told))).loss()
            out[told] = {"val_loss": round(loss, 5), "gap_percent": round(100 * (loss / reference - 1), 3)}
            print(told, out[told], round(time.process_time() - started), flush=True)
    print(json.dumps(out))


if __name__ == "__main__":
    main()
