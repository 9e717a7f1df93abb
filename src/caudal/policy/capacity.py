"""Nodes: which to take, under which offer, and which to give back.

Takes the machines that are the user's own first (they cost nothing more), and others only for a slot that
fits on no node there is: those of a contract in force, which are paid whether they are used or not, then the
cheapest offer that can hold it. An offer under a contract has the contract's price, prepayment included: the lease
is opened at it, so that a bill can say whose the contract's money was; for the choice it counts as paid.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import replace

from caudal.domain.decision import AcquireNode, Reason, Rejected, ReleaseNode
from caudal.domain.fleet import Lease, LeaseState, Market, Offer
from caudal.policy.board import Board
from caudal.policy.budgets import spent
from caudal.policy.contracts import MACHINES, against, find, rank, room, under_contracts
from caudal.policy.placement import Placer, amount, numbers
from caudal.policy.slots import Slot
from caudal.policy.unfit import against_offer, joined

ONE_NODE_PROVIDERS = frozenset({"local"})
"""Providers whose site is one share of one machine: a second node there would hold the same cores."""


class Buyer:
    """Takes nodes during one decision, and remembers what it has taken."""

    def __init__(self, board: Board) -> None:
        self._board = board
        self._taken: dict[str, int] = {}

    def own_machines(self) -> None:
        """Take one node at each site whose machines are the user's own and that has none yet."""
        board = self._board
        held = {x.site for x in board.leases.values()}
        for site in board.sites:
            offers = [o for o in self.offers() if o.site == site and o.market is Market.OWN]
            usable = [o for o in offers if self.against(o) is None]
            if site not in held and usable:
                text = f"site {site} has a machine of its own and no node yet"
                self.acquire(usable[0], Reason("node.own", text, {"offer": usable[0].id}), ())

    def for_slot(self, slot: Slot, placer: Placer, leaving: str = "") -> Lease | None:
        """Take the cheapest node that can hold a slot; None where no offer can, now."""
        taken = placer.sites_taken(slot)
        broke = self.broke(slot)
        fitting: list[Offer] = []
        rejected: list[Rejected] = []
        for offer in self.offers():
            reason = unsuitable(slot, offer, taken, leaving) or self.against(offer)
            if reason is None and broke is not None and offer.price_usd_per_hour:
                reason = broke
            if reason is None:
                fitting.append(offer)
            else:
                rejected.append(Rejected(f"offer {offer.id}", reason))
        if not fitting:
            return None
        best = fitting[0]
        first = f"draws on contract {best.contract}" if best.contract else "is the cheapest"
        text = (
            f"{slot.name} fits on no node; offer {best.id} {first} of {len(fitting)} that can hold it "
            f"(${best.price_usd_per_hour}/h, {best.source} of {best.as_of})"
        )
        dearer = [Rejected(f"offer {o.id}", _dearer(o, best)) for o in fitting[1:]]
        reason = Reason("node.needed", text, {"slot": slot.name, "offer": best.id})
        lease = self.acquire(best, reason, tuple(dearer + rejected))
        placer.promise(slot, lease)
        return lease

    def broke(self, slot: Slot) -> Reason | None:
        """That the budget of the slot's team is used up; None where it is not."""
        board = self._board
        found = spent(
            board.snapshot.state.fleet, board.workloads.get(slot.workload), board.snapshot.spent_usd
        )
        return found[1] if found else None

    def offers(self) -> list[Offer]:
        """The offers at the fleet's sites: own, then under a contract, then by the hour, each the cheapest first,
        then in the fleet's order."""
        board = self._board
        order = {site: i for i, site in enumerate(board.sites)}
        here = [o for o in board.snapshot.offers if o.site in order]
        fleet = board.snapshot.state.fleet
        if fleet is not None and fleet.contracts:
            here = under_contracts(fleet, here, board.leases.values(), board.now)
        return sorted(here, key=lambda o: (*rank(o), order[o.site], o.id))

    def against(self, offer: Offer) -> Reason | None:
        """Why nothing can be had of an offer now; None where something can."""
        board = self._board
        if offer.site in board.snapshot.silent_providers or not board.answers(offer.site):
            return Reason("site.silent", f"site {offer.site} does not answer")
        if offer.available is not None and offer.available <= self._taken.get(offer.id, 0):
            return Reason("offer.none_left", f"no machine is left of offer {offer.id}")
        if self._one_node(offer.site) and any(x.site == offer.site for x in board.leases.values()):
            return Reason("offer.none_left", f"site {offer.site} is one node, and it is held")
        fleet = board.snapshot.state.fleet
        signed = against(fleet, offer, board.leases.values(), board.now) if fleet else None
        if signed is not None:
            return signed
        if (unfit := against_offer(board, offer)) is not None:
            return unfit
        for intent in board.failed:
            refused = not intent.error.startswith(("superseded", "not_listed"))
            if refused and isinstance(intent.action, AcquireNode) and intent.action.offer.id == offer.id:
                again_at = intent.changed_at + board.rules.no_capacity_retry_s
                if board.now < again_at:
                    said = intent.error.splitlines()[0] if intent.error else "it failed"
                    return Reason("offer.failed_lately", f"offer {offer.id}: {said}", {"again_at": again_at})
        return None

    def left(self, offer: Offer) -> tuple[int | None, str]:
        """How many machines of an offer can be had now (None: any number), and what it shares that bound with."""
        board, fleet = self._board, self._board.snapshot.state.fleet
        most = None if offer.available is None else max(0, offer.available - self._taken.get(offer.id, 0))
        if self._one_node(offer.site):
            return 1, f"site {offer.site}"
        contract = find(fleet, offer.contract) if offer.contract else None
        if contract is None or contract.kind not in MACHINES:
            return most, ""
        here = room(contract, board.leases.values(), board.now).left
        return here if most is None else min(most, here), f"contract {contract.name}"

    def _one_node(self, site: str) -> bool:
        fleet = self._board.snapshot.state.fleet
        spec = fleet.site(site) if fleet else None
        return spec is not None and spec.provider in ONE_NODE_PROVIDERS

    def acquire(self, offer: Offer, reason: Reason, rejected: tuple[Rejected, ...]) -> Lease:
        """Take one node of an offer."""
        board = self._board
        number = sum(self._taken.values()) + 1
        fleet = board.snapshot.state.fleet
        assert fleet is not None
        lease_id = f"{fleet.name}.{offer.site}.{board.snapshot.version}.{number}"
        node = _node_name(board, offer.site)
        site = fleet.site(offer.site)
        action = AcquireNode(lease_id, node, offer, provider=site.provider if site else "")
        lease = requested(action, board.now)
        self._taken[offer.id] = self._taken.get(offer.id, 0) + 1
        board.choose(action, node, reason, rejected)
        board.set_lease(lease)
        return lease


