"""Whatever the network, the sites and the coordinators do: nothing is trained twice, nothing is lost, all
copies are equal (checked at every update inside the world), and once things calm down the run finishes."""

from __future__ import annotations

from dataclasses import replace

from hypothesis import given, settings
from hypothesis import strategies as st

from caudal.domain.workload import OuterSpec
from caudal.train import ledger
from caudal.train.audit import audit
from tests.support.train_world import PREFIX, SPEC, TrainWorld

SETTINGS = st.builds(
    OuterSpec,
    inner_steps=st.sampled_from([1, 4, 9]),
    fragments=st.integers(1, 6),
    bits=st.sampled_from([8, 4]),
    overlap=st.booleans(),
    sync_fraction=st.sampled_from([0.0, 0.25]),
    quorum=st.integers(1, 2),
)


@settings(max_examples=60, deadline=None)
@given(
    seed=st.integers(0, 2**32 - 1),
    sites=st.integers(1, 4),
    storm_s=st.floats(1.0, 60.0),
    outer=SETTINGS,
)
def test_exactly_once_and_always_an_end(seed: int, sites: int, storm_s: float, outer: OuterSpec) -> None:
    outer = replace(outer, quorum=min(outer.quorum, sites))
    world = TrainWorld(seed, sites, replace(SPEC, outer=outer))
    world.run(storm_s)
    world.calm = True
    if not world.bosses[-1].alive:
        world.new_boss()
    world.run(storm_s + 4_000.0)
    assert world.trained is not None, f"no end: phase {world.bosses[-1].machine.phase}, {world.log[-5:]}"

    report = audit(world.blobs, PREFIX)
    assert not report.missing and report.ids == report.ids_total

    links = ledger.read_from(world.blobs, PREFIX, None)
    for link in links:
        assert len({world.plan.stage_of(r[0]) for s in link.entry.sites for r in s.ids}) == 1
    epochs = [link.entry.epoch for link in links]
    assert epochs == sorted(epochs), "a fenced coordinator committed"


@settings(max_examples=10, deadline=None)
@given(seed=st.integers(0, 2**32 - 1))
def test_without_faults_no_work_is_wasted(seed: int) -> None:
    world = TrainWorld(seed, 2)
    world.calm = True
    world.run(2_000.0)
    assert world.trained is not None and world.trained.heldout["of"] == 2
    links = ledger.read_from(world.blobs, PREFIX, None)
    assert {len(link.entry.sites) for link in links} <= {1, 2}
    assert sum(part.joined for link in links for part in link.entry.sites) == 2
    assert audit(world.blobs, PREFIX).epochs == 1
