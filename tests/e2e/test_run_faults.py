"""A run as real processes while something is wrong: it ends with a clear error, or goes on with nothing lost."""

from __future__ import annotations

import hashlib
import json
import shutil
import subprocess
import sys
import time
from dataclasses import replace
from pathlib import Path
from typing import Any

import msgspec
import pytest

from caudal.domain.errors import LedgerBroken
from caudal.store.blobs import open_blobs
from caudal.train import checkpoint, ledger
from caudal.train.audit import audit_run
from tests.e2e.test_run_survival import PREFIX, SPEC, Fleet, fleet, kill
from tests.e2e.test_run_takeover import again
from tests.support.faulty_store import way_to
from tests.support.object_stores import Server, s3

__all__ = ["fleet", "s3"]

pytestmark = [pytest.mark.e2e, pytest.mark.timeout(240)]


def started(fleet: Fleet, incarnation: int = 1, **more: Any) -> list[subprocess.Popen[bytes]]:
    """Coordinator and two workers."""
    boss = fleet.start("coordinator", "tiny.coordinator", incarnation, **more)
    return [boss, *(fleet.start("worker", f"tiny.worker.{i}", incarnation, **more) for i in range(2))]


def entries(fleet: Fleet) -> list[ledger.Entry]:
    return [link.entry for link in ledger.read_from(fleet.blobs, PREFIX, None)]


# ---- a site that does not fit ------------------------------------------------------------------------------


def test_a_site_that_would_train_something_else_ends_with_what_differs_at_both_sides(fleet: Fleet) -> None:
    fleet.start("coordinator", "tiny.coordinator")
    fleet.until(lambda: (fleet.folder / "blobs" / PREFIX / "epoch-000001.json").exists())

    def refused(slot: str, said: str, **more: Any) -> None:
        fleet.ends(fleet.start("worker", slot, **more), 5)
        log = (fleet.folder / f"{slot}-1.log").read_text()
        assert said in log and "cannot take part" in log and "Traceback" not in log, log

    spec = msgspec.to_builtins(SPEC)
    deeper = {**spec, "model": {**spec["model"], "layers": 3}}
    refused("tiny.worker.0", "the model.layers at 0 is 3, at the coordinator 2", spec=deeper)
    coarser = {**spec, "outer": {**spec["outer"], "bits": 4}}
    refused("tiny.worker.1", "the outer.bits at 1 is 4, at the coordinator 8", spec=coarser)
    env = {"TINY_VERSION": "0.0.7"}
    refused("tiny.worker.2", "the version at 2 is 0.0.7, at the coordinator 0.1.0", env=env)

    copy = fleet.folder / "copy"  # the store of a site that was prepared by itself
    shutil.copytree(fleet.folder / "blobs", copy)
    manifest = copy / PREFIX / "data/manifest.json"
    said = json.loads(manifest.read_text())
    ours = said["files"]["tokenizer.json"]
    said["files"]["tokenizer.json"] = theirs = hashlib.sha256(b"another").hexdigest()
    manifest.write_text(json.dumps(said))
    word = f"the tokenizer.json at 3 is {theirs}, at the coordinator {ours}"
    refused("tiny.worker.3", word, blobs_url=copy.as_uri())
    assert fleet.round() == 0


# ---- what was kept is damaged ------------------------------------------------------------------------------


@pytest.mark.parametrize("damage", ["truncated", "missing", "manifest"])
def test_a_run_goes_on_behind_a_damaged_checkpoint(fleet: Fleet, damage: str) -> None:
    processes = started(fleet)
    fleet.until(lambda: len(fleet.blobs.list(f"{PREFIX}/manifests/")) >= 3)
    for process in processes:
        kill(process)
    at, before = fleet.round(), entries(fleet)
    newest = fleet.blobs.list(f"{PREFIX}/manifests/")[-1]
    root = fleet.folder / "blobs"
    name = json.loads((root / newest).read_text())["file"]
    state = root / checkpoint.state_path(PREFIX, name)
    if damage == "truncated":
        state.write_bytes(state.read_bytes()[:-100])
    elif damage == "missing":
        state.unlink()
    else:
        (root / newest).write_text('{"run": "tiny"')
    for process in started(fleet, 2):
        fleet.ends(process)
    said = {"truncated": "truncated or changed", "missing": "is missing", "manifest": "cannot be read"}
    assert f"{newest} cannot be used" in fleet.logs() and said[damage] in fleet.logs()
    assert entries(fleet)[:at] == before, "no committed round is lost"
    fleet.audit()


