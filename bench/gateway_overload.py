"""The row of the peak: Azure's code trace at three times what the replicas can carry, and how much of the interactive
work is answered as promised.

The replicas are models of continuous batching (`gateway_mock.Batch`) with a known capacity for prompts, which is what
that trace takes: 2,048 tokens of prompt for 28 of answer in the mean. What they could carry at best is a fluid
bound: see `carried`.
"""

from __future__ import annotations

import csv
import json
from collections.abc import Sequence
from dataclasses import dataclass, replace
from datetime import datetime
from pathlib import Path
from typing import Any

from gateway_known import known
from gateway_options import Options, gathered, ratio, startable, turns
from gateway_peers import Front, Load

TRACE = "azure_AzureLLMInferenceTrace_code.csv"
SKIPPED = ("sglang-router",)  # of the routers, vllm-router stands for both here
BOUNDED = "-bounded"
"""vllm-router takes part twice: as it comes, and with as many requests at once as the replicas have slots and no queue
(in virtual time, bench/admission_sim.py, that did better on this trace than a queue of 100)."""

FIRST_S, TOKEN_S = 5.0, 0.25
"""What an interactive request is promised: the first token, and each further one in the mean."""

DECODE = 20.0  # tokens per second and request of a replica
GOLDEN = 0.618_033_988_749_895


@dataclass(frozen=True)
class Arrival:
    """One request. `at` in seconds from the beginning; tokens of its prompt and of its answer."""

    at: float
    prompt: int
    tokens: int
    slo: str


def read_trace(path: Path) -> list[tuple[float, int, int]]:
    """(seconds from the first, prompt tokens, answer tokens) of every request."""
    rows: list[tuple[float, int, int]] = []
    with path.open() as file:
        for row in csv.DictReader(file):
            at = datetime.fromisoformat(row["TIMESTAMP"][:26]).timestamp()
            rows.append((at, int(row["ContextTokens"]), int(row["GeneratedTokens"])))
    return [(at - rows[0][0], prompt, tokens) for at, prompt, tokens in rows]


def busiest(rows: Sequence[tuple[float, int, int]], span_s: float) -> list[tuple[float, int, int]]:
    """The window of that length with the most prompt tokens, from its own beginning."""
    best, best_sum, total, first = (0, 0), -1, 0, 0
    for last, row in enumerate(rows):
        total += row[1]
        while row[0] - rows[first][0] > span_s:
            total -= rows[first][1]
            first += 1
        if total > best_sum:
            best, best_sum = (first, last + 1), total
    found = rows[best[0] : best[1]]
    return [(at - found[0][0], prompt, tokens) for at, prompt, tokens in found]


def arrivals_of(rows: Sequence[tuple[float, int, int]], speed: float, interactive: float) -> list[Arrival]:
    """The requests at so many times the trace's speed; their classes are the same in every run, and spread evenly:
    the rest is one half standard, one half batch."""
    found = []
    for number, (at, prompt, tokens) in enumerate(rows):
        place = number * GOLDEN % 1.0
        slo = (
            "interactive" if place < interactive else "standard" if place < (1 + interactive) / 2 else "batch"
        )
        found.append(Arrival(at / speed, max(1, prompt), max(1, tokens), slo))
    return found


def carried(arrivals: Sequence[Arrival], prefill: float, wait_s: float) -> float:
    """Prompt tokens that replicas of this capacity (tokens/s in all) can read in time at best, each within `wait_s` of
    its arrival: a fluid that flows out at that rate, of which what would wait longer is refused, token by token. No
    scheduler can do better, since requests are not divisible and it does not know what will come."""
    backlog, last, taken = 0.0, 0.0, 0.0
    for arrival in arrivals:
        backlog = max(0.0, backlog - (arrival.at - last) * prefill)
        last = arrival.at
        room = min(float(arrival.prompt), max(0.0, wait_s * prefill - backlog))
        backlog += room
        taken += room
    return taken


def in_time(row: dict[str, Any]) -> bool:
    """Whether a request was answered whole and as an interactive one is promised."""
    return bool(row["complete"]) and 0 <= row["first_s"] <= FIRST_S and row["token_s"] <= TOKEN_S


def broken(row: dict[str, Any]) -> bool:
    """Whether a request came to nothing without being told so, and not because its client gave up."""
    return not (row["complete"] or row["gave_up"] or row["status"] in (429, 503))


