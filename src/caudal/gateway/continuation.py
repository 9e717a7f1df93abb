"""How each engine is made to go on with an answer that another replica began: a table from the engine's name to
its dialect.

A dialect is a generator: it yields questions to ask of the replica (`Ask`), is sent their decoded answers, and
returns the streaming request that continues the answer (`Work`). It does no I/O, and knows nothing of chunks
that come back.

llama.cpp's was made against the real server. vLLM's and SGLang's follow their documentation (2026-11) and are
verified on a fake only.
"""

from __future__ import annotations

from collections.abc import Callable, Generator, Mapping
from dataclasses import dataclass, replace
from typing import Any

from caudal.gateway.said import Said

CHAT = "/v1/chat/completions"
COMPLETIONS = "/v1/completions"

CHAT_ONLY = frozenset((
    "messages", "max_completion_tokens", "logprobs", "top_logprobs", "tools", "tool_choice",
    "parallel_tool_calls", "functions", "function_call", "response_format", "add_generation_prompt",
    "continue_final_message", "chat_template", "chat_template_kwargs", "reasoning_effort",
    "reasoning_format", "n_predict",
))  # fmt: skip
"""Parameters that the raw completion API does not have, or understands in another way."""

TEMPLATE = ("messages", "tools", "tool_choice", "chat_template", "chat_template_kwargs", "reasoning_format",
            "reasoning_effort", "documents")  # fmt: skip
"""Parameters that a prompt may depend on."""

HALF_CHARACTER = 3
"""As many tokens may have been generated of a last character that was not whole, and so was never sent."""


class Impossible(Exception):
    """This answer cannot go on elsewhere, for the reason that is given to its client."""


@dataclass(frozen=True, slots=True)
class Ask:
    """A question to the replica; its answer is one JSON object."""

    path: str
    body: dict[str, Any]


@dataclass(frozen=True, slots=True)
class Work:
    """The streaming request that goes on, or, where `body` is None, nothing is left to generate because of
    `finish`. `prompt_tokens` are those of the client's own prompt, `said_tokens` of what was said; None
    where nobody knows; `exact` says whether the engine's own tokenizer counted them."""

    path: str = ""
    body: dict[str, Any] | None = None
    prompt_tokens: int | None = None
    said_tokens: int | None = None
    finish: str = ""
    exact: bool = True


@dataclass(frozen=True, slots=True)
class Begun:
    """A request and what was said to it. `body` is the client's, decoded, with the engine's model name."""

    path: str
    body: dict[str, Any]
    said: Said

    @property
    def chat(self) -> bool:
        """Whether it is a chat."""
        return self.path == CHAT

    @property
    def pieces(self) -> list[str]:
        """What was said, as it came."""
        return self.said.pieces.get((0, "content" if self.chat else "text"), [])

    @property
    def limit(self) -> int | None:
        """The most tokens that the client wants."""
        for name in ("max_completion_tokens", "max_tokens", "n_predict"):
            value = self.body.get(name)
            if isinstance(value, int) and value > 0:
                return value
        return None


Plan = Generator[Ask, dict[str, Any], Work]


def dialect(engine: str) -> Callable[[Begun], Plan]:
    """How the engine goes on. Raises Impossible for one that cannot."""
    try:
        return DIALECTS[engine]
    except KeyError:
        raise Impossible(f"the engine {engine!r} has no known way to continue an answer") from None


def _llama_cpp(begun: Begun) -> Plan:
    """The prompt through the model's own template, then all of it as token ids. Its chunks have one token
    each, so that tokenizing chunk by chunk gives the ids that were generated; the text as a whole would give
    others wherever the model did not choose the longest ones."""
    prompt: Any = begun.body.get("prompt")
    if begun.chat:
        prompt = (yield Ask("/apply-template", _only(begun.body, TEMPLATE)))["prompt"]
    mixed = prompt if isinstance(prompt, list) else [prompt]
    ids = (yield Ask("/tokenize", {"content": mixed, "add_special": True, "parse_special": True}))["tokens"]
    said = begun.said.token_ids
    if said is None:
        plain = {"content": begun.pieces, "add_special": False, "parse_special": False}
        said = (yield Ask("/tokenize", plain))["tokens"]
    body = _raw(begun)
    if begun.chat and begun.body.get("logprobs"):
        body["logprobs"] = max(1, begun.body.get("top_logprobs") or 0)
    return _work(begun, COMPLETIONS, {**body, "prompt": [*ids, *said]}, len(ids), len(said))


