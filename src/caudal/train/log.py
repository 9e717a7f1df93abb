"""Lines for people who read a gang's log."""

from __future__ import annotations

import sys
import time


def say(text: str) -> None:
    """One line with the time, to stderr, at once."""
    stamp = time.strftime("%H:%M:%S", time.localtime())
    print(f"{stamp} {text}", file=sys.stderr, flush=True)
