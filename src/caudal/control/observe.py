"""What is there now: asks every provider for its machines, every driver for its gangs, the model store for
its models, and freezes it with the state into a snapshot.

Who does not answer is silent, and of what is there nothing is known then.
"""

from __future__ import annotations

from collections.abc import Sequence

from caudal.domain.errors import CaudalError
from caudal.domain.fleet import Machine, Offer, SiteSpec
from caudal.domain.gang import GangStatus
from caudal.domain.model import ModelRecord
from caudal.domain.snapshot import Snapshot, State
from caudal.ports import Listing, Provider, Regional, World


class Observer:
    """Takes snapshots; remembers since when a site is silent or a machine is a stray.

    That memory is its own: after a restart it counts anew, which only makes it more patient.
    """

    def __init__(self, world: World) -> None:
        self._world = world
        self._silent_since: dict[str, float] = {}
        self._stray_since: dict[str, float] = {}
        self._models: Sequence[ModelRecord] | None = None

    def observe(self, state: State) -> Snapshot:
        """One look at everything. Raises what the model store raises, as long as it has never answered."""
        now = self._world.clock.now()
        sites = self._sites(state)
        offers, machines, silent_providers = self._providers(sites)
        gangs, silent_drivers = self._drivers(sites)
        self._remember_silence(silent_drivers, now)
        self._remember_strays(state, machines, now)
        return Snapshot(
            at=now,
            state=state,
            offers=tuple(offers),
            machines=tuple(machines),
            gangs=tuple(gangs),
            models=tuple(sorted(self._list_models(), key=lambda m: m.id)),
            silent_providers=silent_providers,
            silent_drivers=silent_drivers,
            silent_since=dict(self._silent_since),
            stray_since=dict(self._stray_since),
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

    def _drivers(self, sites: dict[str, SiteSpec]) -> tuple[list[GangStatus], frozenset[str]]:
        gangs: list[GangStatus] = []
        silent: set[str] = set()
        for site in sites:
            driver = self._world.drivers.get(site)
            if driver is None:
                silent.add(site)
                continue
            try:
                gangs += driver.gangs()
            except CaudalError:
                silent.add(site)  # what runs there is unknown, not over
        return gangs, frozenset(silent)

    def _remember_silence(self, silent: frozenset[str], now: float) -> None:
        self._silent_since = {s: self._silent_since.get(s, now) for s in sorted(silent)}

    def _remember_strays(self, state: State, machines: list[Machine], now: float) -> None:
        held = {x.id: x.machine_id for x in state.leases if x.live}
        strays = {m.id for m in machines if m.lease_id and held.get(m.lease_id, "other") not in ("", m.id)}
        self._stray_since = {m: self._stray_since.get(m, now) for m in sorted(strays)}

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
