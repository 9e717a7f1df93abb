"""What gangs say of themselves: checked, bounded, kept; what is notable becomes an event, once.

A report is taken from the gang that holds its slot only. One that is fenced, over or unknown is refused.
"""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from typing import Any

from caudal.control.run_events import run_events
from caudal.domain.errors import NotFound, Stale, UsageError
from caudal.domain.event import Event, Point
from caudal.domain.gang import Gang, Report, Role
from caudal.domain.snapshot import State
from caudal.ports import Store
from caudal.telemetry.report import MAX_POINTS_SENT

MAX_KEYS = 64
MAX_TEXT = 4_000
MAX_DEPTH = 3
MAX_SEQ = 1 << 53


def accept(store: Store, gang_id: str, body: Mapping[str, Any], now: float) -> None:
    """Take a report: `{"at", "status": {...}, "points": [{"seq", "at", "values"}]}`.

    Raises NotFound for a gang that is unknown or over, Stale for one that is fenced, UsageError for a body
    that is not a report. The report is kept as of `now`: gangs' clocks are not trusted.
    """
    state = store.read()
    gang = _reporting(state, gang_id)
    status = plain_mapping(body.get("status"), "status")
    if gang.role is Role.REPLICA:
        _note_ready(status, state, gang_id, now)
    points = _points(gang, body.get("points", []))

    def notable(before: Mapping[str, Any], new: Sequence[Point]) -> list[Event]:
        return _notable(gang, before, status, new, now)

    store.put_report(Report(gang_id, now, status), points, notable)


def _note_ready(status: dict[str, Any], state: State, gang_id: str, now: float) -> None:
    """Since when a replica has been ready, by the clock of control: rollouts count from there."""
    status.pop("ready_since", None)
    if status.get("ready") is True:
        before = next((r.status for r in state.reports if r.gang_id == gang_id), {})
        since = before.get("ready_since") if before.get("ready") is True else None
        status["ready_since"] = now if since is None else since


def curve_of(run: str, generation: int) -> str:
    """The name under which a run's points are kept: another spec under the same name is another curve."""
    return run if generation <= 1 else f"{run}@g{generation}"


def _reporting(state: State, gang_id: str) -> Gang:
    gang = next((g for g in state.gangs if g.id == gang_id), None)
    if gang is None or gang.ended_at is not None:
        raise NotFound(f"no gang {gang_id!r} is held here", why="it is unknown, or over")
    lease = next((x for x in state.leases if x.id == gang.lease_id), None)
    if lease is None or gang.epoch < lease.epoch:
        raise Stale(f"{gang_id} is fenced", why="contact with its node was lost, and its epoch is over")
    return gang


def _points(gang: Gang, given: object) -> list[Point]:
    if not isinstance(given, list) or len(given) > MAX_POINTS_SENT:
        raise UsageError(f"points: a list of at most {MAX_POINTS_SENT} is needed")
    if given and gang.role is not Role.COORDINATOR:
        raise UsageError(f"points: only a coordinator has a curve, and {gang.id} is a {gang.role.value}")
    run = curve_of(gang.workload, gang.generation)
    points = []
    for row in given:
        if not isinstance(row, Mapping):
            raise UsageError("points: each is an object with seq, at and values")
        seq, at = row.get("seq"), row.get("at")
        if not isinstance(seq, int) or isinstance(seq, bool) or not 0 <= seq < MAX_SEQ:
            raise UsageError("points: seq is a whole number from 0 on")
        if not isinstance(at, int | float) or isinstance(at, bool) or not math.isfinite(at):
            raise UsageError("points: at is a number of seconds")
        points.append(Point(run, seq, float(at), plain_mapping(row.get("values"), "points: values")))
    return points


def plain_mapping(value: object, what: str) -> dict[str, Any]:
    """The object, if it is plain and within bounds. Raises UsageError."""
    if not isinstance(value, Mapping):
        raise UsageError(f"{what}: an object is needed")
    found = _plain(value, what, 0)
    assert isinstance(found, dict)
    return found


def _plain(value: object, what: str, depth: int) -> Any:
    """The value, if it is plain and within bounds; a number that is not finite becomes null."""
    if value is None or isinstance(value, bool):
        return value
    if isinstance(value, int):
        if abs(value) >= MAX_SEQ:
            raise UsageError(f"{what}: a whole number is too large")
        return value
    if isinstance(value, float):
        return value if math.isfinite(value) else None
    if isinstance(value, str):
        return value[:MAX_TEXT]
    if depth >= MAX_DEPTH or not isinstance(value, Mapping | list | tuple) or len(value) > MAX_KEYS:
        raise UsageError(f"{what}: plain values, at most {MAX_KEYS} to an object and {MAX_DEPTH} deep")
    if isinstance(value, Mapping):
        if any(not isinstance(k, str) or len(k) > 200 for k in value):
            raise UsageError(f"{what}: keys are short texts")
        return {k: _plain(v, what, depth + 1) for k, v in value.items()}
    return [_plain(v, what, depth + 1) for v in value]


def _notable(
    gang: Gang, before: Mapping[str, Any], status: Mapping[str, Any], new: Sequence[Point], now: float
) -> list[Event]:
    """What is worth an event: a change from what the gang said before, and what new points say."""

    def news(key: str) -> Any:
        value = status.get(key)
        return value if value and value != before.get(key) else None

    events: list[Event] = []

    def tell(kind: str, subject: str, text: str, **data: Any) -> None:
        events.append(Event(now, kind, subject, text, {"gang": gang.id, "site": gang.site, **data}))

    if gang.role is Role.COORDINATOR:
        if phase := news("phase"):
            tell("run.phase", gang.workload, f"{gang.workload} is {phase}", phase=phase)
        if stage := news("stage"):
            tell("run.stage", gang.workload, f"{gang.workload} begins stage {stage}", stage=stage)
        events += run_events(gang, before, status, new, now)
    elif gang.role is Role.REPLICA and news("ready"):
        version = status.get("version", gang.model_version)
        text = f"{gang.model} version {version} answers at {gang.site}"
        tell("replica.ready", gang.slot, text, model=gang.model, version=version, url=status.get("url"))
    elif gang.role is Role.GATEWAY and news("ready"):
        tell(
            "gateway.ready",
            gang.slot,
            f"the gateway answers at {status.get('url', '')}",
            url=status.get("url"),
        )
    if gang.role is Role.REPLICA and before.get("ready") is True and status.get("ready") is not True:
        tell("replica.unready", gang.slot, f"{gang.id} does not answer any more")
    if error := news("error"):
        tell(f"{gang.role.value}.error", gang.slot, f"{gang.id}: {error}", error=error)
    return events
