"""What a coordinator does about a base: it starts the two processes that need torch, and waits for them."""

from __future__ import annotations

from pathlib import Path

import msgspec
import numpy as np
from safetensors.numpy import save_file

from caudal.ports import Blobs
from caudal.train.base import child, layout
from caudal.train.config import CoordinatorConfig
from caudal.train.fetch import data_folder
from caudal.train.interface import DataManifest, Flat
from caudal.train.log import say
from caudal.train.model_card import Facts, base_card


def bring_base(config: CoordinatorConfig, blobs: Blobs) -> None:
    """Have the run's base brought in, where it has one and nobody did: then the store has its files, its layout
    and the first state. Raises what `caudal.train.base.begin` does."""
    if not config.spec.base.path or layout.begun(blobs, config.prefix) is not None:
        return
    layout.require_libraries()
    order = {
        "spec": msgspec.to_builtins(config.spec),
        "blobs_url": config.blobs_url,
        "prefix": config.prefix,
        "cache_dir": config.cache_dir,
    }
    child.run("caudal.train.base.begin", order)


def export_base(
    config: CoordinatorConfig,
    base: layout.Base,
    manifest: DataManifest,
    blobs: Blobs,
    state: Flat,
    out_dir: Path,
    facts: Facts,
) -> bool:
    """Have the trained model written into `out_dir`; returns whether there is a GGUF among its files. Raises what
    `caudal.train.base.export` does."""
    data = data_folder(blobs, config.prefix, manifest, Path(config.cache_dir))
    state_file = out_dir.with_name(f"{out_dir.name}.state.safetensors")
    out_dir.mkdir(parents=True, exist_ok=True)
    save_file({"state": np.ascontiguousarray(state, dtype=np.float32)}, state_file)
    order = {
        "spec": msgspec.to_builtins(config.spec),
        "base": msgspec.to_builtins(base),
        "base_folder": str(data / layout.FOLDER),
        "state_file": str(state_file),
        "out_dir": str(out_dir),
        "card": base_card(config.spec, base, manifest, facts),
    }
    try:
        why = str(child.run("caudal.train.base.export", order)["why_no_gguf"])
    finally:
        state_file.unlink(missing_ok=True)
    if why:
        say(f"no GGUF is published, so that llama.cpp cannot serve the model: {why}")
    return not why
