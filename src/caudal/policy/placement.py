"""Which node for a slot: a run's workers spread over sites, replicas packed onto the fullest node that holds
them, and every choice with the alternatives that were rejected.

Only nodes that exist or were asked for are looked at; getting more of them is capacity's.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, replace
from heapq import nsmallest

from caudal.domain.decision import Reason, Rejected
from caudal.domain.fleet import Lease, LeaseState, MachineState, Resources
from caudal.domain.gang import Gang, Role
from caudal.policy.board import Board
from caudal.policy.recovery import machine_of
from caudal.policy.slots import Slot, base_of, end_code
from caudal.policy.unfit import joined, why_unfit

GIB = float(1 << 30)

MOST_TOLD = 16
"""Of more nodes than that, a decision says only how many there are."""


@dataclass(frozen=True, slots=True)
class Placement:
    """Where a slot goes: `lease` None means nowhere now. `ready` False means that its node is still on the
    way. `reason` says why there, or why nowhere."""

    lease: Lease | None
    ready: bool
    reason: Reason
    rejected: tuple[Rejected, ...] = ()


class _Told:
    """Why nodes were rejected: the first few by name, of the others how many for which reason. Nobody reads ten thousand
    lines, and no store should keep them."""

    def __init__(self) -> None:
        self._first: list[Rejected] = []
        self._more: dict[str, tuple[int, Reason]] = {}

    def add(self, node: str, reason: Reason) -> None:
        """One more."""
        if len(self._first) < MOST_TOLD:
            self._first.append(Rejected(node, reason))
        else:
            count, first = self._more.get(reason.code, (0, reason))
            self._more[reason.code] = (count + 1, first)

    def rejected(self) -> list[Rejected]:
        """All of it."""
        return self._first + [
            Rejected(f"{count} more nodes", replace(reason, text=f"such as: {reason.text}"))
            for count, reason in self._more.values()
        ]


class Placer:
    """Places slots one after the other; what it has promised of nodes that are still on the way counts.

    `dirty_sites` and `dirty_leases` are where something fenced or unknown still lives: it is stopped
    before anything new starts there.
    """

    def __init__(self, board: Board, dirty_sites: frozenset[str], dirty_leases: frozenset[str]) -> None:
        self._board = board
        self._dirty_sites = dirty_sites
        self._dirty_leases = dirty_leases
        self._promised: dict[str, list[Slot]] = {}
        self._sorted: list[Lease] = []
        self._sorted_at = -1
        self._standing: dict[str, Reason | None] = {}  # what speaks against a node for any slot
        self._lost_at = ""  # the lease at which the slot that is being placed was lost last

    def place(self, slot: Slot, leaving: str = "") -> Placement:
        """The best node for a slot. `leaving` is the site that it has to get away from, if any."""
        board = self._board
        fits: list[Lease] = []
        told = _Told()
        taken = self.sites_taken(slot)
        for lease in self._nodes():
            reason = self._against(slot, lease, leaving, taken)
            if reason is None:
                fits.append(lease)
            else:
                told.add(lease.node, reason)
        rejected = told.rejected() + self._sites_without_nodes(slot)
        if not fits:
            return Placement(None, False, _nowhere(slot, rejected), tuple(rejected))
        siblings = {site: self._siblings(slot, site) for site in {lease.site for lease in fits}}
        order = {site: place for place, site in enumerate(board.sites)}
        unused: dict[tuple[object, ...], float] = {}  # most nodes of a type are as full as many others
        self._lost_at = self._lost(slot)

        def rank(lease: Lease) -> tuple[float | int | str, ...]:
            free = self.free(lease)
            like = (lease.machine_type.name, free.cpus, free.memory_bytes, free.accelerators)
            left = unused.get(like)
            if left is None:
                left = unused[like] = self._left(slot, lease)
            return self._rank(slot, lease, siblings[lease.site], order[lease.site], left)

        ranked = nsmallest(MOST_TOLD + 1, fits, key=rank)
        best = ranked[0]
        ready = not self._waits(best)
        reason = self._why(slot, best, ranked[1] if len(ranked) > 1 else None)
        second = [Rejected(x.node, self._less(slot, best, x)) for x in ranked[1:]]
        if more := len(fits) - len(ranked):
            text = f"they can hold it, too, and come after {ranked[-1].node}"
            second.append(Rejected(f"{more} more nodes", Reason("node.second", text)))
        rejected = second + rejected
        if not ready:
            self.promise(slot, best)
        assert slot.resources.fits(board.free(best))
        return Placement(best, ready, reason, tuple(rejected))

    def place_home(self, slot: Slot, lease: Lease) -> Placement | None:
        """The node that room is kept on for a slot; None where something speaks against it by now."""
        kept = self._promised.get(lease.id, [])
        if slot in kept:
            kept.remove(slot)
        if self._against(slot, lease, "") is not None:
            return None
        ready = not self._waits(lease)
        if not ready:
            self.promise(slot, lease)
        text = f"node {lease.node} was taken for it" + (f" and {len(kept)} more" if kept else "")
        data = {"free": numbers(self.free(lease)), "asked": numbers(slot.resources), "site": lease.site}
        return Placement(lease, ready, Reason("place.planned", text, data))

    def promise(self, slot: Slot, lease: Lease) -> None:
        """Keep room for a slot on a node that is on its way."""
        self._promised.setdefault(lease.id, []).append(slot)

    def free(self, lease: Lease) -> Resources:
        """What is left of a node, promises taken off."""
        left = self._board.free(lease)
        for slot in self._promised.get(lease.id, ()):
            left = left.minus(slot.resources)
        return left

    def sites_taken(self, slot: Slot) -> Mapping[str, str]:
        """The sites that a slot must keep off because another of its kind holds them: site → slot."""
        if not slot.apart:
            return {}
        taken = {g.site: g.slot for g in self._alike(slot) if g.slot != slot.name}
        for lease_id, slots in self._promised.items():
            for other in slots:
                if (other.workload, other.role) == (slot.workload, slot.role) and other.name != slot.name:
                    taken[self._board.leases[lease_id].site] = other.name
        return taken

    def _alike(self, slot: Slot) -> list[Gang]:
        return self._board.live(slot.workload, slot.role)

    def _nodes(self) -> list[Lease]:
        board = self._board
        if self._sorted_at != board.changed_leases:
            order = {site: i for i, site in enumerate(board.sites)}
            known = [x for x in board.leases.values() if x.site in order]
            self._sorted = sorted(known, key=lambda x: (order[x.site], x.node))
            self._sorted_at = board.changed_leases
            self._standing.clear()
        return self._sorted

    def _against(
        self, slot: Slot, lease: Lease, leaving: str, taken: Mapping[str, str] | None = None
    ) -> Reason | None:
        """Why not this node; None where nothing speaks against it. `taken` is what `sites_taken` says of the slot."""
        site = lease.site
        taken = self.sites_taken(slot) if taken is None else taken
        if site not in slot.sites:
            return Reason("site.not_asked", f"`at` does not name site {site}")
        if site == leaving or lease.state is LeaseState.SUSPECT:
            return Reason("site.silent", f"contact with site {site} is lost")
        if site in taken:
            return Reason("site.taken", f"site {site} holds {taken[site]}; workers of a run keep apart")
        if lease.id not in self._standing:
            self._standing[lease.id] = self._against_any(lease)
        standing = self._standing[lease.id]
        if standing is not None:
            return standing
        free = self.free(lease)
        if not slot.resources.fits(free):
            text = f"node {lease.node} has {amount(free)} free, and {amount(slot.resources)} is asked"
            return Reason("node.full", text, {"free": numbers(free), "asked": numbers(slot.resources)})
        return None

    def _against_any(self, lease: Lease) -> Reason | None:
        """Why no slot may come to this node now."""
        board, site = self._board, lease.site
        if not board.answers(site):
            return Reason("site.silent", f"the driver of site {site} does not answer")
        if site in self._dirty_sites or lease.id in self._dirty_leases:
            return Reason("site.cleaning", f"what is fenced on {lease.node} has to end first")
        if why := why_unfit(board, lease):
            return Reason("node.failed", f"node {lease.node} is not as promised: {why}")
        machine = machine_of(board, lease)
        if lease.state is LeaseState.RELEASING or (machine and machine.state is MachineState.STOPPING):
            return Reason("node.leaving", f"node {lease.node} is being given back")
        if lease.id in board.leaving:
            left_s = max(0.0, board.leaving[lease.id] - board.now)
            return Reason("node.leaving", f"node {lease.node} goes in {left_s:.0f} s")
        return None

    def _sites_without_nodes(self, slot: Slot) -> list[Rejected]:
        held = {x.site for x in self._board.leases.values()}
        none = [s for s in self._board.sites if s not in held]
        return [
            Rejected(f"site {s}", Reason("site.no_node", f"no node is held at site {s}"))
            if s in slot.sites
            else Rejected(f"site {s}", Reason("site.not_asked", f"`at` does not name site {s}"))
            for s in none
        ]

    def _rank(
        self, slot: Slot, lease: Lease, siblings: int, order: int, left: float
    ) -> tuple[float | int | str, ...]:
        """Smallest is best. Nodes that are ready come first for all."""
        waits = int(self._waits(lease))
        lost = int(lease.id == self._lost_at)
        if slot.role is not Role.REPLICA:
            return (waits, lost, order, left, lease.node)
        return (waits, lost, siblings, left, order, lease.node)

    def _waits(self, lease: Lease) -> bool:
        """Whether a node is still on its way."""
        return lease.state is not LeaseState.ACTIVE or not joined(self._board, lease)

    def _lost(self, slot: Slot) -> str:
        """The lease of the slot's last gang, if it was lost there: what took it may be the node's, and still be so
        (a dead raylet, where the machine runs)."""
        newest = next(iter(self._board.ended(slot.name)), None)
        return newest.lease_id if newest is not None and end_code(newest) == "gang.lost" else ""

    def _siblings(self, slot: Slot, site: str) -> int:
        """Replicas of the same model at a site, those of the slot's own older versions aside."""
        alike = [g for g in self._alike(slot) if g.model == slot.model and g.site == site]
        return sum(1 for g in alike if base_of(g.slot) != slot.base)

    def _left(self, slot: Slot, lease: Lease) -> float:
        """How much of the node would stay unused, as the largest share of what it has."""
        total, left = lease.machine_type.resources, self.free(lease).minus(slot.resources)
        shares = [
            left.cpus / total.cpus if total.cpus else 0.0,
            left.memory_bytes / total.memory_bytes if total.memory_bytes else 0.0,
            left.accelerators / total.accelerators if total.accelerators else 0.0,
        ]
        return round(max(shares), 9)

    def _why(self, slot: Slot, best: Lease, second: Lease | None) -> Reason:
        data = {"free": numbers(self.free(best)), "asked": numbers(slot.resources), "site": best.site}
        if second is None:
            return Reason("place.only", f"node {best.node} is the only one that can hold it", data)
        return Reason("place.best", self._advantage(slot, best, second), data)

    def _advantage(self, slot: Slot, best: Lease, other: Lease) -> str:
        """The first thing in which one node is better than another, as a sentence."""
        if self._waits(best) != self._waits(other):
            return f"node {best.node} is ready, and {other.node} is still on its way"
        if other.id == self._lost_at:
            return f"the one before was lost on {other.node}"
        if slot.role is Role.REPLICA:
            here, there = self._siblings(slot, best.site), self._siblings(slot, other.site)
            if here != there:
                return f"site {best.site} holds {here} replicas of {slot.model}, and {other.site} {there}"
            if self._left(slot, best) != self._left(slot, other):
                return (
                    f"packed: it would leave {self._left(slot, best):.0%} of {best.node} unused, and "
                    f"{self._left(slot, other):.0%} of {other.node}"
                )
        if best.site != other.site:
            return f"site {best.site} comes before {other.site} in the fleet"
        return f"node {best.node} is the tighter fit or comes first by name"

    def _less(self, slot: Slot, best: Lease, other: Lease) -> Reason:
        return Reason("node.second", self._advantage(slot, best, other))


