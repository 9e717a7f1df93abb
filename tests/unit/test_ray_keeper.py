"""What a gang's keeper says of its end."""

from __future__ import annotations

import os
from pathlib import Path
from typing import Any

import pytest

pytest.importorskip("ray")

from caudal.domain import gang
from caudal.drivers import local_folder as files
from caudal.drivers import local_shim
from caudal.drivers.local_folder import Folder
from caudal.drivers.ray import names
from caudal.drivers.ray.keeper import Keeper

SPEC = {"site": "north", "gang_id": "g-1"}


def ended(folder: Path, exit_code: int | None, raylet: int | None = None) -> dict[str, Any]:
    """What it says, where the shim wrote this exit (None: nothing), and that was its raylet (None: it lives)."""
    keeper = Keeper(SPEC)
    folder.mkdir()
    keeper._folder = Folder(folder)
    if exit_code is not None:
        keeper._folder.write(files.EXIT, {"exit_code": exit_code, "at": 1.0})
    if raylet is not None:
        keeper._raylet = raylet
    said = keeper.wait(5.0)
    assert said is not None and not folder.exists(), "the gang's secrets are gone with it"
    return said


def test_the_exit_code_that_its_shim_wrote(tmp_path: Path) -> None:
    assert ended(tmp_path / "gang", 3)["exit_code"] == 3


def test_where_its_shim_wrote_nothing_nobody_knows(tmp_path: Path) -> None:
    said = ended(tmp_path / "gang", None)
    assert said["exit_code"] is None and "no answer from the head" in said["error"]


def test_once_its_raylet_is_dead_the_gang_is_lost_by_whatever_signal_it_was_ended(tmp_path: Path) -> None:
    gone = os.getppid() + 1
    for number, exit_code in enumerate((-15, -9, None)):
        said = ended(tmp_path / f"gang-{number}", exit_code, gone)
        assert (said["exit_code"], said["error"]) == (None, "its node's raylet died")


def test_all_drivers_say_with_the_same_code_that_a_gang_could_not_be_started() -> None:
    assert gang.CANNOT_START == names.CANNOT_START == local_shim.CANNOT_START
