"""The WAN rig is what it says: delay, rate, loss, silence, accounts; and nothing of it stays behind."""

from __future__ import annotations

import os
import signal
import socket
import subprocess
import sys
import threading
import time
from collections.abc import Callable, Iterator
from contextlib import closing, contextmanager
from pathlib import Path

import pytest

from tests.support.wan import Wan, unusable

pytestmark = pytest.mark.skipif(bool(unusable()), reason=unusable())

ROOT = Path(__file__).resolve().parents[2]
Pair = tuple[socket.socket, socket.socket]


@contextmanager
def connected(wan: Wan, client: str, server: str) -> Iterator[Pair]:
    """A TCP connection from one site to another: both ends."""
    with closing(wan.socket(server)) as listener, closing(wan.socket(client)) as near:
        listener.bind((wan.address(server), 0))
        listener.listen()
        near.settimeout(10.0)
        near.connect((wan.address(server), listener.getsockname()[1]))
        near.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)
        far, _ = listener.accept()
        far.settimeout(10.0)
        with closing(far):
            yield near, far


def until(what: Callable[[], bool], seconds: float = 10.0) -> None:
    deadline = time.monotonic() + seconds
    while not what():
        assert time.monotonic() < deadline, "it did not come about"
        time.sleep(0.01)


def round_trips_ms(near: socket.socket, far: socket.socket, count: int = 9) -> list[float]:
    """What one byte there and back takes."""
    took = []
    for _ in range(count):
        start = time.monotonic()
        near.sendall(b"?")
        far.sendall(far.recv(1))
        near.recv(1)
        took.append((time.monotonic() - start) * 1e3)
    return took


def receive(sock: socket.socket, size: int) -> list[tuple[float, int]]:
    """(time, bytes so far) until `size` bytes are there."""
    seen, total = [], 0
    while total < size:
        data = sock.recv(1 << 18)
        assert data, "the connection ended"
        total += len(data)
        seen.append((time.monotonic(), total))
    return seen


def send(sock: socket.socket, size: int) -> threading.Thread:
    thread = threading.Thread(target=sock.sendall, args=(bytes(size),))
    thread.start()
    return thread


def test_a_round_trip_takes_twice_the_delay() -> None:
    with Wan(["a", "b"], delay_ms=25) as wan, connected(wan, "a", "b") as (near, far):
        assert 50 <= min(round_trips_ms(near, far)) < 60


@pytest.mark.parametrize("direction", ["up", "down"])
def test_a_line_carries_its_rate(direction: str) -> None:
    rate = {"mbit": {"a": 40}} if direction == "up" else {"down_mbit": {"b": 40}}
    with Wan(["a", "b"], delay_ms=5, **rate) as wan, connected(wan, "a", "b") as (near, far):  # type: ignore[arg-type]
        size = 8_000_000
        sending = send(near, size)
        seen = receive(far, size)
        sending.join()
        (start_at, start), (end_at, end) = next(s for s in seen if s[1] > size / 4), seen[-1]
        on_the_wire = (end - start) * 1500 / 1448  # each segment with its headers
        assert on_the_wire * 8e-6 / (end_at - start_at) == pytest.approx(40, rel=0.1)
        assert max(round_trips_ms(near, far)) < 200  # the line is empty again


def test_lost_packets_are_lost_and_counted() -> None:
    with Wan(["a", "b"], loss=0.2) as wan:
        with (
            closing(wan.socket("a", socket.SOCK_DGRAM)) as near,
            closing(wan.socket("b", socket.SOCK_DGRAM)) as far,
        ):
            far.bind((wan.address("b"), 0))
            far.setsockopt(socket.SOL_SOCKET, socket.SO_RCVBUF, 1 << 22)
            far.settimeout(0.3)
            for _ in range(1500):
                near.sendto(bytes(100), far.getsockname())
            arrived = 0
            try:
                while far.recv(200):
                    arrived += 1
            except TimeoutError:
                pass
        assert 0.75 < arrived / 1500 < 0.85
        counts = wan.bytes()
        assert counts["a"]["sent"] == counts["b"]["received"] == 128 * arrived
        assert counts["a"]["dropped"] == 128 * (1500 - arrived)


def test_a_stream_survives_loss_and_jitter_in_order() -> None:
    with Wan(["a", "b"], delay_ms=1, jitter_ms=3, loss=0.01) as wan, connected(wan, "a", "b") as (near, far):
        data = os.urandom(400_000)
        thread = threading.Thread(target=near.sendall, args=(data,))
        thread.start()
        got = b""
        while len(got) < len(data):
            got += far.recv(1 << 16)
        thread.join()
        assert got == data


