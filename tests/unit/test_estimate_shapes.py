"""Architectures against the sizes that their makers state; shapes from sizes and from config.json; chips."""

from __future__ import annotations

import csv
import re
from pathlib import Path
from typing import Any

import pytest

from caudal.catalog.accelerators import accelerator
from caudal.catalog.architectures import KNOWN, architecture
from caudal.catalog.chips import CHIPS, chip, close_names
from caudal.domain.errors import UsageError
from caudal.estimate.shapes import from_config, shape_of_size, size_of, with_experts_of_size

PUBLISHED = Path(__file__).parents[2] / "bench" / "data" / "published"

STATED = {  # billions: all, active; from the model cards' text
    "Llama 3.1 405B": (405.9, 405.9), "Llama-3-70B": (70.6, 70.6), "meta-llama/Llama-3.1-8B": (8.03, 8.03),
    "Llama2-7B": (6.74, 6.74), "LLaMA-65B": (65.2, 65.2), "Mixtral 8x7B": (46.7, 12.9),
    "Mixtral-8x22B": (141, 39), "DeepSeek V3 (671B)": (671, 37), "DeepSeek-V2": (236, 21), "Kimi-K2": (1026, 32.5),
    "Qwen3-30B-A3B": (30.5, 3.3), "Qwen3 235B A22B": (235, 22), "Qwen2.5-72B": (72.7, 72.7), "GPT-3 175B": (175, 175),
    "Grok1-314B": (314, 84), "DBRX": (132, 36), "Nemotron4-340B": (340, 340), "Nemotron-4 15B": (15.6, 15.6),
    "GPT-OSS 120B": (116.8, 5.7), "PaLM-540B": (540.35, 540.35), "BLOOM": (176, 176), "OPT-175B": (175, 175),
    "Falcon-40B": (41, 41), "TinyLlama-1.1B": (1.1, 1.1), "Gemma-7b": (8.5, 8.5), "MT-NLG-530B": (530, 530),
    "Llama 4 Scout": (109, 17), "Llama4 Maverick": (400, 17), "GLM-4.5": (355, 32), "MPT-7b": (6.65, 6.65),
}  # fmt: skip


@pytest.mark.parametrize("name", STATED)
def test_an_architecture_has_the_size_that_its_makers_state(name: str) -> None:
    found = architecture(name)
    assert found is not None and found.source
    assert found.parameters / 1e9 == pytest.approx(STATED[name][0], rel=0.015)
    assert found.active_parameters / 1e9 == pytest.approx(STATED[name][1], rel=0.06)


def test_names_are_not_mistaken_for_each_other() -> None:
    assert [architecture(n) for n in ("", "GPT-1.7B", "GPT3-23B", "Llama-5-9B", "unknown", "Qwen9-7B")] == [
        None
    ] * 6
    assert len({known.name for _, known in KNOWN}) == len(KNOWN)


@pytest.mark.parametrize("billions", [0.1, 0.35, 1.3, 7, 13, 30, 70, 175, 405, 1000])
@pytest.mark.parametrize("gpt", [False, True])
def test_a_shape_from_a_size_has_that_size(billions: float, gpt: bool) -> None:
    made = shape_of_size(billions * 1e9, gpt=gpt)
    assert made.parameters == pytest.approx(billions * 1e9, rel=0.06)
    assert made.hidden % made.heads == 0 and made.heads % made.kv_heads == 0


def test_a_mixture_from_a_size() -> None:
    made = with_experts_of_size(shape_of_size(47e9), 47e9, 13e9, 8, 2)
    assert (made.experts, made.top_k) == (8, 2)
    assert made.parameters == pytest.approx(47e9, rel=0.1)
    assert made.active_parameters == pytest.approx(13e9, rel=0.15)


def test_sizes_as_people_write_them() -> None:
    assert [size_of(t) for t in ("70b", "1.3B", "350m", "1t")] == [70e9, 1.3e9, 350e6, 1e12]
    assert [size_of(t) for t in ("", "b", "-7b", "7", "7bb", "1e9b", "7 GB")] == [None] * 7
    for absurd in (0.0, 1.0, 1e20):
        with pytest.raises(UsageError):
            shape_of_size(absurd)


LLAMA = {
    "hidden_size": 4096, "num_hidden_layers": 32, "num_attention_heads": 32, "num_key_value_heads": 8,
    "intermediate_size": 14336, "vocab_size": 128256, "tie_word_embeddings": False, "model_type": "llama",
}  # fmt: skip


