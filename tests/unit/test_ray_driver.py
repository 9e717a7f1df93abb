"""The driver against heads that are away, strange, old, or that want a token: what it raises, and how soon."""

from __future__ import annotations

import json
import socket
import threading
import time
from collections.abc import Callable, Iterator
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from typing import Any

import pytest

from caudal.domain.errors import CaudalError, Failed, NotAllowed, Unreachable
from caudal.domain.fleet import Resources
from caudal.domain.gang import GangSpec, ProcessSpec
from caudal.drivers.ray.driver import RayDriver
from caudal.drivers.ray.jobs import jobs_url, ray_token

SPEC = GangSpec("a-0", "north", "n", 1, (ProcessSpec(("x",)),), Resources())


@pytest.fixture
def answers() -> Iterator[Callable[[int, Any], str]]:
    """Starts a server that says the same to everything, and remembers what it was sent; its URL."""
    servers = []

    def start(code: int, body: Any, seen: list[Any] | None = None) -> str:
        class Same(BaseHTTPRequestHandler):
            def do_GET(self) -> None:
                if seen is not None:
                    seen.append(self.headers.get("Authorization"))
                data = body if isinstance(body, bytes) else json.dumps(body).encode()
                self.send_response(code)
                self.send_header("Content-Length", str(len(data)))
                self.end_headers()
                self.wfile.write(data)

            do_POST = do_PUT = do_DELETE = do_GET  # noqa: N815 - the library's names

            def log_message(self, *_: object) -> None:
                pass

        server = ThreadingHTTPServer(("127.0.0.1", 0), Same)
        threading.Thread(target=server.serve_forever, daemon=True).start()
        servers.append(server)
        return f"http://127.0.0.1:{server.server_address[1]}"

    yield start
    for server in servers:
        server.shutdown()
        server.server_close()


def calls(driver: RayDriver) -> list[Callable[[], object]]:
    return [
        driver.gangs,
        driver.version,
        lambda: driver.start(SPEC, "t"),
        lambda: driver.stop("a-0", 1.0),
        lambda: driver.forget("a-0"),
        lambda: driver.logs("a-0"),
    ]


def raised(call: Callable[[], object]) -> CaudalError:
    with pytest.raises(CaudalError) as caught:
        call()
    return caught.value


def test_a_head_that_is_not_there_or_silent_is_unreachable_within_two_seconds(tmp_path: Path) -> None:
    with socket.create_server(("127.0.0.1", 0)) as silent, socket.create_server(("127.0.0.1", 0)) as closed:
        port = closed.getsockname()[1]
        closed.close()
        for address in (
            f"http://127.0.0.1:{port}",
            f"http://127.0.0.1:{silent.getsockname()[1]}",
            lambda: "",
        ):
            for call in calls(RayDriver("north", address, token_file=tmp_path / "none")):
                began = time.monotonic()
                assert type(raised(call)) is Unreachable
                assert time.monotonic() - began < 2.2


def test_what_is_not_ray_says_nothing_about_gangs(answers: Callable[..., str]) -> None:
    for body in (b"<html>hello</html>", {"jobs": []}):
        assert type(raised(RayDriver("north", answers(200, body)).gangs)) is Unreachable


@pytest.mark.parametrize("code", [401, 403])
def test_a_token_that_is_missing_or_wrong_is_said_without_showing_it(
    answers: Callable[..., str], tmp_path: Path, code: int
) -> None:
    (tmp_path / "token").write_text("my-secret-token\n")
    seen: list[Any] = []
    error = raised(RayDriver("north", answers(code, b"no", seen), token_file=tmp_path / "token").gangs)
    assert type(error) is NotAllowed and "RAY_AUTH_TOKEN_PATH" in error.remedy
    assert "my-secret-token" not in str(error) and seen == ["Bearer my-secret-token"]


def test_an_old_ray_gets_nothing_to_start(answers: Callable[..., str]) -> None:
    error = raised(lambda: RayDriver("north", answers(200, {"ray_version": "2.9.3"})).start(SPEC, "t"))
    assert type(error) is Failed and "too old" in error.what and "2.56" in error.remedy


def test_an_answer_without_end_is_cut_off(
    answers: Callable[..., str], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("caudal.drivers.ray.jobs.MAX_ANSWER_BYTES", 1000)
    assert "larger than" in raised(RayDriver("north", answers(200, b"[" + b" " * 5000 + b"]")).gangs).why


def test_jobs_of_others_are_not_ours(answers: Callable[..., str]) -> None:
    others = [
        {"submission_id": "raysubmit_1", "status": "RUNNING", "metadata": None},
        {
            "submission_id": "x",
            "status": "RUNNING",
            "metadata": {"caudal.site": "south", "caudal.gang": "a-0"},
        },
        {"submission_id": None, "status": "RUNNING"},
        "nonsense",
    ]
    assert list(RayDriver("north", answers(200, others)).gangs()) == []


def test_addresses_of_the_fleet_file() -> None:
    assert jobs_url("http://head:8265/") == "http://head:8265"
    assert jobs_url("https://ray.example/x") == "https://ray.example/x"
    assert jobs_url("10.0.0.4:6379") == jobs_url("10.0.0.4") == "http://10.0.0.4:8265"


def test_the_token_comes_by_rays_own_chain(tmp_path: Path) -> None:
    assert ray_token({}, tmp_path) == ""
    (tmp_path / ".ray").mkdir()
    (tmp_path / ".ray" / "auth_token").write_text("home\n")
    (tmp_path / "file").write_text("file\n")
    named = {"RAY_AUTH_TOKEN_PATH": str(tmp_path / "file")}
    assert ray_token({}, tmp_path) == "home"
    assert ray_token(named, tmp_path) == "file"
    assert ray_token({**named, "RAY_AUTH_TOKEN": "direct"}, tmp_path) == "direct"
    assert ray_token({"RAY_AUTH_TOKEN_PATH": str(tmp_path / "nowhere")}, tmp_path) == ""
