"""What placement costs against the optimum, on 500 fleets made from seeds, and how long a decision takes.

    python bench/placement.py [--instances 500] [--first 1]

The policy's decisions are played out until nothing is decided any more and idle nodes are given back; what is then held
is compared with the least that HiGHS finds (bench/placement_optimum.py). Fleets that cannot hold everything, and those
whose program is too large, are passed over and counted. Goals: mean <= 1.02, p99 <= 1.10. The last line is one
JSON object.
"""

from __future__ import annotations

import argparse
import math
import time
from statistics import mean

from caudal.policy.board import Board
from caudal.policy.desired import desired
from caudal.policy.rules import Rules
from harness import figure, finish
from placement_optimum import optimum
from placement_world import Instance, World, instance

MOST_STEPS = 40


def played(given: Instance) -> tuple[World, list[float], int]:
    """The world when all is calm, the time of each decision in seconds, and what is left without room."""
    world, took = World(given), []
    calm = 0
    for _ in range(MOST_STEPS):
        decision = world.step(1.0)
        took.append(world.decided_in_s)
        calm = 0 if decision.choices else calm + 1
        if calm >= 2:
            break
    world.step(301.0)  # what stood idle from the beginning is given back
    world.step(1.0)
    wanted = desired(Board(world.snapshot(), world.now, Rules()), frozenset()).slots
    held = {g.slot for g in world.gangs.values() if g.ended_at is None}
    return world, took, len(set(wanted) - held)


def main() -> None:
    """Play each fleet, solve it, compare."""
    options = argparse.ArgumentParser()
    options.add_argument("--instances", type=int, default=500)
    options.add_argument("--first", type=int, default=1)
    options.add_argument("--worst", type=int, default=0, help="name the worst ones")
    given = options.parse_args()
    ratios: list[tuple[float, int]] = []
    decisions: list[float] = []
    solving: list[float] = []
    passed = {"no room": 0, "too large": 0, "not proved": 0}
    without_room = slots = 0
    seed = given.first
    while len(ratios) < given.instances:
        one = instance(seed)
        seed += 1
        start = time.process_time()
        try:
            best = optimum(one)
        except OverflowError:
            passed["too large"] += 1
            continue
        if best is None or best.gap > 0.002 or best.usd_per_hour <= 0:
            passed["no room" if best is None else "not proved"] += 1
            continue
        solving.append(time.process_time() - start)
        world, took, left = played(one)
        decisions += [max(took)]
        without_room += left > 0
        slots += sum(1 for g in world.gangs.values() if g.ended_at is None)
        ratios.append((math.inf if left else world.cost_usd_per_hour() / best.usd_per_hour, one.seed))
    ordered = sorted(r for r, _ in ratios)
    for ratio, worst in sorted(ratios, reverse=True)[: given.worst]:
        print(f"seed {worst}: {ratio:.3f}")
    finite = [r for r in ordered if r < math.inf]
    finish(
        "placement",
        {
            "cost_ratio_mean": round(mean(finite), 4),
            "cost_ratio_p50": round(ordered[len(ordered) // 2], 4),
            "cost_ratio_p90": round(ordered[int(0.90 * len(ordered))], 4),
            "cost_ratio_p99": round(ordered[math.ceil(0.99 * len(ordered)) - 1], 4),
            "cost_ratio_max": round(finite[-1], 4),
            "at_the_optimum": sum(r <= 1.0005 for r in ordered),
            "instances": len(ordered),
            "slots_mean": round(slots / len(ordered), 1),
            "left_without_room": without_room,
            "passed_over": passed,
            "slowest_decision_s": figure(decisions, "s", 5),
            "optimum_s": figure(solving, "s", 4),
        },
    )


if __name__ == "__main__":
    main()
