"""Replacing replicas: the new one gets ready beside the old one, answers its share of requests for as long as the
user wants to see how it does, and only then does the old one go.

Where there is no room for both, the old one goes first, and of several of one model one after the other.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping

from caudal.domain.decision import Reason
from caudal.domain.gang import Gang, Report, Role
from caudal.domain.workload import RolloutSpec, ServiceSpec
from caudal.policy.board import Board
from caudal.policy.desired import Desired
from caudal.policy.draining import retire
from caudal.policy.placement import amount
from caudal.policy.slots import Slot, base_of


def replace_replicas(board: Board, wanted: Desired, homeless: frozenset[str]) -> None:
    """Let the replicas go whose successor is ready, or cannot be started before they leave. `homeless` are the
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
        until = _held_until(board, gang, slot)
        if board.now < until:
            text = f"{newer} answers its share of requests beside it"
            board.wait(gang.slot, gang.workload, Reason("rollout.hold", text, {"until": until}))
        else:
            text = f"{slot.name} of {newer} is ready"
            retire(board, gang, code, text, board.rules.drain_s, successor=successor.id)
    elif not board.ready(gang):
        board.stop(gang, code, f"{newer} takes its place, and it was not ready itself")
    elif homeless and successor is None:
        lease = board.leases.get(gang.lease_id)
        room = board.free(lease).plus(gang.resources) if lease else gang.resources
        if slot.resources.fits(room) and not _another_is_away(board, gang):
            text = f"no node has {amount(slot.resources)} free for {newer} beside it"
            retire(board, gang, "replace.no_room", text, board.rules.drain_no_room_s, successor=slot.name)


def _another_is_away(board: Board, gang: Gang) -> bool:
    """Whether another replica of the model is on its way out or in: then this one has to answer meanwhile."""
    others = [g for g in board.live(gang.workload, Role.REPLICA) if g.model == gang.model and g.id != gang.id]
    return any(g.stopping or g.id in board.retiring or not board.ready(g) for g in others)


def _held_until(board: Board, gang: Gang, slot: Slot) -> float:
    """Until when the old version goes on beside the new one."""
    rollout = rollout_of(board.workloads[gang.workload].spec, gang.model)
    if slot.model_version == gang.model_version or not rollout.hold_s:
        return board.now
    alike = [g for g in board.live(gang.workload, Role.REPLICA) if g.model == gang.model]
    return held_until(rollout, slot.model_version, alike, board.reports, board.now)


def held_until(
    rollout: RolloutSpec, version: int, gangs: Iterable[Gang], reports: Mapping[str, Report], now: float
) -> float:
    """Until when a model's `version` gets its first share only: from when its first replica was ready on."""
    since = [
        _ready_since(g, reports[g.id])
        for g in gangs
        if g.model_version == version and g.id in reports and reports[g.id].status.get("ready") is True
    ]
    return min(since, default=now) + rollout.hold_s


def rollout_of(spec: object, model: str) -> RolloutSpec:
    """How a service wants a model's versions to follow each other."""
    models = spec.models if isinstance(spec, ServiceSpec) else ()
    return next((m.rollout for m in models if m.id == model), RolloutSpec())


def _ready_since(gang: Gang, report: Report) -> float:
    since = report.status.get("ready_since")
    return float(since) if isinstance(since, int | float) else gang.created_at
