"""Caudal: one fleet from many clouds, for the model you train and the assistant you serve."""

from __future__ import annotations

import importlib
from typing import Any

__version__ = "0.1.0"

_LAZY = {"outer": "caudal.train.script.run", "OuterSpec": "caudal.domain.workload"}
"""What scripts use, and where it lives: loaded when it is asked for, because one of them brings torch."""


def __getattr__(name: str) -> Any:
    if name not in _LAZY:
        raise AttributeError(f"module 'caudal' has no attribute {name!r}")
    return getattr(importlib.import_module(_LAZY[name]), name)
