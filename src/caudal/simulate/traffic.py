"""Requests in a simulation: they arrive by the scenario's waves, wait at the newest gateway, take a slot of a replica
that the production routes name, and end. The gateway's reports are made by the production code too.

Knows nothing of how many replicas there should be.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

from caudal.control.routes import routes
from caudal.domain.gang import Gang, GangState, Role
from caudal.domain.snapshot import State
from caudal.drivers.fake import Process
from caudal.gateway.demand import Demand
from caudal.simulate.facts import Facts

SERVICE_S = 8.0
"""How long a simulated replica answers one request."""

TOKENS = 200
"""What a simulated request counts as."""


@dataclass(slots=True)
class Request:
    """`gang` is the replica that answers it; empty while it waits."""

    arrived_at: float
    gang: str = ""
    ends_at: float = 0.0


class Traffic:
    """All requests. `state` gives what control would answer now, or None while it does not.

    `dropped` counts those whose replica was stopped under them, which must not be; `lost` those whose replica or
    gateway died. A request that is dropped or lost at a replica waits for another one.
    """

    def __init__(self, facts: Facts, model: str, slots: int, state: Callable[[], State | None]) -> None:
        self.answered = self.dropped = self.lost = 0
        self.longest_wait_s = 0.0
        self._facts = facts
        self._model = model
        self._slots = slots
        self._state = state
        self._gateway = ""
        self._open: list[Request] = []
        self._replicas: list[str] = []
        self._demand = Demand(facts.kernel.now)
        self._due = 0.0
        self._moved_at = facts.kernel.now()

    def move(self) -> None:
        """Everything that happened to requests since the last call."""
        now = self._facts.kernel.now()
        passed_s, self._moved_at = now - self._moved_at, now
        running = {g.id: (g, p) for g, p in self._facts.alive() if p.state is GangState.RUNNING}
        self._find_gateway([g for g, _ in running.values() if g.role is Role.GATEWAY])
        self._end(now, running)
        self._arrive(now, passed_s)
        self._begin(now, running)

    def status(self, gang: Gang) -> dict[str, Any]:
        """What a gateway says beside that it is ready."""
        if gang.id != self._gateway:
            return {"load": {}, "demand": {}, "peaks": {}}
        demand, peaks = self._demand.report()
        held = [r.gang for r in self._open if r.gang]
        load = {
            g: [held.count(g), TOKENS * held.count(g), TOKENS * self._slots / SERVICE_S] for g in set(held)
        }
        return {"load": load, "demand": demand, "peaks": peaks}

    def _find_gateway(self, gateways: list[Gang]) -> None:
        """Another gateway knows nothing of the old one's requests: their connections are gone."""
        newest = max(gateways, key=lambda g: g.incarnation, default=None)
        if newest is not None and newest.id != self._gateway:
            self.lost += len(self._open)
            self._open.clear()
            self._demand = Demand(self._facts.kernel.now)
            self._gateway = newest.id

    def _end(self, now: float, running: dict[str, tuple[Gang, Process]]) -> None:
        for request in list(self._open):
            if not request.gang:
                continue
            held = running.get(request.gang)
            if held is None:
                stopped = request.gang in self._facts.watch.stops
                self.dropped += stopped
                self.lost += not stopped
                request.gang = ""
            elif now >= request.ends_at:
                self._open.remove(request)
                self._demand.ended(self._model)
                self.answered += 1

    def _arrive(self, now: float, passed_s: float) -> None:
        elapsed = self._facts.kernel.elapsed()
        rates = [w.arrivals_per_s for w in self._facts.scenario.traffic if w.from_s <= elapsed]
        self._due += passed_s * rates[-1] if rates else 0.0
        while self._due >= 1.0 and self._gateway:
            self._due -= 1.0
            self._open.append(Request(now))
            self._demand.begun(self._model)

    def _begin(self, now: float, running: dict[str, tuple[Gang, Process]]) -> None:
        """Waiting requests take free slots, in the order of their arrival. Without control the last routes hold."""
        state = self._state()
        if state is not None:
            found = [m for m in routes(state, now, self._gateway).models if m.id == self._model]
            self._replicas = [r.gang for m in found for r in m.replicas if not r.draining]
        taken = [r.gang for r in self._open if r.gang]
        first = self.answered % max(1, len(self._replicas))  # in turn, so that each of them has its share
        turns = [g for g in self._replicas[first:] + self._replicas[:first] if g in running]
        free = [g for n in range(self._slots) for g in turns if taken.count(g) <= n]
        waiting = [r for r in self._open if not r.gang]
        for request, gang in zip(waiting, free, strict=False):
            request.gang, request.ends_at = gang, now + SERVICE_S
            self.longest_wait_s = max(self.longest_wait_s, now - request.arrived_at)
