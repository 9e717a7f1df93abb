"""The state of the fleet in SQL: ports.Store over SQLite and PostgreSQL.

One row, `meta`, orders everything: whoever commits holds it, checks version and leader on it, and raises the
version. Knows nothing of why something is written; store/tables.py has the tables.
"""

from __future__ import annotations

import json
import math
from collections.abc import Sequence
from typing import Any

from sqlalchemy import Connection, Row, bindparam, delete, select, update

from caudal.domain.decision import Decision, Intent
from caudal.domain.errors import Stale
from caudal.domain.event import Event, Point
from caudal.domain.fleet import Lease
from caudal.domain.gang import Gang, Report
from caudal.domain.key import ApiKey, UsageBatch, UsageHour
from caudal.domain.node import failed, subject
from caudal.domain.snapshot import State
from caudal.ports import Change, Holder, Notable
from caudal.store import history, leadership, usage
from caudal.store.codec import decode
from caudal.store.database import Database
from caudal.store.history import Limits
from caudal.store.migrate import migrate
from caudal.store.rows import Upserts, point_row, report_row, rows
from caudal.store.tables import api_keys, decisions, events, gangs, meta, reports
from caudal.store.view import ENDED_GANGS_SHOWN, View


def open_store(url: str, limits: Limits | None = None) -> SqlStore:
    """The state at `sqlite:///path`, `sqlite://` (in memory) or `postgresql://...`, made or brought forward
    to this version. Raises UsageError for another URL, StorageFailed where it cannot be used."""
    database = Database(url)
    try:
        migrate(database)
    except BaseException:
        database.close()
        raise
    return SqlStore(database, limits or Limits())


