"""Rows of what a gateway costs: requests per second, time to the first token, CPU per chunk, memory, and its share
of a real engine's tokens. All systems in front of the same mock, which takes no time itself."""

from __future__ import annotations

import time
from statistics import median
from typing import Any

from caudal.domain.key import Slo
from caudal.policy.slo import SloTargets
from gateway_engine import ENGINE_MODEL, Engine
from gateway_options import Options, fronts, gathered, ratio, turns
from gateway_peers import Front, Load, Yard, measured
from harness import figure

ROUTERS = ("vllm-router", "sglang-router")


def json_rate(options: Options) -> dict[str, Any]:
    """Requests per second on one core, whole answers. `per_cpu_s` is what a core would do where the load client
    was the limit: look at `busy`."""

    def measure(front: Front) -> dict[str, float] | None:
        told = {"connections": options.connections, "seconds": options.seconds, "warm_s": options.warm_s}
        got = measured(told, front, options.other_core)
        done = got["requests"]
        if not done:
            return None
        return {
            "requests_per_s": got["requests_per_s"],
            "per_cpu_s": done / got["cpu_s"] if got["cpu_s"] else 0.0,
            "busy": got["busy"],
            "p50_ms": got["latency_ms"]["p50"],
            "p99_ms": got["latency_ms"]["p99"],
            "errors": sum(got["errors"].values()),
        }

    units = {
        "requests_per_s": "1/s",
        "per_cpu_s": "requests per CPU second",
        "busy": "of one core",
        "p50_ms": "ms",
        "p99_ms": "ms",
        "errors": "requests",
    }
    with options.yard() as yard:
        _, port = yard.mock()
        figures = gathered(turns(options, fronts(options, yard, [port]), measure), units)
    figures["times_the_best_router"] = ratio(figures, "requests_per_s", "caudal", ROUTERS, max)
    figures["times_litellm"] = ratio(figures, "requests_per_s", "caudal", ("litellm",), max)
    figures["times_the_best_router_per_cpu"] = ratio(figures, "per_cpu_s", "caudal", ROUTERS, max)
    figures["times_litellm_per_cpu"] = ratio(figures, "per_cpu_s", "caudal", ("litellm",), max)
    return figures


def ttft(options: Options) -> dict[str, Any]:
    """What a gateway adds to the time to the first token, by the direct way in the same repeat: one stream at a
    time (of 4 chunks, so that there are many), and 64 of 32 chunks, with 20 ms between them."""
    figures: dict[str, Any] = {}
    with options.yard() as yard:
        _, port = yard.mock()
        found = fronts(options, yard, [port])
        if "direct" not in found:
            raise RuntimeError("the row ttft needs `direct` among the systems")
        for streams, tokens in ((1, 4), (64, 32)):
            told = {
                "connections": streams,
                "seconds": options.seconds,
                "warm_s": options.warm_s,
                "ask": {"stream": True, "tokens": tokens, "delay_ms": 20},
            }

            def measure(front: Front, told: dict[str, Any] = told) -> dict[str, float] | None:
                got = measured(told, front, options.other_core)
                if not got["requests"]:
                    return None
                errors = sum(got["errors"].values()) + got["left"]
                return {"p50_ms": got["ttft_ms"]["p50"], "p99_ms": got["ttft_ms"]["p99"], "errors": errors}

            rows = turns(options, found, measure)
            direct = {row["repeat"]: row["p50_ms"] for row in rows["direct"]}
            for row in (row for taken in rows.values() for row in taken):
                row["added_p50_ms"] = row["p50_ms"] - direct[row["repeat"]]
            units = {"p50_ms": "ms", "p99_ms": "ms", "added_p50_ms": "ms", "errors": "requests"}
            part = gathered(rows, units)
            part["of_the_best_router"] = ratio(part, "added_p50_ms", "caudal", ROUTERS, min)
            figures[f"streams_{streams}"] = part
    return figures


def chunks(options: Options) -> dict[str, Any]:
    """A gateway's CPU time per chunk while engines stream in real time: a chunk a segment, 20 ms between two."""
    figures: dict[str, Any] = {}
    with options.yard() as yard:
        _, port = yard.mock()
        found = fronts(options, yard, [port], skip=("direct",))
        for streams in options.chunk_streams:
            told = {
                "connections": streams,
                "seconds": options.seconds,
                "warm_s": options.warm_s,
                "ask": {"stream": True, "tokens": 200, "delay_ms": 20},
            }

            def measure(front: Front, told: dict[str, Any] = told) -> dict[str, float] | None:
                got = measured(told, front, options.other_core)
                if not got["chunks"]:
                    return None
                return {
                    "us_per_chunk": got["cpu_s"] / got["chunks"] * 1e6,
                    "chunks_per_s": got["chunks_per_s"],
                    "busy": got["busy"],
                    "errors": sum(got["errors"].values()) + got["left"],
                }

            units = {"us_per_chunk": "µs", "chunks_per_s": "1/s", "busy": "of one core", "errors": "requests"}
            part = gathered(turns(options, found, measure), units)
            part["of_the_best_router"] = ratio(part, "us_per_chunk", "caudal", ROUTERS, min)
            figures[f"streams_{streams}"] = part
    return figures