def test_a_changed_byte_of_the_ledger_ends_a_restart_and_the_audit_with_the_round(fleet: Fleet) -> None:
    processes = started(fleet)
    fleet.until(lambda: len(fleet.blobs.list(f"{PREFIX}/manifests/")) >= 3)
    for process in processes:
        kill(process)
    at = fleet.round()
    first = json.loads(fleet.blobs.get(fleet.blobs.list(f"{PREFIX}/manifests/")[-1]))["round"]
    path = fleet.folder / "blobs" / ledger.entry_path(PREFIX, first)
    data = bytearray(path.read_bytes())
    where = data.index(b'"tokens":') + 9
    data[where] = ord("7") if data[where] != ord("7") else ord("8")
    path.write_bytes(data)
    boss = fleet.start("coordinator", "tiny.coordinator", 2)
    fleet.ends(boss, 1)
    assert f"round {first} of the ledger does not add up" in fleet.logs()
    assert "do not train on from this one" in fleet.logs() and "Traceback" not in fleet.logs()
    assert fleet.round() == at, "nothing was trained on from it"
    with pytest.raises(LedgerBroken, match="round "):
        audit_run(fleet.blobs, "tiny")
    home = fleet.folder
    told = subprocess.run(
        [sys.executable, "-m", "caudal.cli", "--home", str(home), "audit", "tiny"],
        capture_output=True,
        text=True,
        check=False,
    )
    assert told.returncode == 1 and "error[ledger_broken]" in told.stderr and "Traceback" not in told.stderr


# ---- an object store that is not well ----------------------------------------------------------------------


def test_a_store_that_refuses_is_slow_or_silent_makes_a_run_wait_and_loses_nothing(
    fleet: Fleet, s3: Server, monkeypatch: pytest.MonkeyPatch
) -> None:
    for key, value in s3.env.items():
        monkeypatch.setenv(key, value)
    direct = open_blobs(s3.url)

    def round_now() -> int:
        return len(direct.list(f"{PREFIX}/ledger/"))

    with way_to(s3.env["AWS_ENDPOINT_URL"]) as way:
        env = {**s3.env, "AWS_ENDPOINT_URL": way.url}
        # the ladder would answer a slow store with longer rounds, until there are none left to look at
        steady = replace(SPEC, outer=replace(SPEC.outer, max_inner_steps=5))
        spec = msgspec.to_builtins(steady)
        processes = started(fleet, step_s=0.002, blobs_url=s3.url, env=env, spec=spec)
        fleet.until(lambda: round_now() >= 5, 60.0)

        def waits_while(*said: str) -> None:
            fleet.until(lambda: all(s in fleet.logs() for s in ("is not kept yet", *said)), 60.0)
            at = round_now()
            assert all(p.poll() is None for p in processes), fleet.logs()
            assert round_now() == at

        for status in (503, 500):
            way.answers = status
            waits_while("s3://", f"status code: {status}", "answers with an error")
            way.answers = 0
            at = round_now()
            fleet.until(lambda at=at: round_now() >= at + 3, 60.0)  # type: ignore[misc]
            for log in fleet.folder.glob("*.log"):
                log.write_text("")  # what follows says it again
        way.delay_s = 0.4
        at = round_now()
        fleet.until(lambda: round_now() >= at + 2, 90.0)
        way.delay_s = 0.0
        way.silent, way.spoilt = True, 0
        fleet.until(lambda: way.spoilt >= 2)  # the commit, the beat
        at = round_now()
        time.sleep(3.0)
        assert round_now() == at and all(p.poll() is None for p in processes)
        way.silent = False
        fleet.until(lambda: round_now() >= at + 3, 60.0)
        way.close()  # nobody is there
        waits_while("the object store does not answer", "check the address and the network")
        way.open()
        for process in processes:
            fleet.ends(process)
    report = audit_run(direct, "tiny")
    assert report.finished and not report.missing and report.ids == report.ids_total
    assert report.epochs == 1, "nobody took over: the coordinator was there"


