"""The part of the hot path that is in C (`_wire.c`), if it was built here. Python's own path is always whole: without
a compiler, or with CAUDAL_PURE_PYTHON=1, everything goes there. What is imported here is there only where it was BUILT."""

from __future__ import annotations

import os

PURE = "CAUDAL_PURE_PYTHON"

try:
    from caudal.gateway._wire import Pump, Valve, usage_counts
except ImportError:  # not built, or for another machine
    BUILT = False
else:
    BUILT = not os.environ.get(PURE)

__all__ = ["BUILT", "Pump", "Valve", "usage_counts"]
