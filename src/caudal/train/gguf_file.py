"""The GGUF file that llama.cpp reads, written from the same weights and tokenizer as the Hugging Face folder.

Numbers are those of the folder, so that both give the same answers. Needs the `gguf` package; knows nothing of runs.
"""

from __future__ import annotations

import json
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal

import numpy as np
from tokenizers import Tokenizer

from caudal.domain.errors import Failed
from caudal.domain.workload import ModelShape
from caudal.train.data.tokenizer import token_id
from caudal.train.layout import EMBEDDING, HEAD, NORM, NORM_EPSILON, ROPE_THETA, Floats, head_width

PRE_TOKENIZER = "gpt-2"
"""llama.cpp's name for GPT-2's word pattern, which `tokenizers`' ByteLevel uses."""

NORMAL, CONTROL, USER_DEFINED, UNUSED = 1, 3, 4, 5
"""Kinds of tokens, as llama.cpp numbers them (`gguf.TokenType`)."""

_LAYER_NAMES = {
    "input_layernorm": "attn_norm",
    "self_attn.q_proj": "attn_q",
    "self_attn.k_proj": "attn_k",
    "self_attn.v_proj": "attn_v",
    "self_attn.o_proj": "attn_output",
    "post_attention_layernorm": "ffn_norm",
    "mlp.gate_proj": "ffn_gate",
    "mlp.up_proj": "ffn_up",
    "mlp.down_proj": "ffn_down",
}


def gguf_name(name: str) -> str:
    """llama.cpp's name of a Hugging Face tensor."""
    fixed = {EMBEDDING: "token_embd.weight", NORM: "output_norm.weight", HEAD: "output.weight"}
    if name in fixed:
        return fixed[name]
    _, _, layer, rest = name.split(".", 3)
    part, _, kind = rest.rpartition(".")
    return f"blk.{layer}.{_LAYER_NAMES[part]}.{kind}"


