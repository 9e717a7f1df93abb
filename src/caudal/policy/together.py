"""Nodes for several slots at once: what is cheapest for each alone is not what is cheapest for all.

Takes what `packing` finds for all that wait and fit on no node, and keeps to it when the nodes come: each is for the slots
that it was taken for, whichever comes first by name. A single slot is capacity's own business.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence

from caudal.domain.decision import Reason, Rejected
from caudal.domain.fleet import Lease, LeaseState, Market, Offer
from caudal.policy.board import Board
from caudal.policy.capacity import Buyer, impossible, unsuitable
from caudal.policy.contracts import rank
from caudal.policy.filling import Counts, Kind, Option
from caudal.policy.packing import cheapest, into
from caudal.policy.placement import Placer
from caudal.policy.slots import Slot

MOST_KINDS = 12
"""Kinds of slots that are looked at together; then the next ones are, on what room is left."""

ROUNDS = 4
"""So often in one decision; slots of more kinds take nodes one by one."""

NAMED = 20
PAID = 1e-6
"""What a dollar counts that is paid already: of two contracts the cheaper one is drawn on first."""


def homes(board: Board, slots: Sequence[Slot], placer: Placer) -> Mapping[str, Lease]:
    """Slot → the node that was taken for it, of those that have just come or are on their way; and room is kept there.
    Empty where fewer than two nodes are new: then nothing can go wrong."""
    if len(slots) < 2:
        return {}
    used = {g.lease_id for g in board.gangs.values()} | {g.lease_id for g in board.over.values()}
    fresh = [x for x in board.leases.values() if x.id not in used and _usable(board, x)]
    if len(fresh) < 2:
        return {}
    fresh.sort(key=_taken_at)
    found: dict[str, Lease] = {}
    for groups in _rounds(slots, placer):
        kinds = [kind for kind, _ in groups]
        filled = into(kinds, [(x.site, x.machine_type.resources) for x in fresh], _priced(board))
        waiting = [list(alike) for _, alike in groups]
        for lease, counts in zip(fresh, filled, strict=True):
            for slot in _next(waiting, counts):
                found[slot.name] = lease
                placer.promise(slot, lease)
        taken = {lease.id for lease in found.values()}
        fresh = [lease for lease in fresh if lease.id not in taken]
    return found


def buy(board: Board, buyer: Buyer, slots: Sequence[Slot], placer: Placer) -> Mapping[str, Lease]:
    """Take nodes for slots that fit on none, as cheaply as is found for all together; slot → its node. What is left out
    has no room in what is offered, or is to be looked at alone."""
    wanting = [s for s in slots if buyer.broke(s) is None and impossible(board, s) is None]
    if len(wanting) < 2:
        return {}
    found: dict[str, Lease] = {}
    for groups in _rounds(wanting, placer):
        offers = [o for o in buyer.offers() if buyer.against(o) is None]
        if not offers:
            break
        rest = groups if not found else _still(groups, placer, found)
        plan = cheapest([kind for kind, _ in rest], [_option(buyer, o) for o in offers], _priced(board))
        waiting = [list(alike) for _, alike in rest]
        machines = [(offers[f.option], _next(waiting, f.counts)) for f in plan]
        _take(buyer, machines, placer, found)
    return found


def _take(
    buyer: Buyer, machines: Sequence[tuple[Offer, list[Slot]]], placer: Placer, found: dict[str, Lease]
) -> None:
    """Take the nodes of one plan."""
    total = sum(offer.price_usd_per_hour for offer, _ in machines)
    said = f"{len(machines)} nodes" if len(machines) > 1 else "one node"
    how = f"{said} for all {sum(len(s) for _, s in machines)} that wait, ${total}/h, is the least that was found"
    chosen = {offer.id for offer, _ in machines}
    for offer, here in machines:
        if buyer.against(offer) is not None:
            continue  # what a contract had left is used up by the nodes before: whoever is left is looked at alone
        lease = buyer.acquire(offer, _why(offer, here, how), _others(buyer, here[0], offer, chosen, how))
        for slot in here:
            found[slot.name] = lease
            placer.promise(slot, lease)


def _rounds(slots: Sequence[Slot], placer: Placer) -> Iterator[list[tuple[Kind, list[Slot]]]]:
    groups = _groups(slots, placer)
    for at in range(0, min(len(groups), ROUNDS * MOST_KINDS), MOST_KINDS):
        yield groups[at : at + MOST_KINDS]


def _still(
    groups: Sequence[tuple[Kind, list[Slot]]], placer: Placer, found: dict[str, Lease]
) -> list[tuple[Kind, list[Slot]]]:
    """The groups without the slots that have room on the nodes that were just taken."""
    left = []
    for _, alike in groups:
        for slot in alike:
            lease = placer.place(slot).lease
            if lease is None:
                left.append(slot)
            else:
                found[slot.name] = lease
    return _groups(left, placer)


def _usable(board: Board, lease: Lease) -> bool:
    rented = lease.market is not Market.OWN and lease.site in board.sites
    return (
        rented and lease.state in (LeaseState.REQUESTED, LeaseState.ACTIVE) and lease.id not in board.leaving
    )


def _taken_at(lease: Lease) -> tuple[float, int, str]:
    """Nodes in the order in which they were taken; those of one decision are numbered."""
    number = lease.id.rpartition(".")[2]
    return lease.requested_at, int(number) if number.isdigit() else 0, lease.id


def _groups(slots: Sequence[Slot], placer: Placer) -> list[tuple[Kind, list[Slot]]]:
    """Slots that are alike, in the order of the first of each."""
    alike: dict[tuple[object, ...], list[Slot]] = {}
    for slot in slots:
        apart = (slot.workload, slot.role) if slot.apart else None
        alike.setdefault((slot.resources, slot.sites, apart), []).append(slot)
    return [
        (
            Kind(some[0].resources, frozenset(some[0].sites), len(some), some[0].apart,
                 frozenset(placer.sites_taken(some[0]))),
            some,
        )
        for some in alike.values()
    ]  # fmt: skip


def _next(waiting: list[list[Slot]], counts: Counts) -> list[Slot]:
    """The next so many slots of each kind; they are waiting no more."""
    found = []
    for alike, count in zip(waiting, counts, strict=True):
        found += alike[:count]
        del alike[:count]
    return found


def _priced(board: Board) -> list[Option]:
    """What says how much slots are worth: all that is offered by the hour, also what cannot be had just now, so that it
    says the same when the nodes come."""
    here = [o for o in board.snapshot.offers if o.site in board.sites and o.price_usd_per_hour]
    by_the_hour = [o for o in here if not o.contract] or here
    return [Option(o.id, o.site, o.machine_type.resources, float(o.price_usd_per_hour)) for o in by_the_hour]


def _option(buyer: Buyer, offer: Offer) -> Option:
    paid = rank(offer)[0] < 2
    cost = float(offer.price_usd_per_hour) * (PAID if paid else 1.0)
    most, pool = buyer.left(offer)
    return Option(offer.id, offer.site, offer.machine_type.resources, cost, most, pool)


def _why(offer: Offer, here: Sequence[Slot], how: str) -> Reason:
    more = f" and {len(here) - 1} more fit" if len(here) > 1 else " fits"
    paid = f"draws on contract {offer.contract}" if offer.contract else f"${offer.price_usd_per_hour}/h"
    text = f"{here[0].name}{more} on no node; offer {offer.id} ({paid}, {offer.source} of {offer.as_of}) has room: {how}"
    names = [slot.name for slot in here[:NAMED]]
    return Reason(
        "node.needed", text, {"slot": here[0].name, "offer": offer.id, "slots": names, "holds": len(here)}
    )


def _others(buyer: Buyer, slot: Slot, best: Offer, chosen: set[str], how: str) -> tuple[Rejected, ...]:
    found = []
    for offer in buyer.offers():
        if offer.id == best.id:
            continue
        reason = unsuitable(slot, offer, {}, "") or buyer.against(offer)
        if reason is None and offer.id in chosen:
            reason = Reason("offer.second", "it is taken, too, for others that wait")
        elif reason is None:
            reason = Reason(
                "offer.second", f"at ${offer.price_usd_per_hour}/h it is in no cheaper way: {how}"
            )
        found.append(Rejected(f"offer {offer.id}", reason))
    return tuple(found)
