"""One request on its caller's account: counted once, however it ends. Knows no journal's file, and no engine."""

from __future__ import annotations

import asyncio
import time
from collections.abc import Callable

from msgspec import Struct

from caudal.domain.key import Usage
from caudal.gateway.openai_errors import ApiError
from caudal.gateway.tracing import Trace

NOTHING = Usage()

CLIENT_LEFT = 499
"""The status that is counted, and seen by nobody, where a client did not wait for its answer."""

UNFORESEEN = 500

Record = Callable[[str, str, float, Usage, int], None]
"""usage_journal.py:UsageJournal.record."""


def _nothing() -> None:
    pass


def status_of(error: BaseException) -> int:
    """What a request counts as that ended with this."""
    if isinstance(error, asyncio.CancelledError):
        return CLIENT_LEFT
    return error.status if isinstance(error, ApiError) else UNFORESEEN


class Account(Struct, eq=False):
    """Within it a request is carried out; at its end it is recorded, with the status that its client saw. Whoever
    carries it out writes into `usage` what the answer has used so far."""

    record: Record
    caller: str
    model: str
    closed: Callable[[], None] = _nothing
    usage: Usage = NOTHING
    trace: Trace | None = None  # where traces are asked for

    def close(self, status: int) -> None:
        """Record it; for who does not use `with`."""
        self.closed()
        self.record(self.caller, self.model, time.time(), self.usage, status)
        if self.trace is not None:
            self.trace.end(status, self.usage)

    def __enter__(self) -> Account:
        return self

    def __exit__(self, kind: object, error: BaseException | None, trace: object) -> None:
        self.close(200 if error is None else status_of(error))
