"""Engines' metrics under vLLM's names."""

from __future__ import annotations

import pytest
from hypothesis import given
from hypothesis import strategies as st

from caudal.serve.figures import (
    LLAMA_CPP,
    MAX_BUCKETS,
    SGLANG,
    VLLM,
    histogram,
    in_flight,
    llama_cpp,
    translate,
)
from caudal.telemetry import names

LLAMA = """\
# HELP llamacpp:prompt_tokens_total Number of prompt tokens processed, excluding cached tokens
# TYPE llamacpp:prompt_tokens_total counter
llamacpp:prompt_tokens_total 40
llamacpp:prompt_tokens_cached_total 2
llamacpp:prompt_seconds_total 0.002892
llamacpp:tokens_predicted_total 80
llamacpp:tokens_predicted_seconds_total 0.5
llamacpp:requests_processing 2
llamacpp:requests_deferred 1
"""


def test_llama_cpp_says_less_and_nothing_is_guessed() -> None:
    found = llama_cpp(LLAMA)
    assert found == {
        names.RUNNING: 2.0,
        names.WAITING: 1.0,
        names.PROMPT_TOKENS: 42.0,
        names.GENERATION_TOKENS: 80.0,
        names.INTER_TOKEN: [0.5, 80.0],
    }
    assert in_flight(found) == 3 and llama_cpp("") == {} and in_flight({}) is None


def test_newer_names_count_before_older_ones() -> None:
    both = "vllm:time_per_output_token_seconds_count 9\nvllm:inter_token_latency_seconds_count 3\n"
    assert translate(both, VLLM) == {names.INTER_TOKEN: [0.0, 3.0]}
    assert translate("vllm:gpu_cache_usage_perc 0.5\n", VLLM) == {names.KV_CACHE: 0.5}
    assert translate("sglang:time_per_output_token_seconds_count 9\n", SGLANG)[names.INTER_TOKEN] == [
        0.0,
        9.0,
    ]


def test_series_of_several_engines_are_one_figure() -> None:
    text = "".join(
        f'vllm:num_requests_running{{engine="{i}"}} {i}\nvllm:kv_cache_usage_perc{{engine="{i}"}} 0.{i}\n'
        f'vllm:time_to_first_token_seconds_bucket{{engine="{i}",le="0.5"}} 2\n'
        f'vllm:time_to_first_token_seconds_bucket{{engine="{i}",le="+Inf"}} 3\n'
        f'vllm:time_to_first_token_seconds_count{{engine="{i}"}} 3\n'
        f'vllm:time_to_first_token_seconds_sum{{engine="{i}"}} 1.5\n'
        for i in (1, 2)
    )
    found = translate(text, VLLM)
    assert (found[names.RUNNING], found[names.KV_CACHE]) == (3.0, 0.2)
    assert found[names.FIRST_TOKEN] == [3.0, 6.0, 0.5, 4.0]


@pytest.mark.parametrize(
    "line", ["", "nonsense", "vllm:num_requests_running NaN", "vllm:num_requests_running x"]
)
def test_lines_that_say_nothing_are_skipped(line: str) -> None:
    assert translate(line + "\nvllm:num_requests_waiting 1 1700000000\n", VLLM) == {names.WAITING: 1.0}


def test_all_tables_lead_to_names_that_are_explained() -> None:
    for table in (VLLM, SGLANG, LLAMA_CPP):
        assert set(table.values()) <= set(names.REPLICA) <= set(names.HELP)


@given(st.dictionaries(st.floats(0.001, 1e6), st.integers(0, 1000), max_size=200))
def test_histograms_fit_into_a_report_and_stay_ordered(rows: dict[float, int]) -> None:
    found = histogram(1.0, 2.0, {le: float(n) for le, n in rows.items()})
    bounds = found[2::2]
    assert len(found) <= 2 + 2 * MAX_BUCKETS <= 64 and bounds == sorted(bounds)
    assert all(rows[le] == n for le, n in zip(bounds, found[3::2], strict=True))


@given(st.text())
def test_no_text_is_too_strange(text: str) -> None:
    assert translate(text, VLLM) == {} or "vllm" in text
    llama_cpp(text)
