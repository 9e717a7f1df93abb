"""A fleet for the rows about faults: the production control loop over SQLite and real drivers, and gangs that say when
they run.

The loop runs in a thread, as in `caudal up`; its HTTP API, which decides nothing, is not there. What gangs do is
replaced: each writes its id, its pid and the time into a file that all share, and sleeps. So "runs elsewhere" is what
the new process itself says, and holds no time for loading a model.
"""

from __future__ import annotations

import os
import random
import sys
import tempfile
import time
from collections.abc import Callable, Mapping, Sequence
from contextlib import suppress
from dataclasses import dataclass, field, replace
from decimal import Decimal
from pathlib import Path
from statistics import median
from typing import Any

from caudal.composition import SystemClock, this_process
from caudal.control.apply import apply
from caudal.control.asking import Together
from caudal.control.loop import ControlLoop
from caudal.control.runner import Runner
from caudal.control.settings import Settings
from caudal.domain.errors import CaudalError
from caudal.domain.fleet import (
    FleetSpec,
    Lease,
    LeaseState,
    Machine,
    MachineState,
    MachineType,
    Market,
    Offer,
    Resources,
    SiteSpec,
)
from caudal.domain.gang import Gang, GangSpec, GangStatus, ProcessSpec
from caudal.domain.model import ModelRecord
from caudal.domain.workload import ServedModel, ServiceSpec
from caudal.ports import Change, Driver, Provider, World
from caudal.store.state import open_store

MIB = 1 << 20
ODD_S = 8.0
BEAT = """
import os, sys, time
line = f"{sys.argv[2]} {os.getpid()} {time.time()}\\n".encode()
book = os.open(sys.argv[1], os.O_WRONLY | os.O_APPEND | os.O_CREAT, 0o600)
os.write(book, line)
while True:
    time.sleep(600)
"""


@dataclass(frozen=True)
class Options:
    """What all rows about faults are told. `repeats` 0: each row's own number."""

    folder: Path
    repeats: int = 0
    quick: bool = False
    away_s: float = 600.0
    partitions: int = 200
    real_partitions: int = 12
    seed: int = 1

    def times(self, usual: int, quick: int) -> int:
        """How often a row repeats."""
        return self.repeats or (quick if self.quick else usual)

    def room(self, name: str) -> Path:
        """A new folder."""
        return Path(tempfile.mkdtemp(prefix=f"{name}-", dir=self.folder))

    def say(self, text: str) -> None:
        """What is going on, for who watches."""
        print(f"{time.strftime('%H:%M:%S')} {text}", file=sys.stderr, flush=True)


