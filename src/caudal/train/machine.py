"""What decides the last bit of a step: the kind of processor, as the one that computes sees it, and its threads."""

from __future__ import annotations

import platform
import sys


def machine(threads: int) -> str:
    """In one word: `x86_64/AVX2/1`. Asks torch only where it is loaded already; unknown is left out."""
    torch = sys.modules.get("torch")
    capability = torch.backends.cpu.get_cpu_capability() if torch is not None else "numpy"
    return f"{platform.machine()}/{capability}/{threads}"
