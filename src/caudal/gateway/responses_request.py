"""`POST /v1/responses` as a chat: what is asked, and the messages that it becomes.

A response is OpenAI's newer shape of a chat: items instead of messages, `instructions` instead of a system
turn, and a conversation that may be continued by the id of its last response. Pure.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Annotated, Any, Literal

import msgspec
from msgspec import Meta, Struct

from caudal.gateway.openai_api import MAX_TOOLS, Call, Count, Probabilities, Unit, decode, parse_chat
from caudal.gateway.openai_errors import ApiError

Item = dict[str, Any]

MAX_ITEMS = 10_000
LOGPROBS = "message.output_text.logprobs"
REFUSED = {
    "background": "this gateway answers while the client waits: leave out 'background', or use 'stream'",
    "conversation": "conversations are not kept here: use 'previous_response_id'",
    "prompt": "prompt templates are not kept here: send 'instructions' and 'input'",
    "max_tool_calls": "tools are run by the client, which may count its own calls",
}


class TextOptions(Struct):
    """What the text must look like: `format` is `text`, `json_object` or `json_schema`."""

    format: dict[str, Any] | None = None
    verbosity: str | None = None


class Reasoning(Struct):
    """How long to think; only `effort` reaches the engine."""

    effort: str | None = None
    summary: str | None = None
    generate_summary: str | None = None


class StreamOptions(Struct):
    """`include_obfuscation` pads OpenAI's events; there is no padding here."""

    include_obfuscation: bool | None = None


class ResponseRequest(Struct, forbid_unknown_fields=True):
    """The body. `truncation` `auto` would drop the beginning of a conversation silently; it is refused."""

    model: str
    input: str | Annotated[list[Item], Meta(min_length=1, max_length=MAX_ITEMS)]
    instructions: str | None = None
    previous_response_id: Annotated[str, Meta(max_length=128)] | None = None
    store: bool | None = None
    stream: bool | None = None
    stream_options: StreamOptions | None = None
    max_output_tokens: Count | None = None
    temperature: Annotated[float, Meta(ge=0, le=2)] | None = None
    top_p: Unit | None = None
    top_logprobs: Probabilities | None = None
    tools: Annotated[list[Item], Meta(max_length=MAX_TOOLS)] | None = None
    tool_choice: str | Item | None = None
    parallel_tool_calls: bool | None = None
    text: TextOptions | None = None
    reasoning: Reasoning | None = None
    include: list[str] | None = None
    metadata: Annotated[dict[str, str], Meta(max_length=16)] | None = None
    truncation: Literal["disabled"] | None = None
    user: str | None = None
    service_tier: str | None = None
    safety_identifier: str | None = None
    prompt_cache_key: str | None = None
    prompt_cache_retention: str | None = None
    background: bool | None = None
    conversation: Any = None
    prompt: Any = None
    max_tool_calls: int | None = None


@dataclass(frozen=True, slots=True)
class Asked:
    """A request as it was understood: `items` is its own input."""

    request: ResponseRequest
    items: list[Item]


_REQUEST = msgspec.json.Decoder(ResponseRequest)


def parse_response(body: bytes) -> Asked:
    """Check a request. Raises ApiError, 400."""
    request = decode(_REQUEST, body)
    for name, why in REFUSED.items():
        if getattr(request, name) not in (None, False):
            raise ApiError(400, "unsupported_parameter", f"'{name}' is not supported: {why}.", param=name)
    given = request.input
    items = [{"type": "message", "role": "user", "content": given}] if isinstance(given, str) else given
    return Asked(request, [{"type": "message", **item} if "role" in item else item for item in items])


def to_chat(asked: Asked, before: list[Item]) -> Call:
    """The chat to send, with the items of the conversation before it. Raises ApiError, 400."""
    request = asked.request
    messages: list[Item] = []
    if request.instructions:
        messages.append({"role": "system", "content": request.instructions})
    for index, item in enumerate([*before, *asked.items]):
        _add(messages, item, index - len(before))
    chat: dict[str, Any] = {"model": request.model, "messages": messages, "stream": bool(request.stream)}
    if request.stream:
        chat["stream_options"] = {"include_usage": True}
    for name in ("temperature", "top_p", "parallel_tool_calls", "user", "safety_identifier"):
        if getattr(request, name) is not None:
            chat[name] = getattr(request, name)
    if request.max_output_tokens is not None:
        chat["max_completion_tokens"] = request.max_output_tokens
    if LOGPROBS in (request.include or ()) or request.top_logprobs:
        chat |= {"logprobs": True, "top_logprobs": request.top_logprobs or 0}
    if request.reasoning is not None and request.reasoning.effort is not None:
        chat["reasoning_effort"] = request.reasoning.effort
    if request.tools:
        chat["tools"] = [_tool(tool, i) for i, tool in enumerate(request.tools)]
        if request.tool_choice is not None:
            chat["tool_choice"] = _tool_choice(request.tool_choice)
    if request.text is not None and request.text.format is not None:
        chat["response_format"] = _format(request.text.format)
    try:
        return msgspec.structs.replace(parse_chat(msgspec.json.encode(chat)), prompt_param="input")
    except ApiError as error:
        error.param = _PARAMS.get(error.param or "", error.param)
        raise


