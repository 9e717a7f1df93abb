"""The numbers that a decision goes by, all in one place.

A site that is silent for five seconds is replaced: what was wrongly given up is fenced, so that being wrong costs a
start elsewhere and nothing else.
"""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import Literal

from caudal.domain.fleet import Resources

MIB = 1 << 20


@dataclass(frozen=True, slots=True)
class Rules:
    """Times in seconds.

    Contact: a driver that gives no answer for `suspect_after_s` makes its leases suspect; their work is replaced
    elsewhere `grace_s` later. A machine with our tag and no lease is released after `quarantine_s`. A machine
    that was asked for and is not listed `unlisted_s` after its lease was opened is given up.
    Restarts: the n-th in a row waits `restart_base_s` × `restart_factor`^(n-1), at most `restart_max_s`; the
    row ends with a gang that lived for `healthy_after_s`. A run fails with the `max_coordinator_failures`-th
    coordinator in a row that brought it no further. `leave_s` is how long the workers of a finished run have
    to leave by themselves.
    Draining: gateways have `drain_least_s` to learn that a replica gets nothing new; it is stopped when they say
    that it has nothing left, at the latest after `drain_s`, or after `drain_no_room_s` where its successor cannot
    be started before.
    Leaving: a node whose machine or contract goes at a known time is left from `leave_ahead_s` before (a spot
    machine's notice is two minutes), and `leave_margin_s` before what is there could not be stopped in order.
    `closing`: the fleet is taken down. Nothing is started or taken, all is stopped, and `rented` nodes, or `all`, are
    given back at once.
    """

    suspect_after_s: float = 2.0
    grace_s: float = 3.0
    quarantine_s: float = 30.0
    unlisted_s: float = 45.0
    restart_base_s: float = 0.5
    restart_factor: float = 2.0
    restart_max_s: float = 30.0
    healthy_after_s: float = 60.0
    max_coordinator_failures: int = 8
    stop_grace_s: float = 10.0
    leave_s: float = 5.0
    drain_least_s: float = 2.0
    drain_s: float = 300.0
    drain_no_room_s: float = 5.0
    pull_retry_base_s: float = 5.0
    pull_retry_max_s: float = 60.0
    no_capacity_retry_s: float = 30.0
    idle_release_s: float = 300.0
    leave_ahead_s: float = 150.0
    leave_margin_s: float = 10.0
    boot_s: float = (
        2400.0  # from a machine that runs to a node that has joined; bare metal takes 10 to 30 minutes
    )
    unfit_retry_s: float = 900.0  # an offer whose machine failed its burn-in is left alone for so long
    intent_retry_base_s: float = 0.5
    intent_retry_max_s: float = 15.0
    intent_repeat_s: float = 20.0  # an issued intent whose effect is not seen is issued again after this
    max_start_attempts: int = 6
    max_acquire_attempts: int = 6
    max_calls_without_effect: int = 3
    closing: Literal["", "rented", "all"] = ""
    coordinator: Resources = field(default_factory=lambda: Resources(cpus=0.1, memory_bytes=256 * MIB))
    gateway: Resources = field(default_factory=lambda: Resources(cpus=0.1, memory_bytes=128 * MIB))

    def restart_delay_s(self, failures: int) -> float:
        """How long the next start waits after that many failures in a row."""
        if failures < 1:
            return 0.0
        return min(self.restart_max_s, self.restart_base_s * self.restart_factor ** min(failures - 1, 32))

    def pull_delay_s(self, failures: int) -> float:
        """How long the next pull waits after that many failed ones in a row."""
        if failures < 1:
            return 0.0
        return min(self.pull_retry_max_s, self.pull_retry_base_s * 2.0 ** min(failures - 1, 32))

    def intent_delay_s(self, attempts: int) -> float:
        """How long an intent waits after its call failed for that many times."""
        if attempts < 1:
            return 0.0
        return min(self.intent_retry_max_s, self.intent_retry_base_s * 2.0 ** min(attempts - 1, 32))
