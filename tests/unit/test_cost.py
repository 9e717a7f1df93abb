"""The bill over the store, the API and the command line; and who pays for what, by hand."""

from __future__ import annotations

import csv
import io
import json
from dataclasses import replace
from decimal import Decimal
from pathlib import Path

import httpx
import pytest

from caudal.api.costs import cost_view
from caudal.cli import main
from caudal.domain.bill import Books, bill
from caudal.domain.errors import UsageError
from caudal.domain.fleet import Contract, FleetSpec, LeaseState, MachineType, Market, Resources, SiteSpec
from caudal.domain.standing import standing
from caudal.domain.term import moment
from caudal.ports import Change
from caudal.store.home import Home
from caudal.store.state import open_store
from tests.support import rows
from tests.support.served import Served

DAY = moment("2027-03-01")
HOUR = 3600.0
EIGHT = MachineType("p5", Resources(cpus=8, memory_bytes=80 << 30, accelerators=8))

BLOCK = Contract(
    "block",
    "reserved",
    "cloud",
    "2027-03-01",
    "2027-03-11",
    machine_type="p5",
    count=2,
    price_usd_per_hour=Decimal("30"),
)


def lease(name: str, since_h: float, until_h: float | None, price: str = "30", **more: object) -> object:
    ended = None if until_h is None else DAY + until_h * HOUR
    return rows.lease(
        name,
        machine_type=EIGHT,
        provider="cloud",
        price_usd_per_hour=Decimal(price),
        market=Market.RESERVED,
        requested_at=DAY + since_h * HOUR,
        active_at=DAY + since_h * HOUR,
        ended_at=ended,
        state=LeaseState.ACTIVE if ended is None else LeaseState.ENDED,
        **more,
    )


def gang(
    slot: str, lease_id: str, since_h: float, until_h: float | None, accelerators: int, team: str
) -> object:
    return rows.gang(
        slot,
        lease_id=lease_id,
        team=team,
        resources=Resources(1, 1 << 30, accelerators),
        created_at=DAY + since_h * HOUR,
        ended_at=None if until_h is None else DAY + until_h * HOUR,
    )


BOOKS = Books(
    leases=[lease("a", 0, 10, contract="block"), lease("b", 0, 4, "7.50")],  # type: ignore[list-item]
    gangs=[gang("run.worker.0", "a", 2, 10, 4, "red"), gang("chat.worker.0", "a", 6, 10, 4, "blue")],  # type: ignore[list-item]
    contracts=[BLOCK],
)


def test_who_had_a_machine_pays_for_it_and_what_nobody_had_is_said() -> None:
    day = bill(BOOKS, DAY, DAY + 10 * HOUR)
    # machine a: 2 h idle, 4 h half run, 4 h half run and half chat; the contract's second machine 10 h unused
    assert day.by("workload") == {"(unused)": 30000, "(idle)": 6000 + 6000 + 3000, "run": 12000, "chat": 6000}
    assert day.by("team") == {"(unused)": 30000, "(idle)": 15000, "red": 12000, "blue": 6000}
    assert day.by("contract") == {"block": 60000, "(by the hour)": 3000}
    assert day.by("day") == {"2027-03-01": 63000}
    assert day.by("provider") == {"cloud": 63000}


def test_three_thirds_of_a_cent_are_a_cent() -> None:
    thirds = [
        gang(f"{n}.worker.0", "b", 0, 4, 0, n)  # the same size each, together the machine
        for n in ("x", "y", "z")
    ]
    same = [replace(g, resources=Resources(8, 0, 0)) for g in thirds]  # type: ignore[type-var]
    cents = bill(Books([lease("b", 0, 4, "0.0025")], same), DAY, DAY + 4 * HOUR)  # type: ignore[list-item]
    assert cents.by("workload") == {"x": 1}
    assert cents.total_cents == 1


def test_where_a_contract_stands_and_comes_to() -> None:
    stands = standing(BOOKS, BLOCK, DAY + 10 * HOUR)
    assert (stands.state, stands.committed_usd, stands.used_usd) == (
        "in force",
        Decimal("600.00"),
        Decimal("300.00"),
    )
    assert stands.used_share == 0.5
    assert stands.run_rate_usd_per_day == Decimal("720.00")
    assert stands.term_usd == Decimal("14400.00")
    assert stands.forecast_used_usd == Decimal("7200.00")  # half of it, as so far
    assert stands.forecast_unused_usd == Decimal("7200.00")
    assert standing(BOOKS, BLOCK, DAY - 1).used_share is None


