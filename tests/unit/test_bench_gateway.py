"""The gateway's benchmark measures what it says: its mock, its load client and its judgement of the peak."""

from __future__ import annotations

import asyncio
import json
import random
import subprocess
import sys
import urllib.request
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

BENCH = Path(__file__).resolve().parents[2] / "bench"
sys.path.insert(0, str(BENCH))

import gateway_mock as mock  # noqa: E402
from gateway_control import Control  # noqa: E402
from gateway_load import Ask, text_of  # noqa: E402
from gateway_options import Options, gathered, ratio, turns  # noqa: E402
from gateway_overload import FIRST_S, Arrival, arrivals_of, busiest, carried, in_time, judged  # noqa: E402
from gateway_peers import Front, Program, free_port, listening  # noqa: E402


@pytest.fixture
def backend(tmp_path: Path) -> Iterator[int]:
    """The mock's port."""
    port = free_port()
    argv = [sys.executable, str(BENCH / "gateway_mock.py"), json.dumps({"port": port})]
    program = Program.start(tmp_path, "mock", argv, None)
    try:
        listening(program, port)
        yield port
    finally:
        program.close()


def post(port: int, path: str, body: dict[str, Any]) -> Any:
    request = urllib.request.Request(f"http://127.0.0.1:{port}{path}", json.dumps(body).encode())
    opener = urllib.request.build_opener(urllib.request.ProxyHandler({}))
    with opener.open(request, timeout=10) as answer:
        return json.loads(answer.read())


def load(told: dict[str, Any]) -> tuple[list[str], Any]:
    """The load client's lines before the last, and its last."""
    argv = [sys.executable, str(BENCH / "gateway_load.py"), json.dumps(told)]
    lines = subprocess.run(argv, capture_output=True, text=True, timeout=60, check=True).stdout.splitlines()
    return lines[:-1], json.loads(lines[-1])


def test_an_answer_goes_on_with_the_next_word(backend: int) -> None:
    prompt = post(backend, "/apply-template", {"messages": [{"content": "Hello there"}]})["prompt"]
    asked = post(backend, "/tokenize", {"content": [prompt]})["tokens"]
    said = post(backend, "/tokenize", {"content": ["", "w0 ", "w1 "]})["tokens"]
    assert len(said) == 2
    rest = post(backend, "/v1/completions", {"prompt": [*asked, *said], "max_tokens": 3})
    assert rest["choices"][0]["text"] == mock.words(2, 3)
    assert rest["usage"]["completion_tokens"] == 3


@given(first=st.integers(0, 500), count=st.integers(1, 50))
def test_words_are_as_many_tokens_however_they_are_cut(first: int, count: int) -> None:
    text = mock.words(first, count)
    assert mock.tokenized(text) == [mock.FIRST_ID + n for n in range(first, first + count)]
    assert mock.tokenized([f"{word} " for word in text.split()]) == mock.tokenized(text)


def test_streams_are_whole_and_take_their_time(backend: int) -> None:
    ask = {"stream": True, "tokens": 10, "delay_ms": 20}
    said, result = load({"do": "each", "ports": [backend], "streams": 3, "ask": ask})
    assert said == ["measuring", "measured"]
    for stream in result["streams"]:
        assert stream["complete"] and stream["text"] == mock.words(0, 10) and stream["asked"] == 1
        assert stream["seconds"] >= 10 * 0.02
        assert 0.015 <= stream["pause_s"] < 1.0


def test_a_client_without_its_gateway_asks_the_next(backend: int) -> None:
    ask = {"stream": True, "tokens": 3, "delay_ms": 1}
    _, result = load({"do": "each", "ports": [free_port(), backend], "streams": 2, "ask": ask})
    assert [s["asked"] for s in result["streams"]] == [2, 1]
    assert all(s["complete"] for s in result["streams"])


def test_nobody_there_is_no_good_answer() -> None:
    port = free_port()
    _, each = load({"do": "each", "ports": [port], "streams": 2, "ask": {"stream": True}})
    assert not any(s["complete"] for s in each["streams"])
    _, closed = load({"do": "closed", "port": port, "connections": 2, "seconds": 0.3})
    assert closed["requests"] == 0 and closed["errors"]["connect"] > 0


def test_a_rate_is_held(backend: int) -> None:
    _, result = load({"do": "closed", "port": backend, "connections": 4, "seconds": 2, "rate": 100})
    assert result["errors"] == {} and result["left"] == 0
    assert 75 <= result["requests_per_s"] <= 105


