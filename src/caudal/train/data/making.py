"""A run's data on its way into the object store: each stage's samples, the validation, and then the manifest.

Stages take what they are given until they are full. Knows nothing of where it comes from.
"""

from __future__ import annotations

import hashlib
from pathlib import Path
from typing import Any, Protocol

import numpy as np

from caudal.domain.errors import DataError
from caudal.domain.workload import StageSpec
from caudal.ports import Blobs
from caudal.train.data.pack import Packer
from caudal.train.data.shards import ShardWriter
from caudal.train.data.vocabulary import Mask, Tokens, Vocabulary
from caudal.train.interface import DataManifest, StageData

SHARD_BYTES = 256 << 20

VALIDATION = "validation.tokens.bin"

USED_WHOLE_TOKENS = 1 << 22
"""A stage may draw from so many tokens of a user's data even where it needs fewer: no more than seconds to make,
and what is sorted is not seen from its beginning only."""


class StageMaker(Protocol):
    """One stage that is being made."""

    @property
    def full(self) -> bool:
        """Whether it has all that it needs."""
        ...

    def add(self, tokens: Tokens, mask: Mask | None) -> None:
        """Take a document, or a piece of one, or (with a mask) a dialogue."""
        ...

    def close(self, where: str) -> None:
        """All is there. Raises DataError, at `where`, where it is too little for one sample."""
        ...


class Maker:
    """All files of a run's data. `folder` is a place for shards until the store has them."""

    def __init__(
        self, blobs: Blobs, prefix: str, vocabulary: Vocabulary, folder: Path, shard_bytes: int
    ) -> None:
        self._blobs, self._prefix, self._folder, self._shard_bytes = blobs, prefix, folder, shard_bytes
        self.vocabulary = vocabulary
        self.dtype = np.dtype(np.uint16 if vocabulary.size <= 1 << 16 else np.uint32).newbyteorder("<")
        self.files: dict[str, str] = {}
        self.stages: list[StageData] = []
        for name, data in vocabulary.files().items():
            self.file(name, data)

    def file(self, name: str, data: bytes) -> None:
        """Keep a file beside the samples."""
        self._blobs.put(f"{self._prefix}/data/{name}", data)
        self.files[name] = hashlib.sha256(data).hexdigest()

    def validation(self, tokens: Tokens) -> None:
        """Keep the text that is never trained on."""
        self.file(VALIDATION, tokens.astype(self.dtype).tobytes())

    def writer(self, stem: str, dtype: np.dtype[Any]) -> ShardWriter:
        """An array that is kept below `data/` as it comes."""
        return ShardWriter(
            self._folder,
            stem,
            dtype,
            self._shard_bytes,
            lambda name, file: self._blobs.put_file(f"{self._prefix}/data/{name}", file),
        )

    def stage(self, number: int, stage: StageSpec, tokens: int, *, unanswered: bool = False) -> StageMaker:
        """Begin the stage of this number, which is full with about so many tokens. A chat stage leaves out dialogues
        of which a sample holds no word of the assistant's, unless it is to take the `unanswered` too."""
        if stage.kind == "chat":
            return _ChatStage(self, number, stage, -(-tokens // stage.sample_tokens), unanswered)
        return _TextStage(self, number, stage, tokens + 2 * stage.sample_tokens)

    def manifest(self, details: dict[str, Any]) -> DataManifest:
        """All of it in words. Stages stand in the order in which they were closed."""
        return DataManifest(
            vocab=self.vocabulary.size,
            stages=tuple(self.stages),
            files=self.files,
            details={"dtype": self.dtype.name, **details},
        )


class _TextStage:
    """A stage that reads a stream of tokens."""

    def __init__(self, maker: Maker, number: int, stage: StageSpec, most: int) -> None:
        self._maker, self._stage, self._most = maker, stage, most
        self._writer = maker.writer(f"stage-{number}.tokens", maker.dtype)

    @property
    def full(self) -> bool:
        return self._writer.written >= self._most

    def add(self, tokens: Tokens, mask: Mask | None) -> None:
        """What the assistant says does not count for more than the rest: all does."""
        self._writer.add(tokens[: self._most - self._writer.written])

    def close(self, where: str) -> None:
        """A pass starts somewhere in the first sample, so it has one sample less than there are."""
        have, length = self._writer.written, self._stage.sample_tokens
        if have // length < 2:
            self._writer.abandon()
            raise DataError(
                "the text is too short to train on",
                where=where,
                why=f"it has {have} tokens; a sample has {length}",
                remedy="use more text, or a smaller `sample_tokens`",
            )
        files = self._writer.close()
        self._maker.stages.append(
            StageData(self._stage.name, self._stage.kind, have // length - 1, length, files)
        )


class _ChatStage:
    """A stage of whole dialogues: [samples, sample_tokens + 1] tokens and the mask of what counts."""

    def __init__(self, maker: Maker, number: int, stage: StageSpec, samples: int, unanswered: bool) -> None:
        self._maker, self._stage, self._most, self._unanswered = maker, stage, samples, unanswered
        self._packer = Packer(stage.sample_tokens + 1, maker.vocabulary.end)
        self._tokens = maker.writer(f"stage-{number}.tokens", maker.dtype)
        self._mask = maker.writer(f"stage-{number}.mask", np.dtype(np.uint8))
        self._samples = self._left_out = 0

    @property
    def full(self) -> bool:
        return self._samples >= self._most

    def add(self, tokens: Tokens, mask: Mask | None) -> None:
        assert mask is not None, "a chat stage is made of dialogues"
        if self._unanswered or mask[: self._stage.sample_tokens + 1].any():
            self._packer.add(tokens, mask)
            self._take()
        else:
            self._left_out += 1

    def close(self, where: str) -> None:
        if not self.full:
            self._packer.flush()
            self._take()
        if not self._samples:
            self._tokens.abandon()
            self._mask.abandon()
            raise DataError(
                "no dialogue has an answer to train on",
                where=where,
                why=f"of {self._left_out} dialogues none has a word of the assistant's within "
                f"{self._stage.sample_tokens} tokens",
                remedy="use a larger `sample_tokens`, or data with turns of the role `assistant`",
            )
        files = {**self._tokens.close(), **self._mask.close()}
        self._maker.stages.append(
            StageData(self._stage.name, self._stage.kind, self._samples, self._stage.sample_tokens, files)
        )

    def _take(self) -> None:
        for tokens, mask in self._packer.take()[: self._most - self._samples]:
            self._tokens.add(tokens)
            self._mask.add(mask)
            self._samples += 1
