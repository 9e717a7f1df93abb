"""What the suites run against: every implementation of a port, each with the little that differs.

A case builds its implementation in a folder of the test's own, says how its gangs are made to do something,
and how time passes: virtual for the fakes, real (and short) for the others.
"""

from __future__ import annotations

import itertools
import sys
import time
from collections.abc import Callable, Iterator
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass, field, replace
from decimal import Decimal
from pathlib import Path
from typing import Any

import pytest

from caudal.domain.errors import Unreachable
from caudal.domain.fleet import MachineType, Market, Offer, Resources, SiteSpec, SlurmSpec
from caudal.domain.gang import GangSpec, ProcessSpec
from caudal.drivers.fake import FakeDriver, Script
from caudal.drivers.local import PACKAGE_ROOT, LocalDriver
from caudal.drivers.slurm.driver import SlurmDriver
from caudal.drivers.slurm.hosts import Here, OverSsh
from caudal.ports import Driver, Provider
from caudal.providers.aws.provider import AwsProvider
from caudal.providers.azure import AzureProvider
from caudal.providers.azure_fake import FakeAzure
from caudal.providers.fake import FakeProvider, MachineTimes
from caudal.providers.hosts import HostsProvider
from caudal.providers.local import LocalProvider
from caudal.simulate.kernel import Kernel
from tests.support import ray_site
from tests.support.aws import REGION, fresh_aws, reserved
from tests.support.azure import GROUP_ID, LOCATION, SIZE, azure_provider, fake_azure
from tests.support.own_hosts import own_hosts
from tests.support.ssh_server import ssh_server

SITE = "north"


class RealClock:
    """Implements `ports.Clock` with the machine's own."""

    def now(self) -> float:
        return time.time()

    def sleep(self, seconds: float) -> None:
        time.sleep(seconds)


@dataclass(frozen=True)
class Does:
    """What a test wants a gang's only process to do."""

    prints: str = ""
    runs_s: float = 600.0
    exit_code: int = 0
    heeds_stop: bool = True
    files: dict[str, str] = field(default_factory=dict)


@dataclass
class Case:
    """What both suites need: time, and a way to make the port unreachable where there is one."""

    pass_time: Callable[[float], None]
    patience_s: float
    silence: Callable[[bool], None] | None

    def until(self, holds: Callable[[], Any]) -> Any:
        """Wait until something holds, and return it."""
        waited_s, step_s = 0.0, 0.02
        while not (found := holds()):
            assert waited_s < self.patience_s, "it does not happen"
            self.pass_time(step_s)
            waited_s += step_s
        return found


@dataclass
class DriverCase(Case):
    """One driver. `make_spec` builds a gang that does what the test wants; `again` opens the same site anew,
    as the next control process would."""

    driver: Driver
    make_spec: Callable[[str, Does], GangSpec]
    again: Callable[[], Driver]
    grace_s: float = 0.3
    """A grace that outlasts a few calls of this driver."""


@dataclass
class ProviderCase(Case):
    """One provider with at least one offer. `again` opens it anew; `limit` leaves room for so many machines,
    where that can be said."""

    provider: Provider
    again: Callable[[], Provider]
    limit: Callable[[int], None] | None


def _set_silent(port: FakeDriver | FakeProvider) -> Callable[[bool], None]:
    def silence(on: bool) -> None:
        port.silent = on

    return silence


@contextmanager
def fake_driver(tmp_path: Path) -> Iterator[DriverCase]:
    """Processes in virtual time: what each does is looked up by its gang."""
    kernel = Kernel()
    does: dict[str, Does] = {}

    def script(spec: GangSpec) -> Script:
        wish = does[spec.gang_id]
        return Script(
            start_s=0.05,
            run_s=wish.runs_s,
            exit_code=wish.exit_code,
            stop_s=0.05 if wish.heeds_stop else None,
            prints=wish.prints,
        )

    def make_spec(gang_id: str, wish: Does) -> GangSpec:
        does[gang_id] = wish
        return GangSpec(gang_id, SITE, f"{SITE}-0", 1, (ProcessSpec(("fake",), files=wish.files),))

    driver = FakeDriver(SITE, kernel, script=script)
    yield DriverCase(kernel.sleep, 30.0, _set_silent(driver), driver, make_spec, lambda: driver)