_PARAMS = {
    "messages": "input",
    "response_format": "text.format",
    "max_completion_tokens": "max_output_tokens",
}


def _add(messages: list[Item], item: Item, index: int) -> None:
    """Add an item as a message, or to the one before it. Items of the past have a negative index."""
    kind = item.get("type")
    at = f"input[{index}]"
    if kind == "message":
        messages.append({"role": _role(item, at), "content": _content(item.get("content"), at)})
    elif kind == "function_call":
        if not isinstance(item.get("call_id"), str) or not isinstance(item.get("name"), str):
            raise _wrong(at, "a function_call has a 'call_id' and a 'name'")
        function = {"name": item["name"], "arguments": item.get("arguments") or ""}
        call = {"id": item["call_id"], "type": "function", "function": function}
        if not messages or messages[-1]["role"] != "assistant":
            messages.append({"role": "assistant", "content": None})
        messages[-1].setdefault("tool_calls", []).append(call)
    elif kind == "function_call_output":
        if not isinstance(item.get("call_id"), str):
            raise _wrong(at, "a function_call_output has a 'call_id'")
        said = _content(item.get("output"), at)
        messages.append({"role": "tool", "tool_call_id": item["call_id"], "content": said})
    elif kind != "reasoning":  # what the model thought is not told again, as its makers advise
        raise _wrong(at, f"items of the type {str(kind)[:100]!r} are not supported")


def _role(item: Item, at: str) -> str:
    role = item.get("role")
    if role not in ("user", "assistant", "system", "developer"):
        raise _wrong(at, "the role is user, assistant, system or developer")
    return "system" if role == "developer" else role


def _content(content: Any, at: str) -> Any:
    """Text as a string where it is nothing but text, which every template can read."""
    if isinstance(content, str):
        return content
    if not isinstance(content, list) or not all(isinstance(part, dict) for part in content):
        raise _wrong(at, "the content is a string or a list of parts")
    parts = [_part(part, at) for part in content]
    if all(part["type"] == "text" for part in parts):
        return "".join(part["text"] for part in parts)
    return parts


def _part(part: Item, at: str) -> Item:
    kind = part.get("type")
    text = part.get("refusal" if kind == "refusal" else "text")
    if kind in ("input_text", "output_text", "refusal", "text") and isinstance(text, str):
        return {"type": "text", "text": text}
    if kind == "input_image" and isinstance(part.get("image_url"), str):
        url = {"url": part["image_url"]}
        return {"type": "image_url", "image_url": url}
    raise _wrong(at, f"parts of the type {str(kind)[:100]!r} are not supported, or lack their text")


def _tool(tool: Item, index: int) -> Item:
    name = tool.get("name")
    if tool.get("type") != "function" or not isinstance(name, str):
        message = "only tools of the type 'function', with a name, are supported"
        raise ApiError(400, "invalid_value", f"Invalid value for 'tools[{index}]': {message}.", param="tools")
    function = {
        k: tool[k] for k in ("name", "description", "parameters", "strict") if tool.get(k) is not None
    }
    return {"type": "function", "function": function}


def _tool_choice(choice: str | Item) -> str | Item:
    if isinstance(choice, str):
        return choice
    if choice.get("type") != "function" or not isinstance(choice.get("name"), str):
        message = "Invalid value for 'tool_choice': it is none, auto, required, or names a function."
        raise ApiError(400, "invalid_value", message, param="tool_choice")
    return {"type": "function", "function": {"name": choice["name"]}}


def _format(given: Item) -> Item:
    if given.get("type") != "json_schema":
        return given
    inner = {k: given[k] for k in ("name", "description", "schema", "strict") if given.get(k) is not None}
    return {"type": "json_schema", "json_schema": inner}


def _wrong(at: str, what: str) -> ApiError:
    return ApiError(400, "invalid_value", f"Invalid value for '{at}': {what}.", param=at)
