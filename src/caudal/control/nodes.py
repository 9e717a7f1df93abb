"""Nodes' own words: a join token is changed once for a node's own token; reports are checked and kept.

Both tokens are made from the control API's secret, so that nothing has to be kept: the join token holds when it expires
and is for one lease; what is kept is a hash of the number that the first caller chose, so that only the same caller may
ask again (its answer may have been lost).
"""

from __future__ import annotations

import hashlib
import hmac
from collections.abc import Mapping
from typing import Any

from caudal.control.reports import plain_mapping
from caudal.domain.errors import NotFound, Stale, Unauthorized, UsageError
from caudal.domain.fleet import Lease
from caudal.domain.gang import Report
from caudal.domain.node import FAILED, failed, subject
from caudal.domain.snapshot import Snapshot, State
from caudal.ports import Store

JOIN_VALID_S = 3600.0
"""A cloud's slowest machines (bare metal with many GPUs) take 10 to 30 minutes until they run user data."""

STATES = frozenset({"burning", "joining", "ready", FAILED})
LEAST_NONCE, MOST_NONCE = 16, 128


def join_token(secret: str, lease_id: str, expires_at: float) -> str:
    """What a machine gets in its user data: good for that lease, once, until then."""
    return f"{int(expires_at)}.{_made(secret, f'join {lease_id} until {int(expires_at)}')}"


def node_token(secret: str, lease_id: str) -> str:
    """What a node reports with; good for as long as its lease is live."""
    return _made(secret, f"node {lease_id}")


def join(store: Store, secret: str, lease_id: str, given: str, nonce: object, now: float) -> str:
    """Change a join token. Raises Unauthorized (wrong, of another lease, expired), NotFound, Stale (used)."""
    until, _, _ = given.partition(".")
    if not until.isdigit() or not _same(given, join_token(secret, lease_id, int(until))):
        raise Unauthorized("this is no join token of that lease")
    if now >= int(until):
        raise Unauthorized("the join token has expired", remedy="nothing: the machine is given back")
    if not isinstance(nonce, str) or not LEAST_NONCE <= len(nonce) <= MOST_NONCE:
        raise UsageError(f"nonce: a text of {LEAST_NONCE} to {MOST_NONCE} characters is needed")
    state = store.read()
    _live(state, lease_id)
    before = _status(state, lease_id)
    chosen = hashlib.sha256(nonce.encode()).hexdigest()
    if before.get("joined_by", chosen) != chosen:
        raise Stale("the join token has been used", why="another process has joined as this node")
    store.put_report(Report(subject(lease_id), now, {**before, "joined_by": chosen}))
    return node_token(secret, lease_id)


def accept(store: Store, secret: str, lease_id: str, given: str, body: Mapping[str, Any], now: float) -> None:
    """Take a node's report: `{"status": {"state", "why", ...}}`. Raises Unauthorized, NotFound, UsageError."""
    if not _same(given, node_token(secret, lease_id)):
        raise Unauthorized("this is not the token of that node")
    state = store.read()
    lease = _live(state, lease_id)
    status = plain_mapping(body.get("status"), "status")
    if status.get("state") not in STATES:
        raise UsageError(f"state: one of {', '.join(sorted(STATES))} is needed")
    before = _status(state, lease_id)
    if before.get("state") == FAILED:
        return  # it has been judged: a machine that broke once is not taken back at its own word
    kept = {key: before[key] for key in ("joined_by",) if key in before}
    store.put_report(Report(subject(lease_id), now, {**status, **kept, "offer": lease.offer_id}))


def note_failures(store: Store, snapshot: Snapshot) -> None:
    """Keep what providers' lists say against machines of ours, so that it is known when they are gone."""
    known = {r.gang_id for r in snapshot.state.reports if failed(r)}
    leases = {x.id: x for x in snapshot.state.leases if x.live}
    for machine in snapshot.machines:
        lease = leases.get(machine.lease_id)
        if machine.failed and lease is not None and subject(lease.id) not in known:
            status = {"state": FAILED, "why": machine.failed, "offer": lease.offer_id}
            store.put_report(Report(subject(lease.id), snapshot.at, status))


def _live(state: State, lease_id: str) -> Lease:
    lease = next((x for x in state.leases if x.id == lease_id and x.live), None)
    if lease is None:
        raise NotFound(f"no live lease {lease_id[:200]!r}")
    return lease


def _status(state: State, lease_id: str) -> dict[str, Any]:
    return next((dict(r.status) for r in state.reports if r.gang_id == subject(lease_id)), {})


def _made(secret: str, what: str) -> str:
    return hmac.new(secret.encode(), f"caudal {what}".encode(), hashlib.sha256).hexdigest()


def _same(given: str, wanted: str) -> bool:
    return hmac.compare_digest(given.encode(), wanted.encode())