def test_a_cut_site_is_silent_and_a_healed_one_goes_on() -> None:
    with Wan(["a", "b"], delay_ms=2) as wan, connected(wan, "a", "b") as (near, far):
        near.sendall(b"1")
        assert far.recv(1) == b"1"
        wan.cut("b")
        near.sendall(b"2")
        far.settimeout(0.4)
        with pytest.raises(TimeoutError):
            far.recv(1)  # neither data, nor an end, nor an error
        wan.heal("b")
        far.settimeout(10.0)
        assert far.recv(1) == b"2"


def test_two_sites_can_be_parted_while_a_third_sees_both() -> None:
    with Wan(["a", "b", "c"]) as wan:  # noqa: SIM117 (one line would be too long)
        with connected(wan, "a", "b") as ab, connected(wan, "a", "c") as ac, connected(wan, "b", "c") as bc:
            wan.cut("a", "b")
            ab[0].sendall(b"x")
            ab[1].settimeout(0.3)
            with pytest.raises(TimeoutError):
                ab[1].recv(1)
            assert round_trips_ms(*ac) and round_trips_ms(*bc)
            wan.heal()
            ab[1].settimeout(10.0)
            assert ab[1].recv(1) == b"x"


def test_the_accounts_say_what_was_on_the_wire() -> None:
    with Wan(["a", "b"], mbit=400) as wan, connected(wan, "a", "b") as (near, far):
        before = wan.bytes()
        sending = send(near, 1_000_000)
        receive(far, 1_000_000)
        sending.join()
        until(lambda: wan.bytes()["b"]["received"] == wan.bytes()["a"]["sent"])
        after = wan.bytes()
        sent = after["a"]["sent"] - before["a"]["sent"]
        # 1,448 bytes of payload a segment, however large the pieces are that the kernel hands over.
        assert sent == pytest.approx(1_000_000 * 1500 / 1448, rel=0.01)
        assert 0 < after["b"]["sent"] - before["b"]["sent"] < 0.03 * sent  # acknowledgements
        assert wan.cpu_s() < 5.0


def test_sites_see_only_each_other_and_wans_do_not_meet() -> None:
    with Wan(["a", "b"]) as one, Wan(["a", "b"]) as two:
        with closing(one.socket("a")) as listener, closing(two.socket("b")) as stranger:
            listener.bind((one.address("a"), 0))
            listener.listen()
            stranger.settimeout(0.3)
            with pytest.raises(OSError):
                stranger.connect((one.address("a"), listener.getsockname()[1]))
        with closing(one.socket("a")) as lost, pytest.raises(OSError, match="unreachable"):
            lost.connect(("192.0.2.1", 80))
        devices = subprocess.run([*one.enter("a"), "ip", "-o", "link"], capture_output=True, text=True)
        assert len(devices.stdout.splitlines()) == 2, devices.stdout  # lo and wan0


def test_a_site_can_be_killed_and_a_closed_wan_leaves_nothing() -> None:
    with Wan(["a", "b"]) as wan:
        lost, stays = (wan.popen(site, ["sleep", "60"]) for site in wan.sites)
        until(lambda: len(wan.pids("a")) == len(wan.pids("b")) == 1)
        assert wan.pids("a") == [lost.pid]  # entering keeps the pid
        wan.kill_site("a")
        assert lost.wait(5.0) == -signal.SIGKILL and stays.poll() is None
        router = wan.router_pid
    assert stays.wait(5.0) == -signal.SIGKILL
    assert not Path(f"/proc/{router}").exists()


ORPHAN = """
import sys, time
from tests.support.wan import Wan
with Wan(["a", "b"]) as wan:
    process = wan.popen("b", ["sleep", "60"])
    while process.pid not in wan.pids("b"):
        time.sleep(0.01)  # it has not gone in yet
    print(wan.router_pid, process.pid, flush=True)
    sys.stdin.read()
"""


def test_a_killed_parent_leaves_nothing() -> None:
    parent = subprocess.Popen(
        [sys.executable, "-c", ORPHAN], cwd=ROOT, stdin=subprocess.PIPE, stdout=subprocess.PIPE
    )
    assert parent.stdout is not None and parent.stdin is not None
    pids = parent.stdout.readline().split()
    parent.kill()
    parent.wait()
    until(lambda: not any(Path(f"/proc/{int(pid)}/exe").exists() for pid in pids))
    parent.stdout.close()
    parent.stdin.close()


def test_the_command_line_takes_orders() -> None:
    command = [sys.executable, "tests/support/wan.py", "a,b", "--delay-ms", "1"]
    orders = "bytes\ncut b\nheal b\nsing\n"
    done = subprocess.run(command, cwd=ROOT, input=orders, capture_output=True, text=True, timeout=30)
    lines = done.stdout.splitlines()
    assert lines[0].startswith("a 10.77.0.1 nsenter --net=/proc/") and lines[2] == "up", done
    assert '"received"' in lines[3] and lines[4:6] == ["cut b", "heal b"] and lines[6].startswith("cut SITE")
