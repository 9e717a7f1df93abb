"""The GGUF of an exported base, for llama.cpp: where its architecture and tokenizer are known ones.

Reads the exported Hugging Face folder's config.json and tokenizer; what is not known is said and left out, never
approximated.
"""

from __future__ import annotations

import json
from collections.abc import Mapping
from pathlib import Path
from typing import Any, Literal

from tokenizers import Tokenizer

from caudal.train.base.words import name_of
from caudal.train.gguf_file import CONTROL, NORMAL, UNUSED, USER_DEFINED, Layout, Words, write_llama
from caudal.train.layout import Floats

ARCHITECTURES: dict[str, Literal["llama", "qwen2"]] = {
    "LlamaForCausalLM": "llama",
    "Qwen2ForCausalLM": "qwen2",
}
"""transformers' name and llama.cpp's."""


def why_not(folder: Path) -> str:
    """Why no GGUF can be made of a folder; empty where one can."""
    config, tokenizer = _json(folder / "config.json"), _json(folder / "tokenizer.json")
    architecture = (config.get("architectures") or ["nothing"])[0]
    if architecture not in ARCHITECTURES:
        return f"it is written for {' and '.join(ARCHITECTURES)}, and this is {architecture}"
    if config.get("attention_bias") or config.get("mlp_bias"):
        return "its layers have biases, which llama.cpp's Llama has not"
    if config.get("use_sliding_window"):
        return "its attention is a sliding window"
    if config.get("hidden_act", "silu") != "silu":
        return f"its activation is {config['hidden_act']}, llama.cpp's Llama has silu"
    rope = _rope(config)
    if rope.get("rope_type", rope.get("type", "default")) != "default":
        return f"its rotary positions are scaled ({rope.get('rope_type', rope.get('type'))})"
    model = tokenizer.get("model", {})
    if model.get("type") != "BPE" or model.get("byte_fallback") or tokenizer.get("normalizer"):
        return "its tokenizer is not byte-level BPE"
    if not name_of(tokenizer.get("pre_tokenizer")):
        return "the way in which its tokenizer cuts texts is not one that is known here"
    return ""


def write(
    path: Path, name: str, folder: Path, weights: Mapping[str, Floats], licence: str, dtype: str
) -> None:
    """Write the GGUF of a folder that `why_not` says nothing against. `weights` are by Hugging Face name, in
    float32. Raises Failed where `gguf` is not installed."""
    config = _json(folder / "config.json")
    heads = int(config["num_attention_heads"])
    layout = Layout(
        context=int(config["max_position_embeddings"]),
        width=int(config["hidden_size"]),
        layers=int(config["num_hidden_layers"]),
        ffn_width=int(config["intermediate_size"]),
        heads=heads,
        kv_heads=int(config.get("num_key_value_heads") or heads),
        head_width=int(config.get("head_dim") or config["hidden_size"] // heads),
        rope_theta=float(_rope(config).get("rope_theta", config.get("rope_theta", 10_000.0))),
        epsilon=float(config["rms_norm_eps"]),
        architecture=ARCHITECTURES[config["architectures"][0]],
    )
    write_llama(path, name, layout, words_of(folder, int(config["vocab_size"])), weights, licence, dtype)


def words_of(folder: Path, rows: int) -> Words:
    """The folder's tokenizer in llama.cpp's terms, one token for each row of the embedding."""
    tokenizer = Tokenizer.from_file(str(folder / "tokenizer.json"))
    described, said = _json(folder / "tokenizer.json"), _json(folder / "tokenizer_config.json")
    tokens, kinds = [f"[PAD{row}]" for row in range(rows)], [UNUSED] * rows
    for token, number in tokenizer.get_vocab(with_added_tokens=True).items():
        tokens[number], kinds[number] = token, NORMAL
    for token in described.get("added_tokens", []):
        kinds[token["id"]] = CONTROL if token["special"] else USER_DEFINED
    generation = _json(folder / "generation_config.json")
    ids = {
        kind: _id(tokenizer, said.get(f"{kind}_token"), generation.get(f"{kind}_token_id"))
        for kind in ("bos", "eos", "pad")
    }
    begins = tokenizer.encode("a", add_special_tokens=True).ids[:1]
    merges = described["model"]["merges"]
    return Words(
        tokens=tokens,
        kinds=kinds,
        merges=[merge if isinstance(merge, str) else " ".join(merge) for merge in merges],
        pre=name_of(described["pre_tokenizer"]),
        template=template_of(folder),
        eos=ids["eos"],
        pad=ids["pad"],
        bos=ids["bos"],
        add_bos=ids["bos"] is not None and begins == [ids["bos"]],
    )


def template_of(folder: Path) -> str:
    """The chat template of a folder; empty where it has none."""
    file = folder / "chat_template.jinja"
    if file.is_file():
        return file.read_text(encoding="utf-8")
    said = _json(folder / "tokenizer_config.json").get("chat_template")
    return said if isinstance(said, str) else ""


def _id(tokenizer: Tokenizer, named: Any, otherwise: Any) -> int | None:
    """The id of a special token: as tokenizer_config.json names it, or generation_config.json numbers it."""
    name = named.get("content") if isinstance(named, dict) else named
    found = tokenizer.token_to_id(name) if isinstance(name, str) else None
    if found is not None:
        return int(found)
    number = otherwise[0] if isinstance(otherwise, list) and otherwise else otherwise
    return number if isinstance(number, int) else None


def _rope(config: Mapping[str, Any]) -> dict[str, Any]:
    found = config.get("rope_parameters") or config.get("rope_scaling") or {}
    return dict(found)


def _json(path: Path) -> dict[str, Any]:
    if not path.is_file():
        return {}
    value: dict[str, Any] = json.loads(path.read_bytes())
    return value
