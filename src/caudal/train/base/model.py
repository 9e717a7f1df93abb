"""A base in memory: loaded by transformers, with adapters by peft, seen as the trained parameters in their order.

In float32, without dropout, so that a step is a function of its samples. Knows nothing of runs.
"""

from __future__ import annotations

import warnings
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import numpy as np
import torch
from peft import LoraConfig, get_peft_model
from torch import Tensor, nn
from torch.nn import functional
from transformers import AutoConfig, AutoModelForCausalLM
from transformers.utils import logging

from caudal.domain.errors import ModelInvalid, UsageError
from caudal.domain.workload import BaseSpec
from caudal.train.base.layout import Base
from caudal.train.layout import Floats, Parameter, views
from caudal.train.module import SharedModule

_LINEAR = ("Linear", "Conv1D")


def load(folder: Path, where: str) -> Any:
    """The model of a Hugging Face folder, whole, in float32, without dropout. Raises UsageError where it is not
    one that goes on with a text or needs code of its own, ModelInvalid where it does not load."""
    logging.disable_progress_bar()
    logging.set_verbosity_error()
    try:
        config = AutoConfig.from_pretrained(folder, trust_remote_code=False, local_files_only=True)
        without_dropout(config)
        model = AutoModelForCausalLM.from_pretrained(
            folder,
            config=config,
            dtype=torch.float32,
            trust_remote_code=False,
            use_safetensors=True,
            local_files_only=True,
        )
    except ValueError as error:
        raise UsageError(
            "the base is not a model that transformers' AutoModelForCausalLM loads",
            where=where,
            why=" ".join(str(error).split())[:400],
            remedy="name a folder with another architecture; code that a model brings with it is never run",
        ) from error
    except (OSError, RuntimeError) as error:
        raise ModelInvalid(
            "the base does not load",
            where=where,
            why=" ".join(str(error).split())[:400],
            remedy="fetch it again, or name another model",
        ) from error
    for module in model.modules():
        if isinstance(module, nn.Dropout):
            module.p = 0.0
    return model.eval()


def without_dropout(config: Any) -> None:
    """Set every rate at which a configuration drops something to zero."""
    for key, value in list(vars(config).items()):
        if isinstance(value, float) and ("dropout" in key or key.endswith(("pdrop", "layerdrop"))):
            setattr(config, key, 0.0)


def with_adapters(model: Any, spec: BaseSpec) -> Any:
    """The model with LoRA adapters, which alone are trained. Their first values come from torch's seed (B is
    zero). Raises UsageError where `targets` or `rank` do not fit the model."""
    linear = {n: m for n, m in model.named_modules() if type(m).__name__ in _LINEAR}
    leaves = sorted({name.rpartition(".")[2] for name in linear})
    unknown = [t for t in spec.targets if not any(n == t or n.endswith(f".{t}") for n in linear)]
    if unknown:
        raise UsageError(
            f"the base has no layer {unknown[0]!r} for adapters",
            where="base.targets",
            why=f"its linear layers are {', '.join(leaves)}",
            remedy="name some of these, or leave `targets` out for all but the head",
        )
    config = LoraConfig(
        r=spec.rank,
        lora_alpha=spec.alpha,
        target_modules=list(spec.targets) or "all-linear",
        lora_dropout=0.0,
        bias="none",
        task_type="CAUSAL_LM",
    )
    with warnings.catch_warnings():  # that a Conv1D's weight lies the other way is peft's own business
        warnings.simplefilter("ignore")
        adapted = get_peft_model(model, config)
    _check_rank(adapted, spec.rank)
    return adapted.eval()


def _check_rank(adapted: Any, rank: int) -> None:
    """Raises UsageError where an adapter would be larger than what it stands for."""
    down = {n: p.shape[1] for n, p in adapted.named_parameters() if ".lora_A." in n}
    up = {n: p.shape[0] for n, p in adapted.named_parameters() if ".lora_B." in n}
    name, least = min({**down, **up}.items(), key=lambda item: item[1])
    if rank > least:
        raise UsageError(
            f"a rank of {rank} is too big for this base",
            where="base.rank",
            why=f"{name.partition('.lora_')[0]} has a side of {least}: adapters would be larger than the matrix",
            remedy=f"use a rank of {least} or less (8 to 64 is usual), or `method: full`",
        )


