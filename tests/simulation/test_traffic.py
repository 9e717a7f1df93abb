"""Replicas follow demand over virtual minutes: the production policy, routes and reports, with and without faults."""

from __future__ import annotations

from dataclasses import replace

import pytest

from caudal.domain.errors import NotFound
from caudal.domain.gang import Role
from caudal.domain.workload import ScaleSpec, ServedModel, ServiceSpec
from caudal.policy import draining
from caudal.simulate.scenario import Rates, Scenario, SitePlan, Wave
from caudal.simulate.traffic import SERVICE_S
from caudal.simulate.world import Simulation

SLOTS = 2
SCALE = ScaleSpec(0, 6, idle_s=60.0)
WAVES = (Wave(30, 0.125), Wave(130, 1.0), Wave(300, 0.125), Wave(460, 0.0), Wave(620, 0.25))
DAY = Scenario(
    "day",
    sites=(SitePlan("north", 2), SitePlan("south", 2)),
    workloads=(ServiceSpec("assistant", (ServedModel("small", source="x", slots=SLOTS, scale=SCALE),)),),
    traffic=WAVES,
)


def enough(arrivals_per_s: float) -> int:
    """Replicas that carry it, at `target` of their slots."""
    return int(arrivals_per_s * SERVICE_S / (SLOTS * SCALE.target) + 0.999)


class Watched:
    """A simulation, and how many replicas that take requests there were in each second."""

    def __init__(self, seed: int, scenario: Scenario) -> None:
        self.simulation = Simulation(seed, scenario)
        self.counts: list[int] = []
        self.simulation.begin()

    def run(self, until_s: int) -> int:
        kernel = self.simulation.kernel
        while kernel.elapsed() < until_s:
            kernel.run_until(kernel.now() + 1.0)
            gangs = self.simulation.facts.alive()
            self.counts.append(sum(g.role is Role.REPLICA and g.draining_at is None for g, _ in gangs))
        return self.counts[-1]


def test_replicas_follow_a_day_of_traffic_and_no_request_is_dropped() -> None:
    world = Watched(1, DAY)
    traffic = world.simulation.traffic
    assert traffic is not None
    assert world.run(29) == 0
    assert world.run(129) == 1
    assert enough(1.0) <= world.run(299) <= SCALE.max
    highest = world.counts[250:]
    assert len(set(highest)) == 1, "under a constant load nothing moves"
    assert world.run(459) == enough(0.125) == 1
    assert world.run(619) == 0, "asleep"
    assert 1 <= world.run(700) <= enough(0.25)
    awake = next(i for i, n in enumerate(world.counts[600:]) if n) + 600
    assert awake <= 625, "the first request starts one at once"
    assert traffic.dropped == traffic.lost == 0
    assert traffic.answered >= 12 + 170 + 20 + 12
    assert traffic.longest_wait_s <= 15.0
    codes = {e.data["code"] for e in world.simulation.facts.watch.events() if e.kind == "gang.draining"}
    assert codes == {"scale.down"}


def test_a_replica_that_is_stopped_with_requests_would_be_seen(monkeypatch: pytest.MonkeyPatch) -> None:
    evening = replace(DAY, traffic=(Wave(30, 1.25), Wave(150, 0.625)))
    for drains in (True, False):
        if not drains:
            monkeypatch.setattr(draining, "drained", lambda board, gang, since: True)
        world = Watched(1, evening)
        most, least = world.run(149), world.run(300)
        assert most > least and world.simulation.traffic is not None
        assert (world.simulation.traffic.dropped == 0) == drains


def test_the_same_seed_is_the_same_day() -> None:
    first, second = Watched(7, DAY), Watched(7, DAY)
    first.run(200)
    second.run(200)
    assert first.simulation.lines == second.simulation.lines


@pytest.mark.parametrize("seed", range(1, 9))
def test_faults_cost_requests_of_what_died_alone_and_all_comes_to_rest(seed: int) -> None:
    rates = Rates(gang_dies=3, driver_silent=2, control_dies=4, control_hangs=3, answer_lost=0.05)
    world = Watched(seed, replace(DAY, rates=rates, faulty_s=400.0, hangs_on_stop=0.2))
    traffic = world.simulation.traffic
    assert traffic is not None
    world.run(619)
    assert world.counts[-1] == 0, "asleep, whatever happened"
    assert world.run(700) >= 1
    assert traffic.answered > 150
    assert traffic.dropped == 0


def test_traffic_needs_a_service() -> None:
    with pytest.raises(NotFound, match="traffic and no service"):
        Simulation(1, Scenario("none", traffic=WAVES))
