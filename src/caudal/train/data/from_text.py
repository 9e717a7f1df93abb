"""One text file as a run's data: it is long, and its end is kept for validation, as nanoGPT splits it.

The file is read twice and is never whole in memory: once to know its length and its characters, once more to
encode as much of it as is needed.
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator
from dataclasses import dataclass
from itertools import islice
from typing import Any

import numpy as np

from caudal.domain.errors import DataError
from caudal.domain.workload import TrainSpec
from caudal.train.data.making import USED_WHOLE_TOKENS, Maker
from caudal.train.data.own import TOKENIZER_CHARACTERS
from caudal.train.data.vocabulary import Tokens, Vocabulary
from caudal.train.sources.base import Part
from caudal.train.sources.text import chunks, pieces

VALIDATION_TOKENS = 1 << 20
"""At most: no evaluation reads more."""

_PIECES_AT_ONCE = 16
"""Encoded together, on all cores: an encoding holds a hundred bytes a token."""


@dataclass(frozen=True, slots=True)
class Scan:
    """What one reading of the whole text tells: its length and where its training part ends, in characters; which
    characters it has; and for some places (characters before, byte) to begin reading from."""

    characters: int
    split: int
    alphabet: frozenset[str]
    marks: tuple[tuple[int, int], ...]


def scan(part: Part, validation_fraction: float) -> Scan:
    """Read all of it. Raises DataError where it is empty or not text, anywhere."""
    characters, alphabet, marks, said = 0, set[str](), list[tuple[int, int]](), False
    for chunk in chunks(part):
        marks.append((characters, chunk.byte))
        characters += len(chunk.text)
        alphabet.update(chunk.text)
        said = said or not chunk.text.isspace()
    if not said:
        raise DataError("the file is empty", where=part.where, remedy="put text into it")
    split = int(characters * (1 - validation_fraction))
    return Scan(characters, split, frozenset(alphabet), tuple(marks))


def words_of(spec: TrainSpec, part: Part, seen: Scan) -> Iterator[str]:
    """What the run's tokenizer is to learn from: all characters, or the training part's beginning."""
    if spec.tokenizer.kind == "characters":
        yield from seen.alphabet
    else:
        yield "".join(_characters(part, seen, 0, min(seen.split, TOKENIZER_CHARACTERS)))


def make(spec: TrainSpec, part: Part, maker: Maker, seen: Scan) -> dict[str, Any]:
    """Make all stages and the validation; what the manifest says of them. Raises DataError where the text is too
    short, or a stage is to chat."""
    stages = [
        maker.stage(number, stage, max(stage.tokens, USED_WHOLE_TOKENS))
        for number, stage in enumerate(spec.stages)
    ]
    for tokens in _encoded(maker.vocabulary, _characters(part, seen, 0, seen.split)):
        for stage in stages:
            stage.add(tokens, None)
        if all(stage.full for stage in stages):
            break
    for stage in stages:
        stage.close(part.where)
    kept: list[Tokens] = [np.zeros(0, np.uint32)]
    for tokens in _encoded(maker.vocabulary, _characters(part, seen, seen.split, seen.characters)):
        kept.append(tokens)
        if sum(map(len, kept)) >= VALIDATION_TOKENS:
            break
    maker.validation(np.concatenate(kept)[:VALIDATION_TOKENS])
    return {"source": spec.data, "licence": "", "characters": seen.characters, "chat": False}


def _encoded(vocabulary: Vocabulary, text: Iterable[str]) -> Iterator[Tokens]:
    some = pieces(text)
    while batch := list(islice(some, _PIECES_AT_ONCE)):
        yield from vocabulary.encode(batch)


def _characters(part: Part, seen: Scan, start: int, stop: int) -> Iterator[str]:
    """The characters `start` ... `stop - 1`, in chunks."""
    at, byte = max((mark for mark in seen.marks if mark[0] <= start), default=(0, 0))
    for chunk in chunks(part, byte):
        if at >= stop:
            break
        text = chunk.text[max(0, start - at) : stop - at]
        at += len(chunk.text)
        if text:
            yield text
