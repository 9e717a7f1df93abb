"""Journals of usage for tests: killed as by `kill -9`, and handed over to a store in memory."""

from __future__ import annotations

import json
from collections import Counter
from collections.abc import Iterable
from pathlib import Path
from typing import Any

from caudal.api.keys import Batch
from caudal.domain.key import Usage, UsageHour
from caudal.gateway.usage_journal import UsageJournal
from caudal.store.state import SqlStore, open_store

Place = tuple[str, str, int]
Sums = dict[Place, tuple[int, ...]]


def sums_of(rows: Iterable[UsageHour]) -> Sums:
    """By key, model and hour: requests, failed, and the three kinds of tokens."""
    total: dict[Place, Counter[int]] = {}
    for r in rows:
        numbers = (
            r.requests,
            r.failed,
            r.usage.prompt_tokens,
            r.usage.completion_tokens,
            r.usage.cached_tokens,
        )
        total.setdefault((r.key_id, r.model, r.hour), Counter()).update(dict(enumerate(numbers)))
    return {place: tuple(found[i] for i in range(5)) for place, found in total.items()}


def rows_of(body: bytes) -> list[tuple[str, int, tuple[UsageHour, ...]]]:
    """The batches of a body as (source, seq, rows), through the checks of the control API."""
    batches = [Batch.model_validate(b).value() for b in json.loads(body)["batches"]]
    return [(b.source, b.seq, b.rows) for b in batches]


class MemoryControl:
    """What control does with the bodies that gateways send, over a real store in memory."""

    def __init__(self) -> None:
        self.store: SqlStore = open_store("sqlite://")
        self.bodies: list[bytes] = []
        self.away = False
        self.deaf = False  # keeps what it is sent, and its answer is lost

    def send(self, body: bytes) -> bool:
        """As ControlSender."""
        if self.away:
            return False
        self.bodies.append(body)
        self.keep(body)
        return not self.deaf

    def keep(self, body: bytes) -> None:
        """Take a body, which may have been taken before."""
        self.store.add_usage([Batch.model_validate(b).value() for b in json.loads(body)["batches"]])

    def sums(self) -> Sums:
        """What it has."""
        return sums_of(self.store.usage())


def journal(folder: Path | None, send: Any, name: str = "gateway-1") -> UsageJournal:
    """A journal without threads: a test says when it writes and sends."""
    return UsageJournal(folder, name, send)


def kill(one: UsageJournal) -> None:
    """As by kill -9: what was counted is gone, files stay as they are, locks are freed."""
    for file in [*one._adopted, *([one._own] if one._own else [])]:
        file._uneven = True  # keeps `close` from removing an empty one
        file.close()
    one._adopted, one._own = [], None


def used(tokens: int = 1) -> Usage:
    """Some usage."""
    return Usage(tokens, 2 * tokens, tokens // 2)