@contextmanager
def fake_provider(tmp_path: Path) -> Iterator[ProviderCase]:
    """Machines in virtual time, with a list that lags behind."""
    kernel = Kernel()
    kind = MachineType("small", Resources(cpus=2.0, memory_bytes=1 << 30))
    offer = Offer("small@north", SITE, kind, Market.ON_DEMAND, Decimal("0.10"), "test", "2026-01-01")
    provider = FakeProvider("fake", [offer], kernel, times=MachineTimes(listed_after_s=(0.5, 1.0)))
    yield ProviderCase(
        kernel.sleep,
        30.0,
        _set_silent(provider),
        provider,
        lambda: provider,
        lambda machines: provider.set_capacity(offer.id, machines),
    )


PROGRAM = """
import os, signal, sys, time
assert os.path.samefile(os.environ["OWN_FOLDER"], os.path.dirname(__file__)), "{dir} is filled in, in env too"
prints, runs_s, code, heeds = sys.argv[1], float(sys.argv[2]), int(sys.argv[3]), sys.argv[4] == "True"
signal.signal(signal.SIGTERM, (lambda *_: sys.exit(143)) if heeds else signal.SIG_IGN)
print(prints, flush=True)
end = time.monotonic() + runs_s
while time.monotonic() < end:
    time.sleep(0.02)
sys.exit(code)
"""
"""What a real process does for a test."""


def real_spec(gang_id: str, wish: Does) -> GangSpec:
    """A gang of one real process that does it."""
    arguments = (wish.prints, str(wish.runs_s), str(wish.exit_code), str(wish.heeds_stop))
    files = {"program.py": PROGRAM, **wish.files}
    process = ProcessSpec(("{python}", "{dir}/program.py", *arguments), {"OWN_FOLDER": "{dir}"}, files)
    return GangSpec(gang_id, SITE, f"{SITE}-0", 1, (process,))


@contextmanager
def local_driver(tmp_path: Path) -> Iterator[DriverCase]:
    """Real processes of this machine."""
    clock, root = RealClock(), tmp_path / "gangs"
    driver = LocalDriver(SITE, root, clock)
    yield DriverCase(clock.sleep, 20.0, None, driver, real_spec, lambda: LocalDriver(SITE, root, RealClock()))


_ray_sites = itertools.count(1)


@contextmanager
def ray_driver(tmp_path: Path) -> Iterator[DriverCase]:
    """Jobs of a real Ray cluster, the same for all tests; each has a site of its own on it."""
    cluster = ray_site.SHARED.get()
    site = f"{SITE}-{next(_ray_sites)}"
    door = ray_site.through(cluster)
    driver = cluster.driver(door.url, site)

    def make_spec(gang_id: str, wish: Does) -> GangSpec:
        asks = Resources(cpus=0.5, memory_bytes=64 << 20)
        return replace(real_spec(gang_id, wish), site=site, lease_id="lease-1", resources=asks)

    def silence(on: bool) -> None:
        door.shut = on

    try:
        yield DriverCase(
            RealClock().sleep, 60.0, silence, driver, make_spec, lambda: cluster.driver(door.url, site)
        )
        for status in driver.gangs():
            driver.forget(status.gang_id)
    finally:
        driver.close()
        door.close()


@contextmanager
def slurm_driver(tmp_path: Path) -> Iterator[DriverCase]:
    """Jobs of a real Slurm on this machine, which the fixture `slurm` has started. It is never silent here:
    test_slurm.py takes its slurmctld away."""
    spec = SlurmSpec(folder=str(tmp_path / "shared"))

    def build() -> SlurmDriver:
        return SlurmDriver(SITE, spec, Here())

    yield DriverCase(RealClock().sleep, 30.0, None, build(), real_spec, build, grace_s=1.0)


