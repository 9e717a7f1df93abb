"""What a control process refuses to start on; nothing is changed and nobody is left leading then."""

from __future__ import annotations

import os
import socket
from pathlib import Path

import pytest

from caudal.composition import Control, SystemClock, make_home
from caudal.control.apply import apply
from caudal.domain.errors import Impossible, PortInUse, StateHeld, StorageFailed, UsageError
from caudal.domain.fleet import ApiSpec, FleetSpec, GatewaySpec, SiteSpec
from caudal.domain.workload import ServedModel, ServiceSpec, StageSpec, TrainSpec
from caudal.store.home import Home
from caudal.store.state import open_store
from tests.support.fleet import free_port

SERVICE = ServiceSpec("assistant", (ServedModel("small", source="pypi:x==1"),))
RUN = TrainSpec("wide", "builtin:tinyworld", (StageSpec("pretrain", 100_000),), sites=9)


def fleet() -> FleetSpec:
    return FleetSpec(
        "laptop",
        (SiteSpec("north"), SiteSpec("south")),
        gateway=GatewaySpec(port=free_port()),
        api=ApiSpec(port=free_port()),
    )


def untouched(place: Home) -> None:
    """Nothing is wanted, and nobody leads."""
    store = open_store(place.database_url)
    state, leader = store.read(), store.leader()
    store.close()
    assert state.fleet is None and state.workloads == ()
    assert leader is None or leader[2] == 0


@pytest.mark.parametrize("door", ["api", "gateway"])
def test_a_port_in_use_is_said_before_anything_is_changed(tmp_path: Path, door: str) -> None:
    place, one = Home(tmp_path / "home"), fleet()
    port = getattr(one, door).port
    with socket.create_server(("127.0.0.1", port)), pytest.raises(PortInUse) as raised:
        Control(place, [one, SERVICE])
    assert str(port) in raised.value.what
    assert f"`{door}.port`" in raised.value.remedy
    untouched(place)
    with socket.create_server(("127.0.0.1", one.api.port)):
        pass  # given back


def test_who_wants_no_gateway_does_not_mind_its_port(tmp_path: Path) -> None:
    place, one = Home(tmp_path / "home"), fleet()
    with socket.create_server(("127.0.0.1", one.gateway.port)):
        control = Control(place, [one])
        control.start()
        assert control.stop() == []


def test_a_gateway_that_was_wanted_before_is_looked_at_too(tmp_path: Path) -> None:
    place, one = Home(tmp_path / "home"), fleet()
    make_home(place)
    store = open_store(place.database_url)
    apply(store, [one, SERVICE], 1.0)
    store.close()
    with socket.create_server(("127.0.0.1", one.gateway.port)), pytest.raises(PortInUse):
        Control(place, [])


def test_what_cannot_be_placed_changes_nothing(tmp_path: Path) -> None:
    place = Home(tmp_path / "home")
    with pytest.raises(Impossible):
        Control(place, [fleet(), RUN])
    untouched(place)
    with pytest.raises(UsageError):
        Control(place, [SERVICE])
    with pytest.raises(UsageError):
        Control(place, [fleet(), fleet()])
    untouched(place)


def test_one_state_directory_has_one_control_process(tmp_path: Path) -> None:
    place, one = Home(tmp_path / "home"), fleet()
    first = Control(place, [one])
    with pytest.raises(StateHeld) as raised:
        Control(place, [one], name="another")
    assert str(os.getpid()) in str(raised.value)
    first.start()
    first.stop()
    second = Control(place, [one])
    second.start()
    second.stop()


def test_a_home_that_is_no_folder_is_said(tmp_path: Path) -> None:
    file = tmp_path / "file"
    file.write_text("mine")
    for root in (file, file / "below"):
        with pytest.raises(StorageFailed) as raised:
            Control(Home(root), [fleet()])
        assert str(root) in str(raised.value)
        assert "CAUDAL_HOME" in raised.value.remedy
    assert file.read_text() == "mine"


def test_the_secret_is_made_once_and_is_its_owners_alone(tmp_path: Path) -> None:
    place = Home(tmp_path / "home")
    make_home(place)
    secret = place.token()
    assert len(secret) >= 32
    assert place.token() == secret
    assert place.token_file.stat().st_mode & 0o077 == 0
    assert place.root.stat().st_mode & 0o077 == 0


def test_the_clock_follows_forward_and_never_goes_back() -> None:
    wall, steady = [1000.0], [5.0]
    clock = SystemClock(lambda: wall[0], lambda: steady[0])
    wall[0], steady[0] = 4600.0, 6.0
    assert clock.now() == 4600.0
    wall[0], steady[0] = 1002.0, 7.0
    assert clock.now() == 4601.0
