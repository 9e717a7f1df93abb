"""What a record's fields mean: `text`, or one of the ways in which dialogues are written down.

Knows nothing of the format that the record came in.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from typing import Any

from caudal.domain.errors import DataError
from caudal.train.sources.base import Dialogue, Message, Record, Text

FIELDS = (
    "messages",
    "conversations",
    "conversation",
    "prompt",
    "completion",
    "instruction",
    "input",
    "output",
    "text",
)
"""All columns that are looked at; others are not even read where the format allows it."""

KNOWN = "`text`; `messages`; `conversations`; `prompt` + `completion`; `instruction` (+ `input`) + `output`"

_SHAREGPT = {"human": "user", "user": "user", "gpt": "assistant", "assistant": "assistant"}
_SHAREGPT |= {"chatgpt": "assistant", "model": "assistant", "bot": "assistant", "system": "system"}
_SHAREGPT |= {"tool": "tool", "function": "tool", "observation": "tool"}


def record_of(row: Any, where: str) -> Record:
    """The record that a row is: of several known fields those of a dialogue come first. `where` is the row's
    place in its file. Raises DataError where no known field is there, or one is not what it should be."""
    if not isinstance(row, Mapping):
        raise DataError(
            f"this is {_kind(row)}, not a record",
            where=where,
            remedy="a record is an object with one of: " + KNOWN + ("; write one a line" * _is_list(row)),
        )
    there = {name for name in FIELDS if row.get(name) is not None}
    for needed, make in _WAYS:
        if there.issuperset(needed):
            return make(row, where)
    raise DataError(
        "the record has none of the fields that are known",
        where=where,
        why="it has " + (", ".join(f"`{str(name)[:40]}`" for name in list(row)[:20]) or "no fields"),
        remedy="known are: " + KNOWN,
    )


def _messages(row: Mapping[str, Any], where: str) -> Dialogue:
    return Dialogue(_listed(row["messages"], "messages", where))


def _conversations(row: Mapping[str, Any], where: str) -> Dialogue:
    name = "conversations" if row.get("conversations") is not None else "conversation"
    return Dialogue(_listed(row[name], name, where))


def _completion(row: Mapping[str, Any], where: str) -> Dialogue:
    prompt, completion = row["prompt"], row["completion"]
    if isinstance(prompt, list) and isinstance(completion, list):
        return Dialogue(_listed(prompt, "prompt", where) + _listed(completion, "completion", where))
    asked, said = _words(prompt, "prompt", where), _words(completion, "completion", where)
    return Dialogue((Message("user", asked), Message("assistant", said)))


def _instruction(row: Mapping[str, Any], where: str) -> Dialogue:
    asked, said = _words(row["instruction"], "instruction", where), _words(row["output"], "output", where)
    given = row.get("input")
    if given is not None and _words(given, "input", where).strip():
        asked = f"{asked}\n\n{given}"
    return Dialogue((Message("user", asked), Message("assistant", said)))


def _text(row: Mapping[str, Any], where: str) -> Text:
    return Text(_words(row["text"], "text", where))


_WAYS: tuple[tuple[tuple[str, ...], Callable[[Mapping[str, Any], str], Record]], ...] = (
    (("messages",), _messages),
    (("conversations",), _conversations),
    (("conversation",), _conversations),
    (("prompt", "completion"), _completion),
    (("instruction", "output"), _instruction),
    (("text",), _text),
)


def _listed(value: Any, name: str, where: str) -> tuple[Message, ...]:
    """A list of turns: `role` and `content`, or ShareGPT's `from` and `value`."""
    if not isinstance(value, list) or not value:
        raise _bad(name, f"it is {_kind(value)}, not a list of turns", where)
    return tuple(_turn(item, name, where) for item in value)


def _turn(item: Any, name: str, where: str) -> Message:
    if isinstance(item, Mapping) and item.get("role") is not None:
        role = item["role"]
        if not isinstance(role, str) or not role:
            raise _bad(name, f"a `role` is {_kind(role)}", where)
        return Message(role, _content(item.get("content"), name, where))
    if isinstance(item, Mapping) and isinstance(item.get("from"), str):
        role = _SHAREGPT.get(item["from"].lower(), "")
        if not role:
            raise _bad(name, f"nobody is called {item['from'][:40]!r}: " + ", ".join(_SHAREGPT), where)
        return Message(role, _content(item.get("value"), name, where))
    raise _bad(name, "a turn has neither `role` and `content` nor `from` and `value`", where)


def _content(value: Any, name: str, where: str) -> str:
    """What was said: a string, or a list of parts that are all text."""
    if isinstance(value, str):
        return value
    if isinstance(value, list) and all(
        isinstance(p, Mapping) and isinstance(p.get("text"), str) for p in value
    ):
        return "".join(part["text"] for part in value)
    raise _bad(name, f"what is said in a turn is {_kind(value)}, not text", where)


def _words(value: Any, name: str, where: str) -> str:
    if not isinstance(value, str):
        raise _bad(name, f"it is {_kind(value)}, not text", where)
    return value


def _bad(name: str, why: str, where: str) -> DataError:
    return DataError(
        f"the record's `{name}` cannot be read",
        where=where,
        why=why,
        remedy="turns are objects of `role` and `content` (or `from` and `value`), all of it text",
    )


def _is_list(value: Any) -> bool:
    return isinstance(value, list)


def _kind(value: Any) -> str:
    """What a value is, in JSON's words."""
    if value is None:
        return "nothing"
    if isinstance(value, bool):
        return "true or false"
    names: dict[type, str] = {
        str: "a text",
        int: "a number",
        float: "a number",
        list: "a list",
        dict: "an object",
    }
    return next((said for kind, said in names.items() if isinstance(value, kind)), type(value).__name__)