def spread(values: Sequence[float], unit: str = "s") -> dict[str, Any]:
    """Median, 95th percentile (nearest rank), range and number of one measured quantity, and the machine's load."""
    ranked = sorted(values)
    at = max(0, -(-len(ranked) * 95 // 100) - 1)
    figures = {"median": median(ranked), "p95": ranked[at], "min": ranked[0], "max": ranked[-1]}
    rounded = {name: round(value, 2) for name, value in figures.items()}
    return {**rounded, "repeats": len(ranked), "unit": unit, "load_1min": round(os.getloadavg()[0], 2)}


def until(
    holds: Callable[[], Any], limit_s: float, why: str, step_s: float = 0.02, tail: Callable[[], str] = str
) -> Any:
    """Look until it is so; returns what was seen. Raises TimeoutError with what `tail` says."""
    deadline = time.monotonic() + limit_s
    while not (seen := holds()):
        if time.monotonic() > deadline:
            raise TimeoutError(f"not within {limit_s:.0f} s: {why}\n{tail()}")
        time.sleep(step_s)
    return seen


class Shelf:
    """The model store: one model, which is there."""

    def list(self) -> Sequence[ModelRecord]:
        """It."""
        return [ModelRecord("small", 1, "bench", 0.0, (), 1)]

    def pull(self, model_id: str, source: str, sha256: str = "") -> ModelRecord:
        """Never asked for."""
        raise AssertionError(model_id)


class Racks:
    """A provider of machines that stand already, each tagged with its lease: what a cloud lists, whether its
    machines can be reached or not."""

    def __init__(self, leases: Mapping[str, str], size: Resources) -> None:
        """`leases`: the site of each."""
        kind = MachineType("rack", size)
        self._machines = [
            Machine(f"m-{x}", site, kind.name, MachineState.RUNNING, x) for x, site in leases.items()
        ]
        self.leases = [
            Lease(
                *(x, x, site, kind, "rack", Market.OWN, Decimal(0), LeaseState.ACTIVE, 1, time.time()),
                machine_id=f"m-{x}",
                active_at=time.time(),
            )
            for x, site in leases.items()
        ]

    def offers(self) -> Sequence[Offer]:
        """Nothing more can be had."""
        return []

    def acquire(self, lease_id: str, offer: Offer, token: str) -> None:
        """Never asked for."""
        raise AssertionError(lease_id)

    def release(self, machine_id: str) -> None:
        """They are in use throughout."""
        raise AssertionError(machine_id)

    def machines(self) -> Sequence[Machine]:
        """All."""
        return self._machines


class Beating:
    """A driver whose gangs only say that they run."""

    def __init__(self, driver: Driver, book: Path) -> None:
        self.driver = driver
        self._book = book

    def start(self, spec: GangSpec, token: str) -> None:
        """As the driver, with another program."""
        argv = ("{python}", "-I", "-S", "-c", BEAT, str(self._book), spec.gang_id)
        self.driver.start(replace(spec, processes=(ProcessSpec(argv),)), token)

    def stop(self, gang_id: str, grace_s: float) -> None:
        """As the driver."""
        self.driver.stop(gang_id, grace_s)

    def gangs(self) -> Sequence[GangStatus]:
        """As the driver."""
        return self.driver.gangs()

    def forget(self, gang_id: str) -> None:
        """As the driver."""
        self.driver.forget(gang_id)

    def logs(self, gang_id: str, tail_bytes: int = 65536) -> str:
        """As the driver."""
        return self.driver.logs(gang_id, tail_bytes)


@dataclass
class Loss:
    """Seconds from a loss until the books say so, until the last replacement is decided, and until all that ran there
    says that it runs again."""

    noticed_s: float
    decided_s: float
    elsewhere_s: float
    sites: set[str] = field(default_factory=set)  # where it runs now


class Rig:
    """One fleet with a service of `replicas`, whose loop runs from `start` to `close`."""

    def __init__(
        self,
        home: Path,
        drivers: Mapping[str, Driver],
        provider: Provider,
        replicas: int = 2,
        settings: Settings | None = None,
    ) -> None:
        clock = SystemClock()
        self.store = open_store(f"sqlite:///{home / 'state.db'}")
        self.book = home / "book"
        self.drivers = dict(drivers)
        sites = tuple(SiteSpec(name) for name in drivers)
        asks = Resources(0.2, 32 * MIB)
        spec = ServiceSpec(
            "service", (ServedModel("small", "bench:small", replicas=replicas, resources=asks),)
        )
        self.slots = replicas + 1  # and a gateway
        self.world = World(
            clock=clock,
            store=self.store,
            models=Shelf(),
            providers={"local": provider},
            drivers={name: Beating(driver, self.book) for name, driver in drivers.items()},
            sites=sites,
        )
        apply(self.store, [FleetSpec("bench", sites), spec], clock.now())
        if isinstance(provider, Racks):
            self.store.commit(Change(leases=provider.leases))
        self._runner = Runner(
            ControlLoop(self.world, this_process("bench"), settings or Settings(), asking=Together())
        )

    def start(self) -> None:
        """Begin, and wait until everything that is wanted says that it runs."""
        self._runner.start()
        until(lambda: len(self.beating()) == self.slots, 60.0, "the service to start", tail=self.tail)

    def gangs(self) -> list[Gang]:
        """Those that are not over, as the books have it."""
        return [g for g in self.store.read().gangs if g.ended_at is None]

    def beats(self) -> dict[str, float]:
        """When each gang's process said that it runs."""
        if not self.book.exists():
            return {}
        lines = (line.split() for line in self.book.read_text().splitlines())
        return {words[0]: float(words[2]) for words in lines if len(words) == 3}

    def beating(self) -> list[Gang]:
        """The gangs in the books whose process has said that it runs."""
        said = self.beats()
        return [g for g in self.gangs() if g.id in said]

    def site(self, chance: random.Random) -> str:
        """A site that runs a replica."""
        return chance.choice(sorted({g.site for g in self.gangs() if g.model}))

    def suspected(self, site: str) -> bool:
        """Whether the books say that contact with the site is lost: its epochs are raised."""
        return any(x.site == site and x.state is LeaseState.SUSPECT for x in self.store.read().leases)

    def loss(self, gangs: Sequence[Gang], at: float, noticed: Callable[[], object]) -> Loss:
        """Wait until it is noticed that these gangs were lost at that time, and until their slots run again."""
        until(noticed, 90.0, "the loss to be noticed", 0.01, self.tail)
        noticed_s = time.time() - at
        lost = {g.id for g in gangs}
        slots = {g.slot for g in gangs}

        def again() -> list[Gang]:
            found = [g for g in self.beating() if g.slot in slots and g.id not in lost]
            return found if {g.slot for g in found} == slots else []

        found = until(again, 120.0, "what was lost to run again", 0.02, self.tail)
        said = self.beats()
        decided_s = max(g.created_at for g in found) - at
        if decided_s > ODD_S:
            print(f"decided only after {decided_s:.1f} s:\n{self.tail()}", file=sys.stderr, flush=True)
        return Loss(noticed_s, decided_s, max(said[g.id] for g in found) - at, {g.site for g in found})

    def tail(self) -> str:
        """What the control process wrote down last."""
        last = self.store.last_event_seq()
        return "\n".join(f"  {e.at:.1f} {e.kind} {e.text}" for e in self.store.events(max(0, last - 25)))

    def close(self) -> None:
        """End the loop, then all gangs."""
        self._runner.stop()
        for driver in self.drivers.values():
            with suppress(CaudalError):
                for row in driver.gangs():
                    driver.stop(row.gang_id, 0.0)
        until(lambda: not self._alive(), 30.0, "all gangs to end")

    def _alive(self) -> bool:
        for driver in self.drivers.values():
            with suppress(CaudalError):
                if any(row.alive for row in driver.gangs()):
                    return True
        return False
