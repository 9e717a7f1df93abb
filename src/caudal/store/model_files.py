"""Whether a folder holds a model that can be served, and what it is.

Either one GGUF file, or a complete Hugging Face directory (config.json, tokenizer.json, *.safetensors whose
shapes fit the config), or both. Pickles are never opened: where the weights would come from one, the model
is refused. Knows nothing of where the files came from.
"""

from __future__ import annotations

import json
import re
from dataclasses import dataclass
from pathlib import Path, PurePosixPath
from typing import Any

from caudal.domain.errors import ModelInvalid
from caudal.store.gguf_header import read_gguf
from caudal.store.safetensors_header import read_shapes

PICKLE_SUFFIXES = frozenset({".bin", ".pt", ".pth", ".pkl", ".pickle", ".ckpt"})
MAX_JSON_BYTES = 256 << 20
MAX_FILES = 10_000

_EMBEDDINGS = (
    "embed_tokens.weight",
    "wte.weight",
    "word_embeddings.weight",
    "tok_embeddings.weight",
    "embed_in.weight",
)
_OLDER_NAMES = {
    "hidden_size": "n_embd",
    "num_hidden_layers": "n_layer",
    "max_position_embeddings": "n_positions",
}
"""What GPT-2 and its kin call the same in config.json."""

CONVERT = (
    "where you trust the files, convert them with transformers: "
    "`AutoModelForCausalLM.from_pretrained(FOLDER).save_pretrained(FOLDER)` writes safetensors"
)

_LAYER = re.compile(r"((?:.*\.)?)(?:layers|h|blocks)\.(\d{1,6})\.")
_LICENCE = re.compile(r"^license:\s*([\w.+-]+)\s*$", re.MULTILINE)


@dataclass(frozen=True, slots=True)
class FoundModel:
    """What a folder holds. `files` are the paths (with `/`) that belong to the model; `gguf` is one of
    them, or empty; `context` is 0 where the files do not say."""

    files: tuple[str, ...]
    gguf: str
    context: int
    licence: str


def inspect_folder(folder: Path, gguf: str = "") -> FoundModel:
    """What the folder holds; `gguf` chooses one of several GGUF files. Raises ModelInvalid."""
    files = _files(folder)
    ggufs = [f for f in files if f.endswith(".gguf")]
    if gguf and gguf not in ggufs:
        raise ModelInvalid(f"no file {gguf!r} in the model's folder", where=str(folder))
    if len(ggufs) > 1 and not gguf:
        raise ModelInvalid(
            "several GGUF files, of which one has to be chosen",
            where=str(folder),
            why=", ".join(ggufs[:10]),
            remedy="name one file in the source",
        )
    chosen = gguf or (ggufs[0] if ggufs else "")
    has_directory = "config.json" in files
    if not chosen and not has_directory:
        raise _incomplete(folder, files)
    context, licence = _check_directory(folder, files) if has_directory else (0, "")
    if chosen:
        info = read_gguf(folder / chosen)
        context, licence = info.context or context, licence or info.licence
    kept = tuple(f for f in files if _is_kept(f, chosen))
    return FoundModel(kept, chosen, context, _spdx(licence))


def _files(folder: Path) -> list[str]:
    """Paths below the folder, sorted; hidden ones and links that lead out are not looked at."""
    if not folder.is_dir():
        raise ModelInvalid("no such folder", where=str(folder))
    root = folder.resolve()
    found: list[str] = []
    for path in sorted(folder.rglob("*")):
        name = path.relative_to(folder).as_posix()
        if any(part.startswith(".") for part in PurePosixPath(name).parts) or not path.is_file():
            continue
        if not path.resolve().is_relative_to(root):
            raise ModelInvalid(f"{name!r} is a link that leads out of the folder", where=str(folder))
        found.append(name)
        if len(found) > MAX_FILES:
            raise ModelInvalid(f"more than {MAX_FILES} files", where=str(folder))
    return found


def _is_kept(name: str, gguf: str) -> bool:
    suffix = PurePosixPath(name).suffix.lower()
    return suffix not in PICKLE_SUFFIXES and (suffix != ".gguf" or name == gguf)


def _incomplete(folder: Path, files: list[str]) -> ModelInvalid:
    pickles = [f for f in files if PurePosixPath(f).suffix.lower() in PICKLE_SUFFIXES]
    why = f"it holds {', '.join(files[:8]) or 'nothing'}"
    if pickles:
        why = f"its weights are a pickle ({pickles[0]}), which can run any code; it was not opened"
    return ModelInvalid(
        "neither a GGUF file nor a Hugging Face directory",
        where=str(folder),
        why=why,
        remedy="a model is one .gguf file, or config.json, tokenizer.json and *.safetensors",
    )


def _check_directory(folder: Path, files: list[str]) -> tuple[int, str]:
    """The context and the licence of a Hugging Face directory. Raises ModelInvalid."""
    weights = _weight_files(folder, files)
    config = _json(folder / "config.json")
    inner = config.get("text_config")
    config = inner if isinstance(inner, dict) else config
    vocab, width, layers = (
        _positive(folder, config, key) for key in ("vocab_size", "hidden_size", "num_hidden_layers")
    )
    shapes: dict[str, tuple[int, ...]] = {}
    for name in weights:
        shapes |= read_shapes(folder / name)
    _check_shapes(folder, shapes, vocab, width, layers)
    _check_tokenizer(folder, files, vocab)
    context = _said(config, "max_position_embeddings")
    return (context if type(context) is int and context > 0 else 0), _card_licence(folder)


