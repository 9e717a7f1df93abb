"""Several choices out of requests for one each: `n` above 1, and lists of prompts, where the engine cannot.

Each choice is a generation of its own, with its own replica, retry and rescue. The answers become one: choices
by number, one id, tokens added up (those of a prompt counted once, however many choices it has).
"""

from __future__ import annotations

import asyncio
from collections.abc import Awaitable, Callable
from typing import Any

import msgspec

from caudal.gateway.callers import Caller
from caudal.gateway.exchange import JSON, Exchange
from caudal.gateway.filtered_exchange import EventLines, FilteredExchange, understood
from caudal.gateway.openai_api import Call, several_prompts
from caudal.gateway.openai_errors import ApiError

AT_ONCE = 4
"""So many choices of one request are generated at the same time: others want to be served as well."""

MAX_SEED = 2**63 - 1

Run = Callable[[Exchange, Call, Caller], Awaitable[int]]


class Merged:
    """What the choices have in common. Pure: answers and events in, one answer and its events out."""

    def __init__(self, prompts: int, n: int) -> None:
        self._n = n
        self._head: dict[str, Any] = {}
        self._choices: list[dict[str, Any] | None] = [None] * (prompts * n)
        self._usage: list[dict[str, Any] | None] = [None] * (prompts * n)

    def answer(self, number: int, body: bytes) -> None:
        """The whole answer of one choice."""
        answer = msgspec.json.decode(body)
        self._choices[number] = {**answer["choices"][0], "index": number}
        self._usage[number] = answer.get("usage")
        self._note_head(answer)

    def event(self, number: int, data: bytes) -> bytes:
        """One event of one choice, as an event of the whole; empty where it says nothing to the client."""
        if data == b"[DONE]":
            return b""
        chunk = msgspec.json.decode(data)
        if not isinstance(chunk, dict):
            return b""  # llama.cpp begins some streams with null
        if "error" in chunk:
            return b"data: %b\n\n" % data
        self._note_head(chunk)
        usage = chunk.pop("usage", None)
        if usage is not None:
            self._usage[number] = usage
        chunk |= self._head
        chunk["choices"] = [{**choice, "index": number} for choice in chunk.get("choices") or ()]
        return b"data: %b\n\n" % msgspec.json.encode(chunk) if chunk["choices"] else b""

    def whole(self) -> bytes:
        """The one answer."""
        return msgspec.json.encode({**self._head, "choices": self._choices, "usage": self.usage()})

    def last(self, include_usage: bool) -> bytes:
        """The end of the one stream."""
        if not include_usage:
            return b"data: [DONE]\n\n"
        chunk = {**self._head, "choices": [], "usage": self.usage()}
        return b"data: %b\n\ndata: [DONE]\n\n" % msgspec.json.encode(chunk)

    def usage(self) -> dict[str, Any]:
        """Tokens of all choices."""
        counted = [usage or {} for usage in self._usage]
        prompt = sum(usage.get("prompt_tokens") or 0 for usage in counted[:: self._n])
        reply = sum(usage.get("completion_tokens") or 0 for usage in counted)
        details = [usage.get("prompt_tokens_details") or {} for usage in counted[:: self._n]]
        cached = sum(one.get("cached_tokens") or 0 for one in details)
        return {
            "prompt_tokens": prompt,
            "completion_tokens": reply,
            "total_tokens": prompt + reply,
            "prompt_tokens_details": {"cached_tokens": cached},
        }

    def _note_head(self, answer: dict[str, Any]) -> None:
        if not self._head:
            self._head = {k: answer[k] for k in ("id", "object", "created", "model") if k in answer}


class _Choice(FilteredExchange):
    """Where one choice is answered."""

    __slots__ = ("_lines", "_number", "failed", "outer")

    def __init__(self, outer: _Whole, number: int) -> None:
        super().__init__(outer.client)
        self.outer = outer
        self.failed = False
        self._number = number
        self._lines = EventLines()

    def respond(self, status: int, body: bytes, content_type: bytes = JSON, extra: bytes = b"") -> None:
        understood(self.whole, body)
        self.started = self.finished = True

    def begin(self, status: int, content_type: bytes, extra: bytes = b"") -> None:
        self.started = True
        if not self.inner.started:
            self.inner.begin(status, content_type, extra)

    def send(self, data: bytes) -> None:
        self.outer.send(understood(self.events, data))

    def whole(self, body: bytes) -> bytes:
        self.outer.merged.answer(self._number, body)
        return b""

    def events(self, data: bytes) -> bytes:
        said = self._lines.feed(data)
        self.failed = self.failed or any(one.startswith(b'{"error"') for one in said)
        return b"".join(self.outer.merged.event(self._number, one) for one in said)

    def end(self) -> None:
        self.finished = True


class _Failed(Exception):
    """A choice ended with an error event, and with it all do."""


class _Whole:
    """The client's exchange, and what is said there."""

    def __init__(self, client: Exchange, merged: Merged) -> None:
        self.client = client
        self.merged = merged

    def send(self, data: bytes) -> None:
        """Say it, unless all is said."""
        if data and not self.client.finished:
            self.client.send(data)


async def fan_out(exchange: Exchange, call: Call, run: Run) -> int:
    """Answer the exchange; returns the status. Raises ApiError while nothing was sent."""
    calls, prompts = _single_calls(call)
    merged = Merged(prompts, len(calls) // prompts)
    whole = _Whole(exchange, merged)
    room = asyncio.Semaphore(AT_ONCE)

    async def one(number: int) -> None:
        async with room:
            choice = _Choice(whole, number)
            await run(choice, calls[number], exchange.caller)
            if choice.failed:
                raise _Failed

    failed: list[BaseException] = []
    try:
        async with asyncio.TaskGroup() as group:
            for number in range(len(calls)):
                group.create_task(one(number))
    except* (ApiError, _Failed) as failures:
        failed.extend(failures.exceptions)
    if failed:
        _end_failed(exchange, failed[0])
        return 200
    if call.stream:
        options = msgspec.json.decode(call.body).get("stream_options") or {}
        exchange.send(merged.last(bool(options.get("include_usage"))))
        exchange.end()
    else:
        exchange.respond(200, merged.whole())
    return 200


def _end_failed(exchange: Exchange, failure: BaseException) -> None:
    if not exchange.started:
        assert isinstance(failure, ApiError)
        raise failure
    if isinstance(failure, ApiError):
        exchange.send(failure.event())
    exchange.end()


def _single_calls(call: Call) -> tuple[list[Call], int]:
    """A call for each choice, and how many prompts there are."""
    body = msgspec.json.decode(call.body)
    n = body.pop("n", None) or 1
    prompt = body.get("prompt")
    prompts = prompt if isinstance(prompt, list) and several_prompts(prompt) else [prompt]
    seed = body.get("seed")
    if call.stream:
        body["stream_options"] = {"include_usage": True}
    calls = []
    for index in range(call.choices):
        if prompts[index // n] is not None:
            body["prompt"] = prompts[index // n]
        if seed is not None:
            body["seed"] = min(seed + index % n, MAX_SEED)  # one seed would give one answer n times
        data = msgspec.json.encode(body)
        calls.append(msgspec.structs.replace(call, body=data, choices=1, tokens=call.tokens // call.choices))
    return calls, len(prompts)
