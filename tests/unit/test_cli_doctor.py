"""`caudal doctor`: what is wrong is found and told with what to do; looking changes nothing."""

from __future__ import annotations

import socket
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest

from caudal.cli import doctor, fleet_checks
from caudal.domain.fleet import ProviderSpec, SiteSpec
from caudal.ports import Change
from tests.support.own_hosts import own_hosts
from tests.support.served import Served, Told


@pytest.fixture
def place(tmp_path: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch) -> Served:
    """A state directory without a control process, on a machine with enough of everything."""
    monkeypatch.setattr(doctor, "NEEDED_DISK_BYTES", 1)
    monkeypatch.setattr(doctor, "NEEDED_MEMORY_BYTES", 1)
    return Served(tmp_path / "home", capsys)


def findings(told: Told) -> dict[str, dict[str, Any]]:
    assert told.json["shape"] == "doctor/1"
    return {item["check"]: item for item in told.json["items"]}


def test_all_is_well(place: Served) -> None:
    place.fill()
    told = place.caudal("doctor", "--json")
    assert told.code == 0, told.out
    seen = findings(told)
    for item in seen.values():
        assert set(item) == {"check", "ok", "seen", "remedy", "warn"}
        assert item["ok"] and item["seen"]
    assert {"python", "cores", "memory", "disk", "package torch", "state", "blobs", "ports"} <= set(seen)
    assert "2 workloads" in seen["state"]["seen"]
    people = place.caudal("doctor")
    assert people.code == 0
    assert "BAD" not in people.out
    assert str(place.home.root) in people.out


def test_it_says_which_engines_are_here(
    place: Served, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    program = tmp_path / "vllm"
    program.write_text("#!/bin/sh\n")
    program.chmod(0o755)
    monkeypatch.setenv("CAUDAL_VLLM", str(program))
    monkeypatch.setenv("CAUDAL_SGLANG_PYTHON", "/nowhere/python")
    told = place.caudal("doctor", "--json")
    seen = findings(told)
    assert told.code == 0 and seen["engine vllm"]["seen"] == str(program)
    assert seen["engine sglang"]["seen"].startswith("not installed here")
    assert "engine llama.cpp" in seen


def test_a_control_process_that_answers_is_named(place: Served) -> None:
    place.fill()
    place.start()
    told = place.caudal("doctor", "--json")
    place.stop()
    assert findings(told)["control process"]["seen"].startswith("answers at http://127.0.0.1:")


def test_a_database_that_is_none_is_bad_and_left_alone(place: Served) -> None:
    place.store.close()
    for file in place.home.root.glob("state.db*"):
        file.unlink()
    (place.home.root / "state.db").write_bytes(b"[bold]garbage[/red]" * 1000)
    told = place.caudal("doctor", "--json")
    assert told.code == 1
    state = findings(told)["state"]
    assert not state["ok"]
    assert state["seen"] == "the file is not a database"
    assert state["remedy"]
    people = place.caudal("doctor")
    assert people.code == 1
    assert "BAD  state" in people.out
    assert f"do: {state['remedy']}" in people.out
    assert (place.home.root / "state.db").read_bytes() == b"[bold]garbage[/red]" * 1000


def test_a_port_that_is_taken_is_bad(place: Served) -> None:
    place.store.commit(_wishes(place))
    with socket.create_server(("127.0.0.1", place.gateway_port)):
        told = place.caudal("doctor", "--json")
    assert told.code == 1
    ports = findings(told)["ports"]
    assert ports["seen"] == f"in use: [{place.gateway_port}]"
    assert "gateway.port" in ports["remedy"]


def test_the_gateway_that_runs_without_control_is_no_fault(place: Served) -> None:
    place.fill()
    with socket.create_server(("127.0.0.1", place.gateway_port)):
        told = place.caudal("doctor", "--json")
    assert told.code == 0, told.out


def _wishes(place: Served) -> Any:
    return Change(fleet=place.fleet)


def test_too_little_room_is_bad(place: Served, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(doctor, "NEEDED_DISK_BYTES", 1 << 60)
    told = place.caudal("doctor", "--json")
    assert told.code == 1
    assert not findings(told)["disk"]["ok"]
    assert "CAUDAL_HOME" in findings(told)["disk"]["remedy"]


def test_a_missing_package_is_bad_and_says_how_to_get_it(
    place: Served, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setitem(doctor.EXTRAS, "no_such_package_here", "serve")
    told = place.caudal("doctor", "--json")
    assert told.code == 1
    missing = findings(told)["package no_such_package_here"]
    assert (missing["ok"], missing["remedy"]) == (False, "pip install 'caudal[serve]'")


def test_a_fleets_own_machines_are_looked_over(
    place: Served, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    with own_hosts(tmp_path / "own", one="north", two="north") as hosts:
        hosts.down("two")
        specs = tuple(host.spec() for host in hosts.hosts.values())
        provider = ProviderSpec("own", "hosts", hosts=specs)
        sites = (SiteSpec("north", provider="own"), SiteSpec("south"))
        place.store.commit(Change(fleet=replace(place.fleet, name="lab", sites=sites, providers=(provider,))))
        (tmp_path / "user" / ".ssh").mkdir(parents=True)
        (tmp_path / "user" / ".ssh" / "config").write_text((hosts.folder / "config").read_text())
        monkeypatch.setenv("HOME", str(tmp_path / "user"))
        told = place.caudal("doctor", "--json")
        seen = findings(told)
        assert told.code == 1
        assert seen["host one"]["ok"], seen
        assert not seen["host two"]["ok"] and "does not answer" in seen["host two"]["seen"]
        people = place.caudal("doctor")
        assert "BAD  host two" in people.out and "do: see whether it is on" in people.out


def test_a_fleet_file_that_is_wrong_is_a_finding(place: Served, tmp_path: Path) -> None:
    told = place.caudal("doctor", str(tmp_path / "nothing.yaml"), "--json")
    assert told.code == 1 and not findings(told)["fleet file"]["ok"]
    (tmp_path / "fleet.yaml").write_text("type: fleet\nname: lab\nsites: [{name: north}]\n")
    told = place.caudal("doctor", str(tmp_path / "fleet.yaml"), "--json")
    assert told.code == 0, told.out


def test_a_missing_sdk_is_a_finding(place: Served, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(fleet_checks.PACKAGES, "azure", "no.such.package")
    fleet = replace(place.fleet, providers=(ProviderSpec("cloud", "azure"),))
    place.store.commit(Change(fleet=fleet))
    told = place.caudal("doctor", "--json")
    assert findings(told)["provider cloud"]["remedy"] == "pip install 'caudal[azure]'"


def test_looking_makes_nothing(tmp_path: Path, place: Served) -> None:
    nowhere = tmp_path / "nowhere"
    told = place.caudal("--home", str(nowhere), "doctor", "--json")
    assert findings(told)["state"]["ok"]
    assert not nowhere.exists()
    nowhere.mkdir()
    place.caudal("--home", str(nowhere), "doctor")
    assert not (nowhere / "state.db").exists()


def test_a_home_that_is_a_file_is_bad(tmp_path: Path, place: Served) -> None:
    (tmp_path / "file").write_text("mine")
    told = place.caudal("--home", str(tmp_path / "file"), "doctor", "--json")
    assert told.code == 1
    assert not findings(told)["state"]["ok"]
    assert not findings(told)["blobs"]["ok"]
    assert (tmp_path / "file").read_text() == "mine"
