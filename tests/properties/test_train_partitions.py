"""However a network falls apart, one coordinator at a time writes a run."""

from __future__ import annotations

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from caudal.domain.errors import CaudalError
from caudal.train.audit import audit
from tests.properties.test_train_protocol import weathered
from tests.support.partitions import PartitionWorld, two_writers
from tests.support.train_world import PREFIX, DictBlobs


@settings(max_examples=40, deadline=None)
@given(seed=st.integers(0, 2**32 - 1), sites=st.integers(1, 4), storm_s=st.floats(5.0, 60.0))
def test_no_partition_makes_two_writers(seed: int, sites: int, storm_s: float) -> None:
    world = weathered(PartitionWorld(seed, sites), storm_s)
    assert two_writers(world) == []
    report = audit(world.blobs, PREFIX)
    assert not report.missing and report.ids == report.ids_total


def test_the_partitions_are_such_that_two_believe_in_themselves_and_one_is_refused() -> None:
    worlds = [weathered(PartitionWorld(seed, 3), 40.0) for seed in range(10)]
    assert sum(w.rivals for w in worlds) >= 10 and sum(w.refused for w in worlds) >= 10


def test_a_store_that_lets_one_overwrite_is_found_out(monkeypatch: pytest.MonkeyPatch) -> None:
    def overwrite(self: DictBlobs, path: str, data: bytes, *, if_absent: bool = False) -> None:
        self.objects[path] = bytes(data)

    monkeypatch.setattr(DictBlobs, "put", overwrite)
    found = []
    for seed in range(10):
        world = PartitionWorld(seed, 3)
        try:
            weathered(world, 40.0)
            found += two_writers(world)
        except (AssertionError, CaudalError):  # the ledger itself says so
            found.append("the run broke")
    assert found
