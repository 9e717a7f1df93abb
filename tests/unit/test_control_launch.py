"""Launch: what a driver is asked to start for each role, and that no secret is on a command line."""

from __future__ import annotations

import json
from dataclasses import replace
from pathlib import Path

import pytest

from caudal.control.launch import gang_spec
from caudal.control.tokens import gang_of, gang_token, run_token
from caudal.domain.errors import Failed
from caudal.domain.gang import GangSpec, Role
from caudal.store.authority import ensure_certificates, ensure_door
from tests.unit.control_world import LAUNCH, RUN, SERVICE, Bench


@pytest.fixture(scope="module")
def bench() -> Bench:
    made = Bench(RUN, SERVICE)
    made.run(5)
    return made


def config(spec: GangSpec) -> dict[str, object]:
    return json.loads(spec.processes[0].files["config.json"])  # type: ignore[no-any-return]


def test_a_coordinator_gets_its_run(bench: Bench) -> None:
    spec = bench.spec("starter.coordinator-1")
    assert spec.processes[0].argv == ("{python}", "-m", "caudal.train.coordinator", "{dir}/config.json")
    found = config(spec)
    assert set(found) == {
        "run", "generation", "site", "gang", "blobs_url", "cache_dir", "host", "spec", "token", "certificates",
    }  # fmt: skip
    assert found["run"] == "starter" and found["host"] == "127.0.0.1"
    assert found["spec"]["stages"][0]["tokens"] == 100_000  # type: ignore[index]


def test_a_worker_shares_its_runs_token_and_has_threads(bench: Bench) -> None:
    worker, head = config(bench.spec("starter.worker.0-1")), config(bench.spec("starter.coordinator-1"))
    assert set(worker) == {
        "run", "generation", "site", "gang", "blobs_url", "cache_dir", "threads", "spec", "token", "certificates",
    }  # fmt: skip
    assert worker["token"] == head["token"] and worker["threads"] == 1


def test_a_replica_and_the_gateway_get_what_they_need(bench: Bench) -> None:
    assert set(config(bench.spec("assistant.replica.small.0-1"))) == {
        "model", "version", "context", "slots", "threads", "blobs_url", "cache_dir", "host", "site", "gang",
        "engine", "engine_args", "accelerators", "opening",
    }  # fmt: skip
    gateway = config(bench.spec("gateway.0-1"))
    assert set(gateway) == {
        "host", "port", "hedge", "traces", "processes", "routes_url", "state_file", "site", "gang",
        "keys", "keys_url", "keys_file", "usage_url", "usage_dir", "certificate", "certificate_key", "certificates",
    }  # fmt: skip
    assert gateway["keys"] == "optional" and gateway["usage_dir"] == ""
    assert gateway["routes_url"] == "http://127.0.0.1:8600/api/v1/routes" and gateway["port"] == 8601


def test_every_gang_knows_where_to_report_and_no_secret_is_handed_on(bench: Bench) -> None:
    for gang in bench.live():
        process = bench.spec(gang.id).processes[0]
        assert process.env["CAUDAL_REPORT_URL"] == f"http://127.0.0.1:8600/api/v1/gangs/{gang.id}/report"
        assert process.env["CAUDAL_TOKEN_FILE"] == LAUNCH.token_file
        token = run_token("s3cret", "starter", 1)
        public = " ".join([*process.argv, *process.env.values()])
        assert "s3cret" not in public + str(process.files) and token not in public
    assert "s3cret" not in repr(LAUNCH)


def test_a_gang_on_another_machine_carries_what_it_needs_and_no_secret(bench: Bench, tmp_path: Path) -> None:
    ensure_certificates(tmp_path, ["north", "south"])
    state = bench.store.read()
    settings = replace(
        LAUNCH,
        elsewhere=frozenset({"north", "south"}),
        certificates=str(tmp_path),
        ca_file=str(tmp_path / "ca.pem"),
        gateway_dir="/here",
    )
    for gang in bench.live():
        with pytest.raises(Failed, match="no address yet"):
            gang_spec(gang, state, settings)
        spec = gang_spec(gang, state, settings, "10.0.0.7")
        process = spec.processes[0]
        assert (
            process.env["CAUDAL_TOKEN_FILE"] == "{dir}/token"
            and process.env["CAUDAL_CA_FILE"] == "{dir}/ca.pem"
        )
        assert set(process.files) == {
            "config.json",
            "token",
            "ca.pem",
            f"{gang.site}.pem",
            f"{gang.site}.key",
        }
        assert gang_of("s3cret", process.files["token"].strip()) == gang.id
        assert "s3cret" not in str(process) and str(tmp_path) not in str(process)
        told = config(spec)
        if gang.role is Role.GATEWAY:
            assert told["host"] == "127.0.0.1" and str(told["state_file"]).startswith("~/")
        else:
            assert told["host"] == "10.0.0.7" and told["cache_dir"] == "~/.cache/caudal"
        assert told["certificates"] == "."


def test_a_gateway_on_another_machine_carries_its_certificate(bench: Bench, tmp_path: Path) -> None:
    ensure_certificates(tmp_path, ["north", "south"])
    certificate, key = ensure_door(tmp_path, "gateway", "10.0.0.7")
    door = {"gateway_certificate": str(certificate), "gateway_key": str(key)}
    settings = replace(LAUNCH, elsewhere=frozenset({"north", "south"}), **door)
    state = bench.store.read()
    gang = next(g for g in bench.live() if g.role is Role.GATEWAY)
    spec = gang_spec(gang, state, settings, "10.0.0.7")
    files = spec.processes[0].files
    assert config(spec)["certificate"] == "door.pem" and config(spec)["certificate_key"] == "door.key"
    assert files["door.pem"] == certificate.read_text() and files["door.key"] == key.read_text()
    assert "PRIVATE KEY" not in " ".join([*spec.processes[0].argv, *spec.processes[0].env.values()])
    worker = next(g for g in bench.live() if g.role is Role.WORKER)
    assert "door.key" not in gang_spec(worker, state, settings, "10.0.0.7").processes[0].files
    here = gang_spec(gang, state, replace(LAUNCH, **door))
    assert config(here)["certificate"] == str(certificate) and set(here.processes[0].files) == {"config.json"}


def test_a_gangs_token_is_its_own() -> None:
    token = gang_token("a", "starter.worker.0-1")
    assert gang_of("a", token) == "starter.worker.0-1"
    for wrong in (token[:-1], token.replace("0-1", "0-2"), "", ":", gang_token("b", "starter.worker.0-1")):
        assert gang_of("a", wrong) == ""
    assert gang_of("", gang_token("", "x")) == ""


def test_tokens_differ_by_run_generation_and_secret() -> None:
    tokens = {run_token(*x) for x in [("a", "r", 1), ("a", "r", 2), ("a", "q", 1), ("b", "r", 1)]}
    assert len(tokens) == 4 and run_token("a", "r", 1) in tokens


def test_a_gang_of_a_spec_that_has_changed_is_not_started(bench: Bench) -> None:
    state = bench.store.read()
    gang = next(g for g in state.gangs if g.slot == "starter.coordinator")
    with pytest.raises(Failed):
        gang_spec(replace(gang, generation=7), state, LAUNCH)
