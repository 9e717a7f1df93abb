"""Scenarios: a fleet, what it is asked to run, what goes wrong and how often, and for how long.

A scenario and a seed together are one simulation. Knows nothing of how it is carried out.
"""

from __future__ import annotations

from dataclasses import dataclass, field, replace
from decimal import Decimal

from caudal.domain.errors import NotFound
from caudal.domain.fleet import MachineType, Market, Offer, Resources
from caudal.domain.workload import ServedModel, ServiceSpec, StageSpec, TrainSpec

GIB = 1 << 30

NODE = Resources(cpus=2.0, memory_bytes=4 * GIB)
"""A simulated machine."""


@dataclass(frozen=True, slots=True)
class SitePlan:
    """A site with a provider of its own that has `machines` machines of one type."""

    name: str
    machines: int = 2
    resources: Resources = NODE

    @property
    def capacity(self) -> int:
        """How many machines the provider has in all: one more, which is someone else's."""
        return self.machines + 1

    def offer(self) -> Offer:
        """What the provider sells there."""
        return Offer(
            id=f"node@{self.name}",
            site=self.name,
            machine_type=MachineType("node", self.resources),
            market=Market.ON_DEMAND,
            price_usd_per_hour=Decimal("0.10"),
            source="simulated",
            as_of="2026-01-01",
        )


@dataclass(frozen=True, slots=True)
class Rates:
    """How often each fault happens, per 100 virtual seconds, while faults happen at all; the last three are
    chances per call."""

    gang_dies: float = 0.0
    machine_dies: float = 0.0
    driver_silent: float = 0.0
    provider_silent: float = 0.0
    control_dies: float = 0.0
    control_hangs: float = 0.0
    capacity_drops: float = 0.0
    stray_machines: float = 0.0
    user_edits: float = 0.0
    call_lost: float = 0.0
    answer_lost: float = 0.0
    pull_fails: float = 0.0


@dataclass(frozen=True, slots=True)
class Wave:
    """So many requests a second arrive from then on, until the next wave."""

    from_s: float
    arrivals_per_s: float


@dataclass(frozen=True, slots=True)
class Scenario:
    """What is simulated. Times in virtual seconds.

    Faults happen until `faulty_s`; then everything is healed, and what can run has to run within `bound_s`,
    a run within the time that one worker needs on top. `cannot_run` are workloads that no node can hold:
    they have to wait, and harm nothing. `hangs_on_stop` is the share of gangs that have to be killed. `traffic` is
    for the first model of the first service.
    """

    name: str
    sites: tuple[SitePlan, ...] = (SitePlan("north"), SitePlan("south"))
    workloads: tuple[TrainSpec | ServiceSpec, ...] = ()
    rates: Rates = field(default_factory=Rates)
    faulty_s: float = 60.0
    bound_s: float = 90.0
    list_lag_s: float = 0.0
    hangs_on_stop: float = 0.0
    cannot_run: tuple[str, ...] = ()
    traffic: tuple[Wave, ...] = ()

    def asked_model(self) -> ServedModel:
        """The model that traffic is for. Raises NotFound where there is no service."""
        for spec in self.workloads:
            if isinstance(spec, ServiceSpec):
                return spec.models[0]
        raise NotFound(f"scenario {self.name} has traffic and no service")


def a_run(name: str = "starter", work_s: float = 60.0, sites: int = 2) -> TrainSpec:
    """A run that one worker would need `work_s` for (in simulation, 1,000 tokens are a second)."""
    stage = StageSpec("text", tokens=int(work_s * 1000))
    return TrainSpec(name=name, data="builtin:tinyworld", stages=(stage,), sites=sites)


def a_service(name: str = "assistant", replicas: int = 2, run: str = "starter") -> ServiceSpec:
    """A service of one model that is pulled and, where `run` is not empty, one that the run publishes."""
    models = [ServedModel("small", source="pypi:small==1", replicas=replicas)]
    if run:
        models.append(ServedModel(run, run=run))
    return ServiceSpec(name, tuple(models))


_STARTER = (a_run(work_s=150.0), a_service())

_HUGE = ServiceSpec(
    "huge", (ServedModel("giant", source="pypi:giant==1", resources=Resources(64.0, 512 * GIB)),)
)

_ALL = (
    Scenario(
        "two-sites",
        workloads=_STARTER,
        rates=Rates(
            gang_dies=5,
            machine_dies=1.5,
            driver_silent=2,
            provider_silent=1,
            stray_machines=1,
            user_edits=1.5,
        ),
        hangs_on_stop=0.2,
    ),
    Scenario(
        "flaky-network",
        workloads=_STARTER,
        rates=Rates(
            gang_dies=1, driver_silent=8, provider_silent=5, call_lost=0.1, answer_lost=0.1, pull_fails=0.3
        ),
        list_lag_s=4.0,
    ),
    Scenario(
        "control-crashes",
        workloads=_STARTER,
        rates=Rates(
            gang_dies=3, machine_dies=1, control_dies=8, control_hangs=6, user_edits=2, answer_lost=0.05
        ),
        list_lag_s=1.0,
        hangs_on_stop=0.2,
    ),
    Scenario(
        "capacity",
        sites=(SitePlan("north", 1), SitePlan("south", 1), SitePlan("west", 1)),
        workloads=(*_STARTER, a_run("second", work_s=60.0, sites=3), _HUGE),
        rates=Rates(gang_dies=2, machine_dies=4, capacity_drops=6),
        cannot_run=("huge",),
    ),
    Scenario(
        "storm",  # everything at once
        sites=(SitePlan("north", 1), SitePlan("south", 2), SitePlan("west", 1)),
        workloads=_STARTER,
        rates=Rates(
            gang_dies=6,
            machine_dies=3,
            driver_silent=5,
            provider_silent=4,
            control_dies=6,
            control_hangs=6,
            capacity_drops=3,
            stray_machines=2,
            user_edits=4,
            call_lost=0.08,
            answer_lost=0.08,
            pull_fails=0.3,
        ),
        list_lag_s=4.0,
        hangs_on_stop=0.3,
    ),
)

SCENARIOS = {scenario.name: scenario for scenario in _ALL}
"""The named ones, as `python -m caudal.simulate --scenario NAME` knows them."""


def named(name: str) -> Scenario:
    """The scenario of that name. Raises NotFound."""
    if name not in SCENARIOS:
        raise NotFound(f"no scenario {name}", remedy=f"one of: {', '.join(SCENARIOS)}")
    return SCENARIOS[name]


def calm(scenario: Scenario) -> Scenario:
    """The same without faults."""
    return replace(scenario, rates=Rates(), faulty_s=0.0, hangs_on_stop=0.0, list_lag_s=0.0)
