"""Every kind of loss takes one path: suspect → epoch raised → grace → replaced.

Decides what of the books is no longer true (leases and gangs that are over, contact lost or back) and how
long a slot waits before it is started again. Knows nothing of where the replacement goes.
"""

from __future__ import annotations

import math
from dataclasses import replace

from caudal.domain.decision import (
    AcquireNode,
    EndGang,
    EndLease,
    Intent,
    IntentState,
    Reason,
    StartGang,
    SuspectLease,
    TrustLease,
)
from caudal.domain.fleet import Lease, LeaseState, Machine
from caudal.domain.gang import Gang, GangState
from caudal.policy.board import Board
from caudal.policy.slots import end_code

FAILURES = frozenset({"gang.exited", "gang.lost", "gang.gone", "gang.start_failed"})
"""Ends that speak against the gang itself. The others (its node went, contact was lost, it was stopped) do
not make the next start wait."""

NO = frozenset(
    {
        "no_capacity",
        "quota_exceeded",
        "not_offered",
        "not_allowed",
        "usage",
        "impossible",
        "superseded",
        "not_listed",
    }
)
"""The codes of errors after which no machine comes."""


def settle_leases(board: Board) -> None:
    """Leases whose machine is gone end; silent sites become suspect; those that answer again are trusted."""
    for lease in list(board.leases.values()):
        if lease.state is LeaseState.REQUESTED:
            _settle_requested(board, lease)
        elif lease.site not in board.snapshot.silent_providers and machine_of(board, lease) is None:
            _end_lease(
                board, lease, "lease.machine_gone", "the provider's own list no longer shows its machine"
            )
        elif lease.state is LeaseState.ACTIVE and not board.answers(lease.site):
            _maybe_suspect(board, lease)
        elif lease.state is LeaseState.SUSPECT and board.answers(lease.site):
            _trust(board, lease)


def machine_of(board: Board, lease: Lease) -> Machine | None:
    """The machine of a lease in its provider's list."""
    if lease.machine_id:
        return board.machines.get(lease.machine_id)
    return next((m for m in board.machines.values() if m.lease_id == lease.id), None)


def _settle_requested(board: Board, lease: Lease) -> None:
    """A lease that waits for its machine. A call that was taken is no proof that one will come: it may have
    died before it was ever listed, and asking again with the same token brings no other. Should it turn up
    after all, it is a stray."""
    asked = [i for i in board.open if _asks_for(i, lease)]
    if lease.site in board.snapshot.silent_providers or machine_of(board, lease) is not None:
        return
    if not asked:
        failed = [i for i in board.failed if _asks_for(i, lease)]
        # A call that failed in another way than by a no may have been done all the same, and its machine be
        # listed later: the lease has to be there for it then.
        unsure = [i.changed_at for i in failed if i.error.split(":", 1)[0] not in NO]
        if board.now - max(unsure, default=-math.inf) >= board.rules.unlisted_s:
            _end_lease(board, lease, "lease.not_given", "the provider gave no machine for it")
        return
    # The machine is there since the call that was accepted first, at the latest; lists may be behind.
    since = asked[0].issued_at
    if asked[0].state is IntentState.ISSUED and since is not None:
        waited_s = board.now - since
        if waited_s >= board.rules.unlisted_s:
            _end_lease(board, lease, "lease.unlisted", f"its machine was not listed within {waited_s:.0f} s")


def _asks_for(intent: Intent, lease: Lease) -> bool:
    return isinstance(intent.action, AcquireNode) and intent.action.lease_id == lease.id


def _end_lease(board: Board, lease: Lease, code: str, text: str) -> None:
    reason = Reason(code, f"node {lease.node}: {text}", {"machine": lease.machine_id, "site": lease.site})
    board.choose(EndLease(lease.id), lease.node, reason)
    board.set_lease(replace(lease, state=LeaseState.ENDED))


def _maybe_suspect(board: Board, lease: Lease) -> None:
    since = board.snapshot.silent_since.get(lease.site, board.now)
    silent_s = board.now - since
    if silent_s < board.rules.suspect_after_s:
        return
    text = (
        f"site {lease.site} has not answered for {silent_s:.1f} s; its epoch is raised to {lease.epoch + 1}"
    )
    data = {"silent_s": silent_s, "suspect_after_s": board.rules.suspect_after_s}
    board.choose(SuspectLease(lease.id), lease.node, Reason("contact.lost", text, data))
    board.set_lease(replace(lease, state=LeaseState.SUSPECT, epoch=lease.epoch + 1, suspect_since=board.now))


