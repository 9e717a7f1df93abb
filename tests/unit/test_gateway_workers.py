"""A gateway of several real processes: one port, kills, ends, sums, and what its parent does."""

from __future__ import annotations

import asyncio
import contextlib
import http.client
import json
import os
import re
import shutil
import signal
import socket
import subprocess
import sys
import threading
import time
from collections.abc import Iterator
from contextlib import contextmanager
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from typing import Any

import psutil
import pytest

from tests.support.fleet import free_port
from tests.support.gateway import NOWHERE, chat, table
from tests.support.mock_replica import MockReplica

START_S = 30.0


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
    """A gateway of so many processes."""

    def __init__(self, folder: Path, processes: int = 2, port: int | None = None) -> None:
        self.folder, self.processes = folder, processes
        self.port = free_port() if port is None else port
        self.parent: subprocess.Popen[bytes] | None = None
        self.more: dict[str, str] = {}  # of the environment

    def start(self, *, wait: bool = True) -> subprocess.Popen[bytes]:
        """Wait until all of them answer."""
        config = self.folder / "config.json"
        content = {
            "host": "127.0.0.1", "port": self.port, "site": "north", "gang": "gateway-1", "routes_url": NOWHERE,
            "state_file": str(self.folder / "routes.json"), "processes": self.processes,
        }  # fmt: skip
        config.write_text(json.dumps(content))
        environment = {k: v for k, v in os.environ.items() if not k.startswith("CAUDAL_")}
        environment |= {"TMPDIR": str(self.temporary()), **self.more}
        with (self.folder / "log").open("ab") as log:
            self.parent = subprocess.Popen(
                [sys.executable, "-m", "caudal.gateway", str(config)], stderr=log, env=environment
            )
        if wait:
            until(lambda: self.answering() == self.processes, self.log)
        return self.parent

    def temporary(self) -> Path:
        """Short, as unix sockets need it, and its own."""
        path = Path(f"/tmp/caudal-test-{os.getpid()}-{self.port}")
        path.mkdir(exist_ok=True, mode=0o700)
        return path

    def log(self) -> str:
        return (self.folder / "log").read_text()

    def children(self) -> list[psutil.Process]:
        assert self.parent is not None
        return psutil.Process(self.parent.pid).children()

    def metrics(self) -> str:
        return get(self.port, "/metrics")[1]

    def answering(self) -> int:
        """Processes whose numbers are in a scrape; 0: none listens."""
        try:
            return int(value(self.metrics(), "caudal_gateway_processes"))
        except (OSError, http.client.HTTPException):
            return 0


@contextmanager
def running(folder: Path, replica: MockReplica, processes: int = 2, **more: str) -> Iterator[Front]:
    (folder / "routes.json").write_bytes(table({"m": [replica]}))
    front = Front(folder, processes)
    front.more = more
    try:
        front.start()
        yield front
    finally:
        assert front.parent is not None
        left = [*psutil.Process(front.parent.pid).children()] if front.parent.poll() is None else []
        front.parent.kill()
        front.parent.wait(10)
        psutil.wait_procs(left, 15)
        shutil.rmtree(front.temporary())


def until(holds: Any, said: Any = lambda: "", within_s: float = START_S) -> None:
    deadline = time.monotonic() + within_s
    while not holds():
        assert time.monotonic() < deadline, said()
        time.sleep(0.05)


def get(port: int, path: str, within_s: float = 5.0) -> tuple[int, str]:
    connection = http.client.HTTPConnection("127.0.0.1", port, timeout=within_s)
    try:
        connection.request("GET", path)
        answer = connection.getresponse()
        return answer.status, answer.read().decode()
    finally:
        connection.close()


def ask(port: int, times: int = 1, **more: Any) -> list[int]:
    """Chats one after the other on one connection; their statuses, 0 where it broke (and is made anew)."""
    statuses = []
    connection = http.client.HTTPConnection("127.0.0.1", port, timeout=20)
    for _ in range(times):
        try:
            head = {"content-type": "application/json"}
            connection.request("POST", "/v1/chat/completions", json.dumps(chat(**more)), head)
            answer = connection.getresponse()
            answer.read()
            statuses.append(answer.status)
        except (OSError, http.client.HTTPException):
            statuses.append(0)
            connection.close()
    connection.close()
    return statuses


def value(text: str, sample: str) -> float:
    found = re.search(rf"^{re.escape(sample)} (\S+)$", text, re.MULTILINE)
    assert found is not None, text
    return float(found[1])


ANSWERED = 'caudal_gateway_requests_total{model="m",status="200"}'


