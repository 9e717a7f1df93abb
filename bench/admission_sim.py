"""Goodput at three times overload, in virtual time: our admission against what routers do. Pure and seeded.

Replicas are continuous-batching servers: each step takes a constant, so much per prompt token that it reads (512
at most, first come first read) and so much per answer that it goes on with. Requests beyond a replica's slots
wait inside it, as they do in vLLM.

What the replicas can carry is a bound in work that no schedule beats: requests as fluid (with their share of the
steps' constant at full chunks), all replicas as one, earliest deadline first, partial answers counting. In requests
it is that work over the mean request's.

What a scheduler reaches that knows replicas and requests exactly (`Knowing`) says how much of the rest is the bound's.

`python bench/admission_sim.py [--overload 3] [--replicas 2] [--first-token-s 5]`: a minute. Needs no network and
no replica.
"""

from __future__ import annotations

import argparse
import csv
import heapq
import json
import random
import sys
from collections import deque
from collections.abc import Iterable
from dataclasses import dataclass, field
from datetime import datetime
from pathlib import Path

from caudal.domain.key import KeyLimits, Slo
from caudal.policy.admission import Admission
from caudal.policy.admission_types import Admit, Ask, Park
from caudal.policy.slo import Promise, SloTargets

ROOT = Path(__file__).resolve().parents[1]
sys.path.insert(0, str(ROOT / "bench"))
from harness import commit, machine, shared_traces  # noqa: E402

TRACE = "azure_AzureLLMInferenceTrace_code.csv"
TICK_S = 0.05


@dataclass(frozen=True)
class Speed:
    """Of one replica; by default about a 7B model on one A100 (vLLM, orders of magnitude)."""

    step_s: float = 0.012
    prompt_s: float = 0.00006
    reply_s: float = 0.0001
    slots: int = 32
    chunk: int = 512
    mixed: bool = False
    delay_s: float = 0.0


@dataclass(eq=False)
class Request:
    """One request and what became of it."""

    id: int
    at: float
    prompt: int
    reply: int
    key: str = "k"
    slo: Slo = Slo.INTERACTIVE
    started_at: float = -1.0
    first_at: float = -1.0
    ended_at: float = -1.0
    refused_at: float = -1.0
    unread: int = 0
    said: int = 0
    replica: int = -1

    def kept(self, promise: Promise) -> bool:
        """Whether it was answered within the promise."""
        if self.ended_at < 0 or self.first_at - self.at > promise.first_token_s:
            return False
        per_token = (self.ended_at - self.first_at) / max(1, self.reply - 1)
        return not promise.per_token_s or per_token <= promise.per_token_s


@dataclass
class Replica:
    """A continuous-batching server."""

    speed: Speed
    waiting: deque[Request] = field(default_factory=deque)
    reading: deque[Request] = field(default_factory=deque)
    replying: list[Request] = field(default_factory=list)
    stepping: bool = False
    chunk: int = 0
    busy_s: float = 0.0
    ends_at: float = 0.0  # of the step that runs

    def plan(self) -> float:
        """Begin a step; its seconds (0: nothing to do)."""
        while self.waiting and len(self.reading) + len(self.replying) < self.speed.slots:
            self.reading.append(self.waiting.popleft())
        most = self.speed.chunk - (len(self.replying) if self.speed.mixed else 0)
        self.chunk = min(most, sum(r.unread for r in self.reading))
        if not self.reading and not self.replying:
            return 0.0
        work = self.chunk * self.speed.prompt_s + len(self.replying) * self.speed.reply_s
        self.busy_s += self.speed.step_s + work
        return self.speed.step_s + work

    def finish(self, now: float) -> tuple[list[Request], list[Request]]:
        """End the step: whose first token came, and who is done."""
        done: list[Request] = []
        for request in self.replying:
            request.said += 1
            if request.said >= request.reply:
                request.ended_at = now
                done.append(request)
        first: list[Request] = []
        left = self.chunk
        while self.reading and left >= self.reading[0].unread:
            request = self.reading.popleft()
            left -= request.unread
            request.unread = 0
            request.said = 1
            request.first_at = now
            first.append(request)
            if request.reply <= 1:
                request.ended_at = now
                done.append(request)
        if self.reading:
            self.reading[0].unread -= left
        self.replying = [r for r in self.replying + first if r.ended_at < 0]
        return first, done


