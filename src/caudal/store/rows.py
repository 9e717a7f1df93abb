"""Domain values as rows of the tables, and the statements that write them.

Knows which columns each value has; nothing of when rows are written or by whom.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator
from typing import Any

from sqlalchemy import Table
from sqlalchemy.dialects import postgresql, sqlite

from caudal.domain.decision import Intent
from caudal.domain.errors import UsageError
from caudal.domain.event import Point
from caudal.domain.fleet import Lease
from caudal.domain.gang import Gang, Report
from caudal.domain.key import ApiKey
from caudal.domain.workload import Workload
from caudal.ports import Change
from caudal.store import tables
from caudal.store.codec import encode

Row = dict[str, Any]

MAX_SEQ = 2**63 - 1


class Upserts:
    """The statements by which a row replaces the one with its key, in the database's dialect."""

    def __init__(self, *, for_sqlite: bool) -> None:
        self._insert: Callable[[Table], Any] = sqlite.insert if for_sqlite else postgresql.insert
        self._replacing = {
            table.name: self._replace(table)
            for table in (
                tables.fleet,
                tables.workloads,
                tables.leases,
                tables.gangs,
                tables.intents,
                tables.reports,
                tables.api_keys,
            )
        }
        self.new_points = self._insert(tables.points).on_conflict_do_nothing()
        self.new_source = self._insert(tables.usage_sources).on_conflict_do_nothing()
        self.more_usage = self._add(tables.usage, ("key_id", "model", "hour"))

    def replace(self, table: Table) -> Any:
        """Insert, or replace what has the same key."""
        return self._replacing[table.name]

    def _add(self, table: Table, keys: tuple[str, ...]) -> Any:
        """Insert, or add to the numbers of what has the same key."""
        statement = self._insert(table)
        sums = {c.name: c + statement.excluded[c.name] for c in table.columns if c.name not in keys}
        return statement.on_conflict_do_update(index_elements=list(keys), set_=sums)

    def _replace(self, table: Table) -> Any:
        statement = self._insert(table)
        keys = [column.name for column in table.primary_key]
        values = {c.name: statement.excluded[c.name] for c in table.columns if c.name not in keys}
        return statement.on_conflict_do_update(index_elements=keys, set_=values)


def rows(change: Change) -> Iterator[tuple[Table, list[Row]]]:
    """The rows of a change, table by table; of several with one key the last. Raises UsageError."""
    if change.fleet is not None:
        yield tables.fleet, [{"id": 1, "doc": encode(change.fleet)}]
    yield tables.workloads, _last(map(_workload, change.workloads), "name")
    yield tables.leases, _last(map(_lease, change.leases), "id")
    yield tables.gangs, _last(map(_gang, change.gangs), "id")
    yield tables.intents, _last(map(_intent, change.intents), "id")
    yield tables.api_keys, _last(map(_key, change.keys), "id")


def report_row(report: Report) -> Row:
    """A gang's last report."""
    return {"gang_id": report.gang_id, "at": report.at, "doc": encode(report)}


def point_row(point: Point) -> Row:
    """One row of a run's curve. Raises UsageError for a `seq` that no database can count to."""
    if not 0 <= point.seq <= MAX_SEQ:
        raise UsageError(f"a point's seq is {point.seq}", where=point.run, why="it counts from 0, by one")
    return {"run": point.run, "seq": point.seq, "doc": encode(point)}


def _last(found: Iterable[Row], key: str) -> list[Row]:
    return list({row[key]: row for row in found}.values())


def _workload(workload: Workload) -> Row:
    return {
        "name": workload.name,
        "kind": workload.kind,
        "state": workload.state.value,
        "doc": encode(workload),
    }


def _lease(lease: Lease) -> Row:
    return {
        "id": lease.id,
        "site": lease.site,
        "state": lease.state.value,
        "live": lease.live,
        "requested_at": lease.requested_at,
        "ended_at": lease.ended_at,
        "doc": encode(lease),
    }


def _gang(gang: Gang) -> Row:
    return {
        "id": gang.id,
        "slot": gang.slot,
        "incarnation": gang.incarnation,
        "workload": gang.workload,
        "ended_at": gang.ended_at,
        "shown": True,  # store/state.py clears it beyond the slot's last few
        "doc": encode(gang),
    }


def _intent(intent: Intent) -> Row:
    return {
        "id": intent.id,
        "subject": intent.subject,
        "state": intent.state.value,
        "created_at": intent.created_at,
        "changed_at": intent.changed_at,
        "doc": encode(intent),
    }


def _key(key: ApiKey) -> Row:
    return {"id": key.id, "name": key.name, "revoked": key.revoked_at > 0, "doc": encode(key)}
