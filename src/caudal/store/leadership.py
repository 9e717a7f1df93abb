"""Who leads: one row, one holder, a term that runs out, and an epoch that fences those before.

Every function works on a transaction of its caller's. Times come from the caller: this knows no clock.
"""

from __future__ import annotations

from typing import Any

from sqlalchemy import Connection, Row, select, update

from caudal.domain.errors import LostLeadership, StateHeld
from caudal.ports import Holder
from caudal.store.codec import decode, encode
from caudal.store.tables import meta

_LOCKED = select(meta).where(meta.c.id == 1).with_for_update()
_SEEN = select(meta.c.leader, meta.c.leader_epoch, meta.c.leader_until).where(meta.c.id == 1)


def locked_meta(connection: Connection) -> Row[Any]:
    """The `meta` row, held until the transaction ends: whoever writes the state comes through here, one at
    a time (SQLite's write lock has done that already)."""
    return connection.execute(_LOCKED).one()


def check_leader(row: Row[Any], epoch: int) -> None:
    """Raises LostLeadership unless that epoch leads. A term that has run out still leads while nobody has
    taken over: then nobody can have decided anything else."""
    if row.leader_epoch == epoch and row.leader_until is not None:
        return
    if row.leader is None or row.leader_until is None:
        why = "the leader has resigned" if row.leader is not None else "nobody leads yet"
    else:
        why = f"epoch {row.leader_epoch} leads: {_describe(decode(Holder, row.leader))}"
    raise LostLeadership(f"epoch {epoch} does not lead", why=why, remedy="leave the fleet to its leader")


def lead(connection: Connection, holder: Holder, now: float, ttl_s: float) -> int:
    """Start or lengthen the holder's term; returns the epoch. A term that was resigned starts a new epoch
    even for the same holder, so that what it began before is fenced. Raises StateHeld."""
    row = locked_meta(connection)
    held = decode(Holder, row.leader) if row.leader is not None and row.leader_until is not None else None
    if held is not None and held != holder and now < row.leader_until:
        raise StateHeld(
            "another control process holds this state",
            where=_describe(held),
            why=f"its term lasts {row.leader_until - now:.1f} s more, and it renews it while it lives",
            remedy="use that one, or stop it first",
        )
    epoch = int(row.leader_epoch) + (0 if held == holder else 1)
    term = {"leader": encode(holder), "leader_epoch": epoch, "leader_until": now + ttl_s}
    connection.execute(update(meta).where(meta.c.id == 1).values(term))
    return epoch


def leader(connection: Connection) -> tuple[Holder, int, float] | None:
    """The holder, the epoch and when its term ends (0: it has resigned); None before the first."""
    row = connection.execute(_SEEN).one()
    if row.leader is None:
        return None
    return decode(Holder, row.leader), int(row.leader_epoch), float(row.leader_until or 0.0)


def resign(connection: Connection, epoch: int) -> None:
    """End the term, if that epoch still leads."""
    mine = (meta.c.id == 1) & (meta.c.leader_epoch == epoch)
    connection.execute(update(meta).where(mine).values(leader_until=None))


def _describe(holder: Holder) -> str:
    return f"{holder.name} (process {holder.pid} on {holder.host})"
