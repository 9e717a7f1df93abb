"""Which kinds of answers go on at another replica, how, and what a client is told where none can."""

from __future__ import annotations

import asyncio
import json
from types import SimpleNamespace
from typing import Any, cast

import msgspec
import pytest

from caudal.domain.key import Usage
from caudal.gateway import said as said_module
from caudal.gateway.events import NotEvents
from caudal.gateway.generation import Losses
from caudal.gateway.metrics import Metrics
from caudal.gateway.relay import Relay
from caudal.gateway.router import Router, Ticket
from caudal.gateway.routes import ModelRoutes, ReplicaRoute, RouteTable
from caudal.gateway.said import Said, SaidLog
from caudal.gateway.spanning import SpanningStop
from caudal.gateway.usage import Measured, UsageTap, asking_usage, estimated, usage_of
from caudal.gateway.watch import Watch, overdue_s
from tests.support.fake_engine import FakeEngine
from tests.support.rescue_world import Failures, FakeExchange, Outcome, ask, parsed_events, whole

CHAT, COMPLETIONS = "/v1/chat/completions", "/v1/completions"
TOOLS = [{"type": "function", "function": {"name": "f", "parameters": {"type": "object"}}}]
RANDOM, GREEDY = {"temperature": 1}, {"temperature": 0}


def chat(**more: Any) -> dict[str, Any]:
    """A chat whose undisturbed answer has 28 tokens."""
    messages = [{"role": "user", "content": "b.<"}]
    return {"messages": messages, "stream_options": {"include_usage": True}, "max_tokens": 28, **more}


def lost(body: dict[str, Any], path: str = CHAT, share: float = 0.5, **options: Any) -> Outcome:
    """The request, over a replica that dies when that share of the answer is out."""
    length = len(FakeEngine(options.get("dialect", "llama.cpp")).undisturbed(path, body))
    return ask(path, body, Failures([int(length * share)], [100]), **options)


def paths(outcome: Outcome) -> list[str]:
    """What the second replica was asked."""
    return [path for path, _ in outcome.by(1)]


def read(events: list[dict[str, Any]]) -> dict[str, str]:
    """All that a stream says, by choice and kind."""
    out: dict[str, str] = {}
    for choice in (choice for event in events for choice in event["choices"]):
        index = choice["index"]
        parts = {"finish": choice.get("finish_reason"), **choice.get("delta", {}), "text": choice.get("text")}
        for call in parts.pop("tool_calls", None) or ():
            parts |= {"id": call.get("id"), **call["function"]}
        for name, part in parts.items():
            if part:
                out[f"{index}.{name}"] = out.get(f"{index}.{name}", "") + part
    return out


def test_what_is_read_again_counts_as_a_prompt_to_read_until_it_speaks() -> None:
    outcome = lost(chat(**GREEDY))
    assert len(outcome.asked) > 2 and outcome.done == 1
    assert outcome.reading == [1] * len(outcome.asked) + [0]


@pytest.mark.parametrize("dialect", ["", "llama.cpp", "vllm", "sglang"])
@pytest.mark.parametrize("path", [CHAT, COMPLETIONS])
def test_every_dialect_goes_on_with_the_text(dialect: str, path: str) -> None:
    body = chat(**GREEDY)
    if path == COMPLETIONS:
        body = {"prompt": "ab.", **{k: v for k, v in body.items() if k != "messages"}}
    outcome = lost(body, path, dialect=dialect)
    alone = parsed_events(FakeEngine(dialect or "llama.cpp").undisturbed(path, body))
    exact = dialect in ("", "llama.cpp")  # the others tokenize what was said as one text
    assert outcome.done == 1 and outcome.used[0].exact
    assert outcome.used[0].usage.prompt_tokens == alone[-1]["usage"]["prompt_tokens"]
    assert outcome.events[-1]["usage"]["completion_tokens"] == outcome.used[0].usage.completion_tokens
    if exact:
        assert read(outcome.events) == read(alone)
        assert outcome.used[0].usage.completion_tokens == alone[-1]["usage"]["completion_tokens"]
    assert outcome.by(1)[-1][1]["max_tokens"] < 28
    half = FakeEngine(dialect or "llama.cpp").undisturbed(path, body)[:1500].rpartition(b"\n\n")[0]
    before = read(parsed_events(half))
    key = "0.content" if path == CHAT else "0.text"
    assert read(outcome.events)[key].startswith(before[key])