def side_by_side(weight: Floats, width: int) -> Floats:
    """Rows of a query or key matrix in llama.cpp's rotary order: it turns neighbours, where Hugging Face
    turns number i with number i + half of a head's `width`."""
    rows, inputs = weight.shape
    halves = weight.reshape(rows // width, 2, width // 2, inputs)
    return np.ascontiguousarray(halves.swapaxes(1, 2)).reshape(rows, inputs)


@dataclass(frozen=True, slots=True)
class Layout:
    """A Llama-layout model in numbers: widths in numbers, `context` in tokens."""

    context: int
    width: int
    layers: int
    ffn_width: int
    heads: int
    kv_heads: int
    head_width: int
    rope_theta: float = ROPE_THETA
    epsilon: float = NORM_EPSILON
    architecture: Literal["llama", "qwen2"] = (
        "llama"  # qwen2: biases, and rotary positions as Hugging Face has them
    )


@dataclass(frozen=True, slots=True)
class Words:
    """A byte-level BPE tokenizer: one token a row of the embedding, each of a kind (`gguf.TokenType`), and the
    chat template. `pre` is llama.cpp's name for how a text is cut first; an id that is None is not written."""

    tokens: list[str]
    kinds: list[int]
    merges: list[str]
    pre: str
    template: str
    eos: int | None
    pad: int | None = None
    bos: int | None = None
    add_bos: bool = False


def write_gguf(
    path: Path,
    name: str,
    shape: ModelShape,
    weights: Mapping[str, Floats],
    tokenizer: Tokenizer,
    template: str,
    end: str,
    licence: str,
) -> None:
    """Write a model of a run's own shape and tokenizer. `weights` are by Hugging Face name. Raises Failed where
    `gguf` is not installed."""
    model = json.loads(tokenizer.to_str())
    special = {token["content"] for token in model["added_tokens"]}
    entries = sorted(tokenizer.get_vocab(with_added_tokens=True).items(), key=lambda item: item[1])
    assert [number for _, number in entries] == list(range(len(entries)))
    words = Words(
        tokens=[token for token, _ in entries],
        kinds=[CONTROL if token in special else NORMAL for token, _ in entries],
        merges=[" ".join(pair) for pair in model["model"]["merges"]],
        pre=PRE_TOKENIZER,
        template=template,
        eos=token_id(tokenizer, end),
        pad=token_id(tokenizer, end),
    )
    layout = Layout(
        context=shape.context,
        width=shape.width,
        layers=shape.layers,
        ffn_width=shape.ffn_width,
        heads=shape.heads,
        kv_heads=shape.kv_heads,
        head_width=head_width(shape),
    )
    write_llama(path, name, layout, words, weights, licence)


def write_llama(
    path: Path,
    name: str,
    layout: Layout,
    words: Words,
    weights: Mapping[str, Floats],
    licence: str,
    dtype: str = "float32",
) -> None:
    """Write a model in the Llama layout or Qwen2's. `weights` are by Hugging Face name, in float32; matrices are written as
    `dtype` (float32, float16, bfloat16), norms as they are. Raises Failed where `gguf` is not installed."""
    try:
        import gguf  # noqa: PLC0415  an optional dependency, needed by this one function
    except ImportError:
        raise Failed(
            "the GGUF file cannot be written",
            why="the package `gguf` is not installed",
            remedy="pip install 'caudal[train]'",
        ) from None
    writer = gguf.GGUFWriter(path, layout.architecture)
    writer.add_name(name)
    if licence:
        writer.add_license(licence)
    kinds = {
        "float32": (gguf.LlamaFileType.ALL_F32, gguf.GGMLQuantizationType.F32),
        "float16": (gguf.LlamaFileType.MOSTLY_F16, gguf.GGMLQuantizationType.F16),
        "bfloat16": (gguf.LlamaFileType.MOSTLY_BF16, gguf.GGMLQuantizationType.BF16),
    }
    file_type, number = kinds[dtype]
    writer.add_file_type(file_type)
    _add_layout(writer, layout)
    _add_words(writer, words)
    for key, weight in weights.items():
        turned = layout.architecture == "llama" and key.endswith(("q_proj.weight", "k_proj.weight"))
        placed = side_by_side(weight, layout.head_width) if turned else weight
        if dtype == "float32" or weight.ndim == 1:
            writer.add_tensor(gguf_name(key), placed)
        else:
            writer.add_tensor(gguf_name(key), gguf.quants.quantize(placed, number), raw_dtype=number)
    writer.write_header_to_file()
    writer.write_kv_data_to_file()
    writer.write_tensors_to_file()
    writer.close()


def _add_layout(writer: Any, layout: Layout) -> None:
    writer.add_context_length(layout.context)
    writer.add_embedding_length(layout.width)
    writer.add_block_count(layout.layers)
    writer.add_feed_forward_length(layout.ffn_width)
    writer.add_head_count(layout.heads)
    writer.add_head_count_kv(layout.kv_heads)
    if layout.head_width * layout.heads != layout.width:
        writer.add_key_length(layout.head_width)
        writer.add_value_length(layout.head_width)
    writer.add_rope_dimension_count(layout.head_width)
    writer.add_rope_freq_base(layout.rope_theta)
    writer.add_layer_norm_rms_eps(layout.epsilon)


def _add_words(writer: Any, words: Words) -> None:
    writer.add_vocab_size(len(words.tokens))
    writer.add_tokenizer_model("gpt2")
    writer.add_tokenizer_pre(words.pre)
    writer.add_token_list(words.tokens)
    writer.add_token_types(words.kinds)
    writer.add_token_merges(words.merges)
    if words.bos is not None:
        writer.add_bos_token_id(words.bos)
    if words.eos is not None:
        writer.add_eos_token_id(words.eos)
    if words.pad is not None:
        writer.add_pad_token_id(words.pad)
    writer.add_add_bos_token(words.add_bos)
    writer.add_add_eos_token(False)
    if words.template:
        writer.add_chat_template(words.template)
