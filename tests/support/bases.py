"""Tiny bases for tests: random models of the kinds that people fine-tune, saved as transformers saves them."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import torch
from tokenizers import Tokenizer, decoders, models, pre_tokenizers, trainers
from transformers import (
    GPT2Config,
    GPT2LMHeadModel,
    LlamaConfig,
    LlamaForCausalLM,
    PreTrainedTokenizerFast,
    Qwen2Config,
    Qwen2ForCausalLM,
)
from transformers.utils import logging

from caudal.domain.workload import BaseSpec, StageSpec, TrainSpec

ENTRIES = 320
POSITIONS = 64
TEXT = "".join(
    f"The {animal} of the year {1900 + year} says {sound}, and {year} others say it too.\n"
    for year in range(120)
    for animal, sound in (("cat", "meow"), ("dog", "woof"), ("cow", "moo"))
)
TEMPLATE = "{% for message in messages %}<|{{ message['role'] }}|>{{ message['content'] }}<|end|>{% endfor %}"


def tokenizer(entries: int = ENTRIES) -> Tokenizer:
    """Byte-level BPE that splits digits, as SmolLM2's does."""
    made = Tokenizer(models.BPE())
    made.pre_tokenizer = pre_tokenizers.Sequence(
        [
            pre_tokenizers.Digits(individual_digits=True),
            pre_tokenizers.ByteLevel(add_prefix_space=False, use_regex=True),
        ]
    )
    made.decoder = decoders.ByteLevel()
    trainer = trainers.BpeTrainer(
        vocab_size=entries,
        special_tokens=["<|end|>"],
        initial_alphabet=sorted(pre_tokenizers.ByteLevel.alphabet()),
        show_progress=False,
    )
    made.train_from_iterator([TEXT], trainer)
    return made


def random_model(kind: str, tied: bool = True, **more: Any) -> Any:
    """A model of random values: `llama`, `qwen2` or `gpt2`."""
    torch.manual_seed(7)
    if kind == "gpt2":
        return GPT2LMHeadModel(
            GPT2Config(vocab_size=ENTRIES, n_embd=32, n_layer=2, n_head=4, n_positions=POSITIONS,
                       bos_token_id=0, eos_token_id=0, **more)
        )  # fmt: skip
    config, model = {"llama": (LlamaConfig, LlamaForCausalLM), "qwen2": (Qwen2Config, Qwen2ForCausalLM)}[kind]
    shape = {"hidden_size": 32, "intermediate_size": 48, "num_hidden_layers": 2, "num_attention_heads": 4}
    return model(
        config(vocab_size=ENTRIES, num_key_value_heads=2, max_position_embeddings=POSITIONS, bos_token_id=0,
               eos_token_id=0, tie_word_embeddings=tied, **{**shape, **more})
    )  # fmt: skip


def write_base(
    folder: Path, kind: str = "llama", tied: bool = True, entries: int = ENTRIES, **more: Any
) -> Path:
    """A complete Hugging Face folder with such a model."""
    logging.disable_progress_bar()
    random_model(kind, tied, **more).save_pretrained(folder)
    words = PreTrainedTokenizerFast(tokenizer_object=tokenizer(entries), eos_token="<|end|>")
    words.chat_template = TEMPLATE
    words.save_pretrained(folder)
    return folder


def run_on(base: Path | str, data: Path, method: str = "lora", **more: Any) -> TrainSpec:
    """A short run that begins from the base."""
    data.write_text(TEXT)
    settings = {"rank": 4, "alpha": 8.0, **more}
    return TrainSpec(
        name="tuned",
        data=str(data),
        stages=(
            StageSpec("read", tokens=32 * 4 * 40, sample_tokens=32, batch=4, learning_rate=1e-2,
                      final_learning_rate=1e-3),
        ),
        base=BaseSpec(str(base), method, **settings),  # type: ignore[arg-type]
    )  # fmt: skip


def edit_json(path: Path, **changes: Any) -> None:
    """Change keys of a JSON file."""
    path.write_text(json.dumps({**json.loads(path.read_text()), **changes}))
