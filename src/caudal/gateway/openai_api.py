"""What a request must look like: the parameters whose types and ranges are known, checked before a replica
is asked. Parameters that are not listed pass through unseen, as the client wrote them.
"""

from __future__ import annotations

import re
from dataclasses import dataclass
from typing import Annotated, Any, TypeVar

import msgspec
from msgspec import Meta, Struct

from caudal.gateway.openai_errors import ApiError

T = TypeVar("T")

Unit = Annotated[float, Meta(ge=0, le=1)]
Penalty = Annotated[float, Meta(ge=-2, le=2)]
Count = Annotated[int, Meta(ge=1, le=1_000_000_000)]
Tokens = Annotated[int, Meta(ge=0, le=1_000_000_000)]
Seed = Annotated[int, Meta(ge=-(2**63), le=2**63 - 1)]
Choices = Annotated[int, Meta(ge=1, le=128)]
Stop = Annotated[str, Meta(min_length=1, max_length=1024)]  # an empty one would end every answer at once
Stops = Annotated[list[Stop], Meta(max_length=64)]
Window = Annotated[int, Meta(ge=-1, le=65_536)]
Probabilities = Annotated[int, Meta(ge=0, le=20)]

MAX_GRAMMAR_BYTES = 32 * 1024
MAX_GRAMMAR_GROUPS = 1000
"""llama.cpp's grammar parser calls itself for every parenthesis: 50,000 of them end its process
(SIGSEGV, xllamacpp, 2026-11), and with it everybody's answers."""

TYPICAL_REPLY_TOKENS = 256
"""What a request counts as generating while it is in flight, where it names no limit."""

BYTES_PER_TOKEN = 4


class StreamOptions(Struct):
    """How a stream ends."""

    include_usage: bool | None = None


class Message(Struct):
    """One turn of a chat. What is within parts and tool calls is the engine's business."""

    role: Annotated[str, Meta(min_length=1, max_length=64)]
    content: str | list[dict[str, Any]] | None = None
    name: str | None = None
    tool_calls: list[dict[str, Any]] | None = None
    tool_call_id: str | None = None


class _Common(Struct):
    """What both kinds of request have. The last five are llama.cpp's own, known here because without a
    bound one request can take gigabytes of the replica's memory, or end its process."""

    model: str
    stream: bool | None = None
    stream_options: StreamOptions | None = None
    temperature: Annotated[float, Meta(ge=0, le=2)] | None = None
    top_p: Unit | None = None
    n: Choices | None = None
    stop: Stop | Stops | None = None
    max_tokens: Tokens | None = None
    presence_penalty: Penalty | None = None
    frequency_penalty: Penalty | None = None
    logit_bias: dict[str, float] | list[Any] | None = None
    seed: Seed | None = None
    user: str | None = None
    grammar: Annotated[str, Meta(max_length=MAX_GRAMMAR_BYTES)] | None = None
    n_probs: Probabilities | None = None
    repeat_last_n: Window | None = None
    penalty_last_n: Window | None = None
    dry_penalty_last_n: Window | None = None


class ChatRequest(_Common, kw_only=True):
    """`POST /v1/chat/completions`."""

    messages: Annotated[list[Message], Meta(min_length=1)]
    max_completion_tokens: Count | None = None
    logprobs: bool | None = None
    top_logprobs: Probabilities | None = None
    tools: list[dict[str, Any]] | None = None
    tool_choice: str | dict[str, Any] | None = None
    parallel_tool_calls: bool | None = None
    response_format: dict[str, Any] | None = None


class CompletionRequest(_Common, kw_only=True):
    """`POST /v1/completions`."""

    prompt: str | list[str | int | list[int]]
    suffix: str | None = None
    echo: bool | None = None
    logprobs: Probabilities | None = None
    best_of: Choices | None = None


@dataclass(frozen=True, slots=True)
class Call:
    """A request that may be sent to a replica. `tokens` is the most that it may cost, roughly: for routing,
    not for bills. `prompt_param` is what an error about the prompt's length names."""

    path: str
    model: str
    stream: bool
    tokens: int
    body: bytes
    prompt_param: str
    include_usage: bool | None = None  # what the client's stream_options ask for; None: it gave none


_CHAT = msgspec.json.Decoder(ChatRequest)
_COMPLETION = msgspec.json.Decoder(CompletionRequest)
_AT = re.compile(r" - at `\$\.?(?P<path>.*)`$")
_FIELD = re.compile(r"missing required field `(?P<field>\w+)`")


def parse_chat(body: bytes) -> Call:
    """Check a chat request. Raises ApiError, 400."""
    request = _decode(_CHAT, body)
    reply = request.max_completion_tokens or request.max_tokens or TYPICAL_REPLY_TOKENS
    return _call("/v1/chat/completions", request, reply, body, "messages")


def parse_completion(body: bytes) -> Call:
    """Check a completion request. Raises ApiError, 400."""
    request = _decode(_COMPLETION, body)
    reply = TYPICAL_REPLY_TOKENS if request.max_tokens is None else request.max_tokens
    return _call("/v1/completions", request, reply, body, "prompt")


def _call(path: str, request: _Common, reply: int, body: bytes, prompt_param: str) -> Call:
    if request.stream_options is not None and not request.stream:
        message = "The 'stream_options' parameter is only allowed when 'stream' is enabled."
        raise ApiError(400, "invalid_value", message, param="stream_options")
    if request.grammar is not None and request.grammar.count("(") > MAX_GRAMMAR_GROUPS:
        message = f"A grammar has at most {MAX_GRAMMAR_GROUPS} parentheses here."
        raise ApiError(400, "invalid_value", message, param="grammar")
    tokens = len(body) // BYTES_PER_TOKEN + reply * (request.n or 1)
    options = request.stream_options
    usage = None if options is None else bool(options.include_usage)
    return Call(path, request.model, bool(request.stream), tokens, body, prompt_param, usage)


def _decode(decoder: msgspec.json.Decoder[T], body: bytes) -> T:
    try:
        return decoder.decode(body)
    except msgspec.ValidationError as error:
        raise _invalid(str(error)) from None
    except (msgspec.DecodeError, UnicodeDecodeError) as error:
        message = f"The body of the request is not valid JSON: {error}."
        raise ApiError(400, "invalid_json", message) from None
    except RecursionError:
        raise ApiError(400, "invalid_json", "The body of the request is nested too deeply.") from None


def _invalid(text: str) -> ApiError:
    """msgspec's words, with the parameter that they are about as `param`."""
    at = _AT.search(text)
    path = at["path"] if at else ""
    what = text[: at.start()] if at else text
    missing = _FIELD.search(what)
    if missing:
        path = f"{path}.{missing['field']}" if path else missing["field"]
        return ApiError(
            400, "missing_required_parameter", f"Missing required parameter: '{path}'.", param=path
        )
    code = "invalid_type" if what.startswith("Expected `") and ", got" in what else "invalid_value"
    where = f" for '{path}'" if path else ""
    return ApiError(400, code, f"Invalid value{where}: {what.replace('`', '')}.", param=path or None)
