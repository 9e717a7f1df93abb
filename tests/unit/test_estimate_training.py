"""Step time and memory against formulas and facts that others published."""

from __future__ import annotations

import csv
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest

from caudal.catalog.architectures import architecture
from caudal.catalog.chips import chip
from caudal.domain.transformer import Transformer
from caudal.estimate.answer import Estimate, estimates, flops_per_token
from caudal.estimate.batch import answered
from caudal.estimate.case import Job, Layout, Software, case
from caudal.estimate.network import Network, exchange, gather
from caudal.estimate.points import Missing, Point, point_of
from caudal.estimate.search import candidates, layout_at, search, timed
from caudal.estimate.sites import across_sites, encoded_bytes
from caudal.estimate.step_time import step_time
from caudal.estimate.training_memory import allowed_bytes, local_parameters, memory
from caudal.train import codec

OPEN = Path(__file__).parents[2] / "bench" / "data" / "published" / "training_points.csv"
NOW = Software("megatron", 2025.5)


def job(model: str = "Llama-3-70B", chips: int = 64, chip_name: str = "H100", **more: object) -> Job:
    found, which = architecture(model), chip(chip_name)
    assert found is not None and which is not None
    values: dict[str, object] = {"seq_len": 8192, "global_batch": 128, "software": NOW, **more}
    return Job(found, which, chips, **values)  # type: ignore[arg-type]


def answer(question: Job, layout: Layout) -> Estimate:
    return estimates([Point(question, layout)])[0]


def test_flops_are_the_published_formula() -> None:
    # Narayanan et al. 2021: 72 B s l h² (1 + s/6h + V/12lh), without what is recomputed.
    gpt = architecture("GPT-3 175B")
    assert gpt is not None
    s, layers, h, v = 2048, 96, 12288, 51200
    formula = 72 * layers * h**2 * (1 + s / (6 * h) + v / (12 * layers * h))
    assert flops_per_token(gpt, s) == pytest.approx(formula, rel=1e-3)


def test_mixed_precision_takes_18_bytes_a_parameter_and_zero_divides_them() -> None:
    # ZeRO (1910.02054) counts 16 with gradients in 2 bytes; Megatron keeps them in 4.
    question = job("Llama-2-7B", 8, global_batch=8, seq_len=4096)
    parameters = question.model.parameters
    for zero, divided in ((0, 18), (1, 6 + 12 / 8), (2, 2 + 4 / 8 + 12 / 8), (3, 16 / 8)):
        m = memory(case([(question, Layout(dp=8, zero=zero))]))
        assert float((m.weights + m.gradients + m.optimizer)[0]) == pytest.approx(
            divided * parameters, rel=1e-3
        )


def test_activations_are_korthikantis_without_scores() -> None:
    # 34·h bytes a token and layer, less dropout's masks (2·h), which nobody keeps any more: 32.
    gpt = architecture("GPT-3 175B")
    assert gpt is not None
    question = Job(gpt, job().chip, 8, 2048, 8, "bf16", NOW)
    m = memory(case([(question, Layout(dp=8, recompute=0, sequence_parallel=False))]))
    logits = 6 * 2048 * 51200
    assert float(m.activations[0]) == pytest.approx(32 * 12288 * 2048 * 96 + logits, rel=0.01)


def test_parameters_are_divided_over_stages_and_ranks() -> None:
    question = job("DeepSeek-V3", 256, seq_len=4096)
    plain, experts = local_parameters(case([(question, Layout(tp=1, pp=1, dp=256, ep=64))]))
    model = question.model
    routed = model.moe_layers * model.experts * model.expert_parameters
    assert float(experts[0]) == pytest.approx(routed / 64)
    assert float(plain[0]) == pytest.approx(model.parameters - routed, rel=1e-3)


@pytest.mark.parametrize(
    ("model", "chip_name", "layout"),
    [
        (
            "Llama-2-7B",
            "A100-40GB",
            Layout(dp=8, zero=1, recompute=0),
        ),  # 7B without sharding weights on 40 GB
        ("Llama-2-7B", "A100-80GB", Layout(dp=8, zero=0, recompute=2)),  # DDP with AdamW: 16 bytes x 6.7 B
        ("Llama-3-70B", "H100", Layout(tp=8, dp=1, recompute=2)),  # 70B on one node
        ("GPT-3 175B", "A100-80GB", Layout(tp=8, dp=1, recompute=2)),  # 175B on one node
        ("Llama-3-8B", "H100", Layout(dp=8, zero=3, micro_batch=8, recompute=0)),  # 64 k tokens at once
    ],
)
def test_what_is_known_to_run_out_does_not_fit(model: str, chip_name: str, layout: Layout) -> None:
    found = answer(job(model, 8, chip_name, global_batch=64, seq_len=8192), layout)
    assert not found.fits and any("does not fit" in note for note in found.notes)


