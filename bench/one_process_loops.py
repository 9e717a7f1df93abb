"""The three loops that `one_process.py` compares: `one_process_loops.py caudal|nanogpt|trainer STEPS FOLDER`."""

from __future__ import annotations

import json
import sys
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn import functional

from caudal.domain.workload import ModelShape, StageSpec, TokenizerSpec, TrainSpec
from caudal.store.blobs import open_blobs
from caudal.train.data.prepare import prepare
from caudal.train.data.samples import Samples
from caudal.train.inner import BETAS, EPSILON, GRADIENT_NORM, TorchInner
from caudal.train.interface import DataManifest, IdRange, RunPlan, plan
from caudal.train.layout import NORM_EPSILON, ROPE_THETA, initial_state, tensors, views

SHAPE = ModelShape(layers=6, heads=6, kv_heads=6, width=384, ffn_width=1024, context=256)
BATCH, RATE, DECAY, WARM = 8, 1e-3, 0.1, 2


class Clock:
    """CPU and wall seconds since the steps that are not counted."""

    def __init__(self) -> None:
        self.wall = self.cpu = 0.0

    def step(self, number: int) -> None:
        """To be called before each step."""
        if number == WARM:
            self.wall, self.cpu = time.perf_counter(), time.process_time()

    def speeds(self, tokens: int) -> dict[str, float]:
        """Tokens per second of both kinds."""
        return {
            "tokens_per_cpu_s": tokens / (time.process_time() - self.cpu),
            "tokens_per_s": tokens / (time.perf_counter() - self.wall),
        }


def data(steps: int, folder: Path) -> tuple[RunPlan, DataManifest, Path]:
    """The run's data, made once."""
    stage = StageSpec(
        "text", tokens=steps * BATCH * SHAPE.context, sample_tokens=SHAPE.context, batch=BATCH,
        learning_rate=RATE, final_learning_rate=RATE, warmup_fraction=0.0, weight_decay=DECAY,
    )  # fmt: skip
    spec = TrainSpec("speed", "builtin:tinyworld", (stage,), TokenizerSpec(entries=1024), SHAPE)
    manifest = prepare(spec, open_blobs(folder.as_uri()), "r")
    return plan(spec, manifest), manifest, folder / "r" / "data"


def caudal(steps: int, folder: Path) -> tuple[Clock, float]:
    """Caudal's inner side."""
    run_plan, manifest, files = data(steps, folder)
    inner, clock = TorchInner(run_plan, manifest, files, 1), Clock()
    inner.load(initial_state(SHAPE, run_plan.vocab, 1))

    def before(step: int) -> bool:
        clock.step(step)
        return False

    inner.run(0, [IdRange(0, (steps - 1) * BATCH)], (0.0, 1.0), before)
    last = inner.run(0, [IdRange((steps - 1) * BATCH, steps * BATCH)], (0.0, 1.0), lambda _: False)
    return clock, last.loss


def batches(steps: int, folder: Path) -> tuple[RunPlan, list[tuple[Tensor, Tensor]]]:
    """The samples that Caudal takes, in its order."""
    run_plan, manifest, files = data(steps, folder)
    samples = Samples(files, manifest, 0, run_plan.seed)
    taken = [samples.batch(range(n * BATCH, (n + 1) * BATCH)) for n in range(steps)]
    return run_plan, [
        (torch.from_numpy(b.tokens), torch.from_numpy(b.targets).view(BATCH, -1)) for b in taken
    ]


def groups(model: nn.Module) -> list[dict[str, Any]]:
    """Matrices decay, norms do not."""
    matrices = [p for p in model.parameters() if p.ndim > 1]
    norms = [p for p in model.parameters() if p.ndim <= 1]
    return [{"params": matrices, "weight_decay": DECAY}, {"params": norms, "weight_decay": 0.0}]


def fill(model: nn.Module, run_plan: RunPlan) -> None:
    """The first values, by Hugging Face's names."""
    state = initial_state(SHAPE, run_plan.vocab, 1)
    arrays = views(state, tensors(SHAPE, run_plan.vocab))
    with torch.no_grad():
        for name, parameter in model.named_parameters():
            parameter.copy_(torch.from_numpy(arrays[name]))


