"""Replacing replicas: the new one gets ready beside the old one, and only then is the old one stopped.

Where there is no room for both, the old one goes first.
"""

from __future__ import annotations

from caudal.domain.gang import Gang, Role
from caudal.policy.board import Board
from caudal.policy.desired import Desired
from caudal.policy.placement import amount
from caudal.policy.slots import Slot, base_of


def replace_replicas(board: Board, wanted: Desired, homeless: frozenset[str]) -> None:
    """Stop the replicas whose successor is ready, or cannot be started before they leave. `homeless` are the
    slots for which no node was found in this decision."""
    successors = {s.base: s for s in wanted.slots.values() if s.role is Role.REPLICA}
    for gang in list(board.gangs.values()):
        slot = successors.get(base_of(gang.slot))
        if gang.role is not Role.REPLICA or slot is None or slot.name == gang.slot or gang.stopping:
            continue
        _replace(board, gang, slot, slot.name in homeless)


def _replace(board: Board, gang: Gang, slot: Slot, homeless: bool) -> None:
    code = "model.newer" if slot.model_version != gang.model_version else "generation.changed"
    newer = f"version {slot.model_version}" if code == "model.newer" else f"generation {slot.generation}"
    successor = board.holder(slot.name)
    if successor is not None and board.ready(successor) and not successor.stopping:
        board.stop(gang, code, f"{slot.name} of {newer} is ready", successor=successor.id)
    elif not board.ready(gang):
        board.stop(gang, code, f"{newer} takes its place, and it was not ready itself")
    elif homeless and successor is None:
        lease = board.leases.get(gang.lease_id)
        room = board.free(lease).plus(gang.resources) if lease else gang.resources
        if slot.resources.fits(room):
            text = f"no node has {amount(slot.resources)} free for {newer} beside it"
            board.stop(gang, "replace.no_room", text, successor=slot.name)
