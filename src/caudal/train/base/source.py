"""Brings a base in: from a folder, an object store or a GGUF file to the files of a Hugging Face folder that are
needed. Nothing in it is ever unpickled, and no code that it brings is run.
"""

from __future__ import annotations

import json
import re
from pathlib import Path
from typing import Any

from caudal.domain.errors import UsageError
from caudal.store.model_files import inspect_folder
from caudal.store.pull import fetch

NEEDED = (
    "config.json",
    "generation_config.json",
    "tokenizer.json",
    "tokenizer_config.json",
    "special_tokens_map.json",
    "chat_template.jinja",
    "chat_template.json",
    "model.safetensors.index.json",
    "LICENSE",
)
"""What is kept of a folder beside its weights, where it is there."""

_GOES_ON_WITH_TEXT = re.compile(r"(ForCausalLM|LMHeadModel)$")


def bring(path: str, folder: Path) -> tuple[str, str]:
    """Copy the base into the empty folder; returns the name of its GGUF file (empty: it is a Hugging Face
    folder), and its licence as far as it says one. Raises UsageError where it is no model that goes
    on with a text; PullFailed, ModelInvalid, StorageFailed as a pull does."""
    local = Path(path).expanduser()
    if local.is_dir():
        check_kind(local, path)  # before gigabytes are copied
    fetched = fetch(path, folder)
    found = inspect_folder(folder, fetched.gguf)
    if "config.json" in found.files:  # a folder that holds a GGUF beside its weights: the weights are exact
        check_kind(folder, path)
        return "", found.licence or fetched.licence
    return found.gguf, found.licence or fetched.licence


def check_kind(folder: Path, where: str) -> None:
    """Raises UsageError where config.json names a model that does not go on with a text (a classifier, an
    encoder)."""
    config = _json(folder / "config.json")
    named = [str(name) for name in config.get("architectures") or []]
    if named and not any(_GOES_ON_WITH_TEXT.search(name) for name in named):
        raise UsageError(
            "the base is not a model that goes on with a text",
            where=where,
            why=f"its config.json says {', '.join(named)}; a run trains what transformers' "
            "AutoModelForCausalLM loads",
            remedy="name a folder whose architecture ends in ForCausalLM or LMHeadModel",
        )


def needed(folder: Path) -> list[str]:
    """The names of the files that every site needs, sorted: the weights that the index names, or
    model.safetensors, or all there are."""
    index = folder / "model.safetensors.index.json"
    if index.is_file():
        weights = sorted({str(name) for name in _json(index).get("weight_map", {}).values()})
    elif (folder / "model.safetensors").is_file():
        weights = ["model.safetensors"]
    else:
        weights = sorted(file.name for file in folder.glob("*.safetensors"))
    return sorted({*weights, *(name for name in NEEDED if (folder / name).is_file())})


def _json(path: Path) -> dict[str, Any]:
    """A table that a model's folder holds; empty where it is not there or not a table (what is wrong with it is
    said by whoever inspects the folder)."""
    try:
        value = json.loads(path.read_bytes())
    except (OSError, ValueError):
        return {}
    return value if isinstance(value, dict) else {}
