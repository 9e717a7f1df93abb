"""The control process killed between any two of its steps, again and again, in virtual time.

A small fleet is kept busy: replicas come and go, nodes are taken and given back, now and then the fleet is taken
down, and all the while calls and answers are lost and lists lag behind. After so many random steps the process is
dropped where it stands and another one comes up that remembers nothing. At every moment each machine that was asked
for has a live lease; when the faults have stopped, within two passes machines and leases are the same; and taken
down, nothing is left. Knows nothing of how the loop does that.
"""

from __future__ import annotations

import math
from collections import Counter
from collections.abc import Iterator
from dataclasses import dataclass, field, replace
from decimal import Decimal

from caudal.control import apply as users
from caudal.control.down import take_down
from caudal.control.loop import ControlLoop
from caudal.control.settings import Settings
from caudal.domain.errors import Stale, StateHeld
from caudal.domain.fleet import FleetSpec, Lease, Machine, MachineType, Market, Offer, Resources, SiteSpec
from caudal.domain.gang import GangSpec
from caudal.domain.workload import ServedModel, ServiceSpec, StageSpec, TrainSpec
from caudal.drivers.fake import FakeDriver, Script
from caudal.policy.rules import Rules
from caudal.ports import Holder, World
from caudal.providers.fake import FakeProvider, MachineTimes
from caudal.simulate.faults import CallFaults
from caudal.simulate.kernel import Kernel
from caudal.simulate.models import FakeModels
from caudal.simulate.scenario import Rates
from caudal.simulate.tree import Tree
from caudal.simulate.watch import WatchedStore
from caudal.store.state import open_store

SITES = ("north", "south")
FLEET = "crashes"
GIB = 1 << 30
NODE = Resources(cpus=2.0, memory_bytes=4 * GIB)

RULES = Rules(idle_release_s=4.0, no_capacity_retry_s=5.0)
"""The fleet's own, but that nodes are given back soon: the more there is to do, the more there is to break."""

LIST_LAG_S = 12.0
LOST = Rates(call_lost=0.12, answer_lost=0.12)
CALM_S = RULES.unlisted_s + 1.0
"""After that long no call waits to be made again, no list is behind, and a machine that died before it was ever listed
is waited for no more."""

MOST_STEPS = 45
"""A process lives for so many steps at most: about three passes that have something to do."""

LOOK_S = 0.5

STRAY_GRACE_S = 5.0
"""Beyond its quarantine a stray is there for as long as two passes and the end of the machine take."""


@dataclass(slots=True)
class Outcome:
    """What became of one world. `killed_after`: the steps after which a process was killed, and how often.
    `leaked_s`: machine-seconds of machines that were asked for and had no live lease, and of those that no lease ever
    knew of beyond the time that one process, left alone, may watch them. `wrong`: what must not be, the first ten."""

    seed: int
    points: int = 0
    passes: int = 0
    machines: int = 0
    simulated_s: float = 0.0
    leaked_s: float = 0.0
    killed_after: Counter[str] = field(default_factory=Counter)
    wrong: list[str] = field(default_factory=list)


