"""What all rows of the WAN benchmark are told."""

from __future__ import annotations

import itertools
import sys
import time
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from caudal.domain.workload import ModelShape

_numbers = itertools.count(1)


@dataclass(frozen=True)
class Options:
    """`cache` keeps data and what runs leave behind while the benchmark runs."""

    cache: Path
    shape: ModelShape
    repeats: int
    quick: bool
    peers: tuple[str, ...]
    rates: tuple[float, ...] = (100.0, 10.0)
    settle_s: float = 60.0
    measure_s: float = 90.0
    fixed_step_s: float = 0.5
    sync_every: int = 20
    loss_tokens: int = 2_000_000
    chaos_events: int = 50
    chaos_tokens: int = 3_000_000
    goodput_s: float = 300.0
    seed: int = 0  # of the loss row: of its first repeat; 0: fresh ones
    data: str = "builtin:tinyworld"  # of the rows loss and chaos; or a text file
    outer: dict[str, Any] = field(default_factory=dict)

    def folder(self) -> Path:
        """A new folder for a run."""
        return self.cache / f"run-{next(_numbers)}"

    def say(self, text: str) -> None:
        """What is going on, for who watches."""
        print(f"{time.strftime('%H:%M:%S')} {text}", file=sys.stderr, flush=True)
