"""The GGUF file that llama.cpp reads, written from the same weights and tokenizer as the Hugging Face folder.

Everything is float32, so that both give the same answers. Needs the `gguf` package; knows nothing of runs.
"""

from __future__ import annotations

import json
from collections.abc import Mapping
from pathlib import Path

import numpy as np
from tokenizers import Tokenizer

from caudal.domain.errors import Failed
from caudal.domain.workload import ModelShape
from caudal.train.data.tokenizer import token_id
from caudal.train.layout import EMBEDDING, HEAD, NORM, NORM_EPSILON, ROPE_THETA, Floats, head_width

PRE_TOKENIZER = "gpt-2"
"""llama.cpp's name for GPT-2's word pattern, which `tokenizers`' ByteLevel uses."""

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
    return f"blk.{layer}.{_LAYER_NAMES[rest.removesuffix('.weight')]}.weight"


def side_by_side(weight: Floats, width: int) -> Floats:
    """Rows of a query or key matrix in llama.cpp's rotary order: it turns neighbours, where Hugging Face
    turns number i with number i + half of a head's `width`."""
    rows, inputs = weight.shape
    halves = weight.reshape(rows // width, 2, width // 2, inputs)
    return np.ascontiguousarray(halves.swapaxes(1, 2)).reshape(rows, inputs)


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
    """Write the file. `weights` are by Hugging Face name. Raises Failed where `gguf` is not installed."""
    try:
        import gguf  # noqa: PLC0415  an optional dependency, needed by this one function
    except ImportError:
        raise Failed(
            "the GGUF file cannot be written",
            why="the package `gguf` is not installed",
            remedy="pip install 'caudal[train]'",
        ) from None
    writer = gguf.GGUFWriter(path, "llama")
    writer.add_name(name)
    if licence:
        writer.add_license(licence)
    writer.add_file_type(gguf.LlamaFileType.ALL_F32)
    writer.add_context_length(shape.context)
    writer.add_embedding_length(shape.width)
    writer.add_block_count(shape.layers)
    writer.add_feed_forward_length(shape.ffn_width)
    writer.add_head_count(shape.heads)
    writer.add_head_count_kv(shape.kv_heads)
    writer.add_rope_dimension_count(head_width(shape))
    writer.add_rope_freq_base(ROPE_THETA)
    writer.add_layer_norm_rms_eps(NORM_EPSILON)
    model = json.loads(tokenizer.to_str())
    special = {token["content"] for token in model["added_tokens"]}
    entries = sorted(tokenizer.get_vocab(with_added_tokens=True).items(), key=lambda item: item[1])
    assert [number for _, number in entries] == list(range(len(entries)))
    writer.add_vocab_size(len(entries))
    writer.add_tokenizer_model("gpt2")
    writer.add_tokenizer_pre(PRE_TOKENIZER)
    writer.add_token_list([token for token, _ in entries])
    kinds = (gguf.TokenType.NORMAL, gguf.TokenType.CONTROL)
    writer.add_token_types([int(kinds[token in special]) for token, _ in entries])
    writer.add_token_merges([" ".join(pair) for pair in model["model"]["merges"]])
    writer.add_eos_token_id(token_id(tokenizer, end))
    writer.add_pad_token_id(token_id(tokenizer, end))
    writer.add_add_bos_token(False)
    writer.add_add_eos_token(False)
    writer.add_chat_template(template)
    for key, weight in weights.items():
        turned = key.endswith(("q_proj.weight", "k_proj.weight"))
        writer.add_tensor(gguf_name(key), side_by_side(weight, head_width(shape)) if turned else weight)
    writer.write_header_to_file()
    writer.write_kv_data_to_file()
    writer.write_tensors_to_file()
    writer.close()
