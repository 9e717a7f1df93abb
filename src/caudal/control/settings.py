"""The numbers that the loop goes by, beside the policy's own rules."""

from __future__ import annotations

from dataclasses import dataclass, field

from caudal.policy.rules import Rules


@dataclass(frozen=True, slots=True)
class Settings:
    """`leader_ttl_s`: how long a leader that says nothing leads on. `max_starts_per_minute`: of one slot.
    `max_stopped_share`: of the healthy gangs, in one decision, unless the user asked for it; one gang may
    always be stopped."""

    rules: Rules = field(default_factory=Rules)
    leader_ttl_s: float = 5.0
    interval_s: float = 0.5
    max_starts_per_minute: int = 12
    max_stopped_share: float = 0.5