# ---- a clock that is wrong ---------------------------------------------------------------------------------


def test_a_clock_that_jumps_an_hour_while_a_run_goes_on_changes_nothing(fleet: Fleet, tmp_path: Path) -> None:
    """The coordinator's jumps forward and back, one site's the other way; a takeover happens in between."""
    clocks = {name: tmp_path / f"clock-{name}" for name in ("boss", "0", "1")}
    for clock in clocks.values():
        clock.write_text("0")
    boss = fleet.start("coordinator", "tiny.coordinator", env={"TINY_CLOCK": str(clocks["boss"])})
    workers = [
        fleet.start("worker", f"tiny.worker.{i}", step_s=0.02, env={"TINY_CLOCK": str(clocks[str(i)])})
        for i in range(2)
    ]
    fleet.until(lambda: fleet.round() >= 5)
    for forward, back in ((3600, -3600), (-3600, 3600)):
        clocks["boss"].write_text(str(forward))
        clocks["0"].write_text(str(back))
        at = fleet.round()
        fleet.until(lambda at=at: fleet.round() >= at + 6, 10.0)  # type: ignore[misc]
    assert all(p.poll() is None for p in (boss, *workers)) and "is gone" not in fleet.logs()
    times = [entry.at for entry in entries(fleet)]
    assert times == sorted(times) and times[-1] - times[0] < 600, "one reading of the clock a coordinator"
    kill(boss)  # the next reads a clock that is an hour behind
    last = fleet.start("coordinator", "tiny.coordinator", 2, env={"TINY_CLOCK": str(clocks["boss"])})
    for process in (last, *workers):
        fleet.ends(process)
    assert fleet.audit().epochs == 2


# ---- samples and sites that make no numbers ----------------------------------------------------------------


def test_a_sample_that_no_site_can_train_is_set_aside_and_the_run_ends(
    fleet: Fleet, monkeypatch: pytest.MonkeyPatch
) -> None:
    for process in started(fleet, env={"TINY_POISON": "45,723"}):
        fleet.ends(process)
    report = fleet.audit()
    aside = {i for s in report.skips for a, b in s.ids for i in range(a, b)}
    assert {45, 723} <= aside and report.skipped == len(aside) <= 8
    monkeypatch.setenv("TINY_STEP_S", "0")
    taken = again(fleet)
    assert (taken.differs, taken.compared) == (0, fleet.round()), "a replay leads to the same bytes"
    rows = [
        json.loads(line)
        for p in fleet.blobs.list(f"{PREFIX}/metrics/")
        for line in fleet.blobs.get(p).splitlines()
    ]
    assert sum(row.get("skipped", 0) for row in rows) == report.skipped


def test_a_site_that_sends_what_is_no_number_is_kept_out_and_the_other_trains_all(fleet: Fleet) -> None:
    boss = fleet.start("coordinator", "tiny.coordinator")
    broken = fleet.start("worker", "tiny.worker.0", env={"TINY_POISON": "all"})
    good = fleet.start("worker", "tiny.worker.1", step_s=0.03)
    fleet.until(lambda: "bad deltas in a row" in fleet.logs())
    assert broken.poll() is None
    for process in (boss, good):
        fleet.ends(process)
    report = fleet.audit()
    assert report.sites == ("1",) and report.skipped == 0
