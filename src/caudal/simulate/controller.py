"""A simulated control process: it takes the production loop's steps one at a time, and can be killed or
held up between any two of them. Knows nothing about what a step does."""

from __future__ import annotations

import random
from collections.abc import Callable, Iterator
from typing import Protocol

from caudal.domain.errors import Stale, StateHeld
from caudal.simulate.kernel import Kernel


class Steps(Protocol):
    """What is asked of a control loop: one pass as a generator, one name after each step."""

    def steps(self) -> Iterator[str]:
        """One pass."""
        ...


class Controller:
    """One control process in virtual time. `make_loop` builds a fresh loop, as a new process would."""

    def __init__(
        self,
        name: str,
        kernel: Kernel,
        make_loop: Callable[[], Steps],
        chance: random.Random,
        trace: Callable[[str], None],
        interval_s: float = 1.5,
        step_s: tuple[float, float] = (0.001, 0.05),
    ) -> None:
        self.name = name
        self.alive = True
        self.hung_until = 0.0
        self.leads = False
        """Whether its last pass was not refused: as far as it knows."""
        self.passes = 0
        self._kernel = kernel
        self._loop = make_loop()
        self._steps: Iterator[str] | None = None
        self._chance = chance
        self._trace = trace
        self._interval_s = interval_s
        self._step_s = step_s
        self._trace(f"control {name} comes up")
        self._kernel.after(0.0, self._next)

    @property
    def answers(self) -> bool:
        """Whether it takes reports now."""
        return self.alive and self._kernel.now() >= self.hung_until

    def kill(self) -> None:
        """The process is gone, wherever it was: what it held in memory is lost."""
        self.alive = False
        self.leads = False
        self._steps = None
        self._trace(f"control {self.name} is killed")

    def hang(self, seconds: float) -> None:
        """It takes no step for that long (a stopped process, a stalled disk), then goes on where it was."""
        self.hung_until = max(self.hung_until, self._kernel.now() + seconds)
        self._trace(f"control {self.name} hangs for {seconds:.1f} s")

    def _next(self) -> None:
        if not self.alive:
            return
        wait_s = self.hung_until - self._kernel.now()
        if wait_s > 0:
            self._kernel.after(wait_s, self._next)
            return
        delay_s = self._step()
        if self.alive:
            self._kernel.after(delay_s, self._next)

    def _step(self) -> float:
        """Take one step; returns how long until the next one."""
        if self._steps is None:
            self._steps = iter(self._loop.steps())
        try:
            name = next(self._steps)
        except StopIteration:
            self._steps = None
            self.leads = True
            self.passes += 1
            return self._interval_s
        except (StateHeld, Stale) as refused:
            self._steps = None
            self.leads = False
            self._trace(f"control {self.name} refused: {refused.code}")
            return self._interval_s
        self._trace(f"control {self.name} {name}")
        return self._chance.uniform(*self._step_s)
