"""Estimates of serving: physics that must hold whatever the constants, and how tables are read."""

from __future__ import annotations

from dataclasses import replace
from itertools import pairwise

import pytest

from caudal.catalog.architectures import architecture
from caudal.catalog.chips import chip
from caudal.domain.errors import Impossible, UsageError
from caudal.estimate.points import Missing
from caudal.estimate.serving_answer import DoesNotFit, ServeEstimate, answered_serving, serve_estimates
from caudal.estimate.serving_case import Question, bucket, contexts, row
from caudal.estimate.serving_points import engine_of, numbers_of, question_of
from caudal.estimate.serving_replicas import Slo, capacity, spread

BASE = {
    "model": "Llama-3-70B", "chip": "H100", "chips": "4", "tp": "4", "precision": "fp8", "isl": "1000", "osl": "300",
    "engine": "vLLM", "engine_version": "0.12",
}  # fmt: skip


def asked(**more: str) -> Question:
    return question_of({**BASE, **more})


def one(question: Question) -> ServeEstimate:
    found = serve_estimates([question])[0]
    assert isinstance(found, ServeEstimate), found
    return found


def test_weights_and_cache_by_hand() -> None:
    """70B in fp8 over four: every matrix an eighth... of 68.5 GB; 80 layers, 8 heads of 128, two tensors of 2 bytes."""
    columns = row(asked())
    model = architecture("Llama-3-70B")
    assert model is not None
    matrices = model.parameters - model.embedding_parameters
    assert columns["weights"] == pytest.approx((matrices + 128256 * 8192 * 2) / 4)
    assert columns["kv_hold"] == pytest.approx(80 * (8 // 4) * 2 * 128 * 2 * 1300)


def test_latent_attention_repeats_its_cache_or_deals_out_sequences() -> None:
    few = question_of({**BASE, "model": "DeepSeek-V3", "chips": "8", "tp": "8", "batch_or_concurrency": "4"})
    many = replace(few, batch=4096.0)
    assert not few.spread and many.spread
    assert row(few)["kv_hold"] == pytest.approx(61 * (512 + 64) * 2 * 1300)
    assert row(many)["kv_hold"] == pytest.approx(61 * (512 + 64) * 2 * 1300 / 8)


def test_windows_limit_what_is_read() -> None:
    model = architecture("gpt-oss-120b")
    assert model is not None and model.window == 128
    assert contexts(model, 1000) == pytest.approx(18 * 1000 + 18 * 128)


def test_compiled_graphs_read_powers_of_two() -> None:
    assert [bucket(n) for n in (1, 128, 129, 4097)] == [128, 128, 256, 8192]


def test_more_clients_more_tokens_and_longer_waits() -> None:
    made = [one(asked(batch_or_concurrency=str(n))) for n in (1, 8, 64, 256)]
    for less, more in pairwise(made):
        assert more.out_tokens_per_s.value > less.out_tokens_per_s.value
        assert more.tpot_ms.value > less.tpot_ms.value
        assert less.ttft_ms and more.ttft_ms and more.ttft_ms.value > less.ttft_ms.value


def test_an_arrival_rate_that_is_too_high_is_said_to_be() -> None:
    slow, fast = one(asked(qps="1")), one(asked(qps="1000"))
    assert not slow.overloaded and slow.out_tokens_per_s.value == pytest.approx(300)
    assert slow.out_tokens_per_s.high == pytest.approx(300)
    assert fast.overloaded and fast.ttft_ms is None and any("overloaded" in note for note in fast.notes)


def test_replicas_share_the_load() -> None:
    single, twice = one(asked(batch_or_concurrency="32")), one(asked(chips="8", batch_or_concurrency="64"))
    assert twice.out_tokens_per_s.value == pytest.approx(2 * single.out_tokens_per_s.value)
    assert twice.tpot_ms.value == pytest.approx(single.tpot_ms.value)


def test_what_does_not_fit_says_by_how_much() -> None:
    found = serve_estimates([asked(model="Llama-3.1-405B")])[0]
    assert isinstance(found, DoesNotFit) and "GiB more than" in str(found)
    long = serve_estimates([asked(isl="3000000", osl="1")])[0]
    assert isinstance(long, DoesNotFit) and "one sequence" in str(long)


def test_no_faster_than_memory_and_arithmetic_allow() -> None:
    found = one(asked(batch_or_concurrency="1"))
    h100 = chip("H100")
    assert h100 is not None
    assert found.tpot_ms.value / 1e3 > 68e9 / 4 / h100.memory_bytes_per_s
    most = one(asked())
    flops = 2 * 69.5e9 * (most.out_tokens_per_s.value + most.in_tokens_per_s)
    assert flops < 4 * h100.peaks["fp8"]


@pytest.mark.parametrize(
    ("text", "weight", "kv", "compute"),
    [
        ("bf16", 2, 2, "bf16"), ("FP16", 2, 2, "bf16"), ("", 2, 2, "bf16"), ("fp8", 1, 2, "fp8"),
        ("FP16/w:int8", 1, 2, "bf16"), ("FP16/w:bf16", 2, 2, "bf16"), ("w4a16", 0.53, 2, "bf16"), ("AWQ", 0.53, 2, "bf16"),
        ("nvfp4", 0.5625, 1, "fp4"), ("w8a8", 1, 2, "fp8"), ("fp8 kv:fp8", 1, 1, "fp8"),
    ],
)  # fmt: skip
def test_precisions(text: str, weight: float, kv: float, compute: str) -> None:
    model, b200 = architecture("Llama-3-70B"), chip("B200")
    assert model is not None and b200 is not None
    found = numbers_of(text, model, "vllm", b200)
    assert (found.weight_bytes, found.kv_bytes, found.compute) == (weight, kv, compute)


def test_four_bits_on_a_chip_without_such_units_are_the_weights_alone() -> None:
    model, h100 = architecture("gpt-oss-120b"), chip("H100")
    assert model is not None and h100 is not None
    assert numbers_of("mxfp4", model, "vllm", h100).compute == "bf16"


def test_engines_and_their_years() -> None:
    h100, trn = chip("H100"), chip("trn1")
    assert h100 is not None and trn is not None
    assert engine_of("TensorRT-LLM", "1.0", h100) == ("trtllm", 2025.7)
    assert engine_of("vLLM (ROCm)", "0.2.1", h100) == ("vllm", 2023.7)
    assert engine_of("SGLang", "", h100)[0] == "sglang"
    assert engine_of("Transformers NeuronX", "Neuron 2.18.1", trn)[0] == "neuron"
    assert engine_of("homemade", "", h100)[0] == "other"


@pytest.mark.parametrize(
    ("cells", "says"),
    [
        ({"chip": "H1000"}, "did you mean"), ({"isl": ""}, "no isl"), ({"osl": "-1"}, "osl is -1"),
        ({"isl": "1e9"}, "at most"), ({"tp": "16"}, "more than 4 chips"), ({"precision": "fp7"}, "not known"),
        ({"batch_or_concurrency": "many"}, "not a number"), ({"model": "no such thing"}, "no params_b"),
        ({"batch_or_concurrency": "1e10"}, "at most"), ({"tp": "2.5"}, "whole number"), ({"osl": "nan"}, "no osl"),
    ],
)  # fmt: skip
def test_what_cannot_be_asked(cells: dict[str, str], says: str) -> None:
    with pytest.raises(Missing, match=says):
        asked(**cells)


def test_odd_names_and_empty_cells() -> None:
    for name in (
        "deepseek-ai/DeepSeek-R1",
        "Qwen/Qwen3-235B-A22B-FP8",
        "moonshotai/Kimi-K2.5",
        "Llama3.3-70B",
    ):
        found = answered_serving([{**BASE, "model": name, "chips": "", "tp": "", "id": "a"}])[0]
        assert found.estimate is not None, (name, found.reason)
    (sets,) = answered_serving([{**BASE, "isl": "", "osl": "", "workload": "ShareGPT throughput"}])
    assert sets.id == "row 1" and sets.estimate is not None and "220 in, 200 out" in sets.reason


def test_nodes_of_one_kind_leave_the_other_columns_empty() -> None:
    wide = {**BASE, "model": "DeepSeek-V3", "chips": "8", "tp": "", "ep": "32", "id": "a", "osl": ""}
    (prefill,) = answered_serving([{**wide, "workload": "prefill node"}])
    (decode,) = answered_serving([{**wide, "workload": "decode node", "ep": "72"}])
    assert prefill.cells()[1] == "" and prefill.cells()[4] and "reads" in prefill.reason
    assert decode.cells()[1] and decode.cells()[4] == "" and decode.cells()[7]


def test_capacity_under_an_slo_is_where_it_breaks() -> None:
    question = asked(qps="1")
    free, tight = capacity(question, Slo()), capacity(question, Slo(ttft_p95_ms=1000, tpot_ms=25))
    assert tight.limit == "TPOT" and tight.at.tpot_ms.value <= 25 and tight.qps < free.qps
    assert free.limit == "throughput"
    over = one(replace(question, qps=tight.qps * 1.1))
    assert over.tpot_ms.value > 25
    with pytest.raises(Impossible, match="even at one request"):
        capacity(question, Slo(tpot_ms=1))


def test_replicas_survive_the_loss_of_any_provider() -> None:
    question = asked(qps="1")
    made = spread(question, [1.0, 10.0, 60.0], Slo(tpot_ms=30), 3)
    assert made.per_provider * 2 >= made.peak_replicas > (made.per_provider - 1) * 2
    assert made.needed[0] == 1 and made.peak_replicas == max(made.needed)
    assert made.capacity.qps * made.peak_replicas >= 60 > made.capacity.qps * (made.peak_replicas - 1)
    alone = spread(question, [60.0], Slo(tpot_ms=30), 1)
    assert alone.per_provider == alone.peak_replicas
    for curve in ([], [-1.0], [float("inf")], [1e12]):
        with pytest.raises(UsageError):
            spread(question, curve, Slo(), 2)
