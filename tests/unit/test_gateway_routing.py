"""The router's measurements and a request that is sent twice: real connections, replicas that are slow or die."""

from __future__ import annotations

import asyncio
import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import uvloop

from caudal.gateway.address import Address
from caudal.gateway.process import Gateway, GatewayConfig
from caudal.gateway.router import Router, Ticket
from caudal.gateway.routes import OthersLoad, decode_routes
from caudal.policy.hedging import MIN_SAMPLES
from tests.support.gateway import chat, gateway, parsed, post, raw
from tests.support.mock_replica import MockReplica

NONE: frozenset[str] = frozenset()


class Hands:
    def __init__(self) -> None:
        self.time = 100.0

    def __call__(self) -> float:
        return self.time


def rows(*replicas: dict[str, Any], weights: list[dict[str, float]] | None = None) -> bytes:
    model = {"id": "m", "version": 2, "context": 2048, "replicas": list(replicas), "weights": weights or []}
    return json.dumps({"version": 1, "models": [model]}).encode()


def row(gang: str, port: int = 0, **more: Any) -> dict[str, Any]:
    return {"gang": gang, "url": f"http://127.0.0.1:{port or 10_000 + len(gang)}", "site": "north", **more}


def take(router: Router, tokens: int = 100, **more: Any) -> Ticket:
    async def ask() -> Any:
        return await router.acquire("m", tokens, NONE, 0.0, **more)

    taken = asyncio.run(ask())
    assert isinstance(taken, Ticket), taken
    return taken


def test_speeds_are_measured_and_decide() -> None:
    now = Hands()
    router = Router("north", now)
    router.update(decode_routes(rows(row("slow", 1), row("fast", 2))))
    for _ in range(40):
        took = []
        for gang in ("fast", "slow"):
            other = frozenset({"slow", "fast"} - {gang})
            took.append(asyncio.run(router.acquire("m", 100, other, 0.0)))
        for ticket, seconds in zip(took, (0.25, 0.75), strict=True):
            assert isinstance(ticket, Ticket)
            now.time += seconds
            ticket.first_token()
            ticket.done(100)
            ticket.release()
    speeds = {gang: load[2] for gang, load in router.load().items()}
    assert speeds["slow"] == pytest.approx(100, rel=0.1) and speeds["fast"] == pytest.approx(400, rel=0.1)
    assert take(router).gang == "fast"


def test_a_prompt_that_was_read_does_not_count_against_its_replica_any_more() -> None:
    router = Router("north", Hands())
    router.update(decode_routes(rows(row("a"), row("b"))))
    long = take(router, 1100, prompt_tokens=1000)
    short = take(router, 300, prompt_tokens=100)
    assert short.gang != long.gang
    long.first_token()
    long.first_token()  # said again: nothing more to take off
    assert {gang: load[1] for gang, load in router.load().items()} == {long.gang: 100, short.gang: 300}
    assert take(router, 150).gang == long.gang
    long.release()
    short.release()
    assert sum(load[1] for load in router.load().values()) == 150


def test_expected_tokens_follow_what_answers_turn_out_to_have() -> None:
    router = Router("north", Hands())
    router.update(decode_routes(rows(row("a"))))
    assert take(router, 1000).tokens == 1000
    for _ in range(200):
        ticket = take(router, 1000)
        ticket.done(100)
        ticket.release()
    assert 90 <= take(router, 1000).tokens <= 150


def test_slots_bound_a_replica_and_a_draining_one_gets_nothing_new() -> None:
    router = Router("north", Hands())
    router.update(decode_routes(rows(row("a", slots=2), row("bb", draining=True))))
    held = [take(router) for _ in range(3)]
    assert {t.gang for t in held} == {"a"}
    assert asyncio.run(router.acquire("m", 1, NONE, 0.0)).gang is None
    router.update(decode_routes(rows(row("a", slots=2, draining=True))))
    for ticket in held:
        ticket.release()  # what it has goes on and ends
    assert router.load() == {}
    assert asyncio.run(router.acquire("m", 1, NONE, 0.0)).gang is None


def test_others_load_moves_requests_and_is_forgotten_when_control_is_away() -> None:
    now = Hands()
    router = Router("north", now)
    router.update(decode_routes(rows(row("a", 1), row("b", 2))))
    router.learn((OthersLoad("a", 4, 4000, 0.5),))
    first = take(router)
    assert first.gang == "b"
    assert take(router, 300).gang == "b"
    now.time += 60
    assert take(router).gang == "a"
    router.learn((OthersLoad("a", 4, 4000, 0.5),))
    router.learn(())
    assert take(router).gang == "a"


def test_way_to_another_site_is_timed() -> None:
    router = Router("north", Hands())
    router.update(decode_routes(rows(row("here", 1), row("there", 2, site="south"))))
    held = take(router, 15)  # at 100 tokens a second more than the 0.1 s that are assumed
    assert held.gang == "here" and take(router, 15).gang == "there"
    router.connected(Address("127.0.0.1", 2), 5.0)
    assert {take(router, 15).gang for _ in range(5)} == {"here"}


def test_versions_share_by_weight_and_one_goes_on_with_its_own() -> None:
    router = Router("north", Hands())
    old, new = row("old", 1, version=1), row("new", 2, version=2)
    router.update(
        decode_routes(rows(old, new, weights=[{"version": 1, "weight": 0.8}, {"version": 2, "weight": 0.2}]))
    )
    got = []
    for _ in range(200):
        ticket = take(router)
        got.append(ticket.version)
        ticket.release()
    assert got.count(2) == pytest.approx(40, abs=3)
    assert {take(router, version=1).gang for _ in range(5)} == {"old"}
    assert len({take(router, who="key-1").version for _ in range(10)}) == 1


