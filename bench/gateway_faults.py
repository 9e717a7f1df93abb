"""Rows of what dies or changes under load: a replica, a whole site, the replicas of a model one by one."""

from __future__ import annotations

import threading
import time
import urllib.request
from typing import Any

from gateway_engine import ENGINE_MODEL, Engine
from gateway_load import SYSTEM
from gateway_mock import words
from gateway_options import Options, gathered, startable, turns
from gateway_peers import MODEL, Load, Program, Yard
from harness import figure

KILL_AFTER_S = 1.0
TOKENS, DELAY_MS = 60, 50
NOTICED_S = 1.0
"""When control takes what was killed off the routes: gateways have to find out for themselves before."""

FORGET_S = 1.5
"""How long a gateway may go on to use a replica that is draining: two polls of routes and some."""


def kill_replica(options: Options) -> dict[str, Any]:
    """16 streams of 60 chunks with 50 ms between them, over two mocks; `kill -9` of one after a second. `complete`
    are those that end well, with exactly the text of an undisturbed run. The direct way takes no part: it has one
    replica."""

    def measure(kind: str) -> dict[str, float]:
        with options.yard() as yard:
            victim, first = yard.mock()
            _, second = yard.mock()
            front = yard.front(kind, [first, second])
            ask = {"key": front.key, "stream": True, "tokens": TOKENS, "delay_ms": DELAY_MS}
            told = {"do": "each", "ports": [front.port], "streams": options.kill_streams, "ask": ask}
            hit = _load_and(told, options, victim.kill)
            after = _load_and(told | {"streams": 4}, options, None)
        whole = [s for s in hit if s["complete"] and s["text"] == words(0, TOKENS)]
        return {
            "complete": len(whole),
            "cut": sum(not s["complete"] for s in hit),
            "wrong_text": sum(s["complete"] for s in hit) - len(whole),
            "wrong_usage": sum(s["used"] not in (-1, TOKENS) for s in whole),
            "longest_pause_s": max(s["pause_s"] for s in hit),
            "complete_right_after_of_4": sum(s["complete"] for s in after),
        }

    units = {
        "complete": f"streams of {options.kill_streams}",
        "cut": "streams",
        "wrong_text": "streams",
        "wrong_usage": "streams",
        "longest_pause_s": "s",
        "complete_right_after_of_4": "streams",
    }
    return gathered(turns(options, startable(options), lambda front: measure(front.name)), units)


def kill_site(options: Options) -> dict[str, Any]:
    """Two sites, each with a gateway and a replica; streams through both gateways; `kill -9` of all of one site. A
    client whose gateway died asks the other one, once, from the start: the time without a token is its pause.

    Of class `standard`: what is to be seen is who survives, not what a promise of 5 s refuses. The replicas were told
    the system prompt that all of the load has, and hold it in each slot, unless `site_opening` is off."""
    rows = []
    for repeat in range(options.repeats):
        with options.yard() as yard:
            rows.append(_one_site_killed(options, yard))
        options.say(f"repeat {repeat}: {rows[-1]}")
    units = {
        "failed": f"requests of {options.site_streams}",
        "asked_again": "requests",
        "same_text": "requests",
        "longest_pause_s": "s",
        "longest_pause_same_gateway_s": "s",
        "longest_pause_undisturbed_s": "s",
        "read_by_survivor_after": "prompt tokens",
    }
    return {"engine": options.site_engine} | {
        n: figure([row[n] for row in rows], u) for n, u in units.items()
    }


