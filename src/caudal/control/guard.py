"""The last look at a decision before it is written down: rate limits and blast radius.

A choice that is refused becomes something that waits, with the reason; the rest of the decision stands.
"""

from __future__ import annotations

from dataclasses import replace

from caudal.control.settings import Settings
from caudal.domain.decision import Choice, Decision, Reason, StartGang, StopGang, Waiting
from caudal.domain.gang import Gang
from caudal.domain.snapshot import Snapshot

ASKED_FOR = frozenset(
    {
        "workload.stopped",
        "generation.changed",
        "slot.removed",
        "site.removed",
        "run.finished",
        "run.failed",
        "fleet.down",
        "budget.spent",
        "node.leaving",
    }
)
"""The codes of stops that follow from what the user did, or that the machine under them goes at a known time, however
many they are."""

NOT_HEALTHY = frozenset({"gang.fenced", "gang.unknown", "gang.second"})
"""The codes of stops of gangs that should not be there: they are no loss."""


def guard(decision: Decision, snapshot: Snapshot, settings: Settings) -> Decision:
    """The decision without what goes too fast or too far."""
    gangs = {g.id: g for g in snapshot.state.gangs if g.ended_at is None}
    healthy = {s.gang_id for s in snapshot.gangs if s.alive and s.gang_id in gangs}
    left = max(1, int(len(healthy) * settings.max_stopped_share))
    kept: list[Choice] = []
    refused: list[Waiting] = []
    for choice in decision.choices:
        reason = None
        if isinstance(choice.action, StartGang):
            reason = _too_fast(choice.action.gang, snapshot, decision.at, settings)
        elif isinstance(choice.action, StopGang) and _harms(choice, choice.action, healthy):
            left -= 1
            reason = _too_far(len(healthy), settings) if left < 0 else None
        if reason is None:
            kept.append(choice)
        else:
            refused.append(Waiting(choice.subject, _workload(choice, gangs), reason))
    if not refused:
        return decision
    return replace(decision, choices=tuple(kept), waiting=decision.waiting + tuple(refused))


def _harms(choice: Choice, stop: StopGang, healthy: set[str]) -> bool:
    """Whether a stop takes something that works, on the fleet's own account."""
    return stop.gang_id in healthy and choice.reason.code not in ASKED_FOR | NOT_HEALTHY


def _too_fast(gang: Gang, snapshot: Snapshot, now: float, settings: Settings) -> Reason | None:
    """A slot's starts of the last minute against the limit, whatever the back-off said."""
    lately = [g for g in snapshot.state.gangs if g.slot == gang.slot and g.created_at > now - 60.0]
    if len(lately) < settings.max_starts_per_minute:
        return None
    text = f"{gang.slot} was started {len(lately)} times in the last minute; that is the limit"
    return Reason("guard.rate", text, {"starts": len(lately), "limit": settings.max_starts_per_minute})


def _too_far(healthy: int, settings: Settings) -> Reason:
    text = f"more than {settings.max_stopped_share:.0%} of {healthy} healthy gangs would be stopped at once"
    return Reason("guard.blast_radius", text, {"healthy": healthy, "share": settings.max_stopped_share})


def _workload(choice: Choice, gangs: dict[str, Gang]) -> str:
    if isinstance(choice.action, StartGang):
        return choice.action.gang.workload
    if isinstance(choice.action, StopGang) and choice.action.gang_id in gangs:
        return gangs[choice.action.gang_id].workload
    return ""
