"""An `Inner` over a group of processes: this is the first of them, which the others follow."""

from __future__ import annotations

import math
import time
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import msgspec
import numpy as np
import torch
from tokenizers import Tokenizer

from caudal.train.base.layout import base_of
from caudal.train.group.member import Member, Setup
from caudal.train.group.ranks import Ranks
from caudal.train.heldout import load_questions, score
from caudal.train.inner import text_bytes
from caudal.train.interface import Between, Flat, IdRange, InnerResult
from caudal.train.model import Llama
from caudal.train.schedule import fresh_factor, learning_rate


class GroupInner:
    """See `caudal.train.interface.Inner`. Raises UsageError where the hardware lacks what is asked for."""

    def __init__(self, setup: Setup) -> None:
        self._plan, self._manifest = setup.plan, setup.manifest
        self._ranks = Ranks.start(setup.inner.processes)
        self._ranks.say(msgspec.to_builtins(setup))
        self._member = Member(setup, self._ranks.rank, self._ranks.world)
        self.size = setup.plan.parameters
        self.devices = self._member.devices()
        self._steps, self._fresh = 0, False
        folder = Path(setup.folder)
        self._tokenizer = Tokenizer.from_file(str(folder / "tokenizer.json"))
        self._questions = load_questions(folder / "heldout.json", self._tokenizer, setup.plan.shape.context)
        self._text_bytes = 0

    def load(self, state: Flat) -> None:
        """Take over the parameters; the moments stay as they are."""
        assert state.shape == (self.size,)
        self._ranks.say({"do": "load"})
        whole = torch.from_numpy(np.ascontiguousarray(state, dtype=np.float32))
        self._member.load(self._ranks.share(whole))

    def add(self, start: int, change: Flat) -> None:
        """Add `change` to the parameters from number `start` on; the moments stay."""
        self._ranks.say({"do": "add", "start": start, "size": len(change)})
        self._member.add(start, self._ranks.share(torch.from_numpy(np.ascontiguousarray(change))))

    def forget(self) -> None:
        """Begin again without moments."""
        self._ranks.say({"do": "forget"})
        self._member.forget()
        self._steps, self._fresh = 0, False

    def run(
        self,
        stage: int,
        ids: Sequence[IdRange],
        progress: tuple[float, float],
        between: Between,
        rate: float = 1.0,
    ) -> InnerResult:
        """Take inner steps over exactly these samples; see `Inner.run`."""
        return self._run(stage, ids, progress, between, rate, keep=False)

    def _run(
        self,
        stage: int,
        ids: Sequence[IdRange],
        progress: tuple[float, float],
        between: Between,
        rate: float,
        *,
        keep: bool,
    ) -> InnerResult:
        """`keep`: with the gradient of the last step."""
        started = time.perf_counter()
        if self._steps == 0:
            self._fresh = stage > 0 or progress[0] > 0
        of = self._plan.stages[stage]
        positions = [sample_id - of.first_id for some in ids for sample_id in range(some.start, some.stop)]
        steps = -(-len(positions) // of.batch)
        total, counted, done = 0.0, 0, steps
        for step in range(steps):
            if between(step):
                done = step
                break
            at = progress[0] + (progress[1] - progress[0]) * (step + 0.5) / steps
            now = rate * learning_rate(of, at) * (fresh_factor(self._steps) if self._fresh else 1.0)
            those = positions[step * of.batch : (step + 1) * of.batch]
            loss, positions_counted = self._step(stage, those, now, of.weight_decay, keep)
            total, counted = total + loss, counted + positions_counted
        return InnerResult(
            params=self._read(),
            tokens=min(len(positions), done * of.batch) * of.sample_tokens,
            loss=total / max(counted, 1),
            steps=done,
            seconds=time.perf_counter() - started,
            stopped=done < steps,
            gradient=self._member.gradient.numpy() if keep and done else None,
        )

    def gradient(
        self,
        stage: int,
        ids: Sequence[IdRange],
        progress: tuple[float, float],
        between: Between,
        rate: float = 1.0,
    ) -> InnerResult:
        """The step over one batch, with its gradient; see `Inner.gradient`."""
        return self._run(stage, ids, progress, between, rate, keep=True)

    def _step(
        self, stage: int, positions: list[int], rate: float, weight_decay: float, keep: bool
    ) -> tuple[float, int]:
        words = {"stage": stage, "positions": positions, "rate": rate, "weight_decay": weight_decay}
        self._ranks.say({"do": "step", "keep": keep, **words})
        self._steps += 1
        return self._member.step(stage, positions, rate, weight_decay, keep)

    def _read(self) -> Flat:
        self._ranks.say({"do": "read"})
        state: Flat = self._member.read().numpy()
        return state

    def evaluate(self) -> dict[str, float]:
        """As `TorchInner.evaluate`."""
        if not self._member.validation:
            return {"val_loss": float("nan")}
        self._ranks.say({"do": "evaluate"})
        total, counted = self._member.evaluate()
        self._text_bytes = self._text_bytes or text_bytes(self._tokenizer, self._member.validation)
        return {
            "val_loss": total / counted,
            "val_bits_per_byte": total / math.log(2) / self._text_bytes,
        }

    def heldout(self) -> dict[str, Any]:
        """As `TorchInner.heldout`: by this process alone. A base is asked nothing."""
        if base_of(self._manifest.details) is not None:
            return {"correct": 0, "of": 0, "kinds": {}, "samples": []}
        model = Llama(self._plan.shape, self._plan.vocab)
        return score(model, torch.from_numpy(self._read()), self._questions, self._tokenizer)

    def close(self) -> None:
        """End the other processes; the end of this one ends them too."""
        self._ranks.close()