def test_how_each_engine_is_asked_to_go_on() -> None:
    body = chat(**GREEDY, max_completion_tokens=20, seed=3, chat_template_kwargs={"x": 1})
    assert paths(lost(body)) == ["/apply-template", "/tokenize", "/tokenize", COMPLETIONS]
    assert paths(lost(body, dialect="vllm")) == ["/tokenize", "/tokenize", COMPLETIONS]
    assert paths(lost(body, dialect="sglang")) == ["/tokenize", CHAT]
    sent = lost(body).by(1)
    assert sent[0][1]["chat_template_kwargs"] == {"x": 1}
    assert sent[-1][1]["seed"] == 3 and sent[-1][1]["model"] == "engine" and "messages" not in sent[-1][1]
    assert all(isinstance(one, int) for one in sent[-1][1]["prompt"])
    last = lost(body, dialect="sglang").by(1)[-1][1]
    assert last["continue_final_message"] and last["messages"][-1]["role"] == "assistant"


def test_log_probabilities_give_the_token_ids_themselves() -> None:
    outcome = lost(
        chat(**GREEDY, logprobs=True, top_logprobs=2, messages=[{"role": "user", "content": "aa"}])
    )
    asked = paths(outcome)
    assert asked[-1] == COMPLETIONS and outcome.done == 1
    assert outcome.by(1)[-1][1]["logprobs"] == 2
    rows = [c["logprobs"] for e in outcome.events for c in e["choices"] if c.get("delta", {}).get("content")]
    assert all(row["content"] for row in rows)
    said = Said()
    for event in ({"id": 5, "token": "é"}, {"id": 6, "token": "x"}):
        choice = {"delta": {"content": event["token"]}, "logprobs": {"content": [event]}}
        said.add({"choices": [choice]})
    assert said.token_ids == [5, 6]
    said.add(
        {"choices": [{"delta": {"content": "held back"}, "logprobs": {"content": [{"id": 7, "token": "k"}]}}]}
    )
    assert said.token_ids is None


REPEATED = [
    ("tools", {"tools": TOOLS}),
    ("form", {"response_format": {"type": "json_object"}}),
    ("choices", {"n": 3}),
    ("aloud", {"chat_template_kwargs": {"think": True}}),
]


@pytest.mark.parametrize(("name", "more"), REPEATED)
@pytest.mark.parametrize("share", [0.2, 0.5, 0.8, 0.97])
def test_what_is_no_plain_text_is_generated_again_where_that_gives_the_same(
    name: str, more: dict[str, Any], share: float
) -> None:
    body = chat(**GREEDY, **more)
    outcome = lost(body, share=share)
    alone = read(parsed_events(FakeEngine().undisturbed(CHAT, body)))
    got = read(outcome.events)
    assert got.pop("0.id", "").count("call-") == alone.pop("0.id", "").count("call-") == ("tools" in more)
    assert got == alone and outcome.done == 1 and not outcome.error
    assert outcome.used[0].exact == bool(paths(outcome))  # not asked again only to count
    roles = [c for e in outcome.events for c in e["choices"] if "role" in c.get("delta", {})]
    assert len(roles) == more.get("n", 1)


@pytest.mark.parametrize(("name", "more"), REPEATED)
def test_where_it_would_not_the_client_is_told_why(name: str, more: dict[str, Any]) -> None:
    outcome = lost(chat(**RANDOM, **more))
    assert outcome.error == "rescue_impossible" and outcome.data.count(b'"error"') == 1
    assert name in outcome.events[-1]["error"]["message"]
    assert outcome.metrics.rescues["impossible"] == outcome.metrics.broken_streams == 1
    [used] = outcome.used
    assert not used.exact and used.usage.completion_tokens > 0


def test_chance_is_no_obstacle_to_a_plain_text_nor_to_one_that_had_said_nothing() -> None:
    assert lost(chat(**RANDOM)).done == 1
    first = FakeEngine().undisturbed(CHAT, chat(**RANDOM)).index(b"\n\n") + 2
    for more in (more for _, more in REPEATED):
        outcome = ask(CHAT, chat(**RANDOM, **more), Failures([first]))
        assert outcome.done == 1 and paths(outcome) == [CHAT]