def _trust(board: Board, lease: Lease) -> None:
    since = lease.suspect_since if lease.suspect_since is not None else board.now
    text = f"site {lease.site} answers again after {board.now - since:.1f} s of suspicion"
    board.choose(TrustLease(lease.id), lease.node, Reason("contact.back", text, {"epoch": lease.epoch}))
    board.set_lease(replace(lease, state=LeaseState.ACTIVE, suspect_since=None))
    for gang in board.gangs.on(lease.id):
        board.gangs[gang.id] = replace(gang, epoch=lease.epoch)


def settle_gangs(board: Board) -> None:
    """Gangs that their driver says are over, or whose node is gone for good, end in the books."""
    starting = {i.action.gang.id for i in board.open if isinstance(i.action, StartGang)}
    failed = {i.action.gang.id: i for i in board.failed if isinstance(i.action, StartGang)}
    for gang in list(board.gangs.values()):
        status = board.status.get(gang.id)
        if status is not None and not status.alive:
            code = "gang.lost" if status.state is GangState.LOST else "gang.exited"
            said = "left no exit code" if status.exit_code is None else f"ended with code {status.exit_code}"
            why = f"; {status.why}" if status.why else ""
            _end_gang(board, gang, status.exit_code, code, f"its processes {said}{why}")
        elif gang.lease_id not in board.leases:
            _end_gang(board, gang, None, "node.gone", f"node {gang.node} is gone")
        elif not board.answers(gang.site) or status is not None or gang.id in starting:
            continue
        elif gang.id in failed:
            error = failed[gang.id].error.splitlines()[0] if failed[gang.id].error else "no reason given"
            _end_gang(board, gang, None, "gang.start_failed", f"it could not be started: {error}")
        else:
            _end_gang(board, gang, None, "gang.gone", f"the driver of {gang.site} no longer knows it")


def _end_gang(board: Board, gang: Gang, exit_code: int | None, code: str, text: str) -> None:
    if gang.stopping and code != "node.gone":
        code, text = "gang.stopped", f"it was stopped; {text}"
    reason = Reason(code, f"{gang.id}: {text}", {"exit_code": exit_code, "site": gang.site})
    board.choose(EndGang(gang.id, exit_code), gang.slot, reason)


def grace_over(board: Board, gang: Gang) -> bool:
    """Whether contact with the gang's node has been lost for longer than the grace."""
    lease = board.leases.get(gang.lease_id)
    if lease is None or lease.state is not LeaseState.SUSPECT or lease.suspect_since is None:
        return False
    return board.now - lease.suspect_since >= board.rules.grace_s


def give_up(board: Board, gang: Gang) -> None:
    """End in the books a gang that nobody can reach, because another site takes its work over. Should it
    still run, it is fenced, and is stopped as soon as its site answers."""
    text = f"{gang.id}: site {gang.site} did not answer within the grace; another site takes over"
    data = {"grace_s": board.rules.grace_s, "site": gang.site}
    board.choose(EndGang(gang.id, None), gang.slot, Reason("contact.grace_over", text, data))


def failures(board: Board, slot: str, since: float = 0.0) -> int:
    """How many gangs of a slot failed in a row, counted from the newest. One that had lived healthily ends
    the row, and so does one from before `since`."""
    count = 0
    for gang in board.ended(slot):
        if end_code(gang) not in FAILURES or gang.stopping or gang.created_at < since:
            break
        count += 1
        if gang.ended_at is not None and gang.ended_at - gang.created_at >= board.rules.healthy_after_s:
            break
    return count


def start_not_before(board: Board, slot: str, since: float = 0.0) -> float:
    """When a slot may be started (again)."""
    row = failures(board, slot, since)
    if not row:
        return 0.0
    newest = board.ended(slot)[0]
    return (newest.ended_at or board.now) + board.rules.restart_delay_s(row)


def fruitless(board: Board, slot: str, since: float = 0.0) -> int:
    """How many gangs of a slot failed in a row without bringing their run further: each died young, and
    reported nothing done that an earlier one had not."""
    row = board.ended(slot)
    count = 0
    for place, gang in enumerate(row):
        if end_code(gang) not in FAILURES or gang.stopping or gang.created_at < since:
            break
        lived_s = (gang.ended_at or board.now) - gang.created_at
        before = max((_done(board, g) for g in row[place + 1 :]), default=0.0)
        if lived_s >= board.rules.healthy_after_s or _done(board, gang) > before:
            break
        count += 1
    return count


def _done(board: Board, gang: Gang) -> float:
    """How far a coordinator said that its run is: tokens, or rounds where it counts none."""
    for key in ("tokens_done", "round"):
        said = board.said(gang, key)
        if isinstance(said, int | float) and not isinstance(said, bool):
            return float(said)
    return 0.0
