"""Writes the model that a run made of its base: `python -m caudal.train.base.export`, started at the run's end.

A Hugging Face folder with the base's tokenizer and template, in the base's own precision; after LoRA with the
adapters merged, and beside them in `adapter/` the adapters alone, as peft keeps them. Where llama.cpp's format is
known for it, a GGUF as well. The same state gives the same bytes.
"""

from __future__ import annotations

import json
import shutil
from pathlib import Path
from typing import Any

import msgspec
import torch
from safetensors.numpy import load_file
from transformers.utils import logging

from caudal.domain.errors import StorageFailed
from caudal.domain.workload import TrainSpec
from caudal.train.base import child, model, to_gguf
from caudal.train.base.layout import Base
from caudal.train.base.source import NEEDED
from caudal.train.layout import Floats

ADAPTER = "adapter"
GGUF = "model.gguf"


class Order(msgspec.Struct, frozen=True):
    """What the process is told: where the base and the state are as files, where the model is to be written, and
    the text of its README."""

    spec: TrainSpec
    base: Base
    base_folder: str
    state_file: str
    out_dir: str
    card: str


def export(spec: TrainSpec, base: Base, base_folder: Path, state: Floats, out_dir: Path) -> str:
    """Write the model's files into `out_dir`; returns why there is no GGUF among them (empty: there is). Raises
    ModelInvalid, StorageFailed, Failed."""
    whole = model.built(base_folder, base)
    model.write(whole, state, base.parameters)
    logging.disable_progress_bar()
    try:
        out_dir.mkdir(parents=True, exist_ok=True)
        if base.method == "lora":
            _adapters(whole, base, out_dir / ADAPTER)
            whole = whole.merge_and_unload()
        whole.to(getattr(torch, base.dtype)).save_pretrained(out_dir)
        for name in NEEDED:
            if (base_folder / name).is_file() and not (out_dir / name).is_file():
                shutil.copyfile(base_folder / name, out_dir / name)
        why = to_gguf.why_not(out_dir)
        if not why:
            to_gguf.write(out_dir / GGUF, spec.model_id, out_dir, _weights(whole), base.licence, base.dtype)
    except OSError as error:
        raise StorageFailed(
            "the model could not be written",
            where=str(out_dir),
            why=error.strerror or str(error),
            remedy="make room on the disk; the run's state is safe and can be exported again",
        ) from error
    return why


def _adapters(adapted: Any, base: Base, folder: Path) -> None:
    """The adapters alone. peft lists its targets in the order of a set: sorted, so that bytes are the same."""
    adapted.save_pretrained(folder)
    (folder / "README.md").unlink(missing_ok=True)  # peft's, with blanks to fill in
    path = folder / "adapter_config.json"
    config = json.loads(path.read_bytes())
    config["target_modules"] = sorted(config["target_modules"])
    config["base_model_name_or_path"] = base.source
    path.write_text(json.dumps(config, indent=2, sort_keys=True) + "\n", encoding="utf-8")


def _weights(whole: Any) -> dict[str, Floats]:
    """All weights by name, in float32; tied ones once."""
    return {name: p.detach().float().numpy() for name, p in whole.named_parameters()}


def task(order: Order) -> dict[str, Any]:
    """Do what the order says. Raises CaudalError."""
    state = load_file(order.state_file)["state"]
    folder = Path(order.out_dir)
    why = export(order.spec, order.base, Path(order.base_folder), state, folder)
    card = order.card.rstrip("\n") + f"\n\nThere is no GGUF file: {why}.\n" if why else order.card
    (folder / "README.md").write_text(card, encoding="utf-8")
    return {"why_no_gguf": why}


if __name__ == "__main__":
    child.serve(Order, task)
