"""Hugging Face's Trainer over two sites: start it once per site, in any order.

python examples/script/trainer.py a &
python examples/script/trainer.py b
"""

from __future__ import annotations

import sys
import tempfile

import torch
from transformers import LlamaConfig, LlamaForCausalLM, Trainer, TrainingArguments

from caudal.train.script.huggingface import OuterCallback

SITE = sys.argv[1] if len(sys.argv) > 1 else "a"
STORE = sys.argv[2] if len(sys.argv) > 2 else "file:///tmp/caudal-trainer-example"

torch.set_num_threads(1)
torch.manual_seed(1)
text = [(7 * i + j * (1 + i % 3)) % 61 for i in range(256) for j in range(32)]
data = [{"input_ids": torch.tensor(text[at : at + 32]), "labels": torch.tensor(text[at : at + 32])}
        for at in range(0, len(text), 32)]  # fmt: skip
config = LlamaConfig(
    vocab_size=64,
    hidden_size=32,
    intermediate_size=64,
    num_hidden_layers=2,
    num_attention_heads=2,
    max_position_embeddings=64,
)
model = LlamaForCausalLM(config)

with tempfile.TemporaryDirectory() as folder:
    outer = OuterCallback(data, run="rows", store=STORE, site=SITE, sites=2, epochs=6)
    arguments = TrainingArguments(
        output_dir=folder,
        max_steps=10_000,
        per_device_train_batch_size=8,
        learning_rate=5e-3,
        lr_scheduler_type="constant",
        logging_steps=5,
        save_strategy="no",
        report_to=[],
        use_cpu=True,
        disable_tqdm=True,
    )
    Trainer(model, arguments, train_dataset=outer.dataset(), callbacks=[outer]).train()

assert outer.run is not None
weights = torch.cat([p.detach().reshape(-1) for p in model.parameters()])
print(f"site {SITE}: {outer.run.steps} steps, weights {weights.sum():.6f}")
