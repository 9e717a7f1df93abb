"""The control API over a real store: what it takes, what it refuses, what it shows."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import replace
from typing import Any

import pytest
from starlette.testclient import TestClient

from caudal.api.app import create_app
from caudal.api.context import LOOPBACK, MAX_BODY_BYTES, Context
from caudal.control.apply import apply
from caudal.domain.event import Event
from caudal.domain.fleet import FleetSpec, SiteSpec
from caudal.domain.gang import GangSpec, GangStatus, Role
from caudal.domain.model import ModelRecord
from caudal.domain.workload import StageSpec, TrainSpec
from caudal.ports import Change, Driver
from caudal.spec import to_dict
from caudal.store.state import SqlStore, open_store
from tests.unit.test_api_views import LEASE, gang

TOKEN = "a-secret-of-this-test"
FLEET = FleetSpec("laptop", (SiteSpec("north"), SiteSpec("south")))
RUN = TrainSpec("starter", "builtin:tinyworld", (StageSpec("pretrain", 100_000),))
SECRET = {"Authorization": f"Bearer {TOKEN}"}


class Clock:
    """A clock that stands."""

    def now(self) -> float:
        return 100.0

    def sleep(self, seconds: float) -> None:
        raise AssertionError("the API does not sleep")


class NoModels:
    """A model store with one model."""

    def list(self) -> Sequence[ModelRecord]:
        return [ModelRecord("small", 1, "pypi:x==1", 1.0, (("m.gguf", "00"),), 10, "m.gguf")]

    def pull(self, model_id: str, source: str, sha256: str = "") -> ModelRecord:
        raise AssertionError("the API does not pull")


class Logs:
    """A driver that only has logs."""

    site = "north"

    def start(self, spec: GangSpec, token: str) -> None:
        raise AssertionError("the API starts nothing")

    def stop(self, gang_id: str, grace_s: float) -> None:
        raise AssertionError("the API stops nothing")

    def gangs(self) -> Sequence[GangStatus]:
        return []

    def forget(self, gang_id: str) -> None:
        raise AssertionError("the API forgets nothing")

    def logs(self, gang_id: str, tail_bytes: int = 65536) -> str:
        return f"{gang_id} said hello"[-tail_bytes:]


class Api:
    """The application over a store in memory, with one run applied and one worker of it alive."""

    def __init__(self) -> None:
        self.store: SqlStore = open_store("sqlite://")
        self.pokes: list[int] = []
        drivers: Mapping[str, Driver] = {"north": Logs()}
        context = Context(
            store=self.store,
            models=NoModels(),
            drivers=drivers,
            clock=Clock(),
            token=TOKEN,
            version="9.9",
            poke=lambda: self.pokes.append(1),
            hosts=LOOPBACK,
        )
        apply(self.store, [FLEET, RUN], 50.0)
        worker = gang("starter.worker.0", Role.WORKER, "starter")
        head = gang("starter.coordinator", Role.COORDINATOR, "starter")
        self.store.commit(Change(leases=[LEASE], gangs=[worker, head]))
        self.http = TestClient(
            create_app(context), base_url="http://127.0.0.1:8600", raise_server_exceptions=False
        )

    def get(self, path: str, **query: Any) -> Any:
        answer = self.http.get(f"/api/v1{path}", params=query)
        assert answer.status_code == 200, answer.text
        return answer.json()

    def post(self, path: str, body: Any, headers: Mapping[str, str] = SECRET) -> Any:
        return self.http.post(f"/api/v1{path}", json=body, headers=headers)


@pytest.fixture
def api() -> Api:
    return Api()


def test_status_names_sites_workloads_and_models(api: Api) -> None:
    status = api.get("/status")
    assert status["shape"] == "status/1"
    assert [s["name"] for s in status["sites"]] == ["north", "south"]
    assert [w["name"] for w in status["workloads"]] == ["starter"]
    assert [m["id"] for m in status["models"]] == ["small"]
    assert status["caudal"] == "9.9"


def test_an_unknown_workload_is_not_found_and_says_which_exist(api: Api) -> None:
    answer = api.http.get("/api/v1/workloads/nobody")
    assert answer.status_code == 404
    assert answer.json()["error"]["code"] == "not_found"
    assert "starter" in answer.json()["error"]["why"]


@pytest.mark.parametrize("headers", [{}, {"Authorization": "Bearer wrong"}, {"Authorization": TOKEN[:-1]}])
def test_changing_anything_takes_the_token(api: Api, headers: dict[str, str]) -> None:
    before = api.store.read().version
    for path, body in (("/apply", {"specs": []}), ("/workloads/starter/stop", {}), ("/gangs/x/report", {})):
        answer = api.post(path, body, headers)
        assert answer.status_code == 401, path
        assert TOKEN not in answer.text
    assert api.http.get("/api/v1/routes", headers=headers).status_code == 401
    assert api.store.read().version == before


def test_applying_changes_wishes_and_pokes_the_loop(api: Api) -> None:
    other = replace(RUN, name="other")
    answer = api.post("/apply", {"specs": [to_dict(other), to_dict(RUN)]})
    assert answer.status_code == 200, answer.text
    assert [(i["name"], i["change"]) for i in answer.json()["items"]] == [
        ("other", "new"),
        ("starter", "unchanged"),
    ]
    assert api.pokes == [1]
    assert {w.name for w in api.store.read().workloads} == {"starter", "other"}


@pytest.mark.parametrize(
    ("specs", "code"),
    [
        ([{"type": "train", "name": "x"}], "spec"),
        ([{"type": "banana"}], "spec"),
        ([to_dict(replace(RUN, name="x")), {**to_dict(replace(RUN, name="y")), "stagse": []}], "spec"),
        ([to_dict(replace(RUN, name="x", sites=9))], "impossible"),
        ([to_dict(replace(FLEET, sites=(SiteSpec("north"),)))], "impossible"),
        ("not a list", "usage"),
    ],
)
def test_a_bad_spec_changes_nothing(api: Api, specs: Any, code: str) -> None:
    before = api.store.read()
    answer = api.post("/apply", {"specs": specs})
    assert 400 <= answer.status_code < 500
    assert answer.json()["error"]["code"] == code
    assert api.store.read() == before


def test_stopping_is_a_wish(api: Api) -> None:
    assert api.post("/workloads/starter/stop", {}).json()["wanted"] is False
    assert api.post("/workloads/nobody/stop", {}).status_code == 404


def test_a_body_over_the_limit_is_refused(api: Api) -> None:
    answer = api.post("/apply", {"specs": ["x" * MAX_BODY_BYTES]})
    assert answer.status_code == 400
    assert "Content-Length" in answer.json()["error"]["what"]


def test_reports_are_taken_and_shown(api: Api) -> None:
    body = {
        "at": 99.0,
        "status": {"phase": "training", "round": 4, "loss": 2.5},
        "points": [{"seq": 1, "at": 98.0, "values": {"round": 4, "loss": 2.5}}],
    }
    assert api.post("/gangs/starter.coordinator-1/report", body).status_code == 200
    assert api.get("/workloads/starter")["progress"]["round"] == 4
    points = api.get("/runs/starter/points")
    assert points["shape"] == "points/1"
    assert [p["values"]["round"] for p in points["items"]] == [4]
    assert api.get("/runs/starter/points", after=1)["items"] == []


@pytest.mark.parametrize(
    "body", [{}, {"status": 7}, {"status": {}, "points": [{"seq": "x"}]}, {"status": {"a": {"b": {}}}}]
)
def test_a_report_of_nonsense_breaks_nothing(api: Api, body: Any) -> None:
    assert api.post("/gangs/starter.coordinator-1/report", body).status_code in (200, 400)
    assert api.get("/status")["shape"] == "status/1"


def test_a_gateway_that_waits_for_a_sleeping_model_pokes_the_loop(api: Api) -> None:
    for waking, pokes in (([], 0), (["small"], 1)):
        body = {"at": 1.0, "status": {"ready": True, "waking": waking}}
        assert api.post("/gangs/starter.coordinator-1/report", body).status_code == 200
        assert len(api.pokes) == pokes


def test_a_report_of_an_unknown_gang_is_refused(api: Api) -> None:
    assert api.post("/gangs/nobody-1/report", {"at": 1.0, "status": {}}).status_code == 404


def test_logs_are_found_by_gang_slot_or_workload(api: Api) -> None:
    for name in ("starter.worker.0-1", "starter.worker.0", "starter"):
        answer = api.http.get(f"/api/v1/gangs/{name}/logs", headers=SECRET)
        assert answer.status_code == 200, answer.text
        assert answer.json()["text"].endswith("said hello")
    assert api.http.get("/api/v1/gangs/nobody/logs", headers=SECRET).status_code == 404


def test_events_come_in_order_and_from_the_newest(api: Api) -> None:
    for number in range(5):
        api.store.commit(Change(events=[Event(60.0, "test", "starter", f"number {number}")]))
    items = api.get("/events", newest=True, limit=2)["items"]
    assert [e["text"] for e in items] == ["number 3", "number 4"]
    assert [e["text"] for e in api.get("/events", after=items[0]["seq"])["items"]] == ["number 4"]
    assert api.http.get("/api/v1/events", params={"limit": 0}).status_code == 400


def test_an_explanation_has_a_shape(api: Api) -> None:
    answer = api.get("/workloads/starter/explain")
    assert answer["shape"] == "explain/1"
    assert answer["items"]


@pytest.mark.parametrize(
    ("method", "path", "status", "code"),
    [
        ("GET", "/api/v1/nothing", 404, "not_found"),
        ("GET", "/api/v1/workloads/../../etc/explain", 404, "not_found"),
        ("DELETE", "/api/v1/status", 405, "usage"),
    ],
)
def test_what_the_framework_refuses_has_the_shape_of_all_errors(
    api: Api, method: str, path: str, status: int, code: str
) -> None:
    answer = api.http.request(method, path)
    assert answer.status_code == status
    assert answer.json()["error"]["code"] == code


def test_an_empty_secret_lets_nobody_in(api: Api) -> None:
    api.http.app.state.context = replace(api.http.app.state.context, token="")  # type: ignore[attr-defined]
    for headers in ({}, {"Authorization": "Bearer "}, {"Authorization": ""}):
        assert api.post("/apply", {"specs": []}, headers).status_code == 401


def test_metrics_are_for_prometheus(api: Api) -> None:
    status = {
        "round": 7,
        "tokens_done": 900,
        "loss": 2.5,
        "val_loss": None,
        "sites": {"north": {}, "south": {}},
    }
    body = {"at": 1.0, "status": status, "points": []}
    assert api.post("/gangs/starter.coordinator-1/report", body).status_code == 200
    answer = api.http.get("/metrics")
    assert answer.status_code == 200 and answer.headers["content-type"].startswith(
        "text/plain; version=0.0.4"
    )
    lines = answer.text.splitlines()
    assert (
        'caudal_run_round{run="starter"} 7' in lines and 'caudal_run_tokens_total{run="starter"} 900' in lines
    )
    assert 'caudal_run_sites{run="starter"} 2' in lines and "# TYPE caudal_run_loss gauge" in lines
    assert not any(line.startswith("caudal_run_val_loss{") for line in lines)