class Policy:
    """Starts requests at once, round robin: what vllm-router and LiteLLM do."""

    name = "round robin, unbounded FIFO"

    def __init__(self, replicas: int, speed: Speed) -> None:
        self.replicas = replicas
        self.slots = replicas * speed.slots
        self.turn = 0
        self.fleet: list[Replica] = []

    def arrive(self, now: float, request: Request) -> list[Request]:
        """What is started now."""
        return [request]

    def first(self, now: float, request: Request) -> list[Request]:
        """A first token came."""
        return []

    def end(self, now: float, request: Request) -> list[Request]:
        """A request is done."""
        return []

    def tick(self, now: float) -> list[Request]:
        """Time passes."""
        return []

    def choose(self, replicas: list[Replica], request: Request) -> int:
        """Which replica it goes to."""
        self.turn += 1
        return self.turn % len(replicas)


class Limited(Policy):
    """A concurrency limit with a bounded FIFO queue and a time-out, as sglang-router has (`queue` 0: refuses)."""

    def __init__(self, replicas: int, speed: Speed, queue: int, timeout_s: float = 60.0) -> None:
        super().__init__(replicas, speed)
        self.name = f"concurrency limit at the slots, queue of {queue}"
        self.queue = queue
        self.timeout_s = timeout_s
        self.running = 0
        self.waiting: deque[Request] = deque()

    def arrive(self, now: float, request: Request) -> list[Request]:
        if self.running < self.slots:
            self.running += 1
            return [request]
        if len(self.waiting) < self.queue:
            self.waiting.append(request)
        else:
            request.refused_at = now
        return []

    def end(self, now: float, request: Request) -> list[Request]:
        self.running -= 1
        while self.waiting:
            following = self.waiting.popleft()
            if now - following.at > self.timeout_s:
                following.refused_at = now
                continue
            self.running += 1
            return [following]
        return []


def least_loaded(replicas: list[Replica]) -> int:
    """The replica with the least work in tokens."""

    def tokens(replica: Replica) -> int:
        inside = [*replica.waiting, *replica.reading]
        return sum(r.unread for r in inside) + 8 * len(replica.replying) + 64 * len(inside)

    return min(range(len(replicas)), key=lambda i: tokens(replicas[i]))


class Tuned(Limited):
    """The same with our choice of a replica and the promise as its time-out, to be tuned in hindsight."""

    def __init__(self, replicas: int, speed: Speed, share: float, queue: int, timeout_s: float) -> None:
        super().__init__(replicas, speed, queue, timeout_s)
        self.slots = int(self.slots * share)
        self.name = f"best fixed limit in hindsight: {self.slots} and a queue of {queue}"

    def choose(self, replicas: list[Replica], request: Request) -> int:
        return least_loaded(replicas)


class Knowing(Policy):
    """Knows the replicas' state, every prompt's length and every answer's, runs each replica ahead in its head, and takes at
    once whatever will be in time. Nobody in front of real replicas knows as much: what it misses of the bound is the
    bound's own."""

    name = "knows replicas exactly, refuses what would be late"

    def __init__(self, replicas: int, speed: Speed, promise: Promise) -> None:
        super().__init__(replicas, speed)
        self.promise = promise
        self.chosen = 0

    def arrive(self, now: float, request: Request) -> list[Request]:
        first_s, self.chosen = min((self._first_s(r, now, request), i) for i, r in enumerate(self.fleet))
        if first_s > self.promise.first_token_s - 0.05:  # about a step
            request.refused_at = now
            return []
        return [request]

    def choose(self, replicas: list[Replica], request: Request) -> int:
        return self.chosen

    def _first_s(self, replica: Replica, now: float, request: Request) -> float:
        """Until its first token would come there."""
        speed = replica.speed
        time_s = max(0.0, replica.ends_at - now) if replica.stepping else 0.0
        left = replica.chunk if replica.stepping else 0
        reading = deque([r.unread, r.reply] for r in replica.reading)
        waiting = deque([r.unread, r.reply] for r in replica.waiting)
        waiting.append([request.prompt, request.reply])
        replying = [r.reply - r.said for r in replica.replying]
        first = replica.stepping
        while True:
            if not first:
                while waiting and len(reading) + len(replying) < speed.slots:
                    reading.append(waiting.popleft())
                left = min(speed.chunk - (len(replying) if speed.mixed else 0), sum(r[0] for r in reading))
                time_s += speed.step_s + left * speed.prompt_s + len(replying) * speed.reply_s
            if time_s > self.promise.first_token_s:
                return time_s
            replying = [n - 1 for n in replying if n > 1]
            while reading and left >= reading[0][0]:
                unread, reply = reading.popleft()
                left -= unread
                if reply > 1:
                    replying.append(reply - 1)
                if not reading and not waiting:
                    return time_s
            if reading:
                reading[0][0] -= left
            first = False


