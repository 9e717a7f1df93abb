"""What a gateway says of demand: counted, smoothed, its peaks kept in few numbers; and a model that is woken."""

from __future__ import annotations

import asyncio
import json
import time
from pathlib import Path
from typing import Any

import uvloop
from hypothesis import given
from hypothesis import strategies as st

from caudal.control.reports import MAX_KEYS, plain_mapping
from caudal.gateway import router as routing
from caudal.gateway.demand import MAX_MODELS, MAX_PEAKS, Demand, ModelDemand, Peaks
from caudal.gateway.place import ALONE
from caudal.gateway.process import _report
from caudal.gateway.routes import decode_routes
from caudal.policy.demand import read
from tests.support.gateway import chat, connect, gateway, post, raw
from tests.support.mock_replica import MockReplica


class Hands:
    def __init__(self) -> None:
        self.time = 100.0

    def __call__(self) -> float:
        return self.time


def asleep(*replicas: MockReplica, sleeps: bool = True) -> bytes:
    rows = [{"gang": f"m-{i}", "url": r.url, "site": "north"} for i, r in enumerate(replicas)]
    model = {"id": "m", "version": 1, "context": 2048, "replicas": rows, "asleep": sleeps}
    return json.dumps({"version": 1, "models": [model]}).encode()


def test_requests_are_counted_from_arrival_to_end_and_smoothed() -> None:
    now = Hands()
    demand = Demand(now)
    demand.begun("m")
    demand.begun("m")
    assert demand.report()[0] == {"m": [2, 0.0, 0.0]}
    now.time += 5.0
    assert abs(demand.report()[0]["m"][1] - 2 * (1 - 0.3679)) < 0.001
    now.time += 100.0
    assert demand.report() == ({"m": [2, 2.0, 0.0]}, {"m": [0.0, 2.0]})
    demand.ended("m")
    demand.ended("m")
    now.time += 5.0
    (row,), (peaks,) = demand.report()[0].values(), demand.report()[1].values()
    assert row == [0, 0.736, 5.0] and peaks == [5.0, 2.0, 0.0, 0.736]
    now.time += 1000.0
    assert demand.report() == ({"m": [0, 0.0, 1005.0]}, {"m": [1005.0, 2.0, 1000.0, 0.736]})


def test_a_request_that_fails_or_whose_client_leaves_is_over_too(tmp_path: Path) -> None:
    async def run() -> None:
        broken, slow = await MockReplica(fail="503").start(), await MockReplica(fail="hang").start()
        async with gateway(tmp_path, {"m": [broken], "slow": [slow]}) as one:
            demand = one.router.demand
            assert (await raw(one, post(chat()))).startswith(b"HTTP/1.1 503")
            assert not demand.waits_for("m") and demand.report()[0]["m"][0] == 0
            _, writer = await connect(one)
            writer.write(post(chat(model="slow")))
            while not demand.waits_for("slow"):
                await asyncio.sleep(0.005)
            writer.close()
            while demand.waits_for("slow"):
                await asyncio.sleep(0.005)
            assert not demand.waits_for("other")
        await broken.die()
        await slow.die()

    uvloop.run(asyncio.wait_for(run(), 10))


@given(
    st.lists(st.tuples(st.floats(0.1, 30), st.floats(0, 200)), min_size=1, max_size=200), st.floats(1, 3000)
)
def test_peaks_are_overstated_at_most_and_never_forgotten(
    steps: list[tuple[float, float]], within_s: float
) -> None:
    peaks, now, seen = Peaks(), 0.0, []
    for pause, load in steps:
        now += pause
        peaks.add(now, load)
        seen.append((now, load))
    told = peaks.told(now)
    assert len(told) <= 2 * MAX_PEAKS <= MAX_KEYS
    status = {"demand": {"m": [0, 0.0, 0.0]}, "peaks": {"m": told}}
    true = max((load for at, load in seen if now - at <= within_s), default=0.0)
    assert true - 0.02 <= read(status, "m", 0.0, within_s + 0.01).peak <= max(n for _, n in seen) + 0.001
    if len(told) < 2 * MAX_PEAKS:  # nothing had to be made one
        assert read(status, "m", 0.0, within_s - 0.01).peak <= true + 0.02


def test_a_report_of_many_models_is_one_that_control_takes() -> None:
    now = Hands()
    demand = Demand(now)
    for number in range(100):
        for _ in range(30):
            now.time += 0.5
            row = demand._models.setdefault(f"m{number}", ModelDemand(now))
            times = 1 if number == 99 else 2
            for _ in range(times):
                row.begun()
            for _ in range(times):
                row.ended()
    for _ in range(100):
        now.time += 0.5
        told, peaks = demand.report()
    assert len(told) == len(peaks) == MAX_MODELS and next(iter(told)) == "m99"
    status = {"demand": told, "peaks": peaks, "load": {}}
    assert plain_mapping(status, "status") == status
    now.time += 100_000.0
    demand.report()
    assert len(demand.report()[0]) == MAX_MODELS and len(demand._models) < 100


class Said:
    """Keeps what is reported."""

    def __init__(self, said: list[dict[str, Any]]) -> None:
        self._said = said

    def update(self, **status: Any) -> None:
        """As a reporter's."""
        self._said.append(status)


def test_a_request_for_a_sleeping_model_is_told_at_once_and_waits_for_its_replica(tmp_path: Path) -> None:
    said: list[dict[str, Any]] = []

    async def run() -> None:
        replica = await MockReplica().start()
        async with gateway(tmp_path, wait_s=0.1) as one:
            one.router.update(decode_routes(asleep()))
            reporting = asyncio.create_task(_report(one, Said(said), ALONE))
            await asyncio.sleep(0.02)
            assert said[-1]["waking"] == [] and one.router.waking() == [] and not one.routes.hurry()
            begun = time.monotonic()
            answer = asyncio.create_task(raw(one, post(chat())))
            while not said[-1]["waking"]:
                await asyncio.sleep(0.002)
            assert time.monotonic() - begun < 0.3  # not only with the next regular report
            assert said[-1]["waking"] == ["m"] and said[-1]["demand"]["m"][0] == 1 and one.routes.hurry()
            await asyncio.sleep(0.4)  # longer than it would wait for one that is awake
            assert not answer.done()
            one.router.update(decode_routes(asleep(replica, sleeps=False)))
            assert (await answer).startswith(b"HTTP/1.1 200")
            assert one.router.waking() == [] and one.router.demand.report()[0]["m"][0] == 0
            reporting.cancel()
        await replica.die()

    uvloop.run(run())


def test_the_wait_for_a_model_that_does_not_wake_has_an_end(tmp_path: Path, monkeypatch: Any) -> None:
    monkeypatch.setattr(routing, "WAKE_WAIT_S", 0.3)

    async def run() -> None:
        async with gateway(tmp_path, wait_s=0.1) as one:
            one.router.update(decode_routes(asleep()))
            begun = time.monotonic()
            answer = await raw(one, post(chat()))
            assert answer.startswith(b"HTTP/1.1 503") and b"no ready replica" in answer
            assert 0.25 < time.monotonic() - begun < 3.0

    uvloop.run(run())
