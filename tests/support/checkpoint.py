"""A checkpoint of our own as a run exports it, without the training: the same files, untrained weights."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path

from caudal.domain.workload import ModelShape, StageSpec, TokenizerSpec, TrainSpec
from caudal.store.blobs import open_blobs
from caudal.train.data.prepare import TINYWORLD, prepare
from caudal.train.export import export
from caudal.train.interface import plan
from caudal.train.layout import initial_state
from caudal.train.model_card import Facts

SPEC = TrainSpec(
    name="tiny",
    data=TINYWORLD,
    stages=(StageSpec("chat", tokens=20_000, kind="chat", sample_tokens=64, batch=4),),
    tokenizer=TokenizerSpec(entries=512),
    model=ModelShape(layers=2, heads=2, kv_heads=1, width=64, ffn_width=160, context=128),
)


def exported(folder: Path, seed: int = 1) -> Path:
    """The folder that a finished run publishes: GGUF, config.json, tokenizer.json, safetensors, model card."""
    spec = replace(SPEC, seed=seed)
    blobs = open_blobs("memory://")
    manifest = prepare(spec, blobs, "r")
    of = plan(spec, manifest)
    state = initial_state(of.shape, of.vocab, of.seed)
    export(state, spec, manifest, blobs, "r", folder, Facts(of.total_tokens, 1, ("here",)))
    return folder
