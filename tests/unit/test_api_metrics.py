"""What Prometheus is told of replicas."""

from __future__ import annotations

from typing import Any

import pytest

from caudal.api.metrics import figures_of, render
from caudal.control.reports import accept
from tests.unit.control_world import RUN, SERVICE, Bench


def test_metrics_of_replicas_have_vllms_names() -> None:
    figures: dict[str, Any] = {
        "vllm:num_requests_running": 2,
        "vllm:generation_tokens_total": 80.0,
        "vllm:time_to_first_token_seconds": [0.5, 3, 0.1, 1, 0.25, 2],
        "vllm:inter_token_latency_seconds": [0.5, 80],
        "vllm:kv_cache_usage_perc": "half",
        "vllm:e2e_request_latency_seconds": [1.0, 2.0, 3.0],
        "strange": 1,
    }
    status = {"ready": True, "url": "http://a", "engine": "vllm", "metrics": figures}
    bench = Bench(RUN, SERVICE)
    bench.run(5)
    accept(bench.store, "assistant.replica.small.0-1", {"at": 1.0, "status": status}, bench.clock.now())
    state = bench.store.read()
    lines = render(state).decode().splitlines()
    site = next(g.site for g in state.gangs if g.id == "assistant.replica.small.0-1")
    labels = (
        f'model_name="small",version="1",site="{site}",replica="assistant.replica.small.0-1",engine="vllm"'
    )
    for line in (
        "# TYPE vllm:num_requests_running gauge",
        f"vllm:num_requests_running{{{labels}}} 2.0",
        "# TYPE vllm:generation_tokens_total counter",
        f"vllm:generation_tokens_total{{{labels}}} 80.0",
        "# TYPE vllm:time_to_first_token_seconds histogram",
        f'vllm:time_to_first_token_seconds_bucket{{{labels},le="0.25"}} 2.0',
        f'vllm:time_to_first_token_seconds_bucket{{{labels},le="+Inf"}} 3.0',
        f"vllm:time_to_first_token_seconds_sum{{{labels}}} 0.5",
        f"vllm:inter_token_latency_seconds_count{{{labels}}} 80.0",
    ):
        assert line in lines, line
    assert not any(x.startswith(("strange", "vllm:kv_cache_usage_perc{", "vllm:e2e")) for x in lines)


@pytest.mark.parametrize("given", [None, 3, [], {"a": True}, {"a": [1.0]}, {"a": [1, "2"]}, {"a": None}])
def test_what_is_no_figure_is_left_out(given: object) -> None:
    assert figures_of({"metrics": given}) == {}
