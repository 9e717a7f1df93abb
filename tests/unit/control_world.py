"""A whole control process over fakes and a store in memory, for tests: every call is real, only time and
machines are not."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import replace
from decimal import Decimal

from caudal.control.apply import apply
from caudal.control.launch import LaunchSettings
from caudal.control.loop import ControlLoop, Settings
from caudal.domain.errors import CaudalError
from caudal.domain.fleet import FleetSpec, MachineType, Market, Offer, Resources, SiteSpec
from caudal.domain.gang import Gang, GangSpec
from caudal.domain.model import ModelRecord
from caudal.domain.workload import ServedModel, ServiceSpec, StageSpec, TrainSpec
from caudal.drivers.fake import FakeDriver, Script
from caudal.ports import Holder, World
from caudal.providers.fake import FakeProvider
from caudal.store.state import open_store

SITES = ("north", "south")
GIB = 1 << 30

LAUNCH = LaunchSettings(
    api_url="http://127.0.0.1:8600",
    token_file="/secrets/token",
    blobs_url="file:///blobs",
    cache_dir="/cache",
    secret="s3cret",
)

RUN = TrainSpec("starter", "builtin:tinyworld", (StageSpec("text", 100_000),))
SERVICE = ServiceSpec(
    "assistant", (ServedModel("small", source="pypi:small==1"), ServedModel("starter", run="starter"))
)


class Hands:
    """A clock that is moved by hand."""

    def __init__(self) -> None:
        self.time = 1_000.0

    def now(self) -> float:
        """Seconds."""
        return self.time

    def sleep(self, seconds: float) -> None:
        """Time passes."""
        self.time += seconds


class Shelf:
    """A model store in memory; `fails` is raised by the next pull."""

    def __init__(self) -> None:
        self.records: dict[str, ModelRecord] = {}
        self.pulled: list[str] = []
        self.fails: CaudalError | None = None

    def list(self) -> Sequence[ModelRecord]:
        """What is there."""
        return list(self.records.values())

    def pull(self, model_id: str, source: str, sha256: str = "") -> ModelRecord:
        """Bring one in."""
        self.pulled.append(model_id)
        if self.fails is not None:
            error, self.fails = self.fails, None
            raise error
        return self.put(model_id, source)

    def put(self, model_id: str, source: str = "test", run: str = "") -> ModelRecord:
        """The next version of a model."""
        version = self.records[model_id].version + 1 if model_id in self.records else 1
        record = ModelRecord(model_id, version, source, 0.0, (), 1, run=run)
        self.records[model_id] = record
        return record


def offer_at(site: str) -> Offer:
    """The one machine of a site, the user's own."""
    kind = MachineType("share", Resources(2.0, 8 * GIB))
    return Offer(f"own@{site}", site, kind, Market.OWN, Decimal(0), "test", "2026-01-01")


class Bench:
    """The world, and control processes over it."""

    def __init__(self, *specs: TrainSpec | ServiceSpec, sites: Sequence[str] = SITES) -> None:
        self.clock = Hands()
        self.store = open_store("sqlite://")
        self.models = Shelf()
        self.started: list[str] = []
        self.drivers = {s: FakeDriver(s, self.clock, script=self._script) for s in sites}
        self.providers = {
            f"fake-{s}": FakeProvider(f"fake-{s}", [offer_at(s)], self.clock, capacity={f"own@{s}": 1})
            for s in sites
        }
        self.fleet = FleetSpec("test", tuple(SiteSpec(s, provider=f"fake-{s}", driver="fake") for s in sites))
        self.world = World(
            self.clock, self.store, self.models, self.providers, self.drivers, self.fleet.sites
        )
        self.settings = Settings()
        apply(self.store, [self.fleet, *specs], self.clock.now())
        self.loop = self.process("first")

    def process(self, name: str) -> ControlLoop:
        """A control process that has just come up."""
        return ControlLoop(self.world, Holder(name, "here", len(name), 0.0), self.settings, LAUNCH)

    def run(self, passes: int = 8, each_s: float = 1.0, loop: ControlLoop | None = None) -> None:
        """Make passes, with time between them."""
        for _ in range(passes):
            (loop or self.loop).run_once()
            self.clock.sleep(each_s)

    def run_until(self, done: Callable[[], bool], passes: int = 60, loop: ControlLoop | None = None) -> None:
        """Make passes until something is so."""
        for _ in range(passes):
            if done():
                return
            self.run(1, loop=loop)
        raise AssertionError("it never came to that")

    def live(self, slot: str = "") -> list[Gang]:
        """The gangs of the books that are not over."""
        return [g for g in self.store.read().gangs if g.ended_at is None and slot in ("", g.slot)]

    def processes(self) -> dict[str, str]:
        """What truly lives: gang → site."""
        return {p.spec.gang_id: s for s, d in self.drivers.items() for p in d.processes() if p.alive}

    def spec(self, gang_id: str) -> GangSpec:
        """What a driver was asked to start."""
        found = [p.spec for d in self.drivers.values() for p in d.processes() if p.spec.gang_id == gang_id]
        return found[0]

    def kinds(self) -> list[str]:
        """The kinds of all events."""
        return [e.kind for e in self.store.events()]

    def _script(self, spec: GangSpec) -> Script:
        self.started.append(spec.gang_id)
        return Script()


def with_silence(settings: Settings, suspect_after_s: float, grace_s: float) -> Settings:
    """Settings with other times of contact."""
    return replace(settings, rules=replace(settings.rules, suspect_after_s=suspect_after_s, grace_s=grace_s))
