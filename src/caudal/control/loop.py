"""The loop: observe, decide, guard, record, execute, confirm, sweep. One pass at a time, by one leader.

Everything that matters is in the store: a loop that is built anew over the same world goes on where another
one was killed, between any two steps. Gangs that still run are simply there.
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import replace
from typing import Literal

from caudal.control.asking import Asking
from caudal.control.background import Background, ImmediateBackground
from caudal.control.confirm import confirm
from caudal.control.execute import Executor
from caudal.control.guard import guard
from caudal.control.launch import LaunchSettings
from caudal.control.nodes import note_failures
from caudal.control.observe import Observer
from caudal.control.record import record
from caudal.control.settings import Settings
from caudal.control.sweep import sweep
from caudal.domain.decision import Decision
from caudal.domain.errors import LostLeadership, Stale
from caudal.domain.snapshot import Snapshot
from caudal.policy import decide
from caudal.policy.rules import Rules
from caudal.ports import Holder, World

__all__ = ["ControlLoop", "Settings"]

IN_DOUBT_MARGIN_S = 2.0

Waits = tuple[tuple[str, str], ...]


class ControlLoop:
    """One control process's loop. `launch` says where gangs find things; `background` runs what takes
    minutes (at once, unless another one is given); `asking` asks sites what they have (one after the other, unless
    another one is given).

    `busy` says after a pass whether the next one is worth making at once: it changed something, or a site has just
    fallen silent.
    """

    def __init__(
        self,
        world: World,
        holder: Holder,
        settings: Settings,
        launch: LaunchSettings | None = None,
        background: Background | None = None,
        asking: Asking | None = None,
    ) -> None:
        self.world = world
        self.settings = settings
        self.epoch = 0
        """The epoch under which it last led; 0: it never has."""
        self.busy = False
        self.seen: Snapshot | None = None
        """What was there at the last look; None before the first."""
        self.closing: Literal["", "rented", "all"] = ""
        """Whether the fleet is being taken down, and which nodes with it: see policy/rules.py."""
        self._holder = holder
        self._observer = Observer(world, asking)
        self._executor = Executor(
            world,
            settings.rules,
            launch or LaunchSettings(),
            background or ImmediateBackground(),
            self._still_leads,
        )
        self._waits: Waits = ()

    def lead(self) -> int:
        """Become or stay the leader; returns the epoch. Raises StateHeld, naming who leads."""
        self.epoch = self.world.store.lead(self._holder, self.world.clock.now(), self.settings.leader_ttl_s)
        return self.epoch

    def resign(self) -> None:
        """Give the leadership back, if it is held."""
        if self.epoch:
            self.world.store.resign(self.epoch)

    def run_once(self) -> None:
        """One pass. Raises StateHeld or LostLeadership where another process leads, StorageFailed where the
        store does not keep what it is given."""
        for _ in self.steps():
            pass

    def steps(self) -> Iterator[str]:
        """One pass, giving a name after every step that could be the last one before a crash."""
        store = self.world.store
        self.busy = False
        epoch = self.lead()
        yield "led"
        snapshot = self.seen = self._observer.observe(store.read())
        note_failures(store, snapshot)
        yield "observed"
        decision = decide(snapshot, snapshot.at, self._rules())
        yield "decided"
        decision = guard(decision, snapshot, self.settings)
        yield "guarded"
        if self._is_news(decision):
            try:
                change = record(decision, snapshot, epoch)
                store.commit(change, expect_version=snapshot.version, leader_epoch=epoch)
            except LostLeadership:
                raise
            except Stale:
                self.busy = True
                yield "stale"  # somebody changed the state meanwhile: the plan is dropped, never patched
                return
            self._waits = _waits(decision)
            self.busy = bool(decision.choices)
            yield "recorded"
        yield from self._executor.run(store.read(), snapshot, epoch)
        confirmed = confirm(store.read(), snapshot)
        if confirmed is not None:
            store.commit(confirmed, leader_epoch=epoch)
            self.busy = True
        yield "confirmed"
        self.busy = self.busy or self._in_doubt(snapshot)
        yield from sweep(self.world, store.read(), snapshot, self._still_leads)
        yield "swept"

    def _in_doubt(self, snapshot: Snapshot) -> bool:
        """Whether a site is silent and not given up yet: a call in vain may take a second, and so a look every half
        second would be one every one and a half."""
        rules = self.settings.rules
        doubt_s = rules.suspect_after_s + rules.grace_s + IN_DOUBT_MARGIN_S
        return any(snapshot.at - since < doubt_s for since in snapshot.silent_since.values())

    def _rules(self) -> Rules:
        return replace(self.settings.rules, closing=self.closing) if self.closing else self.settings.rules

    def _still_leads(self) -> None:
        """Raise unless this process leads, under the epoch that the pass began with."""
        before = self.epoch
        if self.lead() != before:
            raise LostLeadership("another control process led in between", where=self._holder.name)

    def _is_news(self, decision: Decision) -> bool:
        """Whether there is something to write down: a choice, or something that waits for another reason."""
        return bool(decision.choices) or _waits(decision) != self._waits


def _waits(decision: Decision) -> Waits:
    return tuple(sorted((w.subject, w.reason.code) for w in decision.waiting))
