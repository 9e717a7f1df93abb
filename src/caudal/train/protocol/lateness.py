"""Whose delta is late, and what follows: who is alive is asked once for what it has, the others' leases go back. Pure but
for the marks in the leases."""

from __future__ import annotations

from caudal.train.protocol import rules
from caudal.train.protocol.turns import Lease, Turn


def may_hurry(turn: Turn, lease: Lease) -> bool:
    """Whether its holder can be asked to cut it short: once, and where a round is more than one step."""
    return not lease.hurried and lease.worker in turn.waiting and turn.tempo.inner_steps > 1


def late(turn: Turn, now: float) -> tuple[list[Lease], list[Lease]]:
    """(who is asked to cut its round short, whose leases go back), the round's grace being over. Who is asked has
    HURRY_S."""
    asked: list[Lease] = []
    lost: list[Lease] = []
    for _, lease in sorted(turn.waiting.items()):
        alive = now - lease.member.heard_at <= rules.HURRY_HEARD_S
        (asked if alive and may_hurry(turn, lease) else lost).append(lease)
    if asked:
        turn.deadline = now + rules.HURRY_S
    return asked, lost