class SqlStore:
    """ports.Store. Safe to use from many threads; any number of processes may open the same database."""

    def __init__(self, database: Database, limits: Limits) -> None:
        self._database = database
        self._limits = limits
        self._upserts = Upserts(for_sqlite=database.sqlite)
        self._view = View()
        self._keys: dict[str, ApiKey] = {}  # by document: what was read last need not be decoded again

    def close(self) -> None:
        """Close the connections; the store is not to be used afterwards."""
        self._database.close()

    def read(self) -> State:
        """One consistent view. What has not changed since the last call is not decoded again."""
        with self._database.reading() as connection:
            return self._view.read(connection)

    def commit(
        self, change: Change, *, expect_version: int | None = None, leader_epoch: int | None = None
    ) -> int:
        """Write all of the change or nothing; returns the new version. Raises Stale, LostLeadership,
        StorageFailed; UsageError where a value cannot be kept."""
        written = list(rows(change))
        durable = bool(change.keys)  # who was told that a key is revoked must not see it come back
        with self._database.writing(durable) as connection:
            row = leadership.locked_meta(connection)
            if leader_epoch is not None:
                leadership.check_leader(row, leader_epoch)
            if expect_version is not None and row.version != expect_version:
                raise Stale(
                    "the state has changed since this was decided",
                    why=f"it was decided on version {expect_version}, now it is {row.version}",
                    remedy="look again and decide again",
                )
            for table, values in written:
                if values:
                    connection.execute(self._upserts.replace(table), values)
            _hide_old_gangs(connection, change.gangs)
            _drop_node_reports(connection, change.leases)
            numbers = {"version": row.version + 1, **self._remember(connection, change, row)}
            connection.execute(update(meta).where(meta.c.id == 1).values(numbers))
        return int(row.version) + 1

    def lead(self, holder: Holder, now: float, ttl_s: float) -> int:
        """Become the leader, or stay it; returns the epoch. Raises StateHeld, naming the holder."""
        with self._database.writing() as connection:
            return leadership.lead(connection, holder, now, ttl_s)

    def leader(self) -> tuple[Holder, int, float] | None:
        """The holder, the epoch and when its term ends (0: it has resigned); None before the first."""
        with self._database.reading() as connection:
            return leadership.leader(connection)

    def resign(self, epoch: int) -> None:
        """End the term now, if that epoch still leads."""
        with self._database.writing() as connection:
            leadership.resign(connection, epoch)

    def put_report(
        self, report: Report, points: Sequence[Point] = (), notable: Notable | None = None
    ) -> None:
        """Keep a gang's last report, and append its points (one that is there already is left alone). What
        `notable` says of the report before and of the points that are new is kept in the same transaction:
        once, however often and by however many the report is brought."""
        said, curve = report_row(report), [point_row(point) for point in points]
        with self._database.writing() as connection:
            if notable is not None:
                row = leadership.locked_meta(connection)  # one report at a time
                told = tuple(notable(*history.before_report(connection, report, points)))
                if told:
                    numbers = {
                        "version": row.version + 1,
                        **self._remember(connection, Change(events=told), row),
                    }
                    connection.execute(update(meta).where(meta.c.id == 1).values(numbers))
            connection.execute(self._upserts.replace(reports), said)
            if curve:
                connection.execute(self._upserts.new_points, curve)

    def points(self, run: str, after_seq: int = -1, limit: int = 10_000) -> list[Point]:
        """A run's curve, in order."""
        with self._database.reading() as connection:
            return history.read_points(connection, run, after_seq, limit)

    def events(self, after_seq: int = 0, limit: int = 1000, subject: str | None = None) -> list[Event]:
        """Events in order of seq; of the subject and what is below it, where one is given."""
        with self._database.reading() as connection:
            return history.read_events(connection, after_seq, limit, subject)

    def last_event_seq(self) -> int:
        """The newest event's seq; 0 where there is none."""
        with self._database.reading() as connection:
            return int(connection.execute(select(meta.c.event_seq)).scalar_one())

    def decisions(self, subject: str, limit: int = 20) -> list[Decision]:
        """The newest decisions that name the subject or something below it, newest first. Their `waiting`
        holds what was new then: a subject that waits on for the same reason is not repeated."""
        with self._database.reading() as connection:
            return history.read_decisions(connection, subject, limit)

    def intents(self, subject: str, limit: int = 50) -> list[Intent]:
        """The intents of the subject and what is below it, in any state, newest first."""
        with self._database.reading() as connection:
            return history.read_intents(connection, subject, limit)

    def lease_history(self, since: float = 0.0, until: float = math.inf) -> list[Lease]:
        """Every lease that was live at some moment of since <= t < until, by id; also those that have ended."""
        with self._database.reading() as connection:
            return history.read_leases(connection, since, until)

    def gang_history(self, since: float = 0.0, until: float = math.inf) -> list[Gang]:
        """Every gang that was not over at some moment of since <= t < until, by slot and incarnation."""
        with self._database.reading() as connection:
            return history.read_gangs(connection, since, until)

    def api_keys(self) -> list[ApiKey]:
        """Every key that was ever made, by id; also those that were revoked."""
        with self._database.reading() as connection:
            docs = list(connection.execute(select(api_keys.c.doc).order_by(api_keys.c.id)).scalars())
        before = self._keys
        self._keys = {doc: before.get(doc) or decode(ApiKey, doc) for doc in docs}
        return list(self._keys.values())

    def add_usage(self, batches: Sequence[UsageBatch]) -> None:
        """Add the batches to the sums, each once. When this returns they are on the disk: whoever brought them
        forgets them then."""
        with self._database.writing(durable=True) as connection:
            usage.add(connection, self._upserts, batches)

    def usage(
        self, since: float = 0.0, until: float = math.inf, key_id: str | None = None
    ) -> list[UsageHour]:
        """What was used in the hours that began at `since` or later and before `until`, by key, model, hour."""
        with self._database.reading() as connection:
            return usage.read(connection, since, until, key_id)

    def _remember(self, connection: Connection, change: Change, row: Row[Any]) -> dict[str, Any]:
        """Append the change's events and decision; returns what of the `meta` row changes by it."""
        numbers: dict[str, Any] = {}
        every = self._limits.every
        if change.events:
            seq = history.append_events(connection, change.events, row.event_seq)
            history.prune(connection, events, row.event_seq, seq, self._limits.events, every)
            numbers["event_seq"] = seq
        if change.decision is not None:
            before = json.loads(row.waiting)
            news, waiting = history.thin(change.decision, before)
            if waiting != before:
                numbers["waiting"] = json.dumps(waiting)
            if news is not None:
                seq = history.append_decision(connection, news, row.decision_seq)
                history.prune(connection, decisions, row.decision_seq, seq, self._limits.decisions, every)
                numbers["decision_seq"] = seq
        return numbers


_OLD_GANGS = (
    select(gangs.c.id)
    .where(gangs.c.slot == bindparam("slot_"), gangs.c.shown, gangs.c.ended_at.is_not(None))
    .order_by(gangs.c.incarnation.desc())
    .offset(ENDED_GANGS_SHOWN)
)


def _hide_old_gangs(connection: Connection, changed: Sequence[Gang]) -> None:
    """Of each slot that lost a gang, leave the last few that are over in sight; the rows stay."""
    for slot in sorted({gang.slot for gang in changed if gang.ended_at is not None}):
        old = list(connection.execute(_OLD_GANGS, {"slot_": slot}).scalars())
        if old:
            connection.execute(update(gangs).where(gangs.c.id.in_(old)).values(shown=False))
            connection.execute(delete(reports).where(reports.c.gang_id.in_(old)))


def _drop_node_reports(connection: Connection, changed: Sequence[Lease]) -> None:
    """Forget what nodes said whose leases have ended; not what is held against their offers."""
    ids = [subject(lease.id) for lease in changed if not lease.live]
    if ids:
        docs = connection.execute(select(reports.c.doc).where(reports.c.gang_id.in_(ids))).scalars()
        well = [r.gang_id for doc in docs if not failed(r := decode(Report, doc))]
        connection.execute(delete(reports).where(reports.c.gang_id.in_(well)))