def test_second_run_that_says_something_else_ends_the_stream() -> None:
    outcome = lost(chat(seed=7, tools=TOOLS, temperature=1))  # the fake ignores seeds
    assert outcome.error == "rescue_impossible"
    assert "something else" in outcome.events[-1]["error"]["message"]


def test_address_of_which_nothing_is_known() -> None:
    assert lost(chat(**RANDOM), dialect="openai").error == "rescue_impossible"
    assert lost(chat(**GREEDY), dialect="openai").done == 1
    body = {"prompt": "ab", "temperature": 1, "max_tokens": 20}
    outcome = lost(body, COMPLETIONS, dialect="openai")
    assert outcome.done == 1 and not outcome.used[0].exact
    assert lost({**body, "prompt": [1, 2]}, COMPLETIONS, dialect="openai").error == "rescue_impossible"
    assert lost(chat(**RANDOM), dialect="unheard-of").error == "rescue_impossible"


@pytest.mark.parametrize(
    "more", [{"prompt": ["a", "b"]}, {"prompt": "a", "suffix": "b"}, {"prompt": "a", "echo": True}]
)
def test_completions_that_are_not_a_continued_prompt(more: dict[str, Any]) -> None:
    body = {"temperature": 1, "max_tokens": 20, **more}
    assert lost(body, COMPLETIONS, dialect="openai").error == "rescue_impossible"


def test_replica_that_does_not_answer_what_it_is_asked_is_the_next_failure() -> None:
    body = chat(**GREEDY)
    half = len(FakeEngine().undisturbed(CHAT, body)) // 2
    outcome = ask(CHAT, body, Failures([half], [100], on_asks=(1,)))
    assert outcome.done == 1 and outcome.by(2)
    assert read(outcome.events) == read(parsed_events(FakeEngine().undisturbed(CHAT, body)))


def test_too_many_failures_end_it() -> None:
    half = len(FakeEngine().undisturbed(CHAT, chat(**GREEDY))) // 2
    outcome = ask(CHAT, chat(**GREEDY), Failures([half, 300, 300, 300]))
    assert outcome.error == "replica_failed" and outcome.metrics.rescues["failed"] == 1


def test_answer_that_lacks_its_end_only_needs_no_replica() -> None:
    body = chat(**GREEDY)
    answer = FakeEngine().undisturbed(CHAT, body)
    outcome = ask(CHAT, body, Failures([answer.index(b"data: [DONE]")]), replicas=2)
    assert outcome.done == 1 and outcome.used[0].exact and outcome.metrics.rescues["whole"] == 1
    no_usage = answer.index(b'"finish_reason": "') + 200
    outcome = ask(CHAT, body, Failures([answer.index(b"\n\n", no_usage - 150) + 2]), replicas=2)
    assert outcome.done == 1 and not outcome.used[0].exact


def test_engine_that_says_itself_that_it_failed_is_not_contradicted(monkeypatch: pytest.MonkeyPatch) -> None:
    sound = FakeEngine._stream

    def failing(self: FakeEngine, path: str, body: dict[str, Any]) -> Any:
        for number, event in enumerate(sound(self, path, body)):
            yield event if number < 4 else 'data: {"error": {"message": "no memory", "code": 500}}\n\n'

    monkeypatch.setattr(FakeEngine, "_stream", failing)
    outcome = ask(CHAT, chat(**GREEDY), Failures([1200]))
    assert outcome.data.count(b'"no memory"') >= 1 and b"rescue_impossible" not in outcome.data
    assert outcome.metrics.broken_streams == 1


