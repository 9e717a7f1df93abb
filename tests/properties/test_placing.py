"""Properties of the search for a node: nodes are asked by kind, and the answer is that of asking each one.

Through random histories of gangs, promises and leases a placer that has seen all of it answers as one that looks anew
does; what it takes is what a plain walk over the nodes would take; and it accounts for every node.
"""

from __future__ import annotations

import re
from dataclasses import replace

from hypothesis import given, settings
from hypothesis import strategies as st

from caudal.domain.fleet import LeaseState, MachineState, Resources
from caudal.domain.gang import Gang, Role, gang_id
from caudal.policy.board import Board
from caudal.policy.placement import Placement, Placer
from caudal.policy.shelves import Shelves
from caudal.policy.slots import Slot
from tests.unit.policy_world import GIB, RULES, Play, lease, machine_type

SITES = ("north", "south", "west")
CORES = st.sampled_from([0.5, 1.0, 2.0, 4.0])
STATES = st.sampled_from([*([LeaseState.ACTIVE] * 6), *LeaseState])


@st.composite
def boards(draw: st.DrawFn) -> Board:
    """Some dozens of nodes of a few sizes, in every state."""
    play = Play(sites=SITES)
    play.leases, play.machines = {}, {}
    for site in SITES:
        for number in range(draw(st.integers(0, 24))):
            size = machine_type(draw(CORES), draw(st.sampled_from([4.0, 8.0])))
            play.add_node(lease(site, number, machine_type=size, state=draw(STATES)))
    for machine in list(play.machines.values()):
        if draw(st.integers(0, 9)) == 0:
            state = draw(st.sampled_from([MachineState.STOPPING, MachineState.RUNNING]))
            play.machines[machine.id] = replace(
                machine, state=state, failed=draw(st.sampled_from(["", "hot"]))
            )
    if draw(st.integers(0, 4)) == 0:
        play.silent[draw(st.sampled_from(SITES))] = 1.0
    return Board(play.snapshot(), play.now, RULES)


def slot(number: int, cores: float, sites: tuple[str, ...], role: Role) -> Slot:
    """A replica, or a worker that keeps apart from the others of its run."""
    name = f"w{number % 3}.{role.value}.{number}"
    asked = Resources(cores, GIB)
    return Slot(name, role, f"w{number % 3}", 1, asked, sites, apart=role is Role.WORKER, model="m")


SLOTS = st.builds(
    slot,
    st.integers(0, 11),
    st.sampled_from([0.5, 1.0, 1.5, 3.0]),
    st.lists(st.sampled_from(SITES), min_size=1, max_size=3, unique=True).map(tuple),
    st.sampled_from([Role.REPLICA, Role.WORKER]),
)


def counted(placement: Placement) -> int:
    """Of how many nodes it says something."""
    told = [r.what for r in placement.rejected if not r.what.startswith("site ")]
    more = [re.fullmatch(r"(\d+) more nodes", what) for what in told]
    return sum(int(found[1]) if found else 1 for found in more) + (placement.lease is not None)


@settings(max_examples=150, deadline=None)
@given(boards(), st.lists(st.tuples(SLOTS, st.integers(0, 9)), max_size=12), st.data())
def test_what_is_remembered_of_nodes_is_what_looking_anew_finds(
    board: Board, history: list[tuple[Slot, int]], data: st.DataObject
) -> None:
    dirty = frozenset(data.draw(st.lists(st.sampled_from(SITES), max_size=1)))
    placer = Placer(board, dirty, frozenset())
    promised: list[tuple[Slot, str]] = []
    for at, (asked, what) in enumerate(history):
        anew = Placer(board, dirty, frozenset())
        for kept, lease_id in promised:
            anew.promise(kept, board.leases[lease_id])
        leaving = data.draw(st.sampled_from(["", *SITES]))
        found = placer.place(asked, leaving)
        assert found == anew.place(asked, leaving)
        assert counted(found) == len(board.leases)
        if found.lease is None:
            continue
        if not found.ready or what < 3:
            promised.append((asked, found.lease.id))
            if found.ready:  # what is promised of a node on its way is booked by the placer itself
                placer.promise(asked, found.lease)
        elif what < 7:
            where = (found.lease.site, found.lease.node, found.lease.id, found.lease.epoch)
            key = gang_id(asked.name, at + 1)
            board.gangs[key] = Gang(
                key,
                asked.name,
                at + 1,
                asked.role,
                asked.workload,
                1,
                *where,
                asked.resources,
                1.0,
                model="m",
            )
        elif what == 7 and board.gangs:
            board.gangs.pop(next(iter(board.gangs)))
        else:
            board.set_lease(replace(found.lease, state=LeaseState.RELEASING))


@settings(max_examples=150, deadline=None)
@given(boards(), SLOTS)
def test_a_replica_goes_to_the_fullest_node_that_holds_it_ready_ones_first(board: Board, asked: Slot) -> None:
    asked = replace(asked, role=Role.REPLICA, apart=False)
    found = Placer(board, frozenset(), frozenset()).place(asked)

    def usable(node: str) -> bool:
        held = board.leases[node]
        machine = board.machines.get(held.machine_id)
        return (
            held.site in asked.sites
            and board.answers(held.site)
            and held.state in (LeaseState.ACTIVE, LeaseState.REQUESTED)
            and (machine is None or (machine.state is not MachineState.STOPPING and not machine.failed))
            and asked.resources.fits(board.free(held))
        )

    def rank(node: str) -> tuple[bool, float, int, str]:
        held = board.leases[node]
        has, left = held.machine_type.resources, board.free(held).minus(asked.resources)
        unused = round(max(left.cpus / has.cpus, left.memory_bytes / has.memory_bytes), 9)
        return held.state is not LeaseState.ACTIVE, unused, SITES.index(held.site), held.node

    best = min(filter(usable, board.leases), key=rank, default=None)
    assert (found.lease.id if found.lease else None) == best


@given(
    st.lists(st.integers(0, 3), max_size=30),
    st.lists(st.tuples(st.integers(0, 29), st.integers(0, 3)), max_size=20),
)
def test_every_node_stands_on_the_shelf_of_its_like_and_on_no_other(
    kinds: list[int], moves: list[tuple[int, int]]
) -> None:
    nodes = [lease("north", number) for number in range(len(kinds))]
    kind = {node.id: kinds[number] for number, node in enumerate(nodes)}
    shelves = Shelves(nodes, lambda node: kind[node.id])
    for number, becomes in moves:
        if number < len(nodes):
            kind[nodes[number].id] = becomes
            shelves.changed([nodes[number].id, "unknown"])
    assert {shelf.likeness: shelf.places for shelf in shelves.all()} == {
        k: [place for place, node in enumerate(nodes) if kind[node.id] == k] for k in set(kind.values())
    }
