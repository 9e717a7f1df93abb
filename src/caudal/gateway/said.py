"""What a stream has said so far: the events' bytes, kept cheaply while it runs, and what they mean once that
is needed. Knows OpenAI's chunks, nothing of replicas.
"""

from __future__ import annotations

import zlib
from collections.abc import Iterator
from dataclasses import dataclass, field
from typing import Any

import msgspec

from caudal.gateway.events import NotEvents

MAX_BYTES = 4 * 1024 * 1024
"""Of events; a stream that said more is not rescued any more (some 16,000 tokens of llama.cpp's)."""

PACK_BYTES = 64 * 1024
"""Above this what was kept is packed: events are alike to the letter, and take about a twentieth then."""

Key = tuple[int, str]
"""A choice's index and the path of one text in its deltas: `content`, `tool_calls.0.arguments`."""


class SaidLog:
    """The bytes of the events that went by. Adding a chunk costs an append and an addition."""

    def __init__(self, limit: int = MAX_BYTES) -> None:
        self.too_long = False
        self._limit = limit
        self._total = 0
        self._events = 0
        self._fresh: list[bytes] = []
        self._fresh_bytes = 0
        self._packed: list[bytes] = []

    def add(self, events: bytes) -> None:
        """Whole events, as the engine sent them."""
        if not events:
            return
        self._fresh.append(events)
        self._fresh_bytes += len(events)
        if self._fresh_bytes > PACK_BYTES:
            self._pack()

    def count(self) -> int:
        """How many events were said, those without a choice's text included."""
        return self._events + sum(part.count(b"data:") for part in self._fresh)

    def bytes(self) -> bytes:
        """All of it. Not to be asked of one that is `too_long`."""
        assert not self.too_long
        return b"".join([*(zlib.decompress(part) for part in self._packed), *self._fresh])

    def _pack(self) -> None:
        block = b"".join(self._fresh)
        self._fresh.clear()
        self._fresh_bytes = 0
        self._events += block.count(b"data:")
        self._total += len(block)
        if self._total > self._limit:
            self.too_long = True
            self._packed.clear()
        else:
            self._packed.append(zlib.compress(block, 1))


def decoded(events: bytes) -> Iterator[dict[str, Any] | None]:
    """The events' JSON objects; None for [DONE]. llama.cpp begins some streams with `null`, which says nothing.
    Raises NotEvents."""
    for line in events.splitlines():
        if not line.startswith(b"data:"):
            continue
        payload = line[5:].strip()
        if payload == b"[DONE]":
            yield None
            continue
        try:
            event = msgspec.json.decode(payload)
        except (msgspec.DecodeError, UnicodeDecodeError, RecursionError):
            raise NotEvents("an event that is not JSON") from None
        if event is None:
            continue
        if not isinstance(event, dict):
            raise NotEvents("an event that is not a JSON object")
        yield event


def texts(choice: dict[str, Any]) -> Iterator[tuple[str, str, dict[str, Any], str]]:
    """The texts of one choice of a chunk: (path, text, the object that holds it, its name there)."""
    if isinstance(choice.get("text"), str):
        yield "text", choice["text"], choice, "text"
    delta = choice.get("delta")
    if not isinstance(delta, dict):
        return
    for name, value in delta.items():
        if name != "role" and isinstance(value, str):
            yield name, value, delta, name
    calls = delta.get("tool_calls")
    for call in calls if isinstance(calls, list) else ():
        function = call.get("function") or {}
        for name in ("name", "arguments"):
            if isinstance(function.get(name), str):
                yield f"tool_calls.{call.get('index', 0)}.{name}", function[name], function, name


@dataclass(slots=True)
class Said:
    """What chunks meant together. `pieces` are the texts as they came: mostly one token each. `token_ids`
    are the first choice's, where every piece came with its own; `envelope` is what all chunks share."""

    envelope: dict[str, Any] = field(default_factory=dict)
    pieces: dict[Key, list[str]] = field(default_factory=dict)
    finished: dict[int, str] = field(default_factory=dict)
    indexes: set[int] = field(default_factory=set)
    token_ids: list[int] | None = field(default_factory=list)
    usage: dict[str, Any] | None = None
    done: bool = False
    failed: bool = False  # the engine itself said that it had failed, and the client has read it

    def add_all(self, events: bytes) -> None:
        """Whole events. Raises NotEvents."""
        for event in decoded(events):
            if event is None:
                self.done = True
            else:
                self.add(event)

    def add(self, event: dict[str, Any]) -> None:
        """One chunk. Raises NotEvents."""
        try:
            self._add(event)
        except (AttributeError, KeyError, TypeError, ValueError):
            raise NotEvents("an event that is not a chunk of an answer") from None

    def text(self, index: int, path: str) -> str:
        """All of one text."""
        return "".join(self.pieces.get((index, path), ()))

    @property
    def tokens(self) -> int:
        """About how many: a token a piece."""
        return sum(len(pieces) for pieces in self.pieces.values())

    @property
    def complete(self) -> bool:
        """Whether every choice that was begun is finished."""
        return bool(self.indexes) and self.indexes <= self.finished.keys()

    def _add(self, event: dict[str, Any]) -> None:
        if "error" in event:
            self.failed = True
            return
        if not self.envelope:
            self.envelope = {k: v for k, v in event.items() if k not in ("choices", "usage", "timings")}
        self.usage = event.get("usage") or self.usage
        for choice in event.get("choices") or ():
            index = choice.get("index", 0)
            self.indexes.add(index)
            for path, text, _, _ in texts(choice):
                if text:
                    self.pieces.setdefault((index, path), []).append(text)
                    self._note_ids(choice, text)
            if choice.get("finish_reason"):
                self.finished[index] = choice["finish_reason"]

    def _note_ids(self, choice: dict[str, Any], text: str) -> None:
        """llama.cpp gives an `id` with each log probability."""
        logprobs = choice.get("logprobs")
        rows = logprobs.get("content") if isinstance(logprobs, dict) else None
        if self.token_ids is None or not rows or "".join(row["token"] for row in rows) != text:
            self.token_ids = None  # none were asked for, or the text that was held back came without its own
            return
        ids = [row.get("id") for row in rows]
        if None in ids:
            self.token_ids = None
        else:
            self.token_ids.extend(ids)
