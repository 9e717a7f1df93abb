"""A provider of machines that do not exist: for tests, for trying things out, and for the simulator.

It keeps its own list of machines, as a cloud does: with a capacity per offer, a boot time, a list that lags
behind, calls that fail, and calls that take effect although they failed. All of it is decided by the clock
and the chance that it is given, so the same seed behaves the same.

    provider = FakeProvider("fake", [offer], clock, capacity={"small@north": 2})
    provider.acquire("lease-1", offer, token="t-1")
    clock.sleep(5)
    assert provider.machines()[0].state is MachineState.RUNNING

Knows nothing about nodes, gangs, or why a machine is wanted.
"""

from __future__ import annotations

import random
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, replace
from typing import Literal

from caudal.domain.errors import NoCapacity, Unreachable
from caudal.domain.fleet import Machine, MachineState, Offer
from caudal.ports import Clock

Fault = Literal["", "lost_call", "lost_answer"]
"""What becomes of a call: nothing; it never arrives; it takes effect and the answer is lost."""

Span = tuple[float, float]
"""From and to, in seconds; each time a value between them is drawn."""


@dataclass(frozen=True, slots=True)
class MachineTimes:
    """How long things take, in seconds. `listed_after_s` is how far the list lags behind an acquire."""

    listed_after_s: Span = (0.0, 0.0)
    boot_s: Span = (1.0, 3.0)
    stop_s: Span = (0.2, 1.0)


@dataclass(slots=True)
class _Row:
    machine_id: str
    offer: Offer
    lease_id: str
    listed_at: float
    runs_at: float
    stopping_at: float | None = None
    gone_at: float | None = None
    leaves_at: float | None = None

    def exists(self, now: float) -> bool:
        return self.gone_at is None or now < self.gone_at

    def seen(self, now: float) -> Machine:
        state = MachineState.RUNNING if now >= self.runs_at else MachineState.PENDING
        if self.stopping_at is not None:
            state = MachineState.STOPPING
        address = f"{self.machine_id}.invalid" if state is MachineState.RUNNING else ""
        return Machine(
            id=self.machine_id,
            site=self.offer.site,
            machine_type=self.offer.machine_type.name,
            state=state,
            lease_id=self.lease_id,
            address=address,
            leaves_at=self.leaves_at,
        )


def _no_fault(_call: str) -> Fault:
    return ""


def _no_trace(_line: str) -> None:
    return None


