"""Between a script's own loop and the thread that stands for the inner side: batches one way, "a step is done" the
other.

The script's thread is the only one that touches the model. It asks for a batch, begins it, and ends it; what
has to be done to the parameters (a new state, what other sites learnt) waits for the moment when it begins the
batch before which it belongs. A loader may fetch batches ahead of the steps; those of work that was revoked
meanwhile are void.
"""

from __future__ import annotations

import queue
import threading
import time
from collections.abc import Sequence
from dataclasses import dataclass, field
from typing import Any, Protocol

import numpy as np

from caudal.train.interface import Between, Flat, IdRange, InnerResult, Stage

WAIT_S = 0.5
"""So often a waiting side looks whether the other has ended."""


class Closed(Exception):
    """The script's loop is over; the inner side takes no more steps."""


class Parameters(Protocol):
    """A script's model and optimiser."""

    size: int

    def read(self) -> Flat:
        """A copy of all parameters as one vector."""
        ...

    def write(self, state: Flat) -> None:
        """Take over all parameters."""
        ...

    def add(self, start: int, change: Flat) -> None:
        """Add to the parameters from number `start` on."""
        ...

    def forget(self) -> None:
        """Clear the optimiser's moments."""
        ...


@dataclass(slots=True)
class Ticket:
    """One batch: the ids of its samples, whether it is a round's last, and where its step stands."""

    ids: tuple[int, ...]
    last: bool = False
    begins: threading.Event = field(default_factory=threading.Event)
    ready: threading.Event = field(default_factory=threading.Event)
    done: threading.Event = field(default_factory=threading.Event)
    taken: threading.Event = field(default_factory=threading.Event)
    void: bool = False
    loss: float = 0.0


class Gate:
    """An `Inner` whose steps a script takes."""

    def __init__(self, parameters: Parameters, stage: Stage) -> None:
        self.size = parameters.size
        self._parameters = parameters
        self._batch, self._first = stage.batch, stage.first_id
        self._tickets: queue.SimpleQueue[Ticket | None] = queue.SimpleQueue()
        self._pending: list[tuple[str, Any]] = []  # what is to be done before the next step
        self._lock = threading.Lock()
        self._closed = threading.Event()

    # ---- the script's side --------------------------------------------------------------------------------

    def fetch(self) -> Ticket | None:
        """The next batch; None when the run is finished. Blocks while there is nothing to train."""
        while True:
            ticket = self._tickets.get()
            if ticket is None or not ticket.void:
                return ticket

    def begin(self, ticket: Ticket) -> bool:
        """Before a batch's step: lets what is due be done to the model. False: it is void, its step is for
        nothing."""
        ticket.begins.set()
        self._wait(ticket.ready)
        if not ticket.void:
            self.settle()
        return not ticket.void

    def end(self, ticket: Ticket, loss: float) -> None:
        """Behind a batch's step. Returns when its result is taken."""
        if not ticket.void:
            ticket.loss = loss
            ticket.done.set()
            self._wait(ticket.taken)

    def settle(self) -> None:
        """Do what waits to be done to the model."""
        with self._lock:
            pending, self._pending = self._pending, []
        for what, value in pending:
            if what == "forget":
                self._parameters.forget()
            elif what == "load":
                self._parameters.write(value)
            else:
                self._parameters.add(*value)

    def close(self) -> None:
        """The script takes no more steps, or there are none."""
        self._closed.set()
        self._tickets.put(None)

    def _wait(self, event: threading.Event) -> None:
        while not event.wait(WAIT_S):
            if self._closed.is_set():
                raise Closed

    # ---- the inner side -----------------------------------------------------------------------------------

    def load(self, state: Flat) -> None:
        """Take over the parameters, before the next step."""
        with self._lock:
            self._pending = [item for item in self._pending if item[0] == "forget"]
            self._pending.append(("load", state.copy()))

    def forget(self) -> None:
        """Clear the optimiser's moments, before the next step."""
        self._later("forget", None)

    def add(self, start: int, change: Flat) -> None:
        """Add to the parameters, before the next step."""
        self._later("add", (start, change.copy()))

    def _later(self, what: str, value: Any) -> None:
        with self._lock:
            self._pending.append((what, value))

    def run(
        self,
        stage: int,
        ids: Sequence[IdRange],
        progress: tuple[float, float],
        between: Between,
        rate: float = 1.0,
    ) -> InnerResult:
        """Have the script take these steps; see `Inner.run`. The learning rate is the script's own: `rate` is 1."""
        started = time.perf_counter()
        positions = [i - self._first for some in ids for i in range(some.start, some.stop)]
        tickets = [
            Ticket(tuple(positions[at : at + self._batch])) for at in range(0, len(positions), self._batch)
        ]
        tickets[-1].last = True
        for ticket in tickets:
            self._tickets.put(ticket)
        total, params = 0.0, np.zeros(0, np.float32)
        for step, ticket in enumerate(tickets):
            self._wait(ticket.begins)
            if between(step):
                return self._stopped(tickets, step, total, started)
            ticket.ready.set()
            self._wait(ticket.done)
            total += ticket.loss * len(ticket.ids)
            if step == len(tickets) - 1:
                params = self._parameters.read()  # the script waits meanwhile
            ticket.taken.set()
        seconds = time.perf_counter() - started
        return InnerResult(params, len(positions), total / len(positions), len(tickets), seconds)

    def gradient(
        self,
        stage: int,
        ids: Sequence[IdRange],
        progress: tuple[float, float],
        between: Between,
        rate: float = 1.0,
    ) -> InnerResult:
        """Not to be had of a script, whose loop steps by itself: `outer` plans no round that asks for it."""
        raise AssertionError("a script's loop was asked for a gradient")

    def _stopped(self, tickets: list[Ticket], step: int, total: float, started: float) -> InnerResult:
        """What was done until now; the script, which waits meanwhile, is told that the rest is void."""
        self.settle()
        params = self._parameters.read()
        for void in tickets[step:]:
            void.void = True
            void.ready.set()
        trained = sum(len(ticket.ids) for ticket in tickets[:step])
        seconds = time.perf_counter() - started
        return InnerResult(params, trained, total / max(1, trained), step, seconds, stopped=True)

    def evaluate(self) -> dict[str, float]:
        """A script evaluates when it likes."""
        return {}

    def heldout(self) -> dict[str, Any]:
        """No questions."""
        return {"correct": 0, "of": 0, "samples": []}
