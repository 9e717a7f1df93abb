"""The rescue of a stream, as a state machine: what was said and the next replica's engine in, requests to it and
the bytes that the client gets out. Does no I/O and knows no time.

An answer goes on in one of three ways. Where nothing was said yet, the request is sent as it was. Where the
engine can continue a text, it is given the prompt and what was said. Else, where the answer is a matter of the
request alone (temperature 0, or a seed), it is generated again, and what the client has is left out; if the
second run says something else, that ends the stream. What is left is impossible, and said to be.
"""

from __future__ import annotations

from dataclasses import replace
from typing import Any

import msgspec

from caudal.domain.key import Usage
from caudal.gateway.continuation import CHAT, Begun, Impossible, Plan, Work, dialect
from caudal.gateway.events import NotEvents
from caudal.gateway.openai_api import Call
from caudal.gateway.repeated import Repeated
from caudal.gateway.said import Said, decoded
from caudal.gateway.spanning import SpanningStop
from caudal.gateway.usage import Measured, estimated, measured, usage_object

DONE = b"data: [DONE]\n\n"
CONSTRAINED = ("grammar", "json_schema", "guided_json", "guided_regex", "guided_choice", "guided_grammar",
               "structured_outputs", "regex", "ebnf")  # fmt: skip
LOGPROBS = frozenset({"", "llama.cpp"})
"""The engines whose log probabilities have the same form in both of their APIs."""


