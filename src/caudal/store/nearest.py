"""The nearest of several object stores, for reading: what never changes may be read wherever it is soonest had."""

from __future__ import annotations

import time
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import TypeVar

from caudal.domain.errors import CaudalError, NotFound
from caudal.ports import Blobs
from caudal.store.mirror import MARKER, Mirror

T = TypeVar("T")

PROBES = 2
"""How often a store is asked; its quickest answer counts, since the first one opens a connection."""


class Nearest:
    """`ports.Blobs` over a mirror whose reads ask the stores in this order: what one has not got or does not answer, the
    next is asked. For what never changes once it is there, or whose age does no harm. Writes are the mirror's."""

    def __init__(self, mirror: Mirror, stores: tuple[Blobs, ...]) -> None:
        self.stores, self.url = stores, stores[0].url
        self.put, self.put_file, self.delete = mirror.put, mirror.put_file, mirror.delete

    def get(self, path: str) -> bytes:
        """As `Blobs.get`."""
        return self._asked(lambda store: store.get(path))

    def get_file(self, path: str, target: Path) -> None:
        """As `Blobs.get_file`."""
        self._asked(lambda store: store.get_file(path, target))

    def list(self, prefix: str) -> list[str]:
        """As `Blobs.list`, of the first store that answers."""
        return [path for path in self._asked(lambda store: store.list(prefix)) if path != MARKER]

    def local_path(self, path: str) -> Path | None:
        """As `Blobs.local_path`, of the nearest store."""
        return self.stores[0].local_path(path)

    def _asked(self, ask: Callable[[Blobs], T]) -> T:
        """The first answer. Raises NotFound where all stores say so, else what a store that failed said."""
        problem: CaudalError | None = None
        for store in self.stores:
            try:
                return ask(store)
            except CaudalError as error:
                problem = error if problem is None or isinstance(problem, NotFound) else problem
        assert problem is not None
        raise problem


def nearest(blobs: Blobs) -> Blobs:
    """The stores of a mirror, the one first that answers soonest; any other store as it is."""
    if not isinstance(blobs, Mirror):
        return blobs
    with ThreadPoolExecutor(len(blobs.stores)) as pool:
        seconds = list(pool.map(_seconds, blobs.stores))
    order = sorted(range(len(seconds)), key=lambda number: (seconds[number], number))
    return Nearest(blobs, tuple(blobs.stores[number] for number in order))


def _seconds(store: Blobs) -> float:
    """How long a small answer takes; inf where there is none."""
    best = float("inf")
    for _ in range(PROBES):
        started = time.perf_counter()
        try:
            store.get(MARKER)
        except CaudalError:
            return float("inf")  # away, or without the mirror's objects
        best = min(best, time.perf_counter() - started)
    return best
