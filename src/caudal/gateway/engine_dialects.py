"""Which parameters the engines know beyond OpenAI's common ones, and how each is asked to tokenise.

What an engine does not know it either ignores without a word (llama.cpp) or warns of in a log that no client
sees; both mislead the client, so the gateway refuses it instead. Knows nothing of values: those are checked in
openai_api.py. An engine that is not listed gets everything.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import msgspec

from caudal.gateway.openai_errors import ApiError

LLAMA_CPP = "llama.cpp"

# fmt: off
_ANY_LOCAL = frozenset((
    "top_k", "min_p", "ignore_eos", "chat_template_kwargs", "continue_final_message", "add_generation_prompt",
))
PARAMETERS: dict[str, frozenset[str]] = {
    # Tried one by one with xllamacpp 2026.10 (2026-11). Left out on purpose, because they are a replica's own
    # business or end its process: id_slot, lora, grammar_triggers, grammar_lazy, preserved_tokens, chat_format,
    # chat_parser, generation_prompt, speculative.*, sse_ping_interval, n_cmpl, response_fields, __verbose.
    LLAMA_CPP: _ANY_LOCAL | {
        "grammar", "json_schema", "typical_p", "top_n_sigma", "xtc_probability", "xtc_threshold",
        "dynatemp_range", "dynatemp_exponent", "repeat_penalty", "repeat_last_n", "dry_multiplier",
        "dry_base", "dry_allowed_length", "dry_penalty_last_n", "dry_sequence_breakers", "mirostat",
        "mirostat_tau", "mirostat_eta", "samplers", "n_probs", "min_keep", "post_sampling_probs", "n_predict",
        "t_max_predict_ms", "cache_prompt", "timings_per_token", "return_tokens", "return_progress",
        "reasoning_format", "reasoning_budget_tokens", "enable_thinking", "parse_tool_calls",
    },
    # https://docs.vllm.ai/en/latest/serving/openai_compatible_server.html (2026-11). Left out: chat_template (a
    # program from the client), kv_transfer_params, request_id, priority, lora and media settings.
    "vllm": _ANY_LOCAL | {
        "repetition_penalty", "length_penalty", "stop_token_ids", "include_stop_str_in_output", "min_tokens",
        "skip_special_tokens", "spaces_between_special_tokens", "truncate_prompt_tokens", "prompt_logprobs",
        "allowed_token_ids", "bad_words", "add_special_tokens", "structured_outputs", "guided_json",
        "guided_regex", "guided_choice", "guided_grammar", "return_tokens_as_token_ids", "return_token_ids",
        "include_reasoning", "reasoning_effort", "documents", "cache_salt", "use_beam_search", "echo",
        "best_of", "max_tokens=0",
    },
    # https://docs.sglang.ai/basic_usage/sampling_params.html (2026-11).
    "sglang": _ANY_LOCAL | {
        "repetition_penalty", "stop_token_ids", "no_stop_trim", "min_tokens", "regex", "ebnf", "json_schema",
        "skip_special_tokens", "spaces_between_special_tokens", "separate_reasoning", "stream_reasoning",
        "reasoning_effort", "echo", "max_tokens=0",
    },
}
# fmt: on


def check_parameters(engine: str, model: str, names: frozenset[str]) -> None:
    """Raises ApiError, 400, where the engine does not know one of them; "" is llama.cpp."""
    known = PARAMETERS.get(engine or LLAMA_CPP)
    unknown = sorted(names - known) if known is not None else []
    if unknown:
        shown = unknown[0][:100]
        message = (
            f"Unrecognized parameter: '{shown}'. The engine of {model!r} ({engine or LLAMA_CPP}) has none."
        )
        raise ApiError(400, "unknown_parameter", message, param=shown)


def fans_out(engine: str) -> bool:
    """Whether several choices are asked for one by one: llama.cpp gives no more of them than it has slots,
    counts the tokens of the first one only, and puts `data: null` before a stream of several prompts."""
    return (engine or LLAMA_CPP) == LLAMA_CPP


@dataclass(frozen=True, slots=True)
class Question:
    """A short request to an engine: its path and body."""

    path: str
    body: bytes


def tokenize_text(engine: str, model: str, text: str) -> Question:
    """Ask for the tokens of a text, special ones of the tokenizer included."""
    if fans_out(engine):
        return _question("/tokenize", content=text, add_special=True, parse_special=True)
    return _question("/tokenize", model=model, prompt=text, add_special_tokens=True)


def render_chat(engine: str, chat: dict[str, Any]) -> Question | None:
    """Ask for a chat as the text that the model would read; None where the engine tokenises chats itself."""
    return _question("/apply-template", **chat) if fans_out(engine) else None


def tokenize_chat(model: str, chat: dict[str, Any]) -> Question:
    """Ask for the tokens of a chat, of an engine that tokenises chats itself."""
    return _question("/tokenize", **{**chat, "model": model, "add_generation_prompt": True})


def detokenize(engine: str, model: str, tokens: list[int]) -> Question:
    """Ask for the text of tokens."""
    if fans_out(engine):
        return _question("/detokenize", tokens=tokens)
    return _question("/detokenize", model=model, tokens=tokens)


def _question(path: str, **body: Any) -> Question:
    return Question(path, msgspec.json.encode(body))
