"""Own machines over real SSH on loopback: keys, silence, other fleets, answers that are lost, what runs there."""

from __future__ import annotations

import json
import time
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from dataclasses import replace
from pathlib import Path

import asyncssh
import pytest

from caudal.domain.errors import CaudalError, Failed, NoCapacity, NotAllowed, Unreachable
from caudal.domain.fleet import MachineState, Resources
from caudal.providers.hosts import HostsProvider
from caudal.providers.hosts.checks import looked_over
from caudal.providers.hosts.scripts import Claim, Health, Seen, read_claim, read_health, read_seen
from tests.support.own_hosts import OwnHosts, own_hosts


@pytest.fixture
def hosts(tmp_path: Path) -> Iterator[OwnHosts]:
    with own_hosts(tmp_path / "h", one="north", two="north", three="south") as built:
        yield built


@pytest.fixture
def provider(hosts: OwnHosts) -> Iterator[HostsProvider]:
    built = hosts.provider()
    yield built
    built.close()


def until(holds: Callable[[], object], within_s: float = 15.0) -> None:
    end = time.monotonic() + within_s
    while not holds():
        assert time.monotonic() < end, "it does not happen"
        time.sleep(0.05)


def take(provider: HostsProvider, host: str, lease: str) -> None:
    wanted = next(o for o in provider.offers() if o.id == f"own:{host}")
    provider.acquire(lease, wanted, f"token of {lease}")


def test_a_claim_says_whose_it_is_and_is_the_owners_alone(hosts: OwnHosts, provider: HostsProvider) -> None:
    take(provider, "one", "lease-1")
    claim = json.loads(hosts.hosts["one"].claim.read_text())
    assert (claim["fleet"], claim["lease"], claim["host"]) == ("lab", "lease-1", "one")
    assert hosts.hosts["one"].claim.stat().st_mode & 0o077 == 0
    assert {o.id: o.available for o in provider.offers()} == {"own:one": 0, "own:two": 1, "own:three": 1}


def test_another_fleets_claim_is_named_and_never_touched(hosts: OwnHosts, provider: HostsProvider) -> None:
    other = hosts.provider(fleet="rival")
    take(other, "one", "theirs")
    before = hosts.hosts["one"].claim.read_bytes()
    with pytest.raises(NoCapacity, match="rival"):
        take(provider, "one", "ours")
    assert provider.machines() == []
    mine = hosts.provider(fleet="rival").machines()[0]
    provider.release(mine.id.replace(mine.id[-4:], "0000"))
    assert hosts.hosts["one"].claim.read_bytes() == before
    other.close()


def test_a_silent_host_leaves_the_others_known(hosts: OwnHosts, provider: HostsProvider) -> None:
    take(provider, "one", "lease-1")
    take(provider, "two", "lease-2")
    hosts.down("two")
    listing = provider.listing()
    assert listing.silent == frozenset()
    assert {m.lease_id: m.silent for m in listing.machines} == {"lease-1": False, "lease-2": True}
    assert {o.id: o.available for o in provider.offers()}["own:two"] == 0
    hosts.up("two")
    until(lambda: not any(m.silent for m in provider.machines()))


def test_a_site_of_which_no_host_answers_is_unknown(hosts: OwnHosts, provider: HostsProvider) -> None:
    take(provider, "three", "lease-3")
    hosts.down("three")
    listing = provider.listing()
    assert listing.silent == {"south"} and listing.machines == []
    with pytest.raises(Unreachable, match="south"):
        provider.machines()


def test_what_nobody_knows_is_unknown_and_memory_outlives_the_process(
    hosts: OwnHosts, tmp_path: Path
) -> None:
    first = hosts.provider()
    take(first, "one", "lease-1")
    first.machines()
    first.close()
    hosts.down("one")
    second = hosts.provider()
    assert [(m.lease_id, m.silent) for m in second.listing().machines] == [("lease-1", True)]
    second.close()
    for file in (hosts.folder / "memory").rglob("one.json"):
        file.unlink()
    third = hosts.provider()
    assert third.listing().silent == {"north"}
    third.close()


