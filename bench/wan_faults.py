"""Rows about faults: what is lost of a run, and how long the others stand still.

All at 100 Mbit/s and a round trip of 60 ms, with real inner steps (`--quick`: sleeping ones). Three sites, so
that a quorum is left.
"""

from __future__ import annotations

import hashlib
import itertools
import time
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from statistics import median
from typing import Any

import psutil

from caudal.train.minding import WITHIN_S
from harness import figure
from wan_options import Options
from wan_peers import Peers, longest_pause
from wan_place import Wan, end, until
from wan_run import Run, gaps, train_spec, worker_of

SITES = ["north", "south", "west"]
PEER_SITES = ["north", "south"]
ENDLESS = 400_000_000


@contextmanager
def running(options: Options, tokens: int = ENDLESS) -> Iterator[tuple[Wan, Run]]:
    """A run over three sites that goes on."""
    with Wan(SITES, delay_ms=30, mbit=100) as wan:
        spec = train_spec(tokens, shape=options.shape, sites=len(SITES), sync_fraction=0.0, **options.outer)
        run = Run(
            options.folder(), wan, spec, options.fixed_step_s if options.quick else 0.0, load_torch=True
        )
        try:
            run.start_all()
            run.reach(6)
            yield wan, run
        finally:
            run.close()


def usual_gap_s(run: Run) -> float:
    """The usual time between commits, of the last few."""
    entries = run.entries()[-8:]
    return median(b.at - a.at for a, b in itertools.pairwise(entries))


def summary(seen: dict[str, list[float]], unit: str = "s") -> dict[str, Any]:
    """Median and range of each."""
    return {name: figure(values, unit) for name, values in seen.items() if values}


def kill_site(options: Options) -> dict[str, Any]:
    """`kill -9` everything at one site: when it is noticed, how long the others stand still, and when the
    site, started again, contributes."""
    seen: dict[str, list[float]] = {"noticed": [], "extra_stall": [], "rejoined": []}
    with running(options) as (wan, run):
        for _ in range(options.repeats):
            run.reach(run.round + 6)
            usual = usual_gap_s(run)
            at = time.time()
            wan.kill_site("west")
            run.next_commit(at)
            run.reach(run.round + 3)
            boss = next(p for p in run.programs if ".coordinator." in p.name)
            noticed = boss.said("is gone", at)
            if noticed:
                seen["noticed"].append(noticed - at)
            seen["extra_stall"].append(max(0.0, max(gaps(run.entries(), at, time.time())) - usual))
            again = run.start("worker", "west")
            seen["rejoined"].append(run.contributes("west", again.started_at) - again.started_at)
            options.say(str({name: values[-1:] for name, values in seen.items()}))
        run.audit()
    return summary(seen)


def kill_worker(options: Options) -> dict[str, Any]:
    """`kill -9` the process that trains at one site, while its spare waits, and once more while there is none yet:
    when the spare joins, when the site contributes again (both from the kill on; the latter waits for a round to
    begin), how long the others stand still, and what a spare has of memory for itself."""
    seen: dict[str, list[float]] = {"joined": [], "by_spare": [], "without_spare": [], "extra_stall": []}
    memory: list[float] = []
    with running(options) as (_, run):
        gang = run.worker("west")
        again = time.time()
        for _ in range(options.repeats):
            until(lambda since=again: gang.said("the spare is ready", since), 240.0, run.tails)
            run.reach(run.round + 6)
            memory.append(spare_mb(gang.process.pid))
            usual, at = usual_gap_s(run), time.time()
            end(worker_of(gang.process.pid))
            seen["by_spare"].append(run.contributes("west", at) - at)
            seen["extra_stall"].append(max(0.0, max(gaps(run.entries(), at, time.time())) - usual))
            boss = next(p for p in run.programs if ".coordinator." in p.name)
            seen["joined"].append((boss.said("at west joins", at) or time.time()) - at)
            again = time.time()
            end(worker_of(gang.process.pid))
            seen["without_spare"].append(run.contributes("west", again) - again)
            options.say(str({name: values[-1:] for name, values in seen.items()}))
            if len(memory) < options.repeats:
                time.sleep(max(0.0, at + WITHIN_S + 1.0 - time.time()))  # three deaths within it end the gang
        assert gang.alive, run.tails()
        run.audit()
    return {**summary(seen), "spare_own_memory": figure(memory, "MB")}


def spare_mb(gang: int) -> float:
    """What the gang's newest process, its spare, shares with nobody."""
    spare = max(psutil.Process(gang).children(), key=lambda p: (p.create_time(), p.pid))
    return float(spare.memory_full_info().uss) / 1e6


def partition(options: Options) -> dict[str, Any]:
    """A site falls silent, without FIN, and comes back: how long the others stand still, and when the site
    contributes again."""
    away_s = 15.0 if options.quick else 30.0
    seen: dict[str, list[float]] = {"extra_stall": [], "rejoined": [], "rounds_meanwhile": []}
    with running(options) as (wan, run):
        for _ in range(options.repeats):
            run.reach(run.round + 6)
            usual, before = usual_gap_s(run), run.round
            at = time.time()
            wan.cut("west")
            time.sleep(away_s)
            healed = time.time()
            seen["rounds_meanwhile"].append(run.round - before)
            wan.heal("west")
            seen["rejoined"].append(run.contributes("west", healed) - healed)
            seen["extra_stall"].append(max(0.0, max(gaps(run.entries(), at, healed), default=away_s) - usual))
            options.say(str({name: values[-1:] for name, values in seen.items()}))
        run.audit()
    return summary(seen)


