"""A vocabulary of the run's own: a tokenizer that it learns, and the template of chat.py."""

from __future__ import annotations

from collections.abc import Iterable, Sequence

import numpy as np
from tokenizers import Tokenizer

from caudal.domain.workload import TokenizerSpec
from caudal.train.chat import ASSISTANT, END, USER
from caudal.train.data.tokenizer import token_id, train_tokenizer
from caudal.train.data.vocabulary import Mask, Tokens
from caudal.train.sources.base import Message

TOKENIZER_CHARACTERS = 2_000_000
"""The BPE learns from the first part of the text: more changes nothing and takes seconds."""


class OwnVocabulary:
    """A tokenizer that the run has learnt, with the template of chat.py. System messages are left out, as that
    template does: a model from nothing would not know what to do with them."""

    def __init__(self, tokenizer: Tokenizer) -> None:
        self.tokenizer = tokenizer
        self.size: int = tokenizer.get_vocab_size()
        self.end = token_id(tokenizer, END)

    def encode(self, texts: Sequence[str]) -> list[Tokens]:
        """As the protocol says."""
        some = self.tokenizer.encode_batch_fast(list(texts), add_special_tokens=False)
        return [np.array(encoding.ids, dtype=np.uint32) for encoding in some]

    def dialogue(self, messages: Sequence[Message]) -> tuple[Tokens, Mask]:
        """As the protocol says."""
        return self.dialogues([messages])[0]

    def dialogues(self, several: Sequence[Sequence[Message]]) -> list[tuple[Tokens, Mask]]:
        """As the protocol says. The run's tokenizer must have been learnt for chat."""
        if not several:
            return []
        turns = [[turn for turn in messages if turn.role in _SPEAKERS] for messages in several]
        words = iter(self.encode([turn.content.strip() for messages in turns for turn in messages]))
        heads = {role: token_id(self.tokenizer, name) for role, name in _SPEAKERS.items()}
        found = []
        for messages in turns:
            tokens: list[Tokens] = [np.zeros(0, np.uint32)]
            mask: list[Mask] = [np.zeros(0, np.uint8)]
            for turn in messages:
                said, ends = next(words), turn.role == "assistant"
                tokens += [
                    np.array([heads[turn.role]], np.uint32),
                    said,
                    np.array([self.end] * ends, np.uint32),
                ]
                mask += [np.zeros(1, np.uint8), np.full(len(said) + ends, ends, np.uint8)]
            found.append((np.concatenate(tokens), np.concatenate(mask)))
        return found

    def files(self) -> dict[str, bytes]:
        """As the protocol says."""
        return {"tokenizer.json": self.tokenizer.to_str(pretty=True).encode()}


_SPEAKERS = {"user": USER, "assistant": ASSISTANT}


def learn(spec: TokenizerSpec, words: Iterable[str], chat: bool) -> OwnVocabulary:
    """A vocabulary for these words: a BPE reads the first TOKENIZER_CHARACTERS of them, `characters` takes all.
    `chat` says whether it is to know dialogues. Raises DataError where the spec has no room for all bytes."""
    if spec.kind == "characters":
        seen: set[str] = set()
        for text in words:
            seen.update(text)
        return OwnVocabulary(train_tokenizer(spec, seen, chat))
    return OwnVocabulary(train_tokenizer(spec, _first(words), chat))


def _first(words: Iterable[str]) -> list[str]:
    """The first TOKENIZER_CHARACTERS characters, as they came."""
    taken: list[str] = []
    room = TOKENIZER_CHARACTERS
    for text in words:
        taken.append(text[:room])
        room -= len(taken[-1])
        if room <= 0:
            break
    return taken
