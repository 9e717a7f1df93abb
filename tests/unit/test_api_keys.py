"""Keys and usage over the control API: who may ask, what is shown, and that a secret is shown once."""

from __future__ import annotations

import hashlib
import json
import math
from typing import Any

import pytest

from caudal.control import keys as control_keys
from caudal.domain.errors import Impossible, NotFound, Stale, UsageError
from caudal.domain.key import ApiKey, KeyLimits
from caudal.ports import Change
from caudal.store.state import SqlStore, open_store
from tests.unit.test_api_app import SECRET, TOKEN, Api

HOUR = 7200
ROW = {
    "key_id": "key-1",
    "model": "small",
    "hour": HOUR,
    "requests": 2,
    "failed": 1,
    "prompt_tokens": 10,
    "completion_tokens": 5,
    "cached_tokens": 4,
    "picodollars": 2 * 10**11,
}


@pytest.fixture
def api() -> Api:
    return Api()


def get(api: Api, path: str, **query: Any) -> Any:
    answer = api.http.get(f"/api/v1{path}", params=query, headers=SECRET)
    assert answer.status_code == 200, answer.text
    return answer.json()


def made(api: Api, name: str = "alice", **more: Any) -> Any:
    answer = api.post("/keys", {"name": name, **more})
    assert answer.status_code == 200, answer.text
    return answer.json()


def test_a_key_is_made_shown_once_and_kept_as_a_hash(api: Api) -> None:
    new = made(api, limits={"requests_per_minute": 60, "models": ["small"], "slo": "batch"}, expires_at=500.0)
    assert (new["shape"], new["key"]["name"], new["key"]["expires_at"]) == ("new_key/1", "alice", 500.0)
    assert new["key"]["limits"]["requests_per_minute"] == 60 and new["key"]["limits"]["slo"] == "batch"
    secret = new["secret"]
    assert secret.startswith("ck-") and len(secret) == 46  # 256 bits
    assert made(api, "bob")["secret"] != secret
    digest = hashlib.sha256(secret.encode()).hexdigest()
    for path in ("/keys", "/keys/alice", "/events", "/usage", "/status"):
        shown = json.dumps(get(api, path))
        assert secret not in shown and digest not in shown
    (kept,) = [k for k in api.store.api_keys() if k.name == "alice"]
    assert kept.sha256 == digest and secret not in repr(api.store.api_keys())
    events = [e for e in api.store.events() if e.kind == "key.created"]
    assert [(e.subject, e.data["id"]) for e in events] == [("alice", kept.id), ("bob", events[1].data["id"])]


@pytest.mark.parametrize("path", ["/keys", "/keys/alice", "/usage", "/gateway/keys"])
@pytest.mark.parametrize("headers", [{}, {"Authorization": "Bearer wrong"}])
def test_nothing_is_said_without_the_token(api: Api, path: str, headers: dict[str, str]) -> None:
    made(api)
    answer = api.http.get(f"/api/v1{path}", headers=headers)
    assert answer.status_code == 401 and "alice" not in answer.text


@pytest.mark.parametrize("path", ["/keys", "/keys/alice/revoke", "/keys/alice/limits", "/gateway/usage"])
def test_nothing_is_changed_without_the_token(api: Api, path: str) -> None:
    made(api)
    before = api.store.api_keys()
    body = {"name": "eve", "batches": [{"source": "a", "seq": 1, "rows": [ROW]}], "weight": 2.0}
    assert api.post(path, body, headers={"Authorization": f"Bearer {TOKEN}x"}).status_code == 401
    assert (api.store.api_keys(), api.store.usage()) == (before, [])


