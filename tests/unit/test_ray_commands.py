"""What starts a head and a node, and what is refused."""

from __future__ import annotations

import json

import pytest

from caudal.domain.errors import Failed, UsageError
from caudal.domain.fleet import Resources
from caudal.drivers.ray import commands, names, package
from caudal.drivers.ray.commands import check_version, head_command, join_command


def resources_of(command: list[str]) -> dict[str, float]:
    (word,) = [w for w in command if w.startswith("--resources=")]
    found: dict[str, float] = json.loads(word.partition("=")[2])
    return found


def test_a_head_is_safe_and_quick_and_scales_nothing() -> None:
    command = head_command(
        "lease-1", Resources(8, 1 << 30), node_address="10.0.0.4", token_file="/etc/caudal/ray"
    )
    assert {
        "--head",
        "--node-ip-address=10.0.0.4",
        "--dashboard-host=127.0.0.1",
        "--block",
        "--num-cpus=8",
    } <= set(command)
    assert {
        "RAY_AUTH_MODE=token",
        "RAY_AUTH_TOKEN_PATH=/etc/caudal/ray",
        "--disable-usage-stats",
        "--no-monitor",
    } <= set(command)
    assert {f"{k}={v}" for k, v in commands.HEALTH.items()} <= set(command)
    assert resources_of(command) == {"caudal-lease-lease-1": 1}
    assert not any("num-gpus" in word for word in command)


def test_a_node_joins_under_its_lease_with_its_devices() -> None:
    gpus = join_command("l/1 a", "10.0.0.4:6379", Resources(8, 1 << 30, accelerators=4), token_file="/t")
    assert "--address=10.0.0.4:6379" in gpus and "--num-gpus=4" in gpus and "--head" not in gpus
    assert resources_of(gpus) == {"caudal-lease-l-1-a": 1}
    neuron = join_command("x", "h:1", Resources(8, 0, accelerators=2, neuron_cores=4), token_file="/t")
    assert resources_of(neuron) == {"caudal-lease-x": 1, "neuron_cores": 4}
    assert not any("num-gpus" in word or "--memory" in word for word in neuron)


def test_a_jobs_api_for_everybody_is_refused() -> None:
    with pytest.raises(UsageError, match="for anybody"):
        head_command("x", Resources(1), node_address="10.0.0.4", token_file="", jobs_host="0.0.0.0")
    assert head_command("x", Resources(1), node_address="10.0.0.4", token_file="")
    assert head_command("x", Resources(1), node_address="10.0.0.4", token_file="/t", jobs_host="10.0.0.4")


@pytest.mark.parametrize("version", ["2.56.0", "2.60.0", "3.0.0.dev0"])
def test_a_new_ray_is_taken(version: str) -> None:
    check_version(version, "site north")


@pytest.mark.parametrize("version", ["2.55.1", "1.13.0", "", "nightly"])
def test_an_old_or_unknown_ray_is_refused_with_what_to_do(version: str) -> None:
    with pytest.raises(Failed, match="too old") as caught:
        check_version(version, "site north")
    assert "2.56" in caught.value.remedy and caught.value.where == "site north"


def test_the_bound_for_a_cut_off_node_is_longer_than_the_head_takes_to_give_it_up() -> None:
    period, timeout = (int(commands.HEALTH[f"RAY_health_check_{n}_ms"]) for n in ("period", "timeout"))
    tries = int(commands.HEALTH["RAY_health_check_failure_threshold"])
    assert (period + timeout) * tries / 1000 < names.CUT_S


def test_the_package_is_the_same_whenever_it_is_made() -> None:
    name, data = package.code()
    package.code.cache_clear()
    assert package.code() == (name, data)
    assert name.endswith(".zip") and len(data) < 64 << 10


def test_a_later_word_does_not_hide_a_shorter_grace() -> None:
    said = [names.stop_message("north", "a@v2-0", "t", grace_s) for grace_s in (600.0, 0.3, 10.0)]
    assert [names.grace_of(name) for name in sorted(said)] == [0.3, 10.0, 600.0]
    assert all(name.startswith(names.stop_prefix("north", "a@v2-0", "t")) for name in said)
