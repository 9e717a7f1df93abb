"""Small models for tests: written by the libraries that everybody uses, so that our readers are held to
them."""

from __future__ import annotations

import json
from pathlib import Path

import gguf
import numpy as np
from safetensors.numpy import save_file

VOCAB = 12
WIDTH = 8
LAYERS = 2


def write_gguf(
    path: Path, *, context: int = 64, chat: bool = True, licence: str = "mit", seed: int = 0
) -> Path:
    """A GGUF file with a tokenizer and a few random tensors."""
    path.parent.mkdir(parents=True, exist_ok=True)
    writer = gguf.GGUFWriter(path, "llama")
    writer.add_name("tiny")
    writer.add_context_length(context)
    writer.add_block_count(LAYERS)
    writer.add_license(licence)
    writer.add_tokenizer_model("gpt2")
    writer.add_token_list([f"t{i}" for i in range(VOCAB)])
    writer.add_token_scores([0.0] * VOCAB)
    if chat:
        writer.add_chat_template("{{ messages }}")
    numbers = np.random.default_rng(seed)
    writer.add_tensor("token_embd.weight", numbers.random((VOCAB, WIDTH), dtype=np.float32))
    writer.add_tensor("output_norm.weight", numbers.random(WIDTH, dtype=np.float32))
    writer.write_header_to_file()
    writer.write_kv_data_to_file()
    writer.write_tensors_to_file()
    writer.close()
    return path


def write_directory(folder: Path, *, seed: int = 0) -> Path:
    """A Hugging Face directory in the Llama layout, complete and tiny."""
    folder.mkdir(parents=True, exist_ok=True)
    config = {
        "architectures": ["LlamaForCausalLM"],
        "vocab_size": VOCAB,
        "hidden_size": WIDTH,
        "num_hidden_layers": LAYERS,
        "max_position_embeddings": 64,
    }
    (folder / "config.json").write_text(json.dumps(config))
    vocab = {f"t{i}": i for i in range(VOCAB)}
    (folder / "tokenizer.json").write_text(
        json.dumps({"model": {"type": "BPE", "vocab": vocab, "merges": []}})
    )
    (folder / "README.md").write_text("---\nlanguage: en\nlicense: apache-2.0\n---\n# Tiny\n")
    save_file(weights(seed), folder / "model.safetensors")
    return folder


def weights(seed: int = 0) -> dict[str, np.ndarray]:
    """What model.safetensors holds."""
    numbers = np.random.default_rng(seed)
    tensors = {"model.embed_tokens.weight": numbers.random((VOCAB, WIDTH), dtype=np.float32)}
    for layer in range(LAYERS):
        name = f"model.layers.{layer}.self_attn.q_proj.weight"
        tensors[name] = numbers.random((WIDTH, WIDTH), dtype=np.float32)
    return tensors
