"""What contracts give at a time, what is drawn of it, and when a node has to be left.

A machine under a contract is paid whether it is used or not: it comes before anything that is paid by the hour.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from dataclasses import dataclass, replace
from decimal import Decimal

from caudal.domain.decision import Reason
from caudal.domain.fleet import Contract, FleetSpec, Lease, Market, Offer
from caudal.domain.term import PLACES, committed_per_hour, count_at, in_force, machine_price, moment

MACHINES = frozenset({"reserved", "block", "own"})
"""The kinds that give machines; the others are money."""


@dataclass(frozen=True, slots=True)
class Room:
    """Machines of a contract at a time."""

    has: int
    used: int

    @property
    def left(self) -> int:
        """How many more may be taken."""
        return max(0, self.has - self.used)


def room(contract: Contract, leases: Iterable[Lease], at: float) -> Room:
    """What a contract of machines has then, and how many live leases draw on it."""
    return Room(count_at(contract, at), sum(1 for x in leases if x.live and x.contract == contract.name))


def against(fleet: FleetSpec, offer: Offer, leases: Iterable[Lease], at: float) -> Reason | None:
    """Why an offer under a contract cannot be taken then; None where it can, or draws on none."""
    if not offer.contract:
        return None
    contract = find(fleet, offer.contract)
    if contract is None:
        return Reason("contract.unknown", f"the fleet file has no contract {offer.contract!r}")
    if not in_force(contract, at):
        return Reason(
            "contract.not_in_force", f"contract {contract.name} is from {contract.start} until {contract.end}"
        )
    if contract.kind not in MACHINES:
        return None
    here = room(contract, leases, at)
    if here.left:
        return None
    text = f"contract {contract.name} has {here.has} machines now, and {here.used} are held"
    return Reason("contract.used_up", text, {"has": here.has, "used": here.used})


def under_contracts(
    fleet: FleetSpec, offers: Iterable[Offer], leases: Iterable[Lease], at: float
) -> list[Offer]:
    """The offers as contracts make them that no provider knows of: own machines at what an `own` says that they cost,
    and those on demand at their discount where a `savings` in force has room left, as the cloud will bill them. What
    a `savings` has left is its dollars an hour less those of the leases that draw on it."""
    held = list(leases)
    signed = [c for c in fleet.contracts if in_force(c, at)]
    owned = [c for c in signed if c.kind == "own"]
    plans = [c for c in signed if c.kind == "savings"]
    return [_discounted(fleet, plans, _owned(fleet, owned, o, held, at), held, at) for o in offers]


def _owned(
    fleet: FleetSpec, owned: Iterable[Contract], offer: Offer, held: Iterable[Lease], at: float
) -> Offer:
    if offer.contract or offer.market is not Market.OWN:
        return offer
    for contract in owned:
        if _covers(fleet, contract, offer) and room(contract, held, at).left:
            return replace(offer, price_usd_per_hour=machine_price(contract), contract=contract.name)
    return offer


def _covers(fleet: FleetSpec, contract: Contract, offer: Offer) -> bool:
    site = fleet.site(offer.site)
    here = site is not None and site.provider == contract.provider
    where = not contract.sites or offer.site in contract.sites
    return here and where and contract.machine_type in ("", offer.machine_type.name)


def _discounted(
    fleet: FleetSpec, plans: Iterable[Contract], offer: Offer, held: Iterable[Lease], at: float
) -> Offer:
    if offer.contract or offer.market is not Market.ON_DEMAND:
        return offer
    site = fleet.site(offer.site)
    for plan in plans:
        here = site is not None and site.provider == plan.provider
        if not here or (plan.sites and offer.site not in plan.sites):
            continue
        if plan.machine_type and plan.machine_type != offer.machine_type.name:
            continue
        price = (offer.price_usd_per_hour * (1 - Decimal(str(plan.discount)))).quantize(PLACES).normalize()
        drawn = sum((x.price_usd_per_hour for x in held if x.live and x.contract == plan.name), Decimal(0))
        if drawn + price <= committed_per_hour(plan, at):
            return replace(offer, price_usd_per_hour=price, contract=plan.name)
    return offer


def rank(offer: Offer) -> tuple[int, Decimal]:
    """What comes first: the user's own, then what is paid already, then the cheapest by the hour."""
    tier = 0 if offer.market is Market.OWN else 1 if offer.contract else 2
    return tier, offer.price_usd_per_hour


def find(fleet: FleetSpec | None, name: str) -> Contract | None:
    """The contract of that name."""
    return next((c for c in (fleet.contracts if fleet else ()) if c.name == name), None)


def leaves_at(fleet: FleetSpec | None, lease: Lease, said: Mapping[str, float]) -> float | None:
    """When a node has to be left: the provider takes its machine back (`said`: machine id → when), or the contract
    that it was leased under ends. Its price was that contract's: what runs on goes to a new lease, at a price that is
    looked at anew. None: it may stay, as an own machine does."""
    contract = find(fleet, lease.contract) if lease.contract else None
    ends = contract is not None and contract.kind != "own"
    times = [moment(contract.end)] if contract is not None and ends else []
    if lease.machine_id in said:
        times.append(said[lease.machine_id])
    return min(times, default=None)
