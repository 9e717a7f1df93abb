"""A model that can be served: pulled from somewhere, or published by a run."""

from __future__ import annotations

from dataclasses import dataclass


@dataclass(frozen=True, slots=True)
class ModelRecord:
    """One version of a model in the model store; written once, never changed.

    `files` are names relative to the version's folder, with their sha256. `gguf` names the file that
    llama.cpp reads. `context` is the longest prompt plus reply in tokens (0: unknown).
    """

    id: str
    version: int
    source: str
    published_at: float
    files: tuple[tuple[str, str], ...]
    size_bytes: int
    gguf: str = ""
    context: int = 0
    licence: str = ""
    run: str = ""
