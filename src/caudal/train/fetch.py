"""A run's data files as files of this machine: where they lie, or copies, checked by their hashes."""

from __future__ import annotations

import hashlib
import os
import secrets
from pathlib import Path

from caudal.domain.errors import StorageFailed
from caudal.ports import Blobs
from caudal.train.interface import DataManifest


def data_folder(blobs: Blobs, prefix: str, manifest: DataManifest, cache_dir: Path) -> Path:
    """The folder that holds all files that the manifest names. Copies that are there already are kept; none is
    ever whole in memory. Raises NotFound, StorageFailed where a file is not what the manifest says."""
    local = blobs.local_path(f"{prefix}/data/manifest.json")
    if local is not None:
        return local.parent
    folder = cache_dir / prefix / "data"
    wanted = dict(manifest.files)
    for stage in manifest.stages:
        wanted.update(stage.files)
    for name, sha256 in wanted.items():
        path = folder / name
        if not path.resolve().is_relative_to(folder.resolve()):
            raise StorageFailed(f"the data's manifest names {name!r}, outside its folder", where=blobs.url)
        if path.is_file() and _sha256(path) == sha256:
            continue
        _fetch(blobs, f"{prefix}/data/{name}", path, sha256)
    return folder


def _fetch(blobs: Blobs, name: str, path: Path, sha256: str) -> None:
    """The object at `path`, which is not there before it is known to be right."""
    # A name of its own: the sites of one machine share a cache, and fetch at the same time.
    came = path.with_name(f"{path.name}.{os.getpid()}-{secrets.randbelow(10**9):09d}.unchecked")
    try:
        blobs.get_file(name, came)
        if _sha256(came) != sha256:
            raise StorageFailed(
                "a data file is not what the manifest says",
                where=f"{blobs.url}/{name}",
                why="its sha256 is another",
                remedy="apply the run again: its data is made anew",
            )
        came.replace(path)
    finally:
        came.unlink(missing_ok=True)


def _sha256(path: Path) -> str:
    with path.open("rb") as file:
        return hashlib.file_digest(file, "sha256").hexdigest()
