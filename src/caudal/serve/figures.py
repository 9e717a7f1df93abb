"""An engine's own metrics → figures under vLLM's names, whatever the engine calls them. Pure.

A figure is a number (gauges, counters) or, for a histogram, `[sum, count, le, n, le, n, ...]` with cumulative
counts, without the last bucket (`+Inf`, which is `count`). What an engine does not say is left out: unknown is
not zero. The names and their meaning are in telemetry/names.py.
"""

from __future__ import annotations

import math
import re
from collections.abc import Iterator, Mapping

from caudal.telemetry import names

Figure = float | list[float]

MAX_BUCKETS = 30
"""A report takes lists of at most 64 values."""

_LINE = re.compile(r"([A-Za-z_:][\w:]*)(?:\{(.*)\})?\s+(\S+)(?:\s+\S+)?\s*")
_LE = re.compile(r'(?:^|,)\s*le="([^"]+)"')

VLLM: Mapping[str, str] = {
    **{name: name for name in names.REPLICA},
    "vllm:gpu_cache_usage_perc": names.KV_CACHE,  # of older versions
    "vllm:time_per_output_token_seconds": names.INTER_TOKEN,  # of older versions, for a while beside the new name
}
"""vLLM's own. Where an old and a new name are both there, the new one counts."""

SGLANG: Mapping[str, str] = {
    "sglang:num_running_reqs": names.RUNNING,
    "sglang:num_queue_reqs": names.WAITING,
    "sglang:token_usage": names.KV_CACHE,
    "sglang:prompt_tokens_total": names.PROMPT_TOKENS,
    "sglang:generation_tokens_total": names.GENERATION_TOKENS,
    "sglang:time_to_first_token_seconds": names.FIRST_TOKEN,
    "sglang:inter_token_latency_seconds": names.INTER_TOKEN,
    "sglang:time_per_output_token_seconds": names.INTER_TOKEN,  # of older versions
    "sglang:e2e_request_latency_seconds": names.END_TO_END,
    "sglang:queue_time_seconds": names.QUEUE_TIME,
}

LLAMA_CPP: Mapping[str, str] = {
    "llamacpp:requests_processing": names.RUNNING,
    "llamacpp:requests_deferred": names.WAITING,
    "llamacpp:tokens_predicted_total": names.GENERATION_TOKENS,
}


def translate(text: str, table: Mapping[str, str]) -> dict[str, Figure]:
    """The figures of a scrape in Prometheus' text format. Series of one name that differ in their labels (data
    parallel engines, reasons of an end) are summed; of shares, which no sum would be, the largest counts. Lines
    that are none are skipped."""
    plain: dict[str, float] = {}
    buckets: dict[str, dict[float, float]] = {}
    for name, labels, value in _samples(text):
        bound = _LE.search(labels)
        if name.endswith("_bucket") and bound is not None:
            try:
                le = float(bound[1])
            except ValueError:
                continue
            rows = buckets.setdefault(name.removesuffix("_bucket"), {})
            rows[le] = rows.get(le, 0.0) + value
        elif table.get(name) == names.KV_CACHE:
            plain[name] = max(plain.get(name, 0.0), value)
        else:
            plain[name] = plain.get(name, 0.0) + value
    found: dict[str, Figure] = {}
    for theirs, ours in table.items():
        if ours in found:
            continue
        if ours in names.REPLICA_HISTOGRAMS:
            if f"{theirs}_count" in plain:
                rows = buckets.get(theirs, {})
                found[ours] = histogram(plain.get(f"{theirs}_sum", 0.0), plain[f"{theirs}_count"], rows)
        elif theirs in plain:
            found[ours] = plain[theirs]
    return found


def llama_cpp(text: str) -> dict[str, Figure]:
    """llama.cpp's. It has no histograms, and no time to the first token at all; its times in total become
    histograms without buckets, so that rate(sum) / rate(count) is the mean as with vLLM."""
    found = translate(text, LLAMA_CPP)
    plain: dict[str, float] = {name: value for name, _, value in _samples(text)}
    computed = plain.get("llamacpp:prompt_tokens_total")
    if computed is not None:  # vLLM counts the tokens that its prefix cache had, too
        found[names.PROMPT_TOKENS] = computed + plain.get("llamacpp:prompt_tokens_cached_total", 0.0)
    tokens = plain.get("llamacpp:tokens_predicted_total")
    seconds = plain.get("llamacpp:tokens_predicted_seconds_total")
    if tokens is not None and seconds is not None:
        found[names.INTER_TOKEN] = histogram(seconds, tokens, {})
    return found


def histogram(total: float, count: float, rows: Mapping[float, float]) -> list[float]:
    """`[sum, count, le, n, ...]`; of too many buckets every other one is left out, which stays a histogram."""
    bounds = sorted(le for le in rows if math.isfinite(le))
    while len(bounds) > MAX_BUCKETS:
        bounds = bounds[::2]
    return [total, count, *(value for le in bounds for value in (le, rows[le]))]


def in_flight(figures: Mapping[str, Figure]) -> int | None:
    """Requests that run or wait; None where the engine does not say both."""
    running, waiting = figures.get(names.RUNNING), figures.get(names.WAITING)
    if not isinstance(running, float) or not isinstance(waiting, float):
        return None
    return int(running + waiting)


def _samples(text: str) -> Iterator[tuple[str, str, float]]:
    for line in text.splitlines():
        match = _LINE.fullmatch(line)
        if match is None:
            continue  # comments, and what is no sample
        try:
            value = float(match[3])
        except ValueError:
            continue
        if math.isfinite(value):
            yield match[1], match[2] or "", value
