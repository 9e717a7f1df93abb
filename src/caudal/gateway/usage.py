"""What an answer used: asked of the engine for every stream, taken out of what it says, hidden where the client
did not ask for it. Knows whole events and whole bodies only; a stream is cut into events before it comes here.
"""

from __future__ import annotations

import re
from dataclasses import dataclass
from typing import Annotated, Any

import msgspec

from caudal.domain.key import Usage
from caudal.gateway import wire
from caudal.gateway.openai_api import BYTES_PER_TOKEN

ASK = b',"stream_options":{"include_usage":true}'
_OBJECT = re.compile(rb'"usage"\s*:\s*(\{(?:[^{}]|\{[^{}]*\})*\})')


Count = Annotated[int, msgspec.Meta(ge=0)]


class _Details(msgspec.Struct):
    cached_tokens: Count | None = None


class _Plain(msgspec.Struct):
    """A `usage` object as nearly all engines write it."""

    prompt_tokens: Count = 0
    completion_tokens: Count = 0
    prompt_tokens_details: _Details | None = None


_PLAIN = msgspec.json.Decoder(_Plain)


@dataclass(slots=True)  # never changed; `frozen` would cost half a microsecond per request
class Measured:
    """The tokens of one answer. Not `exact`: counted here, because the engine was not heard to the end."""

    usage: Usage
    exact: bool = True


def total(usage: Usage) -> int:
    """Tokens of prompt and reply."""
    return usage.prompt_tokens + usage.completion_tokens


def asking_usage(body: bytes, asked: bool | None) -> bytes:
    """A streamed request's body that makes the engine say at the end what it used. `asked` is the client's
    own `include_usage`, None where it gave no stream_options: then its bytes are kept, and some are put in
    before the last brace."""
    if asked:
        return body
    if asked is None and b'"stream_options"' not in body:
        cut = body.rindex(b"}")
        return b"%b%b%b" % (body[:cut], ASK, body[cut:])
    decoded = msgspec.json.decode(body)
    decoded["stream_options"] = {**(decoded.get("stream_options") or {}), "include_usage": True}
    return msgspec.json.encode(decoded)


def usage_of(body: bytes) -> Usage | None:
    """What a whole answer says it used; None where it does not say. Quotes within its text are escaped, so
    that the name with its brace is found in the answer's own object only; the last one counts."""
    if wire.BUILT:
        counts = wire.usage_counts(body)
        if counts is not None:
            return Usage(*counts)
    start = body.rfind(b'"usage"')
    found = _OBJECT.match(body, start) if start >= 0 else None
    if found is None:
        return None
    try:
        said = _PLAIN.decode(found[1])
    except msgspec.ValidationError:
        return _strange(found[1])
    except (msgspec.DecodeError, UnicodeDecodeError, RecursionError):
        return None
    details = said.prompt_tokens_details
    cached = (details.cached_tokens or 0) if details is not None else 0
    return Usage(said.prompt_tokens, said.completion_tokens, cached)


def _strange(said: bytes) -> Usage | None:
    """Of an object that is not written as nearly all are."""
    try:
        return _usage(msgspec.json.decode(said))
    except (msgspec.DecodeError, UnicodeDecodeError, RecursionError):
        return None


def measured(said: Any) -> Measured | None:
    """A decoded `usage` object; None where it is not one."""
    usage = _usage(said)
    return Measured(usage) if usage is not None else None


def _usage(said: Any) -> Usage | None:
    if not isinstance(said, dict):
        return None
    details = said.get("prompt_tokens_details")
    cached = details.get("cached_tokens") if isinstance(details, dict) else 0
    counts = [said.get("prompt_tokens", 0), said.get("completion_tokens", 0), cached or 0]
    if not all(isinstance(count, int) and count >= 0 for count in counts):
        return None
    return Usage(*counts)


def usage_object(usage: Usage) -> dict[str, Any]:
    """The same as OpenAI writes it."""
    return {
        "completion_tokens": usage.completion_tokens,
        "prompt_tokens": usage.prompt_tokens,
        "total_tokens": usage.prompt_tokens + usage.completion_tokens,
        "prompt_tokens_details": {"cached_tokens": usage.cached_tokens},
    }


def estimated(body_bytes: int, events: int) -> Measured:
    """Of an answer that was not heard to its end: a token per event, and the prompt by its length. Nothing
    where nothing had come."""
    prompt = body_bytes // BYTES_PER_TOKEN if events else 0
    return Measured(Usage(prompt, events), exact=False)


class UsageTap:
    """Sees a stream's events pass, keeps what they say was used, and takes out the event that says nothing
    else where the client did not ask for it. A chunk without the word costs one search for it."""

    def __init__(self, *, swallow: bool) -> None:
        self.measured: Measured | None = None
        self._swallow = swallow

    def feed(self, events: bytes) -> bytes:
        """Whole events in; what the client gets out."""
        if b'"usage"' not in events or _OBJECT.search(events) is None:
            return events
        kept: list[bytes] = []
        hidden = False
        for line in events.splitlines(keepends=True):
            if not (hidden and not line.strip()):  # an event's empty line goes with it
                hidden = self._hidden(line)
                if not hidden:
                    kept.append(line)
        return b"".join(kept) if self._swallow else events

    def _hidden(self, line: bytes) -> bool:
        if not line.startswith(b"data:") or b'"usage"' not in line:
            return False
        try:
            event = msgspec.json.decode(line[5:])
        except (msgspec.DecodeError, UnicodeDecodeError, RecursionError):
            return False
        if not isinstance(event, dict):
            return False
        self.measured = measured(event.get("usage")) or self.measured
        return self._swallow and event.get("choices") == [] and self.measured is not None
