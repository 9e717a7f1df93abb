"""Sums over a gateway's processes, what outlives one, and when one is started again."""

from __future__ import annotations

from pathlib import Path

from hypothesis import given
from hypothesis import strategies as st

from caudal.gateway.book import Book
from caudal.gateway.metrics import Metrics
from caudal.gateway.place import Place
from caudal.gateway.restarts import LIVED_S, LONGEST_S, MOST, Restarts
from caudal.gateway.sums import MAX_TOLD, counted, sum_of, sum_of_texts

NUMBER = st.integers(0, 1000)
MODEL = st.sampled_from(["a", "b", "c"])
REPORT = st.fixed_dictionaries(
    {
        "ready": st.booleans(),
        "requests": NUMBER,
        "streams": NUMBER,
        "hedged": NUMBER,
        "load": st.dictionaries(MODEL, st.tuples(NUMBER, NUMBER, st.floats(0, 100)).map(list)),
        "demand": st.dictionaries(MODEL, st.tuples(NUMBER, st.floats(0, 100), st.floats(0, 50)).map(list)),
        "waking": st.lists(MODEL, max_size=3),
    }
)


@given(st.lists(REPORT, max_size=5))
def test_what_is_in_flight_is_added_and_nothing_is_left_out(reports: list[dict]) -> None:  # type: ignore[type-arg]
    told = sum_of(reports)
    for key in ("requests", "streams", "hedged"):
        assert told[key] == sum(r[key] for r in reports)
    for gang, (requests, tokens, speed) in told["load"].items():
        rows = [r["load"][gang] for r in reports if gang in r["load"]]
        assert (requests, tokens) == (sum(x[0] for x in rows), sum(x[1] for x in rows))
        seen = [x[2] for x in rows if x[2] > 0]
        assert (min(seen) - 0.1 <= speed <= max(seen) + 0.1) if seen else speed == 0
    for model, (requests, _, idle_s) in told["demand"].items():
        rows = [r["demand"][model] for r in reports if model in r["demand"]]
        assert requests == sum(x[0] for x in rows)
        assert idle_s == min(x[2] for x in rows)
    assert told["waking"] == sorted({m for r in reports for m in r["waking"]})


def test_no_more_is_told_than_control_takes() -> None:
    many = {f"m{i}": [i, 1.0, 0.0] for i in range(100)}
    told = sum_of([{"load": many, "demand": many, "waking": list(many)}])
    assert [len(told[key]) for key in ("load", "demand", "waking")] == [MAX_TOLD] * 3
    assert "m99" in told["load"] and "m99" in told["demand"]  # the busiest are told


@given(st.lists(st.tuples(st.integers(0, 2), st.one_of(st.none(), REPORT)), max_size=30))
def test_numbers_that_grow_never_fall_whoever_dies(steps: list[tuple[int, dict | None]]) -> None:  # type: ignore[type-arg]
    book = Book(3)
    since: dict[int, dict[str, int]] = {}
    before = {"requests": 0, "hedged": 0}
    for at, (number, report) in enumerate(steps):
        if report is None:
            book.gone(number)
            since.pop(number, None)
        else:
            row = since.setdefault(number, {"requests": 0, "hedged": 0})
            for key in row:  # a process's own numbers grow while it lives
                row[key] += report[key]
            book.heard(number, {**report, **row})
        told = book.report(float(at))
        assert all(told[key] >= before[key] for key in before)
        before = {key: told[key] for key in before}


def test_ready_begins_when_all_listen_and_lasts_while_one_does() -> None:
    book = Book(2)
    assert book.heard(0, {"ready": True}) and not book.ready
    assert book.heard(1, {"ready": True}) and book.ready
    assert not book.heard(1, {"ready": True})
    book.gone(0)
    assert book.ready
    book.gone(1)
    assert not book.ready
    book.heard(0, {"ready": True})
    assert book.ready


def test_a_sleeping_model_that_is_asked_for_is_news() -> None:
    book = Book(1)
    book.heard(0, {"ready": True, "waking": []})
    assert book.heard(0, {"ready": True, "waking": ["m"]})
    assert not book.heard(0, {"ready": True, "waking": ["m"]})
    assert book.report(0.0)["waking"] == ["m"]


