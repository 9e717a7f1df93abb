"""A fragment of a delta comes in: is it one that is waited for, is it sound, is its delta whole now."""

from __future__ import annotations

from caudal.train.interface import RunPlan
from caudal.train.leases import size
from caudal.train.messages import Delta
from caudal.train.protocol import merge
from caudal.train.protocol.book import Book
from caudal.train.protocol.members import Member
from caudal.train.protocol.rules import Pace
from caudal.train.protocol.turns import Lease, Turn


def take(
    book: Book, pace: Pace, plan: RunPlan, member: Member, delta: Delta, payload: bytes
) -> tuple[Turn, Lease, str] | None:
    """Put a fragment with its lease. Returns the round and the lease once the delta is whole, or with what is
    wrong with it; None where nothing follows: of an older round, lease or epoch, heard twice, or not whole."""
    turn = next((t for t in book.turns if t.number == delta.round), None)
    lease = turn.waiting.get(member.name) if turn is not None else None
    if turn is None or lease is None or delta.fragment in lease.parts:
        return None
    if (delta.epoch, delta.lease) != (book.epoch, lease.name):
        return None
    if 1 <= delta.steps < min(lease.steps, delta.planned) and not lease.parts:
        book.shorten(turn, lease, delta.steps)
    problem = merge.inspect(delta, payload, lease, turn.tempo.bits, plan)
    if problem:
        if problem == merge.NOT_FINITE:
            book.failed(turn, lease, problem)
        return turn, lease, problem
    lease.parts[delta.fragment] = payload
    if len(lease.parts) < len(plan.fragments):
        return None
    lease.delta, lease.size = delta, merge.size_of(lease, plan)
    if pace.too_large(lease.size, turn.stage, turn.tempo.alike):
        problem = "its numbers explode, against all deltas before"
        book.failed(turn, lease, problem)
        return turn, lease, problem
    return turn, lease, ""


def answered(turn: Turn, lease: Lease, pace: Pace, now: float) -> None:
    """A delta is whole and sound: what it tells of its site."""
    turn.took(lease)
    member, delta = lease.member, lease.delta
    assert delta is not None
    if turn.evaluator != member.name:
        expected_s = size(lease.ids) * member.seconds_per_id
        pace.took(now - max(lease.leased_at, member.since), expected_s)
    member.since, member.round, member.loss = now, turn.number, delta.loss or 0.0
    member.seconds_per_id = delta.seconds / size(lease.ids)
    member.tokens_per_s = delta.tokens / max(1e-6, delta.seconds)
    member.wait_share = delta.waited_s / max(1e-6, delta.waited_s + delta.seconds)
