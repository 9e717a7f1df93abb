"""AWS as a provider: machines of EC2 for all sites that name it, in one or several regions.

What it promises beyond the port:

- **Never two for a lease.** Every call bears the intent's token as EC2's ClientToken, and a lease that shows a machine,
  or was given one that the list does not show yet, gets no other.
- **Never another's.** Whose a machine is, its tag says; before one is ended the tag is read again.
- **No loop on refusals.** An offer that AWS refused is listed with nothing available until its pause is over.

It keeps what it learnt in memory only: the truth is EC2's own list.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from typing import TypeVar

from caudal.catalog.aws_types import PRICE_REGION
from caudal.domain.errors import (
    CaudalError,
    NoCapacity,
    NotAllowed,
    NotOffered,
    QuotaExceeded,
    Unreachable,
)
from caudal.domain.fleet import Contract, Machine, Market, Offer, ProviderSpec, SiteSpec
from caudal.ports import Clock, Listing
from caudal.providers.aws import contracts as terms
from caudal.providers.aws import launch, rows
from caudal.providers.aws.clients import Clients, Patience
from caudal.providers.aws.errors import TokenSpent
from caudal.providers.aws.offers import Fleet, Region, offers_of
from caudal.providers.aws.refusals import Refusals
from caudal.providers.aws.region import AwsRegion
from caudal.providers.aws.region import Listing as RegionListing

FRESH_S = 1.0  # so long a look at a region's machines says whether it answers
MAX_AT_ONCE = 8  # regions that are asked side by side
REMEMBERED = 10_000

T = TypeVar("T")
UserData = Callable[[str, Offer], str]


class AwsProvider:
    """Implements `ports.Provider` and `ports.Regional`.

    `sites` and `contracts` may be the whole fleet's: those of other providers are left out. `user_data(lease_id,
    offer)` is what a machine runs when it boots; it must give the same text for the same lease, since the text is
    part of what a token was used for. `endpoint` of the spec is empty or a URL of this machine, never `fake`.
    """

    def __init__(
        self,
        spec: ProviderSpec,
        sites: Sequence[SiteSpec],
        contracts: Sequence[Contract],
        fleet: str,
        user_data: UserData,
        clock: Clock,
        patience: Patience | None = None,
    ) -> None:
        assert spec.kind == "aws" and fleet, "a provider of AWS, for a fleet with a name"
        self.name = spec.name
        self._most = spec.max_machines
        self._sites = {site.name: site for site in sites if site.provider == spec.name}
        self._contracts = {
            c.name: c for c in contracts if c.provider == spec.name and c.kind in terms.MARKETS
        }
        self._fleet = fleet
        self._user_data = user_data
        self._clock = clock
        self.clients = Clients(spec.name, spec.account, spec.endpoint, clock, patience or Patience())
        self._regions = {
            name: AwsRegion(name, self._in(name), fleet, self.clients, clock)
            for name in sorted({site.region for site in self._sites.values()})
        }
        self._others: dict[str, AwsRegion] = {}  # where `elsewhere` looked last
        self._refusals = Refusals()
        self._in_doubt: dict[str, None] = {}  # tokens whose answer was lost: their machine may exist
        self._given: dict[str, tuple[str, str]] = {}  # by lease: the region and the id that RunInstances gave
        self._last: dict[str, RegionListing] = {}  # by region: what was listed when it last answered
        self._looked: dict[str, tuple[float, CaudalError | None]] = {}  # and when it was last asked
        self._threads = ThreadPoolExecutor(MAX_AT_ONCE, thread_name_prefix=f"aws-{spec.name}")

    def machines(self) -> Sequence[Machine]:
        """Our machines in all our regions, by id. Raises Unreachable where one of them does not answer."""
        found = self._ask_all(self._look)
        for answer in found.values():
            if isinstance(answer, CaudalError):
                raise answer
        return self._taken(found)

    def listing(self) -> Listing:
        """The same from the regions that answer, with the sites of those that do not. Raises where none does."""
        found = self._ask_all(self._look)
        silent = {name for name, answer in found.items() if isinstance(answer, CaudalError)}
        if silent and len(silent) == len(found):
            return Listing(self.machines(), frozenset())  # raises, or they are all back
        sites = frozenset(s.name for s in self._sites.values() if s.region in silent)
        return Listing(self._taken(found), sites)

    def offers(self) -> Sequence[Offer]:
        """What the regions that answer have, committed capacity first. Raises Unreachable where none answers,
        NotOffered where a site names a region or a type that AWS does not have."""
        spot = any(not s.markets or Market.SPOT.value in s.markets for s in self._sites.values())
        found = self._ask_all(lambda region: self._facts(region, spot))
        errors = [answer for answer in found.values() if isinstance(answer, CaudalError)]
        wrong = next((e for e in errors if isinstance(e, NotOffered)), errors[0] if errors else None)
        if wrong is not None and (isinstance(wrong, NotOffered) or len(errors) == len(found)):
            raise wrong
        fleet = self._described()
        offers: list[Offer] = []
        for site in self._sites.values():
            facts = found[site.region]
            if not isinstance(facts, CaudalError):
                offers += offers_of(site, facts, fleet)
        return sorted(offers, key=lambda o: not o.contract)  # committed first over all sites

    def acquire(self, lease_id: str, offer: Offer, token: str) -> None:
        """RunInstances, with the token as ClientToken. Raises NoCapacity, QuotaExceeded, NotAllowed, NotOffered,
        Unreachable; after all but the last the offer rests."""
        region, wish = self._wish(lease_id, offer, token)
        if self._has(region, lease_id):
            return
        now = self._clock.now()
        standing = self._refusals.standing(offer.id, now)
        if standing is not None and token not in self._in_doubt:
            raise _again(standing.error, offer.id, standing.until - now)
        self._check_room(offer)
        try:
            if group := launch.placement_group(wish):
                region.ensure_group(group)
            machine_id = region.run(launch.request(wish))
        except Unreachable:
            _remember(self._in_doubt, token, None)
            raise
        except TokenSpent as error:
            self._spent(region, lease_id, error)
            return
        except CaudalError as error:
            self._in_doubt.pop(token, None)
            self._refusals.note(offer.id, error, now)
            raise
        self._in_doubt.pop(token, None)
        self._refusals.forget(offer.id)
        _remember(self._given, lease_id, (region.name, machine_id))

    def release(self, machine_id: str) -> None:
        """TerminateInstances; one that is gone is fine. Raises NotAllowed where its tag says that it is not ours,
        Unreachable where a region that may have it does not answer."""
        given = {of for of, (_, known) in self._given.items() if known == machine_id}
        for region in self._likely(machine_id):
            row = region.instance(machine_id)
            if row is None:
                continue
            if rows.tags(row).get(launch.FLEET_TAG) != self._fleet:
                raise NotAllowed(
                    f"machine {machine_id} is not of fleet {self._fleet}",
                    where=f"provider {self.name}, {region.name}",
                    why="its tag says so, and another's machine is never touched",
                )
            if rows.state(row) != rows.GONE:
                region.terminate(machine_id)
            self._made_room(row)
            return
        for lease_id in given:  # it was given to us, and the list does not show it yet
            self._regions[self._given[lease_id][0]].terminate(machine_id)

    def elsewhere(self) -> tuple[list[Machine], list[str]]:
        """Our machines in regions where the fleet has no site (any more), and the regions that did not answer. Asks
        every region of the account, so it is for whoever ends a fleet or looks for what was forgotten, not for the
        loop. What it finds can be released. Raises Unreachable, NotAllowed."""
        first = next(iter(self._regions), PRICE_REGION)
        rows_found = self.clients.call(first, "describe_regions")["Regions"]
        names = {str(row["RegionName"]) for row in rows_found if row.get("OptInStatus") != "not-opted-in"}
        self._others = {
            name: AwsRegion(name, (), self._fleet, self.clients, self._clock)
            for name in sorted(names - self._regions.keys())
        }
        found = self._ask_all(AwsRegion.listing, self._others)
        silent = [name for name, answer in found.items() if isinstance(answer, CaudalError)]
        return self._taken(found), silent

    def close(self) -> None:
        """End its threads."""
        self._threads.shutdown(wait=False, cancel_futures=True)

    def _in(self, region: str) -> list[SiteSpec]:
        return [site for site in self._sites.values() if site.region == region]

    def _ask_all(
        self, ask: Callable[[AwsRegion], T], among: Mapping[str, AwsRegion] | None = None
    ) -> dict[str, T | CaudalError]:
        """Every region's answer or error, asked side by side so that a slow one costs its own time only."""

        def one(region: AwsRegion) -> T | CaudalError:
            try:
                return ask(region)
            except CaudalError as error:
                return error

        regions = list((self._regions if among is None else among).values())
        answers = map(one, regions) if len(regions) < 2 else self._threads.map(one, regions)
        return {region.name: answer for region, answer in zip(regions, answers, strict=True)}

    def _look(self, region: AwsRegion) -> RegionListing:
        """A region's listing, remembered together with whether there was one."""
        now = self._clock.now()
        try:
            listing = region.listing()
        except CaudalError as error:
            self._looked[region.name] = (now, error)
            raise
        self._last[region.name], self._looked[region.name] = listing, (now, None)
        return listing

    def _facts(self, region: AwsRegion, spot: bool) -> Region:
        """What its offers are made of, of a region that answers: much of it is kept, and what was kept of a region
        that is away must not be offered."""
        at, error = self._looked.get(region.name, (-FRESH_S, None))
        if self._clock.now() - at >= FRESH_S:
            self._look(region)
        elif error is not None:
            raise error
        return region.facts(spot, bool(self._contracts))

    def _taken(self, found: dict[str, RegionListing | CaudalError]) -> list[Machine]:
        machines: list[Machine] = []
        for answer in found.values():
            if not isinstance(answer, CaudalError):
                machines += answer.machines
        return sorted(machines, key=lambda machine: machine.id)

    def _described(self) -> Fleet:
        """What the offers depend on; counts are those of the last look at the machines, a moment ago."""
        now = self._clock.now()
        held: dict[str, int] = {}
        for listing in self._last.values():
            for contract, count in listing.by_contract.items():
                held[contract] = held.get(contract, 0) + count
        total = sum(len(listing.machines) for listing in self._last.values())
        return Fleet(
            provider=self.name,
            contracts=tuple(self._contracts.values()),
            held=held,
            today=terms.day(now),
            room=max(0, self._most - total) if self._most else None,
            refused=lambda offer_id: self._refusals.standing(offer_id, now) is not None,
        )

    def _wish(self, lease_id: str, offer: Offer, token: str) -> tuple[AwsRegion, launch.Wish]:
        site = self._sites.get(offer.site)
        contract = self._contracts.get(offer.contract)
        where = f"provider {self.name}"
        if site is None:
            raise NotOffered(f"{self.name} has no site {offer.site!r}", where=where)
        if offer.contract and contract is None:
            raise NotOffered(f"{self.name} has no contract {offer.contract!r}", where=where)
        region = self._regions[site.region]
        given = terms.Left(0)
        if contract is not None:
            given = terms.left(contract, site, region.reservations(), 0, terms.day(self._clock.now()))
        text = self._user_data(lease_id, offer)
        return region, launch.Wish(
            self._fleet, lease_id, token, site, offer, contract, text, given.zone, given.group
        )

    def _has(self, region: AwsRegion, lease_id: str) -> bool:
        """Whether the lease has a machine, listed or only given."""
        found = region.of_lease(launch.LEASE_TAG, lease_id)
        if any(rows.state(row) != rows.GONE for row in found):
            return True
        given = self._given.get(lease_id)
        if given is None:
            return False
        if given[1] in {str(row["InstanceId"]) for row in found}:
            del self._given[lease_id]  # it is gone
            return False
        return True

    def _spent(self, region: AwsRegion, lease_id: str, error: TokenSpent) -> None:
        """The token was used for other parameters (an image or a script that has changed since): the machine that
        was given then is the lease's, if it is still there."""
        if self._has(region, lease_id):
            return
        raise Unreachable(
            "a machine was asked for under this token before, with other parameters, and is not listed",
            where=error.where,
            why=error.why,
            remedy="it is asked anew, under another token, once this lease is given up",
        )

    def _check_room(self, offer: Offer) -> None:
        if self._most and sum(len(listing.machines) for listing in self._ask_machines()) >= self._most:
            raise NoCapacity(
                f"provider {self.name} has its {self._most} machines already",
                where=offer.id,
                remedy="raise `max_machines` of the provider in the fleet file",
            )

    def _ask_machines(self) -> list[RegionListing]:
        self.machines()
        return list(self._last.values())

    def _likely(self, machine_id: str) -> list[AwsRegion]:
        """The region that listed it, else all of them that are known."""
        for name, listing in self._last.items():
            if any(machine.id == machine_id for machine in listing.machines):
                return [self._regions[name]]
        return [*self._regions.values(), *self._others.values()]

    def _made_room(self, row: rows.Row) -> None:
        """What was refused for want of room may be had again."""
        site = rows.tags(row).get(launch.SITE_TAG, "")
        self._refusals.forget_like(f"{self.name}/{site}/{row.get('InstanceType', '')}/")


def _again(error: CaudalError, offer_id: str, wait_s: float) -> CaudalError:
    """A refusal that still stands, said without asking AWS again. Always one that makes placement look elsewhere."""
    kind = QuotaExceeded if isinstance(error, QuotaExceeded) else NoCapacity
    return kind(
        f"offer {offer_id} was refused a moment ago: {error.what}",
        where=error.where,
        why=error.why,
        remedy=error.remedy or f"it is asked for again in {wait_s:.0f} s; another offer may be had at once",
    )


def _remember(memory: dict[str, T], key: str, value: T) -> None:
    """Keep it, and not more than so many."""
    memory[key] = value
    while len(memory) > REMEMBERED:
        del memory[next(iter(memory))]
