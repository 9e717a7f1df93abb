"""One request on its caller's account: counted once, however it ends. Knows no journal's file, and no engine."""

from __future__ import annotations

import asyncio
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass

import msgspec
from msgspec import Struct

from caudal.domain.key import Usage
from caudal.gateway.openai_errors import ApiError

NOTHING = Usage()

CLIENT_LEFT = 499
"""The status that is counted, and seen by nobody, where a client did not wait for its answer."""

Record = Callable[[str, str, float, Usage, int], None]
"""usage_journal.py:UsageJournal.record."""


@dataclass(slots=True)
class Spent:
    """What an answer has used so far; whoever carries the request out writes it here."""

    usage: Usage = NOTHING


@contextmanager
def accounted(record: Record, caller: str, model: str) -> Iterator[Spent]:
    """Within it a request is carried out; at its end it is recorded, with the status that its client saw."""
    spent = Spent()
    status = 500  # of whatever is not foreseen here
    try:
        yield spent
        status = 200
    except ApiError as error:
        status = error.status
        raise
    except asyncio.CancelledError:
        status = CLIENT_LEFT
        raise
    finally:
        record(caller, model, time.time(), spent.usage, status)


class _Details(Struct):
    cached_tokens: int | None = None


class _Usage(Struct):
    prompt_tokens: int = 0
    completion_tokens: int = 0
    prompt_tokens_details: _Details | None = None


class _Answer(Struct):
    usage: _Usage | None = None


_ANSWER = msgspec.json.Decoder(_Answer)


def usage_in(body: bytes) -> Usage:
    """What a whole answer says that it used; nothing where it says nothing that can be read."""
    try:
        found = _ANSWER.decode(body).usage
    except (msgspec.MsgspecError, UnicodeDecodeError, RecursionError):
        return Usage()
    if found is None:
        return Usage()
    details = found.prompt_tokens_details
    cached = (details.cached_tokens or 0) if details is not None else 0
    return Usage(*(max(0, n) for n in (found.prompt_tokens, found.completion_tokens, cached)))