def test_two_processes_answer_on_one_port_and_either_tells_the_sum(
    tmp_path: Path, replica: MockReplica
) -> None:
    with running(tmp_path, replica) as front:
        for _ in range(40):
            assert ask(front.port) == [200]
        seen = {value(front.metrics(), ANSWERED) for _ in range(20)}  # 20 connections: both are asked
        text = front.metrics()
        own = {c.pid: connections(c, front.port) for c in front.children()}
        kept = [socket.create_connection(("127.0.0.1", front.port)) for _ in range(40)]
        until(lambda: sum(connections(c, front.port) for c in front.children()) >= 40 + sum(own.values()))
        shares = [connections(c, front.port) for c in front.children()]
        for one in kept:
            one.close()
        assert seen == {40.0}
        assert value(text, "caudal_gateway_first_byte_seconds_count") == 40
        assert value(text, 'caudal_gateway_replicas_ready{model="m"}') == 1  # the same one, not one each
        assert len(shares) == 2 and min(shares) > 0
        assert (tmp_path / "routes.json.1").stat().st_mode & 0o777 == 0o600
        assert stat_of_sockets(front) == 0o700


def connections(process: psutil.Process, port: int) -> int:
    rows = process.net_connections("tcp")
    return sum(r.status == psutil.CONN_ESTABLISHED and r.laddr.port == port for r in rows)


def stat_of_sockets(front: Front) -> int:
    (folder,) = front.temporary().iterdir()
    assert sorted(p.name for p in folder.iterdir()) == ["0", "1", "past"]
    return folder.stat().st_mode & 0o777


def test_a_process_that_hangs_is_left_out_of_the_sum(tmp_path: Path, replica: MockReplica) -> None:
    with running(tmp_path, replica) as front:
        hung = front.children()[0]
        hung.suspend()
        try:
            for _ in range(30):  # until the kernel gives us to the one that lives
                began = time.monotonic()
                with contextlib.suppress(TimeoutError):
                    text = get(front.port, "/metrics", 2.0)[1]
                    break
            took_s = time.monotonic() - began
        finally:
            hung.resume()
        assert value(text, "caudal_gateway_processes") == 1
        assert 0.25 < took_s < 1.5
        until(lambda: front.answering() == 2, front.log)


def test_a_process_that_is_killed_costs_what_was_on_it_and_comes_back(
    tmp_path: Path, replica: MockReplica
) -> None:
    with running(tmp_path, replica) as front:
        results: list[list[int]] = []
        threads = [
            threading.Thread(target=lambda: results.append(ask(front.port, 150, max_tokens=3, seed=5)))
            for _ in range(8)
        ]
        for thread in threads:
            thread.start()
        time.sleep(0.7)
        victim = front.children()[0]
        victim.kill()
        for thread in threads:
            thread.join(60)
        statuses = [status for result in results for status in result]
        assert len(statuses) == 1200
        assert set(statuses) <= {0, 200}
        # the request on each of its connections; and one more where a client came back while it was dying still
        assert all(result.count(0) <= 2 for result in results)
        until(lambda: front.answering() == 2, front.log)
        assert victim.pid not in [c.pid for c in front.children()]
        assert "ended with signal 9" in front.log()
        # what the killed one had counted is in the sum still, but for its last half second
        assert value(front.metrics(), ANSWERED) >= 600


def test_answers_end_within_their_grace(tmp_path: Path, replica: MockReplica) -> None:
    with running(tmp_path, replica) as front:
        results: list[list[int]] = []
        threads = [
            threading.Thread(target=lambda: results.append(ask(front.port, seed=2000))) for _ in range(6)
        ]
        for thread in threads:
            thread.start()
        until(lambda: replica.running == 6)
        began = time.monotonic()
        assert front.parent is not None
        front.parent.terminate()
        for thread in threads:
            thread.join(20)
        assert results == [[200]] * 6
        assert front.parent.wait(15) == 0
        assert 0.5 < time.monotonic() - began < 8
        with pytest.raises(OSError):
            get(front.port, "/health")
        assert list(front.temporary().iterdir()) == []


def test_a_parent_that_is_killed_leaves_nothing_and_can_be_replaced_at_once(
    tmp_path: Path, replica: MockReplica
) -> None:
    with running(tmp_path, replica) as front:
        assert front.parent is not None
        children = front.children()
        front.parent.kill()
        front.parent.wait(10)
        front.start()
        assert psutil.wait_procs(children, 15)[1] == []
        assert ask(front.port) == [200]
        until(lambda: len(list(front.temporary().iterdir())) == 1)  # the sockets of the new ones only


