"""Providers, drivers, contracts and budgets in the fleet file: what they become, and every way to get them wrong."""

from __future__ import annotations

from decimal import Decimal

import jsonschema
import pytest
import yaml

from caudal import spec
from caudal.domain.errors import SpecError
from caudal.domain.fleet import Contract, DriverSpec, FleetSpec, ProviderSpec, RampStep

FLEET = """\
type: fleet
name: test
sites:
  - {name: north, provider: amazon, driver: ray, region: eu-north-1}
  - {name: south, provider: own}
  - name: west
    provider: {kind: azure, endpoint: fake}
    driver: {kind: ray, address: "10.0.0.5:6379", name: west-ray}
providers:
  - {name: amazon, kind: aws, account: research}
  - name: own
    kind: hosts
    hosts: [{name: box, site: south, address: box.lan, resources: {cpus: 8, memory_bytes: 32GiB}}]
drivers: [{name: ray, kind: ray}]
"""

CONTRACT = (
    "{name: h, kind: reserved, provider: amazon, sites: [north], machine_type: p5, start: 2027-01-01, "
    "end: 2028-01-01, count: 2, price_usd_per_hour: 98.32, reference: cr-1}"
)

HOST = "hosts: [{name: b, site: north, address: b, resources: {cpus: 1}}]"

TWICE = "ramp: [{start: 2027-05-01, count: 1}, {start: 2027-05-01, count: 2}]"

LATER = (
    CONTRACT.replace("name: h", "name: i").replace("2028-01-01", "2029-01-01").replace("2027-01", "2028-01")
)


def read(*more: str) -> FleetSpec:
    (found,) = spec.parse(FLEET + "\n".join(more) + "\n", "f.yaml")
    assert isinstance(found, FleetSpec)
    return found


def refused(text: str) -> str:
    with pytest.raises(SpecError) as caught:
        spec.parse(text, "f.yaml")
    return f"{caught.value.where}: {caught.value.what}"


def test_what_a_site_writes_in_place_becomes_an_entry_with_a_name() -> None:
    fleet = read()
    assert [s.provider for s in fleet.sites] == ["amazon", "own", "azure"]
    assert [s.driver for s in fleet.sites] == ["ray", "local", "west-ray"]
    assert fleet.providers[2] == ProviderSpec("azure", "azure", endpoint="fake")
    assert fleet.drivers == (DriverSpec("ray", "ray"), DriverSpec("west-ray", "ray", "10.0.0.5:6379"))
    assert spec.parse(spec.dump(fleet), "again.yaml") == [fleet]


def test_the_same_table_at_two_sites_is_one_entry_and_another_one_needs_a_name() -> None:
    site = "{name: %s, provider: {kind: aws, account: %s}}"
    head = "type: fleet\nname: t\nsites:\n"
    both = f"{head}- {site % ('a', 'x')}\n- {site % ('b', 'x')}\n"
    (fleet,) = spec.parse(both, "f.yaml")
    assert isinstance(fleet, FleetSpec)
    assert fleet.providers == (ProviderSpec("aws", "aws", account="x"),)
    said = refused(f"{head}- {site % ('a', 'x')}\n- {site % ('b', 'y')}\n")
    assert said.startswith(
        "f.yaml:5: provider: another provider called 'aws' is at f.yaml:4; give one a `name`"
    )


def test_money_is_exact() -> None:
    (contract,) = read("contracts:", f"- {CONTRACT}").contracts
    assert contract.price_usd_per_hour == Decimal("98.32")
    assert (contract.start, contract.end) == ("2027-01-01", "2028-01-01")


@pytest.mark.parametrize(
    ("old", "new", "said"),
    [
        ("provider: amazon, driver", "provider: amazn, driver", "4: provider: the fleet has no provider 'amazn'; did"),
        ("driver: ray, region", "driver: rya, region", "4: driver: the fleet has no driver 'rya'; did you mean 'r"),
        ("endpoint: fake", "endpoint: 'http://10.0.0.1:80'", "7: endpoint: 'http://10.0.0.1:80' is not th"),
        ("endpoint: fake", "endpoint: 'http://[::1'", "7: endpoint:"),
        ("kind: aws, account: research", "kind: awz", "10: kind: expected local or aws"),
        ("site: south, address", "site: sout, address", "13: site: the fleet has no site 'sout'; did you mean 'south"),
        ("site: south, address", "site: north, address", "13: site: north is of provider amazon, and not of own"),
        ("account: research", HOST, "10: hosts: a provider of kind aws"),
        ("name: amazon, kind", "name: local, kind", "10: name: 'local' is this machine"),
        ("{name: ray, kind: ray}", "{name: ray, kind: ray}, {name: ray, kind: slurm}", "14: drivers: 2 times the"),
        ("{kind: azure, endpoint: fake}", "{endpoint: fake}", "7: provider: the key 'kind' is missing"),
    ],
)  # fmt: skip
def test_bad_providers_and_drivers_name_their_line(old: str, new: str, said: str) -> None:
    assert old in FLEET
    assert f"f.yaml:{said}" in refused(FLEET.replace(old, new))


