"""Where calls that take minutes run: beside the loop, or at once.

An effect that was under way when the process died is asked for again; that is why such calls are idempotent.
"""

from __future__ import annotations

import threading
from collections.abc import Callable
from dataclasses import dataclass
from typing import Protocol

from caudal.domain.errors import CaudalError, Failed


@dataclass(frozen=True, slots=True)
class Outcome:
    """How a call ended; `error` is None where it did what was asked."""

    error: CaudalError | None = None


class Background(Protocol):
    """Runs a function per key, once until its outcome has been taken."""

    def submit(self, key: str, fn: Callable[[], object]) -> None:
        """Run it; a key that is running, or whose outcome was not taken yet, is left alone."""
        ...

    def finished(self, key: str) -> Outcome | None:
        """Take the outcome of a key; None where it runs, or was never submitted."""
        ...


def _run(fn: Callable[[], object]) -> Outcome:
    try:
        fn()
    except CaudalError as error:
        return Outcome(error)
    except Exception as error:
        # It must not vanish with its thread: it is kept as this call's failure and shown as such.
        return Outcome(Failed(f"unexpected {type(error).__name__}: {error}", remedy="report this as a bug"))
    return Outcome()


class ImmediateBackground:
    """Runs at once, in the caller's thread: for tests and the simulator."""

    def __init__(self) -> None:
        self._outcomes: dict[str, Outcome] = {}

    def submit(self, key: str, fn: Callable[[], object]) -> None:
        """Run it now."""
        if key not in self._outcomes:
            self._outcomes[key] = _run(fn)

    def finished(self, key: str) -> Outcome | None:
        """Take the outcome."""
        return self._outcomes.pop(key, None)


class ThreadBackground:
    """Runs each call in a thread of its own, which does not keep the process from leaving."""

    def __init__(self) -> None:
        self._lock = threading.Lock()
        self._running: set[str] = set()
        self._outcomes: dict[str, Outcome] = {}

    def submit(self, key: str, fn: Callable[[], object]) -> None:
        """Start its thread."""
        with self._lock:
            if key in self._running or key in self._outcomes:
                return
            self._running.add(key)
        threading.Thread(target=self._work, args=(key, fn), name=f"background {key}", daemon=True).start()

    def finished(self, key: str) -> Outcome | None:
        """Take the outcome, if there is one yet."""
        with self._lock:
            return self._outcomes.pop(key, None)

    def _work(self, key: str, fn: Callable[[], object]) -> None:
        outcome = _run(fn)
        with self._lock:
            self._running.discard(key)
            self._outcomes[key] = outcome
