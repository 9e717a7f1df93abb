"""What a Ray site takes and how soon a dead node is noticed: with our health checks and with Ray's own.

    python bench/ray_site.py [--repeats 3]

Starts real clusters on loopback (needs `ray[default]`, about 1.5 GB), kills raylets with SIGKILL and looks at the
head's own list of nodes. The last line is one JSON object.
"""

from __future__ import annotations

import argparse
import json
import platform
import statistics
import subprocess
import sys
import time
from pathlib import Path

import psutil

ROOT = Path(__file__).resolve().parents[1]
sys.path.insert(0, str(ROOT))

from tests.support.ray_site import Node, RaySite, alive_nodes  # noqa: E402

from caudal.domain.fleet import Resources  # noqa: E402
from caudal.domain.gang import GangSpec, GangState, ProcessSpec  # noqa: E402
from caudal.drivers.ray.driver import RayDriver  # noqa: E402

SLEEPER = ProcessSpec(("{python}", "-c", "import time; time.sleep(600)"))
LIMIT_S = 90.0


def memory_bytes(processes: list[psutil.Process]) -> int:
    """What they have for themselves and their share of what they have together."""
    return sum(int(p.memory_full_info().pss) for p in processes if p.is_running())


def until_state(driver: RayDriver, gang_id: str, state: GangState) -> float:
    """How long it takes until the driver says so."""
    began = time.monotonic()
    while not any(row.gang_id == gang_id and row.state is state for row in driver.gangs()):
        assert time.monotonic() - began < LIMIT_S, f"{gang_id} is not {state}"
        time.sleep(0.02)
    return time.monotonic() - began


def noticed_s(driver: RayDriver, node: Node) -> float:
    """Kill the raylet; how long the head still calls it alive."""
    before = len(alive_nodes(driver))
    node.raylet().kill()
    began = time.monotonic()
    while len(alive_nodes(driver)) >= before:
        assert time.monotonic() - began < LIMIT_S, "it is not noticed"
        time.sleep(0.02)
    return time.monotonic() - began


def one_site(repeats: int, *, defaults: bool) -> dict[str, list[float]]:
    """One cluster: its start and memory, gangs on it, and nodes of it that die."""
    found: dict[str, list[float]] = {
        k: [] for k in ("head_s", "head_mb", "node_s", "node_mb", "noticed_s", "start_s")
    }
    found |= {"gang_mb": [], "lost_s": []}
    with RaySite("bench") as site:
        driver = site.driver()
        site.start_head("head", defaults=defaults)
        found["head_s"].append(site.wait_up(driver))
        for number in range(repeats):
            if not defaults and not number:
                found["head_mb"].append(memory_bytes(site.nodes["head"].tree()) / 2**20)
            node = site.join(f"node-{number}")
            found["node_s"].append(site.wait_up(driver, nodes=2))
            time.sleep(8.0 if defaults else 3.0)  # past the delay before the first health check
            found["node_mb"].append(memory_bytes(node.tree()) / 2**20)
            if not defaults:
                before = memory_bytes(site.nodes["head"].tree())
                gang_id, lease = f"g-{number}", f"node-{number}"
                asks = Resources(cpus=0.5, memory_bytes=64 << 20)
                driver.start(GangSpec(gang_id, "bench", lease, 1, (SLEEPER,), asks, lease), "t")
                began = time.monotonic()
                found["start_s"].append(until_state(driver, gang_id, GangState.RUNNING))
                found["start_s"][-1] = time.monotonic() - began
                found["gang_mb"].append((memory_bytes(site.nodes["head"].tree()) - before) / 2**20)
            killed_at = time.monotonic()
            found["noticed_s"].append(noticed_s(driver, node))
            if not defaults:
                until_state(driver, f"g-{number}", GangState.LOST)
                found["lost_s"].append(time.monotonic() - killed_at)
            site.nodes.pop(f"node-{number}").close()
    return found


def main() -> None:
    """Run it."""
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--repeats", type=int, default=3)
    repeats = parser.parse_args().repeats
    ours = one_site(repeats, defaults=False)
    theirs = one_site(repeats, defaults=True)
    figures: dict[str, object] = {}
    rows = [(f"ours_{key}", values) for key, values in ours.items()]
    for name, values in [*rows, ("defaults_noticed_s", theirs["noticed_s"])]:
        figures[name] = {
            "median": round(statistics.median(values), 2),
            "range": [round(min(values), 2), round(max(values), 2)],
            "repeats": len(values),
        }
        print(name, figures[name], flush=True)
    commit = subprocess.run(
        ["git", "rev-parse", "--short", "HEAD"], capture_output=True, text=True, cwd=ROOT, check=False
    )
    machine = f"{platform.machine()}, {psutil.cpu_count()} cores"
    print(
        json.dumps(
            {"name": "ray-site", "commit": commit.stdout.strip(), "machine": machine, "figures": figures}
        )
    )


if __name__ == "__main__":
    main()
