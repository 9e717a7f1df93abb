"""A run's data files as files of this machine: where they lie, or copies, checked by their hashes."""

from __future__ import annotations

from pathlib import Path

from caudal.domain.errors import StorageFailed
from caudal.ports import Blobs
from caudal.store.pull.base import sha256_of
from caudal.train.interface import DataManifest


def data_folder(blobs: Blobs, prefix: str, manifest: DataManifest, cache_dir: Path) -> Path:
    """The folder that holds all files that the manifest names. Copies that are there already are kept.
    Raises NotFound, StorageFailed where a file is not what the manifest says."""
    local = blobs.local_path(f"{prefix}/data/manifest.json")
    if local is not None:
        return local.parent
    folder = cache_dir / prefix / "data"
    named = dict(manifest.files)
    for stage in manifest.stages:
        named.update(stage.files)
    for name, sha256 in named.items():
        path = folder / name
        if not path.resolve().is_relative_to(folder.resolve()):
            raise StorageFailed(f"the data's manifest names {name!r}, outside its folder", where=blobs.url)
        if path.is_file() and sha256_of(path) == sha256:
            continue
        path.parent.mkdir(parents=True, exist_ok=True)
        blobs.get_file(f"{prefix}/data/{name}", path)  # streamed: a base may be larger than memory
        if sha256_of(path) != sha256:
            path.unlink()
            raise StorageFailed(
                "a data file is not what the manifest says",
                where=f"{blobs.url}/{prefix}/data/{name}",
                why="its sha256 is another",
                remedy="apply the run again: its data is made anew",
            )
    return folder
