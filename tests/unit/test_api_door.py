"""Only clients that mean this address come in."""

from __future__ import annotations

import pytest
from starlette.applications import Starlette
from starlette.responses import PlainTextResponse
from starlette.routing import Route
from starlette.testclient import TestClient

from caudal.api.door import Door


def client() -> TestClient:
    app = Starlette(routes=[Route("/", lambda request: PlainTextResponse("in"))])
    return TestClient(
        Door(app, frozenset({"127.0.0.1", "localhost", "::1"})), base_url="http://127.0.0.1:8600"
    )


@pytest.mark.parametrize("host", ["127.0.0.1:8600", "localhost", "[::1]:8600"])
def test_our_hosts_come_in(host: str) -> None:
    assert client().get("/", headers={"host": host}).status_code == 200


@pytest.mark.parametrize("host", ["evil.example", "127.0.0.1.evil.example", ""])
def test_other_hosts_do_not(host: str) -> None:
    answer = client().get("/", headers={"host": host})
    assert answer.status_code == 400
    assert answer.json()["error"]["code"] == "usage"


def test_a_page_from_elsewhere_does_not() -> None:
    assert client().get("/", headers={"origin": "https://evil.example"}).status_code == 400
    assert client().get("/", headers={"origin": "http://localhost:8600"}).status_code == 200
