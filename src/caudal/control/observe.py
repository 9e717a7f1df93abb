"""What is there now: asks every provider for its machines, every driver for its gangs, the model store for
its models, and freezes it with the state into a snapshot.

Who does not answer is silent, and of what is there nothing is known then: what the books say of it is kept, and the
snapshot marks it.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from decimal import Decimal
from functools import partial

from caudal.control.asking import Answer, Asking, InTurn
from caudal.domain.bill import DEFAULT_TEAM, Books, spending
from caudal.domain.errors import CaudalError
from caudal.domain.fleet import FleetSpec, Machine, Offer, SiteSpec
from caudal.domain.gang import GangStatus
from caudal.domain.model import ModelRecord
from caudal.domain.snapshot import Snapshot, State
from caudal.domain.term import DAY_S, month_start
from caudal.ports import Driver, Provider, Regional, World

SPENDING_EVERY_S = 30.0
"""What a team spends in between is seen that much later."""


@dataclass(frozen=True, slots=True)
class _Said:
    """What a provider or a driver has."""

    offers: Sequence[Offer] = ()
    machines: Sequence[Machine] = ()
    silent: frozenset[str] = frozenset()
    gangs: Sequence[GangStatus] = ()


@dataclass(slots=True)
class _Found:
    """What all of them have, and the answers that are none, by site."""

    offers: list[Offer] = field(default_factory=list)
    machines: list[Machine] = field(default_factory=list)
    silent_providers: frozenset[str] = frozenset()
    gangs: list[GangStatus] = field(default_factory=list)
    unheard: dict[str, Answer[_Said]] = field(default_factory=dict)


class Observer:
    """Takes snapshots; remembers since when a site is silent or a machine is a stray.

    That memory is its own: after a restart it counts anew, which only makes it more patient.
    """

    def __init__(self, world: World, asking: Asking | None = None) -> None:
        self._world = world
        self._asking = asking or InTurn()
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
        found = self._ask(sites, now)
        silences = self._silences(found.unheard)
        self._remember_strays(state, found.machines, now)
        return Snapshot(
            at=now,
            state=state,
            offers=tuple(found.offers),
            machines=tuple(found.machines),
            gangs=tuple(found.gangs),
            models=tuple(sorted(self._list_models(), key=lambda m: m.id)),
            silent_providers=found.silent_providers,
            silent_drivers=frozenset(found.unheard),
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

    def _ask(self, sites: dict[str, SiteSpec], now: float) -> _Found:
        """Everything that is there, as far as it is known."""
        world, found = self._world, _Found()
        providers = {f"provider {name}": p for name, p in sorted(world.providers.items())}
        drivers = {f"driver {site}": world.drivers[site] for site in sites if site in world.drivers}
        questions: dict[str, Callable[[], _Said]] = {
            k: partial(_provider_says, p) for k, p in providers.items()
        }
        questions |= {k: partial(_driver_says, d) for k, d in drivers.items()}
        answers = self._asking.ask(questions, world.clock)
        answered: set[str] = set()
        away: set[str] = set()
        for name in sorted(world.providers):
            if (said := answers[f"provider {name}"].value) is None:
                continue  # silent: what it has is unknown, not gone
            found.machines += said.machines
            found.offers += said.offers
            answered.add(name)
            away |= said.silent
        found.silent_providers = frozenset(
            s.name for s in sites.values() if s.provider not in answered or s.name in away
        )
        for site in sites:
            answer = answers.get(f"driver {site}", Answer(now))
            if answer.value is not None:
                found.gangs += answer.value.gangs
            else:
                found.unheard[site] = answer  # what runs there is unknown, not over
        return found

    def _silences(self, unheard: Mapping[str, Answer[_Said]]) -> dict[str, float]:
        """For how many seconds each site that did not answer has been silent: from when the first of the calls in vain
        was made until now. A call may take seconds, and so it counts; one that is still on its way is not in vain yet.
        """
        since: dict[str, float] = {}
        for site, answer in unheard.items():
            if not answer.late or site in self._silent_since:
                since[site] = self._silent_since.get(site, answer.asked_at)
        self._silent_since = since
        now = self._world.clock.now()
        return {site: now - at for site, at in since.items()}

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


def _provider_says(provider: Provider) -> _Said:
    """What it offers, and its list; of one with several regions, of those that answer."""
    if isinstance(provider, Regional):
        mine = provider.listing()
        return _Said(list(provider.offers()), mine.machines, mine.silent)
    machines = provider.machines()
    return _Said(list(provider.offers()), machines)


def _driver_says(driver: Driver) -> _Said:
    return _Said(gangs=driver.gangs())


def _plus(one: Mapping[str, Decimal], other: Mapping[str, Decimal]) -> dict[str, Decimal]:
    return {team: one.get(team, Decimal(0)) + other.get(team, Decimal(0)) for team in {*one, *other}}