class Counting(asyncio.Protocol):
    """Answers with what it is told, and counts what it was asked."""

    def __init__(self, answer: bytes, asked: list[int]) -> None:
        self.answer, self.asked, self.data = answer, asked, b""

    def connection_made(self, transport: asyncio.BaseTransport) -> None:
        assert isinstance(transport, asyncio.Transport)
        self.transport = transport

    def data_received(self, data: bytes) -> None:
        self.data += data
        while b"\r\n\r\n" in self.data:
            head, _, rest = self.data.partition(b"\r\n\r\n")
            length = int(head.lower().partition(b"content-length: ")[2].split(b"\r\n")[0])
            if len(rest) < length:
                return
            self.data = rest[length:]
            self.asked.append(1)
            self.transport.write(self.answer)
            if b"connection: close" in self.answer:
                self.transport.close()


def against(answer: bytes, told: dict[str, Any]) -> tuple[int, Any]:
    """How often a server that answers so was asked, and what the load client says of it."""

    async def run() -> tuple[int, Any]:
        asked: list[int] = []
        server = await asyncio.get_running_loop().create_server(
            lambda: Counting(answer, asked), "127.0.0.1", 0
        )
        port = server.sockets[0].getsockname()[1]
        result = await asyncio.to_thread(load, {"do": "closed", "port": port, "connections": 3, **told})
        server.close()
        return len(asked), result[1]

    return asyncio.run(run())


def test_no_more_answers_are_counted_than_were_given() -> None:
    asked, result = against(mock.whole(b'{"choices":[]}'), {"seconds": 0.5, "rate": 60})
    assert result["errors"] == {}
    assert (
        20 <= result["requests"] <= asked <= result["requests"] + 75
    )  # those of the warm second come on top


STREAM = {"ask": {"stream": True}, "seconds": 0.3, "rate": 30}


@pytest.mark.parametrize(
    ("answer", "why"),
    [
        (mock.HEAD + mock.framed(b"data: {}\n\n") + b"0\r\n\r\n", "cut"),
        (
            mock.HEAD.replace(b"\r\n\r\n", b"\r\nconnection: close\r\n\r\n") + mock.framed(b"data: {}\n\n"),
            "cut",
        ),
        (mock.whole(b"{}").replace(b"200 OK", b"503 Busy"), "503"),
        (b"HTTP/1.1 connection: close nonsense\r\n\r\n", "cut"),
    ],
)
def test_what_is_not_a_whole_stream_is_an_error(answer: bytes, why: str) -> None:
    asked, result = against(answer, STREAM)
    assert asked > 0 and result["requests"] == 0
    assert result["errors"].get(why, 0) > 0


def test_text_finish_and_usage_of_a_stream() -> None:
    said = [
        b'data: {"choices":[{"delta":{"role":"assistant","content":""}}]}\n\ndata: {"choices":[{"del',
        b'ta":{"content":"a"}}]}\n\ndata: {"choices":[{"delta":{},"finish_reason":"stop"}]}\n\n',
        b'data: {"choices":[],"usage":{"completion_tokens":7}}\n\ndata: [DONE]\n\n',
    ]
    assert text_of(said) == ("a", "stop", 7)


def test_a_real_engine_is_asked_for_greedy_text() -> None:
    plain, greedy = (Ask(greedy=g, delay_ms=20).request().partition(b"\r\n\r\n")[2] for g in (False, True))
    assert json.loads(plain)["seed"] == 20
    assert "seed" not in json.loads(greedy) and json.loads(greedy)["temperature"] == 0


class Wire:
    """A connection that only notes."""

    def __init__(self) -> None:
        self.transport = self
        self.out: list[bytes] = []
        self.gone = False
        self.server = mock.Server(mock.Timed())
        self.server.in_flight = 0

    def write(self, data: bytes) -> None:
        self.out.append(data)

    def is_closing(self) -> bool:
        return self.gone

    def ended(self) -> None:
        self.server.in_flight -= 1


def job(prompt: int, count: int) -> tuple[Wire, mock.Job]:
    wire = Wire()
    return wire, mock.Job(wire, True, True, 0, count, 0.0, False, prompt, unread=prompt)  # type: ignore[arg-type]


def batch(slots: int) -> mock.Batch:
    found = mock.Batch(slots=slots, prefill=1000.0, decode=10.0)  # 100 tokens of prompts a step
    found.stepping = True  # steps are taken by hand
    return found


def steps_to_first(engine: mock.Batch, wire: Wire) -> int:
    for step in range(1, 200):
        engine.step()
        if wire.out:
            return step
    raise AssertionError("it never began")


