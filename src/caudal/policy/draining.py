"""Letting a replica go: it gets nothing new, ends what it has, and only then is it stopped.

Knows what gateways said they have in flight; a gateway that cannot say so is waited for, up to a limit.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from caudal.domain.decision import DrainGang, Reason
from caudal.domain.gang import Gang, Role
from caudal.policy.board import Board


def retire(board: Board, gang: Gang, code: str, text: str, limit_s: float, **data: Any) -> None:
    """Have a replica go. Called in every decision in which it still should; one that does not answer, or that has
    nothing left to do, is stopped."""
    if gang.stopping:
        return
    board.retiring.add(gang.id)
    if not board.ready(gang):
        board.stop(gang, code, text, **data)
    elif gang.draining_at is None:
        reason = Reason(
            code, f"{text}; it gets nothing new and ends what it has", {"site": gang.site, **data}
        )
        board.choose(DrainGang(gang.id), gang.slot, reason)
    elif board.now >= gang.draining_at + limit_s or drained(board, gang, gang.draining_at):
        board.stop(gang, code, text, drained_s=round(board.now - gang.draining_at, 3), **data)


def keep_the_others(board: Board) -> None:
    """Send requests again to those that were draining and are to stay after all."""
    for gang in list(board.gangs.values()):
        if gang.draining_at is not None and not gang.stopping and gang.id not in board.retiring:
            reason = Reason(
                "drain.over", f"{gang.id} stays: it is needed, or what was to take its place is not there", {}
            )
            board.choose(DrainGang(gang.id, draining=False), gang.slot, reason)


def drained(board: Board, gang: Gang, since: float) -> bool:
    """Whether every gateway has said, after it must have learnt of the draining, that it has nothing there."""
    settled_at = since + board.rules.drain_least_s
    if board.now < settled_at:
        return False
    for gateway in board.gangs.values():
        report = board.reports.get(gateway.id)
        if gateway.role is not Role.GATEWAY or report is None or not board.believed_up(gateway):
            continue
        if report.at < settled_at or in_flight(report.status, gang.id):
            return False
    return True


def in_flight(status: Mapping[str, Any], gang_id: str) -> int:
    """Requests that a gateway said it has at a replica."""
    return load_of(status, gang_id)[0]


def load_of(status: Mapping[str, Any], gang_id: str) -> tuple[int, int]:
    """Requests and tokens in flight at a replica, by a gateway's report; what is not said is nothing."""
    load = status.get("load")
    row = load.get(gang_id) if isinstance(load, Mapping) else None
    if not isinstance(row, list | tuple) or len(row) < 2:
        return 0, 0
    requests, tokens = (int(n) if isinstance(n, int | float) and n >= 0 else 0 for n in row[:2])
    return requests, tokens