@pytest.mark.parametrize(
    ("old", "new", "said"),
    [
        ("end: 2028-01-01", "end: 2026-01-01", "end: 2026-01-01 is not after the start, 2027-01-01"),
        ("start: 2027-01-01", "start: 2027-02-30", "start: day is out of range"),
        ("start: 2027-01-01", "start: soon", "start: 'soon' is not a day such as 2027-01-31"),
        ("start: 2027-01-01", "start: 20270101", "start: expected text"),
        ("provider: amazon", "provider: amazom", "did you mean 'amazon'?"),
        ("sites: [north]", "sites: [nort]", "sites: the fleet has no site 'nort'; did you mean 'north'?"),
        ("sites: [north]", "sites: [west]", "sites: west is of provider azure, and the contract is with amazon"),
        (", count: 2", "", "exactly one of `count` and `ramp` is needed, found neither"),
        ("count: 2", "count: 2, ramp: [{start: 2027-01-01, count: 1}]", "is needed, found both"),
        ("count: 2", TWICE, "2027-05-01 does not come after"),
        ("count: 2", "ramp: [{start: 2028-01-01, count: 1}]", "ramp: 2028-01-01 is outside the term"),
        ("count: 2", "count: -2", "count: expected a number from 0"),
        ("machine_type: p5, ", "", "`machine_type` is needed for `reserved`"),
        ("98.32", "-98.32", "price_usd_per_hour: expected dollars such as 98.32, found the number -98.32"),
        ("98.32", "98.32, discount: 0.1", "discount: is for `savings`"),
        ("98.32", "98.32, commitment_usd: 5", "commitment_usd: is for `spend`"),
        ("kind: reserved", "kind: savings", "count: `savings` is money, not machines"),
        ("kind: reserved", "kind: savings", "`savings` needs its `discount`"),
        ("kind: reserved", "kind: spend", "`spend` needs `commitment_usd`"),
        ("kind: reserved", "kind: reserve", "did you mean 'reserved'?"),
    ],
)  # fmt: skip
def test_bad_contracts_name_their_line(old: str, new: str, said: str) -> None:
    assert old in CONTRACT
    text = refused(f"{FLEET}contracts:\n- {CONTRACT.replace(old, new)}\n")
    assert said in text
    assert text.startswith("f.yaml:16:")


@pytest.mark.parametrize(
    ("second", "overlaps"),
    [
        (CONTRACT.replace("name: h", "name: i"), True),  # the same reference
        (CONTRACT.replace("name: h", "name: i").replace("cr-1", "cr-2"), False),
        (LATER, False),
    ],
)  # fmt: skip
def test_two_contracts_do_not_promise_the_same_machines(second: str, overlaps: bool) -> None:
    text = f"{FLEET}contracts:\n- {CONTRACT}\n- {second}\n"
    if overlaps:
        assert "f.yaml:17: contract i overlaps h (f.yaml:16)" in refused(text)
        bare = text.replace(", reference: cr-1", "")
        assert "the same machines or use at the same time" in refused(bare)
    else:
        assert len(read("contracts:", f"- {CONTRACT}", f"- {second}").contracts) == 2


def test_a_ramp_is_read_in_order() -> None:
    ramp = "ramp: [{start: 2027-01-01, count: 1}, {start: 2027-06-01, count: 4}]"
    (contract,) = read("contracts:", f"- {CONTRACT.replace('count: 2', ramp)}").contracts
    assert contract.ramp == (RampStep("2027-01-01", 1), RampStep("2027-06-01", 4))
    assert isinstance(contract, Contract)


def test_a_team_has_one_budget() -> None:
    line = "- {team: red, monthly_usd: 100}"
    assert "f.yaml:17: budgets: 2 times the same team 'red'" in refused(f"{FLEET}budgets:\n{line}\n{line}\n")
    assert "monthly_usd: expected dollars" in refused(f"{FLEET}budgets:\n- {{team: red, monthly_usd: -1}}\n")
    assert "not a name" in refused(f"{FLEET}budgets:\n- {{team: Re d, monthly_usd: 1}}\n")


def test_a_budget_whose_team_looks_misspelt_is_refused() -> None:
    run = (
        "type: train\nname: r\ndata: builtin:tinyworld\nteam: research\nstages: [{name: s, tokens: 100000}]\n"
    )
    text = f"{FLEET}budgets:\n- {{team: %s, monthly_usd: 1}}\n---\n{run}"
    assert (
        "f.yaml:16: team: no workload of these files has team 'reserch'; did you mean 'research'?"
        in refused(text % "reserch")
    )
    assert len(spec.parse(text % "marketing", "f.yaml")) == 2


def test_the_schema_takes_what_the_reader_takes() -> None:
    text = f"{FLEET}contracts:\n- {CONTRACT}\nbudgets:\n- {{team: red, monthly_usd: 100.5}}\n"
    document = yaml.load(text, Loader=yaml.BaseLoader)  # every scalar as text: days are no dates
    document["providers"][1]["hosts"][0]["resources"]["cpus"] = 8
    document["contracts"][0] |= {"count": 2}
    jsonschema.validate(document, spec.schema())
    document["sites"][2]["provider"] = {"endpoint": "fake"}  # no kind
    with pytest.raises(jsonschema.ValidationError):
        jsonschema.validate(document, spec.schema())
