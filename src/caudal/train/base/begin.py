"""Brings a run's base in, once: `python -m caudal.train.base.begin`, started by the coordinator's preparation.

Puts the files that every site needs below `data/base/`, the first state as the checkpoint of round 0, and last the
layout, `data/base.json`. The same base gives the same bytes, so that a crash anywhere is made good by doing it
again. A GGUF file is dequantised once, into safetensors of half precision, so that no worker has to.
"""

from __future__ import annotations

import json
import tempfile
import time
from pathlib import Path
from typing import Any

import msgspec
import numpy as np
import torch
from tokenizers import Tokenizer

from caudal.domain.errors import Failed, UsageError
from caudal.domain.workload import TrainSpec
from caudal.ports import Blobs
from caudal.store.blobs import open_blobs
from caudal.store.pull.base import sha256_of
from caudal.train import checkpoint
from caudal.train.base import child, layout, model
from caudal.train.base.from_gguf import dequantise
from caudal.train.base.source import bring, needed
from caudal.train.layout import Floats
from caudal.train.outer import state_sha256


class Order(msgspec.Struct, frozen=True):
    """What the process is told. `cache_dir` is where files lie for a moment."""

    spec: TrainSpec
    blobs_url: str
    prefix: str
    cache_dir: str


def begin(spec: TrainSpec, blobs: Blobs, prefix: str, cache_dir: Path) -> layout.Base:
    """Bring the base of a run in. Raises UsageError where base, method and stages do not go together;
    PullFailed, ModelInvalid, StorageFailed."""
    cache_dir.mkdir(parents=True, exist_ok=True)
    with tempfile.TemporaryDirectory(prefix="base-", dir=cache_dir) as name:
        folder = Path(name)
        gguf, licence = bring(spec.base.path, folder)
        if gguf:
            dequantise(folder, gguf)
        whole = model.load(folder, spec.base.path)
        _check(spec, whole, folder)
        size = sum(p.numel() for p in whole.parameters())
        architecture = type(whole).__name__
        config = whole.config.get_text_config()
        if spec.base.method == "lora":
            torch.manual_seed(spec.seed)
            whole = model.with_adapters(whole, spec.base)
        parts = model.trained(whole)
        names = needed(folder)
        base = layout.Base(
            source=spec.base.path,
            architecture=architecture,
            method=spec.base.method,
            rank=spec.base.rank,
            alpha=spec.base.alpha,
            targets=spec.base.targets,
            names=tuple(parts),
            shapes=tuple(tuple(p.shape) for p in parts.values()),
            whole=size,
            vocabulary=whole.get_input_embeddings().weight.shape[0],
            positions=int(getattr(config, "max_position_embeddings", 0) or 0),
            dtype=_dtype(folder),
            licence=licence,
            files={f"{layout.FOLDER}/{name}": sha256_of(folder / name) for name in names},
        )
        for name in names:
            blobs.put_file(f"{prefix}/data/{layout.FOLDER}/{name}", folder / name)
        _first_state(spec, blobs, prefix, model.read(whole))
    layout.keep(blobs, prefix, base)
    return base


def _check(spec: TrainSpec, whole: Any, folder: Path) -> None:
    """Raises UsageError where the tokenizer or a stage is longer than the model."""
    rows = whole.get_input_embeddings().weight.shape[0]
    tokenizer = Tokenizer.from_file(str(folder / "tokenizer.json"))
    highest, token = max((i, t) for t, i in tokenizer.get_vocab(with_added_tokens=True).items())
    if highest >= rows:
        raise UsageError(
            "the base's tokenizer is longer than its embedding",
            where=spec.base.path,
            why=f"its token {token!r} has the id {highest}, and the embedding has {rows} rows",
            remedy="resize the model (`resize_token_embeddings`) and save it, or take the tokenizer that it came with",
        )
    positions = int(getattr(whole.config.get_text_config(), "max_position_embeddings", 0) or 0)
    for stage in spec.stages:
        if positions and stage.sample_tokens > positions:
            raise UsageError(
                f"samples of {stage.sample_tokens} tokens are longer than what the base can see at once",
                where=f"stage {stage.name}: sample_tokens",
                why=f"the config.json of {spec.base.path} says {positions} positions",
                remedy=f"use {positions} or less",
            )


def _dtype(folder: Path) -> str:
    """What the base's weights are kept in; float32 where it does not say one that we write."""
    config = json.loads((folder / "config.json").read_bytes())
    said = str(config.get("dtype") or config.get("torch_dtype") or "")
    return said if said in ("float16", "bfloat16") else "float32"


def _first_state(spec: TrainSpec, blobs: Blobs, prefix: str, state: Floats) -> None:
    """The checkpoint of round 0. Raises Failed where the run was begun with other numbers."""
    manifest = checkpoint.Manifest(
        spec.name, 0, "", state_sha256(state), "", checkpoint.Totals(), time.time()
    )
    checkpoint.write(blobs, prefix, state, np.zeros_like(state), manifest)
    path = checkpoint.manifest_path(prefix, 0)
    there = msgspec.json.decode(blobs.get(path), type=checkpoint.Manifest)
    if there.state_sha256 != manifest.state_sha256:
        raise Failed(
            "the run was begun with another base",
            where=spec.base.path,
            why="the first state in the store is not the one that this base gives",
            remedy="if the base was changed, apply the run under another name",
        )


def task(order: Order) -> dict[str, Any]:
    """Do what the order says. Raises CaudalError."""
    begin(order.spec, open_blobs(order.blobs_url), order.prefix, Path(order.cache_dir))
    return {"done": True}


if __name__ == "__main__":
    child.serve(Order, task)