class CrashWorld:
    """One seed's world. `run` kills so many processes in it."""

    def __init__(self, seed: int, rules: Rules = RULES) -> None:
        self.outcome = Outcome(seed)
        self.kernel = Kernel()
        tree = Tree(seed)
        self._chance = tree.branch("crashes").chance()
        self._faults = CallFaults(LOST, tree.branch("calls"))
        self._faults.on = True
        self.store = WatchedStore(open_store("sqlite://"))
        self._scripts = tree.branch("scripts").chance()
        self._drivers = {
            s: FakeDriver(s, self.kernel, script=self._script, fault=self._faults.hook(f"driver-{s}"))
            for s in SITES
        }
        self._providers = {f"fake-{s}": self._provider(s, tree) for s in SITES}
        sites = tuple(SiteSpec(s, provider=f"fake-{s}", driver="fake") for s in SITES)
        self._world = World(
            self.kernel, self.store, FakeModels(self.kernel), self._providers, self._drivers, sites
        )
        self._settings = Settings(rules=rules)
        self._strays_until = math.inf  # from then on every one of them is a leak
        self.kernel.after(LOOK_S, self._tick)
        self._made = 0
        self._planted: set[str] = set()
        users.apply(self.store, [FleetSpec(FLEET, sites), _service(2), _run()], self.kernel.now())

    def run(self, points: int) -> Outcome:
        """Kill so many processes, then stop the faults and look, then take the fleet down and look again."""
        while self.outcome.points < points:
            self._live_and_die()
            self._pass_time(self._chance.choice((0.0, 0.5, 3.0, self._chance.uniform(0.0, 40.0))))
            self._meddle()
        self._calm()
        self._settle()
        self._end()
        self.outcome.machines = sum(len(p.given) for p in self._providers.values())
        self.outcome.simulated_s = self.kernel.elapsed()
        return self.outcome

    def _live_and_die(self) -> None:
        """One process: it takes steps until it is killed after the last of them."""
        loop = self._process()
        if self._chance.random() < 0.15:
            loop.closing = "all"  # it is the one that takes the fleet down
        left = self._chance.randint(1, MOST_STEPS)
        for name in self._steps(loop):
            left -= 1
            if not left:
                self.outcome.points += 1
                self.outcome.killed_after[_kind(name)] += 1
                return
            self._pass_time(self._chance.uniform(0.001, 0.05))

    def _steps(self, loop: ControlLoop) -> Iterator[str]:
        """The steps of pass after pass."""
        while True:
            try:
                yield from loop.steps()
                self.outcome.passes += 1
            except (StateHeld, Stale):
                pass  # the one before it may lead for some seconds more
            self._pass_time(self._chance.uniform(0.3, 1.5))

    def _process(self) -> ControlLoop:
        """Another control process. On one machine it sees that the one before it is dead, and need not wait."""
        led = self.store.leader()
        if led is not None and self._chance.random() < 0.7:
            self.store.resign(led[1])
        self._made += 1
        holder = Holder(f"control-{self._made}", "simulated", 1000 + self._made, self.kernel.now())
        return ControlLoop(self._world, holder, self._settings)

    def _leading(self) -> ControlLoop:
        """Another one, where nobody else leads."""
        loop = self._process()
        led = self.store.leader()
        if led is not None:
            self.store.resign(led[1])
        return loop

    def _meddle(self) -> None:
        """What others do meanwhile: users change their minds, capacity goes, machines die or turn up."""
        chance = self._chance
        what = chance.random()
        if what < 0.5:
            try:
                users.apply(self.store, [_service(chance.randint(0, 4))], self.kernel.now())
            except Stale:
                return
        elif what < 0.6:
            provider = self._providers[f"fake-{chance.choice(SITES)}"]
            dead = [m for m in provider.existing() if m.lease_id]
            if dead:
                provider.kill(chance.choice(dead).id)
        elif what < 0.65:
            provider = self._providers[f"fake-{chance.choice(SITES)}"]
            spot = [m for m in provider.existing() if m.lease_id]
            if spot:
                provider.interrupt(chance.choice(spot).id, chance.uniform(20.0, 120.0))
        elif what < 0.7:
            site = chance.choice(SITES)
            room = chance.choice((0, 1, None))
            self._providers[f"fake-{site}"].set_capacity(f"node@{site}", room)
        elif what < 0.74:
            site = chance.choice(SITES)
            tag = f"{FLEET}.{site}.forgotten.{len(self._planted)}"
            self._planted.add(tag)
            self._providers[f"fake-{site}"].plant(_offer(site), tag)

    def _calm(self) -> None:
        """No fault from now on; what waits to be tried again may be tried again."""
        self._faults.on = False
        for site in SITES:
            self._providers[f"fake-{site}"].set_capacity(f"node@{site}", None)
        self._pass_time(CALM_S)

    def _settle(self) -> None:
        """Two passes of a new process: then what exists is what the leases say."""
        loop = self._leading()
        loop.run_once()
        self._pass_time(1.5)
        loop.run_once()
        self._look()
        machines = {m.lease_id for m in self._ours()}
        leases = {x.id for x in self._live()}
        if machines != leases:
            self._wrong(
                f"after two passes: only machines {machines - leases}, only leases {leases - machines}"
            )

    def _end(self) -> None:
        """Taken down, no machine of ours and no process is left."""
        self._strays_until = self.kernel.now() + RULES.quarantine_s + STRAY_GRACE_S
        loop = self._leading()
        left = take_down(loop, "all")
        if left or self._tagged() or self._live():
            self._wrong(f"after down: {left} {self._tagged()} {self._live()}")
        alive = [p.spec.gang_id for d in self._drivers.values() for p in d.processes() if p.alive]
        if alive:
            self._wrong(f"after down these live: {alive}")

    def _pass_time(self, seconds: float) -> None:
        """Time passes, and it is looked at before and after."""
        self._look()
        self.kernel.sleep(seconds)
        self._look()

    def _tick(self) -> None:
        """What costs by time, every `LOOK_S`."""
        self._look()
        live = {x.id for x in self._live()}
        late = self.kernel.now() > self._strays_until
        for machine in self._tagged():
            if machine.lease_id not in live and (late or machine.lease_id not in self._planted):
                self.outcome.leaked_s += LOOK_S
        self.kernel.after(LOOK_S, self._tick)

    def _look(self) -> None:
        """Physics, and what must hold at every moment."""
        up = {m.lease_id for m in self._tagged()}
        slots: dict[str, str] = {}
        for driver in self._drivers.values():
            for process in driver.processes():
                row = self.store.gangs.get(process.spec.gang_id)
                if process.alive and row is not None and row.lease_id not in up:
                    driver.lose(process.spec.gang_id)
                elif process.alive and row is not None:
                    other = slots.setdefault(row.slot, row.id)
                    if other != row.id:
                        self._wrong(f"{other} and {row.id} live at once")
        live = {x.id for x in self._live()}
        for machine in self._ours():
            if machine.lease_id not in live:
                self._wrong(f"machine {machine.id} has lease {machine.lease_id}, which has ended")
        twice = [tag for tag, n in Counter(m.lease_id for m in self._ours()).items() if n > 1]
        if twice:
            self._wrong(f"two machines for lease {twice[0]}")

    def _wrong(self, text: str) -> None:
        if len(self.outcome.wrong) < 10:
            self.outcome.wrong.append(f"{self.kernel.elapsed():.3f} s: {text}")

    def _tagged(self) -> list[Machine]:
        return [m for p in self._providers.values() for m in p.existing() if m.lease_id]

    def _ours(self) -> list[Machine]:
        """The machines that somebody asked for."""
        return [m for m in self._tagged() if m.lease_id not in self._planted]

    def _live(self) -> list[Lease]:
        return [x for x in self.store.leases.values() if x.live]

    def _provider(self, site: str, tree: Tree) -> FakeProvider:
        name = f"fake-{site}"
        return FakeProvider(
            name,
            [_offer(site)],
            self.kernel,
            times=MachineTimes(listed_after_s=(0.0, LIST_LAG_S)),
            chance=tree.branch(name).chance(),
            fault=self._faults.hook(name),
        )

    def _script(self, _spec: GangSpec) -> Script:
        hangs = self._scripts.random() < 0.1
        return Script(start_s=self._scripts.uniform(0.1, 1.0), stop_s=None if hangs else 0.2)


