"""The control API for other machines: encrypted, with a token for everything, and gangs' own tokens."""

from __future__ import annotations

import ssl
from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path

import httpx
import pytest

from caudal.cli.client import Client
from caudal.composition import Control
from caudal.control.tokens import gang_token
from caudal.domain.errors import SpecError
from caudal.domain.fleet import ApiSpec, FleetSpec, GatewaySpec, SiteSpec
from caudal.node.control import Away, ControlApi, Refused
from caudal.spec import check
from caudal.store.home import Home
from caudal.telemetry import report
from tests.support.fleet import free_port

HERE = "127.0.0.2"  # this machine, and not the address that pages and people use


@pytest.fixture(scope="module")
def control(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Control]:
    place = Home(tmp_path_factory.mktemp("tls") / "home")
    gateway = GatewaySpec(port=free_port())
    fleet = FleetSpec("far", (SiteSpec("north"),), gateway, ApiSpec(HERE, free_port(), tls=True))
    made = Control(place, [fleet])
    made.start()
    yield made
    made.stop()


def call(control: Control, path: str, token: str = "", body: object = None) -> int:
    context = ssl.create_default_context(cafile=str(control.place.certificates / "ca.pem"))
    with httpx.Client(verify=context, trust_env=False, base_url=control.url) as client:
        headers = {"Authorization": f"Bearer {token}"} if token else {}
        method = "GET" if body is None else "POST"
        return client.request(method, f"/api/v1{path}", headers=headers, json=body).status_code


def test_the_command_line_trusts_the_fleets_authority(control: Control) -> None:
    assert control.url.startswith(f"https://{HERE}:")
    assert Client(control.place).get("/status")


def test_nothing_is_read_without_the_token(control: Control) -> None:
    for path in ("/status", "/version", "/gangs", "/events", "/models", "/routes", "/keys"):
        assert call(control, path) == 401, path
        assert call(control, path, "wrong") == 401, path
        assert call(control, path, control.place.token()) == 200, path
    assert call(control, "/../../api/docs", control.place.token()) == 404


def test_others_certificates_and_plain_calls_come_to_nothing(control: Control) -> None:
    with pytest.raises(httpx.ConnectError):
        httpx.get(f"{control.url}/api/v1/fleet", trust_env=False)
    with pytest.raises(httpx.TransportError):
        httpx.get(control.url.replace("https", "http") + "/api/v1/fleet", trust_env=False)


def test_a_gangs_token_is_good_for_that_gang_alone(control: Control) -> None:
    secret = control.place.token()
    worker, gateway = gang_token(secret, "starter.worker.0-1"), gang_token(secret, "gateway.0-1")
    said = {"at": 1.0, "status": {}, "points": []}
    assert call(control, "/gangs/starter.worker.0-1/report", worker, said) in (200, 404)
    assert call(control, "/gangs/starter.worker.1-1/report", worker, said) == 401
    assert call(control, "/routes", worker) == 401 and call(control, "/routes", gateway) == 200
    assert call(control, "/gateway/keys", gateway) == 200 and call(control, "/gateway/keys", worker) == 401
    assert call(control, "/keys", gateway) == 401 and call(control, "/status", worker) == 401


def test_a_reporter_reports(control: Control, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    gang = "starter.worker.0-1"
    (tmp_path / "token").write_text(gang_token(control.place.token(), gang))
    monkeypatch.setenv(report.REPORT_URL, f"{control.url}/api/v1/gangs/{gang}/report")
    monkeypatch.setenv(report.TOKEN_FILE, str(tmp_path / "token"))
    monkeypatch.setenv(report.CA_FILE, str(control.place.certificates / "ca.pem"))
    reporter = report.Reporter()
    reporter.point(0, {"loss": 1.0})
    reporter.close()
    assert not reporter._points or control.store.read().gangs == ()  # taken, or nobody's gang here


def test_who_listens_for_others_says_how() -> None:
    fleet = FleetSpec("far", (SiteSpec("north"),), api=ApiSpec("10.0.0.5"))
    with pytest.raises(SpecError, match="set `tls: true`"):
        check(fleet)
    check(replace(fleet, api=ApiSpec("10.0.0.5", tls=True)))
    for host in ("0.0.0.0", "::", "example.org"):
        with pytest.raises(SpecError):
            check(replace(fleet, api=ApiSpec(host, tls=True)))


def test_a_node_trusts_the_fleets_authority_and_nobody_else(control: Control, tmp_path: Path) -> None:
    (tmp_path / "join").write_text("1.none")
    with pytest.raises(Away, match=r"(?i)certificate"):
        ControlApi(control.url, "far.north.1.1", tmp_path).join()
    (tmp_path / "ca.pem").write_bytes((control.place.certificates / "ca.pem").read_bytes())
    with pytest.raises(Refused, match="401"):  # it was heard: the token is no good
        ControlApi(control.url, "far.north.1.1", tmp_path).join()