def judged(rows: Sequence[dict[str, Any]], most: float, reachable: float) -> dict[str, float]:
    """The figures of one replay."""
    wanted = [row for row in rows if row["slo"] == "interactive"]
    good = [row for row in wanted if in_time(row)]
    answered = [row for row in rows if row["complete"]]
    done = sum(row["prompt"] for row in good)
    return {
        "goodput_of_carried": done / most,
        "goodput_of_known": done / reachable,
        "interactive_in_time": len(good) / max(1, len(wanted)),
        "interactive_late": sum(row["complete"] for row in wanted) - len(good),
        "refused": sum(row["status"] in (429, 503) for row in rows),
        "gave_up": sum(row["gave_up"] for row in rows),
        "failed": sum(map(broken, rows)),
        "answered_in_all": len(answered) / max(1, len(rows)),
    }


def overload(options: Options) -> dict[str, Any]:
    """Goodput of interactive requests within their promise over what the replicas can carry of them; classes by
    `x-caudal-class`, which peers do not know.

    The replicas' speed is set so that all prompts of the window, of every class, are `overload` times what they read in
    it. What they could carry of the interactive ones is `carried` with all of that speed: prompts are all that it
    counts, as if slots and answers cost nothing and the other classes were not there. So it is an upper bound, and the true
    best is less; `known` is what a scheduler reaches that knows all (gateway_known.py), with the other classes not there
    either."""
    path = options.traces / TRACE
    if not path.exists():
        return {"skipped": f"{path} is not there: Azure/AzurePublicDataset, LLM inference trace 2023, code"}
    window = busiest(read_trace(path), options.overload_s * options.overload_speed)
    arrivals = arrivals_of(window, options.overload_speed, options.interactive_share)
    span_s = arrivals[-1].at
    prefill = sum(a.prompt for a in arrivals) / span_s / options.overload
    interactive = [a for a in arrivals if a.slo == "interactive"]
    most = carried(interactive, prefill, FIRST_S)
    replica = {
        "slots": options.overload_slots,
        "prefill": prefill / options.overload_replicas,
        "decode": DECODE,
    }
    asked = ((a.at, a.prompt, a.tokens) for a in interactive)
    reachable = known(asked, options.overload_replicas, first_s=FIRST_S, **replica)
    told_path = options.cache / "arrivals.json"
    told_path.write_text(json.dumps([[a.at, a.prompt, a.tokens, a.slo] for a in arrivals]))
    options.say(
        f"{len(arrivals)} requests in {span_s:.0f} s; each replica reads {replica['prefill']:.0f} tokens/s"
    )

    def measure(front: Front) -> dict[str, float]:
        with options.yard() as yard:
            backends = [yard.mock(replica)[1] for _ in range(options.overload_replicas)]
            bound = options.overload_slots * len(backends) if front.name.endswith(BOUNDED) else 0
            kind = front.name.removesuffix(BOUNDED)
            gateway = yard.front(kind, backends, options.overload_slots, bound)
            ask = {"key": gateway.key, "stream": True}
            told = {
                "do": "replay", "port": gateway.port, "ask": ask, "arrivals": str(told_path),
                "patience_s": options.patience_s,
            }  # fmt: skip
            load = Load(told, options.other_core)
            load.until("measuring")
            load.until("measured")
            rows = load.result()["requests"]
            for row in [row for row in rows if broken(row)][:5]:
                options.say(f"{front.name} failed {row}")
            return judged(rows, most, reachable)

    found = startable(options, SKIPPED)
    if "vllm-router" in found:
        found |= {f"vllm-router{BOUNDED}": replace(found["vllm-router"], name=f"vllm-router{BOUNDED}")}
    figures: dict[str, Any] = gathered(
        turns(options, found, measure),
        {
            "goodput_of_carried": "of 1",
            "goodput_of_known": "of 1",
            "interactive_in_time": "of 1",
            "interactive_late": "requests",
            "refused": "requests",
            "gave_up": "requests",
            "failed": "requests",
            "answered_in_all": "of 1",
        },
    )
    figures["times_vllm_router"] = ratio(figures, "goodput_of_carried", "caudal", ("vllm-router",), max)
    peers = ("vllm-router", f"vllm-router{BOUNDED}", "litellm")
    figures["times_the_best_peer"] = ratio(figures, "goodput_of_carried", "caudal", peers, max)
    figures |= {"requests": len(arrivals), "seconds": round(span_s, 1), "carried_prompt_tokens": round(most)}
    figures |= {"known_prompt_tokens": reachable, "known_of_carried": round(reachable / most, 4)}
    return figures
