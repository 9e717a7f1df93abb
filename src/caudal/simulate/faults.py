"""What goes wrong, and when: faults at the rates of a scenario, each healed again, all of it by the seed.

Every kind of fault draws from its own branch of the tree. Knows nothing about what should happen then.
"""

from __future__ import annotations

import random
from collections.abc import Callable, Sequence
from typing import Literal, Protocol

from caudal.simulate.controller import Controller
from caudal.simulate.facts import Facts
from caudal.simulate.scenario import Rates
from caudal.simulate.tree import Tree

Fault = Literal["", "lost_call", "lost_answer"]

SILENCE_S = (1.0, 40.0)
"""How long contact is lost: from a blip to longer than every grace."""

AWAY_S = (0.5, 30.0)
"""How long a control process is away, or hangs."""


class Control(Protocol):
    """What faults ask of the simulation's control processes and users."""

    def controllers(self) -> Sequence[Controller]:
        """Those that live."""
        ...

    def new_controller(self) -> None:
        """Another one comes up."""
        ...

    def edit(self, chance: random.Random) -> None:
        """A user changes their mind about something."""
        ...


class CallFaults:
    """Decides per call whether it is lost; never while `on` is not set."""

    def __init__(self, rates: Rates, tree: Tree) -> None:
        self.on = False
        self._rates = rates
        self._tree = tree
        self._chances: dict[str, random.Random] = {}

    def hook(self, who: str) -> Callable[[str], Fault]:
        """The hook for one provider or driver."""
        return lambda call: self._draw(f"{who}/{call}")

    def pull_fails(self) -> bool:
        """Whether a pull fails."""
        return self.on and self._chance("pull").random() < self._rates.pull_fails

    def _draw(self, who: str) -> Fault:
        if not self.on:
            return ""
        value = self._chance(who).random()
        if value < self._rates.call_lost:
            return "lost_call"
        return "lost_answer" if value < self._rates.call_lost + self._rates.answer_lost else ""

    def _chance(self, who: str) -> random.Random:
        if who not in self._chances:
            self._chances[who] = self._tree.branch(who).chance()
        return self._chances[who]


