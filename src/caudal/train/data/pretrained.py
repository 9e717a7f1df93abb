"""The vocabulary of a model that a run begins from: its own tokenizer, and its own chat template.

Knows nothing of files: pretrained_files.py reads them.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import numpy as np
from tokenizers import Tokenizer

from caudal.domain.errors import DataError
from caudal.train.data.vocabulary import Mask, Tokens
from caudal.train.sources.base import Message

CHATML = (
    "{% for message in messages %}"
    "{{ '<|im_start|>' + message['role'] + '\n' + message['content'] + '<|im_end|>' + '\n' }}"
    "{% endfor %}"
    "{% if add_generation_prompt %}{{ '<|im_start|>assistant\n' }}{% endif %}"
)
"""For tokenizers that know its words but say no template."""

_PROBE = (Message("system", "Be brief, sir"), Message("user", "Hello"))


class PretrainedVocabulary:
    """A tokenizer of transformers', and the folder's files that say how it is used. `template` renders dialogues;
    without it there are none."""

    def __init__(
        self, loaded: Any, tokenizer: Tokenizer | None, beside: dict[str, bytes], end: int, where: str
    ) -> None:
        self._loaded, self._tokenizer, self._beside, self._where = loaded, tokenizer, beside, where
        ids = loaded.get_vocab().values() if tokenizer is None else tokenizer.get_vocab().values()
        self.size = max(ids) + 1
        self.end = end
        self._template = template_of(loaded)
        self._takes_system = self._template is None or self._system_is_said()

    def require_chat(self) -> None:
        """Raises DataError where the tokenizer knows no dialogues."""
        if self._template is None:
            raise DataError(
                "the base has no chat template, and the data or a stage of the run is dialogues",
                where=self._where,
                why="its tokenizer_config.json says none, and <|im_start|> is no token of its own",
                remedy="use an instruct model as base, put a chat_template.jinja into its folder, or train on texts",
            )

    def encode(self, texts: Sequence[str]) -> list[Tokens]:
        """As the protocol says."""
        if self._tokenizer is None:
            encoded = [self._loaded.encode(text, add_special_tokens=False) for text in texts]
            return [np.array(ids, dtype=np.uint32) for ids in encoded]
        some = self._tokenizer.encode_batch_fast(list(texts), add_special_tokens=False)
        return [np.array(encoding.ids, dtype=np.uint32) for encoding in some]

    def dialogue(self, messages: Sequence[Message]) -> tuple[Tokens, Mask]:
        """As the protocol says."""
        return self.dialogues([messages])[0]

    def dialogues(self, several: Sequence[Sequence[Message]]) -> list[tuple[Tokens, Mask]]:
        """As the protocol says. What counts is what the template adds to the conversation so far and its cue for
        the assistant. A template that says earlier answers otherwise than the last one has only those count that
        stand in the whole as they were said."""
        if not several:
            return []
        self.require_chat()
        rendered = [self._rendered(messages) for messages in several]
        if self._tokenizer is None:
            return [self._in_pieces(text, spans) for text, spans in rendered]
        # Not encode_batch_fast: that knows no offsets.
        some = self._tokenizer.encode_batch([text for text, _ in rendered], add_special_tokens=False)
        return [
            (np.array(encoding.ids, np.uint32), _mask(encoding.offsets, spans))
            for encoding, (_, spans) in zip(some, rendered, strict=True)
        ]

    def files(self) -> dict[str, bytes]:
        """As the protocol says: `tokenizer.json` where it has one, and what lay beside it."""
        return dict(self._beside)

    def _rendered(self, messages: Sequence[Message]) -> tuple[str, list[tuple[int, int]]]:
        """The conversation as one text, and from which character to which the assistant speaks."""
        turns = list(messages) if self._takes_system else _without_system(messages)
        whole = self._render(turns)
        spans = []
        for number, turn in enumerate(turns):
            if turn.role != "assistant":
                continue
            before = self._render(turns[:number], cue=True)
            after = whole if number == len(turns) - 1 else self._render(turns[: number + 1])
            if after.startswith(before) and whole.startswith(after):
                spans.append((len(before), len(after)))
        return whole, spans

    def _render(self, turns: Sequence[Message], cue: bool = False) -> str:
        if not turns and not cue:
            return ""
        words = [{"role": turn.role, "content": turn.content} for turn in turns]
        try:
            text: str = self._loaded.apply_chat_template(
                words, chat_template=self._template, tokenize=False, add_generation_prompt=cue
            )
        except (
            Exception
        ) as error:  # what the template raises is its own: jinja2's errors, and any of Python's
            raise DataError(
                "the base's chat template does not take a dialogue",
                where=self._where,
                why=f"{str(error)[:200]} (roles: {', '.join(turn.role for turn in turns)[:100]})",
                remedy="leave such dialogues out, or give the base another chat_template.jinja",
            ) from error
        return text

    def _in_pieces(self, text: str, spans: list[tuple[int, int]]) -> tuple[Tokens, Mask]:
        """For tokenizers that do not say where a token stands: what counts is encoded by itself."""
        at, pieces, counts = 0, [], []
        for start, stop in spans:
            pieces += [text[at:start], text[start:stop]]
            counts += [0, 1]
            at = stop
        tokens = self.encode([*pieces, text[at:]])
        masks = [np.full(len(t), count, np.uint8) for t, count in zip(tokens, [*counts, 0], strict=True)]
        return np.concatenate(tokens), np.concatenate(masks)

    def _system_is_said(self) -> bool:
        """Whether the template takes a system message: some refuse it, some leave it out."""
        try:
            return _PROBE[0].content in self._render(_PROBE)
        except DataError:
            return False


def _without_system(messages: Sequence[Message]) -> list[Message]:
    """What the system says, said by the user at the beginning of the next turn."""
    turns: list[Message] = []
    held = ""
    for turn in messages:
        if turn.role == "system":
            held += turn.content.strip() + "\n\n"
        elif held and turn.role == "user":
            turns.append(Message("user", held + turn.content))
            held = ""
        else:
            turns.append(turn)
    return turns


def _mask(offsets: Sequence[tuple[int, int]], spans: list[tuple[int, int]]) -> Mask:
    """1 for each token that stands within a span."""
    mask = np.zeros(len(offsets), np.uint8)
    places = np.array(offsets, dtype=np.int64).reshape(-1, 2)
    for start, stop in spans:
        mask[(places[:, 0] >= start) & (places[:, 1] <= stop) & (places[:, 1] > places[:, 0])] = 1
    return mask


def template_of(loaded: Any) -> str | None:
    """The template for plain conversations; ChatML where the tokenizer knows its words; else None."""
    said = loaded.chat_template
    if isinstance(said, dict):
        said = said.get("default")
    if said:
        return str(said)
    return CHATML if {"<|im_start|>", "<|im_end|>"} <= loaded.get_vocab().keys() else None
