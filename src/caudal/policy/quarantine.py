"""Machines that carry our tag and no live lease: watched for a while, then given back.

A while, because the books may be the ones that are behind; given back, because they bill.
"""

from __future__ import annotations

from caudal.domain.decision import Reason, ReleaseMachine
from caudal.domain.fleet import FleetSpec, Machine, MachineState
from caudal.policy.board import Board


def release_strays(board: Board) -> None:
    """Release the machines that have been in quarantine for long enough."""
    asked = {i.action.machine_id for i in board.open if isinstance(i.action, ReleaseMachine)}
    for machine in board.machines.values():
        since = board.snapshot.stray_since.get(machine.id)
        if since is None or machine.id in asked or not is_stray(board, machine):
            continue
        stray_s = board.now - since
        if machine.silent or machine.state is MachineState.STOPPING:
            continue  # it cannot be asked now, or was
        if stray_s >= board.rules.quarantine_s:
            text = f"machine {machine.id} carries the tag of {machine.lease_id}, which is no live lease"
            reason = Reason("machine.stray", text, {"quarantined_s": stray_s, "site": machine.site})
            board.choose(ReleaseMachine(machine.id, machine.site), machine.site, reason)


def is_stray(board: Board, machine: Machine) -> bool:
    """Whether it is ours by its tag and held by no lease."""
    if not is_ours(board.snapshot.state.fleet, machine):
        return False
    lease = board.leases.get(machine.lease_id)
    return lease is None or (lease.machine_id not in ("", machine.id))


def is_ours(fleet: FleetSpec | None, machine: Machine) -> bool:
    """Whether a machine's tag is a lease of this fleet: they are called FLEET.SITE.VERSION.NUMBER. One without a tag
    is not ours, and one of another fleet in the same account is never touched."""
    return fleet is not None and machine.lease_id.startswith(f"{fleet.name}.{machine.site}.")