class Norm(nn.Module):
    """RMSNorm."""

    def __init__(self) -> None:
        super().__init__()
        self.weight = nn.Parameter(torch.ones(SHAPE.width))

    def forward(self, x: Tensor) -> Tensor:
        """[..., width]."""
        return functional.rms_norm(x, (SHAPE.width,), self.weight, NORM_EPSILON)


class Attention(nn.Module):
    """Causal attention with rotary positions."""

    def __init__(self) -> None:
        super().__init__()
        width = SHAPE.width
        self.q_proj, self.k_proj, self.v_proj, self.o_proj = (
            nn.Linear(width, width, bias=False) for _ in range(4)
        )

    def forward(self, x: Tensor, cos: Tensor, sin: Tensor) -> Tensor:
        """[batch, length, width]."""
        batch, length, width = x.shape

        def heads(y: Tensor) -> Tensor:
            return y.view(batch, length, SHAPE.heads, -1).transpose(1, 2)

        def turned(y: Tensor) -> Tensor:
            left, right = y.chunk(2, dim=-1)
            return y * cos + torch.cat((-right, left), dim=-1) * sin

        q, k, v = heads(self.q_proj(x)), heads(self.k_proj(x)), heads(self.v_proj(x))
        heard = functional.scaled_dot_product_attention(turned(q), turned(k), v, is_causal=True)
        out: Tensor = self.o_proj(heard.transpose(1, 2).reshape(batch, length, width))
        return out


class Mlp(nn.Module):
    """SwiGLU."""

    def __init__(self) -> None:
        super().__init__()
        self.gate_proj = nn.Linear(SHAPE.width, SHAPE.ffn_width, bias=False)
        self.up_proj = nn.Linear(SHAPE.width, SHAPE.ffn_width, bias=False)
        self.down_proj = nn.Linear(SHAPE.ffn_width, SHAPE.width, bias=False)

    def forward(self, x: Tensor) -> Tensor:
        """[..., width]."""
        out: Tensor = self.down_proj(functional.silu(self.gate_proj(x)) * self.up_proj(x))
        return out


class Layer(nn.Module):
    """One layer, under Hugging Face's names."""

    def __init__(self) -> None:
        super().__init__()
        self.input_layernorm, self.self_attn = Norm(), Attention()
        self.post_attention_layernorm, self.mlp = Norm(), Mlp()

    def forward(self, x: Tensor, cos: Tensor, sin: Tensor) -> Tensor:
        """[batch, length, width]."""
        x = x + self.self_attn(self.input_layernorm(x), cos, sin)
        out: Tensor = x + self.mlp(self.post_attention_layernorm(x))
        return out


class NanoGpt(nn.Module):
    """A plain model for a plain loop."""

    def __init__(self, vocabulary: int) -> None:
        super().__init__()
        self.model = nn.Module()
        self.model.embed_tokens = nn.Embedding(vocabulary, SHAPE.width)
        self.model.layers = nn.ModuleList(Layer() for _ in range(SHAPE.layers))
        self.model.norm = Norm()
        width = SHAPE.width // SHAPE.heads
        frequencies = 1 / ROPE_THETA ** (torch.arange(0, width, 2).float() / width)
        angles = torch.arange(SHAPE.context).float().view(-1, 1) * frequencies
        self.cos, self.sin = torch.cat([angles.cos()] * 2, -1), torch.cat([angles.sin()] * 2, -1)

    def forward(self, tokens: Tensor, targets: Tensor) -> Tensor:
        """The mean loss over all positions; the head is the embedding."""
        embedding = self.model.embed_tokens
        assert isinstance(embedding, nn.Embedding) and isinstance(self.model.layers, nn.ModuleList)
        x = embedding(tokens)
        for layer in self.model.layers:
            x = layer(x, self.cos, self.sin)
        logits = functional.linear(self.model.norm(x), embedding.weight)  # type: ignore[operator]
        return functional.cross_entropy(logits.view(-1, logits.shape[-1]), targets.view(-1))