def test_a_config_gives_the_known_architecture() -> None:
    made, known = from_config(LLAMA), architecture("Llama-3-8B")
    assert known is not None and made.parameters == known.parameters
    deepseek = {
        "hidden_size": 7168, "num_hidden_layers": 61, "num_attention_heads": 128, "vocab_size": 129280,
        "intermediate_size": 18432, "moe_intermediate_size": 2048, "n_routed_experts": 256,
        "num_experts_per_tok": 8, "n_shared_experts": 1, "first_k_dense_replace": 3, "q_lora_rank": 1536,
        "kv_lora_rank": 512, "qk_nope_head_dim": 128, "qk_rope_head_dim": 64, "v_head_dim": 128,
        "n_group": 8, "topk_group": 4,
    }  # fmt: skip
    v3 = architecture("DeepSeek-V3")
    assert v3 is not None
    made = from_config(deepseek)
    assert (made.parameters, made.active_parameters, made.router_groups) == (
        v3.parameters, v3.active_parameters, 4
    )  # fmt: skip


@pytest.mark.parametrize(
    "broken",
    [{}, {"hidden_size": "wide"}, {**LLAMA, "hidden_size": -1}, {**LLAMA, "num_hidden_layers": 0},
     {**LLAMA, "vocab_size": 1e30}, {**LLAMA, "hidden_size": True}, {k: v for k, v in LLAMA.items() if k != "vocab_size"}],
)  # fmt: skip
def test_a_broken_config_is_a_usage_error(broken: dict[str, Any]) -> None:
    with pytest.raises(UsageError):
        from_config(broken)


def test_every_chip_has_its_source_and_agrees_with_the_catalogue_of_devices() -> None:
    assert len({c.name for c in CHIPS}) == len(CHIPS)
    for c in CHIPS:
        assert c.source and re.fullmatch(r"20\d\d-\d\d(-\d\d)?", c.as_of), c.name
        assert 8e9 < c.memory_bytes < 400e9 and 0.5e12 < c.memory_bytes_per_s < 20e12, c.name
        assert all(0.4 < c.achieved[p] / c.peaks[p] < 1 for p in c.achieved), c.name
        assert not c.like or chip(c.like) is not None, c.name
    for name in ("A100-40GB", "A100-80GB", "B200", "GB200", "H200", "MI300X", "Trainium1", "Trainium2"):
        known, device = chip(name), accelerator(name)
        assert known is not None and device is not None, name
        assert known.peaks["bf16"] == device.peaks["bfloat16"], name
        assert 0.95 < known.memory_bytes / device.memory_bytes < 1.12, name


@pytest.mark.parametrize(
    ("said", "name"),
    [("h100", "H100-80GB"), ("H100-80GB", "H100-80GB"), ("NVIDIA H100 SXM", "H100-80GB"), ("a100", "A100-80GB"),
     ("A100-SXM4-40GB", "A100-40GB"), ("trn1", "Trainium1"), ("trn2.48xlarge", "Trainium2"), ("MI300X", "MI300X"),
     ("TPU v4", "TPUv4"), ("GB200 NVL72", "GB200"), ("B300", "B300"), ("MI355X", "MI355X"), ("maia 100", "Maia100"),
     ("NVIDIA H100 80GB HBM3", "H100-80GB"), ("Trainium 2", "Trainium2"), ("AMD Instinct MI300X OAM", "MI300X")],
)  # fmt: skip
def test_chips_go_by_their_usual_spellings(said: str, name: str) -> None:
    found = chip(said)
    assert found is not None and found.name == name


def test_an_unknown_chip_is_not_guessed_but_neighbours_are_named() -> None:
    assert [chip(n) for n in ("", "H10", "H1000", "Z80", "100")] == [None] * 5
    assert "H100-80GB" in close_names("H10O-80GB")


def test_chips_agree_with_the_open_table() -> None:
    with (PUBLISHED / "accelerators.csv").open(newline="") as file:
        rows = list(csv.DictReader(file))
    assert len(rows) > 20
    for row in rows:
        known = chip(row["chip"])
        assert known is not None, row["chip"]
        for precision, column in (
            ("bf16", "bf16_tflops_dense"),
            ("fp8", "fp8_tflops_dense"),
            ("fp4", "fp4_tflops_dense"),
        ):
            if row[column]:
                assert known.peaks[precision] / 1e12 == pytest.approx(float(row[column]), rel=2e-3), row[
                    "chip"
                ]
        for precision, column in (("bf16", "mamf_bf16_tflops"), ("fp8", "mamf_fp8_tflops")):
            assert bool(row[column]) == (precision in known.achieved), row["chip"]
        assert known.memory_bytes_per_s / 1e12 == pytest.approx(float(row["hbm_tb_s"])), row["chip"]
        if row["scaleup_gb_s_unidir"]:
            assert known.scaleup_bytes_per_s == float(row["scaleup_gb_s_unidir"]) * 1e9, row["chip"]
        if row["scaleout_gbit_s_per_chip"]:
            assert known.scaleout_bytes_per_s == float(row["scaleout_gbit_s_per_chip"]) * 1e9 / 8, row["chip"]
        if row["scaleup_domain_chips"]:
            assert known.scaleup_chips == int(row["scaleup_domain_chips"]), row["chip"]
        if row["tdp_w"]:
            assert known.watts == float(row["tdp_w"]), row["chip"]
