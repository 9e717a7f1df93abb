"""Nodes that have to be left: the provider takes the machine back, or the contract that it is under ends.

Nothing new is placed there. What runs is moved while there is time: a replica ends what it has, another gang goes as
soon as a node that can take it is ready, and at the latest while it can still be stopped in order.
"""

from __future__ import annotations

from caudal.domain.decision import Reason
from caudal.domain.fleet import Lease
from caudal.domain.gang import Gang, Role
from caudal.policy.board import Board
from caudal.policy.capacity import Buyer
from caudal.policy.draining import retire
from caudal.policy.placement import Placer
from caudal.policy.slots import Slot

CODE = "node.leaving"


def move_off(board: Board, slot: Slot, holder: Gang, lease: Lease, placer: Placer, buyer: Buyer) -> None:
    """Bring the gang that holds a slot away from a node that is leaving."""
    leaves_at = board.leaving[lease.id]
    left_s = max(0.0, leaves_at - board.now)
    text = f"node {lease.node} goes in {left_s:.0f} s"
    if holder.role is Role.REPLICA:
        limit_s = max(0.0, left_s - board.rules.stop_grace_s - board.rules.leave_margin_s)
        retire(board, holder, CODE, text, limit_s, leaves_at=leaves_at)
        return
    placement = placer.place(slot)
    late = left_s <= board.rules.stop_grace_s + board.rules.leave_margin_s
    if late or (placement.lease is not None and placement.ready):
        board.stop(holder, CODE, f"{text}; it goes on elsewhere", leaves_at=leaves_at)
        return
    if placement.lease is None:
        buyer.for_slot(slot, placer)
    reason = Reason(CODE, f"{text}, and no other node is ready for it yet", {"leaves_at": leaves_at})
    board.wait(slot.name, slot.workload, reason, placement.rejected)
