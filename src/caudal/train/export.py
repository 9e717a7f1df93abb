"""A finished model as files: a Hugging Face folder, and in it the GGUF for llama.cpp.

Needs no torch: the coordinator exports from the flat vector it holds. Knows nothing of where the folder goes.
"""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import numpy as np
from safetensors.numpy import save_file
from tokenizers import Tokenizer

from caudal.domain.errors import StorageFailed
from caudal.domain.workload import ModelShape, TrainSpec
from caudal.ports import Blobs
from caudal.train.chat import CHAT_TEMPLATE, END, TEXT_TEMPLATE
from caudal.train.data.prepare import TOKENIZER
from caudal.train.data.tokenizer import token_id
from caudal.train.gguf_file import write_gguf
from caudal.train.interface import DataManifest, Flat
from caudal.train.layout import NORM_EPSILON, ROPE_THETA, head_width, tensors, views
from caudal.train.model_card import Facts, model_card

GGUF = "model.gguf"


def export(
    state: Flat,
    spec: TrainSpec,
    manifest: DataManifest,
    blobs: Blobs,
    prefix: str,
    out_dir: Path,
    facts: Facts,
) -> list[str]:
    """Write the model's files into `out_dir`; returns their names, sorted.

    `prefix` is where `prepare` put the data: the tokenizer comes from there. The same arguments give the same
    bytes. Raises NotFound, StorageFailed.
    """
    tokenizer = Tokenizer.from_str(blobs.get(f"{prefix}/{TOKENIZER}").decode())
    weights = views(np.ascontiguousarray(state, dtype=np.float32), tensors(spec.model, manifest.vocab))
    template = CHAT_TEMPLATE if manifest.details.get("chat") else TEXT_TEMPLATE
    end = token_id(tokenizer, END)
    try:
        out_dir.mkdir(parents=True, exist_ok=True)
        _json(out_dir / "config.json", _config(spec.model, manifest.vocab, end))
        _json(
            out_dir / "generation_config.json", {"do_sample": False, "eos_token_id": end, "pad_token_id": end}
        )
        _json(out_dir / "tokenizer_config.json", _tokenizer_config(spec.model, template))
        tokenizer.save(str(out_dir / "tokenizer.json"))
        (out_dir / "chat_template.jinja").write_text(template, encoding="utf-8")
        save_file(dict(weights), out_dir / "model.safetensors", metadata={"format": "pt"})
        (out_dir / "README.md").write_text(model_card(spec, manifest, facts), encoding="utf-8")
        licence = str(manifest.details.get("licence") or "")
        write_gguf(out_dir / GGUF, spec.model_id, spec.model, weights, tokenizer, template, END, licence)
    except OSError as error:
        raise StorageFailed(
            "the model could not be written",
            where=str(out_dir),
            why=error.strerror or str(error),
            remedy="make room on the disk; the run's state is safe and can be exported again",
        ) from error
    return sorted(file.name for file in out_dir.iterdir())


def _json(path: Path, value: dict[str, Any]) -> None:
    path.write_text(json.dumps(value, indent=2, ensure_ascii=False) + "\n", encoding="utf-8")


def _config(shape: ModelShape, vocabulary: int, end: int) -> dict[str, Any]:
    """What `transformers` builds the model from. The rotary base is said in the words of versions 4 and 5."""
    return {
        "architectures": ["LlamaForCausalLM"],
        "model_type": "llama",
        "vocab_size": vocabulary,
        "hidden_size": shape.width,
        "intermediate_size": shape.ffn_width,
        "num_hidden_layers": shape.layers,
        "num_attention_heads": shape.heads,
        "num_key_value_heads": shape.kv_heads,
        "head_dim": head_width(shape),
        "hidden_act": "silu",
        "max_position_embeddings": shape.context,
        "rms_norm_eps": NORM_EPSILON,
        "rope_theta": ROPE_THETA,
        "rope_parameters": {"rope_type": "default", "rope_theta": ROPE_THETA},
        "attention_bias": False,
        "mlp_bias": False,
        "tie_word_embeddings": shape.tie_embeddings,
        "bos_token_id": None,
        "eos_token_id": end,
        "pad_token_id": end,
        "torch_dtype": "float32",
        "dtype": "float32",
    }


def _tokenizer_config(shape: ModelShape, template: str) -> dict[str, Any]:
    return {
        "tokenizer_class": "PreTrainedTokenizerFast",
        "eos_token": END,
        "pad_token": END,
        "model_max_length": shape.context,
        "clean_up_tokenization_spaces": False,
        "chat_template": template,
    }
