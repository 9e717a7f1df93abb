"""Rows about speed: tokens per second over a WAN and without one, bytes on the wire, and starting.

Every repeat takes each system and each network in turn, so that a slow minute of the machine hits all.
"""

from __future__ import annotations

import time
from statistics import median
from typing import Any

from harness import figure
from wan_options import Options
from wan_peers import KINDS, Peers
from wan_place import Loopback, Place, Wan, cpu_s, until
from wan_run import Run, rate, train_spec

SITES = ["north", "south"]
BATCH_TOKENS = 8 * 128
"""Of one site's step: what `train_spec` says."""

WIRE_STEP_S = 0.2
ENDLESS = 400_000_000
"""Tokens: a run that does not end while it is measured."""


def networks(options: Options) -> dict[str, Any]:
    """How to make each network, by name. A round trip is 60 ms."""
    made: dict[str, Any] = {"none": lambda: Loopback(SITES)}
    for mbit in options.rates:
        made[f"{mbit:g}mbit"] = lambda mbit=mbit: Wan(SITES, delay_ms=30, mbit=mbit)
    return made


def steady(options: Options, place: Place, step_s: float) -> dict[str, float]:
    """Caudal's steady state at this place."""
    spec = train_spec(ENDLESS, shape=options.shape, sync_fraction=0.0, **options.outer)
    run = Run(options.folder(), place, spec, fixed_step_s=step_s)
    try:
        run.start_all()
        run.reach(2)
        time.sleep(options.settle_s)
        site_pids = [pid for site in SITES for pid in place.pids(site)]
        found = run.coordinator()
        assert found is not None, run.tails()
        boss = [found[1]]
        start, sent, road = time.time(), place.bytes(), place.cpu_s()
        used, used_boss = cpu_s(site_pids), cpu_s(boss)
        first_round = run.round
        time.sleep(options.measure_s)
        stop, wall_s = time.time(), options.measure_s
        now = place.bytes()
        entries = run.entries()
        tokens_per_s = rate(entries, start, stop)
        inside = entries[first_round:]
        return {
            "tokens_per_s": tokens_per_s,
            "cpu_share": (cpu_s(site_pids) - used) / wall_s,
            "coordinator_cpu_share": (cpu_s(boss) - used_boss) / wall_s,
            "router_cpu_share": (place.cpu_s() - road) / wall_s,
            "bytes_per_token": sum(now[s]["sent"] - sent[s]["sent"] for s in SITES) / (tokens_per_s * wall_s),
            "inner_steps": median(e.inner_steps for e in inside),
        }
    finally:
        run.close()


def peer_steady(options: Options, kind: str, place: Place, step_s: float) -> dict[str, float]:
    """A peer's steady state at this place."""
    spec = train_spec(ENDLESS, shape=options.shape)
    more = {"fixed_step_s": step_s, "sync_every": options.sync_every, "seconds": 100_000.0}
    peers = Peers(kind, place, spec, options.cache, more)
    try:
        peers.start_all()
        return peers.measure(options.settle_s / 2, options.measure_s)
    finally:
        peers.close()


def speed(options: Options, step_s: float = 0.0) -> dict[str, Any]:
    """tokens/s over each WAN over tokens/s without one, for Caudal and its peers."""
    kinds = ["caudal", *(k for k in KINDS if k in options.peers)]
    seen: dict[str, list[dict[str, float]]] = {}
    for repeat in range(options.repeats):
        for name, make in networks(options).items():
            for kind in kinds:
                with make() as place:
                    got = (
                        steady(options, place, step_s)
                        if kind == "caudal"
                        else peer_steady(options, kind, place, step_s)
                    )
                options.say(f"repeat {repeat + 1}: {kind} {name}: {got}")
                seen.setdefault(f"{kind}.{name}", []).append(got)
    figures: dict[str, Any] = {}
    for key, values in seen.items():
        kind, _, network = key.partition(".")
        for what, unit in (
            ("tokens_per_s", "tokens/s"),
            ("cpu_share", "cores"),
            ("coordinator_cpu_share", "cores"),
            ("router_cpu_share", "cores"),
            ("bytes_per_token", "B/token"),
            ("inner_steps", "steps"),
        ):
            if what in values[0]:
                figures[f"{key}.{what}"] = figure([v[what] for v in values], unit)
        if network != "none":
            pairs = zip(values, seen[f"{kind}.none"], strict=True)
            ratios = [over["tokens_per_s"] / without["tokens_per_s"] for over, without in pairs]
            figures[f"{key}.ratio"] = figure(ratios, "of no WAN")
    return figures


