"""Streams over real llama.cpp replicas, as real processes, that lose one of them: killed, stopped, or told to
leave. What each client reads is compared with what it reads of a replica that nothing happens to."""

from __future__ import annotations

import os
import signal
import threading
import time
import urllib.request
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from itertools import islice
from pathlib import Path
from typing import Any

import openai
import pytest

from caudal.store.blobs import open_blobs
from caudal.store.models import ModelStore
from tests.e2e.test_serve_smollm import MODEL, Control, Gangs, open_gateway, wait_routed
from tests.support.smollm import smollm_gguf

pytestmark = [pytest.mark.e2e, pytest.mark.slow, pytest.mark.timeout(300)]

STREAMS = 16
TOKENS = 60
TOPICS = ["the sea", "a cat", "bread", "the moon", "rain", "a bridge", "glass", "time"]
Heard = tuple[str, str | None, int, int]


@dataclass
class World:
    """A gateway, replicas that come and go, and what each stream says when nothing happens."""

    gangs: Gangs
    client: openai.OpenAI
    alone: list[Heard]
    last: str

    def replicas(self, name: str) -> None:
        """The last one that was started, and one more: two."""
        start(self.gangs, name)
        wait_routed(self.client, 2)
        self.last, self.first = name, self.last

    def lose(self, name: str) -> None:
        """Kill one of the two."""
        self.gangs.processes[name].kill()
        del self.gangs.control.reports[name]
        self.last = self.first if name == self.last else self.last

    def rescued(self) -> dict[str, int]:
        """The counter's values."""
        url = str(self.client.base_url).replace("/v1/", "/metrics")
        text = urllib.request.urlopen(url).read().decode()
        rows = [line for line in text.splitlines() if line.startswith("caudal_gateway_rescues_total{")]
        return {row.split('"')[1]: int(float(row.split()[1])) for row in rows}


def start(gangs: Gangs, name: str) -> None:
    """A replica with room for all streams."""
    config: dict[str, Any] = {"version": 1, "context": 512, "slots": STREAMS, "threads": 1}
    cache = str(gangs.folder / "cache")
    gangs.start(
        name, "caudal.serve.replica", model=MODEL, cache_dir=cache, blobs_url=gangs.blobs_url, **config
    )
    gangs.wait_ready(name)


def chat(client: openai.OpenAI, number: int, heard: Callable[[], None] = lambda: None) -> Heard:
    """One greedy stream: its text, its finish, its tokens. It has one id, one role and one finish."""
    messages: Any = [{"role": "user", "content": f"Write {number + 2} sentences on {TOPICS[number % 8]}."}]
    chunks = []
    for chunk in client.chat.completions.create(
        model=MODEL,
        messages=messages,
        temperature=0,
        max_tokens=TOKENS,
        stream=True,
        stream_options={"include_usage": True},
        extra_headers={"x-caudal-class": "standard"},  # sixteen at once are more than is promised to persons
    ):
        chunks.append(chunk)
        heard()
    assert len({(c.id, c.model) for c in chunks}) == 1
    choices = [choice for c in chunks for choice in c.choices]
    assert sum(choice.delta.role is not None for choice in choices) == 1
    [finish] = [choice.finish_reason for choice in choices if choice.finish_reason]
    [usage] = [c.usage for c in chunks if c.usage]
    text = "".join(choice.delta.content or "" for choice in choices)
    return text, finish, usage.prompt_tokens, usage.completion_tokens


