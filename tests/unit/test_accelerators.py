"""The catalogue of accelerators, and model FLOPs utilisation: only where every peak is known."""

from __future__ import annotations

import re
from dataclasses import replace
from typing import Any

import pytest
import torch

from caudal.catalog.accelerators import ACCELERATORS, accelerator, peak_flops_per_s
from caudal.train.group import member
from caudal.train.interface import Devices, devices_of
from caudal.train.protocol.effects import Measured
from caudal.train.protocol.merge import flops_per_token
from tests.unit.test_train_coordinator import PLAN, Boss

H100, A100 = "NVIDIA H100 80GB HBM3", "NVIDIA A100-SXM4-80GB"


@pytest.mark.parametrize(
    ("device_name", "ours"),
    [
        ("NVIDIA A100-SXM4-40GB", "A100-40GB"),
        ("NVIDIA A100-PCIE-40GB", "A100-40GB"),
        (A100, "A100-80GB"),
        ("NVIDIA A100 80GB PCIe", "A100-80GB"),
        (H100, "H100-SXM"),
        ("NVIDIA H100 PCIe", "H100-PCIe"),
        ("NVIDIA H200", "H200"),
        ("NVIDIA B200", "B200"),
        ("NVIDIA GB200", "GB200"),
        ("NVIDIA L4", "L4"),
        ("NVIDIA L40S", "L40S"),
        ("NVIDIA A10G", "A10G"),
        ("Tesla T4", "T4"),
        ("Tesla V100-SXM2-16GB", "V100-SXM2-16GB"),
        ("AMD Instinct MI300X", "MI300X"),
        ("Trainium2", "Trainium2"),
    ],
)
def test_a_device_is_known_by_what_it_calls_itself(device_name: str, ours: str) -> None:
    found = accelerator(device_name)
    assert found is not None and found.name == ours


@pytest.mark.parametrize(
    "name", ["", "cpu", "NVIDIA H100 NVL", "NVIDIA H200 NVL", "NVIDIA L40", "NVIDIA A10", "NVIDIA A100X", "L"]
)
def test_what_is_only_similar_is_not_known(name: str) -> None:
    assert accelerator(name) is None and peak_flops_per_s(name, "bfloat16") is None


def test_every_row_has_its_source_and_date_and_adds_up() -> None:
    assert len({a.name for a in ACCELERATORS}) == len(ACCELERATORS)
    for row in ACCELERATORS:
        assert row.source and re.fullmatch(r"20\d\d-\d\d-\d\d", row.as_of), row.name
        assert 16e9 <= row.memory_bytes <= 300e9 and min(row.peaks.values()) > 1e12, row.name
        assert row.peaks["float16"] == max(row.peaks.values()) >= 2 * row.peaks["float32"], row.name
    assert peak_flops_per_s("Tesla T4", "bfloat16") is None, "it has none"
    assert peak_flops_per_s(A100, "bfloat16") == 312e12 and peak_flops_per_s(A100, "float32") == 19.5e12
    assert peak_flops_per_s(A100, "int3") is None


def rows(first: dict[str, Any], second: dict[str, Any]) -> list[dict[str, Any]]:
    """Two rounds of two sites that compute on these devices, a second each."""
    boss = Boss()
    boss.join(1, "a", **first)
    boss.join(2, "b", **second)
    for _ in range(2):
        boss.now += 1.0
        boss.delta(1)
        boss.delta(2)
    return [dict(e.values) for e in boss.others if isinstance(e, Measured)]


def on(name: str, count: int = 8, precision: str = "bfloat16") -> dict[str, Any]:
    return {"device": name, "device_count": count, "precision": precision}


def test_mfu_is_over_the_peaks_of_all_sites(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(
        "caudal.train.protocol.merge.peak_flops_per_s", lambda name, _: {"x": 1e6, "y": 2e6}[name]
    )
    said = rows(on("x", 8), on("y", 4))[-1]
    per_token = 6 * PLAN.parameters + 12 * 1 * 8 * 8  # one layer of width 8, samples of 8 tokens
    assert flops_per_token(PLAN, 0) == per_token
    assert said["mfu"] == pytest.approx(per_token * said["tokens_per_s"] / 16e6, abs=1e-4) and said["mfu"] > 0


def test_the_catalogues_own_peaks_are_used() -> None:
    assert rows(on(H100), on(A100))[-1]["mfu"] == 0.0, "a tiny model on sixteen large devices"


@pytest.mark.parametrize(
    "other",
    [
        {},
        on("NVIDIA RTX 9999"),
        on(H100, 0),
        on(H100, precision="int3"),
        on("Tesla T4", precision="bfloat16"),
    ],
    ids=["a CPU", "unknown", "no device", "unknown precision", "a precision it lacks"],
)
def test_where_one_peak_is_not_known_there_is_no_mfu(other: dict[str, Any]) -> None:
    assert all("mfu" not in row for row in rows(on(H100), other))
    assert all("mfu" not in row for row in rows(other, other))


def test_a_model_of_unknown_shape_has_no_attention_term() -> None:
    assert flops_per_token(replace(PLAN, model="hash"), 0) == 6 * PLAN.parameters


def test_a_group_says_what_it_computes_on(monkeypatch: pytest.MonkeyPatch) -> None:
    """On a fake only: there is no such device here."""
    one = object.__new__(member.Member)
    one.world, one._dtype, one._device = 16, torch.bfloat16, torch.device("cpu")
    assert one.devices() is None
    one._device = torch.device("cuda", 0)
    monkeypatch.setattr(torch.cuda, "get_device_name", lambda device: H100)
    monkeypatch.setattr(torch.cuda, "device_count", lambda: 8)
    monkeypatch.delenv("LOCAL_WORLD_SIZE", raising=False)
    assert one.devices() == Devices(H100, 8, "bfloat16"), "sixteen processes share eight devices"
    monkeypatch.setenv("LOCAL_WORLD_SIZE", "8")
    assert one.devices() == Devices(H100, 16, "bfloat16"), "two machines of eight"
    one._dtype = torch.float32
    assert one.devices() == Devices(H100, 16, "float32")
    monkeypatch.setattr(torch, "get_float32_matmul_precision", lambda: "high")
    assert one.devices() == Devices(H100, 16, "tf32")


def test_an_inner_side_without_a_word_on_it_says_nothing() -> None:
    class Plain:
        pass

    class Named:
        devices = Devices(H100, 1, "float32")

    assert devices_of(Plain()) is None and devices_of(Named()) == Named.devices  # type: ignore[arg-type]