def kill_coordinator(options: Options) -> dict[str, Any]:
    """`kill -9` the coordinator: when the next round is committed, by whoever took over; what was committed
    stays. Where nobody takes over within 8 s, it is started again, as the control process would."""
    seen: dict[str, list[float]] = {"next_commit": [], "rounds_lost": [], "started_again": []}
    with running(options) as (_, run):
        for _ in range(options.repeats):
            run.reach(run.round + 6)
            committed = ledger_hashes(run)
            at = run.kill_coordinator()
            again = 0.0
            epoch = run.entries()[-1].epoch
            while not [e for e in run.entries() if e.epoch > epoch]:
                if not again and time.time() - at > 8.0 and run.coordinator() is None:
                    run.start("coordinator", SITES[0])
                    again = 1.0
                if time.time() - at > 120.0:
                    raise TimeoutError(f"no commit after the coordinator was killed\n{run.tails()}")
                time.sleep(0.02)
            seen["next_commit"].append(run.next_commit(at).at - at)
            seen["rounds_lost"].append(len(committed) - kept(run, committed))
            seen["started_again"].append(again)
            options.say(str({name: values[-1:] for name, values in seen.items()}))
        run.audit()
    return summary(seen)


def ledger_hashes(run: Run) -> list[str]:
    """The hash of every committed round's entry."""
    folder = Path(run.objects / run.prefix / "ledger")
    return [hashlib.sha256(path.read_bytes()).hexdigest() for path in sorted(folder.glob("round-*.json"))]


def kept(run: Run, before: list[str]) -> int:
    """How many of the rounds committed before are still there, unchanged, one after the other."""
    now = ledger_hashes(run)
    same = [a == b for a, b in zip(before, now, strict=False)]
    return same.index(False) if False in same else len(same)


def kill_everything(options: Options) -> dict[str, Any]:
    """`kill -9` all processes at all sites at once and start them again: what is lost, when it goes on.

    `rounds_lost` counts committed rounds that are gone or changed, and the one that was under way; the audit
    replays all states, across the break, to the recorded hashes.
    """
    seen: dict[str, list[float]] = {"committed_rounds_lost": [], "work_lost": [], "next_commit": []}
    with running(options) as (wan, run):
        for _ in range(options.repeats):
            run.reach(run.round + 6)
            for site in SITES:
                wan.kill_site(site)
            at, committed = time.time(), ledger_hashes(run)
            seen["work_lost"].append(at - run.entries()[-1].at)
            report = run.audit()
            run.start_all()
            started = time.time()
            seen["next_commit"].append(run.next_commit(started).at - started)
            seen["committed_rounds_lost"].append(len(committed) - kept(run, committed))
            run.reach(run.round + 2)
            assert run.audit().states_checked >= report.states_checked
            options.say(str({name: values[-1:] for name, values in seen.items()}))
    return summary(seen)


def peer_faults(options: Options) -> dict[str, Any]:
    """The same for torchft: a killed site under DDP and under DiLoCo, and a killed lighthouse."""
    figures: dict[str, Any] = {}
    watch_s = 25.0 if options.quick else 40.0
    for kind in ("torchft-ddp", "diloco"):
        for _ in range(options.repeats if kind in options.peers else 0):
            for name, value in killed_peer(options, kind, watch_s).items():
                figures.setdefault(f"{kind}.{name}", []).append(value)
            options.say(str(figures))
    for _ in range(options.repeats if "diloco" in options.peers else 0):
        figures.setdefault("lighthouse.longest_pause", []).append(killed_lighthouse(options, watch_s))
    return {
        name: figure(values, "s" if "pause" in name or "re" in name else "")
        for name, values in figures.items()
    }


def killed_peer(options: Options, kind: str, watch_s: float) -> dict[str, float]:
    """Kill one of two replica groups, start it again after some time."""
    more = {"sync_every": options.sync_every, "seconds": 100_000.0}
    with Wan(PEER_SITES, delay_ms=30, mbit=100) as wan:
        peers = Peers(kind, wan, train_spec(ENDLESS, shape=options.shape), options.cache, more)
        try:
            peers.start_all()
            until(lambda: len(peers.steps("north")) > options.sync_every + 5, 180.0, peers.tails)
            at = time.time()
            end(peers.programs["south"].process.pid)
            time.sleep(watch_s)
            survived = peers.programs["north"].alive
            pause = longest_pause(peers.steps("north"), at, time.time())
            found = {"survivor_alive": float(survived), "longest_pause": pause}
            again = time.time()
            peers.start("south")
            try:
                until(lambda: any(r.get("participants") == 2 for r in peers.rows("south", again)), 60.0)
                rows = peers.rows("south", again)
                found["rejoined"] = next(r["at"] for r in rows if r.get("participants") == 2) - again
            except TimeoutError:
                options.say(f"{kind}: the killed site did not come back within 60 s")
            return found
        finally:
            peers.close()


def killed_lighthouse(options: Options, watch_s: float) -> float:
    """Kill torchft's coordinator and start it again at once: the longest time without a committed exchange."""
    more = {"sync_every": options.sync_every, "seconds": 100_000.0}
    with Wan(PEER_SITES, delay_ms=30, mbit=100) as wan:
        peers = Peers("diloco", wan, train_spec(ENDLESS, shape=options.shape), options.cache, more)
        try:
            peers.start_all()
            until(lambda: len(peers.steps("north")) > options.sync_every + 5, 180.0, peers.tails)
            assert peers.lighthouse is not None
            at = time.time()
            end(peers.lighthouse.process.pid)
            peers.lighthouse.process.wait()
            peers.start_lighthouse()
            time.sleep(watch_s)
            rows = [r for r in peers.rows("north", at - 60.0) if "committed" in r]
            fresh = [b for a, b in itertools.pairwise(rows) if b["committed"] > a["committed"]]
            return longest_pause(fresh, at, time.time())
        finally:
            peers.close()
