"""A site's machine and the thread that computes for it, for the life of a worker: connections come and go.

Carries out what the machine asks of the inner side, and hands what it says to the connection there is. The
steps go on while there is none. Decides nothing.
"""

from __future__ import annotations

import asyncio
import threading
import time
from collections.abc import Callable
from functools import partial
from typing import Any

from caudal.telemetry.report import Reporter
from caudal.train.compute import ComputeThread
from caudal.train.interface import Inner, InnerResult, Recalling
from caudal.train.kept import Kept
from caudal.train.memory import Known, Memory
from caudal.train.messages import Message
from caudal.train.protocol.effects import (
    Assess,
    Compute,
    CutShort,
    Done,
    Forget,
    Load,
    Recall,
    Rejoin,
    Remember,
    Send,
    Shift,
    SiteEffect,
    StopCompute,
)
from caudal.train.protocol.site import Site
from caudal.train.protocol.work import Applied

Ending = Done | Rejoin
Carry = Callable[[Message, Any], None]


class Shifts:
    """Changes on their way to the inner side: each is added once, by whoever comes first, the steps under way
    or the job behind them."""

    def __init__(self) -> None:
        self._lock = threading.Lock()
        self._waiting: list[Shift] = []

    def put(self, shift: Shift) -> None:
        """One more."""
        with self._lock:
            self._waiting.append(shift)

    def take(self) -> list[Shift]:
        """All that nobody took, in their order."""
        with self._lock:
            taken, self._waiting = self._waiting, []
        return taken

    def take_one(self, shift: Shift) -> bool:
        """Whether this one was still there."""
        with self._lock:
            there = any(waiting is shift for waiting in self._waiting)
            self._waiting = [waiting for waiting in self._waiting if waiting is not shift]
        return there


class Runner:
    """`carry` puts a frame on the connection there is; `over` is told how a connection should end."""

    def __init__(self, site: Site, thread: ComputeThread, reporter: Reporter) -> None:
        self.site, self.thread = site, thread
        self._reporter = reporter
        self._stop = threading.Event()
        self._short = threading.Event()
        self._shifts = Shifts()
        self._kept = Kept()
        self._memory: Memory | None = None
        self._carry: Carry | None = None
        self._over: asyncio.Future[Ending] | None = None

    def remember(self, memory: Memory, known: Known | None) -> None:
        """Moments outlive this process there; `known` are those of the one before it."""
        if not self.thread.recalls:
            return
        self._memory = memory
        if known is not None:
            self.thread.submit(partial(_inherit, known), _nothing)
            self.site.inherit(known.round)

    def attach(self, carry: Carry, over: asyncio.Future[Ending]) -> None:
        """There is a connection."""
        self._carry, self._over = carry, over

    def detach(self) -> None:
        """There is none. What the machine says now is said again when it is asked for."""
        self._carry = self._over = None

    def heard(self, message: Message, payload: bytes) -> None:
        """The coordinator says something."""
        self._do(self.site.message(message, payload, time.monotonic()))

    def _do(self, effects: list[SiteEffect]) -> None:
        for effect in effects:
            if isinstance(effect, Send):
                if self._carry is not None:
                    self._carry(effect.message, effect.payload)
            elif isinstance(effect, Shift):
                self._shifts.put(effect)
                self.thread.submit(partial(_add, effect, self._shifts), _nothing)
            elif isinstance(effect, Compute):
                self._stop, self._short = threading.Event(), threading.Event()
                job = partial(_compute, effect, self._stop, self._short, self._shifts, self._kept)
                self.thread.submit(job, self._computed)
                self._reporter.update(phase="computing")
            elif isinstance(effect, StopCompute):
                self._stop.set()
            elif isinstance(effect, CutShort):
                self._short.set()
            elif isinstance(effect, Done | Rejoin):
                if self._over is not None and not self._over.done():
                    self._over.set_result(effect)
            else:
                self._prepare(effect)

    def _prepare(self, effect: Load | Forget | Recall | Remember | Assess) -> None:
        if isinstance(effect, Load):
            self.thread.submit(partial(_load, effect), _nothing)
            self._reporter.update(phase="waiting", round=effect.round)
        elif isinstance(effect, Forget):
            self.thread.submit(partial(_forget, self._kept), _nothing)
        elif isinstance(effect, Recall):
            self.thread.submit(partial(self._kept.recall, effect), _nothing)
        elif isinstance(effect, Remember):
            if self._memory is not None and self._memory.due():
                self.thread.submit(partial(_known, effect, self._kept), self._write)
        else:
            self.thread.submit(partial(_assess, effect), self._assessed)
            self._reporter.update(phase="evaluating")

    def _write(self, known: Known) -> None:
        assert self._memory is not None
        asyncio.get_running_loop().run_in_executor(None, self._memory.write, known)

    def _computed(self, answer: tuple[InnerResult, Applied]) -> None:
        result, applied = answer
        self._do(self.site.computed(result, applied, time.monotonic()))
        if not result.stopped:
            speed = round(result.tokens / max(1e-6, result.seconds), 1)
            phase = "computing" if self.site.computing else "waiting"
            self._reporter.update(phase=phase, round=self.site.round, loss=result.loss, tokens_per_s=speed)

    def _assessed(self, answer: tuple[int, dict[str, float], dict[str, Any] | None]) -> None:
        self._do(self.site.assessed(*answer))


def _load(order: Load, inner: Inner) -> None:
    inner.load(order.state)


def _forget(kept: Kept, inner: Inner) -> None:
    kept.forget()
    inner.forget()


def _known(effect: Remember, kept: Kept, inner: Inner) -> Known:
    return Known(effect.round, effect.epoch, kept.after(effect.round, inner))


def _inherit(known: Known, inner: Inner) -> None:
    assert isinstance(inner, Recalling)
    inner.recall(known.moments)


def _add(shift: Shift, shifts: Shifts, inner: Inner) -> None:
    if shifts.take_one(shift):
        inner.add(shift.start, shift.change)


def _compute(
    order: Compute, stop: threading.Event, short: threading.Event, shifts: Shifts, kept: Kept, inner: Inner
) -> tuple[InnerResult, Applied]:
    applied: Applied = {}
    kept.mark(order, inner)

    def between(step: int) -> bool:
        for shift in shifts.take():
            inner.add(shift.start, shift.change)
            applied[shift.key] = step
        return stop.is_set() or (step > 0 and short.is_set())

    work = inner.gradient if order.gradient else inner.run
    return work(order.stage, order.ids, order.progress, between, order.rate), applied


def _assess(order: Assess, inner: Inner) -> tuple[int, dict[str, float], dict[str, Any] | None]:
    inner.load(order.state)
    values, heldout = inner.evaluate(), inner.heldout() if order.heldout else None
    inner.load(order.back)
    return order.round, values, heldout


def _nothing(_: None) -> None:
    return
