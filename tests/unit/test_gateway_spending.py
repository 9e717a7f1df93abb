"""Money: exact, bounded, and still there after kill -9."""

from __future__ import annotations

import os
import signal
import sqlite3
import subprocess
import sys
import time
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from caudal.domain.errors import StorageFailed
from caudal.gateway.routes import ExternalRoute, ReplicaRoute
from caudal.gateway.spending import PICO, Spending, budget, cost, month_of
from caudal.store.spending import MONTHS_KEPT, SpendingBook
from tests.support.fleet import free_port

NOVEMBER = 1_795_500_000.0  # 2026-11-24
ROUTE = ReplicaRoute(
    "external.a.m", "https://h/v1", external=ExternalRoute("", "", 0.15, 0.6, budget_usd_per_month=0.01)
)


def spending(tmp_path: Path, at: float = NOVEMBER) -> Spending:
    return Spending(tmp_path / "spending.sqlite", lambda: at)


def test_prices_are_exact() -> None:
    external = ExternalRoute(usd_per_million_in=0.15, usd_per_million_out=0.6)
    assert cost(external, 1_000_000, 0) == 15 * PICO // 100
    assert cost(external, 0, 1_000_000) == 6 * PICO // 10
    assert cost(external, 3, 7) == 3 * 150_000 + 7 * 600_000
    assert budget(external) is None and budget(ExternalRoute(budget_usd_per_month=0.01)) == PICO // 100
    assert month_of(NOVEMBER) == "2026-11" and month_of(0) == "1970-01"


def test_what_is_reserved_counts_until_it_is_settled(tmp_path: Path) -> None:
    one = spending(tmp_path)
    most = PICO // 200
    held = one.reserve(ROUTE, most)
    other = one.reserve(ROUTE, most)
    assert held and other and one.reserve(ROUTE, 1) is None and not one.affords(ROUTE, 1)
    held.settle(1000)
    held.settle(1000)  # twice counts once
    assert one.affords(ROUTE, most - 1000) and not one.affords(ROUTE, most - 999)
    other.settle(0)
    assert one.report()["usd"] == {"external.a.m": 1000 / PICO} and one.report()["month"] == "2026-11"
    text = one.render().decode()
    assert 'caudal_gateway_external_spent_usd{address="external.a.m"} 1e-09' in text
    assert 'caudal_gateway_external_budget_usd{address="external.a.m"} 0.01' in text


