"""What a Slurm of eight virtual nodes costs here, and how fast gangs start, are preempted, come back and are missed.

    python bench/slurm.py [--repeats 5]

Needs Debian's slurm-wlm and munge. The driver is asked every 0.05 s, as a loop in a hurry would.
"""

from __future__ import annotations

import argparse
import sys
import tempfile
import time
from dataclasses import replace
from pathlib import Path
from typing import Any

sys.path.insert(0, str(Path(__file__).resolve().parents[1]))

from tests.support.slurm import CPUS, NODES, SLURMD_TIMEOUT_S, Slurm, running_slurm

from caudal.domain.fleet import Resources, SlurmSpec
from caudal.domain.gang import GangSpec, GangState, ProcessSpec, Role
from caudal.drivers.slurm.driver import SlurmDriver
from caudal.drivers.slurm.hosts import Here
from harness import figure, finish, timed

PROGRAM = ("{python}", "-c", "import time; time.sleep(3600)")
WHOLE_NODE = Resources(cpus=CPUS, memory_bytes=1 << 30)
LOOK_S = 0.05


def spec(gang_id: str, node: str, role: Role, resources: Resources = WHOLE_NODE) -> GangSpec:
    """A gang that sleeps."""
    return replace(
        GangSpec(gang_id, "north", node, 1, (ProcessSpec(PROGRAM),)), resources=resources, role=role
    )


def took_s(driver: SlurmDriver, gang_id: str, *states: GangState) -> float:
    """How long it takes until the driver lists the gang in one of the states."""
    began = time.monotonic()
    while not any(s.gang_id == gang_id and s.state in states for s in driver.gangs()):
        assert time.monotonic() - began < 120, list(driver.gangs())
        time.sleep(LOOK_S)
    return time.monotonic() - began


def once(slurm: Slurm, folder: Path) -> dict[str, float]:
    """One repeat: every figure once, in seconds."""
    options = SlurmSpec(folder=str(folder), partition="train", service_partition="serve", requeue=True)
    driver = SlurmDriver("north", options, Here())
    row = {"submit_s": timed(lambda: driver.start(spec("run.worker.0-1", "node1", Role.WORKER), "t1"))}
    row["running_after_submit_s"] = took_s(driver, "run.worker.0-1", GangState.RUNNING)
    began = time.monotonic()
    driver.start(spec("chat.replica.m.0-1", "node1", Role.REPLICA), "t2")
    took_s(driver, "run.worker.0-1", GangState.STARTING)
    row["preempted_and_requeued_s"] = time.monotonic() - began
    took_s(driver, "chat.replica.m.0-1", GangState.RUNNING)
    row["service_running_in_its_place_s"] = time.monotonic() - began
    driver.stop("chat.replica.m.0-1", 5.0)
    row["requeued_runs_again_after_s"] = took_s(driver, "run.worker.0-1", GangState.RUNNING)
    driver.start(spec("run.worker.1-1", "node4", Role.WORKER), "t3")
    took_s(driver, "run.worker.1-1", GangState.RUNNING)
    row["gangs_call_s"] = timed(driver.gangs)
    slurm.kill("node4")
    row["dead_slurmd_noticed_s"] = took_s(driver, "run.worker.1-1", GangState.LOST, GangState.STARTING)
    slurm.start("node4")
    for status in driver.gangs():
        driver.stop(status.gang_id, 0.0)
    for status in driver.gangs():
        took_s(driver, status.gang_id, GangState.EXITED, GangState.LOST)
    slurm.wait_idle()
    return row


def main() -> None:
    """Run all repeats and print them."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--repeats", type=int, default=5)
    repeats = parser.parse_args().repeats
    began = time.monotonic()
    rows: list[dict[str, float]] = []
    with running_slurm() as slurm, tempfile.TemporaryDirectory() as folder:
        up_s = time.monotonic() - began
        figures: dict[str, Any] = {"nodes": len(NODES), "slurmd_timeout_s": SLURMD_TIMEOUT_S}
        figures["up"] = figure([up_s], "s")
        figures["servers_pss"] = figure([slurm.memory_bytes() / 1e6], "MB", 1)
        figures["servers_rss"] = figure([slurm.memory_bytes("Rss:") / 1e6], "MB", 1)
        for number in range(repeats):
            rows.append(once(slurm, Path(folder) / str(number)))
            print({key: round(value, 3) for key, value in rows[-1].items()}, flush=True)
    for key in rows[0]:
        figures[key.removesuffix("_s")] = figure([row[key] for row in rows], "s")
    finish("slurm", figures)


if __name__ == "__main__":
    main()
