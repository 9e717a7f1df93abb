"""The planner on three years and ten scenarios: time, gap, and the greedy way beside it.

    python bench/plan.py [--repeats 3] [--months 36] [--scenarios 10]

The instances are made from a seed: four providers, six chips, a dozen committed offers, three services, six runs. The
goal is a gap of at most 0.5 % in at most 60 s. The last line is one JSON object.
"""

from __future__ import annotations

import argparse
import os
import random
import time
from decimal import Decimal

from caudal.domain.demand import (
    CapacityOffer,
    ChipSpeed,
    DemandSpec,
    LoadBlock,
    RunDemand,
    Scenario,
    ServiceDemand,
)
from caudal.plan import months as calendar
from caudal.plan.horizon import Horizon
from caudal.plan.model import build
from caudal.plan.planner import plan
from harness import figure, finish

CHIPS = {"A100": 0.4, "H100": 1.0, "H200": 1.3, "B200": 2.2, "Trainium2": 0.8, "MI300X": 1.0}
PROVIDERS = ("aws", "azure", "coreweave", "own")


def instance(seed: int, months: int, scenarios: int) -> DemandSpec:
    """A made-up lab."""
    chance = random.Random(seed)
    first = calendar.number("2027-01")
    offers = []
    for provider in PROVIDERS[:3]:
        for chip in chance.sample(sorted(CHIPS), 3):
            hour = 6.0 * CHIPS[chip] * chance.uniform(0.8, 1.5)
            for term, off in ((12, 0.35), (36, 0.5)):
                price = Decimal(f"{hour * (1 - off) * chance.uniform(0.95, 1.05):.3f}")
                name = f"{provider}-{chip}-{term}"
                most = 64.0 * chance.randint(20, 200)
                offers.append(
                    CapacityOffer(name, provider, "reserved", chip, price, term, 64.0, most, prepaid=0.1)
                )
            price = Decimal(f"{hour:.3f}")
            name = f"{provider}-{chip}-hour"
            offers.append(CapacityOffer(name, provider, "on_demand", chip, price, max_chips=2048.0))
    loads = (LoadBlock("night", 0.4, 0.5), LoadBlock("day", 0.5, 1.2), LoadBlock("peak", 0.1, 2.0))
    speeds = tuple(ChipSpeed(chip, speed) for chip, speed in CHIPS.items())
    have = {offer.chip for offer in offers}
    speeds = tuple(one for one in speeds if one.chip in have)
    services = tuple(
        ServiceDemand(f"service-{n}", chance.uniform(200, 1500), speeds, survives=0.7) for n in range(3)
    )
    runs = []
    for number in range(6):
        start = chance.randrange(0, months - 6)
        last = min(months - 1, start + chance.randint(3, 8))
        work = chance.uniform(0.5, 4.0) * 1e6
        runs.append(
            RunDemand(
                f"run-{number}", work, calendar.name(first + start), calendar.name(first + last), speeds
            )
        )
    ways = tuple(
        Scenario(f"s{n}", 1 / scenarios, chance.uniform(1.0, 2.2), chance.uniform(0.8, 1.3))
        for n in range(scenarios)
    )
    return DemandSpec("made-up", "2027-01", months, ways, tuple(offers), services, tuple(runs), load=loads,
                      max_provider_share=0.6)  # fmt: skip


def main() -> None:
    """Plan each instance both ways."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--repeats", type=int, default=int(os.environ.get("REPEATS", "3")))
    parser.add_argument("--months", type=int, default=36)
    parser.add_argument("--scenarios", type=int, default=10)
    told = parser.parse_args()
    seconds, gaps, greedy_s, greedy_cost, sizes = [], [], [], [], []
    for seed in range(1, told.repeats + 1):
        spec = instance(seed, told.months, told.scenarios)
        program = build(Horizon(spec)).program
        sizes.append(float(len(program.costs)))
        started = time.monotonic()
        made = plan(spec)
        seconds.append(time.monotonic() - started)
        gaps.append(100 * (made.gap or 0.0))
        started = time.monotonic()
        other = plan(spec, method="greedy")
        greedy_s.append(time.monotonic() - started)
        greedy_cost.append(other.usd_now / made.usd_now)
        ours = f"{made.status}, gap {gaps[-1]:.3f} %, {seconds[-1]:.1f} s, short {len(made.shortfalls)}"
        print(f"seed {seed}: {sizes[-1]:.0f} variables, {ours}; greedy {greedy_cost[-1]:.2f} x", flush=True)
    finish(
        "plan",
        {
            "variables": figure(sizes, ""),
            "wall": figure(seconds, "s"),
            "gap": figure(gaps, "%", 4),
            "greedy_wall": figure(greedy_s, "s"),
            "greedy_cost": figure(greedy_cost, "x of the plan's"),
            "goal": {"gap_pct": 0.5, "wall_s": 60},
        },
    )


if __name__ == "__main__":
    main()
