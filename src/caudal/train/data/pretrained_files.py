"""Reads the vocabulary of a model that a run begins from: out of a Hugging Face folder or a GGUF file.

What a folder's `tokenizer.json` says is read by `tokenizers`; templates, slow tokenizers and those inside a GGUF by
transformers. No code of the folder's is ever run.
"""

from __future__ import annotations

import json
import tempfile
from pathlib import Path
from typing import Any
from urllib.parse import unquote, urlsplit

from tokenizers import Tokenizer

from caudal.domain.errors import DataError, NotFound
from caudal.store.blobs import open_store_at
from caudal.train.data.pretrained import PretrainedVocabulary, template_of

_BESIDE = ("tokenizer_config.json", "chat_template.jinja", "special_tokens_map.json")
_SMALL = (".json", ".jinja", ".txt", ".model")
_MOST_BYTES = 64 << 20


def pretrained_vocabulary(path: str, chat: bool) -> PretrainedVocabulary:
    """The vocabulary of a Hugging Face folder or a GGUF file, on disk or at the URL of an object store. `chat` says
    whether dialogues are to be encoded. Raises DataError where there is no tokenizer, or no template for them."""
    parts = urlsplit(path)
    if parts.scheme == "file" or "://" not in path:
        local = unquote(parts.path) if parts.scheme == "file" else path
        return _load(Path(local).expanduser(), path, chat)
    with tempfile.TemporaryDirectory(prefix="caudal-base-") as folder:
        return _load(_fetched(path, Path(folder)), path, chat)


def _load(path: Path, where: str, chat: bool) -> PretrainedVocabulary:
    gguf = path.suffix == ".gguf"
    folder = path.parent if gguf else path
    if not path.exists():
        raise DataError(
            "the base is not there", where=where, why="`base.path` names it", remedy="check the path"
        )
    tokenizer: Tokenizer | None = None
    beside: dict[str, bytes] = {}
    if not gguf:
        beside = {name: (folder / name).read_bytes() for name in _BESIDE if (folder / name).is_file()}
    loaded = _of_gguf(path, where) if gguf else _auto(folder, "", where)
    try:
        if not gguf and (folder / "tokenizer.json").is_file():
            tokenizer = Tokenizer.from_file(str(folder / "tokenizer.json"))
        elif loaded.is_fast:
            said = loaded.backend_tokenizer.to_str()
            tokenizer = Tokenizer.from_str(_without_more(said) if gguf else said)
    except Exception as error:  # tokenizers raises no class of its own
        raise _no_tokenizer(where, error) from error
    if tokenizer is not None:
        tokenizer.no_truncation()
        tokenizer.no_padding()
        beside["tokenizer.json"] = tokenizer.to_str(pretty=True).encode()
    if gguf:
        beside |= _said_by(loaded)
    found = PretrainedVocabulary(loaded, tokenizer, beside, _end(loaded, folder, where), where)
    if chat:
        found.require_chat()
    return found


def _auto(folder: Path, gguf: str, where: str) -> Any:
    """transformers' own tokenizer of the folder, without code of the folder's and without a network."""
    try:
        from transformers import AutoTokenizer, PreTrainedTokenizerFast  # noqa: PLC0415 (optional)
    except ImportError:
        raise DataError(
            "the tokenizer of a base cannot be read without transformers",
            where=where,
            remedy="install the extra: pip install 'caudal[huggingface]'",
        ) from None
    try:
        file = folder / "tokenizer.json"
        if not gguf and file.is_file() and not (folder / "tokenizer_config.json").is_file():
            return PreTrainedTokenizerFast(tokenizer_file=str(file))
        more = {"gguf_file": gguf} if gguf else {}
        return AutoTokenizer.from_pretrained(
            str(folder), local_files_only=True, trust_remote_code=False, **more
        )
    except Exception as error:  # a folder can be wrong in ways without number, each with an error of its own
        raise _no_tokenizer(where, error) from error


def _of_gguf(file: Path, where: str) -> Any:
    """The tokenizer in a GGUF file, which is read by itself: of what lies beside it transformers would take half."""
    with tempfile.TemporaryDirectory(prefix="caudal-gguf-") as alone:
        (Path(alone) / file.name).symlink_to(file.resolve())
        return _auto(Path(alone), file.name, where)


def _without_more(said: str) -> str:
    """The tokenizer without the tokens that transformers adds to a GGUF's behind its last (`<|endoftext|>`, and so
    on): the model has no row for them."""
    described = json.loads(said)
    listed = described["model"]["vocab"]
    known = set(listed) if isinstance(listed, dict) else {piece for piece, _ in listed}
    described["added_tokens"] = [one for one in described["added_tokens"] if one["content"] in known]
    return json.dumps(described, ensure_ascii=False)


def _no_tokenizer(where: str, error: Exception) -> DataError:
    return DataError(
        "the base's tokenizer cannot be read",
        where=where,
        why=f"{type(error).__name__}: {str(error).strip().splitlines()[0][:200] if str(error).strip() else ''}",
        remedy="a folder with tokenizer.json and tokenizer_config.json, or a GGUF file, is needed",
    )


def _said_by(loaded: Any) -> dict[str, bytes]:
    """What a GGUF says beside its tokenizer, as a folder would."""
    said = {"tokenizer_class": "PreTrainedTokenizerFast", "clean_up_tokenization_spaces": False}
    for name in ("bos_token", "eos_token", "unk_token", "pad_token"):
        if getattr(loaded, name, None):
            said[name] = str(getattr(loaded, name))
    files = {}
    template = template_of(loaded)
    if template is not None:
        said["chat_template"] = template
        files["chat_template.jinja"] = template.encode()
    files["tokenizer_config.json"] = (json.dumps(said, indent=2, ensure_ascii=False) + "\n").encode()
    return files


def _end(loaded: Any, folder: Path, where: str) -> int:
    """The token that ends a text: the tokenizer's, else what the model's configuration says."""
    found = loaded.eos_token_id
    for name in ("generation_config.json", "config.json"):
        if found is None and (folder / name).is_file():
            said = json.loads((folder / name).read_text()).get("eos_token_id")
            found = said[0] if isinstance(said, list) and said else said
    if not isinstance(found, int):
        raise DataError(
            "the base's tokenizer names no token that ends a text",
            where=where,
            why="neither its tokenizer_config.json has an `eos_token` nor its config.json an `eos_token_id`",
            remedy="add `eos_token` to tokenizer_config.json",
        )
    return found


def _fetched(url: str, folder: Path) -> Path:
    """The base's small files, or the GGUF file, in `folder`. Raises DataError, Unreachable, StorageFailed."""
    above, _, name = url.rstrip("/").rpartition("/")
    try:
        if name.endswith(".gguf"):
            open_store_at(above).get_file(name, folder / name)
            return folder / name
        store = open_store_at(url)
        for key, size in store.sizes("").items():
            if "/" not in key and key.endswith(_SMALL) and size <= _MOST_BYTES:
                store.get_file(key, folder / key)
    except NotFound as error:
        raise DataError("the base is not there", where=url, remedy="check the address") from error
    return folder
