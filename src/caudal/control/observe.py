"""What is there now: asks every provider for its machines, every driver for its gangs, the model store for
its models, and freezes it with the state into a snapshot.

Who does not answer is silent, and of what is there nothing is known then.
"""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from decimal import Decimal

from caudal.domain.bill import DEFAULT_TEAM, Books, spending
from caudal.domain.errors import CaudalError
from caudal.domain.fleet import FleetSpec, Machine, Offer, SiteSpec
from caudal.domain.gang import GangStatus
from caudal.domain.model import ModelRecord
from caudal.domain.snapshot import Snapshot, State
from caudal.domain.term import DAY_S, month_start
from caudal.ports import Listing, Provider, Regional, World

SPENDING_EVERY_S = 30.0
"""What a team spends in between is seen that much later."""


class Observer:
    """Takes snapshots; remembers since when a site is silent or a machine is a stray.

    That memory is its own: after a restart it counts anew, which only makes it more patient.
    """

    def __init__(self, world: World) -> None:
        self._world = world
        self._silent_since: dict[str, float] = {}
        self._stray_since: dict[str, float] = {}
        self._models: Sequence[ModelRecord] | None = None
        self._spent: dict[str, Decimal] = {}  # by team, as of `_spent_at`
        self._spent_at = -math.inf
        self._spent_before: dict[str, Decimal] = {}  # of that, what was spent until `_spent_until`
        self._spent_until = -math.inf

    def observe(self, state: State) -> Snapshot:
        """One look at everything. Raises what the model store raises, as long as it has never answered."""
        now = self._world.clock.now()
        sites = self._sites(state)
        offers, machines, silent_providers = self._providers(sites)
        gangs, silences = self._drivers(sites)
        self._remember_strays(state, machines, now)
        return Snapshot(
            at=now,
            state=state,
            offers=tuple(offers),
            machines=tuple(machines),
            gangs=tuple(gangs),
            models=tuple(sorted(self._list_models(), key=lambda m: m.id)),
            silent_providers=silent_providers,
            silent_drivers=frozenset(silences),
            silent_since={site: now - silent_s for site, silent_s in silences.items()},
            stray_since=dict(self._stray_since),
            spent_usd=self._spending(state, now),
        )

    def _sites(self, state: State) -> dict[str, SiteSpec]:
        """All sites that matter: the fleet's, those that the process was built with, those of leases."""
        sites = {s.name: s for s in self._world.sites}
        sites |= {s.name: s for s in (state.fleet.sites if state.fleet else ())}
        for lease in state.leases:
            sites.setdefault(lease.site, SiteSpec(lease.site, provider="", driver=""))
        return dict(sorted(sites.items()))

    def _providers(self, sites: dict[str, SiteSpec]) -> tuple[list[Offer], list[Machine], frozenset[str]]:
        offers: list[Offer] = []
        machines: list[Machine] = []
        answered: set[str] = set()
        away: set[str] = set()
        for name, provider in sorted(self._world.providers.items()):
            try:
                mine = _listing(provider)
                offered = list(provider.offers())
            except CaudalError:
                continue  # silent: what it has is unknown, not gone
            machines += mine.machines
            offers += offered
            answered.add(name)
            away |= mine.silent
        silent = frozenset(s.name for s in sites.values() if s.provider not in answered or s.name in away)
        return offers, machines, silent

    def _drivers(self, sites: dict[str, SiteSpec]) -> tuple[list[GangStatus], dict[str, float]]:
        """What runs, and for how many seconds each site that did not answer has been silent: from when the first of
        the calls in vain was made until the last one was given up. A call may take seconds, and so it counts."""
        gangs: list[GangStatus] = []
        silences: dict[str, float] = {}
        since: dict[str, float] = {}
        clock = self._world.clock
        for site in sites:
            asked_at = clock.now()
            driver = self._world.drivers.get(site)
            try:
                if driver is not None:
                    gangs += driver.gangs()
                    continue
            except CaudalError:
                pass  # what runs there is unknown, not over
            since[site] = self._silent_since.get(site, asked_at)
            silences[site] = clock.now() - since[site]
        self._silent_since = since
        return gangs, silences

    def _remember_strays(self, state: State, machines: list[Machine], now: float) -> None:
        held = {x.id: x.machine_id for x in state.leases if x.live}
        strays = {m.id for m in machines if m.lease_id and held.get(m.lease_id, "other") not in ("", m.id)}
        self._stray_since = {m: self._stray_since.get(m, now) for m in sorted(strays)}

    def _spending(self, state: State, now: float) -> Mapping[str, Decimal]:
        """What teams have spent this month. Days that are over are billed once, today every `SPENDING_EVERY_S`: a
        month's leases are many."""
        fleet = state.fleet
        if fleet is None or not fleet.budgets:
            return {}
        today = now - now % DAY_S
        if self._spent_until < month_start(now):
            self._spent_before, self._spent_until = {}, month_start(now)
        if self._spent_until < today:
            before = self._bill(fleet, self._spent_until, today)
            self._spent_before = _plus(self._spent_before, before)
            self._spent_until, self._spent_at = today, -math.inf
        if now - self._spent_at >= SPENDING_EVERY_S:
            self._spent = _plus(self._spent_before, self._bill(fleet, today, now))
            self._spent_at = now
        teams = (budget.team or DEFAULT_TEAM for budget in fleet.budgets)
        return {team: self._spent.get(team, Decimal(0)) for team in teams}

    def _bill(self, fleet: FleetSpec, since: float, until: float) -> dict[str, Decimal]:
        store = self._world.store
        providers = {site.name: site.provider for site in fleet.sites}
        leases, gangs = store.lease_history(since, until), store.gang_history(since, until)
        return spending(Books(leases, gangs, (), providers), since, until)

    def _list_models(self) -> Sequence[ModelRecord]:
        try:
            self._models = list(self._world.models.list())
        except CaudalError:
            if self._models is None:
                raise
            # what is stored does not change by not answering: the last list is still true
        return self._models


def _listing(provider: Provider) -> Listing:
    """A provider's list; of one with several regions, of those that answer."""
    if isinstance(provider, Regional):
        return provider.listing()
    return Listing(provider.machines(), frozenset())


def _plus(one: Mapping[str, Decimal], other: Mapping[str, Decimal]) -> dict[str, Decimal]:
    return {team: one.get(team, Decimal(0)) + other.get(team, Decimal(0)) for team in {*one, *other}}
