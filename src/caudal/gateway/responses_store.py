"""Responses that are kept on this gateway's disk: by owner, bounded in number, size and age.

A file per response, written beside and moved over. All processes of a site's gateway share the folder; another
site's gateway does not know them. Nothing is promised after a power cut: files are not synced.
"""

from __future__ import annotations

import contextlib
import hashlib
import os
import re
import time
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import msgspec

from caudal.gateway.openai_errors import ApiError

RESPONSE_ID = re.compile(r"resp_[0-9a-f]{32}")


@dataclass(frozen=True, slots=True)
class StoreLimits:
    """Per owner; the oldest go first. Counted every `sweep_every` answers, so that a few more may stand."""

    responses: int = 1000
    total_bytes: int = 64 * 1024 * 1024
    response_bytes: int = 4 * 1024 * 1024
    age_s: float = 30 * 86_400.0
    sweep_every: int = 16


class StoredResponse(msgspec.Struct):
    """A response, its own input, and the conversation before it."""

    response: dict[str, Any]
    input: list[dict[str, Any]]
    before: list[dict[str, Any]]


class ResponseStore:
    """Files under one folder. Every call may take as long as a disk takes: not for an event loop."""

    def __init__(self, folder: Path, limits: StoreLimits | None = None) -> None:
        self._folder = folder
        self._limits = limits or StoreLimits()
        self._puts = 0

    def put(self, owner: str, stored: StoredResponse) -> bool:
        """Keep one; False where it is larger than is kept. Raises OSError."""
        data = msgspec.json.encode(stored)
        if len(data) > self._limits.response_bytes:
            return False
        path = self._path(owner, stored.response["id"])
        path.parent.mkdir(parents=True, exist_ok=True, mode=0o700)
        beside = path.with_suffix(f".{os.getpid()}")
        beside.write_bytes(data)
        beside.replace(path)
        self._puts += 1
        if self._puts % self._limits.sweep_every == 0:
            self._sweep(path.parent)
        return True

    def get(self, owner: str, response_id: str) -> StoredResponse:
        """One of the owner's. Raises ApiError, 404."""
        path = self._path(owner, response_id)
        try:
            if time.time() - path.stat().st_mtime > self._limits.age_s:
                raise _missing(response_id)
            return msgspec.json.decode(path.read_bytes(), type=StoredResponse)
        except (OSError, msgspec.DecodeError):
            raise _missing(response_id) from None

    def delete(self, owner: str, response_id: str) -> None:
        """Forget one of the owner's. Raises ApiError, 404."""
        try:
            self._path(owner, response_id).unlink()
        except OSError:
            raise _missing(response_id) from None

    def _path(self, owner: str, response_id: str) -> Path:
        if not RESPONSE_ID.fullmatch(response_id):
            raise _missing(response_id)
        name = hashlib.sha256(owner.encode()).hexdigest()[:32]
        return self._folder / name / f"{response_id}.json"

    def _sweep(self, folder: Path) -> None:
        """Remove what is too old or too much."""
        files = []
        with contextlib.suppress(OSError):
            for entry in os.scandir(folder):
                with contextlib.suppress(OSError):  # another process was faster
                    seen = entry.stat()
                    files.append((seen.st_mtime, seen.st_size, entry.path))
        oldest = time.time() - self._limits.age_s
        size = 0
        for count, (written_at, length, path) in enumerate(sorted(files, reverse=True), start=1):
            size += length
            if written_at < oldest or count > self._limits.responses or size > self._limits.total_bytes:
                with contextlib.suppress(OSError):
                    Path(path).unlink()


def _missing(response_id: str) -> ApiError:
    message = f"Response with id '{response_id[:100]}' not found."
    return ApiError(404, "response_not_found", message, param="id")