def test_half_open_breaker_lets_one_through_until_it_is_answered() -> None:
    now = Hands()
    router = Router("north", now)
    router.update(decode_routes(rows(row("a"))))
    ticket = take(router)
    ticket.failed()
    ticket.release()
    assert asyncio.run(router.acquire("m", 1, NONE, 0.0)).gang is None
    now.time += 1.0
    trial = take(router)
    assert asyncio.run(router.acquire("m", 1, NONE, 0.0)).gang is None
    trial.release()  # its client left: nothing was learnt
    trial = take(router)
    trial.first_token()
    take(router)
    take(router)


async def until(what: Callable[[], bool]) -> None:
    async with asyncio.timeout(15.0):
        while not what():
            await asyncio.sleep(0.005)


async def warmed(one: Gateway, replicas: list[MockReplica]) -> None:
    """Enough first tokens were seen, the allowance for second requests is full, and replicas hold back now."""
    one.router.update(decode_routes(rows(*(row(f"m-{i}", r.port) for i, r in enumerate(replicas)))))
    for _ in range(MIN_SAMPLES + 5):
        assert b"200 OK" in await raw(one, post(chat(stream=True)), 15)
    ticket = await one.router.acquire("m", 1, NONE, 0.0)
    assert isinstance(ticket, Ticket)
    for _ in range(50):
        ticket.hedger.asked()
    ticket.release()
    for replica in replicas:
        replica.gate.clear()


def hedging(tmp_path: Path, share: float = 0.1) -> Gateway:
    state = str(tmp_path / "routes.json")
    return Gateway(GatewayConfig("127.0.0.1", 0, "http://127.0.0.1:9/", state, "north", "g-1", hedge=share))


def test_slow_first_token_is_hedged_and_the_loser_is_let_go(tmp_path: Path) -> None:
    async def run() -> None:
        replicas = [await MockReplica().start() for _ in range(2)]
        one = hedging(tmp_path)
        await one.start()
        await warmed(one, replicas)
        asked = [len(r.requests) for r in replicas]
        before = one.router.hedged
        answer = asyncio.create_task(raw(one, post(chat(stream=True)), 20))
        await until(lambda: sum(r.running for r in replicas) == 2)
        slow = next(i for i, r in enumerate(replicas) if len(r.requests) > asked[i])
        replicas[1 - slow].gate.set()
        assert (await answer).startswith(b"HTTP/1.1 200")
        await until(lambda: not replicas[slow].running)
        assert one.router.in_flight("m") == 0
        assert one.metrics.retries == 0 and one.router.hedged == before + 1
        replicas[slow].gate.set()
        for _ in range(5):
            assert b"200 OK" in await raw(one, post(chat(stream=True)))
        await one.stop(0.0)
        for replica in replicas:
            await replica.die()

    uvloop.run(run())


@pytest.mark.parametrize("fate", ["first dies", "both die", "client leaves"])
def test_what_becomes_of_a_hedged_request_when_somebody_leaves(tmp_path: Path, fate: str) -> None:
    async def run() -> None:
        replicas = [await MockReplica().start() for _ in range(2)]
        one = hedging(tmp_path)
        await one.start()
        await warmed(one, replicas)
        answer = asyncio.create_task(raw(one, post(chat(stream=True)), 20))
        await until(lambda: sum(r.running for r in replicas) == 2)
        if fate == "client leaves":
            answer.cancel()
        elif fate == "first dies":
            await replicas[0].die()
            replicas[1].gate.set()
            assert b"[DONE]" in await answer
        else:
            for replica in replicas:
                await replica.die()
            assert parsed(await answer)[0] == 503
        await until(lambda: not one.router.in_flight("m"))
        await one.stop(0.0)
        for replica in replicas:
            await replica.die()

    uvloop.run(run())


@pytest.mark.parametrize(("share", "stream"), [(0.0, True), (0.1, False)])
def test_no_request_is_sent_twice_unless_asked_for_and_streamed(
    tmp_path: Path, share: float, stream: bool
) -> None:
    async def run() -> None:
        replicas = [await MockReplica().start() for _ in range(2)]
        one = hedging(tmp_path, share)
        await one.start()
        await warmed(one, replicas)
        answer = asyncio.create_task(raw(one, post(chat(stream=stream))))
        await asyncio.sleep(0.3)
        assert sum(r.running for r in replicas) == 1
        for replica in replicas:
            replica.gate.set()
        assert (await answer).startswith(b"HTTP/1.1 200")
        await one.stop(0.0)
        for replica in replicas:
            await replica.die()

    uvloop.run(run())


def test_turns_of_a_conversation_stay_at_one_replica(tmp_path: Path) -> None:
    async def run() -> None:
        replicas = [await MockReplica().start() for _ in range(3)]
        async with gateway(tmp_path, {"m": [*replicas]}) as one:
            for number in range(12):
                turns = [{"role": "user", "content": f"{number} " + "x" * 300}]
                for _ in range(3):
                    assert parsed(await raw(one, post(chat(messages=turns))))[0] == 200
                    turns += [{"role": "assistant", "content": "yes"}, {"role": "user", "content": "and?"}]
        homes: dict[str, set[int]] = {}
        for index, replica in enumerate(replicas):
            for request in replica.requests:
                homes.setdefault(request["messages"][0]["content"], set()).add(index)
        assert len(homes) == 12 and all(len(home) == 1 for home in homes.values())
        assert set.union(*homes.values()) == {0, 1, 2}
        for replica in replicas:
            await replica.die()

    uvloop.run(run())
