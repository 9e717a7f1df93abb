"""Nodes: the script that makes one, its burn-in, its links, its tokens, and what becomes of one that fails."""

from __future__ import annotations

import hashlib
import http.server
import os
import socket
import subprocess
import sys
import threading
import time
import zipfile
from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path

import pytest
from starlette.testclient import TestClient

from caudal.api.app import create_app
from caudal.api.context import Context
from caudal.control.nodes import join_token, node_token, note_failures
from caudal.domain.errors import UsageError
from caudal.domain.fleet import LeaseState, Resources
from caudal.domain.gang import Report
from caudal.domain.node import failed, subject
from caudal.domain.snapshot import Snapshot
from caudal.node.burn_in import Found, faults, look, read_gpus, read_neuron
from caudal.node.links import Answering, measured
from caudal.ports import Change
from caudal.providers.bootstrap import (
    AWS_LIMIT_BYTES,
    Artefact,
    NodePlan,
    Source,
    fetching_script,
    fleet_script,
    script,
)
from caudal.store.signing import is_signed, public_pem, signed, signing_key
from caudal.store.state import SqlStore, open_store
from tests.support.served import Served
from tests.unit.policy_world import Play, lease, offer, train
from tests.unit.test_api_app import Clock, Logs, NoModels
from tests.unit.test_api_views import LEASE

SECRET = "the secret of this test"
SMALL = Resources(cpus=1.0, memory_bytes=1 << 20)


def plan(url: str, **given: object) -> NodePlan:
    token = join_token(SECRET, LEASE.id, 10_000.0)
    return replace(NodePlan(LEASE.id, url, token, SMALL), **given)  # type: ignore[arg-type]


# tokens, over the API


@pytest.fixture
def store(tmp_path: Path) -> SqlStore:
    built = open_store(f"sqlite:///{tmp_path / 'state.db'}")
    built.commit(Change(leases=[LEASE]))
    return built


@pytest.fixture
def api(store: SqlStore) -> TestClient:
    context = Context(store, NoModels(), {"north": Logs()}, Clock(), SECRET, "0", lambda: None)
    return TestClient(create_app(context), base_url="http://127.0.0.1")


def post(
    api: TestClient, verb: str, token: str, body: object, of: str = LEASE.id
) -> tuple[int, dict[str, object]]:
    answer = api.post(f"/api/v1/nodes/{of}/{verb}", json=body, headers={"Authorization": f"Bearer {token}"})
    return answer.status_code, answer.json()


def test_a_join_token_works_once_for_whoever_came_first(api: TestClient) -> None:
    token = join_token(SECRET, LEASE.id, 200.0)
    first = post(api, "join", token, {"nonce": "a" * 32})
    assert first == (200, {"token": node_token(SECRET, LEASE.id)})
    assert post(api, "join", token, {"nonce": "a" * 32}) == first, (
        "an answer that was lost locks the node out"
    )
    assert post(api, "join", token, {"nonce": "b" * 32})[0] == 409
    assert post(api, "join", token, {"nonce": "short"})[0] == 400


def test_join_tokens_expire_and_are_for_one_lease(api: TestClient) -> None:
    nonce = {"nonce": "a" * 32}
    assert post(api, "join", join_token(SECRET, LEASE.id, 99.0), nonce)[0] == 401
    assert post(api, "join", join_token(SECRET, "another", 200.0), nonce)[0] == 401
    late = join_token(SECRET, LEASE.id, 99.0).replace("99.", "999.")
    assert post(api, "join", late, nonce)[0] == 401
    assert post(api, "join", "x.y", nonce)[0] == 401
    assert post(api, "join", node_token(SECRET, LEASE.id), nonce)[0] == 401
    gone = join_token(SECRET, "gone", 200.0)
    assert post(api, "join", gone, nonce, of="gone")[0] == 404


def test_reports_take_the_nodes_own_token_and_a_failure_stays(api: TestClient, store: SqlStore) -> None:
    token, well = node_token(SECRET, LEASE.id), {"status": {"state": "ready", "load": 0.5}}
    assert post(api, "report", join_token(SECRET, LEASE.id, 200.0), well)[0] == 401
    assert post(api, "report", SECRET, well)[0] == 401
    assert post(api, "report", token, {"status": {"state": "splendid"}})[0] == 400
    assert post(api, "report", token, well)[0] == 200
    assert post(api, "report", token, {"status": {"state": "failed", "why": "1 GPUs of 8"}})[0] == 200
    assert post(api, "report", token, well)[0] == 200
    kept = next(r for r in store.read().reports if r.gang_id == subject(LEASE.id))
    assert failed(kept) and kept.status["why"] == "1 GPUs of 8" and kept.status["offer"] == LEASE.offer_id