def nanogpt(steps: int, folder: Path) -> tuple[Clock, float]:
    """A loop as nanoGPT writes it, over a plain model."""
    run_plan, data = batches(steps, folder)
    model, clock, loss = NanoGpt(run_plan.vocab), Clock(), torch.zeros(())
    fill(model, run_plan)
    optimizer = torch.optim.AdamW(groups(model), lr=RATE, betas=BETAS, eps=EPSILON, fused=True)
    for number, (tokens, targets) in enumerate(data):
        clock.step(number)
        loss = model(tokens, targets)
        loss.backward()  # type: ignore[no-untyped-call]
        nn.utils.clip_grad_norm_(model.parameters(), GRADIENT_NORM)
        optimizer.step()
        optimizer.zero_grad(set_to_none=True)
    return clock, float(loss.detach())


def trainer(steps: int, folder: Path) -> tuple[Clock, float]:
    """Hugging Face's Trainer over LlamaForCausalLM."""
    from transformers import LlamaConfig, LlamaForCausalLM, Trainer, TrainerCallback, TrainingArguments

    run_plan, data = batches(steps, folder)
    model = LlamaForCausalLM(
        LlamaConfig(
            vocab_size=run_plan.vocab, hidden_size=SHAPE.width, intermediate_size=SHAPE.ffn_width,
            num_hidden_layers=SHAPE.layers, num_attention_heads=SHAPE.heads, num_key_value_heads=SHAPE.kv_heads,
            max_position_embeddings=SHAPE.context, rms_norm_eps=NORM_EPSILON, tie_word_embeddings=True,
            rope_theta=ROPE_THETA, use_cache=False,
        )
    )  # fmt: skip
    fill(model, run_plan)
    clock, losses = Clock(), list[float]()
    rows = [(t, g) for tokens, targets in data for t, g in zip(tokens, targets, strict=True)]

    class Steps(TrainerCallback):  # type: ignore[misc]
        def on_step_begin(self, args: Any, state: Any, control: Any, **_: Any) -> None:
            clock.step(state.global_step)

        def on_log(self, args: Any, state: Any, control: Any, logs: Any = None, **_: Any) -> None:
            losses.extend([logs["loss"]] if "loss" in logs else [])

    def collate(some: list[Any]) -> dict[str, Tensor]:
        return {"input_ids": torch.stack([t for t, _ in some]), "targets": torch.stack([g for _, g in some])}

    class Plain(Trainer):  # type: ignore[misc]
        """In the order given, and with targets that are shifted already."""

        def _get_train_sampler(self, *_: Any) -> Any:
            return torch.utils.data.SequentialSampler(rows)  # type: ignore[arg-type]

        def compute_loss(self, model: nn.Module, inputs: dict[str, Tensor], *_: Any, **__: Any) -> Tensor:
            logits = model(input_ids=inputs["input_ids"]).logits
            return functional.cross_entropy(logits.view(-1, logits.shape[-1]), inputs["targets"].view(-1))

    arguments = TrainingArguments(
        output_dir=str(folder / "hf"), max_steps=steps, per_device_train_batch_size=BATCH, learning_rate=RATE,
        lr_scheduler_type="constant", warmup_steps=0, weight_decay=DECAY, adam_beta1=BETAS[0], adam_beta2=BETAS[1],
        adam_epsilon=EPSILON, max_grad_norm=GRADIENT_NORM, optim="adamw_torch_fused", logging_steps=1,
        save_strategy="no", report_to=[], use_cpu=True, disable_tqdm=True, remove_unused_columns=False,
    )  # fmt: skip
    optimizer = torch.optim.AdamW(groups(model), lr=RATE, betas=BETAS, eps=EPSILON, fused=True)
    Plain(
        model, arguments, train_dataset=rows, data_collator=collate, callbacks=[Steps()],
        optimizers=(optimizer, None),
    ).train()  # fmt: skip
    return clock, losses[-1]


if __name__ == "__main__":
    kind, count, where = sys.argv[1], int(sys.argv[2]), Path(sys.argv[3])
    torch.set_num_threads(1)
    loops: dict[str, Callable[[int, Path], tuple[Clock, float]]] = {
        "caudal": caudal, "nanogpt": nanogpt, "trainer": trainer,
    }  # fmt: skip
    measured, at_end = loops[kind](count, where)
    counted = (count - WARM) * BATCH * SHAPE.context
    numbers = sum(t.size for t in tensors(SHAPE, data(count, where)[0].vocab))
    print(json.dumps({**measured.speeds(counted), "loss": at_end, "parameters": numbers}))
