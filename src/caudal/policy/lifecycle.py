"""What state each workload is in, and why: pending, running, finished, failed or stopped."""

from __future__ import annotations

from caudal.domain.decision import Reason, SetWorkloadState
from caudal.domain.gang import Gang, Role
from caudal.domain.workload import ServiceSpec, Workload, WorkloadState
from caudal.policy.board import Board
from caudal.policy.desired import Desired
from caudal.policy.recovery import failures, fruitless
from caudal.policy.slots import Slot, base_of, end_code

FINAL_EXIT_CODES = frozenset({2, 4})
"""The exit codes of UsageError and Impossible: the run itself says that trying again is of no use."""


def settle_runs(board: Board) -> frozenset[str]:
    """Find the runs that have just finished or failed; returns their names."""
    over: set[str] = set()
    for workload in board.workloads.values():
        if workload.kind != "train" or workload.over:
            continue
        slot = f"{workload.name}.coordinator"
        ended = [g for g in board.ended(slot) if g.generation == workload.generation]
        done = next((g for g in ended if finished(g)), None)
        if done is not None:
            reason = Reason(
                "run.finished", f"{done.id} ended with code 0: the run is done", {"gang": done.id}
            )
            _set(board, workload, WorkloadState.FINISHED, reason)
            over.add(workload.name)
        elif workload.wanted and ended and board.holder(slot) is None:
            reason_failed = _failed(board, workload, slot, ended[0])
            if reason_failed is not None:
                _set(board, workload, WorkloadState.FAILED, reason_failed)
                over.add(workload.name)
    return frozenset(over)


def finished(gang: Gang) -> bool:
    """Whether a coordinator ended with its run done: code 0, and nobody had asked it to end."""
    return gang.exit_code == 0 and not gang.stopping and end_code(gang) == "gang.exited"


def _failed(board: Board, workload: Workload, slot: str, newest: Gang) -> Reason | None:
    row = fruitless(board, slot, workload.applied_at)
    said = board.said(newest, "error")
    error = f": {said}" if isinstance(said, str) and said else ""
    tail = f"{newest.id} ended with code {newest.exit_code}{error}"
    data = {"gang": newest.id, "exit_code": newest.exit_code, "failures": row}
    if newest.exit_code in FINAL_EXIT_CODES and failures(board, slot, workload.applied_at):
        return Reason("run.failed", f"the run cannot be done as it is asked for; {tail}", data)
    if row >= board.rules.max_coordinator_failures:
        return Reason("run.failed", f"{row} coordinators in a row brought it no further; {tail}", data)
    return None


def settle_states(board: Board, wanted: Desired, over: frozenset[str]) -> None:
    """Say of every other workload whether it runs, waits or has stopped."""
    slots: dict[str, list[Slot]] = {}
    for slot in wanted.slots.values():
        slots.setdefault(slot.workload, []).append(slot)
    door = any(g.role is Role.GATEWAY and board.believed_up(g) for g in board.gangs.values())
    for workload in board.workloads.values():
        if workload.name in over or workload.over:
            continue
        if not workload.wanted:
            _stopped(board, workload)
        else:
            _running_or_pending(board, workload, wanted, slots.get(workload.name, []), door)


def _stopped(board: Board, workload: Workload) -> None:
    left = [g.id for g in board.live(workload.name)]
    if left:
        text = f"stopping: {', '.join(left)} still there"
        _set(board, workload, workload.state, Reason("workload.stopping", text))
    else:
        _set(board, workload, WorkloadState.STOPPED, Reason("workload.stopped", "stopped by the user"))


def _running_or_pending(
    board: Board, workload: Workload, wanted: Desired, slots: list[Slot], door: bool
) -> None:
    lacking = _lacking(board, workload, wanted, slots, door)
    if lacking is None:
        _set(board, workload, WorkloadState.RUNNING, Reason("workload.running", _sites(board, workload)))
    else:
        _set(board, workload, WorkloadState.PENDING, lacking)


def _lacking(
    board: Board, workload: Workload, wanted: Desired, slots: list[Slot], door: bool
) -> Reason | None:
    """What a workload with these slots waits for; None where it runs. A run runs with a coordinator and one worker; a
    service with all replicas that can be had now, ready, and (`door`) a gateway there."""
    waits = [w for w in board.waiting if w.workload == workload.name]
    if isinstance(workload.spec, ServiceSpec):
        unready = [s.name for s in slots if not _serves(board, s)]
        waits = [w for w in waits if w.reason.code != "scale.asleep"]
        first = next((w for w in waits if w.subject in unready or not slots), None)
        if first is not None:
            return Reason(first.reason.code, f"{first.subject}: {first.reason.text}")
        if unready:
            return Reason("replica.loading", f"{unready[0]} is starting")
        if not door:
            return Reason("gateway.starting", "the gateway is not there yet")
        own = [model for model in workload.spec.models if model.own]
        asleep = wanted.scales and all(m.scale.on for m in own)
        empty = own and not slots and not asleep
        return Reason("service.empty", "none of its models is in the model store") if empty else None
    head = f"{workload.name}.coordinator"
    if _up(board, head) and any(_up(board, g.slot) for g in board.live(workload.name, Role.WORKER)):
        return None
    if _up(board, head) and board.phase(head) not in ("", "preparing", "waiting", "training"):
        return None
    first = next(iter(waits), None)
    if first is not None:
        return Reason(first.reason.code, f"{first.subject}: {first.reason.text}")
    return Reason("gang.starting", "its gangs are starting")


def _serves(board: Board, slot: Slot) -> bool:
    """Whether a replica is ready: the one that the slot asks for, or still the one that it replaces; where their
    number follows demand, any of the model."""
    base = slot.base
    alike = [g for g in board.live(slot.workload, Role.REPLICA) if base_of(g.slot) == base]
    if slot.why:
        alike = [g for g in board.live(slot.workload, Role.REPLICA) if g.model == slot.model]
    return any(board.ready(g) and not g.stopping for g in alike)


def _up(board: Board, slot: str) -> bool:
    gang = board.holder(slot)
    return gang is not None and board.believed_up(gang)


def _sites(board: Board, workload: Workload) -> str:
    sites = sorted({g.site for g in board.live(workload.name) if not g.stopping})
    asleep = any(w.workload == workload.name and w.reason.code == "scale.asleep" for w in board.waiting)
    return f"runs at {', '.join(sites)}" if sites else "asleep: a request wakes it" if asleep else "runs"


def _set(board: Board, workload: Workload, state: WorkloadState, reason: Reason) -> None:
    if (workload.state, workload.reason) != (state, reason.text):
        board.choose(SetWorkloadState(workload.name, state), workload.name, reason)