def test_prompts_are_read_in_turn_at_the_replicas_speed() -> None:
    engine = batch(4)
    wires = []
    for _ in range(2):
        wire, one = job(prompt=500, count=3)
        engine.take(one)
        wires.append(wire)
    assert steps_to_first(engine, wires[0]) == 5
    assert steps_to_first(engine, wires[1]) == 5


def test_a_full_replica_keeps_the_rest_waiting_and_a_client_that_leaves_frees_its_place() -> None:
    engine = batch(1)
    first, long = job(prompt=10, count=1000)
    second, short = job(prompt=10, count=2)
    engine.take(long)
    engine.take(short)
    for _ in range(20):
        engine.step()
    assert first.out and not second.out
    first.gone = True
    assert steps_to_first(engine, second) == 1
    engine.step()
    engine.step()
    assert not engine.running and second.out[-1].endswith(b"0\r\n\r\n")
    assert first.server.in_flight == 0 == second.server.in_flight


ROWS = st.lists(st.tuples(st.floats(0, 50), st.integers(1, 5000)), min_size=1, max_size=60)


@given(ROWS, st.floats(10, 5000), st.floats(0.5, 10))
def test_nobody_carries_more_than_is_asked_or_than_time_allows(
    rows: list[tuple[float, int]], prefill: float, wait_s: float
) -> None:
    arrivals = [Arrival(at, prompt, 1, "interactive") for at, prompt in sorted(rows)]
    most = carried(arrivals, prefill, wait_s)
    span_s = arrivals[-1].at - arrivals[0].at
    assert 0 <= most <= sum(a.prompt for a in arrivals) + 1e-6
    assert most <= prefill * (span_s + wait_s) * (1 + 1e-9) + 1e-6
    assert most <= carried(arrivals, prefill * 2, wait_s) + 1e-6


def test_what_fits_is_carried_whole() -> None:
    arrivals = [Arrival(float(n), 100, 1, "interactive") for n in range(20)]
    assert carried(arrivals, 100.0, 5.0) == pytest.approx(2000)
    assert carried(arrivals, 10.0, 1.0) == pytest.approx(10 + 10 * 19)  # a second's worth of each


def test_the_busiest_window_and_its_classes() -> None:
    rows = [(float(n), 1000 if 10 <= n < 15 else 1, 3) for n in range(30)]
    window = busiest(rows, 4.5)
    assert [prompt for _, prompt, _ in window] == [1000] * 5 and window[0][0] == 0.0
    arrivals = arrivals_of([(float(n), 10, 0) for n in range(1000)], 2.0, 0.6)
    assert arrivals[-1].at == pytest.approx(999 / 2) and arrivals[0].tokens == 1
    shares = {slo: sum(a.slo == slo for a in arrivals) for slo in ("interactive", "standard", "batch")}
    assert shares == pytest.approx({"interactive": 600, "standard": 200, "batch": 200}, abs=3)


def row(**more: Any) -> dict[str, Any]:
    return {
        "slo": "interactive", "status": 200, "complete": True, "first_s": 1.0, "token_s": 0.05, "prompt": 100,
        "gave_up": False,
    } | more  # fmt: skip


@pytest.mark.parametrize("bad", [{"first_s": 5.1}, {"first_s": -1.0}, {"token_s": 0.3}, {"complete": False}])
def test_late_or_broken_is_not_in_time(bad: dict[str, Any]) -> None:
    assert in_time(row()) and not in_time(row(**bad))


def test_judgement() -> None:
    refused, failed = row(status=429, complete=False), row(status=0, complete=False)
    patience = row(slo="batch", status=0, complete=False, gave_up=True)
    rows = [row(), row(first_s=9.0), refused, failed, patience]
    got = judged(rows, 200.0, 125.0)
    assert got["goodput_of_carried"] == 0.5 and got["goodput_of_known"] == 0.8
    assert got["interactive_in_time"] == 0.25
    assert (got["interactive_late"], got["refused"], got["failed"], got["gave_up"]) == (1, 1, 1, 1)
    assert got["answered_in_all"] == 0.4


def test_ratio_is_to_the_best_that_took_part() -> None:
    figures = {"caudal": {"x": {"median": 10.0}}, "a": {"x": {"median": 4.0}}, "b": {"x": {"median": 5.0}}}
    assert ratio(figures, "x", "caudal", ("a", "b", "absent"), max) == 2.0
    assert ratio(figures, "x", "caudal", ("absent",), max) is None