def _vllm(begun: Begun) -> Plan:
    """As llama.cpp's, but its tokenizer is asked for the whole of what was said: chunks may have several
    tokens there."""
    model = _only(begun.body, ("model",))
    prompt: Any = begun.body.get("prompt")
    if begun.chat:
        asked = {**_only(begun.body, (*TEMPLATE, "model")), "add_generation_prompt": True}
        prompt = (yield Ask("/tokenize", asked))["tokens"]
    elif isinstance(prompt, str):
        prompt = (yield Ask("/tokenize", {**model, "prompt": prompt, "add_special_tokens": True}))["tokens"]
    plain = {**model, "prompt": "".join(begun.pieces), "add_special_tokens": False}
    said = (yield Ask("/tokenize", plain))["tokens"]
    return _work(begun, COMPLETIONS, {**_raw(begun), "prompt": [*prompt, *said]}, len(prompt), len(said))


def _sglang(begun: Begun) -> Plan:
    """A chat goes on by its last message, as text: its tokenizer knows no templates."""
    text = "".join(begun.pieces)
    plain = {**_only(begun.body, ("model",)), "prompt": text, "add_special_tokens": False}
    count = int((yield Ask("/tokenize", plain))["count"])
    if not begun.chat:
        return _work(begun, COMPLETIONS, {**begun.body, "prompt": _joined(begun, text)}, None, count)
    messages = [*begun.body["messages"], {"role": "assistant", "content": text}]
    body = {**begun.body, "messages": messages, "continue_final_message": True}
    body.pop("max_completion_tokens", None)
    return _work(begun, CHAT, body, None, count)


def _openai(begun: Begun) -> Plan:
    """Any address of OpenAI's dialect: raw completions only, and tokens are counted by their chunks."""
    if begun.chat:
        raise Impossible("its engine cannot continue an assistant's message")
    yield from ()
    body = {**begun.body, "prompt": _joined(begun, "".join(begun.pieces))}
    return replace(_work(begun, COMPLETIONS, body, None, len(begun.pieces)), exact=False)


def _work(begun: Begun, path: str, body: dict[str, Any], prompt: int | None, said: int) -> Work:
    """The request, with as many tokens less as were said; none where that leaves nothing."""
    finished = begun.said.finished.get(0)
    if finished is not None:
        ended = said + (finished == "stop")  # the end is a token too, and counts
        if finished == "length" and begun.limit is not None and said < begun.limit <= said + HALF_CHARACTER:
            ended = begun.limit
        return Work(prompt_tokens=prompt, said_tokens=ended, finish=finished)
    if begun.limit is not None:
        body["max_tokens"] = begun.limit - said
        if body["max_tokens"] <= 0:
            return Work(prompt_tokens=prompt, said_tokens=said, finish="length")
    return Work(path, body, prompt, said)


def _raw(begun: Begun) -> dict[str, Any]:
    dropped = CHAT_ONLY if begun.chat else frozenset({"prompt", "n_predict"})
    return {k: v for k, v in begun.body.items() if k not in dropped}


def _joined(begun: Begun, text: str) -> Any:
    prompt = begun.body["prompt"]
    if isinstance(prompt, str):
        return prompt + text
    raise Impossible("its prompt is token ids, and its engine does not tell those of the answer")


def _only(body: dict[str, Any], names: tuple[str, ...]) -> dict[str, Any]:
    return {name: body[name] for name in names if name in body}


DIALECTS: Mapping[str, Callable[[Begun], Plan]] = {
    "": _llama_cpp,
    "llama.cpp": _llama_cpp,
    "vllm": _vllm,
    "sglang": _sglang,
    "openai": _openai,
}
