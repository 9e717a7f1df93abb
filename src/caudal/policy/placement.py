"""Which node for a slot: a run's workers spread over sites, replicas packed onto the fullest node that holds
them, and every choice with the alternatives that were rejected.

Only nodes that exist or were asked for are looked at; getting more of them is capacity's.
"""

from __future__ import annotations

from bisect import bisect_right
from collections.abc import Mapping
from dataclasses import astuple, dataclass, replace
from heapq import nsmallest
from itertools import chain
from operator import attrgetter, itemgetter

from caudal.domain.decision import Reason, Rejected
from caudal.domain.fleet import Lease, LeaseState, MachineState, Resources
from caudal.domain.gang import CANNOT_START, Gang, Role
from caudal.policy.board import Board, Room
from caudal.policy.recovery import machine_of
from caudal.policy.shelves import Shelf, Shelves
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
        self._promises: list[str] = []  # the lease of each promise made or kept, in their order
        self._shelves = Shelves((), self._likeness)
        self._shelved_at = -1
        self._seen = 0, 0, 0  # how many changes of gangs and of promises the shelves know
        self._standing: dict[str, Reason | None] = {}  # what speaks against a node for any slot
        self._lost_at = ""  # the lease at which the slot that is being placed was lost last

    def place(self, slot: Slot, leaving: str = "") -> Placement:
        """The best node for a slot. `leaving` is the site that it has to get away from, if any."""
        board, shelves = self._board, self._stocked()
        nodes, taken = shelves.nodes, self.sites_taken(slot)
        fits: list[Shelf] = []
        unfit: list[Shelf] = []
        for shelf in shelves.all():
            against = self._against(slot, nodes[shelf.places[0]], leaving, taken)
            (fits if against is None else unfit).append(shelf)
        rejected = self._told(slot, unfit, leaving, taken) + self._sites_without_nodes(slot)
        if not fits:
            return Placement(None, False, _nowhere(slot, rejected), tuple(rejected))
        ranked = self._ranked(slot, fits)
        best = ranked[0]
        ready = not self._waits(best)
        reason = self._why(slot, best, ranked[1] if len(ranked) > 1 else None)
        second = [Rejected(x.node, self._less(slot, best, x)) for x in ranked[1:]]
        if more := sum(len(shelf.places) for shelf in fits) - len(ranked):
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
            self._promises.append(lease.id)
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
        self._promises.append(lease.id)

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

    def _stocked(self) -> Shelves:
        """The shelves, as of now."""
        board = self._board
        logs = board.gangs.changes, board.over.changes, self._promises
        if self._shelved_at != board.changed_leases:
            self._standing.clear()
            order = {site: i for i, site in enumerate(board.sites)}
            known = sorted((x for x in board.leases.values() if x.site in order), key=attrgetter("node"))
            known.sort(key=lambda x: order[x.site])
            board.rooms()
            self._shelves = Shelves(known, self._likeness)
            self._shelved_at = board.changed_leases
        else:
            for log, seen in zip(logs, self._seen, strict=True):
                self._shelves.changed(log[seen:])
        self._seen = len(logs[0]), len(logs[1]), len(logs[2])
        return self._shelves

    def _likeness(self, lease: Lease) -> tuple[str | bool | float | Room, ...]:
        """All that placing a slot asks of a node, its name and the loss of a slot there aside."""
        room, has = self._board.room(lease), lease.machine_type.resources
        if lease.id in self._promised:
            room = astuple(self.free(lease))
        standing = self._against_any(lease)
        return (
            lease.site, lease.state is LeaseState.SUSPECT, self._waits(lease), standing.code if standing else "",
            room, has.cpus, has.memory_bytes, has.accelerators,
        )  # fmt: skip

    def _told(self, slot: Slot, unfit: list[Shelf], leaving: str, taken: Mapping[str, str]) -> list[Rejected]:
        """Why nodes were rejected: the first few by name, of the others how many for which reason. Nobody reads ten
        thousand lines, and no store should keep them."""

        def why(place: int) -> Reason:
            reason = self._against(slot, nodes[place], leaving, taken)
            assert reason is not None, "nodes on a shelf are alike"
            return reason

        nodes = self._shelves.nodes
        first = nsmallest(MOST_TOLD, chain.from_iterable(shelf.places[:MOST_TOLD] for shelf in unfit))
        told = [Rejected(nodes[place].node, why(place)) for place in first]
        more: dict[str, tuple[int, int]] = {}  # by code: how many, and the first of them
        for shelf in unfit:
            at = bisect_right(shelf.places, first[-1])
            if at == len(shelf.places):
                continue
            code = why(shelf.places[at]).code
            count, earliest = more.get(code, (0, len(nodes)))
            more[code] = count + len(shelf.places) - at, min(earliest, shelf.places[at])
        for count, earliest in sorted(more.values(), key=itemgetter(1)):
            reason = why(earliest)
            told.append(Rejected(f"{count} more nodes", replace(reason, text=f"such as: {reason.text}")))
        return told

    def _ranked(self, slot: Slot, fits: list[Shelf]) -> list[Lease]:
        """The best few nodes for a slot, the best first. Of nodes that are alike the first by name come first, but for
        the one where the slot was lost."""
        nodes = self._shelves.nodes
        sites = {nodes[shelf.places[0]].site for shelf in fits}
        siblings = {site: self._siblings(slot, site) for site in sites}
        order = {site: place for place, site in enumerate(self._board.sites)}
        self._lost_at = self._lost(slot)
        ranked: list[tuple[tuple[float | int | str, ...], Lease]] = []
        for shelf in fits:
            site = nodes[shelf.places[0]].site
            left = self._left(slot, nodes[shelf.places[0]])
            ranked += (
                (self._rank(slot, nodes[place], siblings[site], order[site], left), nodes[place])
                for place in shelf.places[: MOST_TOLD + 2]
            )
        return [lease for _, lease in nsmallest(MOST_TOLD + 1, ranked, key=itemgetter(0))]

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
        standing = self._against_any(lease)
        if standing is not None:
            return standing
        free = self.free(lease)
        if not slot.resources.fits(free):
            text = f"node {lease.node} has {amount(free)} free, and {amount(slot.resources)} is asked"
            return Reason("node.full", text, {"free": numbers(free), "asked": numbers(slot.resources)})
        return None

    def _against_any(self, lease: Lease) -> Reason | None:
        """Why no slot may come to this node now; the same within a decision, as long as no lease changes."""
        if lease.id not in self._standing:
            self._standing[lease.id] = self._against_now(lease)
        return self._standing[lease.id]

    def _against_now(self, lease: Lease) -> Reason | None:
        board, site = self._board, lease.site
        if not board.answers(site):
            return Reason("site.silent", f"the driver of site {site} does not answer")
        if site in self._dirty_sites or lease.id in self._dirty_leases:
            return Reason("site.cleaning", f"what is fenced on {lease.node} has to end first")
        machine = machine_of(board, lease)
        if why := why_unfit(board, lease, machine):
            return Reason("node.failed", f"node {lease.node} is not as promised: {why}")
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
        """The lease of the slot's last gang, if it was lost there or could not be started: what is to blame may be the
        node's, and still be so (a dead raylet, where the machine runs)."""
        newest = next(iter(self._board.ended(slot.name)), None)
        if newest is None:
            return ""
        lost = end_code(newest) == "gang.lost" or newest.exit_code == CANNOT_START
        return newest.lease_id if lost else ""

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
            return f"the one before was lost, or did not start, on {other.node}"
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
