"""`s3://`, `az://`, `gs://`: a GGUF file or a folder with a model in an object store."""

from __future__ import annotations

from pathlib import Path, PurePosixPath

from caudal.domain.errors import NotFound, PullFailed, Unreachable
from caudal.ports import Blobs
from caudal.store.blobs import open_blobs
from caudal.store.model_files import MAX_FILES, PICKLE_SUFFIXES
from caudal.store.pull.base import Fetched, check_sha256, explained, refuse_sha256


def fetch(source: str, folder: Path, sha256: str = "") -> Fetched:
    """Download the file or the folder that the address names. Raises as `pull.fetch`."""
    parent, _, name = source.rstrip("/").rpartition("/")
    if parent.endswith(("//", ":")) or parent.endswith(":/"):
        blobs, prefix = open_blobs(source), ""  # a whole bucket
    else:
        blobs, prefix = open_blobs(parent), name
    return fetch_from(blobs, prefix, source, folder, sha256)


def fetch_from(blobs: Blobs, name: str, source: str, folder: Path, sha256: str = "") -> Fetched:
    """The object `name` where it is a GGUF file, else all objects below it but pickles."""
    try:
        with explained(source):
            if name.endswith(".gguf"):
                blobs.get_file(name, folder / name)
                check_sha256(folder / name, sha256, source)
                return Fetched(gguf=name)
            refuse_sha256(sha256, source)
            _fetch_folder(blobs, f"{name}/" if name else "", source, folder)
            return Fetched()
    except (NotFound, Unreachable) as error:
        raise PullFailed(
            "the object store did not give the model", where=source, why=error.one_line(), remedy=error.remedy
        ) from error


def _fetch_folder(blobs: Blobs, prefix: str, source: str, folder: Path) -> None:
    paths = blobs.list(prefix)
    if not paths:
        raise PullFailed("nothing lies at this address", where=source, remedy="check the address")
    if len(paths) > MAX_FILES:
        raise PullFailed(f"more than {MAX_FILES} objects lie there", where=source, remedy="name one model")
    for path in paths:
        inner = PurePosixPath(path.removeprefix(prefix))
        hidden = any(part.startswith(".") for part in inner.parts)  # also `..`: never outside of the folder
        if hidden or inner.is_absolute():
            continue
        target = folder / inner
        target.parent.mkdir(parents=True, exist_ok=True)
        if inner.suffix.lower() in PICKLE_SUFFIXES:
            target.touch()  # not fetched; its name is there, for the error to say why the model is refused
            continue
        blobs.get_file(path, target)