def test_control_gives_out_routes_and_keys_and_takes_usage() -> None:
    control = Control()
    try:
        control.route("m", [{"gang": "r", "url": "http://127.0.0.1:1"}])
        port = int(control.url.split(":")[2].split("/")[0])
        opener = urllib.request.build_opener(urllib.request.ProxyHandler({}))
        with opener.open(f"{control.url}/routes?gateway=g", timeout=5) as answer:
            assert json.loads(answer.read())["models"][0]["replicas"][0]["gang"] == "r"
        with opener.open(f"{control.url}/gateway/keys", timeout=5) as answer:
            text = answer.read().decode()
        assert json.loads(text)["keys"][0]["limits"]["concurrency"] > 0 and control.secret not in text
        assert post(port, "/api/v1/gateway/usage", {}) == {"taken": True} and control.batches == 1
    finally:
        control.close()


def test_a_peer_imports_nothing_that_lies_about(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """LiteLLM puts `../..` first on its path, where it runs: that must be a folder of the row's own."""
    monkeypatch.setenv("PYTHONPATH", "/nowhere")
    row = tmp_path / "row"
    row.mkdir()
    shell = 'cd ../.. && pwd && echo "PYTHONPATH=$PYTHONPATH"'
    program = Program.start(row, "peer", ["/bin/sh", "-c", shell], None)
    assert program.process.wait(10) == 0
    above, path = program.log.read_text().splitlines()
    assert Path(above).is_relative_to(row) and Path(above) != row
    assert path == "PYTHONPATH="


def bursts(seed: int) -> list[Arrival]:
    """A minute of requests, a fifth of it ten times as busy."""
    dice, at, found = random.Random(seed), 0.0, []
    while at < 60.0:
        at += dice.expovariate(40.0 if at % 10 < 2 else 4.0)
        found.append(
            Arrival(at, 1 + int(dice.expovariate(1 / 2000)), 1 + int(dice.expovariate(1 / 28)), "interactive")
        )
    return found


def within_reach(arrivals: list[Arrival], prefill: float, replicas: int) -> float:
    """What a plain scheduler gets out of the replicas, of what they can carry at best: the one with the least to
    read, and nothing that would come too late. Time is steps."""
    engines = [mock.Batch(slots=32, prefill=prefill / replicas, decode=20.0) for _ in range(replicas)]
    for engine in engines:
        engine.stepping = True
    sent: list[tuple[Arrival, Wire]] = []
    begun: dict[int, float] = {}
    left = list(arrivals)
    for step in range(int((arrivals[-1].at + 20) * 20)):
        now = step / 20
        while left and left[0].at <= now:
            arrival = left.pop(0)
            engine = min(engines, key=lambda e: sum(j.unread for j in (*e.running, *e.waiting)))
            ahead = sum(j.unread for j in (*engine.running, *engine.waiting))
            if (ahead + arrival.prompt) / engine.prefill < FIRST_S - 0.2:
                wire, one = job(arrival.prompt, arrival.tokens)
                engine.take(one)
                sent.append((arrival, wire))
        for engine in engines:
            engine.step()
        for number, (_, wire) in enumerate(sent):
            if wire.out:
                begun.setdefault(number, now + 1 / 20)
    good = sum(a.prompt for n, (a, _) in enumerate(sent) if begun.get(n, 1e9) - a.at <= FIRST_S)
    return good / carried(arrivals, prefill, FIRST_S)


@pytest.mark.parametrize("seed", [1, 2, 3])
def test_what_the_replicas_can_carry_is_within_reach_and_no_more(seed: int) -> None:
    arrivals = bursts(seed)
    prefill = sum(a.prompt for a in arrivals) / 60.0 / 2.0
    assert 0.93 <= within_reach(arrivals, prefill, 2) <= 1.0


def test_systems_take_turns_and_nothing_answered_is_no_figure(tmp_path: Path) -> None:
    options = Options(cache=tmp_path, repeats=2, quick=True, systems=("a", "b", "mute"), traces=tmp_path)
    order: list[str] = []

    def measure(front: Front) -> dict[str, float] | None:
        order.append(front.name)
        return None if front.name == "mute" else {"x": float(len(order))}

    rows = turns(options, {name: Front(name, 0) for name in options.systems}, measure)
    assert order == ["a", "b", "mute", "mute", "b", "a"]
    assert [row["repeat"] for row in rows["b"]] == [0, 1]
    figures = gathered(rows, {"x": "s"})
    assert figures["a"]["x"]["median"] == 3.5 and "x" not in figures["mute"]
    assert (
        ratio(figures, "x", "a", ("b", "mute"), max) == 1.0
        and ratio(figures, "x", "mute", ("a",), max) is None
    )
