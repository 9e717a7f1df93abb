"""A tiny random BERT as a GGUF file: a model that embeds texts and cannot generate any."""

from __future__ import annotations

from pathlib import Path

import gguf
import numpy as np

WORDS = [
    "[PAD]",
    "[UNK]",
    "[CLS]",
    "[SEP]",
    "[MASK]",
    *(f"▁{word}" for word in ("hello", "the", "cat", "year")),
]
WIDTH, LAYERS, CONTEXT = 32, 2, 128


def write_bert(path: Path) -> Path:
    """The file."""
    writer = gguf.GGUFWriter(path, "bert")
    writer.add_name("tiny bert")
    writer.add_context_length(CONTEXT)
    writer.add_embedding_length(WIDTH)
    writer.add_feed_forward_length(2 * WIDTH)
    writer.add_head_count(4)
    writer.add_block_count(LAYERS)
    writer.add_layer_norm_eps(1e-12)
    writer.add_causal_attention(False)
    writer.add_pooling_type(gguf.PoolingType.MEAN)
    writer.add_file_type(gguf.LlamaFileType.ALL_F32)
    writer.add_tokenizer_model("bert")
    writer.add_token_list(WORDS)
    writer.add_token_types([3] * 5 + [1] * (len(WORDS) - 5))
    writer.add_token_type_count(2)
    writer.add_pad_token_id(0)
    writer.add_unk_token_id(1)
    writer.add_bos_token_id(2)
    writer.add_sep_token_id(3)
    writer.add_mask_token_id(4)
    writer.add_eos_token_id(3)
    numbers = np.random.default_rng(5)
    for key, shape in _shapes().items():
        norm = key.endswith("norm.weight")
        values = np.ones(shape) if norm else numbers.standard_normal(shape) * 0.2
        writer.add_tensor(key, values.astype(np.float32))
    writer.write_header_to_file()
    writer.write_kv_data_to_file()
    writer.write_tensors_to_file()
    writer.close()
    return path


def _shapes() -> dict[str, tuple[int, ...]]:
    shapes: dict[str, tuple[int, ...]] = {
        "token_embd.weight": (len(WORDS), WIDTH),
        "token_types.weight": (2, WIDTH),
        "position_embd.weight": (CONTEXT, WIDTH),
        "token_embd_norm.weight": (WIDTH,),
        "token_embd_norm.bias": (WIDTH,),
    }
    for layer in range(LAYERS):
        rows = {"attn_q": WIDTH, "attn_k": WIDTH, "attn_v": WIDTH, "attn_output": WIDTH, "ffn_up": 2 * WIDTH}
        for name, width in rows.items():
            shapes[f"blk.{layer}.{name}.weight"] = (width, WIDTH)
            shapes[f"blk.{layer}.{name}.bias"] = (width,)
        shapes[f"blk.{layer}.ffn_down.weight"] = (WIDTH, 2 * WIDTH)
        shapes[f"blk.{layer}.ffn_down.bias"] = (WIDTH,)
        for name in ("attn_output_norm", "layer_output_norm"):
            shapes[f"blk.{layer}.{name}.weight"] = shapes[f"blk.{layer}.{name}.bias"] = (WIDTH,)
    return shapes
