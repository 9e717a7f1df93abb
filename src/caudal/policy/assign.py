"""Goes through the slots that should be held: which are, which can be started now and where, and for what
the others wait."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import replace

from caudal.domain.decision import Reason, StartGang
from caudal.domain.fleet import Lease, LeaseState
from caudal.domain.gang import Gang, gang_id
from caudal.policy.board import Board
from caudal.policy.budgets import spent
from caudal.policy.capacity import Buyer, impossible
from caudal.policy.desired import Desired
from caudal.policy.leaving import move_off
from caudal.policy.placement import Placement, Placer
from caudal.policy.recovery import give_up, grace_over, start_not_before
from caudal.policy.slots import Slot
from caudal.policy.together import buy, homes


def assign(board: Board, wanted: Desired, placer: Placer, buyer: Buyer) -> frozenset[str]:
    """Start what can be started. Returns the slots for which there is no room on any node."""
    holders = {name: board.holder(name) for name in wanted.slots}
    planned = homes(board, [s for s in wanted.slots.values() if holders[s.name] is None], placer)
    unplaced: list[tuple[Slot, Placement]] = []
    for slot in wanted.slots.values():
        holder = holders[slot.name]
        if holder is None:
            nowhere = _start(board, slot, placer, planned.get(slot.name)) if _may_start(board, slot) else None
            if nowhere is not None:
                unplaced.append((slot, nowhere))
        elif holder.stopping:
            text = f"{holder.id} has to end before it is started again"
            board.wait(slot.name, slot.workload, Reason("slot.stopping", text))
        else:
            _held(board, slot, holder, placer, buyer)
    return frozenset(_find_nodes(board, unplaced, placer, buyer))


def _held(board: Board, slot: Slot, holder: Gang, placer: Placer, buyer: Buyer) -> None:
    """A slot that is held: nothing to do, unless contact with its node is lost."""
    lease = board.leases.get(holder.lease_id)
    if lease is not None and lease.state is LeaseState.ACTIVE and lease.id in board.leaving:
        move_off(board, slot, holder, lease, placer, buyer)
    if lease is None or lease.state is not LeaseState.SUSPECT:
        return
    if not grace_over(board, holder):
        since = lease.suspect_since if lease.suspect_since is not None else board.now
        data = {"grace_until": since + board.rules.grace_s}
        text = f"contact with site {holder.site} is lost; replaced if it stays so for the grace"
        board.wait(slot.name, slot.workload, Reason("contact.lost", text, data))
        return
    placement = placer.place(slot, leaving=holder.site)
    if placement.lease is not None and placement.ready:
        give_up(board, holder)
        _start_at(board, slot, placement.lease, placement)
        return
    if placement.lease is None:
        buyer.for_slot(slot, placer, leaving=holder.site)
    text = f"contact with site {holder.site} is lost, and no other site can take it: {placement.reason.text}"
    board.wait(slot.name, slot.workload, Reason("contact.no_other_site", text), placement.rejected)


def _may_start(board: Board, slot: Slot) -> bool:
    """Whether nothing but room is in the way: no gang of it still lives anywhere that can be seen, and its
    back-off is over. What is in the way is waited for."""
    living = next((g.id for g in board.ended(slot.name) if board.alive(g.id)), None)
    if living is not None:
        text = f"{living} was given up and still runs; it has to end first"
        board.wait(slot.name, slot.workload, Reason("slot.fenced", text))
        return False
    workload = board.workloads.get(slot.workload)
    over = spent(board.snapshot.state.fleet, workload, board.snapshot.spent_usd)
    if over is not None and over[0].stop_running:
        board.wait(slot.name, slot.workload, over[1])
        return False
    not_before = start_not_before(board, slot.name, workload.applied_at if workload else 0.0)
    if board.now < not_before:
        newest = board.ended(slot.name)[0]
        text = f"{newest.id} ended ({newest.end_reason}); it is started again after a pause"
        reason = Reason("slot.back_off", text, {"start_at": not_before})
        board.wait(slot.name, slot.workload, reason)
        return False
    return True


def _start(board: Board, slot: Slot, placer: Placer, home: Lease | None) -> Placement | None:
    """Start a slot where it fits, or wait for its node. Returns why it fits nowhere, where it does not."""
    placement = (placer.place_home(slot, home) if home is not None else None) or placer.place(slot)
    if placement.lease is None:
        return placement
    if placement.ready:
        _start_at(board, slot, placement.lease, placement)
    else:
        _await(board, slot, placement.lease, placement)
    return None


def _find_nodes(
    board: Board, unplaced: list[tuple[Slot, Placement]], placer: Placer, buyer: Buyer
) -> Iterator[str]:
    """Take nodes for what fits on none: for all together, and what that leaves out one by one. Yields the slots for
    which there is no room and none to be had."""
    bought = buy(board, buyer, [slot for slot, _ in unplaced], placer) if len(unplaced) > 1 else {}
    for slot, placement in unplaced:
        never = impossible(board, slot)
        lease = (
            None
            if never
            else bought.get(slot.name) or placer.place(slot).lease or buyer.for_slot(slot, placer)
        )
        if lease is None:
            reason = never or buyer.broke(slot) or placement.reason
            board.wait(slot.name, slot.workload, reason, placement.rejected)
            yield slot.name
        else:
            _await(board, slot, lease, placement)


def _await(board: Board, slot: Slot, lease: Lease, placement: Placement) -> None:
    text = f"node {lease.node} is on its way"
    board.wait(
        slot.name, slot.workload, Reason("node.booting", text, {"lease": lease.id}), placement.rejected
    )


def _start_at(board: Board, slot: Slot, lease: Lease, placement: Placement) -> None:
    workload = board.workloads.get(slot.workload)
    incarnation = max((g.incarnation for g in board.ended(slot.name)), default=0) + 1
    gang = Gang(
        id=gang_id(slot.name, incarnation),
        slot=slot.name,
        incarnation=incarnation,
        role=slot.role,
        workload=slot.workload,
        generation=slot.generation,
        site=lease.site,
        node=lease.node,
        lease_id=lease.id,
        epoch=lease.epoch,
        resources=slot.resources,
        created_at=board.now,
        model=slot.model,
        model_version=slot.model_version,
        team=workload.spec.team if workload else "",
    )
    reason = placement.reason
    if slot.why:
        reason = replace(reason, text=f"{slot.why}; {reason.text}")
    board.choose(StartGang(gang), slot.name, reason, placement.rejected)
