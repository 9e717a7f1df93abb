"""A second run of the same request, without what the client has from the first. Knows chunks only."""

from __future__ import annotations

from typing import Any

from caudal.gateway.continuation import Impossible
from caudal.gateway.events import NotEvents
from caudal.gateway.said import Key, Said, texts

DIFFERS = "the second run of it says something else than the first had said"


class Repeated:
    """Drops what was said, text by text, and checks that it is said again."""

    def __init__(self, said: Said) -> None:
        self._left: dict[Key, str] = {key: "".join(pieces) for key, pieces in said.pieces.items()}
        self._begun = frozenset(said.indexes)
        self._calls = {key for key in said.pieces if key[1].startswith("tool_calls.")}
        self._finished = dict(said.finished)

    def rest(self, choice: dict[str, Any]) -> dict[str, Any] | None:
        """What is new in a chunk's choice; None where nothing is. Raises Impossible, NotEvents."""
        try:
            return self._rest(choice)
        except (AttributeError, KeyError, TypeError):
            raise NotEvents("an event that is not a chunk of an answer") from None

    def _rest(self, choice: dict[str, Any]) -> dict[str, Any] | None:
        index = choice.get("index", 0)
        known = index in self._begun
        new = not known
        for path, text, holder, name in list(texts(choice)):
            fresh = self._fresh((index, path), text)
            new |= bool(fresh)
            if fresh:
                holder[name] = fresh
            elif text or known:
                holder.pop(name)
        delta = choice.get("delta")
        if isinstance(delta, dict) and known:
            delta.pop("role", None)
            if delta.get("content", "") is None:
                delta.pop("content")
            self._drop_known_calls(index, delta)
        elif "delta" not in choice:
            choice.setdefault("text", "")
        finish = choice.get("finish_reason")
        if finish:
            if any(left for (of, _), left in self._left.items() if of == index):
                raise Impossible(DIFFERS)
            new |= index not in self._finished
        return choice if new else None

    def _fresh(self, key: Key, text: str) -> str:
        left = self._left.get(key, "")
        common = min(len(left), len(text))
        if left[:common] != text[:common]:
            raise Impossible(DIFFERS)
        if left:
            self._left[key] = left[common:]
        return text[common:]

    def _drop_known_calls(self, index: int, delta: dict[str, Any]) -> None:
        """A call that was begun keeps the id that its client knows; each run makes up another one."""
        kept = []
        for call in delta.get("tool_calls") or ():
            if (index, f"tool_calls.{call.get('index', 0)}.name") in self._calls:
                call.pop("id", None)
                call.pop("type", None)
            if call.get("function") or "id" in call:
                kept.append(call)
        if kept:
            delta["tool_calls"] = kept
        else:
            delta.pop("tool_calls", None)
