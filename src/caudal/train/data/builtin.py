"""Built-in data: a run's samples of the tiny world, which is made as it is needed and never ends."""

from __future__ import annotations

import json
from collections.abc import Iterable, Iterator
from dataclasses import asdict
from itertools import islice
from random import Random
from typing import Any

import numpy as np

from caudal.domain.workload import TrainSpec
from caudal.train.chat import ASSISTANT, END, USER
from caudal.train.data import tinyworld
from caudal.train.data.making import Maker
from caudal.train.data.own import TOKENIZER_CHARACTERS
from caudal.train.data.vocabulary import Tokens, Vocabulary
from caudal.train.sources.base import Message

TINYWORLD = "builtin:tinyworld"
HELDOUT = "heldout.json"
HELDOUT_QUESTIONS = 200
VALIDATION_TOKENS = 24_576
"""Enough for a standard error below 0.01 nats."""

MAX_UNIQUE_TOKENS = 3_000_000
"""Built-in data is made up to this size and then repeated: more would only take time to make."""

_CHARACTERS_PER_TOKEN = 3.2
"""Of built-in text under 1,024 entries, a little low, so that enough is made (measured: 3.5)."""

_DOCUMENT_SHARE = 0.25
"""Documents among the texts of a text stage; the others are dialogues (half of the tokens each)."""

_AT_ONCE = 2_000
"""Texts or dialogues that are encoded together: the tokenizer works on all cores then."""


def texts_of(spec: TrainSpec) -> list[str]:
    """The texts of the run's text stages for a tokenizer of its own: as many as the longest of them needs; none
    where there is no such stage."""
    chat = any(stage.kind == "chat" for stage in spec.stages)
    return _characters_of(_mixed(spec.seed, chat), _longest(spec) * _CHARACTERS_PER_TOKEN)


def words_of(spec: TrainSpec, texts: list[str]) -> list[str]:
    """What the run's tokenizer is to learn from."""
    learn = texts or [_said(d) for d in islice(tinyworld.dialogues(spec.seed), 20_000)]
    if spec.tokenizer.kind == "characters":
        return learn
    return _characters_of(iter(learn), TOKENIZER_CHARACTERS)


def make(spec: TrainSpec, maker: Maker, texts: list[str]) -> dict[str, Any]:
    """Make all stages, the validation and the held-out questions; what the manifest says of them."""
    chat = any(stage.kind == "chat" for stage in spec.stages)
    if spec.base.path:
        stream = _stream_of(maker.vocabulary, spec.seed, chat, _longest(spec))
    else:
        stream = _encode(maker.vocabulary, texts)
    for number, stage in enumerate(spec.stages):
        made = maker.stage(number, stage, _wanted(stage.tokens), unanswered=True)
        if stage.kind == "text":
            made.add(stream, None)
        else:
            for tokens, mask in _dialogues(maker.vocabulary, spec.seed + 1000 + number):
                made.add(tokens, mask)
                if made.full:
                    break
        made.close(TINYWORLD)
    maker.validation(_unseen(maker.vocabulary, spec, chat)[:VALIDATION_TOKENS])
    if chat:
        asked = [asdict(exchange) for exchange in tinyworld.heldout(spec.seed, HELDOUT_QUESTIONS)]
        maker.file(HELDOUT, json.dumps(asked, ensure_ascii=False).encode())
    characters = sum(map(len, texts))
    return {"source": TINYWORLD, "licence": "CC0-1.0", "characters": characters, "chat": chat}


def messages_of(dialogue: tinyworld.Dialogue) -> tuple[Message, ...]:
    """A dialogue of the tiny world as turns."""
    pairs = ((Message("user", turn.question), Message("assistant", turn.answer)) for turn in dialogue)
    return tuple(message for pair in pairs for message in pair)


def _longest(spec: TrainSpec) -> int:
    """Tokens of the longest text stage, 0 where there is none."""
    return max((_wanted(stage.tokens) for stage in spec.stages if stage.kind == "text"), default=0)


def _wanted(tokens: int) -> int:
    return min(tokens, MAX_UNIQUE_TOKENS)


def _dialogues(vocabulary: Vocabulary, seed: int) -> Iterator[tuple[Tokens, Any]]:
    source = tinyworld.dialogues(seed)
    while True:
        yield from vocabulary.dialogues([messages_of(dialogue) for dialogue in islice(source, _AT_ONCE)])


def _unseen(vocabulary: Vocabulary, spec: TrainSpec, chat: bool) -> Tokens:
    if spec.base.path:
        return _stream_of(vocabulary, spec.seed + 500, chat, VALIDATION_TOKENS)
    texts = _characters_of(_mixed(spec.seed + 500, chat), VALIDATION_TOKENS * _CHARACTERS_PER_TOKEN)
    return _encode(vocabulary, texts)


def _stream_of(vocabulary: Vocabulary, seed: int, chat: bool, tokens: int) -> Tokens:
    """The same mixture for a vocabulary that has words of its own for who speaks and where a text ends."""
    random, documents, dialogues = Random(f"mix {seed}"), tinyworld.documents(seed), tinyworld.dialogues(seed)
    parts: list[Tokens] = [np.zeros(0, np.uint32)]
    total = 0
    while total < tokens:
        for _ in range(_AT_ONCE // 10):
            some: list[Tokens]
            if not chat or random.random() < _DOCUMENT_SHARE:
                some = [*vocabulary.encode([next(documents)]), np.array([vocabulary.end], np.uint32)]
            else:
                some = [vocabulary.dialogue(messages_of(next(dialogues)))[0]]
            parts.extend(some)
            total += sum(map(len, some))
    return np.concatenate(parts)


def _encode(vocabulary: Vocabulary, texts: list[str]) -> Tokens:
    """All texts one after the other. Some at a time: an encoding holds a hundred bytes a token."""
    parts: list[Tokens] = [np.zeros(0, np.uint32)]
    for start in range(0, len(texts), _AT_ONCE):
        parts.extend(vocabulary.encode(texts[start : start + _AT_ONCE]))
    return np.concatenate(parts)


def _said(dialogue: tinyworld.Dialogue) -> str:
    return "".join(f"{USER}{turn.question}{ASSISTANT}{turn.answer}{END}" for turn in dialogue)


def _mixed(seed: int, chat: bool) -> Iterator[str]:
    """Documents, and dialogues among them where the run is to chat, each with its end."""
    random, documents, dialogues = Random(f"mix {seed}"), tinyworld.documents(seed), tinyworld.dialogues(seed)
    while True:
        if not chat or random.random() < _DOCUMENT_SHARE:
            yield next(documents) + END
        else:
            yield _said(next(dialogues))


def _characters_of(texts: Iterable[str], characters: float) -> list[str]:
    """The first texts that have so many characters together."""
    taken, total = [], 0
    for text in texts:
        if total >= characters:
            break
        taken.append(text)
        total += len(text)
    return taken
