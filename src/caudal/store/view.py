"""The tables as one `State`, read again and again cheaply.

Reads only; knows nothing of transactions or of who asks.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from dataclasses import dataclass, field, replace
from typing import Any

from sqlalchemy import Connection, Select, func, literal, or_, select, union_all

from caudal.domain.decision import Intent, IntentState
from caudal.domain.fleet import FleetSpec, Lease
from caudal.domain.gang import Gang, Report
from caudal.domain.snapshot import State
from caudal.domain.workload import Workload
from caudal.store.codec import decode
from caudal.store.tables import fleet, gangs, intents, leases, meta, reports, workloads

ENDED_GANGS_SHOWN = 10
"""How many of a slot's gangs that are over belong to the state; store/state.py hides the older ones. More
than the failures in a row that policy/rules.py counts to."""

FAILED_INTENTS_SHOWN_S = 600.0
"""How long before the newest change of any intent a failed one still belongs to the state."""

Decoded = dict[str, Any]  # by its document

_KINDS: dict[str, type] = {
    "fleet": FleetSpec,
    "workload": Workload,
    "lease": Lease,
    "gang": Gang,
    "intent": Intent,
}

_VERSION = select(meta.c.version).where(meta.c.id == 1)

_REPORTS = (
    select(reports.c.doc)
    .outerjoin(gangs, gangs.c.id == reports.c.gang_id)
    .where(or_(gangs.c.id.is_(None), gangs.c.shown))
    .order_by(reports.c.gang_id)
)


def _docs(kind: str, doc: Any) -> Select[tuple[str, Any]]:
    return select(literal(kind).label("kind"), doc)


_LATELY = select(func.max(intents.c.changed_at) - FAILED_INTENTS_SHOWN_S).scalar_subquery()

# One statement rather than five: a statement costs more than the rows that it finds.
_BELIEFS = union_all(
    _docs("fleet", fleet.c.doc),
    _docs("workload", workloads.c.doc),
    _docs("lease", leases.c.doc).where(leases.c.live),
    _docs("gang", gangs.c.doc).where(gangs.c.shown),
    _docs("intent", intents.c.doc).where(
        intents.c.state.in_([IntentState.PENDING.value, IntentState.ISSUED.value])
    ),
    _docs("intent", intents.c.doc).where(
        intents.c.state == IntentState.FAILED.value, intents.c.changed_at >= _LATELY
    ),
)


@dataclass(frozen=True, slots=True)
class _Seen:
    """What the last read found, with every value by the document that it was decoded from."""

    state: State
    beliefs: Decoded = field(default_factory=dict)
    reports: Decoded = field(default_factory=dict)


class View:
    """Reads the state. Every commit raises the version, so a version that was seen need not be read again;
    a document that was seen need not be decoded again. Threads may share it: what is remembered is replaced
    as a whole."""

    def __init__(self) -> None:
        self._seen = _Seen(State(version=-1, fleet=None))

    def read(self, connection: Connection) -> State:
        """The state in the transaction of `connection`, which must see one moment throughout."""
        seen = self._seen
        version = int(connection.execute(_VERSION).scalar_one())
        said: Decoded = {}
        told = tuple(_decoded(Report, d, seen.reports, said) for d in connection.execute(_REPORTS).scalars())
        if version == seen.state.version:
            state, beliefs = replace(seen.state, reports=told), seen.beliefs
        else:
            beliefs = {}
            found: dict[str, list[Any]] = {kind: [] for kind in _KINDS}
            for kind, doc in connection.execute(_BELIEFS):
                found[kind].append(_decoded(_KINDS[kind], doc, seen.beliefs, beliefs))
            state = _state(version, found, told)
        self._seen = _Seen(state, beliefs, said)
        return state


def _decoded(kind: type, doc: str, before: Mapping[str, Any], now: Decoded) -> Any:
    """The document's value, from what was decoded before if it is there; kept in `now`."""
    value = before.get(doc)
    if value is None:
        value = decode(kind, doc)
    now[doc] = value
    return value


def _state(version: int, found: Mapping[str, list[Any]], told: Iterable[Report]) -> State:
    """Everything in one order, whatever order the database gave it in: decisions depend on it."""
    return State(
        version=version,
        fleet=next(iter(found["fleet"]), None),
        workloads=tuple(sorted(found["workload"], key=lambda w: w.name)),
        leases=tuple(sorted(found["lease"], key=lambda lease: lease.id)),
        gangs=tuple(sorted(found["gang"], key=lambda g: (g.slot, g.incarnation))),
        intents=tuple(sorted(found["intent"], key=lambda i: (i.created_at, i.id))),
        reports=tuple(told),
    )