@pytest.mark.parametrize(
    ("body", "said"),
    [
        ({}, "name"),
        ({"name": "Alice Smith"}, "cannot name a key"),
        ({"name": "anonymous"}, "without a key are counted"),
        ({"name": "a", "expires_at": 99.0}, "expired already"),
        ({"name": "a", "expires_at": "soon"}, "expires_at"),
        ({"name": "a", "limits": {"weight": 0}}, "weight"),
        ({"name": "a", "limits": {"concurrency": -1}}, "concurrency"),
        ({"name": "a", "limits": {"budget_usd": 1e300}}, "budget_usd"),
        ({"name": "a", "limits": {"budgt_usd": 1}}, "budgt_usd"),
        ({"name": "a", "limits": {"slo": "whenever"}}, "slo"),
        ({"name": "a", "limits": {"models": [""]}}, "models"),
    ],
)
def test_a_key_that_cannot_be_is_refused(api: Api, body: Any, said: str) -> None:
    answer = api.post("/keys", body)
    assert answer.status_code == 400
    assert said in json.dumps(answer.json()["error"])
    assert api.store.api_keys() == []


def test_a_name_is_free_again_once_its_key_is_revoked(api: Api) -> None:
    first = made(api)["key"]["id"]
    taken = api.post("/keys", {"name": "alice"})
    assert (taken.status_code, taken.json()["error"]["code"]) == (409, "impossible")
    assert api.post("/keys/alice/revoke", {}).json()["revoked_at"] == 100.0
    second = made(api)["key"]["id"]
    assert get(api, "/keys/alice")["id"] == second
    assert get(api, f"/keys/{first}")["revoked_at"] == 100.0
    assert [k["id"] for k in get(api, "/keys")["items"]] == [second]
    assert {k["id"] for k in get(api, "/keys", revoked=True)["items"]} == {first, second}


def test_revoking_twice_is_revoking_once_and_a_revoked_key_takes_no_limits(api: Api) -> None:
    made(api)
    api.post("/keys/alice/revoke", {})
    version = api.store.read().version
    assert api.post("/keys/alice/revoke", {}).status_code == 200
    assert api.store.read().version == version
    refused = api.post("/keys/alice/limits", {"weight": 2.0})
    assert (refused.status_code, refused.json()["error"]["code"]) == (409, "impossible")


def test_limits_that_are_not_given_stay(api: Api) -> None:
    made(api, limits={"requests_per_minute": 60, "models": ["small"]})
    limits = api.post("/keys/alice/limits", {"weight": 3.0, "models": []}).json()["limits"]
    assert (limits["weight"], limits["requests_per_minute"], limits["models"]) == (3.0, 60, [])
    assert api.post("/keys/alice/limits", {"weight": -1.0}).status_code == 400
    assert get(api, "/keys/alice")["limits"] == limits
    assert api.post("/keys/nobody/limits", {"weight": 1.0}).status_code == 404


def test_gateways_are_told_the_keys_that_open_and_their_hashes(api: Api) -> None:
    keep = made(api, "alice", limits={"models": ["small"]})
    made(api, "gone")
    api.post("/keys/gone/revoke", {})
    made(api, "late", expires_at=101.0)
    api.store.commit(Change(keys=[ApiKey("key-x", "over", "ab" * 32, 1.0, KeyLimits(), 100.0)]))
    told = {k["name"]: k for k in get(api, "/gateway/keys")["keys"]}
    assert set(told) == {"alice", "late"}
    digest = hashlib.sha256(keep["secret"].encode()).hexdigest()
    assert told["alice"]["sha256"] == digest and told["alice"]["limits"]["models"] == ["small"]


def test_gateways_are_told_what_was_spent_this_month_where_there_is_a_budget(api: Api) -> None:
    poor = made(api, "poor", limits={"budget_tokens": 1000})["key"]["id"]
    paying = made(api, "paying", limits={"budget_usd": 3.0})["key"]["id"]
    free = made(api, "free")["key"]["id"]
    rows = [{**ROW, "key_id": key_id} for key_id in (poor, paying, free)]
    assert api.post("/gateway/usage", {"batches": [{"source": "g", "seq": 1, "rows": rows}]}).json()
    told = {k["name"]: (k["spent_tokens"], k["spent_usd"]) for k in get(api, "/gateway/keys")["keys"]}
    tokens = ROW["prompt_tokens"] + ROW["completion_tokens"]
    assert told == {"poor": (tokens, 0.2), "paying": (tokens, 0.2), "free": (0, 0.0)}


