"""Nodes' own words: a join token is changed once for a node's own token; reports are checked and kept.

Both tokens are made from the control API's secret, so that nothing has to be kept: the join token holds when it expires
and is for one lease; what is kept is a hash of the number that the first caller chose, so that only the same caller may
ask again (its answer may have been lost).
"""

from __future__ import annotations

import hashlib
import hmac
import threading
from collections.abc import Mapping
from typing import Any

from caudal.control.reports import plain_mapping
from caudal.domain.errors import NotFound, Stale, Unauthorized, UsageError
from caudal.domain.fleet import Lease
from caudal.domain.gang import Report
from caudal.domain.node import FAILED, HEAD, READY, failed, head_of, subject
from caudal.domain.snapshot import Snapshot, State
from caudal.ports import Store

JOIN_VALID_S = 3600.0
"""A cloud's slowest machines (bare metal with many GPUs) take 10 to 30 minutes until they run user data."""

STATES = frozenset({"burning", "joining", READY, FAILED})
LEAST_NONCE, MOST_NONCE = 16, 128
KEPT = ("joined_by", "role")  # of a node's first word, whatever it says later
MAX_HEAD_URL = 300

_joining = threading.Lock()  # of two that join at one time, one is the head


def join_token(secret: str, lease_id: str, expires_at: float) -> str:
    """What a machine gets in its user data: good for that lease, once, until then."""
    return f"{int(expires_at)}.{_made(secret, f'join {lease_id} until {int(expires_at)}')}"


def node_token(secret: str, lease_id: str) -> str:
    """What a node reports with; good for as long as its lease is live."""
    return _made(secret, f"node {lease_id}")


def join_expiry(lease: Lease) -> float:
    """Until when a lease's join token holds. It follows from the lease alone, so that whoever asks for the machine, and
    whenever, gives it the same user data: clouds refuse a token that comes with another text."""
    return lease.requested_at + JOIN_VALID_S


def ray_token(secret: str, site: str) -> str:
    """The token of the Ray cluster that a site's first node begins. Nodes get it for their join token."""
    return _made(secret, f"ray cluster of {site}")


def join(store: Store, secret: str, lease_id: str, given: str, nonce: object, now: float) -> dict[str, str]:
    """Change a join token: the node's own, and where its site is a cluster that its nodes make up, `role` (head or
    node), `cluster_token` and `head` (empty until the head has said where it is: ask again). Raises Unauthorized (wrong,
    of another lease, expired), NotFound, Stale (used)."""
    until, _, _ = given.partition(".")
    if not until.isdigit() or not _same(given, join_token(secret, lease_id, int(until))):
        raise Unauthorized("this is no join token of that lease")
    if now >= int(until):
        raise Unauthorized("the join token has expired", remedy="nothing: the machine is given back")
    if not isinstance(nonce, str) or not LEAST_NONCE <= len(nonce) <= MOST_NONCE:
        raise UsageError(f"nonce: a text of {LEAST_NONCE} to {MOST_NONCE} characters is needed")
    with _joining:
        state = store.read()
        lease = _live(state, lease_id)
        before = _status(state, lease_id)
        chosen = hashlib.sha256(nonce.encode()).hexdigest()
        if before.get("joined_by", chosen) != chosen:
            raise Stale("the join token has been used", why="another process has joined as this node")
        told = {"token": node_token(secret, lease_id)}
        status = {**before, "joined_by": chosen}
        if state.fleet is not None and state.fleet.begins_ray(lease.site):
            head = head_of(lease.site, state.leases, state.reports)
            status["role"] = before.get("role") or ("node" if head else HEAD)
            told |= {"role": status["role"], "cluster_token": ray_token(secret, lease.site)}
            told["head"] = _said(head[1].get("head"), "address") if head else ""
        store.put_report(Report(subject(lease_id), now, status))
    return told


def jobs_url(state: State, site: str) -> str:
    """Where the head of a site's own Ray cluster takes jobs; empty where there is none, or it is not up yet."""
    head = head_of(site, state.leases, state.reports)
    if head is None or head[1].get("state") != READY:
        return ""
    url = _said(head[1].get("head"), "jobs")
    return url if url.startswith(("http://", "https://")) else ""


def _said(head: object, key: str) -> str:
    found = head.get(key) if isinstance(head, Mapping) else None
    return found if isinstance(found, str) and len(found) <= MAX_HEAD_URL else ""


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
    kept = {key: before[key] for key in KEPT if key in before}
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
