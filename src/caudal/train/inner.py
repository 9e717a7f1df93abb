"""The inner steps: one copy of the model with AdamW over one flat vector, on one site.

Single precision on CPUs. The optimiser's moments stay over rounds and stages; a worker that joins a run late
starts without them and lets its rate rise over a few steps. Knows nothing of other sites, rounds or bytes.
"""

from __future__ import annotations

import ctypes
import math
import sys
import time
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import numpy as np
import torch
from tokenizers import Tokenizer
from torch import Tensor

from caudal.train.adam import BETAS, EPSILON
from caudal.train.data.samples import Batch, Samples, read_tokens, windows
from caudal.train.heldout import load_questions, score
from caudal.train.interface import Between, DataManifest, Flat, IdRange, InnerResult, Moments, RunPlan
from caudal.train.layout import tensors
from caudal.train.model import Llama
from caudal.train.schedule import fresh_factor, learning_rate

GRADIENT_NORM = 1.0
"""Gradients longer than this are shortened to it."""

MAX_VALIDATION_TOKENS = 1 << 17
"""Of a long validation text, evenly spread windows of so many tokens are read."""

_VALIDATION_AT_ONCE = 4_096
"""Tokens that are evaluated side by side."""


class TorchInner:
    """An `Inner` in PyTorch. `folder` holds the run's data files."""

    def __init__(self, plan: RunPlan, manifest: DataManifest, folder: Path, threads: int = 1) -> None:
        keep_freed_memory()
        torch.set_num_threads(threads)
        self._plan = plan
        self._model = Llama(plan.shape, plan.vocab)
        self.size = self._model.size
        self._flat = torch.zeros(self.size, requires_grad=True)
        self._decays = _decay_mask(plan)
        self.forget()
        self._samples = [Samples(folder, manifest, index, plan.seed) for index in range(len(plan.stages))]
        self._tokenizer = Tokenizer.from_file(str(folder / "tokenizer.json"))
        self._validation = self._read_validation(manifest, folder)
        self._text_bytes = 0
        self._questions = load_questions(folder / "heldout.json", self._tokenizer, plan.shape.context)

    def load(self, state: Flat) -> None:
        """Take over the parameters; the moments stay as they are. Copies `state`."""
        assert state.shape == (self.size,)
        with torch.no_grad():
            self._flat.copy_(torch.from_numpy(np.ascontiguousarray(state, dtype=np.float32)))

    def forget(self) -> None:
        """Begin again without moments, as one that has just joined."""
        self._optimiser = torch.optim.Adam([self._flat], lr=0.0, betas=BETAS, eps=EPSILON, fused=True)
        self._steps, self._fresh = 0, False

    def moments(self) -> Moments:
        """A copy of the moments as they are."""
        mine = self._optimiser.state.get(self._flat)
        if not mine:
            nothing: Flat = np.zeros(self.size, np.float32)
            return Moments(nothing, nothing, 0, fresh=False)
        first, second = (mine[name].numpy().copy() for name in ("exp_avg", "exp_avg_sq"))
        return Moments(first, second, self._steps, self._fresh)

    def recall(self, moments: Moments) -> None:
        """Have these moments from now on; see `Recalling.recall`."""
        self.forget()
        if not moments.steps:
            return
        self._optimiser.state[self._flat] = {
            "step": torch.tensor(float(moments.steps)),
            "exp_avg": torch.from_numpy(moments.first.copy()),
            "exp_avg_sq": torch.from_numpy(moments.second.copy()),
        }
        self._steps, self._fresh = moments.steps, moments.fresh

    def add(self, start: int, change: Flat) -> None:
        """Add `change` to the parameters from number `start` on; the moments stay."""
        with torch.no_grad():
            self._flat[start : start + len(change)] += torch.from_numpy(change)

    def run(
        self,
        stage: int,
        ids: Sequence[IdRange],
        progress: tuple[float, float],
        between: Between,
        rate: float = 1.0,
    ) -> InnerResult:
        """Take inner steps over exactly these samples; see `Inner.run`."""
        return self._run(stage, ids, progress, between, rate, None)

    def _run(
        self,
        stage: int,
        ids: Sequence[IdRange],
        progress: tuple[float, float],
        between: Between,
        rate: float,
        into: Flat | None,
    ) -> InnerResult:
        """`into` becomes the gradient of the last step."""
        started = time.perf_counter()
        if self._steps == 0:
            self._fresh = stage > 0 or progress[0] > 0
        of = self._plan.stages[stage]
        positions = [sample_id - of.first_id for some in ids for sample_id in range(some.start, some.stop)]
        steps = -(-len(positions) // of.batch)
        total, counted, done = 0.0, 0, steps
        with _no_subnormals():
            for step in range(steps):
                if between(step):
                    done = step
                    break
                batch = self._samples[stage].batch(positions[step * of.batch : (step + 1) * of.batch])
                at = progress[0] + (progress[1] - progress[0]) * (step + 0.5) / steps
                now = rate * learning_rate(of, at)
                total += self._step(batch, now, of.weight_decay, into) * len(batch.targets)
                counted += len(batch.targets)
        return InnerResult(
            params=self._read(),
            tokens=min(len(positions), done * of.batch) * of.sample_tokens,
            loss=total / max(counted, 1),
            steps=done,
            seconds=time.perf_counter() - started,
            stopped=done < steps,
            gradient=into,
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
        into: Flat = np.zeros(self.size, np.float32)
        return self._run(stage, ids, progress, between, rate, into)

    def _read(self) -> Flat:
        params: Flat = self._flat.detach().numpy().copy()
        return params

    @torch.no_grad()
    def evaluate(self) -> dict[str, float]:
        """`val_loss`: nats per token of text that was never trained on; nan where there is none. With it
        `val_bits_per_byte`, by the length of that text in UTF-8."""
        total, counted = 0.0, 0
        for batch in self._validation:
            loss = self._model.loss(self._flat, *_torch(batch))
            total += float(loss) * len(batch.targets)
            counted += len(batch.targets)
        if not counted:
            return {"val_loss": float("nan")}
        nats = total / counted
        self._text_bytes = self._text_bytes or text_bytes(self._tokenizer, self._validation)
        return {"val_loss": nats, "val_bits_per_byte": total / math.log(2) / self._text_bytes}

    def heldout(self) -> dict[str, Any]:
        """`{"correct", "of", "kinds", "samples"}`; `of` is 0 where the data has no such questions."""
        return score(self._model, self._flat.detach(), self._questions, self._tokenizer)

    def _step(self, batch: Batch, rate: float, weight_decay: float, into: Flat | None = None) -> float:
        """One step of AdamW; returns the loss. `into` becomes the gradient."""
        if len(batch.targets) == 0:
            return 0.0
        if self._fresh:
            rate *= fresh_factor(self._steps)
        loss = self._model.loss(self._flat, *_torch(batch))
        loss.backward()  # type: ignore[no-untyped-call]
        assert self._flat.grad is not None
        torch.nn.utils.clip_grad_norm_([self._flat], GRADIENT_NORM)
        if into is not None:
            np.copyto(into, self._flat.grad.numpy())
        with torch.no_grad():
            self._flat.addcmul_(self._flat, self._decays, value=-rate * weight_decay)
        self._optimiser.param_groups[0]["lr"] = rate
        self._optimiser.step()
        self._flat.grad = None
        self._steps += 1
        return float(loss.detach())

    def _read_validation(self, manifest: DataManifest, folder: Path) -> list[Batch]:
        length = self._plan.stages[0].sample_tokens
        tokens = read_tokens(folder / "validation.tokens.bin", manifest)
        batches = windows(tokens, length, max(1, _VALIDATION_AT_ONCE // length))
        return list(spread(batches, MAX_VALIDATION_TOKENS))


@contextmanager
def _no_subnormals() -> Iterator[None]:
    """Subnormal numbers are a hundred times slower, and nothing in a step. For the steps alone: the thread's
    processor keeps the setting, and what is the same at all sites must not depend on it."""
    torch.set_flush_denormal(True)
    try:
        yield
    finally:
        torch.set_flush_denormal(False)


def keep_freed_memory() -> None:
    """Ask glibc to keep what is freed instead of giving it back to the system at once.

    A step frees and takes the same arrays of a megabyte again and again; each time the system has to fill
    their pages with zeros. Measured on 1.1 million parameters: 6 % more tokens per CPU-second.
    """
    if sys.platform != "linux":
        return
    m_trim_threshold, m_mmap_threshold, most = -1, -3, 1 << 30
    library = ctypes.CDLL(None)
    if hasattr(library, "mallopt"):
        library.mallopt(m_mmap_threshold, most)
        library.mallopt(m_trim_threshold, most)


def text_bytes(tokenizer: Tokenizer, batches: list[Batch]) -> int:
    """How long the text is, in UTF-8, that these batches ask for."""
    texts = [tokenizer.decode(batch.targets.tolist(), skip_special_tokens=False) for batch in batches]
    return sum(len(text.encode()) for text in texts)


def _torch(batch: Batch) -> tuple[Tensor, Tensor, Tensor | None]:
    rows = None if batch.rows is None else torch.from_numpy(batch.rows)
    return torch.from_numpy(batch.tokens), torch.from_numpy(batch.targets), rows


def spread(batches: list[Batch], tokens: int) -> Iterator[Batch]:
    """All batches, or evenly spread ones of about so many tokens."""
    total = sum(len(batch.targets) for batch in batches)
    every = max(1, round(total / tokens))
    yield from batches[::every]


def _decay_mask(plan: RunPlan) -> Tensor:
    """1 where the weight decays, which is in matrices; 0 in norms."""
    mask = torch.zeros(plan.parameters)
    for tensor in tensors(plan.shape, plan.vocab):
        if len(tensor.shape) > 1:
            mask[tensor.offset : tensor.offset + tensor.size] = 1
    return mask
