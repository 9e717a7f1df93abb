"""Write a local file wholly: who reads it, also after a power cut, sees the old bytes or the new ones.

Knows nothing of what is written.
"""

from __future__ import annotations

import os
import secrets
from pathlib import Path


def write_atomic(path: Path, data: bytes, *, mode: int = 0o644, if_absent: bool = False) -> None:
    """Put `data` at `path`, with its folders; `mode` (less the umask) holds from the first byte on.

    Temporary file, fsync, rename, fsync of the folder. With `if_absent` the last step is a hard link, which
    fails where the name is taken: raises FileExistsError, and of two writers exactly one succeeds. Other
    OSErrors (no space, no permission, a file where a folder should be) pass through; then `path` is as it
    was before. Takes 0.3-0.6 ms where a flush is quick, one or two flushes of the disk elsewhere.
    """
    make_folders(path.parent)
    # A name that ends in `#digits` is one that obstore's file store never lists: a crash in here leaves a
    # file behind that nobody takes for an object.
    temporary = path.with_name(f"{path.name}#{os.getpid()}{secrets.randbelow(10**9):09d}")
    try:
        _write_synced(temporary, data, mode)
        if if_absent:
            os.link(temporary, path)
            temporary.unlink()
        else:
            temporary.replace(path)
    except BaseException:
        temporary.unlink(missing_ok=True)
        raise
    sync_folder(path.parent)


def _write_synced(path: Path, data: bytes, mode: int) -> None:
    """A new file with these bytes, on the disk."""
    descriptor = os.open(path, os.O_WRONLY | os.O_CREAT | os.O_EXCL, mode)
    with os.fdopen(descriptor, "wb") as file:
        file.write(data)
        file.flush()
        os.fsync(file.fileno())


def make_folders(folder: Path) -> None:
    """Make `folder` and what is missing above it, each written down in its parent."""
    if folder.is_dir():
        return
    make_folders(folder.parent)
    folder.mkdir(exist_ok=True)
    sync_folder(folder.parent)


def sync_folder(folder: Path) -> None:
    """Have the folder's names on the disk; a rename or link that is not may be undone by a power cut."""
    if os.name != "posix":
        return  # elsewhere a folder cannot be opened; the file's own bytes are safe
    descriptor = os.open(folder, os.O_RDONLY)
    try:
        os.fsync(descriptor)
    finally:
        os.close(descriptor)
