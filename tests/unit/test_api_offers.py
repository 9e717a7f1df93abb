"""The offers in sight: what could be had now, and what stands against the rest."""

from __future__ import annotations

from dataclasses import replace
from decimal import Decimal
from typing import Any

from starlette.testclient import TestClient

from caudal.api.app import create_app
from caudal.api.context import Context
from caudal.domain.decision import AcquireNode, Intent, IntentState, Reason
from caudal.domain.fleet import Contract, Market, SiteSpec
from caudal.domain.snapshot import Snapshot
from caudal.policy import Rules
from tests.unit.policy_world import Play, lease, offer


def world() -> Play:
    play = Play(sites=("north", "south"))
    play.leases, play.machines = {}, {}
    sites = [SiteSpec(s, provider="cloud", region=f"{s}-1") for s in play.sites]
    play.fleet = replace(play.fleet, sites=tuple(sites))
    play.offers = [
        offer("south", "2.50", Market.ON_DEMAND, available=3),
        offer("north", "1", Market.SPOT),
        offer("elsewhere", "0.1", Market.SPOT),
    ]
    return play


def shown(snapshot: Snapshot | None) -> dict[str, Any]:
    nothing: Any = None
    context = Context(
        nothing, nothing, {}, nothing, "t", "1", lambda: None, seen=lambda: snapshot, rules=Rules()
    )
    answer = TestClient(create_app(context), base_url="http://127.0.0.1:8600").get("/api/v1/offers")
    assert answer.status_code == 200, answer.text
    found: dict[str, Any] = answer.json()
    return found


def test_before_the_first_look_nothing_is_known() -> None:
    assert shown(None) == {"shape": "offers/1", "at": None, "items": [], "silent": []}


def test_offers_of_the_fleets_sites_come_in_the_order_in_which_they_would_be_taken() -> None:
    play = world()
    answer = shown(play.snapshot())
    assert answer["at"] == play.now
    cheap, dear = answer["items"]
    assert (cheap["site"], cheap["market"], cheap["price_usd_per_hour"]) == ("north", "spot", "1")
    assert cheap["available"] is None and cheap["against"] == cheap["why"] == ""
    assert (dear["provider"], dear["region"], dear["machine_type"]) == ("cloud", "south-1", "m1")
    assert (dear["available"], dear["cpus"], dear["source"]) == (3, 1.0, "test")


def test_what_failed_lately_says_why_and_until_when_it_is_left_alone() -> None:
    play = world()
    refused = AcquireNode("lease-x", "north-9", play.offers[1])
    play.intents["i"] = Intent(
        "i", "token", refused, "north-9", Reason("node.needed", "x"), IntentState.FAILED,
        created_at=play.now - 10, changed_at=play.now - 10, error="no_capacity: none left in north-1",
    )  # fmt: skip
    found = {x["site"]: x for x in shown(play.snapshot())["items"]}
    assert found["north"]["against"] == "offer.failed_lately" and "none left" in found["north"]["why"]
    assert found["north"]["again_at"] == play.now - 10 + Rules().no_capacity_retry_s
    assert found["south"]["again_at"] is None


def test_none_left_and_silence_are_told_apart() -> None:
    play = world()
    play.offers[0] = replace(play.offers[0], available=0)
    assert {x["site"]: x["against"] for x in shown(play.snapshot())["items"]} == {
        "north": "",
        "south": "offer.none_left",
    }
    play.silent_providers = {"south"}
    answer = shown(play.snapshot())
    assert answer["silent"] == ["south"]
    assert {x["site"]: x["against"] for x in answer["items"]}["south"] == "site.silent"


def test_a_price_is_what_its_contract_makes_it() -> None:
    play = world()
    savings = Contract(
        "plan", "savings", "cloud", "1970-01-01", "2100-01-01", price_usd_per_hour=Decimal(100), discount=0.5
    )
    play.fleet = replace(play.fleet, contracts=(savings,))
    play.add_node(lease("north", 1))
    found = {x["site"]: x for x in shown(play.snapshot())["items"]}
    assert Decimal(found["south"]["price_usd_per_hour"]) == Decimal("1.25")
    assert found["south"]["contract"] == "plan"
