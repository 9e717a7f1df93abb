"""Estimates of serving, whatever the model, chip and load: finite, ordered, monotone; tables never stop half-way."""

from __future__ import annotations

import math
from dataclasses import replace

from hypothesis import given, settings
from hypothesis import strategies as st

from caudal.catalog.architectures import KNOWN
from caudal.catalog.chips import CHIPS
from caudal.estimate.serving_answer import (
    COLUMNS,
    DoesNotFit,
    ServeEstimate,
    answered_serving,
    serve_estimates,
)
from caudal.estimate.serving_case import ENGINES, Numbers, Question
from caudal.estimate.serving_points import smallest_group

NUMBERS = st.sampled_from(
    [Numbers(), Numbers(1, 2, "fp8", 1), Numbers(1, 1, "fp8", 1), Numbers(0.5625, 1, "fp4", 1.06),
     Numbers(0.53, 2, "bf16", 0.53)]
)  # fmt: skip


@st.composite
def questions(draw: st.DrawFn) -> Question:
    model = draw(st.sampled_from([known for _, known in KNOWN]))
    which = draw(st.sampled_from([c for c in CHIPS if c.peaks]))
    numbers = draw(NUMBERS)
    cores = which.cores if which.vendor == "AWS" else 1
    tp = smallest_group(model, which, numbers, cores) * draw(st.sampled_from([1, 2]))
    chips = -(-tp // cores) * draw(st.sampled_from([1, 3]))
    load = draw(st.sampled_from(["max", "static", "concurrency", "qps", "decode", "prefill"]))
    return Question(
        model, which, chips, tp, draw(st.sampled_from([1, tp])) if model.experts else 1, numbers,
        "neuron" if which.vendor == "AWS" else draw(st.sampled_from([e for e in ENGINES if e != "neuron"])),
        draw(st.floats(2023, 2026)), load, draw(st.sampled_from([1, 128, 1000, 20000])),
        draw(st.sampled_from([1, 128, 2000])),
        draw(st.sampled_from([1.0, 16.0, 1000.0])) if load in ("static", "concurrency") else 0.0,
        draw(st.sampled_from([0.01, 1.0, 100.0])) if load == "qps" else 0.0,
    )  # fmt: skip


@settings(max_examples=150, deadline=None)
@given(questions())
def test_every_figure_is_finite_and_every_interval_ordered(question: Question) -> None:
    found = serve_estimates([question])[0]
    if isinstance(found, DoesNotFit):
        assert "does not fit" in str(found)
        return
    for each in (found.out_tokens_per_s, found.tpot_ms, found.ttft_ms):
        if each is not None:
            assert 0 < each.low <= each.value <= each.high < math.inf
    assert all(value >= 0 and math.isfinite(value) for value in found.items_ms.values())
    assert math.isclose(sum(found.items_ms.values()), found.tpot_ms.value, rel_tol=1e-6)
    assert found.sequences <= max(1.0, found.most_sequences) * 1.0001


@settings(max_examples=60, deadline=None)
@given(questions())
def test_one_question_is_answered_alike_alone_and_among_others(question: Question) -> None:
    alone = serve_estimates([question])[0]
    among = serve_estimates([replace(question, isl=777), question])[1]
    if isinstance(alone, ServeEstimate):
        assert isinstance(among, ServeEstimate)
        assert math.isclose(alone.tpot_ms.value, among.tpot_ms.value, rel_tol=1e-9)


@settings(max_examples=60, deadline=None)
@given(questions(), st.integers(1, 64))
def test_a_longer_context_never_decodes_faster(question: Question, more: int) -> None:
    short = replace(question, load="static", batch=4.0, qps=0.0)
    made = serve_estimates([short, replace(short, isl=short.isl + 100 * more)])
    if all(isinstance(each, ServeEstimate) for each in made):
        less, longer = made
        assert isinstance(less, ServeEstimate) and isinstance(longer, ServeEstimate)
        if longer.sequences == less.sequences:
            assert longer.tpot_ms.value >= less.tpot_ms.value * 0.999999


CELLS = st.one_of(
    st.sampled_from(["", "-1", "0", "nan", "inf", "1e400", "8", "1,024", "Llama-3-8B", "H100", "fp8", "agg", "static batch",
                     "2.5"]),
    st.text(max_size=12),
)  # fmt: skip
ROW = st.dictionaries(
    st.sampled_from(
        ["id", "engine", "engine_version", "model", "chip", "chips", "tp", "ep", "precision", "workload",
         "batch_or_concurrency",
         "qps", "isl", "osl", ""]
    ), CELLS,
)  # fmt: skip


@settings(max_examples=200, deadline=None)
@given(st.lists(ROW, max_size=4))
def test_a_table_of_anything_has_a_line_for_each_row(rows: list[dict[str, str]]) -> None:
    lines = answered_serving(rows)
    assert len(lines) == len(rows)
    for line in lines:
        cells = line.cells()
        assert len(cells) == len(COLUMNS) and (line.estimate is not None or line.reason)
        assert all(math.isfinite(float(cell)) for cell in cells[1:-1] if cell)
