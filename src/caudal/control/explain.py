"""Why something runs where it runs, or what it waits for: read back from the decisions, nothing worked out
anew."""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from dataclasses import dataclass, field
from typing import Any

from caudal.domain.decision import (
    Choice,
    Decision,
    EndGang,
    Reason,
    Rejected,
    SetWorkloadState,
    StartGang,
    Waiting,
)
from caudal.domain.errors import NotFound
from caudal.domain.gang import Gang, GangState, GangStatus, Role
from caudal.domain.snapshot import State
from caudal.ports import Store

DECISIONS_READ = 200


@dataclass(frozen=True, slots=True)
class Against:
    """An alternative that was not taken."""

    what: str
    code: str
    text: str


@dataclass(frozen=True, slots=True)
class Explained:
    """One line of an explanation. `state`: runs, waits, ended, done or is (what a workload or lease is)."""

    subject: str
    state: str
    code: str
    text: str
    at: float | None = None
    data: dict[str, Any] = field(default_factory=dict)
    rejected: list[Against] = field(default_factory=list)


def explain(state: State, store: Store, name: str, statuses: Iterable[GangStatus] = ()) -> list[Explained]:
    """What is known of a workload, slot, gang, node, lease or model. `statuses` are the drivers' own lists: what they say
    that a gang waits for. Raises NotFound."""
    gangs = [g for g in state.gangs if _concerns(g, name)]
    workload = next((w for w in state.workloads if w.name == name), None)
    decisions = store.decisions(name, DECISIONS_READ)
    for slot in sorted({g.slot for g in gangs}):
        decisions += [d for d in store.decisions(slot, DECISIONS_READ) if d not in decisions]
    leases = [x for x in state.leases if name in (x.id, x.node, x.site)]
    if not (gangs or workload or decisions or leases):
        known = ", ".join(sorted({w.name for w in state.workloads} | {g.slot for g in state.gangs}))
        raise NotFound(f"nothing is called {name!r}", why=f"known: {known or 'nothing yet'}")
    lines: list[Explained] = []
    if workload is not None:
        text = f"{workload.state.value}: {workload.reason}"
        lines.append(Explained(name, "is", workload.state.value, text, workload.changed_at))
    for lease in leases:
        text = f"{lease.state.value} at {lease.site} under offer {lease.offer_id}, epoch {lease.epoch}"
        lines.append(Explained(lease.node, "is", lease.state.value, text, lease.requested_at))
    lines += _running(gangs, decisions, {s.gang_id: s for s in statuses})
    lines += _lost(gangs, decisions)
    lines += _waiting(name, gangs, decisions, workload is not None)
    lines += [] if len(lines) > (workload is not None) else _last_choices(name, decisions)
    return lines + (_rounds(state, gangs, name) if workload is not None else [])


def _concerns(gang: Gang, name: str) -> bool:
    below = gang.slot.startswith((f"{name}.", f"{name}@"))
    return below or name in (
        gang.id,
        gang.slot,
        gang.workload,
        gang.node,
        gang.lease_id,
        gang.site,
        gang.model,
    )


def _running(
    gangs: Iterable[Gang], decisions: list[Decision], statuses: Mapping[str, GangStatus]
) -> list[Explained]:
    """The gangs that are not over, each with the choice that started it, and with what its driver says that it waits
    for."""
    started = {
        c.action.gang.id: (d, c) for d in decisions for c in d.choices if isinstance(c.action, StartGang)
    }
    lines = []
    for gang in sorted((g for g in gangs if g.ended_at is None), key=lambda g: (g.slot, g.incarnation)):
        status = statuses.get(gang.id)
        waits = status.why if status is not None and status.state is GangState.STARTING else ""
        state, verb = ("waits", f"waits ({waits})") if waits else ("runs", "runs")
        where = f"{gang.id} {verb} on {gang.node} at {gang.site}"
        if gang.id not in started:
            lines.append(Explained(gang.slot, state, "adopted", where, gang.created_at))
            continue
        decision, choice = started[gang.id]
        data = {**choice.reason.data, "waits_for": waits} if waits else choice.reason.data
        reason = Reason(choice.reason.code, f"{where}: {choice.reason.text}", data)
        lines.append(_line(gang.slot, state, reason, decision.at, choice.rejected))
    return lines


def _lost(gangs: Iterable[Gang], decisions: list[Decision]) -> list[Explained]:
    """How the gangs ended that those in their slots now stand in for: the last one of each slot, where it was not asked to
    end."""
    held = {g.slot for g in gangs if g.ended_at is None}
    found: dict[str, Explained] = {}
    for decision in decisions:  # the newest first
        for choice in decision.choices:
            known = choice.subject in found or choice.subject not in held
            if isinstance(choice.action, EndGang) and not known and choice.reason.code != "gang.stopped":
                reason = choice.reason
                found[choice.subject] = _line(choice.action.gang_id, "ended", reason, decision.at, ())
    return [found[slot] for slot in sorted(found)]


def _rounds(state: State, gangs: list[Gang], run: str) -> list[Explained]:
    """Why a run's rounds have as many steps as they have, in its coordinator's own words; and who is kept out."""
    heads = {g.id for g in gangs if g.role is Role.COORDINATOR and g.workload == run and g.ended_at is None}
    lines = []
    for report in (r for r in state.reports if r.gang_id in heads):
        why, kept_out = report.status.get("why"), report.status.get("kept_out") or {}
        if isinstance(why, str) and why:
            lines.append(Explained(f"{run}.rounds", "is", "steps", why, report.at))
        for slot, reason in kept_out.items():
            lines.append(
                Explained(slot, "waits", "quarantined", f"kept out for a while: {reason}", report.at)
            )
    return lines


def _waiting(name: str, gangs: list[Gang], decisions: list[Decision], whole: bool) -> list[Explained]:
    """The last word on each slot that is not held: what it waits for."""
    held = {g.slot for g in gangs if g.ended_at is None}
    told: set[str] = set()
    lines = []
    for decision in decisions:
        for waiting in decision.waiting:
            mine = waiting.workload == name if whole else _is_or_below(waiting.subject, name)
            answered = any(_is_or_below(slot, waiting.subject) for slot in held | told)
            if mine and not answered:
                lines.append(_waits(waiting, decision))
                told.add(waiting.subject)
        told |= {c.subject for c in decision.choices if isinstance(c.action, StartGang)}
    return sorted(lines, key=lambda line: line.subject)


def _waits(waiting: Waiting, decision: Decision) -> Explained:
    return _line(waiting.subject, "waits", waiting.reason, decision.at, waiting.rejected)


def _last_choices(name: str, decisions: list[Decision]) -> list[Explained]:
    """Where nothing runs or waits: the last things that were done about it, the workload's own state aside."""
    found: list[tuple[Decision, Choice]] = [
        (d, c)
        for d in decisions
        for c in d.choices
        if _is_or_below(c.subject, name) and not isinstance(c.action, SetWorkloadState)
    ]
    return [_line(c.subject, "done", c.reason, d.at, c.rejected) for d, c in found[:5]]


def _is_or_below(subject: str, name: str) -> bool:
    return subject == name or subject.startswith((f"{name}.", f"{name}@"))


def _line(subject: str, state: str, reason: Reason, at: float, rejected: Iterable[Rejected]) -> Explained:
    against = [Against(r.what, r.reason.code, r.reason.text) for r in rejected]
    return Explained(subject, state, reason.code, reason.text, at, dict(reason.data), against)
