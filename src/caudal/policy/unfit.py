"""Nodes that are not what was promised: nothing is placed on them, they are given back, and their offer is left alone
for a while, so that the same broken machine does not come back at once."""

from __future__ import annotations

from dataclasses import replace

from caudal.domain.decision import Reason, ReleaseNode
from caudal.domain.fleet import Lease, LeaseState, Machine, Offer
from caudal.domain.node import ready, subject
from caudal.policy.board import Board
from caudal.policy.recovery import machine_of


def why_unfit(board: Board, lease: Lease, machine: Machine | None) -> str:
    """Why a node is none, by its own word or its provider's (`machine`); empty: nothing is known against it."""
    report = board.failed_nodes.get(subject(lease.id)) if board.failed_nodes else None
    if report is not None:
        return str(report.status.get("why") or "its burn-in failed")
    if machine is not None and machine.failed:
        return machine.failed
    if joined(board, lease):
        return ""
    since = lease.active_at if lease.active_at is not None else board.now
    if board.now - since >= board.rules.boot_s:
        return f"it has not joined its site within {board.rules.boot_s:.0f} s"
    return ""


def joined(board: Board, lease: Lease) -> bool:
    """Whether a node belongs to its site by its own word, where that takes one: a machine that runs is no node yet."""
    return lease.site not in board.begin_ray or ready(board.reports.get(subject(lease.id)))


def release_unfit(board: Board) -> None:
    """Give back the nodes that failed. One on which something runs is kept until that is over: it is never killed
    for a burn-in."""
    for lease in list(board.leases.values()):
        if lease.state is not LeaseState.ACTIVE or not (
            why := why_unfit(board, lease, machine_of(board, lease))
        ):
            continue
        if board.gangs.on(lease.id):
            continue
        if any(board.alive(g.id) for g in board.over.on(lease.id)):
            continue
        text = f"node {lease.node} is given back: {why}"
        data = {"why": why, "offer": lease.offer_id, "site": lease.site}
        board.choose(ReleaseNode(lease.id), lease.node, Reason("node.failed", text, data))
        board.set_lease(replace(lease, state=LeaseState.RELEASING))


def against_offer(board: Board, offer: Offer) -> Reason | None:
    """Why an offer is left alone now; None where its machines were well, or long enough ago."""
    for report in board.failed_nodes.values():
        if report.status.get("offer") != offer.id:
            continue
        again_at = report.at + board.rules.unfit_retry_s
        if board.now < again_at:
            why = report.status.get("why") or "its burn-in failed"
            text = f"a machine of offer {offer.id} failed lately: {why}"
            return Reason("offer.unfit_lately", text, {"again_at": again_at})
    return None