@contextmanager
def slurm_driver_over_ssh(tmp_path: Path) -> Iterator[DriverCase]:
    """The same by way of the system's ssh and a server on loopback, which can refuse to answer."""
    python = (
        tmp_path / "python"
    )  # `-I` would leave out the sources that are tested, where another Caudal is installed
    python.write_text(
        f'#!/bin/sh\n[ "$1" = -I ] && shift\nPYTHONPATH={PACKAGE_ROOT} exec {sys.executable} "$@"\n'
    )
    python.chmod(0o700)
    spec = SlurmSpec(folder=str(tmp_path / "shared"), python=str(python))
    with ssh_server(tmp_path / "ssh") as server:

        def build() -> SlurmDriver:
            return SlurmDriver(SITE, spec, OverSsh(server.address, str(python), server.options))

        yield DriverCase(RealClock().sleep, 60.0, server.silence, build(), real_spec, build, grace_s=3.0)


@contextmanager
def local_provider(tmp_path: Path) -> Iterator[ProviderCase]:
    """This machine, shared out between two sites; each has one machine and never more."""

    def build() -> LocalProvider:
        sites = [SiteSpec("north"), SiteSpec("south")]
        return LocalProvider(tmp_path / "machines", sites, 2, 4 << 30, "2026-01-01")

    yield ProviderCase(RealClock().sleep, 5.0, None, build(), build, lambda machines: None)


@contextmanager
def azure_on_fake(tmp_path: Path) -> Iterator[ProviderCase]:
    """The real SDK against the fake of Azure, which is one process for all tests."""
    fake = fake_azure()
    reserve(fake, 5)

    def build() -> AzureProvider:
        return azure_provider(fake, RealClock(), markets=("reserved",))

    def silence(on: bool) -> None:
        fake.admin("fault", {"kind": "refuse", "status": 503}) if on else fake.admin("calm", {})

    yield ProviderCase(
        RealClock().sleep, 10.0, silence, build(), build, lambda machines: reserve(fake, machines)
    )


def reserve(fake: FakeAzure, machines: int) -> None:
    """Have that many machines in the contract's capacity reservation."""
    rows = [{"name": "one", "size": SIZE, "capacity": machines}]
    fake.admin("reserve", {"group_id": GROUP_ID, "location": LOCATION, "reservations": rows})


@contextmanager
def aws_provider(tmp_path: Path) -> Iterator[ProviderCase]:
    """AWS's own SDK against the fake of AWS; what is had first is a reservation, so that it can be bounded."""
    aws = fresh_aws()
    reference = aws.reserve(4)

    def build() -> AwsProvider:
        return aws.provider(contracts=[reserved(reference, 4)])

    def limit(machines: int) -> None:
        aws.admin("reservation", id=reference, count=machines)

    def silence(on: bool) -> None:
        aws.admin("region", region=REGION, mode="down" if on else "")

    yield ProviderCase(RealClock().sleep, 10.0, silence, build(), build, limit)


@contextmanager
def hosts_provider(tmp_path: Path) -> Iterator[ProviderCase]:
    """Two machines of the team's own, each a real SSH server on loopback."""
    with own_hosts(tmp_path / "hosts") as hosts, ExitStack() as closing:

        def build() -> HostsProvider:
            provider = hosts.provider()
            closing.callback(provider.close)
            return provider

        yield ProviderCase(RealClock().sleep, 10.0, hosts.silence, build(), build, None)


def unreachable(call: Callable[[], object]) -> None:
    """The call is refused because nobody answers."""
    with pytest.raises(Unreachable):
        call()


RAY_MARKS = [
    pytest.mark.cluster,
    pytest.mark.slow,
    pytest.mark.skipif(bool(ray_site.unusable()), reason=ray_site.unusable()),
]
DRIVERS: list[Any] = [
    pytest.param((fake_driver, None), id="fake"),
    pytest.param((local_driver, None), id="local"),
    pytest.param((slurm_driver, "slurm"), id="slurm", marks=pytest.mark.cluster),
    pytest.param((slurm_driver_over_ssh, "slurm"), id="slurm-ssh", marks=pytest.mark.cluster),
    pytest.param((ray_driver, None), id="ray", marks=RAY_MARKS),
]
"""Each with the fixture that has to be up first, if any."""
PROVIDERS: list[Any] = [
    pytest.param(fake_provider, id="fake"),
    pytest.param(local_provider, id="local"),
    pytest.param(azure_on_fake, id="azure"),
    pytest.param(aws_provider, id="aws"),
    pytest.param(hosts_provider, id="hosts"),
]
