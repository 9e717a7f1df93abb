"""Capacity blocks: listed for everybody, bought by nobody by accident. And the account's quotas."""

from __future__ import annotations

import json
from pathlib import Path

import pytest

from caudal.cli import main
from caudal.domain.errors import NotFound, NotOffered, Stale, Unreachable, UsageError
from caudal.domain.fleet import Market
from caudal.providers.aws.blocks import BlockOffering, BlockWish, buy, offerings
from caudal.providers.aws.clients import Clients, Patience
from caudal.providers.aws.quotas import vcpu_quotas
from tests.support.aws import FLEET, REGION, Aws, TestClock, fresh_aws

WISH = BlockWish(REGION, "p5.48xlarge", 2, 48)


@pytest.fixture
def aws() -> Aws:
    return fresh_aws()


def listed(aws: Aws) -> list[BlockOffering]:
    return offerings(aws.provider().clients, WISH)


def purchases(aws: Aws) -> int:
    return len(aws.calls("PurchaseCapacityBlock"))


def test_the_cheapest_comes_first(aws: Aws) -> None:
    found = listed(aws)
    assert len(found) == 3
    assert [one.price_usd for one in found] == sorted(one.price_usd for one in found)
    for one in found:
        assert (one.count, one.hours, one.machine_type) == (2, 48, "p5.48xlarge")
        assert one.end - one.start == 48 * 3600
        assert abs(one.price_usd_per_machine_hour * 96 - one.price_usd) < 1


def test_a_block_is_bought_at_the_price_that_was_confirmed(aws: Aws) -> None:
    found = listed(aws)
    bought = buy(aws.provider().clients, FLEET, found, found[0].id, str(found[0].price_usd))
    assert bought.reservation_id.startswith("cr-")
    assert (bought.offering, bought.state, purchases(aws)) == (found[0], "scheduled", 1)


@pytest.mark.parametrize("price", ["0", "1", "3804.35", "3804.37", "99999999"])
def test_any_other_price_buys_nothing(aws: Aws, price: str) -> None:
    found = listed(aws)
    with pytest.raises(Stale) as told:
        buy(aws.provider().clients, FLEET, found, found[0].id, price)
    assert f"--price {found[0].price_usd}" in told.value.remedy
    assert purchases(aws) == 0


def test_what_is_no_price_or_no_offering_buys_nothing(aws: Aws) -> None:
    found = listed(aws)
    with pytest.raises(UsageError):
        buy(aws.provider().clients, FLEET, found, found[0].id, "cheap")
    with pytest.raises(NotFound):
        buy(aws.provider().clients, FLEET, found, "cbr-unheard-of", str(found[0].price_usd))
    assert purchases(aws) == 0


def test_a_purchase_is_never_repeated_by_itself(aws: Aws) -> None:
    clients = Clients("cloud", "", aws.server.url, TestClock(), Patience(2.0, 5.0, attempts=4))
    found = offerings(clients, WISH)
    aws.admin("fault", action="PurchaseCapacityBlock", when="after", times=10)
    with pytest.raises(Unreachable):
        buy(clients, FLEET, found, found[0].id, str(found[0].price_usd))
    assert purchases(aws) == 1


def test_types_that_are_not_sold_in_blocks(aws: Aws) -> None:
    with pytest.raises(NotOffered):
        offerings(aws.provider().clients, BlockWish(REGION, "c7i.large", 1, 24))
    with pytest.raises(UsageError):
        offerings(aws.provider().clients, BlockWish(REGION, "p5.48xlarge", 0, 24))


FILE = """
type: fleet
name: demo
providers:
  - {{name: cloud, kind: aws, endpoint: "{url}"}}
sites:
  - {{name: north, provider: cloud, region: us-east-1, zone: us-east-1a, machine_types: [p5.48xlarge, c7i.large],
     image: ami-0123}}
"""


@pytest.fixture
def fleet_file(aws: Aws, tmp_path: Path) -> Path:
    path = tmp_path / "fleet.yaml"
    path.write_text(FILE.format(url=aws.server.url))
    return path


def caudal(capsys: pytest.CaptureFixture[str], *words: str) -> tuple[int, str, str]:
    with pytest.raises(SystemExit) as end:
        main(list(words))
    said = capsys.readouterr()
    assert isinstance(end.value.code, int)
    return end.value.code, said.out, said.err


def test_the_verb_lists_and_buys(aws: Aws, fleet_file: Path, capsys: pytest.CaptureFixture[str]) -> None:
    words = ("blocks", "--fleet", str(fleet_file), "--count", "2", "--hours", "48")
    code, out, _ = caudal(capsys, *words)
    assert code == 0 and out.count("p5.48xlarge") == 3 and "c7i" not in out
    code, out, _ = caudal(capsys, *words, "--json")
    first = json.loads(out)["offerings"][0]
    code, out, err = caudal(capsys, *words, "--buy", first["id"], "--price", "1.00")
    assert code == 5 and first["price_usd"] in err and purchases(aws) == 0
    code, out, err = caudal(capsys, *words, "--buy", first["id"])
    assert code == 2 and purchases(aws) == 0
    code, out, _ = caudal(capsys, *words, "--buy", first["id"], "--price", first["price_usd"])
    assert code == 0 and purchases(aws) == 1
    assert "kind: block" in out and "reference: cr-" in out
    code, _, _ = caudal(capsys, *words, "--buy", first["id"], "--price", first["price_usd"])
    assert code == 3 and purchases(aws) == 1, "it is sold"


def test_a_fleet_without_aws_says_so(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    path = tmp_path / "fleet.yaml"
    path.write_text("type: fleet\nname: small\nsites: [{name: here}]\n")
    code, _, err = caudal(capsys, "blocks", "--fleet", str(path))
    assert code == 2 and "which provider" in err


def test_a_fake_that_does_not_run_is_said_to_be_one(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    path = tmp_path / "fleet.yaml"
    path.write_text(FILE.format(url="fake"))
    code, _, err = caudal(capsys, "--home", str(tmp_path), "blocks", "--fleet", str(path))
    assert code == 1 and "`caudal up` starts it" in err


def test_quotas_are_those_that_machines_count_against(aws: Aws) -> None:
    aws.admin("vcpus", region=REGION, count=400)
    found = vcpu_quotas(aws.provider().clients, REGION)
    expected = {
        ("p5.48xlarge", Market.ON_DEMAND): "Running On-Demand P instances",
        ("p4d.24xlarge", Market.SPOT): "All P4, P3 and P2 Spot Instance Requests",
        ("p5en.48xlarge", Market.SPOT): "All P5 Spot Instance Requests",
        ("trn1n.32xlarge", Market.ON_DEMAND): "Running On-Demand Trn instances",
        ("inf2.xlarge", Market.SPOT): "All Inf Spot Instance Requests",
        ("g6e.xlarge", Market.ON_DEMAND): "Running On-Demand G and VT instances",
        ("c7i.large", Market.SPOT): "All Standard (A, C, D, H, I, M, R, T, Z) Spot Instance Requests",
    }
    for (kind, market), name in expected.items():
        assert [q.name for q in found if q.covers(kind, market)] == [name]
    p5 = next(q for q in found if q.covers("p5.48xlarge", Market.ON_DEMAND))
    assert (p5.vcpus, p5.machines("p5.48xlarge"), p5.adjustable) == (400.0, 2, True)