def _weight_files(folder: Path, files: list[str]) -> list[str]:
    """The safetensors files at the top, all that the index names. Raises ModelInvalid."""
    weights = [f for f in files if f.endswith(".safetensors") and "/" not in f]
    if not weights:
        pickles = [f for f in files if PurePosixPath(f).suffix.lower() in PICKLE_SUFFIXES]
        why = "there is no *.safetensors file"
        if pickles:
            why = f"{why}, only a pickle ({pickles[0]}), which can run any code; it was not opened"
        raise _unfit(folder, why, CONVERT)
    if "model.safetensors.index.json" in files:
        weight_map = _json(folder / "model.safetensors.index.json").get("weight_map")
        if not isinstance(weight_map, dict):
            raise _unfit(folder, "model.safetensors.index.json has no weight_map")
        named = {str(name) for name in weight_map.values()}
        missing = sorted(named - set(weights))
        if missing:
            raise _unfit(folder, f"{missing[0]!r} is missing, of {len(named)} files with weights")
        return sorted(named)
    return weights


def _check_shapes(
    folder: Path, shapes: dict[str, tuple[int, ...]], vocab: int, width: int, layers: int
) -> None:
    embeddings = [(n, s) for n, s in shapes.items() if n.endswith(_EMBEDDINGS)]
    if not embeddings:
        raise _unfit(folder, "no token embedding among its weights")
    for name, shape in embeddings:
        if shape != (vocab, width):
            raise _unfit(
                folder,
                f"{name} is {list(shape)}, and config.json says vocab_size {vocab}, hidden_size {width}",
            )
    for embedding, _ in embeddings:
        # Only what stands beside the embedding: the encoder of a model that also sees has layers of its own.
        beside = embedding[: -len(next(e for e in _EMBEDDINGS if embedding.endswith(e)))]
        matches = (_LAYER.match(name) for name in shapes)
        found = {int(m[2]) for m in matches if m is not None and m[1] == beside}
        if found != set(range(layers)):
            raise _unfit(folder, f"its weights have {len(found)} layers, and config.json says {layers}")


def _check_tokenizer(folder: Path, files: list[str], vocab: int) -> None:
    """Every id of its vocabulary has a row in the embedding. (Ids of added tokens are not looked at: some
    models for text keep one for pictures that their embedding does not have.)"""
    if "tokenizer.json" not in files:
        raise _unfit(folder, "tokenizer.json is missing")
    tokenizer = _json(folder / "tokenizer.json")
    model = tokenizer.get("model")
    entries = model.get("vocab") if isinstance(model, dict) else None
    if isinstance(entries, dict):
        ids = list(entries.values())
    elif isinstance(entries, list):  # unigram models list their entries in the order of their ids
        ids = list(range(len(entries)))
    else:
        raise _unfit(folder, "tokenizer.json has no vocabulary")
    if not all(type(i) is int and 0 <= i < vocab for i in ids):
        raise _unfit(folder, f"tokenizer.json has ids that are not below vocab_size ({vocab})")


def _said(config: dict[str, Any], key: str) -> Any:
    return config.get(key, config.get(_OLDER_NAMES.get(key, "")))


def _positive(folder: Path, config: dict[str, Any], key: str) -> int:
    value = _said(config, key)
    if type(value) is not int or value <= 0:
        raise _unfit(folder, f"config.json has no usable {key}")
    return value


def _json(path: Path) -> dict[str, Any]:
    try:
        if path.stat().st_size > MAX_JSON_BYTES:
            raise _unfit(path.parent, f"{path.name} is larger than {MAX_JSON_BYTES >> 20} MiB")
        value = json.loads(path.read_bytes())
    except OSError as error:
        raise ModelInvalid("cannot be read", where=str(path), why=error.strerror or str(error)) from error
    except (ValueError, RecursionError) as error:
        raise _unfit(path.parent, f"{path.name} is not JSON: {error}") from error
    if not isinstance(value, dict):
        raise _unfit(path.parent, f"{path.name} is not a table of keys")
    return value


def _card_licence(folder: Path) -> str:
    """The `license:` line at the head of the model card, where there is one."""
    try:
        with (folder / "README.md").open(encoding="utf-8", errors="replace") as card:
            head = card.read(1 << 16)
    except OSError:
        return ""  # a card is not needed
    match = _LICENCE.search(head.split("\n---", 1)[0]) if head.startswith("---") else None
    return match[1] if match else ""


def _spdx(licence: str) -> str:
    """The identifier as SPDX spells it, for the few that matter here; else as its maker wrote it."""
    known = {"apache-2.0": "Apache-2.0", "mit": "MIT", "cc0-1.0": "CC0-1.0", "cc-by-4.0": "CC-BY-4.0"}
    return known.get(licence.lower(), licence)[:80]


def _unfit(folder: Path, why: str, remedy: str = "fetch it again, or name another model") -> ModelInvalid:
    return ModelInvalid("not a complete Hugging Face directory", where=str(folder), why=why, remedy=remedy)
