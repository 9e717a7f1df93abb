"""Where a gang goes on a Ray cluster, by what its nodes have joined as."""

from __future__ import annotations

from dataclasses import asdict

import pytest

from caudal.domain.fleet import Resources

pytest.importorskip("ray")

from caudal.drivers.ray.names import LEASE_SHARE
from caudal.drivers.ray.supervisor import _asks, _options, _where


def node(name: str, lease: str = "", alive: bool = True, cpus: float = 4.0) -> dict[str, object]:
    has = {"CPU": cpus, "memory": 1e9, f"node:{name}": 1.0}
    return {"Alive": alive, "Resources": {**has, **({f"caudal-lease-{lease}": 1.0} if lease else {})}}


ONE = {"CPU": 1.0}


def test_to_the_node_of_its_lease() -> None:
    where, _ = _where([node("x", "l1"), node("y", "l2")], ONE, "l2")
    assert where == {"caudal-lease-l2": LEASE_SHARE}


def test_anywhere_on_a_cluster_that_knows_no_leases_or_for_a_gang_without_one() -> None:
    assert _where([node("x"), node("y")], ONE, "l2")[0] == {}
    assert _where([node("x", "l1")], ONE, "")[0] == {}


def test_never_to_the_node_of_another_lease() -> None:
    where, why = _where([node("x", "l1"), node("y", "l2", alive=False)], ONE, "l2")
    assert where is None and "caudal-lease-l2" in why
    assert _where([node("x", "l1"), node("y")], ONE, "l2")[0] == {"node:y": LEASE_SHARE}
    assert _where([node("x", "l1"), node("y", cpus=0.5)], ONE, "l2")[0] is None


def test_what_is_asked_for_in_rays_words() -> None:
    def asks(cpus: float, memory_bytes: int, accelerators: int, neuron_cores: int) -> dict[str, float]:
        return _asks({"resources": asdict(Resources(cpus, memory_bytes, accelerators, neuron_cores))})

    assert asks(0.5, 100, 2, 0) == {"CPU": 0.5, "memory": 100.0, "GPU": 2.0}
    assert asks(0, 0, 2, 4) == {"neuron_cores": 4.0}  # the chips are counted by their cores
    assert _options(asks(0.5, 100, 2, 0)) == {
        "num_cpus": 0.5,
        "memory": 100.0,
        "num_gpus": 2.0,
        "resources": {},
    }
    assert _options(asks(0, 0, 0, 4)) == {"num_cpus": 0, "resources": {"neuron_cores": 4.0}}