def memory(options: Options) -> dict[str, Any]:
    """The resident set of a gateway's largest process: idle, after a load, and, of ours, how it grows in a soak at
    half of the load that it can carry."""
    figures: dict[str, Any] = {}
    with options.yard() as yard:
        _, port = yard.mock()
        found = fronts(options, yard, [port], skip=("direct",))
        rate = 0.0
        for name, front in found.items():
            assert front.program is not None
            idle = front.program.rss_mib()
            got = measured(
                {"connections": options.connections, "seconds": options.seconds, "warm_s": options.warm_s},
                front,
                options.other_core,
            )
            loaded = front.program.rss_mib()
            figures[name] = {"idle": figure([idle], "MiB", 1), "after_load": figure([loaded], "MiB", 1)}
            options.say(f"{name}: {idle:.1f} MiB idle, {loaded:.1f} MiB after a load")
            rate = got["requests_per_s"] if name == "caudal" else rate
        if "caudal" in found:
            for name, front in found.items():
                if name != "caudal":
                    front.close()
            figures["caudal"] |= _soak(options, found["caudal"], rate / 2)
    return figures


def _soak(options: Options, front: Front, rate: float) -> dict[str, Any]:
    """The memory at half load over time: the median of the second tenth of the soak against the last tenth's."""
    told = {
        "do": "closed", "port": front.port, "connections": options.connections, "seconds": options.soak_s,
        "rate": rate, "ask": {"key": front.key},
    }  # fmt: skip
    load = Load(told, options.other_core)
    load.until("measuring")
    assert front.program is not None
    seen, end = [], time.monotonic() + options.soak_s
    while time.monotonic() < end:
        seen.append(front.program.rss_mib())
        time.sleep(min(2.0, options.soak_s / 50))
    load.until("measured")
    got = load.result()
    tenth = max(1, len(seen) // 10)
    early, late = median(seen[tenth : 2 * tenth] or seen), median(seen[-tenth:])
    return {
        "soak_s": options.soak_s,
        "soak_requests_per_s": round(got["requests_per_s"], 1),
        "soak_errors": got["errors"],
        "early": figure([early], "MiB", 2),
        "late": figure([late], "MiB", 2),
        "most": figure([max(seen)], "MiB", 2),
        "growth": round(late / early - 1, 4),
    }


def engine(options: Options) -> dict[str, Any]:
    """Tokens per second of 16 streams through the gateway against the engine alone: SmolLM2-135M in llama.cpp on
    one core; gateway and load on the other. Of class `engine_slo`, by default `standard`: that engine alone takes up to 8 s
    to the first token of the sixteenth, and a gateway that knows this refuses at once what it promised to `interactive`
    requests within 5 s. As `interactive`, `in_time` of the engine alone is how many could be let in."""
    promised_s = SloTargets().of(Slo(options.engine_slo)).first_token_s
    with options.yard() as yard:
        replica = Engine.start(yard, options.other_core, slots=16, context=512, cache=options.cache)
        yard.control.route(ENGINE_MODEL, [Yard.replica(replica.url, 16)])
        ours = yard.ours("north", ENGINE_MODEL)
        found = {"direct": Front("direct", replica.port), "caudal": ours}

        def measure(front: Front) -> dict[str, float]:
            ask = {
                "key": front.key, "model": ENGINE_MODEL, "stream": True, "tokens": options.engine_tokens,
                "greedy": True, "slo": options.engine_slo, "more": {"cache_prompt": False},
            }  # fmt: skip
            told = {"do": "each", "ports": [front.port], "streams": 16, "ask": ask, "patience_s": 300.0}
            load = Load(told, options.gateway_core)
            load.until("measuring")
            started = time.monotonic()
            load.until("measured")
            wall_s = time.monotonic() - started
            streams = load.result()["streams"]
            whole = [s for s in streams if s["complete"]]
            if not whole:
                raise RuntimeError(f"{front.name}: no stream was answered whole: {streams[0]}")
            return {
                "tokens_per_s": options.engine_tokens * len(whole) / wall_s,
                "complete": len(whole),
                "in_time": sum(s["first_s"] <= promised_s for s in whole),
                "first_s_last": max(s["first_s"] for s in whole),
                "token_s": median(s["token_s"] for s in whole),
            }

        measure(found["direct"])  # the first answer of an engine is a slow one
        rows = turns(options, found, measure)
    units = {
        "tokens_per_s": "tokens/s",
        "complete": "streams of 16",
        "in_time": "streams of 16",
        "first_s_last": "s",
        "token_s": "s",
    }
    figures = gathered(rows, units)
    pairs = zip(rows["caudal"], rows["direct"], strict=True)
    figures["of_the_engine_alone"] = figure([a["tokens_per_s"] / b["tokens_per_s"] for a, b in pairs], "of 1")
    return figures