def speed_fixed(options: Options) -> dict[str, Any]:
    """The same with inner steps that sleep: what the network costs, without what emulating it costs."""
    return speed(options, options.fixed_step_s)


def behind_warm_up(options: Options, place: Place) -> dict[str, float]:
    """Bytes per token of a whole run, from the end of its warm-up to its end: rounds grow as the learning rate
    falls, so that a moment of it says little."""
    steps = 150 if options.quick else 800
    tokens = steps * len(SITES) * BATCH_TOKENS
    spec = train_spec(tokens, shape=options.shape, **options.outer)
    run = Run(options.folder(), place, spec, fixed_step_s=WIRE_STEP_S)
    try:
        run.start_all()
        until(
            lambda: sum(e.tokens for e in run.entries()) >= spec.outer.sync_fraction * tokens,
            900.0,
            run.tails,
        )
        sent, begun, first = place.bytes(), sum(e.tokens for e in run.entries()), run.round
        until(lambda: run.finished, 1_800.0, run.tails)
        now, inside = place.bytes(), run.entries()[first:]
        trained = sum(e.tokens for e in inside)
        assert begun + trained == sum(e.tokens for e in run.entries())
        return {
            "bytes_per_token": sum(now[s]["sent"] - sent[s]["sent"] for s in SITES) / trained,
            "inner_steps_mean": trained / len(SITES) / BATCH_TOKENS / len(inside),
            "inner_steps_max": float(max(e.inner_steps for e in inside)),
        }
    finally:
        run.close()


def wire(options: Options) -> dict[str, Any]:
    """Bytes per site against fp32 DDP at the same tokens, behind the warm-up, at the first rate."""
    figures: dict[str, Any] = {}
    shares: dict[str, list[float]] = {}
    kinds = [k for k in KINDS if k in options.peers and k != "ddp"]
    for repeat in range(options.repeats):
        seen = {}
        for kind in ("ddp", "caudal", *kinds):
            with Wan(SITES, delay_ms=30, mbit=options.rates[0]) as place:
                if kind == "caudal":
                    got = behind_warm_up(options, place)
                else:
                    got = peer_steady(options, kind, place, options.fixed_step_s)
            options.say(f"repeat {repeat + 1}: {kind}: {got}")
            seen[kind] = got["bytes_per_token"]
        for kind in ("caudal", *kinds):
            shares.setdefault(kind, []).append(seen["ddp"] / seen[kind])
        shares.setdefault("ddp_bytes_per_token", []).append(seen["ddp"])
    for kind, values in shares.items():
        unit = "B/token" if kind.startswith("ddp_") else "times fewer than DDP"
        figures[kind] = figure(values, unit)
    return figures


def start(options: Options) -> dict[str, Any]:
    """From the start of a worker's process to its first leased step, in a run that goes on."""
    took: list[float] = []
    with Wan(SITES, delay_ms=30, mbit=options.rates[0]) as place:
        spec = train_spec(ENDLESS, shape=options.shape, sync_fraction=0.0, **options.outer)
        run = Run(options.folder(), place, spec)
        try:
            run.start_all()
            run.reach(4)
            for _ in range(options.repeats):
                place.kill_site(SITES[1])
                time.sleep(3.0)
                again = run.start("worker", SITES[1])
                took.append(run.contributes(SITES[1], again.started_at) - again.started_at)
                options.say(f"contributing after {took[-1]:.2f} s")
                run.reach(run.round + 2)
        finally:
            run.close()
    return {"caudal": figure(took, "s")}