def amount(resources: Resources) -> str:
    """Resources for people: `0.5 cores and 1.0 GiB`."""
    parts = [f"{resources.cpus:g} cores" if resources.cpus % 1 == 0 else f"{resources.cpus:.2f} cores"]
    parts.append(f"{resources.memory_bytes / GIB:.2f} GiB")
    if resources.accelerators:
        parts.append(f"{resources.accelerators} accelerators")
    return " and ".join(parts) if len(parts) == 2 else ", ".join(parts)


def numbers(resources: Resources) -> dict[str, float | int]:
    """Resources as plain values."""
    return {
        "cpus": round(resources.cpus, 6),
        "memory_bytes": resources.memory_bytes,
        "accelerators": resources.accelerators,
    }


def _nowhere(slot: Slot, rejected: list[Rejected]) -> Reason:
    """What the slot waits for, from why each node was rejected: the first that time may heal."""
    if not slot.sites:
        return Reason("place.no_site", "the fleet has no site for it")
    codes = [r.reason.code for r in rejected]
    for code in ("site.cleaning", "node.leaving", "site.silent", "node.full", "site.taken", "site.no_node"):
        if code in codes:
            first = rejected[codes.index(code)]
            return Reason(code, f"no node can hold it: {first.reason.text}", first.reason.data)
    return Reason("place.no_node", "no node can hold it")
