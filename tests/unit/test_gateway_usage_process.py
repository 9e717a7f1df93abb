"""Real gateway processes that are killed with kill -9, over a real control API that goes and comes back."""

from __future__ import annotations

import asyncio
import http.client
import json
import os
import subprocess
import sys
import threading
import time
from collections.abc import Iterator
from pathlib import Path

import pytest

from tests.support.fleet import free_port
from tests.support.gateway import NOWHERE, chat, table
from tests.support.mock_replica import USAGE, MockReplica
from tests.support.served import Served

WRITTEN_S = 1.0
"""How long ago an answer must have been for its usage to be safe."""


@pytest.fixture
def replica() -> Iterator[MockReplica]:
    """An engine in a thread of its own."""
    loop = asyncio.new_event_loop()
    thread = threading.Thread(target=loop.run_forever, daemon=True)
    thread.start()
    engine = MockReplica()
    asyncio.run_coroutine_threadsafe(engine.start(), loop).result(10)
    yield engine
    asyncio.run_coroutine_threadsafe(engine.die(), loop).result(10)
    loop.call_soon_threadsafe(loop.stop)
    thread.join(10)


class Front:
    """A gateway process, started again and again in one folder, with keys required."""

    def __init__(self, folder: Path, served: Served, secret: str) -> None:
        self.folder, self.served, self.secret = folder, served, secret
        self.port = free_port()
        self.answered: list[float] = []  # when each good answer was there
        self.process: subprocess.Popen[bytes] | None = None

    def start(self) -> None:
        api = (self.served.home.root / "control.url").read_text() + "/api/v1"
        content = {
            "host": "127.0.0.1", "port": self.port, "site": "north", "gang": "gateway-1", "keys": "required",
            "routes_url": NOWHERE, "state_file": str(self.folder / "routes.json"),
            "keys_url": f"{api}/gateway/keys", "keys_file": str(self.folder / "keys.json"),
            "usage_url": f"{api}/gateway/usage", "usage_dir": str(self.folder / "usage"),
        }  # fmt: skip
        config = self.folder / "config.json"
        config.write_text(json.dumps(content))
        environment = {k: v for k, v in os.environ.items() if not k.startswith("CAUDAL_")}
        environment["CAUDAL_TOKEN_FILE"] = str(self.served.home.token_file)
        with (self.folder / "log").open("ab") as log:
            self.process = subprocess.Popen(
                [sys.executable, "-m", "caudal.gateway", str(config)], stderr=log, env=environment
            )
        deadline = time.monotonic() + 30
        while self.ready() != 200:
            assert time.monotonic() < deadline, (self.folder / "log").read_text()
            time.sleep(0.02)

    def ready(self) -> int:
        connection = http.client.HTTPConnection("127.0.0.1", self.port, timeout=5)
        try:
            connection.request("GET", "/ready")
            return connection.getresponse().status
        except OSError:
            return 0
        finally:
            connection.close()

    def ask(self, times: int, secret: str | None = None) -> int:
        """Chats one after the other, until one fails; returns the last status (0: the connection broke)."""
        connection = http.client.HTTPConnection("127.0.0.1", self.port, timeout=5)
        headers = {"content-type": "application/json", "authorization": f"Bearer {secret or self.secret}"}
        try:
            for _ in range(times):
                connection.request("POST", "/v1/chat/completions", json.dumps(chat()), headers)
                answer = connection.getresponse()
                answer.read()
                if answer.status != 200:
                    return answer.status
                self.answered.append(time.monotonic())
        except (OSError, http.client.HTTPException):
            return 0
        finally:
            connection.close()
        return 200

    def kill(self) -> None:
        assert self.process is not None
        self.process.kill()
        self.process.wait(10)

    def end(self) -> int:
        assert self.process is not None
        self.process.terminate()
        return self.process.wait(20)


def test_usage_is_exact_over_kills_of_the_gateway_and_absences_of_control(
    tmp_path: Path, capsys: pytest.CaptureFixture[str], replica: MockReplica
) -> None:
    served = Served(tmp_path / "home", capsys)
    served.start()
    secret = served.caudal("keys", "create", "alice").out.strip()
    (tmp_path / "routes.json").write_bytes(table({"m": [replica]}))
    front = Front(tmp_path, served, secret)
    try:
        front.start()
        assert front.ask(1, "ck-wrong") == 401 and front.ask(1, "none") == 401
        assert front.ask(20) == 200
        served.stop()  # control is away: what follows is in the journal only
        assert front.ask(20) == 200
        time.sleep(WRITTEN_S)
        front.kill()
        front.start()  # it knows the key still
        load = threading.Thread(target=front.ask, args=(100_000,))
        load.start()
        time.sleep(2.5)
        front.kill()  # in the middle of things
        killed_at = time.monotonic()
        load.join(10)
        served.start()
        front.start()
        assert front.ask(5) == 200
        assert front.end() == 0
        items = served.caudal("keys", "usage", "alice", "--json").json["items"]
    finally:
        front.kill()
        served.stop()
    counted = sum(item["requests"] for item in items)
    late = sum(killed_at - WRITTEN_S < at < killed_at for at in front.answered)
    # All that was answered, but for the last second before the kill; the one in flight may have been counted.
    assert len(front.answered) - late <= counted <= len(front.answered) + 1
    assert late < len(front.answered) - 45
    assert sum(item["prompt_tokens"] for item in items) == counted * USAGE["prompt_tokens"]
    assert sum(item["completion_tokens"] for item in items) == counted * USAGE["completion_tokens"]
    assert sum(item["failed"] for item in items) <= 1
    assert list((tmp_path / "usage").iterdir()) == []
    log = (tmp_path / "log").read_text()
    assert secret not in log and "ck-wrong" not in log and "control does not take usage" in log
