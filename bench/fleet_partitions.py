"""Row `partitions`: two writers of one thing, over many random partitions. None is the goal.

Three ways, from many and cheap to few and real: a run's coordinators in virtual time; the gangs of a fleet, real
processes under the real control loop; a run of real processes in network namespaces.
"""

from __future__ import annotations

import itertools
import os
import random
import signal
import sys
import time
from dataclasses import replace
from pathlib import Path
from typing import Any

ROOT = Path(__file__).resolve().parents[1]
sys.path.insert(0, str(ROOT))

from tests.properties.test_train_protocol import weathered  # noqa: E402
from tests.support.partitions import PartitionWorld, two_writers  # noqa: E402

from caudal.control.settings import Settings  # noqa: E402
from caudal.domain.gang import Gang  # noqa: E402
from caudal.policy.rules import Rules  # noqa: E402
from fleet_faults import SITES, LocalSite, local_fleet  # noqa: E402
from fleet_rig import Options, Rig, spread, until  # noqa: E402
from wan_place import Wan, unusable  # noqa: E402
from wan_run import SMALL, Run, train_spec  # noqa: E402

STORM_S = 40.0
FASTER = 8.0
"""How many times faster than a fleet's own the rules are that gangs are partitioned under."""


def partitions(options: Options) -> dict[str, Any]:
    """See the module."""
    return {
        "run_virtual": run_virtual(options),
        "gangs_real": gangs_real(options),
        "run_real": {"skipped": why} if (why := unusable()) else run_real(options),
    }


def run_virtual(options: Options) -> dict[str, Any]:
    """The state machines of coordinators and sites in virtual time, each seed until there were enough partitions. A
    writer is a coordinator that commits; two are a commit of an older epoch behind one of a newer."""
    wanted = 10 * options.partitions
    done = rivals = refused = seeds = 0
    wrong: list[str] = []
    while done < wanted:
        world = PartitionWorld(options.seed * 1_000_000 + seeds, 1 + seeds % 4)
        weathered(world, STORM_S)
        wrong += [f"seed {seeds}: {what}" for what in two_writers(world)]
        done, rivals, refused = done + world.partitions, rivals + world.rivals, refused + world.refused
        seeds += 1
    for what in wrong:
        options.say(what)
    return {
        "partitions": done,
        "two_writers": len(wrong),
        "with_two_that_believed": rivals,
        "writes_refused": refused,
        "runs": seeds,
    }


def gangs_real(options: Options) -> dict[str, Any]:
    """A site's driver is silent for a random time while its gangs live on, under the real loop with its times
    divided. Two writers: two living gangs of one slot that the books both hold, neither under an older epoch."""
    chance = random.Random(options.seed)
    usual = Settings()
    rules = replace(
        Rules(),
        suspect_after_s=usual.rules.suspect_after_s / FASTER,
        grace_s=usual.rules.grace_s / FASTER,
        restart_base_s=0.05,
        stop_grace_s=1.0,
    )
    settings = Settings(rules=rules, interval_s=usual.interval_s / FASTER, max_starts_per_minute=10_000)
    rig, sites = local_fleet(options.room("gangs"), settings=settings)
    seen: dict[str, Any] = {"partitions": 0, "two_writers": 0, "replaced": 0, "old_and_new_alive": 0}
    try:
        rig.start()
        for _ in range(options.partitions):
            _one(rig, sites, chance, rules, seen)
            seen["partitions"] += 1
        return seen
    finally:
        for site in sites.values():
            site.show()
        rig.close()


def _one(
    rig: Rig, sites: dict[str, LocalSite], chance: random.Random, rules: Rules, seen: dict[str, Any]
) -> None:
    """One partition, watched until all is settled again."""
    name = chance.choice(SITES)
    before = {g.id for g in rig.gangs() if g.site == name}
    sites[name].hide()
    heals_at = time.monotonic() + chance.uniform(0.0, 2.5) * (rules.suspect_after_s + rules.grace_s)
    both = False
    hidden = True

    def settled() -> bool:
        nonlocal both, hidden
        if hidden and time.monotonic() >= heals_at:
            sites[name].show()
            hidden = False
        alive = {row.gang_id for site in sites.values() for row in site.truth.gangs() if row.alive}
        books = rig.store.read()
        epochs = {x.id: x.epoch for x in books.leases}
        slots: dict[str, list[Gang]] = {}
        for gang in books.gangs:
            if gang.id in alive:
                slots.setdefault(gang.slot, []).append(gang)
        for gangs in slots.values():
            both = both or len(gangs) > 1
            valid = [g for g in gangs if g.ended_at is None and g.epoch >= epochs.get(g.lease_id, 0)]
            seen["two_writers"] += len(valid) > 1
        whole = len(rig.beating()) == rig.slots and all(len(g) == 1 for g in slots.values())
        return not hidden and whole and not any(rig.suspected(site) for site in SITES)

    until(settled, 60.0, "the fleet to settle", 0.01, rig.tail)
    seen["old_and_new_alive"] += both
    seen["replaced"] += bool(before - {g.id for g in rig.gangs()})


def run_real(options: Options) -> dict[str, Any]:
    """A run over three namespaces, 30 ms apart, with inner steps that sleep. A random site, two times in three that of
    the coordinator, is cut off for a random time. The object store is one folder, so a coordinator that is cut off from
    its sites would go on to commit, and nobody would take over; so it is cut off from the store as well, by SIGSTOP,
    and wakes as one that believes in itself. Then the ledger is read, and the audit replays it."""
    chance = random.Random(options.seed)
    count = 3 if options.quick else options.real_partitions
    spec = train_spec(400_000_000, shape=SMALL, sites=3, sync_fraction=0.0)
    with Wan(["north", "south", "west"], delay_ms=30, mbit=100) as wan:
        run = Run(options.folder / "run", wan, spec, 0.05)
        try:
            run.start_all()
            run.reach(6)
            pauses = [_cut(run, wan, chance, options) for _ in range(count)]
            entries, report = run.entries(), run.audit()
        finally:
            run.close()
    epochs, times = [e.epoch for e in entries], [e.at for e in entries]
    wrong = sum(b < a for a, b in itertools.pairwise(epochs))
    wrong += sum(b.at < a.at for a, b in itertools.pairwise(entries) if b.epoch != a.epoch)
    return {
        "partitions": count,
        "two_writers": wrong,
        "coordinators": report.epochs,
        "rounds": len(times),
        "states_checked": report.states_checked,
        "next_commit_after_cut": spread(pauses),
        "load_1min": round(os.getloadavg()[0], 2),
    }


def _cut(run: Run, wan: Wan, chance: random.Random, options: Options) -> float:
    """One partition; how long until somebody commits."""
    run.reach(run.round + 3)
    boss = until(run.coordinator, 30.0, "a coordinator", tail=run.tails)
    site = boss[0] if chance.random() < 2 / 3 else chance.choice(wan.sites)
    heads = [boss[1]] if site == boss[0] else []
    at = time.time()
    wan.cut(site)
    for pid in heads:
        os.kill(pid, signal.SIGSTOP)
    try:
        pause_s = run.next_commit(at + 0.5).at - at
        time.sleep(max(0.0, chance.uniform(0.5, 15.0) - (time.time() - at)))
    finally:
        for pid in heads:
            os.kill(pid, signal.SIGCONT)
        wan.heal(site)
    options.say(f"{site} cut off for {time.time() - at:.1f} s, epoch {run.entries()[-1].epoch}")
    run.reach(run.round + 3)
    return pause_s