def requested(action: AcquireNode, now: float) -> Lease:
    """The lease that an acquire opens, with the offer's price frozen into it."""
    offer = action.offer
    return Lease(
        id=action.lease_id,
        node=action.node,
        site=offer.site,
        machine_type=offer.machine_type,
        offer_id=offer.id,
        market=offer.market,
        price_usd_per_hour=offer.price_usd_per_hour,
        state=LeaseState.REQUESTED,
        epoch=1,
        requested_at=now,
        contract=offer.contract,
        provider=action.provider,
    )


def release_nodes(board: Board) -> None:
    """Give back the nodes of sites that left the fleet, and rented ones that stood idle for long."""
    if board.snapshot.state.fleet is None:
        return
    for lease in list(board.leases.values()):
        busy = bool(board.gangs.on(lease.id)) or _haunted(board, lease)
        if board.rules.closing:
            _close(board, lease, busy)
            continue
        if lease.state is not LeaseState.ACTIVE or busy or not joined(board, lease):
            continue
        if lease.site not in board.sites:
            _release(board, lease, "site.removed", f"site {lease.site} is no longer in the fleet")
        elif lease.id in board.leaving and lease.market is not Market.OWN:
            left_s = max(0.0, board.leaving[lease.id] - board.now)
            _release(board, lease, "node.leaving", f"it goes in {left_s:.0f} s, and nothing runs on it")
        elif lease.market is not Market.OWN and _idle_s(board, lease) >= board.rules.idle_release_s:
            idle_s = _idle_s(board, lease)
            _release(board, lease, "node.idle", f"nothing has run on it for {idle_s:.0f} s")


