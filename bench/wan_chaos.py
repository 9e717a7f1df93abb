"""Rows about living with faults: goodput with a kill every 30 s, and chaos with a proof at the end."""

from __future__ import annotations

import os
import random
import signal
import threading
import time
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

from harness import figure
from wan_options import Options
from wan_place import Wan, end, until
from wan_run import Run, train_spec, worker_of

SITES = ["north", "south", "west", "east"]
CHAOS_SITES = SITES[:3]
KILL_EVERY_S = 30.0
ENDLESS = 400_000_000


@contextmanager
def supervised(run: Run) -> Iterator[None]:
    """Somebody starts again what dies."""
    stop = threading.Event()
    thread = threading.Thread(target=run.supervise, args=(stop,))
    thread.start()
    try:
        yield
    finally:
        stop.set()
        thread.join()


def tokens_in(run: Run, start: float, stop: float) -> int:
    """Tokens committed between the two times."""
    return sum(e.tokens for e in run.entries() if start < e.at <= stop)


def goodput(options: Options) -> dict[str, Any]:
    """Tokens committed with one site's worker killed every 30 s, over those of an undisturbed run; four
    sites, inner steps that sleep (the machine has fewer cores than that), starts that load torch."""
    shares: list[float] = []
    for repeat in range(options.repeats):
        spec = train_spec(ENDLESS, shape=options.shape, sites=len(SITES), sync_fraction=0.0, **options.outer)
        done: dict[bool, int] = {}
        for kills in (False, True):
            with Wan(SITES, delay_ms=30, mbit=100) as wan:
                run = Run(options.folder(), wan, spec, options.fixed_step_s, load_torch=True)
                try:
                    run.start_all()
                    run.reach(4)
                    with supervised(run):
                        start = time.time()
                        _kill_workers(run, start, options.goodput_s, repeat if kills else None)
                        done[kills] = tokens_in(run, start, start + options.goodput_s)
                    run.audit()
                finally:
                    run.close()
        shares.append(done[True] / done[False])
        options.say(f"repeat {repeat + 1}: goodput {shares[-1]:.3f}")
    return {"caudal": figure(shares, "of undisturbed")}


def _kill_workers(run: Run, start: float, seconds: float, seed: int | None) -> None:
    """Every 30 s all of a random site's gang, the first after a third of that; none without a seed."""
    chance, due = random.Random(seed), start + KILL_EVERY_S / 3
    while time.time() < start + seconds:
        if seed is not None and time.time() >= due:
            end(run.worker(chance.choice(SITES)).process.pid)
            due += KILL_EVERY_S
        time.sleep(0.1)


def chaos(options: Options) -> dict[str, Any]:
    """Random kills, stops and partitions in one run: audited, its loss against the undisturbed run's."""
    quiet = _whole_run(options, None)
    figures: dict[str, Any] = {"undisturbed_val_loss": figure([quiet["val_loss"]], "nats", 4)}
    seen: dict[str, list[float]] = {}
    for seed in range(1 if options.quick else options.repeats):
        got = _whole_run(options, seed)
        got["loss_gap"] = got["val_loss"] / quiet["val_loss"] - 1
        options.say(f"seed {seed}: {got}")
        for name, value in got.items():
            seen.setdefault(name, []).append(value)
    return {**figures, **{name: figure(values, "", 4) for name, values in seen.items()}}


def _whole_run(options: Options, seed: int | None) -> dict[str, float]:
    """A run from start to end; the audit raises where an id was lost or trained twice."""
    tokens = options.chaos_tokens
    outer = {"sync_fraction": 0.1, **options.outer}
    spec = train_spec(tokens, shape=options.shape, sites=len(CHAOS_SITES), data=options.data, **outer)
    with Wan(CHAOS_SITES, delay_ms=30, mbit=100) as wan:
        run = Run(options.folder(), wan, spec)
        try:
            run.start_all()
            run.reach(3)
            started = time.time()
            with supervised(run):
                faults = 0 if seed is None else _disturb(run, wan, random.Random(seed), options.chaos_events)
                until(lambda: run.finished, 3_600.0, run.tails, 0.2)
            report = run.audit()
            assert report.finished and not report.missing and report.ids == report.ids_total
            return {
                "val_loss": float(run.result()["val_loss"]),
                "faults": float(faults),
                "rounds": float(report.rounds),
                "coordinators": float(report.epochs),
                "ids": float(report.ids),
                "states_checked": float(report.states_checked),
                "wall_s": time.time() - started,
            }
        finally:
            run.close()


def _disturb(run: Run, wan: Wan, chance: random.Random, events: int) -> int:
    """Faults until there were enough or the run is over; returns how many. All is well again at its end."""
    faults, ends = 0, list[tuple[float, Any]]()
    while faults < events and not run.finished:
        time.sleep(chance.uniform(0.5, 6.0))
        for item in [x for x in ends if x[0] <= time.time()]:
            ends.remove(item)
            item[1]()
        site, lasts_s = chance.choice(run.place.sites), chance.uniform(0.5, 12.0)
        kind = chance.choice(["kill", "gang", "stop", "cut", "coordinator"])
        found = run.coordinator()
        if kind == "kill":
            end(worker_of(run.worker(site).process.pid))
        elif kind == "gang":
            end(run.worker(site).process.pid)
        elif kind == "coordinator" and found:
            end(found[1])
        elif kind == "stop":
            pid = found[1] if found and chance.random() < 0.3 else worker_of(run.worker(site).process.pid)
            _signal(pid, signal.SIGSTOP)
            ends.append((time.time() + lasts_s, lambda pid=pid: _signal(pid, signal.SIGCONT)))
        elif kind == "cut":
            wan.cut(site)
            ends.append((time.time() + lasts_s, lambda site=site: wan.heal(site)))
        else:
            continue
        faults += 1
    for _, undo in ends:
        undo()
    return faults


def _signal(pid: int, number: signal.Signals) -> None:
    try:
        os.kill(pid, number)
    except ProcessLookupError:
        pass  # killed meanwhile
