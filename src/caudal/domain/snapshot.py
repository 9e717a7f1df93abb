"""The world at one moment, frozen: all that a policy may look at."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from decimal import Decimal

from caudal.domain.decision import Intent
from caudal.domain.fleet import FleetSpec, Lease, Machine, Offer
from caudal.domain.gang import Gang, GangStatus, Report
from caudal.domain.model import ModelRecord
from caudal.domain.workload import Workload


@dataclass(frozen=True, slots=True)
class State:
    """What the store knows: our beliefs and promises. `version` rises with every change but reports'.

    `gangs` are all that are not over, and for each slot the last few that are (for back-off and
    `explain`); `intents` the open ones and those that failed lately; `leases` the live ones.
    """

    version: int
    fleet: FleetSpec | None
    workloads: tuple[Workload, ...] = ()
    leases: tuple[Lease, ...] = ()
    gangs: tuple[Gang, ...] = ()
    intents: tuple[Intent, ...] = ()
    reports: tuple[Report, ...] = ()


@dataclass(frozen=True, slots=True)
class Snapshot:
    """State plus what providers, drivers and the model store said just now.

    A site in `silent_providers` or `silent_drivers` did not answer: of its machines or gangs nothing is
    known now, which is different from their not being there. `silent_since` says since when each silent
    driver has been (site → time); `stray_since` since when each machine with our tag and no live lease has
    been seen (machine id → time). Both are the observer's own memory: a new one starts counting again.
    `spent_usd` is what each team with a budget has spent in this calendar month (UTC); a team that is not in it has
    no budget.
    """

    at: float
    state: State
    offers: tuple[Offer, ...] = ()
    machines: tuple[Machine, ...] = ()
    gangs: tuple[GangStatus, ...] = ()
    models: tuple[ModelRecord, ...] = ()
    silent_providers: frozenset[str] = frozenset()
    silent_drivers: frozenset[str] = frozenset()
    silent_since: Mapping[str, float] = field(default_factory=dict)
    stray_since: Mapping[str, float] = field(default_factory=dict)
    spent_usd: Mapping[str, Decimal] = field(default_factory=dict)

    @property
    def version(self) -> int:
        """The version of the state that this was taken with."""
        return self.state.version
