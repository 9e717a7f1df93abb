"""What happened, for people and for scripts: one line each, kept in order."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any


@dataclass(frozen=True, slots=True)
class Event:
    """`kind` is stable (`gang.started`, `run.committed`, `model.published`, ...); `subject` is the name of
    the workload, slot, lease or model. `seq` is given by the store (0 before)."""

    at: float
    kind: str
    subject: str
    text: str
    data: Mapping[str, Any] = field(default_factory=dict)
    seq: int = 0


@dataclass(frozen=True, slots=True)
class Point:
    """One row of a run's curve, as its coordinator reported it. `seq` rises by one per run."""

    run: str
    seq: int
    at: float
    values: Mapping[str, Any]
