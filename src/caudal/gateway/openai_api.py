"""What a request must look like: types and ranges of its parameters, checked before a replica is asked.

A body goes to the engine as the client wrote it. Parameters beyond OpenAI's common ones are named in
`Call.extras`: whether the engine knows them is seen when a replica is chosen (engine_dialects.py).
"""

from __future__ import annotations

import re
from collections.abc import Mapping
from typing import Annotated, Any, Literal, TypeVar

import msgspec
from msgspec import Meta, Struct

from caudal.gateway.engine_bounds import EngineParameters, check_arguments, check_schemas
from caudal.gateway.openai_errors import ApiError
from caudal.policy.affinity import prefix_key

T = TypeVar("T")

Unit = Annotated[float, Meta(ge=0, le=1)]
Penalty = Annotated[float, Meta(ge=-2, le=2)]
Count = Annotated[int, Meta(ge=1, le=1_000_000_000)]
Tokens = Annotated[int, Meta(ge=0, le=1_000_000_000)]
Seed = Annotated[int, Meta(ge=-(2**63), le=2**63 - 1)]
TokenId = Annotated[int, Meta(ge=0, le=2**31 - 1)]
Choices = Annotated[int, Meta(ge=1, le=128)]
Stop = Annotated[str, Meta(min_length=1, max_length=1024)]  # an empty one would end every answer at once
Stops = Annotated[list[Stop], Meta(max_length=64)]
Probabilities = Annotated[int, Meta(ge=0, le=20)]

TYPICAL_REPLY_TOKENS = 256
"""What a request counts as generating while it is in flight, where it names no limit."""

BYTES_PER_TOKEN = 4
MAX_CHOICES = 128
MAX_TOOLS = 128
NO_EXTRAS: frozenset[str] = frozenset()


class StreamOptions(Struct):
    """How a stream ends."""

    include_usage: bool | None = None


class Part(Struct):
    """A piece of a turn: text, or what models with eyes and ears take."""

    type: Annotated[str, Meta(min_length=1, max_length=64)]
    text: str | None = None


class Function(Struct):
    """What a tool call calls. `arguments` is JSON in a string; some templates want the object."""

    name: str
    arguments: str | dict[str, Any] = ""


class ToolCall(Struct):
    """A call that the assistant asked for."""

    function: Function
    id: str | None = None
    type: str = "function"


class Message(Struct):
    """One turn of a chat. What is within parts is the engine's business."""

    role: Annotated[str, Meta(min_length=1, max_length=64)]
    content: str | list[Part] | None = None
    name: str | None = None
    tool_calls: list[ToolCall] | None = None
    tool_call_id: str | None = None
    reasoning_content: str | None = None


class Tool(Struct):
    """A function that the model may call. `parameters` is a JSON schema."""

    function: dict[str, Any]
    type: Literal["function"] = "function"


class _Common(Struct, forbid_unknown_fields=True):
    """What both kinds of request have. The last six change nothing in an answer: engines that do not know them
    may get them all the same."""

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
    metadata: dict[str, Any] | None = None
    service_tier: str | None = None
    safety_identifier: str | None = None
    prompt_cache_key: str | None = None
    prompt_cache_retention: str | None = None


class ChatRequest(_Common, kw_only=True):
    """`POST /v1/chat/completions`."""

    messages: Annotated[list[Message], Meta(min_length=1)]
    max_completion_tokens: Count | None = None
    logprobs: bool | None = None
    top_logprobs: Probabilities | None = None
    tools: Annotated[list[Tool], Meta(max_length=MAX_TOOLS)] | None = None
    tool_choice: str | dict[str, Any] | None = None
    parallel_tool_calls: bool | None = None
    response_format: dict[str, Any] | None = None
    store: Literal[False] | None = None


class CompletionRequest(_Common, kw_only=True):
    """`POST /v1/completions`."""

    prompt: str | list[str | TokenId | Annotated[list[TokenId], Meta(min_length=1)]]
    suffix: str | None = None
    echo: bool | None = None
    logprobs: Probabilities | None = None
    best_of: Choices | None = None


class Call(Struct):
    """A request that may be sent to a replica. `tokens` is the most that it may cost, roughly: for routing,
    not for bills; `prompt_tokens` are the prompt's part of them, and `prefix` is the key of its beginning
    (policy/affinity). `prompt_param` is what an error about the prompt's length names. `extras` are parameters
    that not every engine knows; `choices` is how many answers are wanted in one; `traceparent` is what its engine is told
    of the trace that it belongs to (W3C; empty: to none)."""

    path: str
    model: str
    stream: bool
    tokens: int
    body: bytes
    prompt_param: str
    prompt_tokens: int = 0
    prefix: int | None = None
    extras: frozenset[str] = frozenset()
    choices: int = 1
    logprobs: bool = False
    include_usage: bool | None = None  # what the client's stream_options ask for; None: it gave none
    flex: bool = False  # it names OpenAI's tier for those who can wait
    bounded: bool | None = None  # it says how long the reply may get; None: see its body
    traceparent: bytes = b""


class _AnyChat(ChatRequest, forbid_unknown_fields=False):
    """The same with more in it."""


class _AnyCompletion(CompletionRequest, forbid_unknown_fields=False):
    """The same with more in it."""


