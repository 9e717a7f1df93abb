"""The cheapest nodes that hold everything an instance has to run: a mixed-integer program over ways to fill a machine.

A way to fill is how many slots of each kind a machine of a type holds, such that no other slot fits in beside them. The
program says how many machines of each offer are filled in each way. It knows the same rules as the policy: sites,
workers of a run apart, machines that are left, contracts; and it sees everything at once, which no policy has to.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass

from caudal.domain.fleet import Offer, Resources
from caudal.plan.program import INFINITY, Program
from caudal.plan.solver import solve
from caudal.policy.board import Board
from caudal.policy.desired import desired
from caudal.policy.rules import Rules
from caudal.policy.slots import Slot
from placement_world import Instance, World, signed_usd_per_hour

MOST_FILLS = 60_000


@dataclass(frozen=True, slots=True)
class Kind:
    """Slots that are alike: `count` of them; `apart`: at most one at a site."""

    resources: Resources
    sites: tuple[str, ...]
    apart: bool
    workload: str
    count: int


@dataclass(frozen=True, slots=True)
class Optimum:
    """Dollars an hour, contracts included. `gap`: how far below it the least may be. None of it where there is no way."""

    usd_per_hour: float
    gap: float


def optimum(given: Instance) -> Optimum | None:
    """The cheapest; None where not everything has room. Raises OverflowError for an instance with too many fills."""
    kinds = _kinds(given)
    program = Program(offset=signed_usd_per_hour(given))
    holds: list[list[tuple[int, int]]] = [[] for _ in kinds]  # of a kind: (variable, how many)
    apart: dict[tuple[int, str], list[tuple[int, int]]] = {}
    ways: dict[tuple[Resources, tuple[int, ...]], list[tuple[int, ...]]] = {}
    for offer in given.offers:
        here = tuple(k for k, kind in enumerate(kinds) if offer.site in kind.sites)
        key = (offer.machine_type.resources, here)
        if key not in ways:
            ways[key] = list(_fills(key[0], kinds, here))
        _machines(program, offer, kinds, ways[key], holds, apart)
    for k, kind in enumerate(kinds):
        if not kind.apart:
            program.row(
                "all have room",
                kind.count,
                INFINITY,
                [v for v, _ in holds[k]],
                [float(n) for _, n in holds[k]],
            )
            continue
        chosen = []
        for site in kind.sites:
            here = apart.get((k, site), [])
            chosen.append(program.add(0.0, 1.0, whole=True))
            program.row(
                "one at a site",
                0.0,
                INFINITY,
                [*(v for v, _ in here), chosen[-1]],
                [*(1.0 for _ in here), -1.0],
            )
        program.row("all have room", kind.count, kind.count, chosen, [1.0] * len(chosen))
    solved = solve(program, gap=1e-4, time_limit_s=60.0)
    if solved.status == "infeasible":
        return None
    return Optimum(solved.cost, solved.gap)


def _kinds(given: Instance) -> list[Kind]:
    world = World(given)
    wanted = desired(Board(world.snapshot(), world.now, Rules()), frozenset())
    found: dict[tuple[object, ...], list[Slot]] = {}
    for slot in wanted.slots.values():
        found.setdefault((slot.resources, slot.sites, slot.apart and slot.workload), []).append(slot)
    return [Kind(s[0].resources, s[0].sites, s[0].apart, s[0].workload, len(s)) for s in found.values()]


def _machines(
    program: Program,
    offer: Offer,
    kinds: Sequence[Kind],
    fills: Sequence[tuple[int, ...]],
    holds: list[list[tuple[int, int]]],
    apart: dict[tuple[int, str], list[tuple[int, int]]],
) -> None:
    """The variables of an offer: how many machines are filled in each way."""
    cost = 0.0 if offer.contract else float(offer.price_usd_per_hour)
    variables = []
    for fill in fills:
        variables.append(program.add(cost, whole=True))
        for k, count in enumerate(fill):
            if count:
                holds[k].append((variables[-1], count))
                if kinds[k].apart:
                    apart.setdefault((k, offer.site), []).append((variables[-1], count))
    if offer.available is not None and variables:
        program.row("what is left", 0.0, float(offer.available), variables, [1.0] * len(variables))


def _fills(has: Resources, kinds: Sequence[Kind], here: Sequence[int]) -> Iterator[tuple[int, ...]]:
    """The ways to fill a machine, those that another one contains left out."""
    order = sorted(here, key=lambda k: (-kinds[k].resources.accelerators, -kinds[k].resources.cpus))
    made = 0

    def go(at: int, left: Resources, counts: dict[int, int]) -> Iterator[tuple[int, ...]]:
        nonlocal made
        if at == len(order):
            for k in order:
                if counts.get(k, 0) < _most(kinds[k]) and kinds[k].resources.fits(left):
                    return
            if any(counts.values()):
                made += 1
                if made > MOST_FILLS:
                    raise OverflowError
                yield tuple(counts.get(k, 0) for k in range(len(kinds)))
            return
        kind = kinds[order[at]]
        rests = [left]
        while len(rests) <= _most(kind) and kind.resources.fits(rests[-1]):
            rests.append(rests[-1].minus(kind.resources))
        for count in range(len(rests) - 1, -1, -1):
            yield from go(at + 1, rests[count], counts | {order[at]: count})

    yield from go(0, has, {})


def _most(kind: Kind) -> int:
    return 1 if kind.apart else kind.count
