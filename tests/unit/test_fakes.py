"""What the fakes do beyond their ports: faults on purpose, and the truth behind them."""

from __future__ import annotations

from collections.abc import Callable
from decimal import Decimal

import pytest

from caudal.domain.errors import NoCapacity, Unreachable
from caudal.domain.fleet import MachineState, MachineType, Market, Offer, Resources
from caudal.domain.gang import GangSpec, GangState, ProcessSpec
from caudal.drivers.fake import FakeDriver, Script
from caudal.providers.fake import FakeProvider, MachineTimes
from caudal.simulate.kernel import Kernel

OFFER = Offer(
    "small@north",
    "north",
    MachineType("small", Resources(2.0, 1 << 30)),
    Market.ON_DEMAND,
    Decimal("0.10"),
    "test",
    "2026-01-01",
)


def gang(gang_id: str, node: str = "north-1") -> GangSpec:
    return GangSpec(gang_id, "north", node, 1, (ProcessSpec(("fake",)),))


def fails_once(name: str, fault: str) -> Callable[[str], str]:
    """A hook that spoils the first call of that name."""
    left = [name]

    def hook(call: str) -> str:
        if call in left:
            left.remove(call)
            return fault
        return ""

    return hook


def test_a_lost_call_does_nothing_and_a_lost_answer_did_it() -> None:
    kernel = Kernel()
    deaf = FakeDriver("north", kernel, fault=fails_once("start", "lost_call"))  # type: ignore[arg-type]
    with pytest.raises(Unreachable):
        deaf.start(gang("a-1"), "t")
    assert deaf.gangs() == []
    mute = FakeDriver("north", kernel, fault=fails_once("start", "lost_answer"))  # type: ignore[arg-type]
    with pytest.raises(Unreachable):
        mute.start(gang("a-1"), "t")
    assert [s.gang_id for s in mute.gangs()] == ["a-1"]
    mute.start(gang("a-1"), "t")
    assert len(mute.gangs()) == 1


def test_an_acquire_whose_answer_is_lost_gives_one_machine() -> None:
    kernel = Kernel()
    hook = fails_once("acquire", "lost_answer")
    provider = FakeProvider("fake", [OFFER], kernel, capacity={OFFER.id: 1}, fault=hook)  # type: ignore[arg-type]
    with pytest.raises(Unreachable):
        provider.acquire("lease-1", OFFER, "t-1")
    provider.acquire("lease-1", OFFER, "t-1")
    assert len(provider.existing()) == 1
    with pytest.raises(NoCapacity):
        provider.acquire("lease-2", OFFER, "t-2")


def test_the_list_lags_behind_and_what_exists_does_not() -> None:
    kernel = Kernel()
    times = MachineTimes(listed_after_s=(4.0, 4.0), boot_s=(6.0, 6.0))
    provider = FakeProvider("fake", [OFFER], kernel, times=times)
    provider.acquire("lease-1", OFFER, "t-1")
    assert provider.machines() == []
    assert len(provider.existing()) == 1
    kernel.sleep(5.0)
    assert [m.state for m in provider.machines()] == [MachineState.PENDING]
    kernel.sleep(2.0)
    assert [m.state for m in provider.machines()] == [MachineState.RUNNING]


def test_a_token_gives_no_second_machine_after_the_first_has_died() -> None:
    provider = FakeProvider("fake", [OFFER], Kernel())
    provider.acquire("lease-1", OFFER, "t-1")
    provider.kill(provider.machines()[0].id)
    provider.acquire("lease-1", OFFER, "t-1")
    assert provider.existing() == []


def test_someone_elses_machine_has_no_tag_and_takes_room() -> None:
    provider = FakeProvider("fake", [OFFER], Kernel(), capacity={OFFER.id: 1})
    provider.plant(OFFER)
    assert [m.lease_id for m in provider.machines()] == [""]
    assert provider.offers()[0].available == 0


def test_a_node_that_dies_takes_its_gangs_along_and_no_others() -> None:
    kernel = Kernel()
    driver = FakeDriver("north", kernel)
    driver.start(gang("a-1", "north-1"), "t1")
    driver.start(gang("b-1", "north-2"), "t2")
    kernel.sleep(1.0)
    driver.lose_node("north-1")
    assert {s.gang_id: s.state for s in driver.gangs()} == {"a-1": GangState.LOST, "b-1": GangState.RUNNING}
    driver.start(gang("c-1", "north-1"), "t3")
    assert [s.state for s in driver.gangs() if s.gang_id == "c-1"] == [GangState.LOST]
    driver.restore_node("north-1")
    driver.start(gang("d-1", "north-1"), "t4")
    assert [s.state for s in driver.gangs() if s.gang_id == "d-1"] == [GangState.STARTING]


def test_a_crash_leaves_a_signal_and_a_loss_leaves_nothing() -> None:
    kernel = Kernel()
    driver = FakeDriver("north", kernel)
    for name in ("a-1", "b-1", "c-1"):
        driver.start(gang(name), name)
    kernel.sleep(1.0)
    driver.crash("a-1")
    driver.lose("b-1")
    driver.finish("c-1")
    assert [s.exit_code for s in driver.gangs()] == [-9, None, 0]


def test_what_a_silent_site_runs_goes_on_and_ends_in_its_time() -> None:
    kernel = Kernel()
    driver = FakeDriver("north", kernel, script=lambda spec: Script(start_s=1.0, run_s=5.0))
    driver.start(gang("a-1"), "t")
    driver.silent = True
    kernel.sleep(2.0)
    assert [p.state for p in driver.processes()] == [GangState.RUNNING]
    kernel.sleep(10.0)
    driver.silent = False
    (status,) = driver.gangs()
    assert status.started_at is not None and status.ended_at == status.started_at + 5.0


def test_a_run_that_ends_before_the_stop_keeps_its_own_exit_code() -> None:
    kernel = Kernel()
    driver = FakeDriver("north", kernel, script=lambda spec: Script(start_s=0.0, run_s=3.0, stop_s=None))
    driver.start(gang("a-1"), "t")
    kernel.sleep(2.0)
    driver.stop("a-1", 60.0)
    kernel.sleep(5.0)
    assert driver.gangs()[0].exit_code == 0
