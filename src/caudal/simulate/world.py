"""A whole fleet in virtual time: the ports over fakes, control processes that run the production loop, users,
and the physics between them (a machine that dies takes its processes along).

Nothing in here decides anything about the fleet; that is the production code's.
"""

from __future__ import annotations

import random
from collections.abc import Callable, Mapping, Sequence
from dataclasses import replace
from typing import Any

from caudal.control import apply as users
from caudal.control import reports
from caudal.control.loop import ControlLoop, Settings
from caudal.domain.errors import NotFound, Stale
from caudal.domain.fleet import FleetSpec, MachineState, SiteSpec
from caudal.domain.gang import Gang, GangSpec
from caudal.domain.snapshot import State
from caudal.domain.workload import ServedModel, ServiceSpec, TrainSpec
from caudal.drivers.fake import FakeDriver, Script
from caudal.ports import Change, Holder, World
from caudal.providers.fake import FakeProvider, MachineTimes
from caudal.simulate.checkers import SAFETY, Commits, Violation
from caudal.simulate.controller import Controller, Steps
from caudal.simulate.facts import Facts
from caudal.simulate.faults import CallFaults, Faults
from caudal.simulate.kernel import Kernel
from caudal.simulate.models import FakeModels
from caudal.simulate.roles import Roles
from caudal.simulate.scenario import Scenario, SitePlan
from caudal.simulate.traffic import Traffic
from caudal.simulate.tree import Tree
from caudal.simulate.watch import WatchedStore
from caudal.store.state import open_store

REPORT_EVERY_S = 1.0
"""How often simulated gangs report, and move on."""

MakeLoop = Callable[[World, Holder], Steps]
"""Builds a control process's loop: the production one, unless a test wants to see a broken one caught."""


def production_loop(world: World, holder: Holder) -> Steps:
    """The loop that runs the fleet."""
    return ControlLoop(world, holder, Settings())