def test_a_port_that_is_taken_is_said_also_where_it_would_be_shared(tmp_path: Path) -> None:
    for shared in (False, True):
        with socket.socket() as other:
            if shared:
                other.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEPORT, 1)
            other.bind(("127.0.0.1", 0))
            other.listen()
            front = Front(tmp_path, port=other.getsockname()[1])
            assert front.start(wait=False).wait(30) == 1
            assert f"port {front.port} is taken" in front.log()
            assert f"process {os.getpid()}" in front.log()
            front.temporary().rmdir()


def test_one_that_dies_at_once_again_and_again_ends_the_gateway(tmp_path: Path, replica: MockReplica) -> None:
    with running(tmp_path, replica) as front:
        assert front.parent is not None
        deadline = time.monotonic() + 60
        while front.parent.poll() is None and time.monotonic() < deadline:
            for child in children_of(front.parent.pid)[1:]:
                child.send_signal(signal.SIGKILL)
            time.sleep(0.02)
        assert front.parent.poll() == 1
        assert "a process of the gateway cannot be kept running" in front.log()
        assert "ended with signal 9, 6 times in a row" in front.log()


def children_of(pid: int) -> list[psutil.Process]:
    """The oldest first."""
    try:
        return sorted(psutil.Process(pid).children(), key=lambda c: c.create_time())
    except psutil.NoSuchProcess:
        return []


@pytest.fixture
def control() -> Iterator[tuple[str, list[dict[str, Any]]]]:
    """An address that takes reports, and the statuses that it took."""
    taken: list[dict[str, Any]] = []

    class Taker(BaseHTTPRequestHandler):
        def do_POST(self) -> None:
            taken.append(json.loads(self.rfile.read(int(self.headers["content-length"])))["status"])
            self.send_response(204)
            self.end_headers()

        def log_message(self, *_: Any) -> None:
            pass

    server = ThreadingHTTPServer(("127.0.0.1", 0), Taker)
    thread = threading.Thread(target=server.serve_forever, daemon=True)
    thread.start()
    yield f"http://127.0.0.1:{server.server_port}/report", taken
    server.shutdown()
    server.server_close()
    thread.join(10)


def test_control_hears_of_one_gateway_with_the_sums(
    tmp_path: Path, replica: MockReplica, control: tuple[str, list[dict[str, Any]]]
) -> None:
    url, taken = control
    with running(tmp_path, replica, CAUDAL_REPORT_URL=url) as front:
        until(lambda: taken and taken[-1].get("ready"))
        for _ in range(30):
            assert ask(front.port) == [200]
        until(lambda: taken[-1]["requests"] == 30, lambda: str(taken[-1]))
        assert taken[-1]["url"] == f"http://127.0.0.1:{front.port}/v1"
        assert "metrics" not in taken[-1]
        threads = [threading.Thread(target=ask, args=(front.port,), kwargs={"seed": 4000}) for _ in range(9)]
        for thread in threads:
            thread.start()
        until(lambda: taken[-1]["demand"].get("m", [0])[0] == 9, lambda: str(taken[-1]))
        assert taken[-1]["load"]["m-0"][0] == 9
        until(lambda: taken[-1]["peaks"].get("m"), lambda: str(taken[-1]))
        for thread in threads:
            thread.join(20)
        requests = [status["requests"] for status in taken if "requests" in status]
        assert requests == sorted(requests)  # one voice: the processes do not report themselves
        assert front.parent is not None
        front.parent.terminate()
        assert front.parent.wait(15) == 0
        assert taken[-1]["ready"] is False


def test_a_response_that_one_process_kept_is_found_by_all(tmp_path: Path, replica: MockReplica) -> None:
    with running(tmp_path, replica) as front:
        connection = http.client.HTTPConnection("127.0.0.1", front.port, timeout=10)
        body = json.dumps({"model": "m", "input": "hi", "store": True})
        connection.request("POST", "/v1/responses", body, {"content-type": "application/json"})
        answer = connection.getresponse()
        kept = json.loads(answer.read())
        assert answer.status == 200, kept
        for _ in range(12):  # on new connections, so that both processes are asked
            status, text = get(front.port, f"/v1/responses/{kept['id']}")
            assert status == 200 and json.loads(text)["id"] == kept["id"]
        connection.close()


def test_the_worker_flag_is_no_way_in(tmp_path: Path) -> None:
    argv = [sys.executable, "-m", "caudal.gateway", str(tmp_path / "c.json"), "--worker", "0"]
    ended = subprocess.run(argv, stdin=subprocess.DEVNULL, capture_output=True, timeout=30, check=False)
    assert ended.returncode == 2
    assert b"its parent starts it" in ended.stderr
