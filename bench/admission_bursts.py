"""Admission in front of one slow engine that is asked in bursts, in virtual time: whom of a burst it lets in, and what
it costs those who are patient. Pure and seeded; the engine is bench/admission_sim.py's, at another speed.

It is like SmolLM2-135M in llama.cpp on one core: 16 slots, 64 tokens a step, of which each answer that goes on takes one,
every token at the same price; what is sent reaches it 4 ms later, mostly in the middle of a step. All requests of a
burst come within milliseconds, a minute after those before.

`in_time` of the engine alone is how many answers of a burst have their first token within the promise where all are
sent at once. `let_in` of ours is to be about that, and all of it `in_time`. As standard all are let in, and
`of_the_engine_alone` compares the tokens/s from the first request to the last token.

`python bench/admission_bursts.py`: some seconds.
"""

from __future__ import annotations

import json
import random
import sys
from pathlib import Path
from statistics import mean

from caudal.domain.key import Slo
from caudal.policy.slo import SloTargets

sys.path.insert(0, str(Path(__file__).resolve().parent))
from admission_sim import Ours, Policy, Request, Speed, simulate
from harness import commit, machine

LLAMA = Speed(step_s=0.015, prompt_s=0.0055, reply_s=0.0055, slots=16, chunk=64, mixed=True, delay_s=0.004)
EVERY_S = 60.0
REPLY = 64


def bursts(count: int, size: int, slo: Slo, seed: int = 1) -> list[Request]:
    """Requests of 60 to 100 tokens of prompt and 64 of answer."""
    rng = random.Random(seed)
    return [
        Request(
            number, number // size * EVERY_S + number % size * 0.001, rng.randint(60, 100), REPLY, slo=slo
        )
        for number in range(count * size)
    ]


def judged(requests: list[Request], size: int, warm: int) -> dict[str, float]:
    """Means over the bursts, but for the first ones: then nothing is known of the engine yet."""
    promised_s = SloTargets().interactive.first_token_s
    let_in, in_time, rate = [], [], []
    for first in range(warm * size, len(requests), size):
        burst = requests[first : first + size]
        answered = [r for r in burst if r.ended_at >= 0]
        let_in.append(len(answered))
        in_time.append(sum(r.first_at - r.at <= promised_s for r in answered))
        rate.append(REPLY * len(answered) / (max(r.ended_at for r in answered) - burst[0].at))
    return {
        "let_in": round(mean(let_in), 2),
        "in_time": round(mean(in_time), 2),
        "tokens_per_s": round(mean(rate), 2),
    }


def measured(size: int, count: int = 12, warm: int = 4) -> dict[str, dict[str, float]]:
    """The engine alone, and ours for both classes."""
    found = {
        "engine alone": judged(
            simulate(bursts(count, size, Slo.INTERACTIVE), Policy(1, LLAMA), LLAMA, 1), size, warm
        )
    }
    for slo in (Slo.INTERACTIVE, Slo.STANDARD):
        ours = Ours(1, LLAMA, SloTargets())
        found[f"caudal, {slo.value}"] = judged(simulate(bursts(count, size, slo), ours, LLAMA, 1), size, warm)
    alone = found["engine alone"]["tokens_per_s"]
    standard = found[f"caudal, {Slo.STANDARD.value}"]
    standard["of_the_engine_alone"] = round(standard["tokens_per_s"] / alone, 3)
    return found


def main() -> None:
    """Print a table and one JSON object."""
    found = {f"bursts of {size}": measured(size) for size in (8, 16, 24)}
    for name, rows in found.items():
        for who, row in rows.items():
            print(f"{name:16}{who:24}", row)
    print(
        json.dumps({"name": "admission_bursts", "commit": commit(), "machine": machine(), "figures": found})
    )


if __name__ == "__main__":
    main()