def crash_points(points: int, first_seed: int = 1, each: int = 50) -> Iterator[Outcome]:
    """Worlds until so many processes have been killed, each in a world of its own seed."""
    seed = first_seed
    while points > 0:
        yield CrashWorld(seed).run(min(each, points))
        points -= each
        seed += 1


def _kind(step: str) -> str:
    """`called acquire_node i1 north-1` → `called acquire_node`; `swept` → `swept`."""
    words = step.split()
    return " ".join(words[:2]) if words[0] in ("calling", "called", "executed") else words[0]


def _offer(site: str) -> Offer:
    kind = MachineType("node", NODE)
    return Offer(f"node@{site}", site, kind, Market.ON_DEMAND, Decimal("2.50"), "simulated", "2026-01-01")


def _service(replicas: int) -> ServiceSpec:
    """Each replica takes a node of its own; with none, another model that needs little stays."""
    small = ServedModel("small", source="pypi:small==1", replicas=1, resources=Resources(0.2, GIB // 4))
    large = ServedModel(
        "large", source="pypi:large==1", replicas=max(1, replicas), resources=Resources(1.6, GIB)
    )
    return ServiceSpec("assistant", (small, large) if replicas else (small,))


def _run() -> TrainSpec:
    return replace(
        TrainSpec("starter", "builtin:tinyworld", (StageSpec("text", 100_000_000),)),
        resources=Resources(1.0, GIB),
    )