class Ours(Policy):
    """caudal.policy.admission, and the replica with the fewest tokens in flight."""

    def __init__(self, replicas: int, speed: Speed, targets: SloTargets, **options: object) -> None:
        super().__init__(replicas, speed)
        self.name = "caudal" + "".join(f", {k}={v}" for k, v in options.items())
        self.admission = Admission(targets, **options)  # type: ignore[arg-type]
        self.admission.capacity(0.0, "m", replicas, replicas * speed.slots)
        self.requests: dict[int, Request] = {}
        self.limits = KeyLimits()

    def arrive(self, now: float, request: Request) -> list[Request]:
        ask = Ask(request.id, request.key, self.limits, request.slo, "m", request.prompt)
        self.requests[request.id] = request
        return self._carry_out(now, [self.admission.arrive(now, ask)])

    def first(self, now: float, request: Request) -> list[Request]:
        return self._carry_out(now, self.admission.first_token(now, request.id))

    def end(self, now: float, request: Request) -> list[Request]:
        return self._carry_out(now, self.admission.end(now, request.id, request.reply))

    def tick(self, now: float) -> list[Request]:
        return self._carry_out(now, self.admission.tick(now)) if self.admission.waiting else []

    def choose(self, replicas: list[Replica], request: Request) -> int:
        return least_loaded(replicas)

    def _carry_out(self, now: float, effects: Iterable[object]) -> list[Request]:
        started = []
        for effect in effects:
            if isinstance(effect, Admit):
                started.append(self.requests[effect.id])
            elif not isinstance(effect, Park):
                self.requests[effect.id].refused_at = now  # type: ignore[attr-defined]
        return started


def simulate(requests: list[Request], policy: Policy, speed: Speed, replicas: int) -> list[Request]:
    """Run all to their ends."""
    fleet = policy.fleet = [Replica(speed) for _ in range(replicas)]
    events: list[tuple[float, int, int, object]] = []
    serial = 0

    def at(when: float, kind: int, what: object) -> None:
        nonlocal serial
        serial += 1
        heapq.heappush(events, (when, kind, serial, what))

    def step(now: float, index: int) -> None:
        seconds = fleet[index].plan()
        fleet[index].stepping = seconds > 0
        fleet[index].ends_at = now + seconds
        if seconds:
            at(now + seconds, 0, index)

    def start(now: float, started: Iterable[Request]) -> None:
        for request in started:
            request.started_at = now
            request.unread = request.prompt
            request.replica = policy.choose(fleet, request)
            if speed.delay_s:
                at(now + speed.delay_s, 3, request)
            else:
                join(now, request)

    def join(now: float, request: Request) -> None:
        fleet[request.replica].waiting.append(request)
        if not fleet[request.replica].stepping:
            step(now, request.replica)

    for request in requests:
        at(request.at, 1, request)
    at(0.0, 2, None)
    over = requests[-1].at + 600.0
    while events:
        now, kind, _, what = heapq.heappop(events)
        if kind == 1:
            assert isinstance(what, Request)
            start(now, policy.arrive(now, what))
        elif kind == 3:
            assert isinstance(what, Request)
            join(now, what)
        elif kind == 2:
            start(now, policy.tick(now))
            if now < over:
                at(now + TICK_S, 2, None)
        else:
            assert isinstance(what, int)
            first, done = fleet[what].finish(now)
            fleet[what].stepping = False
            for request in first:
                start(now, policy.first(now, request))
            for request in done:
                start(now, policy.end(now, request))
            if not fleet[what].stepping:
                step(now, what)
    return requests