class FakeProvider:
    """Implements `ports.Provider` in memory.

    `capacity` bounds the machines per offer id (an offer that is not in it has no bound). `fault` is asked
    before every call that changes something, with the call's name. `trace` gets a line per change.
    """

    def __init__(
        self,
        name: str,
        offers: Sequence[Offer],
        clock: Clock,
        *,
        capacity: Mapping[str, int] | None = None,
        times: MachineTimes | None = None,
        chance: random.Random | None = None,
        fault: Callable[[str], Fault] = _no_fault,
        trace: Callable[[str], None] = _no_trace,
    ) -> None:
        self.name = name
        self.silent = False
        """While set, every call raises Unreachable, and nothing takes effect."""
        self.released_by_us: set[str] = set()
        """The machines that `release` was ever called for: what a test may look at."""
        self.given: list[str] = []
        """The machines that it ever gave, by id."""
        self._offers = tuple(offers)
        self._clock = clock
        self._capacity = dict(capacity or {})
        self._times = times or MachineTimes()
        self._chance = chance or random.Random(name)
        self._fault = fault
        self._trace = trace
        self._rows: dict[str, _Row] = {}
        self._by_token: dict[str, str] = {}

    def offers(self) -> Sequence[Offer]:
        """What can be had now, with how many are left where that is bounded."""
        self._answer("offers")
        return [replace(o, available=self._left(o.id)) for o in self._offers]

    def acquire(self, lease_id: str, offer: Offer, token: str) -> None:
        """Ask for a machine. The same token, or a lease that has one, gets no second machine."""
        fault = self._begin("acquire")
        if token not in self._by_token and self._held_by(lease_id) is None:
            left = self._left(offer.id)
            if left is not None and left < 1:
                self._trace(f"provider {self.name} acquire {lease_id} no capacity for {offer.id}")
                raise NoCapacity(f"no machine left of offer {offer.id}", where=f"provider {self.name}")
            self._by_token[token] = self._add(offer, lease_id)
        self._end("acquire", fault)

    def release(self, machine_id: str) -> None:
        """Give a machine back; one that is not there is fine."""
        fault = self._begin("release")
        self.released_by_us.add(machine_id)
        row = self._rows.get(machine_id)
        now = self._clock.now()
        if row is not None and row.exists(now) and row.stopping_at is None:
            row.stopping_at = now
            gone_at = now + self._draw(self._times.stop_s)
            row.gone_at = gone_at if row.gone_at is None else min(gone_at, row.gone_at)
            self._trace(f"provider {self.name} release {machine_id}")
        self._end("release", fault)

    def machines(self) -> Sequence[Machine]:
        """The provider's own list, ordered by id; a machine may appear some time after it was acquired."""
        self._answer("machines")
        now = self._clock.now()
        rows = (self._rows[key] for key in sorted(self._rows))
        return [row.seen(now) for row in rows if row.exists(now) and now >= row.listed_at]

    def existing(self) -> list[Machine]:
        """What truly exists now, listed or not, whether the provider answers or not: for checkers."""
        now = self._clock.now()
        return [self._rows[key].seen(now) for key in sorted(self._rows) if self._rows[key].exists(now)]

    def kill(self, machine_id: str) -> None:
        """The machine dies now, and is gone from the list."""
        row = self._rows[machine_id]
        now = self._clock.now()
        if row.exists(now):
            row.gone_at = now
            self._trace(f"provider {self.name} machine {machine_id} died")

    def interrupt(self, machine_id: str, notice_s: float) -> None:
        """The machine is taken back after a notice, as a spot machine is."""
        row = self._rows[machine_id]
        now = self._clock.now()
        if row.exists(now) and row.gone_at is None:
            row.leaves_at = row.gone_at = now + notice_s
            self._trace(f"provider {self.name} takes machine {machine_id} back in {notice_s:.0f} s")

    def plant(self, offer: Offer, lease_id: str = "") -> str:
        """A machine that nobody asked for: someone else's (no tag), or one with a lease's tag."""
        return self._add(offer, lease_id)

    def set_capacity(self, offer_id: str, machines: int | None) -> None:
        """Change how many machines an offer has in all; None: no bound. Nothing is taken away."""
        if machines is None:
            self._capacity.pop(offer_id, None)
        else:
            self._capacity[offer_id] = machines

    def _add(self, offer: Offer, lease_id: str) -> str:
        now = self._clock.now()
        machine_id = f"{self.name}-m{len(self._rows) + 1:04d}"
        listed_at = now + self._draw(self._times.listed_after_s)
        runs_at = max(listed_at, now + self._draw(self._times.boot_s))
        self.given.append(machine_id)
        self._rows[machine_id] = _Row(machine_id, offer, lease_id, listed_at, runs_at)
        self._trace(f"provider {self.name} acquire {lease_id or '-'} gives {machine_id} of {offer.id}")
        return machine_id

    def _held_by(self, lease_id: str) -> str | None:
        now = self._clock.now()
        held = (r.machine_id for r in self._rows.values() if r.lease_id == lease_id and r.exists(now))
        return next(held, None)

    def _left(self, offer_id: str) -> int | None:
        if offer_id not in self._capacity:
            return None
        now = self._clock.now()
        used = sum(1 for r in self._rows.values() if r.offer.id == offer_id and r.exists(now))
        return max(0, self._capacity[offer_id] - used)

    def _draw(self, span: Span) -> float:
        return self._chance.uniform(*span)

    def _answer(self, call: str) -> None:
        if self.silent:
            raise Unreachable(f"no answer to {call}", where=f"provider {self.name}")

    def _begin(self, call: str) -> Fault:
        self._answer(call)
        fault = self._fault(call)
        if fault == "lost_call":
            self._trace(f"provider {self.name} {call} is lost")
            raise Unreachable(f"{call} did not arrive", where=f"provider {self.name}")
        return fault

    def _end(self, call: str, fault: Fault) -> None:
        if fault == "lost_answer":
            self._trace(f"provider {self.name} {call} is done, the answer is lost")
            raise Unreachable(f"no answer to {call}", where=f"provider {self.name}")