def _close(board: Board, lease: Lease, busy: bool) -> None:
    """The fleet is taken down. A node that nobody can reach is given back with what runs there, after the grace."""
    if board.rules.closing != "all" and lease.market is Market.OWN:
        return
    since = lease.suspect_since
    lost = (
        lease.state is LeaseState.SUSPECT and since is not None and board.now - since >= board.rules.grace_s
    )
    if lost or (lease.state is LeaseState.ACTIVE and not busy):
        _release(board, lease, "fleet.down", "the fleet is taken down")


def impossible(board: Board, slot: Slot) -> Reason | None:
    """Why no node that exists or is offered could ever hold a slot; None where one could, or where a
    provider is silent and so nothing can be said."""
    if board.snapshot.silent_providers or not slot.sites:
        return None
    sizes = [
        (x.machine_type.resources, f"node {x.node}") for x in board.leases.values() if x.site in slot.sites
    ]
    sizes += [
        (o.machine_type.resources, f"offer {o.id}") for o in board.snapshot.offers if o.site in slot.sites
    ]
    if not sizes or any(slot.resources.fits(size) for size, _ in sizes):
        return None
    largest, name = max(sizes, key=lambda s: (s[0].accelerators, s[0].memory_bytes, s[0].cpus, s[1]))
    text = (
        f"it asks {amount(slot.resources)} of one node; the largest there is, {name}, has {amount(largest)}"
    )
    return Reason("impossible", text, {"asked": numbers(slot.resources), "largest": numbers(largest)})


def _release(board: Board, lease: Lease, code: str, text: str) -> None:
    board.choose(ReleaseNode(lease.id), lease.node, Reason(code, f"node {lease.node}: {text}"))
    board.set_lease(replace(lease, state=LeaseState.RELEASING))


def _haunted(board: Board, lease: Lease) -> bool:
    """Whether something that was over in the books still lives there."""
    return any(board.alive(g.id) for g in board.over.on(lease.id))


def _idle_s(board: Board, lease: Lease) -> float:
    ends = [g.ended_at for g in board.over.on(lease.id) if g.ended_at is not None]
    return board.now - max([*ends, lease.active_at or lease.requested_at])


def _node_name(board: Board, site: str) -> str:
    used = {x.node for x in board.leases.values()}
    used |= {g.node for g in board.gangs.values()} | {g.node for g in board.over.values()}
    number = 1
    while f"{site}-{number}" in used:
        number += 1
    return f"{site}-{number}"


def unsuitable(slot: Slot, offer: Offer, taken: Mapping[str, str], leaving: str) -> Reason | None:
    has = offer.machine_type.resources
    if offer.site not in slot.sites:
        return Reason("site.not_asked", f"`at` does not name site {offer.site}")
    if offer.site == leaving:
        return Reason("site.silent", f"contact with site {offer.site} is lost")
    if offer.site in taken:
        return Reason("site.taken", f"site {offer.site} holds {taken[offer.site]}")
    if not slot.resources.fits(has):
        text = f"it has {amount(has)}, and {amount(slot.resources)} is asked"
        return Reason("offer.small", text, {"has": numbers(has), "asked": numbers(slot.resources)})
    return None


def _dearer(offer: Offer, best: Offer) -> Reason:
    if rank(offer)[0] != rank(best)[0]:
        text = f"{best.id} is paid already, and this is not"
    elif offer.price_usd_per_hour == best.price_usd_per_hour:
        text = f"the same price as {best.id}, which comes first"
    else:
        text = f"${offer.price_usd_per_hour}/h is more than ${best.price_usd_per_hour}/h"
    return Reason("offer.second", text)