def together(client: openai.OpenAI, strike: Callable[[], object]) -> list[Heard | Exception]:
    """All streams at once; after 150 chunks of them all, something happens."""
    out: list[Heard | Exception] = [RuntimeError("not run")] * STREAMS
    lock = threading.Lock()
    chunks = 0

    def heard() -> None:
        nonlocal chunks
        with lock:
            chunks += 1
            if chunks == 150:
                strike()

    def one(number: int) -> None:
        try:
            out[number] = chat(client, number, heard)
        except Exception as error:
            out[number] = error

    threads = [threading.Thread(target=one, args=(n,)) for n in range(STREAMS)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    return out


@pytest.fixture(scope="module")
def world(tmp_path_factory: pytest.TempPathFactory) -> Iterator[World]:
    """One replica, the gateway, and the undisturbed answers."""
    pytest.importorskip("xllamacpp", reason="the `serve` extra is not installed")
    folder: Path = tmp_path_factory.mktemp("rescue")
    published = folder / "published"
    published.mkdir()
    os.link(smollm_gguf(folder), published / "model.gguf")
    control = Control()
    gangs = Gangs(folder, control)
    ModelStore(open_blobs(gangs.blobs_url), folder / "cache").publish(MODEL, published, source="test")
    try:
        start(gangs, "replica-0")
        client = open_gateway(gangs)
        wait_routed(client, 1)
        yield World(gangs, client, [chat(client, number) for number in range(STREAMS)], "replica-0")
    finally:
        gangs.end()
        control.close()


def test_killed(world: World) -> None:
    world.replicas("replica-1")
    before = world.rescued()
    got = together(world.client, world.gangs.processes[world.first].kill)
    del world.gangs.control.reports[world.first]
    assert got == world.alone
    after = world.rescued()
    assert after["whole"] > before["whole"] and not after["failed"] and not after["impossible"]


def test_stopped_without_a_word(world: World) -> None:
    world.replicas("replica-2")
    process = world.gangs.processes[world.first]
    before = world.rescued()
    try:
        got = together(world.client, lambda: process.send_signal(signal.SIGSTOP))
    finally:
        del world.gangs.control.reports[world.first]
        process.kill()
    assert got == world.alone and world.rescued()["whole"] > before["whole"]


def test_told_to_leave(world: World) -> None:
    """Its answers are let end for a while; those that take longer go on elsewhere, and it ends in order."""
    world.replicas("replica-3")
    process = world.gangs.processes[world.first]
    assert together(world.client, process.terminate) == world.alone
    assert process.wait(10) == 0


def test_kinds_of_answers(world: World) -> None:
    """Each kind loses its replica once; which go on how is in docs/explanation/rescue.md."""
    hello: Any = [{"role": "user", "content": "List ten rivers with their countries."}]
    weather = {
        "name": "weather",
        "parameters": {"type": "object", "properties": {"town": {"type": "string"}}},
    }
    tools: Any = [{"type": "function", "function": weather}]
    asked: Any = {"model": MODEL, "messages": hello, "max_tokens": 80}
    whole_text = world.client.chat.completions.create(**asked, temperature=0).choices[0].message.content
    late = str(whole_text)[100:108]
    kinds: list[tuple[dict[str, Any], bool]] = [
        ({"temperature": 0}, True),
        ({"temperature": 0, "logprobs": True, "top_logprobs": 2}, True),
        ({"temperature": 0, "n": 2}, True),
        ({"temperature": 0, "tools": tools}, True),
        ({"temperature": 0, "response_format": {"type": "json_object"}}, True),
        ({"temperature": 0, "stop": ["Rhine", late]}, True),
        ({"temperature": 0.9}, True),
        ({"temperature": 0.9, "response_format": {"type": "json_object"}}, False),
    ]
    for number, (more, whole) in enumerate(kinds):
        body: Any = {**asked, "stream": True, **more}
        plain = [c.model_dump() for c in world.client.chat.completions.create(**body)]
        world.replicas(f"replica-k{number}")
        stream, begun, busy = amid(world, lambda b=body: world.client.chat.completions.create(**b), 4)
        chunks = [chunk.model_dump() for chunk in begun]
        world.lose(busy)
        if whole:
            chunks += [c.model_dump() for c in stream]
            assert len({c["id"] for c in chunks}) == 1, more
            if not more["temperature"]:
                assert texts(chunks) == texts(plain), more
        else:
            with pytest.raises(openai.APIError, match="cannot go on at another one") as error:
                list(stream)
            assert error.value.code == "rescue_impossible"


def amid(world: World, ask: Callable[[], openai.Stream[Any]], events: int) -> tuple[Any, list[Any], str]:
    """A stream, so many events of it, and the replica that still answers. One that is over by then (what is drawn at
    random may be short, and this process may be held up) is asked for again."""
    for _ in range(10):
        stream = ask()
        begun = list(islice(stream, events))
        for name in (world.first, world.last) * 3:  # what a replica says of itself is a moment old
            if len(begun) == events and running(world.gangs, name):
                return stream, begun, name
            time.sleep(0.02)
        stream.close()
        while any(running(world.gangs, name) for name in (world.first, world.last)):
            time.sleep(0.02)
    raise AssertionError("ten answers were over before their replica could be lost")


def running(gangs: Gangs, name: str) -> bool:
    """Whether the replica has a request."""
    url = gangs.control.reports[name]["url"] + "/metrics"
    text = urllib.request.urlopen(url).read().decode()
    return "llamacpp:requests_processing 0" not in text


def texts(chunks: list[dict[str, Any]]) -> list[Any]:
    """What a stream said, by choice: its text, its calls' arguments, its finish."""
    out: dict[tuple[Any, ...], str] = {}
    for choice in (choice for c in chunks for choice in c["choices"]):
        delta, index = choice["delta"], choice["index"]
        parts = {("content",): delta.get("content"), ("finish",): choice["finish_reason"]}
        for call in delta.get("tool_calls") or ():
            parts[call["index"], "arguments"] = call["function"].get("arguments")
        for name, text in parts.items():
            out[index, *name] = out.get((index, *name), "") + (text or "")
    return sorted((str(key), text) for key, text in out.items() if text)


def test_raw_completion(world: World) -> None:
    body: Any = {"model": MODEL, "prompt": "The river", "max_tokens": 40, "temperature": 0}
    plain = world.client.completions.create(**body)
    world.replicas("replica-c")
    more: Any = {"stream": True, "stream_options": {"include_usage": True}}
    stream, chunks, busy = amid(world, lambda: world.client.completions.create(**body, **more), 4)
    world.lose(busy)
    chunks += list(stream)
    assert "".join(c.choices[0].text for c in chunks if c.choices) == plain.choices[0].text
    usage, expected = chunks[-1].usage, plain.usage
    assert usage is not None and expected is not None
    assert (usage.prompt_tokens, usage.completion_tokens) == (expected.prompt_tokens, 40)


def test_response(world: World) -> None:
    """The endpoints that are made of streams of chats are rescued with them."""
    asked: Any = {"model": MODEL, "input": "List ten rivers.", "temperature": 0, "max_output_tokens": 80}
    plain = world.client.responses.create(**asked)
    world.replicas("replica-r")
    stream, events, busy = amid(world, lambda: world.client.responses.create(**asked, stream=True), 8)
    world.lose(busy)
    events += list(stream)
    said = "".join(e.delta for e in events if e.type == "response.output_text.delta")
    assert said == plain.output_text and events[-1].response.usage.output_tokens == 80