def work_s(request: Request, speed: Speed, reading: bool) -> float:
    """Replica seconds that a request needs at the least; the steps' constant is shared by full chunks of prompts
    (`reading`), or by full batches of replies."""
    shared = request.prompt / speed.chunk if reading else request.reply / speed.slots
    return request.prompt * speed.prompt_s + (request.reply - 1) * speed.reply_s + shared * speed.step_s


def reading_bound(requests: list[Request], speed: Speed) -> bool:
    """Which of the two makes the larger, so the tighter, bound."""
    chunks = sum(r.prompt for r in requests) / speed.chunk
    return chunks >= sum(r.reply for r in requests) / speed.slots


def carried_s(requests: list[Request], speed: Speed, replicas: int, promise: Promise) -> float:
    """The most work (replica seconds) that could be done in time."""
    reading = reading_bound(requests, speed)
    step_s = speed.step_s + speed.chunk * speed.prompt_s + speed.slots * speed.reply_s  # the slowest there is
    queue: list[tuple[float, float]] = []  # (deadline, work left)
    done = 0.0
    now = 0.0
    arrivals = [(r.at, r) for r in requests] + [(float("inf"), requests[-1])]
    for when, request in arrivals:
        while queue and now < when:
            deadline, left = heapq.heappop(queue)
            until = min(when, deadline)
            if until <= now:
                continue
            taken = min(left, (until - now) * replicas)
            done += taken
            now += taken / replicas
            if left - taken > 1e-12 and now < deadline:
                heapq.heappush(queue, (deadline, left - taken))
        now = max(now, when)
        deadline = request.at + promise.first_token_s + request.reply * min(promise.per_token_s, step_s)
        heapq.heappush(queue, (deadline, work_s(request, speed, reading)))
    return done


def azure(path: Path) -> list[tuple[float, int, int]]:
    """(seconds, prompt, reply) of a trace with Azure's columns."""
    with path.open() as file:
        rows = [
            (datetime.fromisoformat(r["TIMESTAMP"][:26]), int(r["ContextTokens"]), int(r["GeneratedTokens"]))
            for r in csv.DictReader(file)
        ]
    return [((at - rows[0][0]).total_seconds(), prompt, max(1, reply)) for at, prompt, reply in rows]


def bursty(seed: int, seconds: float = 7200.0, mean_per_s: float = 4.0) -> list[tuple[float, int, int]]:
    """Chats: long-tailed lengths, arrivals in bursts of some seconds to a minute, between them almost none."""
    rng = random.Random(seed)
    rows: list[tuple[float, int, int]] = []
    now = 0.0
    while now < seconds:
        length, rate = rng.uniform(5, 60), mean_per_s * rng.choice((0.1, 0.1, 0.5, 1.0, 4.0))
        end = now + length
        while (now := now + rng.expovariate(rate)) < end:
            prompt, reply = rng.lognormvariate(5.5, 1.0), rng.lognormvariate(4.5, 0.8)
            rows.append((now, min(8000, 1 + int(prompt)), min(1500, 1 + int(reply))))
        now = end
    return rows


def offered(
    rows: list[tuple[float, int, int]], overload: float, speed: Speed, replicas: int
) -> list[Request]:
    """The trace in such a time that its whole work is so many times what the replicas do in it."""
    requests = [Request(i, at, prompt, reply) for i, (at, prompt, reply) in enumerate(rows)]
    reading = reading_bound(requests, speed)
    work = sum(work_s(r, speed, reading) for r in requests)
    factor = work / (overload * replicas * requests[-1].at)
    for request in requests:
        request.at *= factor
    return requests


