"""The row about what is learnt: Caudal's validation loss over a WAN against synchronous DDP's, tokens equal."""

from __future__ import annotations

import random
from statistics import mean
from typing import Any

from caudal.domain.workload import TrainSpec
from harness import figure
from wan_options import Options
from wan_peers import Peers
from wan_place import Loopback, Wan, until
from wan_run import Run, train_spec

SITES = ["north", "south"]
LIMIT_S = 7_200.0


def loss(options: Options) -> dict[str, Any]:
    """The gap per fresh seed: val loss over DDP's, less one. A seed decides weights, text and order.

    DDP runs on loopback: it waits for every exchange, so the network changes its time and not its numbers.
    DiLoCo (torchft) too, where it is among the peers.
    """
    chance = random.SystemRandom()
    gaps: dict[str, list[float]] = {}
    seeds, losses = [], dict[str, list[float]]()
    for repeat in range(options.repeats):
        seed = options.seed + repeat if options.seed else chance.randrange(1_000, 1_000_000)
        seeds.append(seed)
        spec = train_spec(
            options.loss_tokens, shape=options.shape, seed=seed, data=options.data, **options.outer
        )
        got = {"ddp": _peer(options, "ddp", spec), "caudal": _caudal(options, spec)}
        if "diloco" in options.peers:
            got["diloco"] = _peer(options, "diloco", spec)
        options.say(f"seed {seed}: {got}")
        for kind, value in got.items():
            losses.setdefault(kind, []).append(value)
            if kind != "ddp":
                gaps.setdefault(kind, []).append(100 * (value / got["ddp"] - 1))
    figures: dict[str, Any] = {"seeds": seeds, "tokens": options.loss_tokens}
    for kind, values in losses.items():
        figures[f"{kind}.val_loss"] = figure(values, "nats", 4)
    for kind, values in gaps.items():
        figures[f"{kind}.gap"] = figure(values, "% over DDP")
        figures[f"{kind}.gap_mean"] = round(mean(values), 3)
    return figures


def _caudal(options: Options, spec: TrainSpec) -> float:
    with Wan(SITES, delay_ms=30, mbit=options.rates[0]) as place:
        run = Run(options.folder(), place, spec)
        try:
            run.start_all()
            until(lambda: run.finished, LIMIT_S, run.tails, 0.2)
            run.audit()
            return float(run.result()["val_loss"])
        finally:
            run.close()


def _peer(options: Options, kind: str, spec: TrainSpec) -> float:
    more = {"evaluate": True, "sync_every": options.sync_every, "min_replicas": len(SITES)}
    with Loopback(SITES) as place:
        peers = Peers(kind, place, spec, options.cache, more)
        try:
            peers.start_all()
            return float(peers.finish(LIMIT_S)["val_loss"])
        finally:
            peers.close()