def trained(model: Any) -> dict[str, nn.Parameter]:
    """What is trained, by name, in the model's own order; tied matrices once."""
    return {name: p for name, p in model.named_parameters() if p.requires_grad}


def read(model: Any) -> Floats:
    """The trained parameters as one vector."""
    parts = [p.detach().to("cpu", torch.float32).reshape(-1) for p in trained(model).values()]
    flat: Floats = torch.cat(parts).numpy()
    return flat


@torch.no_grad()
def write(model: Any, state: Floats, parameters: tuple[Parameter, ...]) -> None:
    """Take over the trained parameters."""
    there = trained(model)
    for name, values in views(np.ascontiguousarray(state, dtype=np.float32), parameters).items():
        there[name].copy_(torch.from_numpy(values))


def built(folder: Path, base: Base) -> Any:
    """The base as it is trained, from its files. Raises as `load` and `with_adapters` do, and ModelInvalid where
    another version of the libraries names its parameters differently."""
    model = load(folder, base.source)
    if base.method == "lora":
        model = with_adapters(model, BaseSpec(base.source, "lora", base.rank, base.alpha, base.targets))
    found = {name: tuple(p.shape) for name, p in trained(model).items()}
    wanted = dict(zip(base.names, (tuple(shape) for shape in base.shapes), strict=True))
    if found != wanted:
        differs = next(iter(sorted(found.items() ^ wanted.items())))
        raise ModelInvalid(
            "the base has other parameters here than where the run began",
            where=base.source,
            why=f"for example {differs[0]} {list(differs[1])}",
            remedy="install the same versions of transformers and peft at all sites",
        )
    return model


def _layers(model: Any) -> nn.ModuleList:
    """The list of a model's layers: as long as its configuration says; an empty one where none is."""
    count = model.config.get_text_config().num_hidden_layers
    for module in model.modules():
        if isinstance(module, nn.ModuleList) and len(module) == count:
            return module
    return nn.ModuleList()


class HubModule(SharedModule):
    """A base as the trainer of a group sees it. `checkpoints`: layers are computed again on the way back instead
    of being kept."""

    def __init__(self, model: Any, names: tuple[str, ...], checkpoints: bool = False) -> None:
        super().__init__()
        self.model = model
        self._names = tuple(f"model.{name}" for name in names)
        self.layers = _layers(model)  # a part of the model already: nobody counts it twice
        self._rows: Tensor | None = None
        head = model.get_output_embeddings()
        if head is not None:
            head.register_forward_pre_hook(self._counted)
        if checkpoints:
            model.gradient_checkpointing_enable(gradient_checkpointing_kwargs={"use_reentrant": False})
            model.train()  # transformers looks at both; nothing is dropped in either

    def ordered(self) -> list[nn.Parameter]:
        """The trained parameters in the layout's order, as they are now: FSDP2 puts others in their place."""
        there: Mapping[str, nn.Parameter] = dict(self.named_parameters())
        return [there[name] for name in self._names]

    def _counted(self, head: nn.Module, given: tuple[Any, ...]) -> tuple[Any, ...]:
        """The hidden states of the positions that count: logits of the others are never computed."""
        hidden, *more = given
        if self._rows is None:
            return given
        return (hidden.reshape(1, -1, hidden.shape[-1]).index_select(1, self._rows), *more)

    def forward(self, tokens: Tensor, targets: Tensor, rows: Tensor | None = None) -> Tensor:
        """The SUM of the losses in nats over the positions `rows` of the flattened batch (None: all)."""
        self._rows = rows
        logits = self.model(input_ids=tokens, use_cache=False).logits
        logits = logits.reshape(-1, logits.shape[-1])
        if rows is not None and len(logits) != len(rows):  # a model whose head is no module of its own
            logits = logits.index_select(0, rows)
        return functional.cross_entropy(logits.float(), targets, reduction="sum")
