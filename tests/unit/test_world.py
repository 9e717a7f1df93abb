"""A fleet's world from its file: what is built, what is refused, what a machine is told, and where a head is looked for."""

from __future__ import annotations

import json
import sys
import threading
import time
from dataclasses import replace
from decimal import Decimal
from pathlib import Path

import psutil
import pytest

from caudal.cli.fleet_checks import fleet_checks
from caudal.composition import make_home, world
from caudal.composition.first_node import GONE_S, FirstNodeDriver
from caudal.composition.world import build_world
from caudal.control import nodes
from caudal.domain.decision import AcquireNode, StartGang
from caudal.domain.errors import CaudalError, SpecError, Unreachable, UsageError
from caudal.domain.fleet import (
    ApiSpec,
    DriverSpec,
    FleetSpec,
    HostSpec,
    Lease,
    LeaseState,
    MachineType,
    Market,
    NodesSpec,
    ProviderSpec,
    Resources,
    SiteSpec,
)
from caudal.domain.gang import Gang, Report, Role
from caudal.domain.node import subject
from caudal.node.cluster import Member
from caudal.ports import Change, World
from caudal.providers.azure_fake import launcher
from caudal.providers.bootstrap import AWS_LIMIT_BYTES
from caudal.spec import parse
from caudal.store.blobs import open_blobs
from caudal.store.home import Home
from caudal.store.identity import identity, known
from caudal.store.models import ModelStore
from caudal.store.state import SqlStore, open_store
from tests.unit.policy_world import Play, machine_type, offer, train
from tests.unit.test_api_app import Clock

SHA = "a" * 64
AWS = ProviderSpec("amazon", "aws")
RAY = DriverSpec("ray", "ray")
SITE = SiteSpec("north", "amazon", "ray", region="eu-north-1", image="ami-1")
PUBLIC = ApiSpec(host="10.0.0.1", tls=True)
SIZE = Resources(2.0, 4 << 30)


def fleet(*sites: SiteSpec, **given: object) -> FleetSpec:
    values = {"providers": (AWS,), "drivers": (RAY,), "api": PUBLIC} | given
    return FleetSpec("lab", sites or (SITE,), **values)  # type: ignore[arg-type]


def held(number: int = 1, **given: object) -> Lease:
    made = Lease(
        *(f"lab.north.1.{number}", f"north-{number}", "north", MachineType("m", SIZE), "offer"),
        *(Market.ON_DEMAND, Decimal(1), LeaseState.ACTIVE, 1, 100.0 + number),
        provider="amazon",
    )
    return replace(made, **given)  # type: ignore[arg-type]


@pytest.fixture
def place(tmp_path: Path) -> Home:
    made = Home(tmp_path / "home")
    make_home(made)
    return made


@pytest.fixture
def store(place: Home) -> SqlStore:
    built = open_store(place.database_url)
    built.commit(Change(fleet=fleet(), leases=[held(1), held(2)]))
    return built


def bare(place: Home, store: SqlStore) -> World:
    return World(Clock(), store, ModelStore(open_blobs(place.blobs_url), place.cache), {}, {}, ())


# what is built, and what is refused


HOSTS = ProviderSpec("ours", "hosts", hosts=(HostSpec("a", "north", "10.0.0.9", SIZE),))
REFUSED = {
    "runs everything on this machine": fleet(replace(SITE, driver="local")),
    "nobody begins": fleet(replace(SITE, provider="local")),
    "cannot reach the control API|listens on 127.0.0.1": fleet(api=ApiSpec()),
    "is this machine": fleet(replace(SITE, provider="mine"), providers=(ProviderSpec("mine", "local"),)),
    "listens on 127.0.0.1": fleet(replace(SITE, provider="ours"), providers=(HOSTS,), api=ApiSpec()),
}


@pytest.mark.parametrize("why", REFUSED)
def test_what_does_not_go_together_is_refused(place: Home, store: SqlStore, why: str) -> None:
    with pytest.raises(UsageError, match=why) as raised:
        build_world(bare(place, store), REFUSED[why], place, lambda: "")
    assert raised.value.remedy