def test_usage_of_a_gateway_that_knows_no_costs_is_free(api: Api) -> None:
    old = {name: value for name, value in ROW.items() if name != "picodollars"}
    assert api.post("/gateway/usage", {"batches": [{"source": "g", "seq": 1, "rows": [old]}]}).json()
    assert [item["usd"] for item in get(api, "/usage")["items"]] == [0.0]


def test_usage_is_taken_once_and_shown_with_names(api: Api) -> None:
    key_id = made(api)["key"]["id"]
    rows = [{**ROW, "key_id": key_id}, {**ROW, "key_id": "anonymous"}]
    for _ in range(2):
        told = api.post("/gateway/usage", {"batches": [{"source": "g", "seq": 1, "rows": rows}]})
        assert told.json() == {"taken": 1}
    items = get(api, "/usage")["items"]
    assert [(i["key"], i["requests"], i["failed"], i["prompt_tokens"]) for i in items] == [
        ("anonymous", 2, 1, 10),
        ("alice", 2, 1, 10),
    ]
    assert [i["key_id"] for i in get(api, "/usage", key="alice")["items"]] == [key_id]
    assert [i["key"] for i in get(api, "/usage", key="anonymous")["items"]] == ["anonymous"]
    assert get(api, "/usage", since=HOUR + 1)["items"] == []
    assert get(api, "/usage", until=HOUR)["items"] == []
    assert api.http.get("/api/v1/usage?key=nobody", headers=SECRET).status_code == 404


@pytest.mark.parametrize(
    "changed",
    [
        {"requests": -1},
        {"prompt_tokens": 10**16},
        {"hour": HOUR + 1},
        {"hour": -3600},
        {"model": ""},
        {"model": "a\x00b"},
        {"model": "\ud800"},
        {"key_id": "k" * 300},
        {"failed": "many"},
    ],
)
def test_usage_that_is_none_is_refused_whole(api: Api, changed: dict[str, Any]) -> None:
    batches = [
        {"source": "g", "seq": 1, "rows": [ROW]},
        {"source": "g", "seq": 2, "rows": [{**ROW, **changed}]},
    ]
    sent = json.dumps({"batches": batches})  # in ASCII: a lone surrogate can be said so
    headers = {**SECRET, "Content-Type": "application/json"}
    assert api.http.post("/api/v1/gateway/usage", content=sent, headers=headers).status_code == 400
    assert api.store.usage() == []


class Busy(SqlStore):
    """A store where somebody else commits between every look and the commit that follows."""

    others = 3

    def api_keys(self) -> list[ApiKey]:
        if self.others:
            self.others -= 1
            self.commit(Change())
        return super().api_keys()


def test_a_key_is_made_though_others_commit_meanwhile() -> None:
    plain = open_store("sqlite://")
    busy = Busy(plain._database, plain._limits)
    key = control_keys.create(busy, "alice", "ck-x", "key-1", KeyLimits(), 0.0, 1.0)
    assert busy.api_keys() == [key]
    busy.others = 1_000
    with pytest.raises(Stale):
        control_keys.revoke(busy, "alice", 2.0)


def test_there_is_an_end_to_how_many_keys_are_valid(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(control_keys, "MAX_KEYS", 2)
    store = open_store("sqlite://")
    for number in range(2):
        control_keys.create(store, f"k{number}", "ck-x", f"key-{number}", KeyLimits(), 0.0, 1.0)
    with pytest.raises(Impossible, match="2 keys already"):
        control_keys.create(store, "more", "ck-x", "key-3", KeyLimits(), 0.0, 1.0)
    control_keys.revoke(store, "k0", 2.0)
    control_keys.create(store, "more", "ck-x", "key-3", KeyLimits(), 0.0, 3.0)
    with pytest.raises(NotFound):
        control_keys.find(store.api_keys(), "nobody")


@pytest.mark.parametrize("limits", [KeyLimits(weight=math.nan), KeyLimits(budget_usd=math.inf)])
def test_a_limit_that_is_no_number_is_refused(limits: KeyLimits) -> None:
    with pytest.raises(UsageError):
        control_keys.create(open_store("sqlite://"), "a", "ck-x", "key-1", limits, 0.0, 1.0)
