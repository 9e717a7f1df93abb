"""What has to end: gangs that are fenced, doubled, unknown, of an older generation, or no longer wanted.

Nothing healthy is stopped because contact was lost: every stop here was asked for by the user, by a newer
version or generation, or by the rule that a slot is held once.
"""

from __future__ import annotations

from caudal.domain.decision import Reason, StopGang
from caudal.domain.fleet import LeaseState
from caudal.domain.gang import Gang, Role
from caudal.domain.workload import WorkloadState
from caudal.policy.board import Board
from caudal.policy.budgets import SPENT, spent
from caudal.policy.desired import Desired
from caudal.policy.draining import retire
from caudal.policy.slots import base_of


def stop_strays(board: Board) -> tuple[frozenset[str], frozenset[str]]:
    """Stop what drivers list and the books do not hold. Returns the sites, and the leases, where nothing new
    may start until that is over."""
    asked = {i.action.gang_id for i in board.open if isinstance(i.action, StopGang)}
    sites: set[str] = set()
    leases: set[str] = set()
    for status in sorted(board.status.values(), key=lambda s: s.gang_id):
        if not status.alive or status.gang_id in board.gangs:
            continue
        known = board.over.get(status.gang_id)
        if known is not None and known.lease_id in board.leases:
            leases.add(known.lease_id)
        else:
            sites.add(status.site)
        if status.gang_id in asked:
            continue
        if known is None:
            reason = Reason(
                "gang.unknown", f"site {status.site} runs it and nobody asked for it", _at(status.site)
            )
            board.choose(StopGang(status.gang_id, board.rules.stop_grace_s), status.gang_id, reason)
        else:
            reason = Reason(
                "gang.fenced", f"it was given up ({known.end_reason}) and still runs", _at(status.site)
            )
            board.choose(StopGang(known.id, board.rules.stop_grace_s), known.slot, reason)
    return frozenset(sites), frozenset(leases)


def _at(site: str) -> dict[str, str]:
    return {"site": site}


def stop_unwanted(board: Board, wanted: Desired, over: frozenset[str]) -> None:
    """Stop what the books hold and nobody wants (any more). Replicas that have a successor are rolling's."""
    for gang in list(board.gangs.values()):
        lease = board.leases.get(gang.lease_id)
        if board.rules.closing:
            board.stop(gang, "fleet.down", "the fleet is taken down")
        elif board.holder(gang.slot) != gang:
            board.stop(gang, "gang.second", f"{gang.slot} has a newer gang; a slot is held once")
        elif board.fenced(gang) and lease is not None and lease.state is LeaseState.ACTIVE:
            text = f"its epoch {gang.epoch} is older than its lease's {lease.epoch}"
            board.stop(gang, "gang.fenced", text, epoch=lease.epoch)
        elif board.sites and gang.site not in board.sites:
            board.stop(gang, "site.removed", f"site {gang.site} is no longer in the fleet")
        elif gang.role is Role.GATEWAY:
            if gang.slot not in wanted.slots:
                board.stop(gang, "workload.stopped", "no service is wanted any more")
        else:
            _of_workload(board, gang, wanted, over)


def _of_workload(board: Board, gang: Gang, wanted: Desired, over: frozenset[str]) -> None:
    workload = board.workloads.get(gang.workload)
    if workload is None:
        board.stop(gang, "workload.unknown", f"no workload is called {gang.workload!r}")
    elif not workload.wanted:
        board.stop(gang, "workload.stopped", f"{workload.name} was stopped")
    elif workload.state is WorkloadState.FAILED or (workload.name in over and _failing(board, gang)):
        board.stop(gang, "run.failed", f"{workload.name} failed")
    elif workload.state is WorkloadState.FINISHED:
        finished_s = board.now - workload.changed_at
        if finished_s >= board.rules.leave_s:
            board.stop(gang, "run.finished", f"{workload.name} finished {finished_s:.0f} s ago")
    elif workload.name in over:
        return
    elif (broke := spent(board.snapshot.state.fleet, workload, board.snapshot.spent_usd)) and broke[
        0
    ].stop_running:
        board.stop(gang, SPENT, broke[1].text)
    elif gang.role is not Role.REPLICA and gang.generation != workload.generation:
        text = f"it is of generation {gang.generation}, and {workload.generation} was applied since"
        board.stop(gang, "generation.changed", text)
    elif gang.slot not in wanted.slots and not _has_successor(gang, wanted):
        text = f"the spec of {workload.name} no longer asks for it"
        need = wanted.scales.get(base_of(gang.slot).rpartition(".")[0])
        if need is not None:
            text = f"{need.replicas} of {gang.model} are enough: {need.reason.text}"
            retire(board, gang, "scale.down", text, board.rules.drain_s, why=need.reason.code)
        elif gang.role is Role.REPLICA:
            retire(board, gang, "slot.removed", text, board.rules.drain_s)
        else:
            board.stop(gang, "slot.removed", text)


def _failing(board: Board, gang: Gang) -> bool:
    """Whether its run has just been found failed; a run that has just finished lets its workers leave."""
    head = next(iter(board.ended(f"{gang.workload}.coordinator")), None)
    return head is not None and head.exit_code != 0


def _has_successor(gang: Gang, wanted: Desired) -> bool:
    """Whether it stays until something else takes its place: a worker that has done its work, a replica with
    a newer version coming, or one whose model is not listed now."""
    if gang.role is not Role.REPLICA:
        return False
    base = base_of(gang.slot)
    return base in wanted.later or any(s.base == base for s in wanted.slots.values())