def open_points() -> tuple[list[Point], list[float]]:
    points, measured = [], []
    with OPEN.open(newline="") as file:
        for row in csv.DictReader(file):
            if not row["step_time_s"]:
                continue
            points.append(point_of(row))
            measured.append(float(row["step_time_s"]))
    return points, measured


def test_open_rows_are_near_and_what_ran_fits() -> None:
    # A guard against breaking the model; how good it is on unseen sources is bench/estimate.py's.
    points, measured = open_points()
    found = estimates(points)
    errors = np.array([abs(x.step_time_s / m - 1) for x, m in zip(found, measured, strict=True)])
    assert len(found) == 362 and np.median(errors) < 0.07 and np.quantile(errors, 0.9) < 0.16
    assert sum(not x.fits for x in found) <= 2
    inside = [x.step_time_s_lo <= m <= x.step_time_s_hi for x, m in zip(found, measured, strict=True)]
    assert np.mean(inside) > 0.8


def test_the_bubble_is_the_pipelines_formula() -> None:
    # (pp - 1) / (vp · m) of the pipeline's own time (2104.04473, section 2.2).
    question = job(global_batch=64)
    for vp in (1, 5, 10):
        one = answer(question, Layout(tp=4, pp=8, dp=2, vp=vp, recompute=0))
        stage = ("matrix products", "attention", "elementwise", "launches", "tensor parallel")
        # Half of what is sent hides behind computing, except in the bubble.
        whole = sum(one.items_s[name] for name in stage) + 2 * one.items_s["pipeline sends"]
        assert one.items_s["pipeline bubble"] / whole == pytest.approx(7 / (vp * 32), rel=0.01)


def test_recomputation_costs_a_forward_pass() -> None:
    question = job("Llama-3-8B", 8, global_batch=64)
    none, full = (answer(question, Layout(dp=8, zero=3, recompute=r)) for r in (0, 2))
    assert full.items_s["matrix products"] / none.items_s["matrix products"] == pytest.approx(4 / 3)
    assert full.memory_items["activations"] < 0.5 * none.memory_items["activations"]


def test_collectives_know_two_levels() -> None:
    net = Network(np.array(400e9), np.array(40e9), np.array(8.0), 0.0)
    one, inside, across = (np.array(float(n)) for n in (1, 8, 64))
    total = np.array(8e9)
    assert float(gather(net, total, inside, one)) == pytest.approx(8e9 * 7 / 8 / 400e9)
    # Every node's eight ranks bring in an eighth each.
    assert float(gather(net, total, across, one)) == pytest.approx(8e9 * 7 / 8 / (8 * 40e9))
    # One rank a node: its own link carries all.
    assert float(gather(net, total, inside, np.array(8.0))) == pytest.approx(8e9 * 7 / 8 / 40e9)
    copies = np.array(8.0)
    plain, once = (
        float(exchange(net, total, copies, across, np.array(x), np.array(0.0))) for x in (0.0, 1.0)
    )
    assert once < plain
    assert float(exchange(net, total, copies, across, np.array(1.0), np.array(2.0))) < once


def test_search_agrees_with_single_answers_and_only_offers_what_fits() -> None:
    question = job("Llama-3-70B", 64)
    found = search(question, best=10)
    assert found.layouts and found.feasible <= found.tried
    times = [x.step_time_s for x in found.layouts]
    assert times == sorted(times)
    for one in found.layouts:
        again = answer(question, one.layout)
        assert again.fits and again.step_time_s == pytest.approx(one.step_time_s)
        assert (
            one.layout.chips == 64 and question.global_batch % (one.layout.dp * one.layout.micro_batch) == 0
        )
    assert "computing" in found.layouts[0].reason


def test_no_candidate_beats_the_best_that_fits() -> None:
    question = job("Mixtral 8x7B", 32, seq_len=4096)
    columns = candidates(question)
    seconds, used, room = timed(question, columns)
    best = search(question, best=1).layouts[0]
    assert best.step_time_s == pytest.approx(seconds[used <= room].min())
    at = int(np.flatnonzero(used <= room)[0])
    single = answer(question, layout_at(columns, at))
    assert single.step_time_s == pytest.approx(seconds[at])


def test_where_nothing_fits_it_says_by_how_much_and_what_would_do() -> None:
    found = search(job("Llama-3.1-405B", 8))
    assert not found.layouts and found.feasible == 0 < found.tried
    assert "GiB more than there is" in found.why and "chips would do" in found.why
    chips = int(found.why.split("; ")[1].split(" chips")[0])
    assert search(job("Llama-3.1-405B", chips)).layouts


def test_neuron_layouts_count_cores() -> None:
    question = job("Llama-2-7B", 16, "trn1", seq_len=4096, software=Software("neuron", 2024.5))
    by_core = answer(question, Layout(tp=8, dp=4, zero=1))
    assert by_core.memory_allowed_bytes == pytest.approx(0.99 * 32 * 2**30)
    assert search(question, best=1).layouts[0].layout.chips == 32