def test_a_new_month_begins_at_nothing(tmp_path: Path) -> None:
    one = spending(tmp_path)
    assert one.reserve(ROUTE, PICO // 100) and not one.affords(ROUTE, 1)
    later = spending(tmp_path, NOVEMBER + 31 * 86400)
    assert later.affords(ROUTE, PICO // 100) and later.reserve(ROUTE, PICO // 100)


def test_what_other_machines_spent_counts_too(tmp_path: Path) -> None:
    one = spending(tmp_path)
    held = one.reserve(ROUTE, 0)
    assert held is not None
    book = one.report()["book"]
    said = ExternalRoute(
        "", "", 0.15, 0.6, 0.01, spent_month="2026-11", spent_usd={"other": 0.009, book: 5.0}
    )
    route = ReplicaRoute("external.a.m", "https://h/v1", external=said)
    assert one.affords(route, PICO // 1000) and not one.affords(route, PICO // 1000 + 1)
    assert one.reserve(route, PICO // 1000) and one.reserve(route, 1) is None
    assert spending(tmp_path, NOVEMBER + 31 * 86400).affords(route, PICO // 100), "that was last month"


def test_nothing_is_opened_before_it_is_needed(tmp_path: Path) -> None:
    one = spending(tmp_path)
    assert one.report() == {} and one.render() == b"" and list(tmp_path.iterdir()) == []
    one.close()


def test_where_the_book_cannot_be_kept_nothing_is_spent(tmp_path: Path) -> None:
    (tmp_path / "spending.sqlite").write_bytes(b"this is not a database, and long enough" * 100)
    one = spending(tmp_path)
    assert not one.affords(ROUTE, 1) and one.reserve(ROUTE, 1) is None and one.report() == {}
    with pytest.raises(StorageFailed, match="what was spent"):
        SpendingBook(tmp_path / "spending.sqlite")


def test_after_kill_9_nothing_is_forgotten(tmp_path: Path) -> None:
    """A process reserves and settles without end and is killed; every word that it had said is in the book."""
    program = (
        "import sys; from pathlib import Path; from caudal.store.spending import SpendingBook\n"
        "book = SpendingBook(Path(sys.argv[1]))\n"
        "for i in range(10**9):\n"
        "    number = book.reserve('a', '2026-11', 100, None)\n"
        "    print('r', flush=True)\n"
        "    if i % 3:\n"
        "        book.settle(number, 7)\n"
        "        print('s', flush=True)\n"
    )
    path = tmp_path / "book.sqlite"
    command = [sys.executable, "-c", program, str(path)]
    process = subprocess.Popen(command, stdout=subprocess.PIPE, text=True)
    assert process.stdout is not None
    said = [process.stdout.readline().strip() for _ in range(200)]
    os.kill(process.pid, signal.SIGKILL)
    said += process.stdout.read().split()
    process.wait()
    process.stdout.close()
    reserved, settled = said.count("r"), said.count("s")
    book = SpendingBook(path)
    least = (reserved - settled) * 100 + settled * 7
    # What it did after its last word that we heard: one step at most.
    assert book.spent("a", "2026-11") in (least, least + 100, least - 93)


def test_processes_share_one_budget_to_the_last_picodollar(tmp_path: Path) -> None:
    path = tmp_path / "book.sqlite"
    SpendingBook(path).close()

    def spend(_: int) -> int:
        book = SpendingBook(path)
        got = sum(book.reserve("a", "m", 3, 100) is not None for _ in range(20))
        book.close()
        return got

    with ThreadPoolExecutor(4) as pool:
        assert sum(pool.map(spend, range(4))) == 33
    assert SpendingBook(path).spent("a", "m") == 99


def test_old_months_are_forgotten(tmp_path: Path) -> None:
    book = SpendingBook(tmp_path / "book.sqlite")
    months = [f"{2000 + i // 12}-{i % 12 + 1:02}" for i in range(MONTHS_KEPT + 3)]
    for month in months:
        number = book.reserve("a", month, 5, None)
        assert number is not None
        book.settle(number, 5)
        book.reserve("a", month, 1, None)
    book.prune()
    assert [book.spent("a", m) for m in months] == [0] * 3 + [6] * MONTHS_KEPT


STEPS = st.lists(st.tuples(st.integers(0, 60), st.floats(0, 1.2), st.booleans()), max_size=30)


@settings(max_examples=40, deadline=None)
@given(STEPS, st.integers(0, 200))
def test_the_budget_holds_where_requests_stay_below_their_most(
    tmp_path_factory: pytest.TempPathFactory, steps: list[tuple[int, float, bool]], limit: int
) -> None:
    """Each step reserves, and settles at a share of its most (above it where a provider counts otherwise)."""
    book = SpendingBook(tmp_path_factory.mktemp("book") / "book.sqlite")
    spent = held = excess = 0
    for most, share, settles in steps:
        number = book.reserve("a", "m", most, limit)
        assert (number is not None) == (spent + held + most <= limit)
        if number is None:
            continue
        if settles:
            cost_of_it = int(most * share)
            book.settle(number, cost_of_it)
            spent += cost_of_it
            excess += max(0, cost_of_it - most)
        else:
            held += most
        assert book.spent("a", "m") == spent + held <= limit + excess
        assert book.month("m").get("a", 0) == spent + held
    book.close()


def test_amounts_that_are_too_large_are_refused(tmp_path: Path) -> None:
    book = SpendingBook(tmp_path / "book.sqlite")
    with pytest.raises(StorageFailed):
        book.reserve("a", "m", 1 << 70, None)
    assert book.spent("a", "m") == 0
    assert sqlite3.sqlite_version_info >= (3, 35), "RETURNING"


def test_a_gateway_that_is_killed_has_spent_the_most_that_it_had_under_way(tmp_path: Path) -> None:
    """A real gateway process, killed while an answer is awaited; the next one on this machine knows."""
    import json
    import threading
    from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer

    import httpx

    asked = threading.Event()

    class Slow(BaseHTTPRequestHandler):
        def do_POST(self) -> None:
            asked.set()
            threading.Event().wait(10)

        def log_message(self, format: str, *args: object) -> None:
            pass

    provider = ThreadingHTTPServer(("127.0.0.1", 0), Slow)
    provider.daemon_threads = True
    threading.Thread(target=provider.serve_forever, args=(0.02,), daemon=True).start()
    external = {"usd_per_million_in": 1.0, "usd_per_million_out": 2.0, "budget_usd_per_month": 0.001}
    url = f"http://127.0.0.1:{provider.server_port}/v1"
    replica = {"gang": "external.a.m", "url": url, "engine": "openai", "slots": 9, "external": external}
    table = {"version": 1, "models": [{"id": "m", "context": 400, "replicas": [replica]}]}
    (tmp_path / "routes.json").write_text(json.dumps(table))
    port = free_port()
    config = {"host": "127.0.0.1", "port": port, "routes_url": "http://127.0.0.1:9/", "site": "", "gang": "g"}
    (tmp_path / "config.json").write_text(json.dumps({**config, "state_file": str(tmp_path / "routes.json")}))
    body = {"model": "m", "messages": [{"role": "user", "content": "hi"}], "max_tokens": 300}

    def run() -> subprocess.Popen[bytes]:
        command = [sys.executable, "-m", "caudal.gateway", str(tmp_path / "config.json")]
        process = subprocess.Popen(command, stderr=subprocess.DEVNULL)
        for _ in range(200):
            try:
                httpx.get(f"http://127.0.0.1:{port}/health", trust_env=False)
                break
            except httpx.TransportError:
                time.sleep(0.05)
        return process

    def ask() -> httpx.Response:
        path = f"http://127.0.0.1:{port}/v1/chat/completions"
        return httpx.post(path, json=body, timeout=20, trust_env=False)

    def ask_in_vain() -> None:
        with pytest.raises(httpx.TransportError):
            ask()

    first = run()
    try:
        cut_off = threading.Thread(target=ask_in_vain)
        cut_off.start()
        assert asked.wait(10)
        first.kill()
        first.wait()
        cut_off.join()
    finally:
        first.kill()
    book = SpendingBook(tmp_path / "gateway-spending.sqlite")
    (spent,) = book.month(month_of(time.time())).values()
    book.close()
    sent = len(httpx.Request("POST", url, json=body).content)
    assert spent == sent * 1_000_000 + 300 * 2_000_000
    second = run()
    try:
        refused = ask()
        assert refused.status_code == 503 and refused.json()["error"]["code"] == "budget_spent"
    finally:
        second.kill()
        second.wait()
        provider.shutdown()
        provider.server_close()