def test_a_mute_host_is_waited_for_once(hosts: OwnHosts, provider: HostsProvider) -> None:
    provider.machines()
    hosts.down("two", mute=True)
    begun = time.monotonic()
    provider.listing()
    assert time.monotonic() - begun < 13.0
    begun = time.monotonic()
    for _ in range(3):
        provider.listing()
    assert time.monotonic() - begun < 3.0, "every pass waits for the dead host"


def test_a_lost_answer_leaves_one_claim(hosts: OwnHosts, provider: HostsProvider) -> None:
    wanted = next(o for o in provider.offers() if o.id == "own:one")
    hosts.hosts["one"].mode = "lost"
    with pytest.raises(Unreachable):
        provider.acquire("lease-1", wanted, "t")
    hosts.hosts["one"].mode = ""
    # Whether it got there is not known; asking again is asking once.
    provider.acquire("lease-1", wanted, "t")
    until(lambda: [m.lease_id for m in provider.machines()] == ["lease-1"])
    machine = provider.machines()[0]
    hosts.hosts["one"].mode = "lost"
    with pytest.raises(Unreachable):
        provider.release(machine.id)
    hosts.hosts["one"].mode = ""
    provider.release(machine.id)
    until(lambda: provider.machines() == [])


def test_an_unknown_host_key_is_refused(hosts: OwnHosts) -> None:
    (hosts.folder / "known").write_text("")
    provider = hosts.provider()
    with pytest.raises(Unreachable, match="host key"):
        provider.machines()
    checks = {c.name: c for c in provider.checks()}
    assert checks["host one"].state == "fail" and "fingerprint" in checks["host one"].remedy
    assert hosts.hosts["one"].commands == 0
    provider.close()


def test_a_wrong_key_says_what_to_do(hosts: OwnHosts) -> None:
    asyncssh.generate_private_key("ssh-ed25519").write_private_key(str(hosts.folder / "id"))
    provider = hosts.provider()
    found = provider.health()["one"]
    assert isinstance(found, NotAllowed) and "authorized_keys" in found.remedy
    provider.close()


def test_a_damaged_ssh_configuration_is_said(hosts: OwnHosts) -> None:
    (hosts.folder / "id").write_text("no key")
    provider = hosts.provider()
    with pytest.raises(Unreachable, match="does not let us in|cannot be used"):  # noqa: RUF043
        provider.machines()
    provider.close()


def test_of_many_fleets_at_once_one_gets_the_host(hosts: OwnHosts) -> None:
    """Eight fleets ask for one host at the same moment, five times over."""
    providers = [hosts.provider(fleet=f"fleet-{number}") for number in range(8)]
    wanted = next(o for o in providers[0].offers() if o.id == "own:one")
    for turn in range(5):

        def ask(number: int, lease: str = f"lease-{turn}") -> bool:
            try:
                providers[number].acquire(lease, wanted, f"token {number} {lease}")
            except NoCapacity:
                return False
            return True

        with ThreadPoolExecutor(8) as pool:
            won = list(pool.map(ask, range(8)))
        assert sum(won) == 1
        winner = providers[won.index(True)]
        assert [len(p.machines()) for p in providers] == [int(p is winner) for p in providers]
        winner.release(winner.machines()[0].id)
    for provider in providers:
        provider.close()


SLEEPER = """
printf 'begun %s\\n' "$$"
( setsid sleep 300 & echo $! > "$CAUDAL_NODE_DIR/child" )
sleep 300
"""


def alive(pid: int) -> bool:
    try:
        return Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()[0] not in "ZX"
    except OSError:
        return False


def test_release_ends_what_was_started_also_what_left_its_session(hosts: OwnHosts) -> None:
    provider = hosts.provider(bootstrap=lambda lease, host: SLEEPER)
    take(provider, "one", "lease-1")
    machine = provider.machines()[0]
    assert machine.state is MachineState.RUNNING and not machine.failed
    node = next((hosts.hosts["one"].home / ".caudal" / "nodes").iterdir())
    until(lambda: (node / "child").exists() and (node / "child").read_text().strip())
    child, main = int((node / "child").read_text()), int((node / "log").read_text().split()[1])
    assert alive(child) and alive(main)
    take(provider, "one", "lease-1")
    assert alive(main)
    provider.release(machine.id)
    assert not alive(child) and not alive(main) and not node.exists()
    assert provider.machines() == []
    provider.release(machine.id)
    provider.close()