def test_reports_of_ended_leases_go_unless_they_are_held_against_an_offer(store: SqlStore) -> None:
    other = replace(LEASE, id="other", node="north-2")
    store.commit(Change(leases=[other]))
    store.put_report(Report(subject(LEASE.id), 1.0, {"state": "ready"}))
    store.put_report(Report(subject("other"), 1.0, {"state": "failed", "offer": "o"}))
    ended = [replace(x, state=LeaseState.ENDED, ended_at=2.0) for x in (LEASE, other)]
    store.commit(Change(leases=ended))
    assert [r.gang_id for r in store.read().reports] == [subject("other")]


# policy


def test_a_node_that_failed_is_given_back_and_its_offer_left_alone() -> None:
    play = Play(train(sites=1), sites=["north"])
    row = next(iter(play.leases.values()))
    play.offers = [offer("north", id=row.offer_id)]
    play.reports["x"] = Report(
        subject(row.id), play.now, {"state": "failed", "why": "no GPU", "offer": row.offer_id}
    )
    decision = play.step()
    codes = [c.reason.code for c in decision.choices]
    assert "node.failed" in codes and "node.own" not in codes
    assert not [g for g in play.live() if g.lease_id == row.id], "something was placed on it"
    play.machines.clear()
    play.step(1.0)
    assert not any(x.live for x in play.leases.values())
    assert "acquire_node" not in [c.action.kind for c in play.decide().choices]
    later = play.decide_later(901.0)
    assert "acquire_node" in [c.action.kind for c in later.choices]


def test_what_runs_is_never_ended_for_a_burn_in() -> None:
    play = Play(train(sites=1), sites=["north"])
    play.settle()
    row = next(iter(play.leases.values()))
    running = play.at()
    assert running
    play.reports["x"] = Report(subject(row.id), play.now, {"state": "failed", "why": "late", "offer": "o"})
    kinds = {c.action.kind for c in play.step(1.0).choices}
    assert not kinds & {"release_node", "stop_gang"} and play.at() == running


def test_what_a_providers_list_says_is_kept(store: SqlStore) -> None:
    play = Play(sites=["north"])
    machine = next(iter(play.machines.values()))
    row = next(iter(play.leases.values()))
    seen = replace(play.snapshot(), machines=(replace(machine, failed="no disk"),))
    note_failures(store, seen)
    kept = store.read().reports[0]
    assert (kept.gang_id, kept.status["why"], kept.status["offer"]) == (
        subject(row.id),
        "no disk",
        row.offer_id,
    )
    stranger = replace(machine, lease_id="not-ours", id="s", failed="x")
    note_failures(store, Snapshot(1.0, seen.state, machines=(stranger,)))
    assert len(store.read().reports) == 1


def test_a_silent_stray_waits() -> None:
    play = Play(sites=["north"])
    machine = replace(next(iter(play.machines.values())), lease_id="test.north.1.1")
    play.leases.clear()
    play.machines[machine.id] = replace(machine, silent=True)
    play.stray_since = {machine.id: 0.0}
    assert not [c for c in play.decide().choices if c.action.kind == "release_machine"]
    play.machines[machine.id] = machine
    assert [c for c in play.decide().choices if c.action.kind == "release_machine"]


# burn-in


def test_burn_in_names_what_is_less() -> None:
    gib = 1 << 30
    promised = {"cpus": 8, "memory_bytes": 64 * gib, "accelerators": 2, "accelerator_memory_bytes": 80 * gib,
                "neuron_cores": 0, "disk_bytes": 10 * gib}  # fmt: skip
    well = Found(8, 62 * gib, 20 * gib, (80 * gib, 79 * gib), None)
    assert faults(promised, well) == []
    assert faults(promised, replace(well, cpus=4)) == ["4 cores of 8"]
    assert "memory" in faults(promised, replace(well, memory_bytes=32 * gib))[0]
    assert faults(promised, replace(well, accelerators=(80 * gib,))) == ["1 GPUs of 2"]
    assert "nvidia-smi" in faults(promised, replace(well, accelerators=None))[0]
    assert "a GPU has" in faults(promised, replace(well, accelerators=(80 * gib, 40 * gib)))[0]
    assert "disk" in faults(promised, replace(well, disk_free_bytes=gib))[0]
    assert "neuron-ls" in faults({**promised, "neuron_cores": 2}, well)[0]
    assert faults({**promised, "neuron_cores": 4}, replace(well, neuron_cores=2)) == ["2 Neuron cores of 4"]
    linked = replace(well, links=(("a:1", None), ("b:1", 5.0)))
    assert faults(promised, linked) == [] and len(faults(promised, linked, 10.0)) == 2


