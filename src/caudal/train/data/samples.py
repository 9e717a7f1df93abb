"""A run's samples by id, read from memory-mapped files: which id is which piece of the data.

An id of a stage is a position in an endless sequence of seeded permutations of the stage's samples: pass
id // n, place id % n. Every pass of a text stage also starts at another offset, so that a text that is read
twice is not cut at the same places. The same seed gives the same samples on every machine. Knows nothing of
who trains them.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from functools import lru_cache
from pathlib import Path

import numpy as np
from numpy.typing import NDArray

from caudal.train.data.shards import Shards, named
from caudal.train.interface import DataManifest, StageData

Tokens = NDArray[np.int64]


@lru_cache(maxsize=4)
def permutation(seed: int, stage: int, number: int, samples: int) -> NDArray[np.int64]:
    """The order of a stage's samples in its pass `number`: a bijection of 0 ... samples - 1."""
    random = np.random.Generator(np.random.PCG64([seed, stage, number]))
    return random.permutation(samples)


def place(seed: int, stage: int, samples: int, position: int) -> tuple[int, int]:
    """(pass, sample) of the stage's id `position`, which counts from 0 within the stage."""
    number, at = divmod(position, samples)
    return number, int(permutation(seed, stage, number, samples)[at])


@dataclass(frozen=True, slots=True)
class Batch:
    """Samples side by side. `tokens` is [samples, length], `targets` has the next token of every position
    that counts, and `rows` which of the flattened positions those are (None: all)."""

    tokens: Tokens
    targets: Tokens
    rows: Tokens | None


class Samples:
    """One stage's samples, in as many files as the manifest names."""

    def __init__(self, folder: Path, manifest: DataManifest, stage: int, seed: int) -> None:
        self._stage, self._seed = stage, seed
        self._data: StageData = manifest.stages[stage]
        dtype = np.dtype(manifest.details["dtype"]).newbyteorder("<")
        files = self._data.files
        tokens, masks = (named(files, f"stage-{stage}.{what}") for what in ("tokens", "mask"))
        self._tokens = Shards([folder / name for name in tokens], dtype)
        self._mask = Shards([folder / name for name in masks], np.dtype(np.uint8))
        length = self._data.sample_tokens
        self._offsets = np.random.Generator(np.random.PCG64([seed, stage])).integers(0, length, 1024)

    def batch(self, positions: Sequence[int]) -> Batch:
        """The samples at these positions of the stage."""
        length = self._data.sample_tokens
        windows, masks = [], []
        for position in positions:
            number, sample = place(self._seed, self._stage, self._data.samples, position)
            if self._data.kind == "text":
                start = sample * length + int(self._offsets[number % len(self._offsets)])
            else:
                start = sample * (length + 1)
                masks.append(self._mask.read(start, start + length + 1))
            windows.append(self._tokens.read(start, start + length + 1))
        both = np.stack(windows).astype(np.int64)
        targets = both[:, 1:].reshape(-1)
        rows = None
        if masks:
            rows = np.flatnonzero(np.stack(masks)[:, 1:])
            targets = targets[rows]
        return Batch(np.ascontiguousarray(both[:, :-1]), np.ascontiguousarray(targets), rows)


def windows(tokens: Tokens, length: int, at_once: int) -> list[Batch]:
    """A stream cut into samples that follow each other, for validation; the rest at the end is left out."""
    count = (len(tokens) - 1) // length
    inputs = tokens[: count * length].reshape(count, length)
    targets = tokens[1 : count * length + 1].reshape(count, length)
    return [
        Batch(inputs[i : i + at_once], targets[i : i + at_once].reshape(-1), None)
        for i in range(0, count, at_once)
    ]


def read_tokens(path: Path, manifest: DataManifest) -> Tokens:
    """A whole token file."""
    dtype = np.dtype(manifest.details["dtype"]).newbyteorder("<")
    return np.fromfile(path, dtype=dtype).astype(np.int64)
