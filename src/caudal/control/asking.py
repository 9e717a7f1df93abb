"""How providers and drivers are asked what they have: one after the other, or all at once with a bound for each.

Knows nothing of what is asked. One that does not answer in time delays the others once, by `patience_s`, and is *late*: its
call goes on, and what it says is taken at a later look. Nothing is asked of it twice at the same time.
"""

from __future__ import annotations

import threading
import time
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import Generic, Protocol, TypeVar

from caudal.domain.errors import CaudalError
from caudal.ports import Clock

PATIENCE_S = 1.25
"""A list of a healthy site takes hundredths of a second; a cloud's, some tenths. More than a second, after which the
drivers give up a head that is gone: then that is known in the same pass."""

HUNG_S = 120.0
"""A call that takes longer than every driver's own bound (Slurm's over SSH: 60 s) hangs: that is silence."""

T = TypeVar("T")


@dataclass(frozen=True, slots=True)
class Answer(Generic[T]):
    """What came of a question: `value`; or None where it failed, or is `late`: then nothing is known yet."""

    asked_at: float
    value: T | None = None
    late: bool = False


class Asking(Protocol):
    """Puts questions, each under its own name."""

    def ask(self, questions: Mapping[str, Callable[[], T]], clock: Clock) -> dict[str, Answer[T]]:
        """An answer for each. A question that fails with a CaudalError has no value; anything else is raised."""
        ...


class InTurn:
    """One after the other, in the caller's thread: for tests and the simulator."""

    def ask(self, questions: Mapping[str, Callable[[], T]], clock: Clock) -> dict[str, Answer[T]]:
        """All of them, in their order."""
        answers: dict[str, Answer[T]] = {}
        for name, question in questions.items():
            asked_at = clock.now()
            try:
                answers[name] = Answer(asked_at, question())
            except CaudalError:
                answers[name] = Answer(asked_at)
        return answers


class _Call:
    """One question on its way, in a thread that does not keep the process from leaving."""

    def __init__(self, name: str, question: Callable[[], object], clock: Clock) -> None:
        self.asked_at = clock.now()
        self.took_s = 0.0
        self.over = threading.Event()
        self.value: object = None
        self.error: Exception | None = None
        self._question = question
        self._began = time.monotonic()
        threading.Thread(target=self._run, name=f"asking {name}", daemon=True).start()

    def _run(self) -> None:
        try:
            self.value = self._question()
        except Exception as error:  # kept for whoever waits: a bug must not end unseen with this thread
            self.error = error
        self.took_s = time.monotonic() - self._began
        self.over.set()


class Together:
    """All at once. Who failed the last time, or took too long, is not waited for: the others are not to pay for it
    again. What it says is taken at the look after it has."""

    def __init__(self, patience_s: float = PATIENCE_S) -> None:
        self._patience_s = patience_s
        self._calls: dict[str, _Call] = {}
        self._doubted: set[str] = set()

    def ask(self, questions: Mapping[str, Callable[[], T]], clock: Clock) -> dict[str, Answer[T]]:
        """Ask all that are not being asked still, and wait for those that are expected to answer."""
        for name, question in questions.items():
            if name not in self._calls:
                self._calls[name] = _Call(name, question, clock)
        until = time.monotonic() + self._patience_s
        for name in questions:
            if name not in self._doubted:
                self._calls[name].over.wait(max(0.0, until - time.monotonic()))
        return {name: self._taken(name, clock) for name in questions}

    def _taken(self, name: str, clock: Clock) -> Answer[T]:
        call = self._calls[name]
        if not call.over.is_set():
            self._doubted.add(name)
            return Answer(call.asked_at, late=clock.now() - call.asked_at < HUNG_S)
        del self._calls[name]
        if call.error is None and call.took_s < self._patience_s:
            self._doubted.discard(name)
        else:
            self._doubted.add(name)
        if call.error is None:
            return Answer(call.asked_at, call.value)  # type: ignore[arg-type]  # what its question returns
        if isinstance(call.error, CaudalError):
            return Answer(call.asked_at)
        raise call.error
