"""A shape from a size: the usual proportions of a transformer with so many parameters; or from a config.json.

Sizes in parameters. A made-up shape is a guess and whoever uses it says so: its step time is that of the size
(parameters decide), its memory depends on the proportions more.
"""

from __future__ import annotations

import math
import re
from collections.abc import Mapping
from dataclasses import replace
from typing import Any

from caudal.domain.errors import UsageError
from caudal.domain.transformer import Transformer

SIZE = re.compile(r"(?i)^\s*(\d+(?:\.\d+)?)\s*([mbt])\s*$")
SCALE = {"m": 1e6, "b": 1e9, "t": 1e12}
SMALLEST, LARGEST = 1e6, 1e14


def size_of(text: str) -> float | None:
    """Parameters from `70b`, `1.3B`, `350m`, `1t`; None where it is no size."""
    found = SIZE.match(text)
    return float(found[1]) * SCALE[found[2].lower()] if found else None


def shape_of_size(parameters: float, *, gpt: bool = False) -> Transformer:
    """Dense: GPT's proportions (4·h, plain heads), or Llama's (3.5·h, gated, 8 key/value heads).

    Layers and width grow together: width is about 100 times the layers, as in published families.
    """
    if not SMALLEST <= parameters <= LARGEST:
        raise UsageError(
            f"{parameters:g} parameters is no size of a model", remedy="a size like 7b, 350m or 1t"
        )
    vocab = 51200 if gpt else (128256 if parameters > 3e9 else 32000)

    def made(layers: int, hidden: int) -> Transformer:
        heads = max(1, hidden // 128)
        kv = heads if gpt or heads <= 8 or heads % 8 else 8
        ffn = 4 * hidden if gpt else round(3.5 * hidden / 256) * 256
        return Transformer(
            f"{parameters / 1e9:.3g}B", layers, hidden, heads, kv, ffn, vocab, gated=not gpt, tied=gpt,
            source="made from its size",
        )  # fmt: skip

    best = made(2, 128)
    for hidden in range(128, 65536 + 1, 128 if parameters < 3e10 else 512):
        for layers in {max(2, round(hidden / ratio)) for ratio in (64, 80, 100, 128, 150)}:
            candidate = made(layers, hidden)
            usual = abs(math.log(hidden / layers / (100 if hidden < 8192 else 125))) * 0.05
            off = abs(math.log(candidate.parameters / parameters)) + usual
            if (
                off
                < abs(math.log(best.parameters / parameters))
                + abs(math.log(best.hidden / best.layers / (100 if best.hidden < 8192 else 125))) * 0.05
            ):
                best = candidate
    return best


def with_experts_of_size(
    dense: Transformer, total: float, active: float, experts: int | None, top_k: int | None
) -> Transformer:
    """A mixture of experts with so many parameters in all and per token, in the width of its active size."""
    if active >= 0.98 * total:
        return dense
    count = experts or 64
    chosen = top_k or max(1, round(count * active / total / 2))
    if chosen >= count:
        raise UsageError(f"top_k {chosen} of {count} experts", remedy="top_k is less than the experts")
    # What every token passes beside its experts: attention, tables, and shared experts for the rest.
    each = (total - active) / (count - chosen)
    beside = max(0.05 * active, active - chosen * each)

    def base_of(hidden: int) -> Transformer:
        heads = max(1, hidden // 128)
        kv = 8 if heads % 8 == 0 else heads
        layers = max(2, round(hidden / 110))
        return replace(dense, hidden=hidden, heads=heads, kv_heads=kv, layers=layers, gated=True, tied=False)

    def plain(made: Transformer) -> float:
        return made.layers * made.attention_parameters + made.embedding_parameters

    base = min((base_of(hidden) for hidden in range(512, 32769, 256)), key=lambda b: abs(plain(b) - beside))
    width = max(64, round(each / base.layers / (3 * base.hidden) / 64) * 64)
    shared = (beside - plain(base)) / base.layers / (3 * base.hidden)
    return replace(
        base,
        ffn=0,
        experts=count,
        top_k=chosen,
        expert_ffn=width,
        shared_ffn=max(0, round(shared / 64) * 64),
    )


def from_config(config: Mapping[str, Any], name: str = "") -> Transformer:
    """From the fields of a Hugging Face config.json; raises `UsageError` where one is missing or absurd."""
    config = config.get("text_config", config)

    def whole(*keys: str, otherwise: int | None = None) -> int:
        for key in keys:
            value = config.get(key)
            if value is None:
                continue
            if isinstance(value, bool) or not isinstance(value, int) or not 0 <= value <= 10**9:
                raise UsageError(f"{key} is {value!r} in the model's config", remedy="a whole number")
            return value
        if otherwise is None:
            raise UsageError(f"the model's config has no {keys[0]}", remedy="a config.json of a transformer")
        return otherwise

    hidden, layers = (
        whole("hidden_size", "n_embd", "d_model"),
        whole("num_hidden_layers", "n_layer", "n_layers"),
    )
    heads = whole("num_attention_heads", "n_head", "n_heads")
    if not (hidden and layers and heads):
        raise UsageError("hidden size, layers and heads must be at least 1")
    experts = whole("num_local_experts", "n_routed_experts", "num_experts", otherwise=0)
    gpt = config.get("model_type") in (
        "gpt2",
        "gpt_neox",
        "opt",
        "bloom",
        "mpt",
        "falcon",
        "gptj",
        "starcoder2",
    )
    ffn = whole("intermediate_size", "ffn_dim", "n_inner", otherwise=4 * hidden)
    expert_ffn = whole("moe_intermediate_size", otherwise=ffn) if experts else 0
    shared = whole("n_shared_experts", otherwise=0) * expert_ffn
    shared = whole("shared_expert_intermediate_size", otherwise=shared) if experts else 0
    dense = whole("first_k_dense_replace", otherwise=0) if experts else 0
    nope, rope = whole("qk_nope_head_dim", otherwise=0), whole("qk_rope_head_dim", otherwise=0)
    latent = whole("kv_lora_rank", otherwise=0)
    groups = whole("topk_group", otherwise=0) if whole("n_group", otherwise=0) > 1 else 0
    sliding = config.get("sliding_window") if config.get("use_sliding_window", True) else 0
    return Transformer(
        name or str(config.get("model_type", "")), layers, hidden, heads,
        heads if latent else whole("num_key_value_heads", "num_kv_heads", otherwise=heads),
        ffn if not experts or dense else 0, whole("vocab_size"),
        head_dim=nope + rope if latent else whole("head_dim", otherwise=0),
        v_head_dim=whole("v_head_dim", otherwise=0) if latent else 0,
        gated=not gpt, tied=bool(config.get("tie_word_embeddings", gpt)), experts=experts,
        top_k=whole("num_experts_per_tok", "top_k", otherwise=2) if experts else 0, expert_ffn=expert_ffn,
        shared_ffn=shared, dense_layers=dense, q_lora=whole("q_lora_rank", otherwise=0) if latent else 0,
        kv_lora=latent, rope_dim=rope,
        router_groups=groups, window=int(sliding or 0), window_share=1.0 if sliding else 0.0,
        source="config.json",
    )  # fmt: skip