def test_a_bootstrap_that_fails_says_why(hosts: OwnHosts) -> None:
    script = 'echo "one GPU of two" > "$CAUDAL_NODE_DIR/failed"; exit 3'
    provider = hosts.provider(bootstrap=lambda lease, host: script)
    take(provider, "one", "lease-1")
    until(lambda: provider.machines()[0].failed)
    assert provider.machines()[0].failed == "one GPU of two"
    provider.close()


def test_a_bootstrap_that_ends_well_makes_a_node_and_runs_once(hosts: OwnHosts) -> None:
    provider = hosts.provider(bootstrap=lambda lease, host: f'echo {lease} >> "$HOME/ran"')
    take(provider, "one", "lease-1")
    ran = hosts.hosts["one"].home / ".caudal" / "nodes"
    until(lambda: [f.read_text() for f in ran.glob("*/state")] == ["0\n"])
    take(provider, "one", "lease-1")
    time.sleep(0.3)
    assert (hosts.hosts["one"].home / "ran").read_text() == "lease-1\n"
    assert not provider.machines()[0].failed
    provider.close()


def test_a_damaged_claim_is_nobodys_guess(hosts: OwnHosts, provider: HostsProvider) -> None:
    hosts.hosts["one"].claim.parent.mkdir()
    hosts.hosts["one"].claim.write_text("[]")
    assert provider.listing().silent == {"north"}
    assert {o.id: o.available for o in provider.offers()}["own:one"] == 0
    with pytest.raises(Failed, match="cannot be read"):
        read_claim("{", "one")


def test_health_is_this_machines(provider: HostsProvider) -> None:
    found = provider.health()["one"]
    assert isinstance(found, Health)
    assert found.cpus >= 1 and found.memory_bytes > found.memory_free_bytes > 0
    assert abs(found.at - time.time()) < 10 and found.disk_free_bytes > 0
    assert {c.name for c in provider.checks()} == {"host one", "host two", "host three"}


def test_answers_that_are_cut_off_are_not_believed() -> None:
    claim = Claim("lab", "l", "t", "one", "north", "0" * 16)
    assert read_seen(f"claim {claim.line()}\nend\n", "one") == Seen(claim)
    with pytest.raises(Failed):
        read_seen(f"claim {claim.line()}\n", "one")
    with pytest.raises(Failed):
        read_health("now 1\nend\n", "one")


def test_checks_name_what_is_less_than_promised(hosts: OwnHosts) -> None:
    gib = 1 << 30
    spec = replace(
        hosts.hosts["one"].spec(), resources=Resources(8.0, 64 * gib, accelerators=2, neuron_cores=2)
    )
    well = Health(1000.0, 8, 0.1, 63 * gib, 60 * gib, 100 * gib, 50 * gib, ("H100, 81559", "H100, 81559"), 2)

    def states(health: Health | CaudalError, seen: Seen | None = None) -> list[str]:
        rows = looked_over([spec], "lab", {"one": health}, {"one": seen or Seen(None)}, 1000.0)
        assert all(row.remedy for row in rows if row.state != "ok")
        return [f"{row.state}: {row.said}" for row in rows]

    assert states(well)[0].startswith("ok")
    assert states(replace(well, gpus=("H100, 81559",))) == [
        "fail: nvidia-smi lists 1, and the fleet file says 2"
    ]
    assert states(replace(well, gpus=None))[0].startswith("fail: nvidia-smi is not there")
    assert states(replace(well, neuron_cores=0))[0].startswith("fail: neuron-ls")
    assert states(replace(well, cpus=4, memory_bytes=gib))[1].startswith("fail: 1.0 GiB")
    assert states(replace(well, at=900.0)) == ["warn: its clock is -100 s off this machine's"]
    assert states(replace(well, disk_free_bytes=gib))[0].startswith("warn")
    other = Claim("rival", "l", "t", "one", "north", "0" * 16)
    assert states(well, Seen(other)) == ["warn: claimed by fleet rival"]