def test_across_sites_bytes_are_the_codecs_and_a_slow_link_shows() -> None:
    for count in (1, 255, 256, 257, 1_000_003):
        for bits in (4, 8):
            assert encoded_bytes(count, bits) == codec.encoded_bytes(count, bits)
    slow = across_sites(10**9, 1.0, sites=2, every=10, bits=8, rate_bytes_per_s=12.5e6)
    fast = across_sites(10**9, 1.0, sites=2, every=10, bits=8, rate_bytes_per_s=12.5e9)
    assert slow.efficiency < 0.1 < 0.99 < fast.efficiency
    enough = across_sites(10**9, 1.0, sites=2, every=slow.smallest_every, bits=8, rate_bytes_per_s=12.5e6)
    assert enough.efficiency == 1.0
    blocking = across_sites(
        10**9, 1.0, sites=2, every=slow.smallest_every, bits=8, rate_bytes_per_s=12.5e6, overlap=False
    )
    assert blocking.efficiency == pytest.approx(0.5, abs=0.02)


def test_a_point_without_a_layout_gets_the_best_one() -> None:
    row = {
        "id": "x",
        "model": "Llama-3-8B",
        "chip": "H100",
        "chips": "16",
        "global_batch_seqs": "64",
        "seq_len": "8192",
    }
    point = point_of(row)
    assert "layout" in point.open
    found = estimates([point])[0]
    assert found.layout.chips == 16 and found.fits and "best that was found" in " ".join(found.notes)


@pytest.mark.parametrize(
    ("changed", "says"),
    [
        ({"chip": "H1OO-80GB"}, "did you mean H100"), ({"chip": ""}, "unknown chip"), ({"chips": "-8"}, "-8"),
        ({"tp": "three"}, "tp is not a number"), ({"tp": "2.5"}, "whole number"), ({"tp": "3"}, "does not divide"),
        ({"tp": "128"}, "more than"), ({"global_batch_seqs": "", "pp": "2"}, "global_batch"),
        ({"model": "nothing", "layers": "", "params_b": ""}, "architecture"), ({"seq_len": "1e15"}, "1e+15"),
        ({"seq_len": "nan"}, ""), ({"hidden": "inf"}, "hidden"),
    ],
)  # fmt: skip
def test_a_row_that_cannot_be_estimated_says_why(changed: dict[str, str], says: str) -> None:
    row = {
        "model": "Llama-3-8B", "chip": "H100", "chips": "16", "tp": "2", "pp": "1", "global_batch_seqs": "64",
        "seq_len": "8192", "micro_batch": "1", "precision": "fp8", **changed,
    }  # fmt: skip
    if not says:
        assert "sequence length" in " ".join(point_of(row).notes)
        return
    with pytest.raises(Missing, match=says.replace("+", "[+]")):
        point_of(row)


def test_columns_win_over_the_known_architecture() -> None:
    row = {
        "model": "Llama3.1-405B-proxy", "layers": "8", "hidden": "16384", "heads": "128", "kv_heads": "8",
        "ffn": "53248", "vocab": "128256", "chip": "H100", "chips": "32", "tp": "8", "pp": "1", "cp": "2",
        "global_batch_seqs": "64", "micro_batch": "1", "seq_len": "8192",
    }  # fmt: skip
    model: Transformer = point_of(row).job.model
    assert model.layers == 8 and model.parameters < 40e9


def test_columns_of_many_cases_are_those_of_each() -> None:
    pairs = [
        (job(), Layout(tp=4, pp=4, dp=4)),
        (replace(job("DeepSeek-V3", 256), precision="fp8"), Layout(pp=4, dp=64, ep=64)),
        (job("GPT-3 175B", 64, "A100", software=Software("megatron", 2021.3)), Layout(tp=8, pp=8)),
    ]
    together = step_time(case(pairs)).total
    for at, pair in enumerate(pairs):
        assert float(step_time(case([pair])).total[0]) == pytest.approx(float(together[at]))
    assert (allowed_bytes(case(pairs)) > 0).all()


def test_rows_without_their_layout_are_still_near() -> None:
    errors = []
    with OPEN.open(newline="") as file:
        for row in list(csv.DictReader(file))[::9]:
            if not row["step_time_s"]:
                continue
            bare = {name: text for name, text in row.items() if name not in LAYOUT}
            found = answered([bare])[0].estimate
            assert found is not None and "not stated" in " ".join(found.notes), row["id"]
            errors.append(abs(found.step_time_s / float(row["step_time_s"]) - 1))
    assert np.median(errors) < 0.15


LAYOUT = {"tp", "pp", "dp", "ep", "cp", "vp", "fsdp_zero", "micro_batch", "recompute"}
