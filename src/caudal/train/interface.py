"""What the two halves of training ask of each other: the protocol moves bytes and ids, the inner side computes.

The protocol side (coordinator, site, ledger) sees the model as one flat float32 vector and the data as
numbered samples. It knows nothing about layers, tokens' meaning or torch.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from typing import Any, Literal, NamedTuple, Protocol, runtime_checkable

import numpy as np
from numpy.typing import NDArray

from caudal.domain.workload import ModelShape, OuterSpec, TrainSpec
from caudal.train.base.layout import base_of, signature
from caudal.train.fragments import Cuts, cut
from caudal.train.layout import Parameter, tensors

Flat = NDArray[np.float32]
"""All parameters one after the other, in the order of `layout.tensors`."""


class IdRange(NamedTuple):
    """Global sample ids `start` ... `stop - 1`.

    Ids run from 0 to total - 1 over all stages: stage k owns a contiguous span. Within a stage, id i (from
    0) is a position in an endless sequence of seeded permutations of the stage's n samples: pass i // n,
    position i % n of that pass's permutation.
    """

    start: int
    stop: int

    @property
    def size(self) -> int:
        """How many ids."""
        return self.stop - self.start


@dataclass(frozen=True, slots=True)
class StageData:
    """One stage of the prepared data: how many samples of `sample_tokens` there are to draw from."""

    name: str
    kind: Literal["text", "chat"]
    samples: int
    sample_tokens: int
    files: dict[str, str] = field(default_factory=dict)  # file name below data/ → sha256


@dataclass(frozen=True, slots=True)
class DataManifest:
    """What `data.prepare` wrote, last and only once: `data/manifest.json`.

    `files` are all other files below data/ with their sha256 (tokenizer, validation, held-out prompts);
    `details` is the data side's own and is carried along unread.
    """

    vocab: int
    stages: tuple[StageData, ...]
    files: dict[str, str] = field(default_factory=dict)
    details: dict[str, Any] = field(default_factory=dict)


@dataclass(frozen=True, slots=True)
class Stage:
    """One stage of a run, in ids: it owns `first_id` ... `first_id + ids - 1`, drawn from `samples`."""

    name: str
    kind: Literal["text", "chat"]
    first_id: int
    ids: int
    samples: int
    batch: int
    sample_tokens: int
    learning_rate: float
    final_learning_rate: float
    warmup_fraction: float
    weight_decay: float

    @property
    def end_id(self) -> int:
        """The first id after the stage."""
        return self.first_id + self.ids


@dataclass(frozen=True, slots=True)
class RunPlan:
    """A run in numbers: the same at the coordinator and at every site, or they must not train together."""

    run: str
    seed: int
    vocab: int
    shape: ModelShape
    parameters: int
    outer: OuterSpec
    stages: tuple[Stage, ...]
    fragments: Cuts
    model: str = ""  # a hash of what is trained, where it is not a model of `shape`
    made_of: dict[str, str] = field(default_factory=dict)
    """What else has to be the same: the sha256 of the tokenizer and of each data file, a script's dtype."""
    undecayed: Cuts = ()
    """Where weights do not decay, from number to number: norms and biases."""
    frozen: int = 0  # parameters that are computed with beside those that are trained

    @property
    def total_ids(self) -> int:
        """How many samples the run trains, over all stages."""
        return self.stages[-1].end_id

    @property
    def total_tokens(self) -> int:
        """How many positions the run trains, over all stages."""
        return sum(stage.ids * stage.sample_tokens for stage in self.stages)

    def stage_of(self, sample_id: int) -> int:
        """The index of the stage that owns the id."""
        for index, stage in enumerate(self.stages):
            if stage.first_id <= sample_id < stage.end_id:
                return index
        raise AssertionError(f"no stage owns id {sample_id}")


def trained_parameters(shape: ModelShape, manifest: DataManifest) -> tuple[Parameter, ...]:
    """What is trained, in the order of the flat vector: as the base's layout says, or the model's shape."""
    base = base_of(manifest.details)
    return base.parameters if base else tensors(shape, manifest.vocab)


