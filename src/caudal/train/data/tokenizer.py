"""Tokenizers that Hugging Face and llama.cpp read alike: byte-level BPE, learnt or one token a character.

Both kinds are BPE over bytes (GPT-2's alphabet and word pattern). For `characters` the merges join just the
bytes of each character that the data has, so that every character is one token everywhere.
"""

from __future__ import annotations

from collections.abc import Iterable

from tokenizers import AddedToken, Tokenizer, decoders, models, pre_tokenizers, trainers

from caudal.domain.errors import DataError
from caudal.domain.workload import TokenizerSpec
from caudal.train.chat import ASSISTANT, END, USER


def special_tokens(chat: bool) -> list[str]:
    """`<|end|>` for all; who speaks for those that chat."""
    return [END, USER, ASSISTANT] if chat else [END]


def token_id(tokenizer: Tokenizer, name: str) -> int:
    """The id of a token that is there."""
    found = tokenizer.token_to_id(name)
    assert found is not None, name
    return found


def train_tokenizer(spec: TokenizerSpec, texts: Iterable[str], chat: bool) -> Tokenizer:
    """Learn the tokenizer that the spec asks for. The first ids are the special tokens, `<|end|>` is 0."""
    specials = special_tokens(chat)
    if spec.kind == "characters":
        return _characters(set().union(*texts), specials)
    if spec.entries < 256 + len(specials):
        raise DataError(
            f"a tokenizer of {spec.entries} entries cannot hold all bytes",
            where="tokenizer.entries",
            remedy=f"use at least {256 + len(specials)}",
        )
    tokenizer = _byte_level(Tokenizer(models.BPE()))
    trainer = trainers.BpeTrainer(
        vocab_size=spec.entries,
        special_tokens=specials,
        initial_alphabet=sorted(pre_tokenizers.ByteLevel.alphabet()),
        show_progress=False,
    )
    tokenizer.train_from_iterator(texts, trainer)
    return tokenizer


def _byte_level(tokenizer: Tokenizer) -> Tokenizer:
    tokenizer.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False, use_regex=True)
    tokenizer.decoder = decoders.ByteLevel()
    return tokenizer


def _characters(characters: set[str], specials: list[str]) -> Tokenizer:
    """A BPE whose merges build each character from its bytes, from left to right.

    A merge always starts with a character's first byte, so none can reach into the next character.
    """
    byte_level = pre_tokenizers.ByteLevel(add_prefix_space=False, use_regex=False)
    entries, pieces = dict.fromkeys(specials), dict[str, None]()
    merges: dict[tuple[str, str], None] = {}
    for character in sorted(characters):
        symbols = byte_level.pre_tokenize_str(character)[0][0]
        pieces.update(dict.fromkeys(symbols))
        for end in range(1, len(symbols)):
            merges[symbols[:end], symbols[end]] = None
            pieces[symbols[: end + 1]] = None
    ordered = sorted(merges, key=lambda pair: len(pair[0]))
    vocabulary = {piece: number for number, piece in enumerate([*entries, *pieces])}
    tokenizer = _byte_level(Tokenizer(models.BPE(vocab=vocabulary, merges=ordered)))
    tokenizer.add_special_tokens([AddedToken(name, special=True, normalized=False) for name in specials])
    return tokenizer
