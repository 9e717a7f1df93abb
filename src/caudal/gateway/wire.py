"""The part of the hot path that is in C (`_wire.c`), if it was built here. Python's own path is always whole: without
a compiler, or with CAUDAL_PURE_PYTHON=1, everything goes there. What is imported here is there only where it was BUILT."""

from __future__ import annotations

import asyncio
import os

PURE = "CAUDAL_PURE_PYTHON"

try:
    from caudal.gateway._wire import Heads, Outlet, Pump, Valve, usage_counts
except ImportError:  # not built, or for another machine
    BUILT = False
else:
    BUILT = not os.environ.get(PURE)


def outlet(transport: asyncio.Transport) -> Outlet | None:
    """What writes to a transport without the loop; None where that was not built, or its bytes are not those of its
    socket (TLS)."""
    if not BUILT or transport.get_extra_info("sslcontext") is not None:
        return None
    fd = transport.get_extra_info("socket").fileno()
    return Outlet(transport.write, transport.is_closing, transport.get_write_buffer_size, fd)


__all__ = ["BUILT", "Heads", "Outlet", "Pump", "Valve", "usage_counts"]