_CHAT = msgspec.json.Decoder(ChatRequest), msgspec.json.Decoder(_AnyChat)
_COMPLETION = msgspec.json.Decoder(CompletionRequest), msgspec.json.Decoder(_AnyCompletion)
_ENGINE = msgspec.json.Decoder(EngineParameters)
_ANYTHING = msgspec.json.Decoder()
_WRONG = (msgspec.DecodeError, UnicodeDecodeError, RecursionError)
_NAMES = msgspec.json.Decoder(dict[str, msgspec.Raw])
_AT = re.compile(r" - at `\$\.?(?P<path>.*)`$")
_FIELD = re.compile(r"missing required field `(?P<field>\w+)`")


def parse_chat(body: bytes) -> Call:
    """Check a chat request. Raises ApiError, 400."""
    extras = NO_EXTRAS
    try:
        request = _CHAT[0].decode(body)
    except _WRONG:
        request, extras = _read_more(_CHAT, body)
    if request.response_format is not None:
        check_schemas(request.response_format, "response_format")
    tools = request.tools is not None
    for message in request.messages:
        if message.tool_calls:
            tools = True
    if tools:
        check_turns(request.messages, request.tools)
    if request.max_tokens == 0:
        raise ApiError(400, "invalid_value", "Invalid value for 'max_tokens': 1 or more.", param="max_tokens")
    reply = request.max_completion_tokens or request.max_tokens or TYPICAL_REPLY_TOKENS
    return _call("/v1/chat/completions", request, reply, body, "messages", extras, bool(request.logprobs))


def check_turns(messages: list[Message], tools: list[Tool] | None) -> None:
    """What a chat template is given. Raises ApiError, 400."""
    if tools is not None:
        check_schemas([tool.function for tool in tools], "tools")
    for index, message in enumerate(messages):
        for call in message.tool_calls or ():
            if isinstance(call.function.arguments, str):
                check_arguments(call.function.arguments, f"messages[{index}].tool_calls")


def parse_completion(body: bytes) -> Call:
    """Check a completion request. Raises ApiError, 400."""
    extras = NO_EXTRAS
    try:
        request = _COMPLETION[0].decode(body)
    except _WRONG:
        request, extras = _read_more(_COMPLETION, body)
    reply = TYPICAL_REPLY_TOKENS if request.max_tokens is None else request.max_tokens
    meant = {
        "suffix": bool(request.suffix),
        "echo": bool(request.echo),
        "best_of": (request.best_of or 1) > (request.n or 1),
        "max_tokens=0": request.max_tokens == 0,
    }
    extras |= {name for name, given in meant.items() if given}
    prompts = (
        len(request.prompt) if isinstance(request.prompt, list) and several_prompts(request.prompt) else 1
    )
    if prompts == 0:
        raise ApiError(400, "invalid_value", "Invalid value for 'prompt': it is empty.", param="prompt")
    return _call(
        "/v1/completions", request, reply, body, "prompt", extras, request.logprobs is not None, prompts
    )


def several_prompts(prompt: list[Any]) -> bool:
    """Whether it is a list of prompts, not one prompt in tokens."""
    return not (prompt and isinstance(prompt[0], int))


def _call(
    path: str,
    request: _Common,
    reply: int,
    body: bytes,
    prompt_param: str,
    extras: frozenset[str],
    logprobs: bool,
    prompts: int = 1,
) -> Call:
    if request.stream_options is not None and not request.stream:
        message = "The 'stream_options' parameter is only allowed when 'stream' is enabled."
        raise ApiError(400, "invalid_value", message, param="stream_options")
    choices = (request.n or 1) * prompts
    if choices > MAX_CHOICES:
        message = f"A request asks for at most {MAX_CHOICES} choices (n times the number of prompts)."
        raise ApiError(400, "invalid_value", message, param="n")
    prompt_tokens = len(body) // BYTES_PER_TOKEN
    options = request.stream_options
    return Call(
        path,
        request.model,
        bool(request.stream),
        prompt_tokens + reply * choices,
        body,
        prompt_param,
        prompt_tokens,
        prefix_key(body),
        extras,
        choices,
        logprobs,
        None if options is None else bool(options.include_usage),
        request.service_tier == "flex",
        True if request.max_tokens is not None else None,
    )


def _read_more(
    decoders: tuple[msgspec.json.Decoder[T], msgspec.json.Decoder[Any]], body: bytes
) -> tuple[T, frozenset[str]]:
    """The request, and the names of its parameters that are not common: a second look, which most requests are
    spared. Raises ApiError, 400, where that is not all that is wrong with it."""
    request: T = decode(decoders[1], body)
    names = decode(_NAMES, body)
    extras = frozenset(names) - frozenset(type(request).__struct_fields__)  # type: ignore[attr-defined]
    _check_extras(names, extras, body)
    return request, extras


def _check_extras(names: Mapping[str, msgspec.Raw], extras: frozenset[str], body: bytes) -> None:
    decode(_ENGINE, body).check(names)
    for name in extras:
        decode(_ANYTHING, bytes(names[name]))
    if "json_schema" in extras:
        check_schemas(msgspec.json.decode(names["json_schema"]), "json_schema")


def decode(decoder: msgspec.json.Decoder[T], body: bytes) -> T:
    """A body as what it must be. Raises ApiError, 400, with the parameter that is wrong."""
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