def test_an_extra_that_is_missing_is_named(
    place: Home, store: SqlStore, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setitem(world.EXTRAS, "aws", "no.such.package")
    with pytest.raises(UsageError) as raised:
        build_world(bare(place, store), fleet(), place, lambda: "")
    assert raised.value.remedy == "pip install 'caudal[aws]'"


def test_every_kind_is_built_and_closed(place: Home, store: SqlStore) -> None:
    sites = (
        SITE,
        replace(SITE, name="blue", provider="azure", region="swedencentral", driver="there"),
        SiteSpec("cellar", "ours", "slurm"),
        SiteSpec("desk"),
    )
    providers = (
        AWS,
        ProviderSpec("azure", "azure", account="s", resource_group="g"),
        replace(HOSTS, hosts=(replace(HOSTS.hosts[0], site="cellar"),)),
    )
    drivers = (RAY, DriverSpec("there", "ray", "10.0.0.4:6379"), DriverSpec("slurm", "slurm"))
    built = build_world(
        bare(place, store), fleet(*sites, providers=providers, drivers=drivers), place, lambda: ""
    )
    assert sorted(built.providers) == ["amazon", "azure", "local", "ours"]
    kinds = {name: type(driver).__name__ for name, driver in built.drivers.items()}
    assert kinds == {
        "north": "FirstNodeDriver",
        "blue": "RayDriver",
        "cellar": "SlurmDriver",
        "desk": "LocalDriver",
    }
    for part in (*built.providers.values(), *built.drivers.values()):
        if isinstance(part, world.Closing):
            part.close()


NODES = {
    "https://x/c.whl": "wheel_sha256: the SHA-256",
    "c.whl": "is no address that a machine can fetch",
}


@pytest.mark.parametrize("wheel", NODES)
def test_what_nodes_are_made_of_is_checked_in_the_file(wheel: str) -> None:
    with pytest.raises(SpecError, match=NODES[wheel]):
        parse(f"type: fleet\nname: lab\nsites: [{{name: a}}]\nnodes: {{wheel: {wheel}}}\n", "fleet.yaml")
    with pytest.raises(SpecError, match="there is none"):
        parse(
            f"type: fleet\nname: lab\nsites: [{{name: a}}]\nnodes: {{lock: /l.txt, lock_sha256: {SHA}}}\n",
            "f",
        )
    text = f"type: fleet\nname: lab\nsites: [{{name: a}}]\nnodes: {{wheel: /c.whl, wheel_sha256: {SHA}}}\n"
    (found,) = parse(text, "fleet.yaml")
    assert isinstance(found, FleetSpec) and found.nodes == NodesSpec(wheel="/c.whl", wheel_sha256=SHA)


# what a machine is told


def user_data(place: Home, store: SqlStore, one: FleetSpec, lease: Lease) -> str:
    place.certificates.mkdir(exist_ok=True)
    (place.certificates / "authority.pem").write_text("PEM OF THE AUTHORITY\n")
    makers = world._Makers(bare(place, store), one, place, lambda: "https://10.0.0.1:8600")
    return makers.script(one.providers[0], lease, SIZE)


def test_a_lease_gets_the_same_user_data_whenever_it_is_made_and_it_holds_no_secret(
    place: Home, store: SqlStore, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(world, "AUTHORITY", "authority.pem")
    one = fleet(nodes=NodesSpec(wheel="https://x/caudal.whl", wheel_sha256=SHA))
    text = user_data(place, store, one, held())
    assert text == user_data(place, store, one, held(state=LeaseState.REQUESTED, epoch=3, machine_id="i-1"))
    assert text != user_data(place, store, one, held(2))
    assert nodes.join_token(place.token(), held().id, held().requested_at + nodes.JOIN_VALID_S) in text
    assert place.token() not in text and nodes.ray_token(place.token(), "north") not in text
    assert "PEM OF THE AUTHORITY" in text and "caudal-lease-lab-north-1-1" in text
    assert len(text.encode()) < AWS_LIMIT_BYTES


def test_a_machine_joins_as_its_driver_says(place: Home, store: SqlStore) -> None:
    def words(driver: DriverSpec) -> dict[str, tuple[str, ...]]:
        one = fleet(drivers=(replace(driver, name="ray"),), api=ApiSpec())
        return world._Makers(bare(place, store), one, place, lambda: "")._join_words(held(), SIZE)

    assert set(words(RAY)) == {"head", "member"}
    assert "--port={port}" in words(RAY)["head"] and "--address={head}" in words(RAY)["member"]
    assert "--address=10.0.0.4:6379" in words(replace(RAY, address="10.0.0.4:6379"))["join"]
    assert words(replace(RAY, address="http://10.0.0.4:8265")) == {}
    assert words(DriverSpec("x", "slurm")) == {}


# who a fleet is


def test_two_fleets_of_one_name_are_two_and_control_processes_of_one_are_one(tmp_path: Path) -> None:
    blobs, others = (open_blobs((tmp_path / name).as_uri()) for name in ("one", "two"))
    a, b, c = (Home(tmp_path / name) for name in "abc")
    first = identity(a, blobs, "lab")
    assert first.startswith("lab-") and len(first) == len("lab-") + 8
    assert identity(b, blobs, "lab") == first == identity(a, others, "lab") == known(b, "lab")
    assert identity(c, others, "lab") != first and known(c, "lab") and not known(c, "other")


# who is the head


def test_the_first_node_of_a_site_is_its_head_and_the_next_one_learns_where_it_is(store: SqlStore) -> None:
    def join(lease: Lease) -> dict[str, str]:
        token = nodes.join_token("s", lease.id, 5000.0)
        return nodes.join(store, "s", lease.id, token, f"nonce of {lease.id} alone", 200.0)

    def report(lease: Lease, **status: object) -> None:
        nodes.accept(store, "s", lease.id, nodes.node_token("s", lease.id), {"status": status}, 201.0)

    second, first = join(held(2)), join(held(1))
    assert (second["role"], second["head"]) == ("head", "")
    assert (first["role"], first["head"]) == ("node", "")
    assert first["cluster_token"] == second["cluster_token"] == nodes.ray_token("s", "north")
    assert nodes.jobs_url(store.read(), "north") == ""
    where = {"address": "10.0.0.7:6379", "jobs": "http://10.0.0.7:8265"}
    report(held(2), state="joining")
    report(held(2), state="ready", head=where)
    assert join(held(1))["head"] == "10.0.0.7:6379" and join(held(2))["role"] == "head"
    assert nodes.jobs_url(store.read(), "north") == "http://10.0.0.7:8265"
    report(held(2), state="ready", head={"jobs": "file:///etc/passwd"})
    assert nodes.jobs_url(store.read(), "north") == ""
    report(held(2), state="failed", why="its Ray ended")
    store.commit(Change(leases=[held(3)]))
    assert join(held(3))["role"] == "head", "a site whose head is gone gets another one"


class Steady(Clock):
    """A clock that a test moves."""

    at = 300.0

    def now(self) -> float:
        return self.at


def gang() -> Gang:
    lease = held()
    return Gang(
        *("both.worker.0-1", "both.worker.0", 1, Role.WORKER, "both", 1, "north", lease.node),
        *(lease.id, 1, SIZE, 200.0),
    )


def test_a_site_without_a_head_runs_nothing_once_what_ran_must_be_over(place: Home, store: SqlStore) -> None:
    clock = Steady()
    driver = FirstNodeDriver("north", store, clock, place)
    assert driver.gangs() == []
    driver.stop("both.worker.0-1", 1.0)
    driver.forget("both.worker.0-1")
    store.commit(Change(gangs=[gang()]))
    driver = FirstNodeDriver("north", store, clock, place)
    with pytest.raises(Unreachable):
        driver.gangs()
    clock.at += GONE_S - 0.1
    with pytest.raises(Unreachable):
        driver.gangs()
    clock.at += 0.2
    assert driver.gangs() == []
    store.put_report(
        Report(
            subject(held().id),
            300.0,
            {"state": "ready", "role": "head", "head": {"jobs": "http://127.0.0.1:9"}},
        )
    )
    with pytest.raises(CaudalError):
        driver.gangs()  # there is a head, and it does not answer: nothing is known
    driver.close()


def test_nothing_is_started_on_a_machine_before_it_has_joined() -> None:
    play = Play(train(sites=1), sites=["north"])
    play.fleet = replace(play.fleet, sites=(SiteSpec("north", driver="ray"),), drivers=(RAY,))
    row = next(iter(play.leases.values()))

    def starts() -> list[str]:
        return [c.action.gang.node for c in play.step().choices if isinstance(c.action, StartGang)]

    assert starts() == []
    play.reports["n"] = Report(subject(row.id), play.now, {"state": "joining"})
    assert starts() == []
    play.reports["n"] = Report(subject(row.id), play.now, {"state": "ready"})
    assert set(starts()) == {row.node}


def test_machines_that_were_rented_for_slots_are_no_nodes_either_before_they_have_joined() -> None:
    play = Play(train(sites=2), sites=["north", "south"])
    play.fleet = fleet(SITE, replace(SITE, name="south"), api=ApiSpec())
    play.leases.clear()
    play.machines.clear()
    size = machine_type(8, 32)
    play.offers = [offer(s, "1.00", Market.ON_DEMAND, machine_type=size, id=s) for s in ("north", "south")]
    taken = [c.action.lease_id for c in play.step().choices if isinstance(c.action, AcquireNode)]
    assert len(taken) == 2
    for _ in range(3):
        assert not [c for c in play.step(1.0).choices if isinstance(c.action, StartGang | AcquireNode)]
    assert all(x.state is LeaseState.ACTIVE for x in play.leases.values())
    for lease_id in taken:
        play.reports[lease_id] = Report(subject(lease_id), play.now, {"state": "ready"})
    starts = [c.action.gang.lease_id for c in play.step(1.0).choices if isinstance(c.action, StartGang)]
    assert set(starts) == set(taken)


def test_a_machine_that_never_joins_is_given_back() -> None:
    play = Play(train(sites=1), sites=["north"])
    play.fleet = replace(play.fleet, sites=(SiteSpec("north", driver="ray"),), drivers=(RAY,))
    play.step()
    play.now += 2401.0
    assert "node.failed" in [c.reason.code for c in play.step().choices]


# a node's part in its cluster, as processes


HEAD = """
import http.server, json, pathlib, sys
class Answer(http.server.BaseHTTPRequestHandler):
    def do_GET(self):
        right = self.headers["Authorization"] == "Bearer " + pathlib.Path(sys.argv[2]).read_text()
        self.send_response(200 if right else 401)
        self.end_headers()
    def log_message(self, *_): pass
http.server.HTTPServer(("127.0.0.1", int(sys.argv[1])), Answer).serve_forever()
"""


def test_a_head_is_held_until_it_ends_and_two_on_one_machine_do_not_meet(tmp_path: Path) -> None:
    members = []
    for name in ("a", "b"):
        folder = tmp_path / name
        folder.mkdir()
        (folder / "cluster-token").write_text(f"token of {name}")
        member = Member(folder, "http://127.0.0.1:8600", shares_machine=True)
        member.start([sys.executable, "-c", HEAD, "{jobs_port}", "{token_file}"])
        members.append(member)
    for member in members:
        assert member.address == "127.0.0.1"
        assert member.wait_up(threading.Event(), head=True) == "" and member.over() == ""
    assert members[0].head()["jobs"] != members[1].head()["jobs"]
    assert members[0]._process is not None
    pid = members[0]._process.pid
    psutil.Process(pid).kill()
    until = time.monotonic() + 10
    while not members[0].over() and time.monotonic() < until:
        time.sleep(0.05)
    assert "code -9" in members[0].over()
    members[0].close()
    second = members[1]._process
    members[1].close()
    assert second is not None and second.poll() is not None


def test_a_head_that_ends_says_why(tmp_path: Path) -> None:
    member = Member(tmp_path, "http://127.0.0.1:8600", shares_machine=False)
    (tmp_path / "cluster-token").write_text("t")
    member.start([sys.executable, "-c", "import sys; sys.exit('no such port {head} ' + '{\"a\": 1}')"], "h:1")
    why = member.wait_up(threading.Event(), head=True)
    assert "code 1" in why and 'no such port h:1 {"a": 1}' in why
    member.close()


# the fake of Azure outlives who started it


def test_the_fake_of_azure_is_found_again_and_ended(tmp_path: Path) -> None:
    state = launcher.folder(tmp_path, "azure")
    url, token = launcher.start(state)
    try:
        assert launcher.start(state) == (url, token) == launcher.running(state)
        assert (state / "fake.json").stat().st_mode & 0o777 == 0o600
        pid = json.loads((state / "fake.json").read_text())["pid"]
        assert token not in " ".join(psutil.Process(pid).cmdline())
    finally:
        launcher.stop(state)
    assert launcher.running(state) is None and not (state / "fake.json").exists()
    launcher.stop(state)


# doctor


def test_doctor_asks_the_drivers(place: Home) -> None:
    one = fleet(
        drivers=(RAY, DriverSpec("gone", "ray", "http://127.0.0.1:9"), DriverSpec("none", "slurm")),
        providers=(),
    )
    found = {check.name: check for check in fleet_checks(one, place)}
    assert found["driver ray"].state == "ok"
    assert found["driver gone"].state == "fail" and found["driver gone"].remedy
    assert found["driver none"].state == "fail" and found["driver none"].said
    assert found["object store"].state == "warn" and "CAUDAL_BLOBS_URL" in found["object store"].remedy