def test_the_peak_is_of_the_whole_not_the_sum_of_peaks_and_outlives_its_process() -> None:
    book = Book(2)
    for at, loads in ((0.0, (4.0, 1.0)), (10.0, (1.0, 4.0)), (20.0, (0.0, 0.0))):
        for number, load in enumerate(loads):
            book.heard(number, {"demand": {"m": [0, load, 0.0]}})
        book.report(at)
    book.gone(0)
    book.gone(1)
    told = book.report(30.0)
    assert told["peaks"]["m"] == [20.0, 5.0]  # 5 at 10 s, as at 0 s; the sum of both's peaks would be 8
    assert told["demand"]["m"] == [0, 0.0, 10.0]  # idle since 20 s, though nobody lives who saw it


def test_a_model_that_nobody_ever_asked_for_is_not_called_idle() -> None:
    book = Book(1)
    book.heard(0, {"demand": {"m": [0, 0.0, -1.0]}})
    assert book.report(5.0)["demand"]["m"] == [0, 0.0, -1.0]


def scrape(ok: int, connections: int) -> bytes:
    metrics = Metrics()
    for _ in range(ok):
        metrics.answered('m"\\ x', 200)
        metrics.first_byte(0.02)
    return metrics.render(connections, [('m"\\ x', 2, 1)])


def test_texts_are_added_sample_by_sample() -> None:
    one, two = scrape(3, 5).decode(), scrape(4, 7).decode()
    lines = sum_of_texts([one.encode(), two.encode(), b"", b"\xff garbage\nx y z\n"]).decode().splitlines()
    assert 'caudal_gateway_requests_total{model="m\\"\\\\ x",status="200"} 7' in lines
    assert "caudal_gateway_connections 12" in lines
    assert "caudal_gateway_processes 2" in lines
    assert 'caudal_gateway_replicas_ready{model="m\\"\\\\ x"} 2' in lines  # both have the same
    assert 'caudal_gateway_first_byte_seconds_bucket{le="0.025"} 7' in lines
    assert not any("garbage" in line for line in lines)
    assert len(lines) == len(set(lines)) == len(one.splitlines())
    assert sum_of_texts([one.encode()]).decode().splitlines() == [
        line.replace(" 0.0", " 0") if line.endswith("_sum 0.0") else line for line in one.splitlines()
    ]


def test_of_a_process_that_is_gone_only_what_it_counted_stays() -> None:
    book = Book(2)
    book.heard(0, {"metrics": scrape(3, 5).decode()})
    book.gone(0)
    book.heard(0, {"metrics": scrape(2, 5).decode()})
    book.gone(0)
    text = sum_of_texts([book.past, scrape(1, 1)]).decode().splitlines()
    assert 'caudal_gateway_requests_total{model="m\\"\\\\ x",status="200"} 6' in text
    assert "caudal_gateway_first_byte_seconds_count 6" in text
    assert "caudal_gateway_connections 1" in text and "caudal_gateway_processes 1" in text
    assert b"gauge" not in counted(scrape(1, 1))


@given(st.lists(st.floats(0, 60), min_size=1, max_size=30))
def test_early_deaths_wait_longer_and_longer_and_then_end(lives: list[float]) -> None:
    restarts = Restarts()
    row = 0
    for lived_s in lives:
        row = 1 if lived_s >= LIVED_S else row + 1
        wait_s = restarts.died(lived_s)
        if row >= MOST:
            assert wait_s is None
            return
        assert wait_s is not None and 0.1 <= wait_s <= LONGEST_S
        assert (wait_s == 0.1) == (row == 1)


def test_state_files_are_each_processes_own_and_begin_with_what_one_process_knew(tmp_path: Path) -> None:
    plain = tmp_path / "routes.json"
    first, second = Place(0, 2, 1, "x"), Place(1, 2, 1, "x")
    assert first.own(str(plain)) == str(plain)
    assert second.own(str(plain)) == f"{plain}.1"
    assert not (tmp_path / "routes.json.1").exists()
    assert second.own("") == ""
    plain.write_text("old")
    own = Path(second.own(str(plain)))
    assert own.read_text() == "old" and own.stat().st_mode & 0o777 == 0o600
    own.write_text("newer")
    assert Path(second.own(str(plain))).read_text() == "newer"
    assert sorted(p.name for p in tmp_path.iterdir()) == ["routes.json", "routes.json.1"]
