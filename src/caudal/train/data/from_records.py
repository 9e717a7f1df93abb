"""A stream of texts or dialogues as a run's data: read once, as far as the stages need it, each record either
trained on or kept out for validation.

Knows nothing of formats or places.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from typing import Any

import numpy as np

from caudal.domain.errors import DataError
from caudal.domain.workload import TrainSpec
from caudal.train.data.keep_out import KeepOut
from caudal.train.data.making import USED_WHOLE_TOKENS, Maker
from caudal.train.data.vocabulary import Mask, Tokens, Vocabulary
from caudal.train.sources.base import Dialogue, Record, Text
from caudal.train.sources.corpus import Corpus, Kind
from caudal.train.sources.text import pieces

VALIDATION_TOKENS = 1 << 17
"""At most: no evaluation reads more."""

_CHARACTERS_AT_ONCE = 1 << 20
_RECORDS_AT_ONCE = 2_000
"""Encoded together, on all cores: an encoding holds a hundred bytes a token."""

Encoded = list[tuple[Tokens, Mask | None]]


def check_kind(spec: TrainSpec, kind: Kind) -> None:
    """Raises DataError where a stage is to chat and the data are texts."""
    chats = [stage.name for stage in spec.stages if stage.kind == "chat"]
    if chats and kind == "text":
        raise DataError(
            "texts have no dialogues for a chat stage",
            where=spec.data,
            why=f"stage {chats[0]} of run {spec.name} is of kind `chat`",
            remedy="leave the chat stage out, use records with `messages`, or `builtin:tinyworld`",
        )


def words_of(spec: TrainSpec, corpus: Corpus, kept_out: KeepOut) -> Iterator[str]:
    """What the run's tokenizer is to learn from: all that is said in records that are trained on, and for `characters`
    in the others too."""
    for record in corpus.records():
        if spec.tokenizer.kind == "characters" or record not in kept_out:
            yield from _words(record)


def make(spec: TrainSpec, corpus: Corpus, kind: Kind, maker: Maker, kept_out: KeepOut) -> dict[str, Any]:
    """Make all stages and the validation; what the manifest says of them. Raises DataError where the data cannot be
    read, or is too little."""
    stages = [
        maker.stage(number, stage, max(stage.tokens, USED_WHOLE_TOKENS))
        for number, stage in enumerate(spec.stages)
    ]
    validation, characters = Validation(), 0
    for some in _batches(corpus.records()):
        characters += sum(len(words) for record in some for words in _words(record))
        outside = [record in kept_out for record in some]
        training = [record for record, out in zip(some, outside, strict=True) if not out]
        if not validation.full:
            unseen = [record for record, out in zip(some, outside, strict=True) if out]
            validation.add(encode(maker.vocabulary, unseen))
        for tokens, mask in encode(maker.vocabulary, training):
            for stage in stages:
                if not stage.full:
                    stage.add(tokens, mask)
        if all(stage.full for stage in stages) and (validation.tokens or not kept_out.fraction):
            break
    for stage in stages:
        stage.close(spec.data)
    maker.validation(validation.of_at_least(spec.stages[0].sample_tokens + 1))
    return {"source": spec.data, "licence": "", "characters": characters, "chat": kind == "dialogues"}


class Validation:
    """The tokens of what is kept out, up to VALIDATION_TOKENS."""

    def __init__(self) -> None:
        self._parts: list[Tokens] = [np.zeros(0, np.uint32)]
        self.tokens = 0

    @property
    def full(self) -> bool:
        """Whether no more is needed."""
        return self.tokens >= VALIDATION_TOKENS

    def add(self, encoded: Encoded) -> None:
        """Take what was encoded."""
        self._parts.extend(tokens for tokens, _ in encoded)
        self.tokens += sum(len(tokens) for tokens, _ in encoded)

    def of_at_least(self, tokens: int) -> Tokens:
        """All of it; said again where it is shorter than one sample, so that there is something to evaluate."""
        whole = np.concatenate(self._parts)[:VALIDATION_TOKENS]
        return np.resize(whole, tokens) if 0 < len(whole) < tokens else whole


def encode(vocabulary: Vocabulary, records: Sequence[Record]) -> Encoded:
    """The records' tokens, in their order, and the mask of each dialogue's. A document comes with the token that
    stands between documents, and in pieces where it is long."""
    talks = iter(
        vocabulary.dialogues([record.messages for record in records if isinstance(record, Dialogue)])
    )
    cut = [list(pieces([record.text])) if isinstance(record, Text) else [] for record in records]
    words = iter(vocabulary.encode([piece for several in cut for piece in several]))
    found: Encoded = []
    for record, several in zip(records, cut, strict=True):
        if isinstance(record, Dialogue):
            found.append(next(talks))
            continue
        found.extend((next(words), None) for _ in several)
        if record.ends:
            found.append((np.array([vocabulary.end], np.uint32), None))
    return found


def _batches(records: Iterator[Record]) -> Iterator[list[Record]]:
    some: list[Record] = []
    characters = 0
    for record in records:
        some.append(record)
        characters += sum(map(len, _words(record)))
        if characters >= _CHARACTERS_AT_ONCE or len(some) >= _RECORDS_AT_ONCE:
            yield some
            some, characters = [], 0
    if some:
        yield some


def _words(record: Record) -> list[str]:
    if isinstance(record, Text):
        return [record.text]
    return [turn.content.strip() for turn in record.messages]
