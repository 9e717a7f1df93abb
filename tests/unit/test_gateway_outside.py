"""External addresses among everything else that a gateway does: versions, hedging, keys, embeddings, tokens."""

from __future__ import annotations

import asyncio
from pathlib import Path
from typing import Any

import pytest
import uvloop

from caudal.gateway.outside import Admits
from caudal.gateway.router import Router, Ticket
from caudal.gateway.routes import decode_routes
from caudal.gateway.usage_lines import body_of
from tests.support.gateway import chat, gateway, parsed, post, raw
from tests.support.mock_replica import USAGE, MockReplica
from tests.support.usage import rows_of
from tests.unit.test_gateway_external import NAME, World, run
from tests.unit.test_gateway_routing import Hands, row, rows

NONE: frozenset[str] = frozenset()


def there(overflow: bool, name: str = NAME, **more: Any) -> dict[str, Any]:
    external = {"overflow": overflow}
    return row(name, 9, **{"site": "", "engine": "openai", "slots": 2, "external": external, **more})


def can_pay(affordable: bool = True, most: float = 1.0) -> Admits:
    return lambda _: (affordable, most)


def router_of(*replicas: dict[str, Any], weights: Any = None) -> Router:
    router = Router("north", Hands())
    router.update(decode_routes(rows(*replicas, weights=weights)))
    return router


def ask(router: Router, admits: Admits | None = None, tried: frozenset[str] = NONE, **more: Any) -> Any:
    return asyncio.run(router.acquire("m", 100, tried, 0.0, admits=admits, **more))


def test_overflow_waits_for_the_bound_of_own_replicas_and_has_no_queue_itself() -> None:
    router = router_of(row("a", 1, slots=1), there(True))
    assert [ask(router, can_pay()).gang for _ in range(4)] == ["a", "a", NAME, NAME]
    assert ask(router, can_pay()).reason == "full"
    assert router.in_flight("m") == 4 and set(router.load()) == {"a"}


def test_who_may_not_leave_the_fleet_does_not() -> None:
    for overflow in (True, False):
        router = router_of(row("a", 1, slots=1), there(overflow))
        assert [ask(router).gang for _ in range(3)] == ["a", "a", None]
        assert ask(router_of(there(overflow))).gang is None


def test_a_hedge_is_never_paid_for() -> None:
    router = router_of(row("a", 1), there(False))
    ticket = ask(router, can_pay(False))
    assert ticket.gang == "a" and router.try_other(ticket) is None
    router.update(decode_routes(rows(row("a", 1), row("b", 2), there(False))))
    other = router.try_other(ticket)
    assert other is not None and other.gang == "b"


def test_one_among_others_is_spared_while_it_cannot_be_paid() -> None:
    router = router_of(row("a", 1, site="south"), there(False, site="north"))
    first = ask(router, can_pay())
    assert isinstance(first, Ticket) and first.gang == NAME, "it is nearer"
    first.release()
    assert ask(router, can_pay(False)).gang == "a"
    assert ask(router_of(there(False)), can_pay(False)).reason == "budget_spent"
    both = router_of(there(False), there(True, "external.b.m"))
    assert ask(both, lambda r: (r.gang != NAME, 1.0)).gang == "external.b.m"


@pytest.mark.parametrize("weights", [None, [{"version": 1, "weight": 0.9}, {"version": 2, "weight": 0.1}]])
def test_addresses_have_no_version_and_take_no_version_from_anybody(weights: Any) -> None:
    own = row("old", 1, version=1), row("new", 2, version=2)
    router = router_of(*own, there(True), weights=weights)
    got = [ask(router, can_pay()).gang for _ in range(20)]
    assert NAME not in got and {"old", "new"} == set(got)
    beside = router_of(*own, there(False, site="north", slots=50), weights=weights)
    got = [ask(beside, can_pay()).gang for _ in range(30)]
    assert 5 <= got.count(NAME) <= 20, "an equal of both versions' replicas"


def test_its_authorities_may_change_while_it_stays_where_it_is() -> None:
    router = router_of(there(True, url="https://h/v1"))
    changed = there(True, url="https://h/v1", external={"ca_file": "/new.pem"})
    router.update(decode_routes(rows(changed)))
    assert ask(router, can_pay()).address.ca_file == "/new.pem"


