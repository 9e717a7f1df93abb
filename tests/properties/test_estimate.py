"""Estimates of training, whatever the model, chip and layout: finite, ordered, and monotone where physics is."""

from __future__ import annotations

import math
from dataclasses import replace

from hypothesis import given, settings
from hypothesis import strategies as st

from caudal.catalog.architectures import KNOWN
from caudal.catalog.chips import CHIPS, chip
from caudal.domain.errors import CaudalError
from caudal.estimate.answer import Estimate, estimates
from caudal.estimate.batch import answered
from caudal.estimate.case import PRECISIONS, Job, Layout, Software
from caudal.estimate.points import Point

MODELS = st.sampled_from([known for _, known in KNOWN])
H100 = chip("H100")
assert H100 is not None


@st.composite
def questions(draw: st.DrawFn) -> Point:
    tp, pp, cp = (draw(st.sampled_from([1, 2, 4, 8])) for _ in range(3))
    dp = draw(st.sampled_from([1, 2, 8, 64]))
    micro = draw(st.sampled_from([1, 2, 4]))
    layout = Layout(
        tp, pp, dp, draw(st.sampled_from([1, 2, 8])), cp, draw(st.sampled_from([1, 2])), draw(st.integers(0, 3)),
        0, micro, draw(st.sampled_from([-1, 0, 1, 2])), draw(st.booleans()),
    )  # fmt: skip
    which = draw(st.sampled_from([c for c in CHIPS if c.peaks]))
    software = Software(
        draw(st.sampled_from(["megatron", "eager", "compiled", "neuron"])), draw(st.floats(2018, 2027))
    )
    batch = dp * micro * draw(st.sampled_from([1, 4, 16]))
    job = Job(
        draw(MODELS), which, layout.chips, draw(st.sampled_from([512, 4096, 32768])), batch,
        draw(st.sampled_from(PRECISIONS)), software,
    )  # fmt: skip
    return Point(job, layout)


def one(point: Point) -> Estimate:
    return estimates([point])[0]


@settings(max_examples=150, deadline=None)
@given(questions())
def test_every_figure_is_finite_and_the_interval_is_ordered(point: Point) -> None:
    found = one(point)
    assert 0 < found.step_time_s_lo < found.step_time_s < found.step_time_s_hi < math.inf
    assert all(value >= 0 and math.isfinite(value) for value in found.items_s.values())
    assert math.isclose(sum(found.items_s.values()), found.step_time_s, rel_tol=1e-9)
    assert math.isclose(sum(found.memory_items.values()), found.memory_bytes, rel_tol=1e-9)
    assert 0 <= found.recomputed <= 1
    # Not faster than the peak allows: half of attention's square is masked, and counted all the same.
    assert found.mfu < 2


@settings(max_examples=80, deadline=None)
@given(questions(), st.floats(1.0, 20.0))
def test_faster_links_memory_and_cores_never_slow_a_step(point: Point, factor: float) -> None:
    which = point.job.chip
    better = replace(
        which,
        scaleup_bytes_per_s=(which.scaleup_bytes_per_s or 50e9) * factor,
        scaleout_bytes_per_s=(which.scaleout_bytes_per_s or 25e9) * factor,
        memory_bytes_per_s=which.memory_bytes_per_s * factor,
    )
    faster = replace(point, job=replace(point.job, chip=better))
    assert one(faster).step_time_s <= one(point).step_time_s * (1 + 1e-9)


@settings(max_examples=80, deadline=None)
@given(questions(), st.sampled_from([2, 4]))
def test_more_of_a_batch_takes_longer_and_more_copies_of_it_no_less_a_token(point: Point, times: int) -> None:
    larger = replace(point, job=replace(point.job, global_batch=point.job.global_batch * times))
    assert one(larger).step_time_s > one(point).step_time_s
    assert one(larger).tokens_per_s >= one(point).tokens_per_s * (1 - 1e-9)


@settings(max_examples=80, deadline=None)
@given(questions(), st.sampled_from([2, 8]))
def test_more_chips_at_the_same_batch_are_never_slower_in_compute(point: Point, times: int) -> None:
    if point.job.global_batch % (point.layout.dp * times * point.layout.micro_batch):
        return
    layout = replace(point.layout, dp=point.layout.dp * times)
    more = replace(point, job=replace(point.job, chips=layout.chips), layout=layout)
    few, many = one(point), one(more)
    for item in ("matrix products", "attention", "vocabulary"):
        assert many.items_s[item] <= few.items_s[item] * 1.02  # the slowest of more chips


@settings(max_examples=60, deadline=None)
@given(questions())
def test_more_sharding_never_takes_more_states(point: Point) -> None:
    def states(zero: int) -> float:
        items = one(replace(point, layout=replace(point.layout, zero=zero))).memory_items
        return items["weights"] + items["gradients"] + items["optimizer"]

    sizes = [states(zero) for zero in range(4)]
    assert sizes == sorted(sizes, reverse=True)


CELLS = st.one_of(
    st.sampled_from(["", "8", "64", "-1", "0", "1e400", "nan", "H100", "trn1", "Llama-3-8B", "7", "FSDP", "full", "fp8"]),
    st.text(max_size=12),
)  # fmt: skip
NAMES = (
    "id", "model", "params_b", "active_params_b", "layers", "hidden", "heads", "kv_heads", "ffn", "ffn_type", "vocab",
    "seq_len", "experts", "top_k", "chip", "chips", "tp", "pp", "dp", "ep", "cp", "vp", "fsdp_zero", "micro_batch",
    "global_batch_seqs", "recompute", "precision", "framework", "source",
)  # fmt: skip


@settings(max_examples=300, deadline=None)
@given(
    st.dictionaries(st.sampled_from(NAMES), CELLS),
    st.dictionaries(st.sampled_from(NAMES), st.sampled_from(["", "8", "16", "H100", "70"])),
)
def test_any_row_gets_a_line_with_a_figure_or_a_reason(row: dict[str, str], other: dict[str, str]) -> None:
    usual = {
        "model": "Llama-3-8B", "chip": "H100", "chips": "8", "tp": "1", "pp": "1", "global_batch_seqs": "64",
        "micro_batch": "1",
    }  # fmt: skip
    try:
        lines = answered([row, {**usual, **other}, {**usual, **row}])
    except CaudalError as error:  # pragma: no cover
        raise AssertionError("a row's fault must stay in its line") from error
    assert len(lines) == 3
    for line in lines:
        cells = line.cells()
        assert len(cells) == 6 and (cells[1] or cells[5])
        if cells[1]:
            low, mid, high = float(cells[2]), float(cells[1]), float(cells[3])
            assert 0 < low <= mid <= high < math.inf