def test_stream_that_said_too_much_is_not_rescued(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(said_module, "PACK_BYTES", 300)
    monkeypatch.setattr(SaidLog.__init__, "__defaults__", (1000,))
    outcome = lost(chat(**GREEDY), share=0.9)
    assert outcome.error == "rescue_impossible" and "kept" in outcome.events[-1]["error"]["message"]
    assert not outcome.used[0].exact and outcome.used[0].usage.completion_tokens > 5


def test_null_at_the_beginning_says_nothing() -> None:
    said = Said()
    said.add_all(b'data: null\n\ndata: {"id": 1, "choices": [{"text": "a"}]}\r\n\r\ndata: [DONE]\n\n')
    assert said.text(0, "text") == "a" and said.done and said.envelope == {"id": 1}
    for bad in (b"data: 5\n\n", b"data: {\n\n", b'data: {"choices": [7]}\n\n', b'data: {"choices": 7}\n\n'):
        with pytest.raises(NotEvents):
            Said().add_all(bad)


def test_log_gives_back_what_it_was_given_packed_or_not() -> None:
    log, parts = SaidLog(), [b"data: %d\n\n" % n for n in range(20_000)]
    for part in parts:
        log.add(part)
    assert log.bytes() == b"".join(parts) and log.count() == 20_000 and not log.too_long


def test_answer_in_one_piece_that_breaks_off_is_asked_for_again() -> None:
    body = {**chat(**GREEDY)}
    del body["stream_options"]
    outcome = whole(CHAT, body, Failures([40]))
    assert json.loads(outcome.data)["choices"] and outcome.metrics.retries == 1
    assert outcome.used[0].exact and outcome.used[0].usage.completion_tokens > 0


@pytest.mark.parametrize("failures", [Failures([], [300]), Failures([900], [300])])
def test_client_that_leaves_is_counted_by_what_it_got(
    failures: Failures, monkeypatch: pytest.MonkeyPatch
) -> None:
    sent = 0

    async def leaves(self: FakeExchange) -> None:
        nonlocal sent
        sent += 1
        if sent == 8:
            raise asyncio.CancelledError

    monkeypatch.setattr(FakeExchange, "drained", leaves)
    used: list[Measured] = []
    with pytest.raises(asyncio.CancelledError):
        ask(CHAT, chat(**GREEDY), failures, used=used)
    [one] = used
    assert not one.exact and 5 <= one.usage.completion_tokens <= 20 and one.usage.prompt_tokens > 0


@pytest.mark.parametrize(
    ("said", "pieces", "got", "stopped"),
    [
        ("xE", ["N", "D!"], "", True),
        ("xE", ["N", "ot"], "Not", False),
        ("x", ["END"], "END", False),  # within the continuation: the engine's own business
        ("EN", [], "", False),
        ("aEN", ["E", "ND"], "END", False),
    ],
)
def test_stop_that_begins_in_one_replica_and_ends_in_the_next(
    said: str, pieces: list[str], got: str, stopped: bool
) -> None:
    spanning = SpanningStop(["END", "###"], said)
    out = [spanning.pass_on(p, last=False) for p in pieces] + [spanning.pass_on("", last=True)]
    assert any(stop for _, stop in out) == stopped
    assert stopped or "".join(text for text, _ in out) == got


def test_losses_at_once_count_as_one_for_a_stream_only() -> None:
    losses = Losses()
    losses.add(10.0, streaming=True)
    losses.add(10.5, streaming=True)
    assert losses.count == 1
    losses.add(11.6, streaming=True)
    assert losses.count == 2
    losses.add(11.7, streaming=False)
    assert losses.count == 3


def test_usage_asked_for_and_found() -> None:
    assert json.loads(asking_usage(b'{"a":{}} \n', None)) == {
        "a": {},
        "stream_options": {"include_usage": True},
    }
    given = b'{"stream_options":{"include_usage":false,"x":1}}'
    assert json.loads(asking_usage(given, False))["stream_options"] == {"include_usage": True, "x": 1}
    assert asking_usage(b'{"a":1}', True) == b'{"a":1}'
    body = b'{"choices":[{"text":"\\"usage\\":{}"}],"usage":{"prompt_tokens":7,"completion_tokens":2,' + (
        b'"prompt_tokens_details":{"cached_tokens":5}},"timings":{}}'
    )
    assert usage_of(body) == Usage(7, 2, 5)
    for bad in (
        b"",
        b'{"usage":null}',
        b'{"usage":{"prompt_tokens":"x"}}',
        b'{"usage":{"prompt_tokens":-1}}',
    ):
        assert usage_of(bad) is None
    strange = usage_of(b'{"usage":{"prompt_tokens":7,"prompt_tokens_details":[],"cost":{"usd":1}}}')
    assert strange == Usage(7), "details that are none cost nothing else"
    assert estimated(400, 9).usage == Usage(100, 9) and not estimated(400, 9).exact
    assert estimated(400, 0).usage == Usage()


@pytest.mark.parametrize("end", ["\n", "\r\n"])
def test_tap_hides_the_usage_event_only(end: str) -> None:
    text = f'data: {{"choices":[{{}}],"usage":null}}{end}{end}'
    usage = f'data: {{"choices":[],"usage":{{"prompt_tokens":1}}}}{end}{end}'
    done = f"data: [DONE]{end}{end}"
    tap = UsageTap(swallow=True)
    assert tap.feed((text + usage + done).encode()) == (text + done).encode()
    assert tap.measured is not None and tap.measured.usage == Usage(1, 0)
    kept = UsageTap(swallow=False)
    assert kept.feed(usage.encode()) == usage.encode() and kept.measured == tap.measured


def test_watch_moves_a_silent_stream_and_one_whose_replica_left() -> None:
    now = 100.0
    router = Router("north", lambda: now)
    a, b = (ReplicaRoute(g, f"http://127.0.0.1:{p}") for g, p in (("a", 1), ("b", 2)))

    def routes(*replicas: ReplicaRoute) -> None:
        router.update(RouteTable(1, (ModelRoutes("m", 1, 0, replicas),)))

    def look(seconds: float, chunks: int = 0, waiting: bool = True) -> list[str]:
        nonlocal now
        now += seconds
        relay.chunks += chunks
        connection.waiting = waiting
        watch._look(cast(Relay, relay), watch._seen[cast(Relay, relay)], now)
        return given_up

    given_up: list[str] = []
    connection = SimpleNamespace(waiting=True, give_up=given_up.append)

    async def scenario() -> None:
        routes(a)
        relay.ticket = await router.acquire("m", 1, frozenset(), 0.0)
        assert isinstance(relay.ticket, Ticket)
        watch.add(cast(Relay, relay))
        assert not look(60)  # not begun: a long prompt
        assert not look(1, chunks=1) and not look(60)  # begun, but there is no other replica
        routes(a, msgspec.structs.replace(b, version=2))
        assert not look(60)  # nor one that would go on with the same model
        routes(a, b)
        relay.speaking = False
        assert not look(60)  # begun, but with nothing said
        relay.speaking = True
        assert not look(1, chunks=900) and not look(4.9)
        assert not look(3, waiting=False)  # the client is slow, not the replica
        assert not look(4.9) and len(look(0.3)) == 1 and "silent for 5." in given_up[0]
        assert relay.silent_s >= 5
        look(1, chunks=1)
        assert len(look(6)) == 1 and relay.moves == 1  # ten seconds from now on
        routes(msgspec.structs.replace(a, draining=True), b)
        look(0.1, chunks=1)
        look(3, chunks=1)
        assert len(look(1.1, chunks=1)) == 2 and given_up[1] == "it is to leave"
        watch.remove(cast(Relay, relay))

    class Fake(SimpleNamespace):
        __hash__ = object.__hash__  # type: ignore[assignment]

    relay = Fake(
        chunks=0, connection=connection, ticket=None, model="m", silent_s=0.0, speaking=True, moves=0
    )
    watch = Watch(router)
    asyncio.run(scenario())


def test_slow_tokens_are_no_stall() -> None:
    assert overdue_s(5.0, 0, 0.0) == 5.0 and overdue_s(5.0, 1000, 20.0) == 5.0
    assert overdue_s(5.0, 10, 20.0) == 20.0


def test_metrics_name_outcomes_and_pauses() -> None:
    metrics = Metrics()
    metrics.rescued("whole")
    metrics.paused(0.3)
    text = metrics.render(0, []).decode()
    assert 'caudal_gateway_rescues_total{outcome="whole"} 1' in text
    assert 'caudal_gateway_rescues_total{outcome="impossible"} 0' in text
    assert 'caudal_gateway_rescue_pause_seconds_bucket{le="0.5"} 1' in text
    assert "caudal_gateway_rescue_pause_seconds_count 1" in text