class Simulation:
    """One seed of one scenario. `trace` is every line of what happened; the same seed gives the same."""

    def __init__(self, seed: int, scenario: Scenario, make_loop: MakeLoop = production_loop) -> None:
        self.scenario = scenario
        self.kernel = Kernel()
        self.lines: list[str] = []
        self._tree = Tree(seed)
        self._make_loop = make_loop
        self._controllers: list[Controller] = []
        self._controllers_made = 0
        self._changed = True
        calls = CallFaults(scenario.rates, self._tree.branch("calls"))
        self._watch = WatchedStore(open_store("sqlite://"))
        self._models = FakeModels(self.kernel, fails=calls.pull_fails)
        self._scripts = self._tree.branch("scripts").chance()
        self._drivers = {p.name: self._driver(p, calls) for p in scenario.sites}
        self._providers = {f"fake-{p.name}": self._provider(p, calls) for p in scenario.sites}
        self.facts = Facts(
            self.kernel,
            scenario,
            self._watch,
            self._drivers,
            self._providers,
            self._models,
            self.trace,
            disturbed_at=self.kernel.now(),
        )
        self.traffic = self._traffic() if scenario.traffic else None
        self._roles = Roles(
            self._drivers,
            self._models,
            self._watch.gangs,
            self._watch.workloads,
            self._deliver,
            self.trace,
            asked=self.traffic.status if self.traffic else None,
        )
        self._faults = Faults(self.facts, self, calls, self._tree.branch("faults"))
        self._commits = Commits(self.facts)
        self._watch.on_commit = self._check_commit
        self.kernel.after_event = self._after_event

    def begin(self) -> None:
        """Users apply the scenario's files, a control process comes up, and faults are planned."""
        sites = tuple(SiteSpec(p.name, provider=f"fake-{p.name}", driver="fake") for p in self.scenario.sites)
        fleet = FleetSpec(self.scenario.name, sites)
        users.apply(self._watch, [fleet, *self.scenario.workloads], self.kernel.now())
        for plan in self.scenario.sites:
            self._providers[f"fake-{plan.name}"].plant(plan.offer())  # someone else's machine
        self.new_controller()
        self._faults.begin()
        self.kernel.after(REPORT_EVERY_S, self._move)

    def trace(self, line: str) -> None:
        """Write down what happened, with the virtual time."""
        self.lines.append(f"{self.kernel.elapsed():10.3f} {line}")

    def _happened(self, line: str) -> None:
        """A fake changed something: it is written down, and looked at after the event."""
        self._changed = True
        self.trace(line)

    def controllers(self) -> Sequence[Controller]:
        """The control processes that live."""
        return [c for c in self._controllers if c.alive]

    def new_controller(self) -> None:
        """Another control process comes up, with a loop that remembers nothing."""
        self._controllers_made += 1
        name = f"control-{self._controllers_made}"
        holder = Holder(name, "simulated", 1000 + self._controllers_made, self.kernel.now())
        world = World(
            clock=self.kernel,
            store=self._watch,
            models=self._models,
            providers=self._providers,
            drivers=self._drivers,
            sites=tuple(self._watch.fleet.sites) if self._watch.fleet else (),
        )
        controller = Controller(
            name,
            self.kernel,
            lambda: self._make_loop(world, holder),
            self._tree.branch(name).chance(),
            self.trace,
        )
        self._controllers.append(controller)

    def edit(self, chance: random.Random) -> None:
        """A user stops a workload, applies it again, or applies another spec under its name."""
        if not any(c.answers for c in self._controllers):
            return  # the control API is the control process's: nobody takes the request
        spec = chance.choice(self.scenario.workloads)
        wanted = self._watch.workloads[spec.name].wanted
        what = chance.choice(("stop", "change")) if wanted else "apply"
        self.trace(f"user {what} {spec.name}")
        try:
            if what == "stop":
                users.stop(self._watch, spec.name, self.kernel.now())
                back_s = chance.uniform(5.0, 30.0)
                self.facts.faults += 1
                self.kernel.after(back_s, lambda: self._apply_again(spec))
            else:
                users.apply(self._watch, [_changed(spec, chance)], self.kernel.now())
        except Stale:
            self.trace(f"user {what} {spec.name} came too late")

    def _apply_again(self, spec: TrainSpec | ServiceSpec) -> None:
        """What was stopped is wanted again, with the spec that it has now."""
        now_spec = self._watch.workloads[spec.name].spec
        self.trace(f"user apply {spec.name}")
        users.apply(self._watch, [now_spec], self.kernel.now())
        self.facts.faults -= 1
        self.facts.disturbed_at = self.kernel.now()

    def _traffic(self) -> Traffic:
        asked = self.scenario.asked_model()

        def state() -> State | None:
            heard = any(c.answers and c.leads for c in self._controllers)
            return self._watch.read() if heard else None

        return Traffic(self.facts, asked.id, asked.slots, state)

    def _driver(self, plan: SitePlan, calls: CallFaults) -> FakeDriver:
        hook = calls.hook(f"driver-{plan.name}")
        return FakeDriver(plan.name, self.kernel, script=self._script, fault=hook, trace=self._happened)

    def _provider(self, plan: SitePlan, calls: CallFaults) -> FakeProvider:
        name = f"fake-{plan.name}"
        return FakeProvider(
            name,
            [plan.offer()],
            self.kernel,
            capacity={f"node@{plan.name}": plan.capacity},
            times=MachineTimes(listed_after_s=(0.0, self.scenario.list_lag_s)),
            chance=self._tree.branch(name).chance(),
            fault=calls.hook(name),
            trace=self._happened,
        )

    def _script(self, _spec: GangSpec) -> Script:
        hangs = self._scripts.random() < self.scenario.hangs_on_stop
        start_s, stop_s = self._scripts.uniform(0.1, 1.5), self._scripts.uniform(0.05, 2.0)
        return Script(start_s=start_s, stop_s=None if hangs else stop_s)

    def _deliver(self, gang: Gang, body: Mapping[str, Any]) -> bool:
        """A gang's report; False where there is no way, or nobody who takes it now."""
        heard = any(c.answers and c.leads for c in self._controllers)
        if heard and not self._drivers[gang.site].silent:
            try:
                reports.accept(self._watch, gang.id, body, self.kernel.now())
                return True
            except (NotFound, Stale) as refused:
                self.trace(f"report of {gang.id} is refused: {refused.code}")
        return False

    def _move(self) -> None:
        """Gangs work and report, now and every `REPORT_EVERY_S` from now on."""
        self._changed = True
        if self.traffic is not None:
            self.traffic.move()
        self._roles.move(self.kernel.now())
        self.kernel.after(REPORT_EVERY_S, self._move)

    def _after_event(self) -> None:
        """Physics and all checkers, after each event that changed something and each virtual second."""
        if not self._changed:
            return
        self._changed = False
        self._physics()
        for check in SAFETY:
            text = check(self.facts)
            if text:
                raise Violation(check.__name__, self.kernel.elapsed(), text)

    def _physics(self) -> None:
        """Processes whose machine is not there any more are lost."""
        up = {m.lease_id for m in self.facts.machines().values() if m.state is not MachineState.PENDING}
        for gang, _ in list(self.facts.alive()):
            if gang.lease_id not in up:
                self._drivers[gang.site].lose(gang.id)

    def _check_commit(self, change: Change, version: int) -> None:
        self._changed = True
        text = self._commits.check(change, version)
        if text:
            raise Violation("commit", self.kernel.elapsed(), text)


def _changed(spec: TrainSpec | ServiceSpec, chance: random.Random) -> TrainSpec | ServiceSpec:
    """Another spec under the same name."""
    if isinstance(spec, TrainSpec):
        return replace(spec, seed=chance.randrange(1, 1 << 30))
    first: ServedModel = spec.models[0]
    return replace(spec, models=(replace(first, context=chance.randrange(512, 4096)), *spec.models[1:]))
