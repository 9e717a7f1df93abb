"""The control process killed between any two of its steps, at many random points in virtual time.

    make bench-crash-points            10,000 points
    python bench/crash_points.py 500   so many

The last line is one JSON object. Exit code 1 where anything was wrong; a seed that was is printed.
"""

from __future__ import annotations

import json
import sys
import time
from collections import Counter

from caudal.simulate.crashes import crash_points


def main() -> int:
    """Run, and say what came of it."""
    points = int(sys.argv[1]) if len(sys.argv) > 1 else 10_000
    began = time.monotonic()
    killed: Counter[str] = Counter()
    done = worlds = machines = passes = wrong = 0
    leaked_s = simulated_s = 0.0
    for outcome in crash_points(points):
        worlds += 1
        done += outcome.points
        machines += outcome.machines
        passes += outcome.passes
        leaked_s += outcome.leaked_s
        simulated_s += outcome.simulated_s
        killed += outcome.killed_after
        if outcome.wrong:
            wrong += 1
            print(f"seed {outcome.seed}: {outcome.wrong[0]}", flush=True)
        if not worlds % 20:
            print(f"{done} points, {wrong} worlds with something wrong", flush=True)
    for step, count in sorted(killed.items()):
        print(f"  killed after {step}: {count}")
    figures = {
        "bench": "crash_points",
        "points": done,
        "worlds": worlds,
        "worlds_with_something_wrong": wrong,
        "leaked_machine_s": leaked_s,
        "machines_given": machines,
        "kinds_of_steps": len(killed),
        "simulated_h": round(simulated_s / 3600, 1),
        "took_s": round(time.monotonic() - began, 1),
    }
    print(json.dumps(figures))
    return 1 if wrong or leaked_s else 0


if __name__ == "__main__":
    sys.exit(main())