def test_embeddings_leave_the_fleet_in_the_providers_words(tmp_path: Path) -> None:
    async def scenario(w: World) -> None:
        w.routes(own=False, usd_per_million_out=1000.0)
        body = {"model": "m", "input": ["one", "two"]}
        await raw(w.one, post(body, "/v1/embeddings"))
        asked = w.provider.requests[0]
        assert asked["_path"] == "/some/v1/embeddings"
        sent = {k: v for k, v in asked.items() if not k.startswith("_")}
        assert sent == {"model": "name-there", "input": ["one", "two"], "encoding_format": "float"}

    run(tmp_path, scenario)


def test_every_prompt_of_a_list_may_have_a_reply(tmp_path: Path) -> None:
    async def scenario(w: World) -> None:
        # Ten replies of 100 tokens: 0.002 US dollars at most, and a little for the prompts.
        body = {"model": "m", "prompt": ["hi"] * 10, "max_tokens": 100}
        w.routes(own=False, budget_usd_per_month=0.0019)
        status, answer = parsed(await raw(w.one, post(body, "/v1/completions")))
        assert (status, answer["error"]["code"]) == (503, "budget_spent")
        w.routes(own=False, budget_usd_per_month=0.0025)
        assert parsed(await raw(w.one, post(body, "/v1/completions")))[0] == 200
        assert w.provider.requests[0]["prompt"] == ["hi"] * 10

    run(tmp_path, scenario)


def test_tokens_are_counted_here_or_not_at_all(tmp_path: Path) -> None:
    async def scenario(w: World) -> None:
        for body, path in (
            ({"model": "m", "input": "hi"}, "/v1/tokenize"),
            ({"model": "m", "tokens": [1]}, "/v1/detokenize"),
        ):
            w.routes(own=False)
            status, answer = parsed(await raw(w.one, post(body, path)))
            assert (status, answer["error"]["param"]) == (400, "model")
            w.routes(overflow=False)
            await raw(w.one, post(body, path))
        assert {r["_path"] for r in w.own.requests} == {"/tokenize", "/detokenize"}
        assert w.provider.requests == [] and w.spent() == 0

    run(tmp_path, scenario)


def test_an_answer_from_outside_is_on_its_callers_account(tmp_path: Path) -> None:
    folder = tmp_path / "usage"

    async def scenario() -> None:
        provider = await MockReplica("name-there").start()
        more = {"usage_dir": str(folder), "usage_url": "http://127.0.0.1:9/usage"}
        async with gateway(tmp_path, more=more) as one:
            one.router.update(decode_routes(rows(there(True, url=provider.url))))
            assert parsed(await raw(one, post(chat())))[0] == 200
        await provider.die()

    uvloop.run(scenario())
    body, _, _ = body_of(b"".join(p.read_bytes() for p in folder.iterdir()).splitlines(keepends=True))
    ((_, _, (counted,)),) = rows_of(body)
    assert (counted.model, counted.requests, counted.failed) == ("m", 1, 0)
    assert counted.usage.prompt_tokens == USAGE["prompt_tokens"]


def test_answers_that_are_no_answers_are_not_paid(tmp_path: Path) -> None:
    async def scenario(w: World) -> None:
        w.routes(own=False)
        w.provider.fail = "503"
        assert (await w.ask())[0] == 503 and w.provider.requests and w.spent() == 0

    run(tmp_path, scenario)


def test_parameters_of_other_engines_reach_the_provider(tmp_path: Path) -> None:
    async def scenario(w: World) -> None:
        w.routes(own=False)
        assert (await w.ask(guided_regex="a+", n=2))[0] == 200
        assert w.provider.requests[0]["guided_regex"] == "a+" and w.provider.requests[0]["n"] == 2
        w.routes()
        status, answer = await w.ask(guided_regex="a+")
        assert (status, answer["error"]["code"]) == (400, "unknown_parameter")
        assert len(w.provider.requests) == 1

    run(tmp_path, scenario)
