"""How tokenizers cut a text before byte-level BPE: Hugging Face's description and llama.cpp's name of the same.

A GGUF holds the name only, a tokenizer.json the description only; what is not in this table is refused, not
guessed: a model that is served with other words than it was trained on gets worse without a sign of it. The names:
llama.cpp, src/llama-vocab.cpp (2026-11); the patterns: the tokenizer.json files of the models they are called after.
"""

from __future__ import annotations

from typing import Any

_BYTES = {"type": "ByteLevel", "add_prefix_space": False, "trim_offsets": True, "use_regex": True}
_BYTES_ONLY = {"type": "ByteLevel", "add_prefix_space": False, "trim_offsets": True, "use_regex": False}
_LLAMA_3 = (
    r"(?i:'s|'t|'re|'ve|'m|'ll|'d)|[^\r\n\p{L}\p{N}]?\p{L}+|\p{N}{1,3}| ?[^\s\p{L}\p{N}]+[\r\n]*|\s*[\r\n]+|"
    r"\s+(?!\S)|\s+"
)
_QWEN_2 = (
    r"(?i:'s|'t|'re|'ve|'m|'ll|'d)|[^\r\n\p{L}\p{N}]?\p{L}+|\p{N}| ?[^\s\p{L}\p{N}]+[\r\n]*|\s*[\r\n]+|"
    r"\s+(?!\S)|\s+"
)


def _sequence(first: dict[str, Any], then: dict[str, Any]) -> dict[str, Any]:
    return {"type": "Sequence", "pretokenizers": [first, then]}


def _split(pattern: str) -> dict[str, Any]:
    cut = {"type": "Split", "pattern": {"Regex": pattern}, "behavior": "Isolated", "invert": False}
    return _sequence(cut, _BYTES_ONLY)


PRE_TOKENIZERS: dict[str, dict[str, Any]] = {
    "gpt-2": _BYTES,
    "smollm": _sequence({"type": "Digits", "individual_digits": True}, _BYTES),
    "llama-bpe": _split(_LLAMA_3),
    "qwen2": _split(_QWEN_2),
}


def name_of(pre_tokenizer: Any) -> str:
    """llama.cpp's name of a tokenizer.json's `pre_tokenizer`; empty where it is none that is known."""
    for name, known in PRE_TOKENIZERS.items():
        if _plain(pre_tokenizer) == _plain(known):
            return name
    return ""


def _plain(value: Any) -> Any:
    """Without what changes offsets only."""
    if isinstance(value, dict):
        return {key: _plain(inner) for key, inner in value.items() if key != "trim_offsets"}
    return [_plain(inner) for inner in value] if isinstance(value, list) else value