class Faults:
    """Injects faults into a simulation until its scenario says that it is enough, then heals everything."""

    def __init__(self, facts: Facts, control: Control, calls: CallFaults, tree: Tree) -> None:
        self._facts = facts
        self._kernel = facts.kernel
        self._control = control
        self._calls = calls
        self._tree = tree
        self._until = facts.kernel.now() + facts.scenario.faulty_s
        self._silent: dict[str, int] = {}
        self._strays = 0

    def begin(self) -> None:
        """Schedule all faults, and their end."""
        if self._facts.scenario.faulty_s <= 0:
            return
        rates = self._facts.scenario.rates
        self._facts.faults += 1  # nothing is calm while more is to come
        self._calls.on = True
        kinds: list[tuple[str, float, Callable[[random.Random], None]]] = [
            ("gang_dies", rates.gang_dies, self._gang_dies),
            ("machine_dies", rates.machine_dies, self._machine_dies),
            ("driver_silent", rates.driver_silent, self._driver_silent),
            ("provider_silent", rates.provider_silent, self._provider_silent),
            ("control_dies", rates.control_dies, self._control_dies),
            ("control_hangs", rates.control_hangs, self._control_hangs),
            ("capacity_drops", rates.capacity_drops, self._capacity_drops),
            ("stray_machines", rates.stray_machines, self._stray_machine),
            ("user_edits", rates.user_edits, self._control.edit),
        ]
        for name, per_100_s, happen in kinds:
            if per_100_s > 0:
                self._plan(self._tree.branch(name).chance(), per_100_s / 100.0, happen)
        self._kernel.after(self._facts.scenario.faulty_s, self._end)

    def _plan(self, chance: random.Random, per_s: float, happen: Callable[[random.Random], None]) -> None:
        """The next fault of a kind; each plans the one after it."""
        wait_s = chance.expovariate(per_s)

        def fire() -> None:
            if self._calls.on:
                happen(chance)
                self._touch()
                self._plan(chance, per_s, happen)

        if self._kernel.now() + wait_s < self._until:
            self._kernel.after(wait_s, fire)

    def _end(self) -> None:
        self._calls.on = False
        self._heal(lambda: None)

    def _touch(self) -> None:
        self._facts.disturbed_at = self._kernel.now()

    def _hurt(self, seconds: float, heal: Callable[[], None]) -> None:
        """Something is wrong for that long."""
        self._facts.faults += 1
        self._kernel.after(seconds, lambda: self._heal(heal))

    def _heal(self, heal: Callable[[], None]) -> None:
        heal()
        self._facts.faults -= 1
        self._touch()

    def _gang_dies(self, chance: random.Random) -> None:
        alive = [gang for gang, _ in self._facts.alive()]
        if alive:
            victim = chance.choice(alive)
            driver = self._facts.drivers[victim.site]
            if chance.random() < 0.3:
                driver.lose(victim.id)
            else:
                driver.crash(victim.id)

    def _machine_dies(self, chance: random.Random) -> None:
        ours = [m for m in self._facts.machines().values() if m.lease_id]
        if ours:
            victim = chance.choice(ours)
            provider = next(p for p in self._facts.providers.values() if victim in p.existing())
            provider.kill(victim.id)

    def _driver_silent(self, chance: random.Random) -> None:
        site = chance.choice(sorted(self._facts.drivers))
        driver = self._facts.drivers[site]

        def quiet(silent: bool) -> None:
            driver.silent = silent

        self._silence(f"driver {site}", quiet, chance.uniform(*SILENCE_S))

    def _provider_silent(self, chance: random.Random) -> None:
        name = chance.choice(sorted(self._facts.providers))
        provider = self._facts.providers[name]

        def quiet(silent: bool) -> None:
            provider.silent = silent

        self._silence(f"provider {name}", quiet, chance.uniform(*SILENCE_S))

    def _silence(self, who: str, quiet: Callable[[bool], None], seconds: float) -> None:
        """Silences may overlap: the last one to end gives the voice back."""
        self._silent[who] = self._silent.get(who, 0) + 1
        quiet(True)
        self._facts.trace(f"{who} falls silent for {seconds:.1f} s")

        def speak() -> None:
            self._silent[who] -= 1
            if not self._silent[who]:
                quiet(False)
                self._facts.trace(f"{who} answers again")

        self._hurt(seconds, speak)

    def _control_dies(self, chance: random.Random) -> None:
        alive = self._control.controllers()
        if alive:
            chance.choice(alive).kill()
            self._hurt(chance.uniform(*AWAY_S), self._control.new_controller)

    def _control_hangs(self, chance: random.Random) -> None:
        """One hangs while another comes up beside it, and then goes on where it was."""
        alive = self._control.controllers()
        if not alive:
            return
        seconds = chance.uniform(*AWAY_S)
        chance.choice(alive).hang(seconds)
        self._hurt(seconds, lambda: None)
        if len(alive) < 2:
            self._kernel.after(seconds * chance.random(), self._control.new_controller)

    def _stray_machine(self, chance: random.Random) -> None:
        """A machine turns up with our tag and a lease that nobody remembers."""
        plan = chance.choice(self._facts.scenario.sites)
        provider = self._facts.providers[f"fake-{plan.name}"]
        self._strays += 1
        fleet = self._facts.scenario.name
        provider.plant(plan.offer(), f"{fleet}.{plan.name}.forgotten.{self._strays}")

    def _capacity_drops(self, chance: random.Random) -> None:
        plan = chance.choice(self._facts.scenario.sites)
        provider = self._facts.providers[f"fake-{plan.name}"]
        provider.set_capacity(f"node@{plan.name}", 0)
        self._facts.trace(f"provider fake-{plan.name} has nothing to give")
        self._hurt(
            chance.uniform(*SILENCE_S), lambda: provider.set_capacity(f"node@{plan.name}", plan.capacity)
        )