def figures(requests: list[Request], carried: float, speed: Speed, promise: Promise) -> dict[str, float]:
    """Goodput, and how refusals came."""
    reading = reading_bound(requests, speed)
    kept = [r for r in requests if r.kept(promise)]
    refused = [r.refused_at - r.at for r in requests if r.refused_at >= 0]
    mean_s = sum(work_s(r, speed, reading) for r in requests) / len(requests)
    late = sum(r.ended_at >= 0 and not r.kept(promise) for r in requests)
    return {
        "goodput_of_carried": round(sum(work_s(r, speed, reading) for r in kept) / carried, 3),
        "requests_kept_of_carried": round(len(kept) * mean_s / carried, 3),
        "requests_kept": round(len(kept) / len(requests), 3),
        "requests_late": round(late / len(requests), 3),
        "refused": round(len(refused) / len(requests), 3),
        "refused_at_once": round(sum(s == 0 for s in refused) / max(1, len(refused)), 3),
    }


def trace_path() -> Path | None:
    """Where the Azure trace lies, if it does."""
    path = shared_traces() / TRACE
    return path if path.is_file() else None


def policies(replicas: int, speed: Speed, targets: SloTargets) -> list[Policy]:
    """All that are compared, but for the one that is tuned."""
    return [
        Knowing(replicas, speed, targets.interactive),
        Policy(replicas, speed),
        Limited(replicas, speed, 0),
        Limited(replicas, speed, 100),
        Ours(replicas, speed, targets, newest_first=True),
        Ours(replicas, speed, targets),
    ]


def measured(
    rows: list[tuple[float, int, int]], overload: float, policy: Policy, replicas: int, promise: Promise
) -> dict[str, float]:
    """One policy under one traffic."""
    speed = Speed()
    requests = offered(rows, overload, speed, replicas)
    carried = carried_s(requests, speed, replicas, promise)
    simulate(requests, policy, speed, replicas)
    return figures(requests, carried, speed, promise)


def tuned(
    rows: list[tuple[float, int, int]], overload: float, replicas: int, promise: Promise
) -> tuple[str, dict[str, float]]:
    """The fixed limit and queue that would have been best for this very traffic."""
    best: tuple[str, dict[str, float]] = ("", {})
    for share in (0.1, 0.2, 0.4, 0.7, 1.0):
        for queue in (0, 5, 10, 20, 40, 80, 160):
            policy = Tuned(replicas, Speed(), share, queue, promise.first_token_s)
            row = measured(rows, overload, policy, replicas, promise)
            if not best[1] or row["goodput_of_carried"] > best[1]["goodput_of_carried"]:
                best = policy.name, row
    return best


def main() -> None:
    """Print a table, or with --json one object."""
    parser = argparse.ArgumentParser(description=(__doc__ or "").split("\n")[0])
    parser.add_argument("--overload", type=float, default=3.0)
    parser.add_argument("--replicas", type=int, default=2)
    parser.add_argument("--first-token-s", type=float, default=5.0)
    options = parser.parse_args()
    speed, promise = Speed(), Promise(options.first_token_s, 0.25)
    traffic = {"bursty": bursty(7)}
    path = trace_path()
    if path is None:
        print("the Azure trace is not there: only synthetic traffic", file=sys.stderr)
    else:
        traffic["azure code"] = azure(path)
    found: dict[str, dict[str, dict[str, float]]] = {}
    for name, rows in traffic.items():
        compared = {
            policy.name: measured(rows, options.overload, policy, options.replicas, promise)
            for policy in policies(options.replicas, speed, SloTargets(interactive=promise))
        }
        best, row = tuned(rows, options.overload, options.replicas, promise)
        found[name] = {**compared, best: row}
        for policy_name, row in found[name].items():
            print(f"{name:12}{policy_name:56}", row)
    asked = {"overload": options.overload, "replicas": options.replicas, "promise_s": options.first_token_s}
    print(
        json.dumps(
            {"name": "admission_sim", "commit": commit(), "machine": machine(), **asked, "figures": found}
        )
    )


if __name__ == "__main__":
    main()
