"""Files into an object store and out of it, without ever being whole in memory.

Knows nothing of paths' meanings nor of errors' words: blobs.py checks the one and explains the other.
"""

from __future__ import annotations

import os
import secrets
import shutil
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import obstore
from obstore.store import ObjectStore

from caudal.store.atomic import make_folders, sync_folder

CHUNK_BYTES = 8 << 20


def place(source: Path, target: Path, *, if_absent: bool) -> None:
    """Have the file at `target` too: linked where both are on one disk, else copied; then written through.

    Raises FileExistsError with `if_absent` where the name is taken, OSError; `target` is never half there.
    """
    make_folders(target.parent)
    with _temporary(target) as temporary:
        try:
            os.link(source, temporary)
        except OSError:
            # Another disk, or one without links. What else is wrong (no such file, no room) fails again here.
            shutil.copyfile(source, temporary)
        _sync(temporary)
        if if_absent:
            os.link(temporary, target)
        else:
            temporary.replace(target)
    sync_folder(target.parent)


def copy(source: Path, target: Path) -> None:
    """The file's bytes at `target`, wholly or not at all; not linked, since the target is somebody else's."""
    target.parent.mkdir(parents=True, exist_ok=True)
    with _temporary(target) as temporary:
        shutil.copyfile(source, temporary)
        temporary.replace(target)


def upload(store: ObjectStore, path: str, file: Path, *, if_absent: bool) -> None:
    """Stream the file to the store: in parts that are joined at the end, or at once where it has to be
    created, since stores join no parts under that condition."""
    if if_absent:
        with file.open("rb") as stream:
            obstore.put(store, path, stream, mode="create", use_multipart=False)
    else:
        obstore.put(store, path, file, chunk_size=CHUNK_BYTES)


def download(store: ObjectStore, path: str, target: Path) -> None:
    """Stream the object into `target`, wholly or not at all."""
    found = obstore.get(store, path)
    target.parent.mkdir(parents=True, exist_ok=True)
    with _temporary(target) as temporary:
        with temporary.open("xb") as file:
            for chunk in found.stream(min_chunk_size=CHUNK_BYTES):
                file.write(chunk)
        temporary.replace(target)


@contextmanager
def _temporary(target: Path) -> Iterator[Path]:
    """A name beside the target that is free, and free again afterwards. (`#digits` at its end: obstore's
    file store never lists it.)"""
    path = target.with_name(f"{target.name}#{os.getpid()}{secrets.randbelow(10**9):09d}")
    try:
        yield path
    finally:
        path.unlink(missing_ok=True)


def _sync(path: Path) -> None:
    with path.open("rb") as file:
        os.fsync(file.fileno())
