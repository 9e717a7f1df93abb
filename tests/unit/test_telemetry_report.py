"""Reports: best effort, at once where others wait for them, and no point of a curve is lost while nobody listens."""

from __future__ import annotations

import json
import threading
import time
from collections.abc import Callable, Iterator
from http.server import BaseHTTPRequestHandler, HTTPServer
from pathlib import Path
from typing import Any

import pytest

from caudal.telemetry.report import REPORT_URL, TOKEN_FILE, Reporter

LIMIT_S = 10.0


class Control:
    """A control API that takes reports, or answers as it is told to."""

    def __init__(self) -> None:
        self.bodies: list[dict[str, Any]] = []
        self.tokens: set[str] = set()
        self.answer: bytes = b"HTTP/1.1 200 OK\r\nContent-Length: 0\r\nConnection: close\r\n\r\n"
        control = self

        class Handler(BaseHTTPRequestHandler):
            def do_POST(self) -> None:
                body = self.rfile.read(int(self.headers["Content-Length"]))
                control.tokens.add(self.headers["Authorization"])
                if control.answer.startswith(b"HTTP/1.1 200"):
                    control.bodies.append(json.loads(body))
                self.wfile.write(control.answer)
                self.close_connection = True

            def log_message(self, format: str, *args: Any) -> None:
                """Quiet."""

        self.server = HTTPServer(("127.0.0.1", 0), Handler)
        self.url = f"http://127.0.0.1:{self.server.server_port}/report"
        threading.Thread(target=self.server.serve_forever, args=(0.05,), daemon=True).start()

    def points(self) -> list[int]:
        """The seqs of all points that were taken, in order."""
        return [p["seq"] for body in self.bodies for p in body["points"]]


def wait_for(condition: Callable[[], Any]) -> None:
    deadline = time.monotonic() + LIMIT_S
    while not condition():
        assert time.monotonic() < deadline
        time.sleep(0.01)


@pytest.fixture
def control(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> Iterator[Control]:
    found = Control()
    (tmp_path / "token").write_text("secret\n")
    monkeypatch.setenv(REPORT_URL, found.url)
    monkeypatch.setenv(TOKEN_FILE, str(tmp_path / "token"))
    yield found
    found.server.shutdown()
    found.server.server_close()


def test_what_others_wait_for_is_told_at_once(control: Control) -> None:
    reporter = Reporter(interval_s=3600.0)
    reporter.update(loss=1.0)
    reporter.update(ready=True, url="http://here")
    wait_for(lambda: control.bodies)
    assert control.bodies[0]["status"] == {"loss": 1.0, "ready": True, "url": "http://here"}
    assert control.tokens == {"Bearer secret"}
    reporter.update(ready=False)
    wait_for(lambda: control.bodies[-1]["status"]["ready"] is False)
    reporter.close()


def test_closing_sends_what_is_left(control: Control) -> None:
    reporter = Reporter(interval_s=3600.0)
    reporter.point(1, {"loss": 2.0})
    reporter.update(phase="finished")
    reporter.close()
    assert control.bodies[-1]["status"] == {"phase": "finished"}
    assert control.points() == [1]


@pytest.mark.parametrize(
    "answer",
    [b"HTTP/1.1 503 Away\r\nConnection: close\r\n\r\n", b"nonsense\r\n\r\n", b"HTTP/1.1 999999\r\n\r\n", b""],
)
def test_points_are_kept_until_they_are_taken_once(control: Control, answer: bytes) -> None:
    good, control.answer = control.answer, answer
    reporter = Reporter(interval_s=0.01)
    reporter.point(1, {"loss": 2.0})
    wait_for(lambda: control.tokens)
    reporter.point(2, {"loss": 1.0})
    assert control.points() == []
    control.answer = good
    wait_for(lambda: len(control.points()) >= 2)
    reporter.close()
    assert control.points() == [1, 2]


def test_without_an_address_it_keeps_quiet(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.delenv(REPORT_URL, raising=False)
    before = threading.active_count()
    reporter = Reporter()
    reporter.update(ready=True)
    reporter.point(1, {})
    assert threading.active_count() == before
    reporter.close()