class Rescue:
    """One stream that lost its replica; also when it loses the next one."""

    def __init__(self, call: Call, said: Said) -> None:
        self.said = said
        self.measured: Measured | None = None
        self.ended = False  # nothing more is wanted of the replica
        self._call = call
        self._request: dict[str, Any] = msgspec.json.decode(call.body)
        self._envelope = said.envelope
        if "model" in self._envelope:
            self._envelope["model"] = call.model
        self._work = Work()
        self._repeated: Repeated | None = None
        self._spanning = SpanningStop([], "")
        self._heard: Measured | None = None
        self._before = 0

    @property
    def whole(self) -> bool:
        """Whether every choice has its finish, so that nothing is left to generate."""
        return len(self.said.finished) >= (self._request.get("n") or 1) and self.said.complete

    def begin(self, engine: str, model: str) -> Plan:
        """Go on at a replica with this engine, which calls the model so: questions for it, then the work. Raises
        Impossible, at once or between two questions."""
        self.ended = False
        self._heard = self._repeated = None
        self._before = self.said.tokens
        self._work = yield from self._plan(engine, model)
        self.ended = self._work.body is None
        return self._work

    def hear(self, events: bytes) -> bytes:
        """Whole events of the work's answer in; what the client gets of them out. Raises NotEvents where the
        engine fails in them, Impossible where they contradict what was said."""
        out: list[bytes] = []
        for event in decoded(events):
            if event is None:
                self.ended = True
            if event is None or self.ended:
                break
            if "error" in event:
                raise NotEvents("its engine failed within an answer")
            self._heard = measured(event.get("usage")) or self._heard
            for choice in event.get("choices") or ():
                passed = self._choice(choice)
                if passed is not None:
                    out.append(self._chunk([passed]))
        return b"".join(out)

    def end(self) -> bytes:
        """What is still to be sent when the work is done: its finish, its usage, [DONE]."""
        self.measured = self._total()
        if self.said.done:
            return b""
        out = []
        if self._work.finish and not self.said.finished:
            out.append(self._chunk([self._made("", self._work.finish, None)]))
        if self._call.include_usage and not self.said.usage:
            event = {"choices": [], **self._envelope, "usage": usage_object(self.measured.usage)}
            out.append(b"data: %b\n\n" % msgspec.json.encode(event))
        return b"".join([*out, DONE])

    def _plan(self, engine: str, model: str) -> Plan:
        said = self.said
        options = self._request.get("stream_options") or {}
        body = {**self._request, "model": model, "stream_options": {**options, "include_usage": True}}
        if not said.pieces and not said.finished:
            return self._repeat(body)
        why = self._unfit(engine)
        if why and self.whole:
            return Work()
        if not why:
            try:
                return (yield from self._continue(engine, body))
            except Impossible as impossible:
                why = str(impossible)
            except (KeyError, TypeError, ValueError):
                why = "its engine did not answer what was asked of it to go on"
        if not _repeatable(self._request):
            raise Impossible(f"{why}, and without temperature 0 or a seed it cannot be repeated")
        return self._repeat(body)

    def _continue(self, engine: str, body: dict[str, Any]) -> Plan:
        if isinstance(body.get("prompt"), list) and len(body["prompt"]) == 1:
            only = body["prompt"][0]
            body = {**body, "prompt": [only] if isinstance(only, int) else only}
        begun = Begun(self._call.path, body, self.said)
        work = yield from dialect(engine)(begun)
        self._spanning = SpanningStop(_stops(self._request), "".join(begun.pieces))
        return work

    def _repeat(self, body: dict[str, Any]) -> Work:
        self._repeated = Repeated(self.said)
        return Work(self._call.path, body)

    def _unfit(self, engine: str) -> str:
        """Why this answer cannot be continued as a text; empty where it can."""
        request = self._request
        form = request.get("response_format")
        prompt = request.get("prompt")
        tools = request.get("tools") or request.get("functions")
        reasons = (
            ((request.get("n") or 1) > 1 or (request.get("best_of") or 1) > 1, "it has several choices"),
            (isinstance(prompt, list) and len(prompt) > 1 and not isinstance(prompt[0], int),
             "it has several prompts"),
            (bool(request.get("suffix")) or bool(request.get("echo")), "it has a suffix or an echo"),
            (tools and request.get("tool_choice") != "none", "it may call tools"),
            (isinstance(form, dict) and form.get("type") != "text", "its form is prescribed"),
            (any(request.get(name) for name in CONSTRAINED), "its form is prescribed"),
            (any(path not in ("content", "text") for _, path in self.said.pieces), "it has reasoned aloud"),
            (request.get("logprobs") not in (None, False) and engine not in LOGPROBS,
             "it has log probabilities"),
        )  # fmt: skip
        return next((why for applies, why in reasons if applies), "")

    def _choice(self, choice: Any) -> dict[str, Any] | None:
        """A choice of a chunk that came, as the client gets it; None where it has that already."""
        if not isinstance(choice, dict):
            raise NotEvents("an event that is not a chunk of an answer")
        if self._repeated is not None:
            return self._repeated.rest(choice)
        text = choice.get("text")
        if text is None:
            text = (choice.get("delta") or {}).get("content") or ""
        finish = choice.get("finish_reason")
        text, stopped = self._spanning.pass_on(text, last=finish is not None)
        if stopped:
            self.ended, finish = True, "stop"
        if not text and finish is None:
            return None
        return self._made(text, finish, choice.get("logprobs"))

    def _made(self, text: str, finish: str | None, logprobs: Any) -> dict[str, Any]:
        choice: dict[str, Any] = {"index": 0, "finish_reason": finish}
        if self._call.path == CHAT:
            choice["delta"] = {"content": text} if text else {}
        else:
            choice["text"] = text
        return choice if logprobs is None else {**choice, "logprobs": logprobs}

    def _chunk(self, choices: list[dict[str, Any]]) -> bytes:
        """A chunk as the first replica would have made it; what was said grows by it."""
        event = {"choices": choices, **self._envelope}
        self.said.add(event)
        return b"data: %b\n\n" % msgspec.json.encode(event)

    def _total(self) -> Measured:
        """The whole answer's tokens: of the client's prompt, and said by all replicas together."""
        known = measured(self.said.usage)
        if known is not None:
            return known
        heard, work = self._heard, self._work
        if heard is not None and self._repeated is not None:
            return heard
        guess = estimated(len(self._call.body), self.said.tokens)
        before = work.said_tokens
        if work.body is None:
            if work.prompt_tokens is None or before is None:
                return guess
            held = work.finish == "stop" and bool(_stops(self._request))
            return Measured(Usage(work.prompt_tokens, before), exact=not held)
        if before is None or (heard is None and work.prompt_tokens is None):
            return guess
        if heard is None:
            assert work.prompt_tokens is not None
            more = self.said.tokens - self._before
            return Measured(Usage(work.prompt_tokens, before + more), exact=False)
        prompt = heard.usage.prompt_tokens - before if work.prompt_tokens is None else work.prompt_tokens
        before = heard.usage.prompt_tokens - prompt
        total = Usage(prompt, before + heard.usage.completion_tokens, min(prompt, heard.usage.cached_tokens))
        return replace(heard, usage=total, exact=work.exact)


def _repeatable(request: dict[str, Any]) -> bool:
    """Whether the same request gives the same answer."""
    seed = request.get("seed")
    return request.get("temperature") == 0 or (isinstance(seed, int) and seed >= 0)


def _stops(request: dict[str, Any]) -> list[str]:
    stop = request.get("stop")
    return [stop] if isinstance(stop, str) else list(stop or ())