def _one_site_killed(options: Options, yard: Yard) -> dict[str, float]:
    real = options.site_engine == "llama.cpp"
    model = ENGINE_MODEL if real else MODEL
    slots = options.site_streams
    replicas: dict[str, tuple[Program, int]] = {}
    for site, core in (("north", options.gateway_core), ("south", options.other_core)):
        if real:
            engine = Engine.start(
                yard, core, slots, 512, options.cache, SYSTEM if options.site_opening else ""
            )
            replicas[site] = engine.program, engine.port
        else:
            replicas[site] = yard.mock()
    rows = [Yard.replica(f"http://127.0.0.1:{port}", slots, site) for site, (_, port) in replicas.items()]
    yard.control.route(model, rows)
    gateways = {site: yard.ours(site, model) for site in replicas}
    ask = {
        "key": yard.control.secret, "model": model, "stream": True, "tokens": options.site_tokens,
        "delay_ms": DELAY_MS, "greedy": real, "slo": "standard",
    }  # fmt: skip
    ports = [front.port for front in gateways.values()]
    told = {"do": "each", "ports": ports, "streams": options.site_streams, "ask": ask, "patience_s": 240.0}
    calm = _load_and(told, options, None)
    bad = [s for s in calm if not s["complete"]]
    if bad:
        raise RuntimeError(f"{len(bad)} streams failed before anything was killed: {bad[0]}")

    before = 0

    def kill() -> None:
        nonlocal before
        program = gateways["north"].program
        assert program is not None
        before = prompt_tokens(replicas["south"][1]) if real else 0
        yard.control.route(
            model, [row for row in rows if row["site"] == "south"]
        )  # as control does, a report later
        replicas["north"][0].kill()
        program.kill()

    hit = _load_and(told, options, kill)
    read = prompt_tokens(replicas["south"][1]) - before if real else 0
    texts = {s["number"]: s["text"] for s in calm}
    for s in hit:
        if not s["complete"]:
            options.say(f"stream {s['number']}, asked {s['asked']} times: {s['status']} {s['end']}")
    return {
        "failed": sum(not s["complete"] for s in hit),
        "asked_again": sum(s["asked"] > 1 for s in hit),
        "same_text": sum(s["text"] == texts[s["number"]] for s in hit),
        "longest_pause_s": max(s["pause_s"] for s in hit),
        "longest_pause_same_gateway_s": max(s["pause_s"] for s in hit if s["asked"] == 1),
        "longest_pause_undisturbed_s": max(s["pause_s"] for s in calm),
        "read_by_survivor_after": read,
    }


def prompt_tokens(port: int) -> int:
    """Tokens of prompts that a llama.cpp server has read, those aside that a slot had already. However busy the machine is,
    the loss of a site cannot be shorter than reading what this grows by."""
    opener = urllib.request.build_opener(urllib.request.ProxyHandler({}))
    with opener.open(f"http://127.0.0.1:{port}/metrics", timeout=30.0) as answer:
        lines = answer.read().decode().splitlines()
    return next(int(float(x.split()[1])) for x in lines if x.startswith("llamacpp:prompt_tokens_total "))


def update(options: Options) -> dict[str, Any]:
    """A model's two replicas replaced one by one under load, three times: the new one is listed, the old one
    draining, then off the list, then told to leave. Ours alone: routers know of no such thing without a restart."""
    rows = []
    for repeat in range(options.repeats):
        with options.yard() as yard:
            rows.append(_one_update(options, yard))
        options.say(f"repeat {repeat}: {rows[-1]}")
    units = {"failed": "requests", "requests": "requests", "replaced": "replicas", "longest_drain_s": "s"}
    return {name: figure([row[name] for row in rows], unit) for name, unit in units.items()}


def _one_update(options: Options, yard: Yard) -> dict[str, float]:
    serving = [yard.mock(), yard.mock()]

    def listed(programs: list[tuple[Program, int]], draining: list[tuple[Program, int]]) -> None:
        rows = [Yard.replica(f"http://127.0.0.1:{port}", 256) for _, port in programs]
        rows += [Yard.replica(f"http://127.0.0.1:{port}", 256, draining=True) for _, port in draining]
        yard.control.route(MODEL, rows)

    listed(serving, [])
    front = yard.ours("north")
    rounds = 1 if options.quick else 3
    seconds = rounds * 2 * (FORGET_S * 2 + 1.0)
    loads = [
        Load(told | {"do": "closed", "port": front.port, "seconds": seconds}, options.other_core)
        for told in (
            {"connections": 16, "ask": {"key": front.key}},
            {"connections": 16, "ask": {"key": front.key, "stream": True, "tokens": 20, "delay_ms": 20}},
        )
    ]
    for load in loads:
        load.until("measuring")
    replaced, longest_s = 0, 0.0
    for _ in range(rounds):
        for place in range(len(serving)):
            old, serving[place] = serving[place], yard.mock()
            listed(serving, [old])
            time.sleep(FORGET_S)
            listed(serving, [])
            time.sleep(FORGET_S)
            started = time.monotonic()
            old[0].process.terminate()
            old[0].process.wait(30.0)
            longest_s = max(longest_s, time.monotonic() - started)
            replaced += 1
    for load in loads:
        load.until("measured")
    results = [load.result() for load in loads]
    return {
        "failed": sum(
            sum(r["errors"].values()) + sum(r["warm_errors"].values()) + r["left"] for r in results
        ),
        "requests": sum(r["requests"] for r in results),
        "replaced": replaced,
        "longest_drain_s": longest_s,
    }


def _load_and(told: dict[str, Any], options: Options, kill: Any) -> list[dict[str, Any]]:
    """The streams of a load under which something is killed after a second."""
    load = Load(told, options.other_core)
    load.until("measuring")
    timer = threading.Timer(KILL_AFTER_S, kill) if kill else None
    if timer:
        timer.start()
    load.until("measured")
    if timer:
        timer.join()
    streams: list[dict[str, Any]] = load.result()["streams"]
    return streams
