"""The first process of a worker's gang: it starts the worker, keeps a spare and the standby, and minds them.

It has loaded nothing that computes (about 17 MB), so there is little that could kill it. Every child has a
line to it (child.py), and ends when that line ends or, on Linux, when the kernel sees this process die: of a gang
whose first process is gone nothing is left. What is to be done is decided in minding.py; this carries it out.
Two workers of one gang never both take part: a spare is told to go when the worker's end has been *waited for*.
"""

from __future__ import annotations

import os
import resource
import selectors
import signal
import sys
import time
from collections.abc import Sequence

from caudal.train.child import GO, LOST, MEANT, PART, Child
from caudal.train.config import WorkerConfig
from caudal.train.log import say
from caudal.train.minding import TERMINATED, Ended, Minding, Order, Step

AGAIN_S = 2.0
"""So often the standby is told of the same epoch again."""

STANDBY_PATIENCE_S = 10.0
LOOK_S = 5.0
SIGNALS = (signal.SIGCHLD, signal.SIGTERM, signal.SIGINT)
WORKER, SPARE = "worker", "spare"


class Minder:
    """`command` is what this process was started with: with one word more it is the worker, or the spare."""

    def __init__(self, config: WorkerConfig, path: str, command: Sequence[str]) -> None:
        self._config, self._path = config, path
        self._command = [sys.executable, *command[1:]]
        self._minding = Minding()
        self._worker: Child | None = None
        self._spare: Child | None = None
        self._standby: Child | None = None
        self._told: tuple[int, float] = (-1, 0.0)
        self._asked = 0
        self._over: Order | None = None
        self._selector = selectors.DefaultSelector()

    def run(self) -> int:
        """Mind the worker to its end; returns the exit code, or does not return where a signal ended it."""
        self._listen()
        try:
            self._go(self._start(WORKER), 0)
            while self._over is None and not self._asked:
                self._wait()
                self._look(time.monotonic())
            if self._over is not None and self._over.code == 0 and self._standby is not None:
                self._standby.close()
                self._standby.wait(STANDBY_PATIENCE_S)
        finally:
            for child in self._children():
                child.kill()
        if self._over is None:
            return 128 + self._asked
        return self._over.code if self._over.code >= 0 else _end_by(-self._over.code)

    def _children(self) -> list[Child]:
        return [child for child in (self._worker, self._spare, self._standby) if child is not None]

    # ---- what happens -------------------------------------------------------------------------------------

    def _listen(self) -> None:
        """Turn signals into a readable descriptor, so that nothing is missed between looking and waiting."""
        read_end, write_end = os.pipe()
        os.set_blocking(read_end, False)
        os.set_blocking(write_end, False)
        for number in SIGNALS:
            signal.signal(number, self._noted)
        signal.set_wakeup_fd(write_end, warn_on_full_buffer=False)
        self._selector.register(read_end, selectors.EVENT_READ)

    def _noted(self, number: int, _frame: object) -> None:
        if number != signal.SIGCHLD:
            self._asked = self._asked or number

    def _wait(self) -> None:
        due = self._minding.due_in(time.monotonic())
        for key, _ in self._selector.select(LOOK_S if due is None else min(due, LOOK_S)):
            if isinstance(key.data, Child):
                self._hear(key.data)
            else:
                os.read(key.fd, 4096)

    def _hear(self, child: Child) -> None:
        for line in child.words():
            word, _, number = line.partition(" ")
            if word == MEANT:
                child.meant = True
            elif child is not self._worker:
                continue
            elif word == PART:
                self._minding.took_part(time.monotonic())
                self._stand_by()
            elif word == LOST and number.isdigit():
                self._lost(int(number))
        if child.silent:
            self._selector.unregister(child.line)

    def _look(self, now: float) -> None:
        """See who has ended, and whether it is time for something."""
        if self._asked:
            return
        if self._standby is not None and self._standby.ended() is not None:
            self._standby.close()
            self._standby = None  # the next word to it starts another
        if self._spare is not None and (code := self._spare.ended()) is not None:
            self._drop(self._spare)
            self._spare = None
            say(f"the spare {Ended(code)}; another is started later")
            self._minding.spare_ended(now)
        worker = self._worker
        if worker is not None and (code := worker.ended()) is not None:
            self._drop(worker)
            self._worker = None
            self._do(self._minding.worker_ended(Ended(code, worker.meant), now))
        self._do(self._minding.look(now))

    def _do(self, order: Order) -> None:
        if order.why:
            say(order.why)
        if order.step is Step.END:
            self._over = order
        elif order.step is Step.START:
            self._go(self._start(WORKER), order.restart)
        elif order.step is Step.PROMOTE:
            assert self._spare is not None
            ready, self._spare = self._spare, None
            if ready.ended() is not None:  # what killed the worker killed it too
                self._drop(ready)
                ready = self._start(WORKER)
            self._go(ready, order.restart)
        elif order.step is Step.SPARE and self._over is None:
            try:
                self._spare = self._start(SPARE)
            except OSError as error:
                say(f"no spare could be started: {error}")
                self._minding.spare_ended(time.monotonic())

    # ---- children -----------------------------------------------------------------------------------------

    def _start(self, part: str) -> Child:
        child = Child.start([*self._command, part])
        self._selector.register(child.line, selectors.EVENT_READ, child)
        return child

    def _go(self, child: Child, restart: int) -> None:
        self._worker = child
        child.tell(f"{GO} {restart}")

    def _drop(self, child: Child) -> None:
        """What it said last is heard; then its line is let go."""
        if not child.silent:
            self._hear(child)
        if not child.silent:
            self._selector.unregister(child.line)
        child.close()

    def _stand_by(self) -> Child | None:
        """The standby, started where it does not run."""
        if self._config.standby and self._standby is None:
            try:
                self._standby = Child.start([sys.executable, "-m", "caudal.train.standby", self._path])
            except OSError as error:
                say(f"no standby could be started: {error}")
        return self._standby

    def _lost(self, epoch: int) -> None:
        now = time.monotonic()
        if self._told[0] == epoch and now - self._told[1] < AGAIN_S:
            return
        self._told = epoch, now
        standby = self._stand_by()
        if standby is not None:
            standby.tell(str(epoch))


def _end_by(number: int) -> int:
    """End as the worker did: who started this gang sees the same signal."""
    resource.setrlimit(resource.RLIMIT_CORE, (0, 0))
    if number != signal.SIGKILL:
        signal.signal(number, signal.SIG_DFL)
    os.kill(os.getpid(), number)
    return TERMINATED  # a signal that ends nobody by itself
