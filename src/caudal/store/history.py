"""What was decided and what happened: appended in order, thinned, and pruned beyond a limit.

Every function works on a transaction that already holds the `meta` row. Knows nothing of leaders.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from typing import Any

from sqlalchemy import ColumnElement, Connection, Table, and_, delete, insert, or_, select

from caudal.domain.decision import Decision, Intent, Waiting
from caudal.domain.event import Event, Point
from caudal.domain.fleet import Lease
from caudal.domain.gang import Gang, Report
from caudal.store.codec import decode, encode
from caudal.store.rows import MAX_SEQ
from caudal.store.tables import (
    decision_subjects,
    decisions,
    events,
    gangs,
    intents,
    leases,
    points,
    reports,
)


@dataclass(frozen=True, slots=True)
class Limits:
    """How much history is kept, in rows. It is looked at when `every` more have been written."""

    events: int = 100_000
    decisions: int = 10_000
    every: int = 1_000


def thin(decision: Decision, before: Mapping[str, str]) -> tuple[Decision | None, dict[str, str]]:
    """What of the decision is news, and why each subject waits now; `before` is that of the last decision.

    The loop decides every second and most subjects wait for the same thing as before. Of `waiting` only the
    entries are kept whose reason, or whose rejected alternatives, have other codes than the last time (the
    numbers in the text change all the time); None where nothing is left.
    """
    reasons: dict[str, list[str]] = {}
    for waiting in decision.waiting:  # a subject may wait for several things
        reasons.setdefault(waiting.subject, []).append(_why(waiting))
    now = {subject: "; ".join(sorted(why)) for subject, why in reasons.items()}
    news = tuple(w for w in decision.waiting if before.get(w.subject) != now[w.subject])
    kept = replace(decision, waiting=news) if decision.choices or news else None
    return kept, now


def _why(waiting: Waiting) -> str:
    """The reason as codes, without the numbers."""
    rejected = sorted(f"{r.what}={r.reason.code}" for r in waiting.rejected)
    return " ".join((waiting.reason.code, *rejected))


def append_events(connection: Connection, new: Sequence[Event], last_seq: int) -> int:
    """Number the events and keep them; returns the newest seq."""
    rows = [
        {"seq": seq, "at": e.at, "kind": e.kind, "subject": e.subject, "doc": encode(replace(e, seq=seq))}
        for seq, e in enumerate(new, start=last_seq + 1)
    ]
    if rows:
        connection.execute(insert(events), rows)
    return last_seq + len(rows)


def append_decision(connection: Connection, decision: Decision, last_seq: int) -> int:
    """Keep the decision, to be found by its subjects; returns its seq."""
    seq = last_seq + 1
    connection.execute(insert(decisions), {"seq": seq, "at": decision.at, "doc": encode(decision)})
    subjects = {choice.subject for choice in decision.choices}
    for waiting in decision.waiting:
        subjects |= {waiting.subject, waiting.workload} - {""}
    if subjects:
        connection.execute(insert(decision_subjects), [{"subject": s, "seq": seq} for s in sorted(subjects)])
    return seq


def prune(
    connection: Connection, table: Table, before_seq: int, last_seq: int, keep: int, every: int
) -> None:
    """Drop what is older than the newest `keep` rows, once in `every` rows."""
    if last_seq // every > before_seq // every:
        connection.execute(delete(table).where(table.c.seq <= last_seq - keep))


def below(column: ColumnElement[str], subject: str) -> ColumnElement[bool]:
    """Whether the name in the column is the subject or has it as its first parts: `starter` finds
    `starter.worker.1` and not `starter2`. A range, so that an index serves it: `/` follows `.` in ASCII."""
    return or_(column == subject, and_(column >= f"{subject}.", column < f"{subject}/"))


def read_events(connection: Connection, after_seq: int, limit: int, subject: str | None) -> list[Event]:
    """Events after a seq, in order."""
    query = select(events.c.doc).where(events.c.seq > _seq(after_seq))
    if subject is not None:
        query = query.where(below(events.c.subject, subject))
    found = connection.execute(query.order_by(events.c.seq).limit(max(0, limit)))
    return [decode(Event, doc) for doc in found.scalars()]


def read_decisions(connection: Connection, subject: str, limit: int) -> list[Decision]:
    """The newest decisions that name the subject or something below it, newest first."""
    named = select(decision_subjects.c.seq).where(below(decision_subjects.c.subject, subject))
    query = select(decisions.c.doc).where(decisions.c.seq.in_(named))
    found = connection.execute(query.order_by(decisions.c.seq.desc()).limit(max(0, limit)))
    return [decode(Decision, doc) for doc in found.scalars()]


def read_leases(connection: Connection, since: float, until: float) -> list[Lease]:
    """The leases that were live within since <= t < until, ended or not, by id."""
    still = or_(leases.c.ended_at.is_(None), leases.c.ended_at > since)
    query = select(leases.c.doc).where(still, leases.c.requested_at < _time(until)).order_by(leases.c.id)
    return [decode(Lease, doc) for doc in connection.execute(query).scalars()]


def read_gangs(connection: Connection, since: float, until: float) -> list[Gang]:
    """The gangs that were not over within since <= t < until, by slot and incarnation."""
    still = or_(gangs.c.ended_at.is_(None), gangs.c.ended_at > since)
    query = select(gangs.c.doc).where(still).order_by(gangs.c.slot, gangs.c.incarnation)
    found = [decode(Gang, doc) for doc in connection.execute(query).scalars()]
    return [gang for gang in found if gang.created_at < until]


def _time(at: float) -> float:
    """A time that every database can compare: infinity is none."""
    return min(at, 1e15)


def read_intents(connection: Connection, subject: str, limit: int) -> list[Intent]:
    """The intents of the subject or something below it, newest first."""
    query = select(intents.c.doc).where(below(intents.c.subject, subject))
    newest = query.order_by(intents.c.created_at.desc(), intents.c.id.desc())
    return [decode(Intent, doc) for doc in connection.execute(newest.limit(max(0, limit))).scalars()]


def before_report(
    connection: Connection, report: Report, brought: Sequence[Point]
) -> tuple[Mapping[str, Any], list[Point]]:
    """What the gang reported last (empty: nothing), and which of the points are not kept yet, each once."""
    doc = connection.execute(select(reports.c.doc).where(reports.c.gang_id == report.gang_id)).scalar()
    fresh = {(p.run, p.seq): p for p in reversed(brought)}
    for run in {p.run for p in brought}:
        asked = [p.seq for p in brought if p.run == run]
        there = select(points.c.seq).where(points.c.run == run, points.c.seq.in_(asked))
        for seq in connection.execute(there).scalars():
            fresh.pop((run, seq), None)
    return (decode(Report, doc).status if doc is not None else {}), list(fresh.values())


def read_points(connection: Connection, run: str, after_seq: int, limit: int) -> list[Point]:
    """A run's curve after a seq, in order."""
    query = select(points.c.doc).where(points.c.run == run, points.c.seq > _seq(after_seq))
    found = connection.execute(query.order_by(points.c.seq).limit(max(0, limit)))
    return [decode(Point, doc) for doc in found.scalars()]


def _seq(asked: int) -> int:
    """A number that the database can compare with."""
    return max(-1, min(asked, MAX_SEQ))
