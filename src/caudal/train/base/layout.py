"""What everybody has to know of a base without loading it: its files, and how what is trained lies in one vector.

Written once, below a run's `data/`, by the process that brought the base in. Needs no torch.
"""

from __future__ import annotations

import hashlib
import math
from collections.abc import Mapping
from dataclasses import dataclass, field
from importlib.util import find_spec

import msgspec

from caudal.domain.errors import NotFound, Stale, UsageError
from caudal.domain.workload import BaseSpec, TrainSpec
from caudal.ports import Blobs
from caudal.train.layout import Parameter

FOLDER = "base"
"""The base's files, below a run's `data/`: a Hugging Face folder, whatever it was brought in from."""

DETAILS = "base"
"""Where the layout stands in the data manifest's details."""


@dataclass(frozen=True, slots=True)
class Base:
    """A base as a run trains it. `names` and `shapes` are the trained parameters in the order of the flat vector,
    by the names that transformers (and peft) give them; matrices that are tied are there once.

    `whole` counts all parameters of the model, trained or not; `vocabulary` the rows of its embedding; `positions`
    how many tokens it can see at once (0: it does not say). `dtype` is what the base's own files hold: the
    exported model is written in it. `files`: name below `data/` → sha256.
    """

    source: str
    architecture: str
    method: str
    rank: int
    alpha: float
    targets: tuple[str, ...]
    names: tuple[str, ...]
    shapes: tuple[tuple[int, ...], ...]
    whole: int
    vocabulary: int
    positions: int
    dtype: str
    licence: str = ""
    files: dict[str, str] = field(default_factory=dict)

    @property
    def parameters(self) -> tuple[Parameter, ...]:
        """What is trained, with where each part starts in the flat vector."""
        found, offset = [], 0
        for name, shape in zip(self.names, self.shapes, strict=True):
            found.append(Parameter(name, tuple(shape), offset))
            offset += math.prod(shape)
        return tuple(found)

    @property
    def trained(self) -> int:
        """How many numbers are trained: the length of the flat vector."""
        return sum(math.prod(shape) for shape in self.shapes)

    @property
    def frozen(self) -> int:
        """How many parameters are computed with and not trained: the whole model beside its adapters."""
        return self.whole if self.method == "lora" else 0


def signature(spec: BaseSpec, files: Mapping[str, str]) -> str:
    """A hash of what is trained: the bytes of the base's files, and how. It is part of the plan, so that a site
    with another base, or another way of training it, is refused at the door."""
    words = [f"{name} {sha256}" for name, sha256 in sorted(files.items())]
    words += [spec.method]
    if spec.method == "lora":
        words += [str(spec.rank), repr(float(spec.alpha)), *sorted(spec.targets)]
    return hashlib.sha256("\n".join(words).encode()).hexdigest()


def _way(method: str, rank: int, alpha: float, targets: tuple[str, ...]) -> str:
    if method == "full":
        return "full"
    return f"lora of rank {rank}, alpha {alpha:g}, at {', '.join(sorted(targets)) or 'all linear layers'}"


def base_of(details: Mapping[str, object], spec: TrainSpec | None = None) -> Base | None:
    """The base in a data manifest's details; None where the run begins from nothing. With `spec` the two are
    compared: raises Stale, naming both, where the data was prepared for another way of training."""
    found = details.get(DETAILS)
    base = None if found is None else msgspec.convert(found, type=Base)
    if spec is None:
        return base
    asked = spec.base
    wanted = _way(asked.method, asked.rank, asked.alpha, asked.targets) if asked.path else "no base"
    there = _way(base.method, base.rank, base.alpha, base.targets) if base else "no base"
    if wanted != there:
        raise Stale(
            "the run was begun with another base",
            where=spec.name,
            why=f"its data says {there}, this file says {wanted}",
            remedy="give all sites the same file, or take another run name",
        )
    return base


def require_libraries() -> None:
    """Raises UsageError where what loads a base is not installed."""
    missing = [name for name in ("torch", "transformers", "peft") if find_spec(name) is None]
    if missing:
        raise UsageError(
            "a run that begins from a model needs more than is installed",
            where="base",
            why=f"{' and '.join(missing)} cannot be imported",
            remedy="pip install 'caudal[train,huggingface]' at every site",
        )


def _path(prefix: str) -> str:
    return f"{prefix}/data/base.json"


def begun(blobs: Blobs, prefix: str) -> Base | None:
    """The base that the run was begun with; None where nobody has brought it in yet."""
    try:
        return msgspec.json.decode(blobs.get(_path(prefix)), type=Base)
    except NotFound:
        return None


def keep(blobs: Blobs, prefix: str, base: Base) -> None:
    """Write it down, after the files and the first state: that it is there says that they are."""
    blobs.put(_path(prefix), msgspec.json.encode(base))
