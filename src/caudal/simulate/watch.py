"""A store that remembers every row that was ever committed, for the checkers. Decides nothing.

It hands everything on to the store behind it, and keeps what the checkers would otherwise have to read
again after every event.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence

from caudal.domain.decision import Decision, Intent, StopGang
from caudal.domain.event import Event, Point
from caudal.domain.fleet import FleetSpec, Lease
from caudal.domain.gang import Gang, Report
from caudal.domain.key import ApiKey, UsageBatch, UsageHour
from caudal.domain.snapshot import State
from caudal.domain.workload import Workload
from caudal.ports import Change, Holder, Notable, Store


class WatchedStore:
    """Implements `ports.Store` over another one. `on_commit` is called with each change that was kept."""

    def __init__(self, store: Store) -> None:
        self.fleet: FleetSpec | None = None
        self.workloads: dict[str, Workload] = {}
        self.leases: dict[str, Lease] = {}
        self.gangs: dict[str, Gang] = {}
        self.intents_seen: dict[str, Intent] = {}
        self.stops: set[str] = set()
        """The gangs that an intent to stop was ever written for."""
        self.reports: dict[str, Report] = {}
        self.version = 0
        self.epoch = 0
        self.commits = 0
        self.on_commit: Callable[[Change, int], None] = lambda change, version: None
        self._store = store
        self._state: State | None = None

    def read(self) -> State:
        """One consistent view; read again from the store behind it once something has been written."""
        if self._state is None:
            self._state = self._store.read()
        return self._state

    def commit(
        self, change: Change, *, expect_version: int | None = None, leader_epoch: int | None = None
    ) -> int:
        """Write all of it or nothing, and remember it."""
        self._state = None
        version = self._store.commit(change, expect_version=expect_version, leader_epoch=leader_epoch)
        self.on_commit(change, version)
        self.fleet = change.fleet or self.fleet
        self.workloads.update((w.name, w) for w in change.workloads)
        self.leases.update((lease.id, lease) for lease in change.leases)
        self.gangs.update((g.id, g) for g in change.gangs)
        self.intents_seen.update((i.id, i) for i in change.intents)
        self.stops.update(i.action.gang_id for i in change.intents if isinstance(i.action, StopGang))
        self.version = version
        self.commits += 1
        return version

    def lead(self, holder: Holder, now: float, ttl_s: float) -> int:
        """Become the leader, or stay it."""
        epoch = self._store.lead(holder, now, ttl_s)
        assert epoch >= self.epoch, f"the leader's epoch went back from {self.epoch} to {epoch}"
        self.epoch = epoch
        return epoch

    def leader(self) -> tuple[Holder, int, float] | None:
        """The holder, the epoch and when its term ends."""
        return self._store.leader()

    def resign(self, epoch: int) -> None:
        """End the term now."""
        self._store.resign(epoch)

    def put_report(
        self, report: Report, points: Sequence[Point] = (), notable: Notable | None = None
    ) -> None:
        """Keep a gang's last report, its points, and what is notable of them."""
        self._state = None
        self._store.put_report(report, points, notable)
        self.reports[report.gang_id] = report

    def points(self, run: str, after_seq: int = -1, limit: int = 10_000) -> list[Point]:
        """A run's curve, in order."""
        return self._store.points(run, after_seq, limit)

    def events(self, after_seq: int = 0, limit: int = 1000, subject: str | None = None) -> list[Event]:
        """Events in order of seq."""
        return self._store.events(after_seq, limit, subject)

    def last_event_seq(self) -> int:
        """The newest event's seq."""
        return self._store.last_event_seq()

    def decisions(self, subject: str, limit: int = 20) -> list[Decision]:
        """The newest decisions about a subject."""
        return self._store.decisions(subject, limit)

    def intents(self, subject: str, limit: int = 50) -> list[Intent]:
        """A subject's intents in any state."""
        return self._store.intents(subject, limit)

    def lease_history(self, since: float = 0.0, until: float = math.inf) -> list[Lease]:
        """Leases, also those that have ended."""
        return self._store.lease_history(since, until)

    def gang_history(self, since: float = 0.0, until: float = math.inf) -> list[Gang]:
        """Gangs, also those that are over."""
        return self._store.gang_history(since, until)

    def api_keys(self) -> list[ApiKey]:
        """Every key that was ever made."""
        return self._store.api_keys()

    def add_usage(self, batches: Sequence[UsageBatch]) -> None:
        """Add what was used, each batch once."""
        self._store.add_usage(batches)

    def usage(
        self, since: float = 0.0, until: float = math.inf, key_id: str | None = None
    ) -> list[UsageHour]:
        """What was used, by key, model and hour."""
        return self._store.usage(since, until, key_id)