def test_a_spend_is_drawn_down_and_what_is_short_is_owed_at_the_end() -> None:
    spend = Contract("deal", "spend", "cloud", "2027-03-01", "2027-03-03", commitment_usd=Decimal(100))
    books = replace(BOOKS, leases=[BOOKS.leases[1]], gangs=[], contracts=[spend])
    assert bill(books, DAY, DAY + 24 * HOUR).by("contract") == {"deal": 3000}
    end = moment("2027-03-03")
    whole = bill(books, DAY, end)
    assert whole.by("workload") == {"(unused)": 7000, "(idle)": 3000}
    stands = standing(books, spend, DAY + 24 * HOUR)
    assert (stands.committed_usd, stands.used_usd, stands.forecast_unused_usd) == (
        Decimal("100.00"),
        Decimal("30.00"),
        Decimal("40.00"),
    )


def test_a_prepayment_is_spread_over_the_term() -> None:
    paid = replace(BLOCK, price_usd_per_hour=Decimal(0), prepayment_usd=Decimal(4800))  # $10 a machine-hour
    books = Books([lease("a", 0, 24, "10", contract="block")], [], [paid])  # type: ignore[list-item]
    assert bill(books, DAY, DAY + 24 * HOUR).by("workload") == {"(idle)": 24000, "(unused)": 24000}
    assert standing(books, paid, DAY + 24 * HOUR).prepayment_usd == Decimal(4800)


def fill(home: Path) -> Home:
    place = Home(home)
    home.mkdir(exist_ok=True)
    store = open_store(place.database_url)
    fleet = FleetSpec("f", (SiteSpec("north", provider="cloud"),), contracts=(BLOCK,))
    store.commit(Change(fleet=fleet, leases=BOOKS.leases, gangs=BOOKS.gangs))
    store.close()
    return place


def test_the_bill_is_read_from_the_state_directory_where_no_control_process_runs(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    fill(tmp_path)

    def caudal(*words: str) -> str:
        with pytest.raises(SystemExit) as ended:
            main(["--home", str(tmp_path), *words])
        assert ended.value.code == 0
        return capsys.readouterr().out

    window = ("--since", "2020-01-01", "--until", "2027-03-02")
    # the clock is the machine's: what is to come is on no bill, so only the contract's row is sure
    answer = json.loads(caudal("cost", "--json", "--by", "team", *window))
    assert (answer["shape"], answer["by"]) == ("cost/1", "team")
    assert sum(Decimal(r["usd"]) for r in answer["rows"]) == Decimal(answer["total_usd"])
    assert answer["contracts"][0]["term_usd"] == "14400.00"
    assert "block" in caudal("cost", *window)
    cells = list(csv.DictReader(io.StringIO(caudal("cost", "--csv", *window))))
    assert sum((Decimal(c["usd"]) for c in cells), Decimal(0)) == Decimal(answer["total_usd"])


@pytest.mark.parametrize(
    ("words", "said"),
    [
        (("--since", "soon"), "'soon' is not a day such as 2027-01-31"),
        (("--since", "2026-02-01", "--until", "2026-01-01"), "end comes before its start"),
        (("--since", "1990-01-01"), "3660 days at most"),
    ],
)
def test_windows_that_are_none_are_refused(
    tmp_path: Path, capsys: pytest.CaptureFixture[str], words: tuple[str, ...], said: str
) -> None:
    fill(tmp_path)
    with pytest.raises(SystemExit) as ended:
        main(["--home", str(tmp_path), "cost", *words])
    assert ended.value.code == 2
    assert said in capsys.readouterr().err


def test_the_view_of_a_window_adds_up(tmp_path: Path) -> None:
    store = open_store(fill(tmp_path).database_url)
    now = DAY + 10 * HOUR
    whole = cost_view(store, now, "workload", DAY, None, cells=True)
    assert whole.total_usd == "630.00"
    assert {r.name: r.usd for r in whole.rows} == {
        "(unused)": "300.00",
        "(idle)": "150.00",
        "run": "120.00",
        "chat": "60.00",
    }
    parts = [
        cost_view(store, now, "day", DAY, DAY + 3 * HOUR + 0.123),
        cost_view(store, now, "day", DAY + 3 * HOUR + 0.123, now),
    ]
    assert sum(Decimal(p.total_usd) for p in parts) == Decimal("630.00")
    assert sum(Decimal(x.usd) for x in whole.lines) == Decimal("630.00")
    with pytest.raises(UsageError):
        cost_view(store, now, "day", now + 10, None)
    store.close()


def test_the_api_answers_with_a_versioned_shape(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    served = Served(tmp_path / "home", capsys)
    served.fill()
    served.start()
    try:
        url = (served.home.root / "control.url").read_text()
        answer = httpx.get(f"{url}/api/v1/cost", params={"by": "day"}, trust_env=False).json()
        assert answer["shape"] == "cost/1"
        assert httpx.get(f"{url}/api/v1/cost?by=moon", trust_env=False).status_code == 400
        assert httpx.get(f"{url}/api/v1/cost?since=nan", trust_env=False).status_code == 400
        assert httpx.post(f"{url}/api/v1/leave", trust_env=False).status_code == 401
    finally:
        served.stop()