def test_what_tools_print_is_read() -> None:
    assert read_gpus("81559\n81559\n") == (81559 << 20, 81559 << 20)
    assert read_gpus("81559\n[Unknown Error]\n") == (81559 << 20, 0)
    assert read_gpus(None) is None
    assert read_neuron('[{"neuron_device": 0, "nc_count": 2}, {"neuron_device": 1, "nc_count": 2}]') == 4
    assert read_neuron("garbage") is None
    assert look(Path.cwd()).cpus >= 1


def test_tools_are_asked_for_real(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    tool = tmp_path / "nvidia-smi"
    tool.write_text("#!/bin/sh\necho 40960\necho 40960\n")
    tool.chmod(0o755)
    monkeypatch.setenv("PATH", f"{tmp_path}:{os.environ['PATH']}")
    assert look(tmp_path).accelerators == (40960 << 20, 40960 << 20)


def test_links_are_measured_and_bounded() -> None:
    answering = Answering("127.0.0.1:0")
    link = measured(answering.address, size=4 << 20)
    assert link is not None and 0 < link.round_trip_s < 1.0 and link.bytes_per_s > 1e6
    host, _, port = answering.address.rpartition(":")
    with socket.create_connection((host, int(port)), timeout=5) as rude:
        rude.sendall(b"\xff" * 8)
        assert rude.recv(1) == b"", "an endless length is taken"
    answering.close()
    assert measured("127.0.0.1:1") is None
    assert measured("nonsense") is None


# the script and the agent, for real


@pytest.fixture
def served(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> Iterator[Served]:
    place = Served(tmp_path / "home", capsys)
    place.fill()
    place.start()
    yield place
    place.stop()


def url_of(served: Served) -> str:
    return (served.home.root / "control.url").read_text()


def real(served: Served, **given: object) -> NodePlan:
    token = join_token(served.home.token(), LEASE.id, 10_000.0)
    return replace(plan(url_of(served)), join_token=token, **given)  # type: ignore[arg-type]


def run(text: str, folder: Path) -> subprocess.Popen[bytes]:
    env = {**os.environ, "CAUDAL_NODE_DIR": str(folder), "HOME": str(folder.parent)}
    process = subprocess.Popen(["/bin/sh", "-s"], stdin=subprocess.PIPE, env=env, stdout=subprocess.DEVNULL)
    assert process.stdin is not None
    process.stdin.write(text.encode())
    process.stdin.close()
    return process


def said(served: Served, wanted: str) -> Report:
    end = time.monotonic() + 20
    while time.monotonic() < end:
        for report in served.state().reports:
            if report.gang_id == subject(LEASE.id) and report.status.get("state") == wanted:
                return report
        time.sleep(0.05)
    raise AssertionError(f"it never was {wanted}")


HERE = Source(installed=sys.executable)


def test_the_script_makes_a_node_that_joins_and_says_so(served: Served, tmp_path: Path) -> None:
    joined = tmp_path / "joined"
    text = script(real(served, join=("/bin/sh", "-c", f"echo yes > '{joined}'")), HERE, AWS_LIMIT_BYTES)
    process = run(text, tmp_path / "node")
    try:
        report = said(served, "ready")
        assert joined.read_text() == "yes\n"
        assert report.status["found"]["cpus"] >= 1
        assert not (tmp_path / "node" / "join").exists(), "the join token is kept"
        assert (tmp_path / "node" / "token").stat().st_mode & 0o077 == 0
        assert (tmp_path / "node" / "state").read_text() == "0\n"
    finally:
        process.terminate()
        assert process.wait(15) == 0


def test_a_machine_that_is_less_never_joins(served: Served, tmp_path: Path) -> None:
    joined = tmp_path / "joined"
    greedy = real(served, promised=Resources(cpus=4096.0), join=("touch", str(joined)))
    process = run(script(greedy, HERE), tmp_path / "node")
    assert process.wait(30) == 1
    assert said(served, "failed").status["why"].endswith("cores of 4096")
    assert "cores of 4096" in (tmp_path / "node" / "failed").read_text()
    assert not joined.exists()


@pytest.fixture
def shelf(tmp_path: Path) -> Iterator[tuple[Path, str]]:
    """A folder, and where it is served."""
    folder = tmp_path / "shelf"
    folder.mkdir()

    class Quiet(http.server.SimpleHTTPRequestHandler):
        def __init__(self, *given: object) -> None:
            super().__init__(*given, directory=str(folder))  # type: ignore[arg-type]

        def log_message(self, *given: object) -> None: ...

    server = http.server.ThreadingHTTPServer(("127.0.0.1", 0), Quiet)
    threading.Thread(target=server.serve_forever, daemon=True).start()
    yield folder, f"http://127.0.0.1:{server.server_port}"
    server.shutdown()
    server.server_close()


def test_what_is_fetched_runs_only_if_the_fleet_signed_it(
    served: Served, tmp_path: Path, shelf: tuple[Path, str]
) -> None:
    folder, url = shelf
    key = signing_key(tmp_path / "certificates")
    text = fleet_script(HERE).encode()
    (folder / "fleet.sh").write_bytes(text)
    (folder / "fleet.sh.sig").write_bytes(signed(key, text))
    stub = fetching_script(real(served), f"{url}/fleet.sh", public_pem(key), AWS_LIMIT_BYTES)
    process = run(stub, tmp_path / "node")
    said(served, "ready")
    process.terminate()
    process.wait(15)

    witness = tmp_path / "ran"
    (folder / "fleet.sh").write_bytes(f"touch {witness}\n".encode() + text)
    assert run(stub, tmp_path / "node2").wait(20) == 1
    assert not witness.exists()
    assert "not signed" in (tmp_path / "node2" / "failed").read_text()
    other = signing_key(tmp_path / "other")
    (folder / "fleet.sh.sig").write_bytes(signed(other, (folder / "fleet.sh").read_bytes()))
    assert run(stub, tmp_path / "node3").wait(20) == 1
    assert not witness.exists()


def test_a_wheel_that_is_not_the_pinned_one_is_not_installed(tmp_path: Path) -> None:
    wheel = tmp_path / "caudal-0-py3-none-any.whl"
    wheel.write_bytes(b"exchanged")
    source = Source(Artefact(str(wheel), hashlib.sha256(b"the right one").hexdigest()), python=sys.executable)
    process = run(script(plan("http://127.0.0.1:1"), source), tmp_path / "node")
    assert process.wait(60) == 1
    assert "not what was pinned" in (tmp_path / "node" / "failed").read_text()
    with pytest.raises(UsageError, match="SHA-256"):
        fleet_script(Source(Artefact(str(wheel), "abc")))
    with pytest.raises(UsageError, match="wheel"):
        fleet_script(Source())


def test_the_pinned_wheel_is_installed_into_a_venv_of_its_own(tmp_path: Path) -> None:
    wheel = tmp_path / "caudal-0-py3-none-any.whl"
    files = {
        "caudal/__init__.py": "",
        "caudal/node/__init__.py": "",
        "caudal/node/__main__.py": "import sys; print(sys.prefix, sys.argv[1])",
        "caudal-0.dist-info/METADATA": "Metadata-Version: 2.1\nName: caudal\nVersion: 0\n",
        "caudal-0.dist-info/WHEEL": "Wheel-Version: 1.0\nRoot-Is-Purelib: true\nTag: py3-none-any\n",
    }
    with zipfile.ZipFile(wheel, "w") as archive:
        for name, text in files.items():
            archive.writestr(name, text)
        archive.writestr("caudal-0.dist-info/RECORD", "".join(f"{name},,\n" for name in files))
    pinned = Artefact(str(wheel), hashlib.sha256(wheel.read_bytes()).hexdigest())
    env = {k: v for k, v in os.environ.items() if k != "PYTHONPATH"}
    folder = tmp_path / "node"
    done = subprocess.run(
        ["/bin/sh", "-s"],
        input=script(plan("http://127.0.0.1:1"), Source(pinned, python=sys.executable)),
        env={**env, "CAUDAL_NODE_DIR": str(folder), "PIP_NO_INDEX": "1"},
        capture_output=True,
        text=True,
        timeout=120,
        check=False,
    )
    assert done.returncode == 0, done.stderr
    assert done.stdout.split() == [str(folder / "venv"), str(folder / "config.json")]


def test_scripts_are_bounded_and_hold_no_secret_but_the_join_token() -> None:
    made = plan("http://127.0.0.1:1", peers=("'; touch /tmp/x; '",))
    text = script(made, HERE)
    assert SECRET not in text and text.count(made.join_token) == 1
    assert made.join_token not in repr(made)
    with pytest.raises(UsageError, match="object store"):
        script(made, HERE, limit_bytes=100)
    with pytest.raises(UsageError):
        script(replace(made, peers=("CAUDAL_END_OF_TEXT",)), HERE)
    assert len(fetching_script(made, "https://x/y", "k").encode()) < AWS_LIMIT_BYTES
    assert subprocess.run(["/bin/sh", "-n"], input=text.encode(), check=False).returncode == 0


def test_signing_keys_are_made_once(tmp_path: Path) -> None:
    key = signing_key(tmp_path)
    assert (tmp_path / "signing.key").stat().st_mode & 0o077 == 0
    assert public_pem(signing_key(tmp_path)) == public_pem(key)
    assert is_signed(public_pem(key), b"x", signed(key, b"x"))
    assert not is_signed(public_pem(key), b"y", signed(key, b"x"))
    (tmp_path / "signing.key").write_text("nonsense")
    with pytest.raises(UsageError):
        signing_key(tmp_path)


def test_leases_of_other_shapes_are_quoted() -> None:
    assert lease("north").id in script(replace(plan("http://127.0.0.1:1"), lease=lease("north").id), HERE)