def plan(spec: TrainSpec, manifest: DataManifest) -> RunPlan:
    """The run that the spec asks for on this data: a stage has ceil(tokens / sample_tokens) ids. Raises Stale
    where the data was prepared with another base."""
    assert len(spec.stages) == len(manifest.stages), "the data was prepared for another spec"
    stages: list[Stage] = []
    first_id = 0
    for asked, data in zip(spec.stages, manifest.stages, strict=True):
        ids = math.ceil(asked.tokens / asked.sample_tokens)
        stages.append(
            Stage(
                name=asked.name,
                kind=asked.kind,
                first_id=first_id,
                ids=ids,
                samples=data.samples,
                batch=asked.batch,
                sample_tokens=asked.sample_tokens,
                learning_rate=asked.learning_rate,
                final_learning_rate=asked.final_learning_rate,
                warmup_fraction=asked.warmup_fraction,
                weight_decay=asked.weight_decay,
            )
        )
        first_id += ids
    stage_files = (data.files for data in manifest.stages)
    base = base_of(manifest.details, spec)
    parts = trained_parameters(spec.model, manifest)
    size = parts[-1].offset + parts[-1].size
    return RunPlan(
        run=spec.name,
        seed=spec.seed,
        vocab=manifest.vocab,
        shape=spec.model,
        parameters=size,
        outer=spec.outer,
        stages=tuple(stages),
        fragments=cut(size, [part.offset for part in parts], spec.outer.fragments),
        model=signature(spec.base, base.files) if base else "",
        frozen=base.frozen if base else 0,
        undecayed=tuple((part.offset, part.offset + part.size) for part in parts if len(part.shape) == 1),
        made_of={
            name: sha for files in (manifest.files, *stage_files) for name, sha in sorted(files.items())
        },
    )


@dataclass(frozen=True, slots=True)
class InnerResult:
    """What the inner steps of one round did.

    `params` are the parameters after them; `tokens` the positions trained; `loss` the mean nats per
    predicted token; `stopped` says that `between` was obeyed: all of it is of the `steps` taken until then.
    `gradient` is there where that was asked for.
    """

    params: Flat
    tokens: int
    loss: float
    steps: int
    seconds: float
    stopped: bool = False
    gradient: Flat | None = None


@dataclass(frozen=True, slots=True)
class Moments:
    """AdamW's moments after `steps` steps, by parameter. `fresh`: the rate rises with the steps, as for a site that
    joined late."""

    first: Flat
    second: Flat
    steps: int
    fresh: bool


@dataclass(frozen=True, slots=True)
class Devices:
    """What an inner side computes on: `count` devices that call themselves `name`, in `precision` (`bfloat16`,
    `tf32`, `float32`, ...)."""

    name: str
    count: int
    precision: str


def devices_of(inner: Inner) -> Devices | None:
    """What it computes on, where it is an accelerator that it can name: an attribute that an inner side may
    have."""
    found = getattr(inner, "devices", None)
    return found if isinstance(found, Devices) else None


Between = Callable[[int], bool]
"""Called with its number before every inner step, in the thread that computes: whether to stop. It may call
`Inner.add` meanwhile: that is how what other sites learnt arrives while the steps go on."""


class Inner(Protocol):
    """One copy of the model and its optimiser, on one site. Called from one thread."""

    size: int
    """How many parameters."""

    def load(self, state: Flat) -> None:
        """Take over the parameters; the inner optimiser's moments stay as they are. Copies `state`."""
        ...

    def forget(self) -> None:
        """Begin again as one that has just joined: without moments, from the next `load`."""
        ...

    def add(self, start: int, change: Flat) -> None:
        """Add `change` to the parameters from number `start` on, in float32; the moments stay."""
        ...

    def run(
        self,
        stage: int,
        ids: Sequence[IdRange],
        progress: tuple[float, float],
        between: Between,
        rate: float = 1.0,
    ) -> InnerResult:
        """Take inner steps over exactly these samples, in batches of the stage's `batch` (the last may be
        smaller), the learning rate read at the stage's progress going from progress[0] to progress[1] and
        multiplied by `rate`."""
        ...

    def gradient(
        self,
        stage: int,
        ids: Sequence[IdRange],
        progress: tuple[float, float],
        between: Between,
        rate: float = 1.0,
    ) -> InnerResult:
        """As `run`, over one batch or less, with the gradient that the step was made of: the mean over the samples,
        shortened as the step's."""
        ...

    def evaluate(self) -> dict[str, float]:
        """At least `val_loss`, in nats per token."""
        ...

    def heldout(self) -> dict[str, Any]:
        """`{"correct": int, "of": int, "samples": [...]}`; `of` is 0 where the data has no such questions."""
        ...


@runtime_checkable
class Recalling(Protocol):
    """What an inner side may do as well: go back to moments that it had."""

    def moments(self) -> Moments:
        """A copy of the optimiser's moments as they are."""
        ...

    def recall(self, moments: Moments) -> None:
        """Have these moments from now on. Copies them; the parameters stay."""
        ...


@runtime_checkable
class Closing(Protocol):
    """What an inner side may have to end: other processes."""

    def close(self) -> None:
        """End them in order. Nothing is asked of it afterwards."""
        ...
