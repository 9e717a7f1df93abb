"""What was used, as sums by key, model and hour: added to once for each batch, read by time.

Every function works on a transaction of its caller's. Knows nothing of keys, prices or gateways.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from typing import Any

from sqlalchemy import Connection, select, update

from caudal.domain.key import Usage, UsageBatch, UsageHour, summed
from caudal.store.rows import MAX_SEQ, Row, Upserts
from caudal.store.tables import usage, usage_sources

BEFORE_THE_FIRST = -1


def add(connection: Connection, upserts: Upserts, batches: Sequence[UsageBatch]) -> None:
    """Add the batches that are new; the last seq of their sources goes into the same transaction.

    Sources and sums are taken in one order, so that two who add at once wait for each other and do not lock
    each other out.
    """
    sources = sorted({batch.source for batch in batches})
    if not sources:
        return
    first = [{"source": source, "seq": BEFORE_THE_FIRST} for source in sources]
    connection.execute(upserts.new_source, first)
    held = select(usage_sources).where(usage_sources.c.source.in_(sources)).order_by(usage_sources.c.source)
    last = {row.source: int(row.seq) for row in connection.execute(held.with_for_update())}
    fresh: list[UsageHour] = []
    for batch in batches:
        if batch.seq > last[batch.source]:
            last[batch.source] = batch.seq
            fresh.extend(batch.rows)
    if fresh:
        connection.execute(upserts.more_usage, [_row(hour) for hour in summed(fresh)])
    for source, seq in last.items():
        connection.execute(update(usage_sources).where(usage_sources.c.source == source).values(seq=seq))


def read(connection: Connection, since: float, until: float, key_id: str | None) -> list[UsageHour]:
    """The sums of the hours that began within `since` <= hour < `until`."""
    query = select(usage).where(usage.c.hour >= _whole(since), usage.c.hour < _whole(until))
    if key_id is not None:
        query = query.where(usage.c.key_id == key_id)
    found = connection.execute(query.order_by(usage.c.key_id, usage.c.model, usage.c.hour))
    return [_hour(row) for row in found]


def _row(hour: UsageHour) -> Row:
    used = hour.usage
    return {
        "key_id": hour.key_id,
        "model": hour.model,
        "hour": hour.hour,
        "requests": hour.requests,
        "failed": hour.failed,
        "prompt_tokens": used.prompt_tokens,
        "completion_tokens": used.completion_tokens,
        "cached_tokens": used.cached_tokens,
        "picodollars": used.picodollars,
    }


def _hour(row: Any) -> UsageHour:
    used = Usage(row.prompt_tokens, row.completion_tokens, row.cached_tokens, row.picodollars)
    return UsageHour(row.key_id, row.model, row.hour, row.requests, row.failed, used)


def _whole(at: float) -> int:
    """A time that the database can compare with."""
    return math.ceil(min(max(at, 0.0), float(2**62))) if at < math.inf else MAX_SEQ
