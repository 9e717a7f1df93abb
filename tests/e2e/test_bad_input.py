"""Bad input gets a clear error and changes nothing: real processes, real files, a disk that is really full."""

from __future__ import annotations

import resource
import socket
import sqlite3
import subprocess
import sys
import time
from collections.abc import Callable
from pathlib import Path

import pytest

from caudal.store.blobs import open_blobs
from caudal.train import checkpoint
from caudal.train.audit import audit_run
from tests.e2e.test_run_survival import PREFIX, kill
from tests.e2e.test_run_survival import Fleet as Run
from tests.e2e.test_run_survival import fleet as run  # noqa: F401  (the fixture of a bare run)
from tests.support.fleet import Fleet, free_port
from tests.support.small_disk import fill, small_disk

pytestmark = [pytest.mark.e2e, pytest.mark.timeout(240)]


def caudal(home: Path, *words: str, timeout_s: float = 60.0) -> subprocess.CompletedProcess[str]:
    return subprocess.run(
        [sys.executable, "-m", "caudal.cli", "--home", str(home), *words],
        capture_output=True,
        text=True,
        timeout=timeout_s,
        check=False,
        stdin=subprocess.DEVNULL,
    )


def refused(told: subprocess.CompletedProcess[str], exit_code: int, code: str, *said: str) -> None:
    """It ended with that code and a message for people, and nothing else."""
    assert told.returncode == exit_code, told.stdout + told.stderr
    assert f"error[{code}]: " in told.stderr
    for word in said:
        assert word in told.stderr
    assert "Traceback" not in told.stdout + told.stderr


# ---- files -------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("text", "line", "said"),
    [
        ("type: train\nname: x\nstages: [\n", 4, "not valid YAML"),
        ("type: train\nname: x\ndaat: builtin:tinyworld\nstages: [{name: a, tokens: 9000}]\n", 3, "'data'"),
        ("type: trian\nname: x\n", 1, "did you mean"),
        ("type: service\nname: x\nmodels:\n  - id: a\n    sauce: pypi:a==1\n", 5, "'source'"),
        ("type: train\nname: x\nstages:\n  - {name: a, tokens: lots}\n", 4, "lots"),
        ("type: fleet\nname: x\nsites: []\n", 3, "at least one"),
        ("type: fleet\nname: x\nsites: [{name: n}]\napi: {host: 0.0.0.0}\n", 4, "this machine"),
        ("type: train\nname: !!python/object/apply:os.system [exit]\n", 2, "tag"),
    ],
)
def test_a_wrong_file_is_named_with_its_line_and_nothing_starts(
    tmp_path: Path, text: str, line: int, said: str
) -> None:
    file, home = tmp_path / "bad.yaml", tmp_path / "home"
    file.write_text(text)
    refused(caudal(home, "up", str(file)), 2, "spec", f"{file}:{line}", said)
    assert not home.exists()


def test_one_wrong_file_among_good_ones_keeps_all_from_being_applied(tmp_path: Path) -> None:
    one = Fleet(tmp_path / "fleet", tokens=100_000)
    (one.files / "worse.yaml").write_text("type: train\nname: tiny\nstages: []\n")
    refused(one.caudal("up", str(one.files)), 2, "spec", "worse.yaml:")
    assert not one.home.exists()


# ---- data --------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("content", "said"),
    [
        (None, "cannot read"),
        (b"", "is empty"),
        (b" \n\t\n", "is empty"),
        (b"\x7fELF\x00\x01\x02\x03" * 100, "is not text"),
        ("¡Hola! ¿Qué tal?".encode("latin-1") * 50, "is not text in UTF-8"),
        ("dir", "is an empty folder"),
    ],
)
def test_data_that_cannot_be_trained_on_is_refused_at_once(
    tmp_path: Path, content: bytes | str | None, said: str
) -> None:
    data, home = tmp_path / "data.txt", tmp_path / "home"
    if content == "dir":
        data.mkdir()
    elif isinstance(content, bytes):
        data.write_bytes(content)
    refused(caudal(home, "train", "--data", str(data)), 2, "data", str(data), said)
    assert not home.exists()


def test_data_that_turns_out_to_be_binary_later_fails_the_run_with_its_reason(tmp_path: Path) -> None:
    data, home = tmp_path / "data.txt", tmp_path / "home"
    data.write_bytes(b"All is text here.\n" * 10_000 + b"\0")
    told = train(tmp_path, home, data)
    refused(told, 1, "failed", "binary, not text", str(data))
    assert list((home / "blobs").rglob("ledger/*")) == []


def test_data_that_is_too_short_fails_the_run_with_its_reason(tmp_path: Path) -> None:
    data, home = tmp_path / "data.txt", tmp_path / "home"
    data.write_text("too short")
    refused(train(tmp_path, home, data), 1, "failed", "too short", str(data))


def train(folder: Path, home: Path, data: Path) -> subprocess.CompletedProcess[str]:
    """`caudal train` of the data, under a fleet with ports of its own."""
    fleet = folder / "fleet.yaml"
    fleet.write_text(
        f"type: fleet\nname: test\nsites: [{{name: north}}, {{name: south}}]\napi: {{port: {free_port()}}}\n"
    )
    up = subprocess.Popen(
        [sys.executable, "-m", "caudal.cli", "--home", str(home), "up", str(fleet)],
        stdout=subprocess.DEVNULL,
        stderr=subprocess.DEVNULL,
    )
    try:
        address = home / "control.url"
        deadline = time.monotonic() + 30
        while not address.exists():
            assert up.poll() is None and time.monotonic() < deadline
            time.sleep(0.05)
        return caudal(home, "train", "--data", str(data))
    finally:
        up.terminate()
        assert up.wait(timeout=60) == 0


# ---- ports and the state directory -------------------------------------------------------------------------


@pytest.mark.parametrize("door", ["api", "gateway"])
def test_a_port_in_use_is_said_at_the_start(tmp_path: Path, door: str) -> None:
    one = Fleet(tmp_path / "fleet", tokens=100_000, service=True)
    port = one.api_port if door == "api" else one.gateway_port
    with socket.create_server(("127.0.0.1", port)):
        told = one.caudal("up", str(one.files))
    refused(told, 1, "port_in_use", f"127.0.0.1:{port}", f"`{door}.port`")
    assert one.children() == []


def test_a_state_directory_that_is_a_file_is_said(tmp_path: Path) -> None:
    one = Fleet(tmp_path / "fleet", tokens=100_000)
    one.home.write_text("mine")
    for words in (("up", str(one.files)), ("up",)):
        refused(one.caudal(*words), 1, "storage_failed", str(one.home), "CAUDAL_HOME")
    assert one.caudal("status").returncode == 1
    assert one.home.read_text() == "mine"


def test_a_state_directory_that_may_not_be_written_is_said(tmp_path: Path) -> None:
    one = Fleet(tmp_path / "fleet", tokens=100_000)
    with small_disk(one.home, 1 << 20, options=",ro"):
        refused(one.caudal("up", str(one.files)), 1, "storage_failed", str(one.home), "CAUDAL_HOME")


def test_a_state_directory_on_a_full_disk_is_said(tmp_path: Path) -> None:
    one = Fleet(tmp_path / "fleet", tokens=100_000)
    with small_disk(one.home, 1 << 20) as disk:
        fill(disk)
        refused(one.caudal("up", str(one.files)), 1, "storage_failed", str(one.home), "room")


@pytest.mark.parametrize(
    ("make", "said"),
    [
        (lambda file: newer(file), "a newer Caudal wrote this database"),
        (lambda file: file.write_bytes(b"not a database" * 500), "the file is not a database"),
        (lambda file: foreign(file), "belongs to something else"),
    ],
    ids=["newer", "garbage", "foreign"],
)
def test_a_database_that_is_not_ours_is_left_alone(
    tmp_path: Path, make: Callable[[Path], object], said: str
) -> None:
    one = Fleet(tmp_path / "fleet", tokens=100_000)
    one.home.mkdir()
    file = one.home / "state.db"
    make(file)
    before = file.read_bytes()
    refused(one.caudal("up", str(one.files)), 1, "storage_failed", str(file), said, "Do: ")
    assert file.read_bytes() == before
    assert one.children() == []


def newer(file: Path) -> None:
    with sqlite3.connect(file) as connection:
        connection.execute("CREATE TABLE caudal_schema (version_num TEXT)")
        connection.execute("INSERT INTO caudal_schema VALUES ('9999')")
    connection.close()
    wal(file)


def foreign(file: Path) -> None:
    with sqlite3.connect(file) as connection:
        connection.execute("CREATE TABLE photos (id INTEGER)")
    connection.close()
    wal(file)


def wal(file: Path) -> None:
    """As ours are: else the first opening would rewrite the file's header."""
    connection = sqlite3.connect(file)
    connection.execute("PRAGMA journal_mode=WAL")
    connection.close()


# ---- a disk that is full -----------------------------------------------------------------------------------


def still(one: Run, seconds: float = 1.5) -> int:
    """The round at which the run stands still."""
    at = one.round()
    deadline = time.monotonic() + seconds
    while time.monotonic() < deadline:
        if one.round() != at:
            at, deadline = one.round(), time.monotonic() + seconds
        time.sleep(0.05)
    return at


def restored(one: Run) -> int:
    """The round that the last checkpoint and what follows it lead to."""
    manifest = one.blobs.list(f"{PREFIX}/manifests/")[0]
    size = len(checkpoint.read(one.blobs, PREFIX, manifest)[1])
    said: list[str] = []
    found = checkpoint.restore(one.blobs, PREFIX, size, said.append)
    assert found is not None and said == [], "no checkpoint is damaged"
    return found.round


def test_a_full_disk_makes_a_run_wait_and_loses_nothing(run: Run) -> None:  # noqa: F811
    with small_disk(run.folder / "blobs", 8 << 20) as disk:
        run.blobs = open_blobs(disk.as_uri())
        workers = [run.start("worker", f"tiny.worker.{i}") for i in range(2)]
        boss = run.start("coordinator", "tiny.coordinator")
        run.until(lambda: run.round() >= 10)
        filler = fill(disk)
        run.until(lambda: "there is no space left" in run.logs())
        at = still(run)
        assert boss.poll() is None and all(w.poll() is None for w in workers)
        assert audit_run(run.blobs, "tiny").rounds == restored(run) == at
        filler.unlink()
        run.until(lambda: run.round() >= at + 5)
        filler = fill(disk)
        at = still(run)
        kill(boss)
        again = run.start("coordinator", "tiny.coordinator", 2)
        run.ends(again, 1)
        assert audit_run(run.blobs, "tiny").rounds == restored(run) == at
        filler.unlink()
        last = run.start("coordinator", "tiny.coordinator", 3)
        for process in (last, *workers):
            run.ends(process)
        run.audit()


def test_a_checkpoint_that_cannot_be_written_leaves_the_last_one_valid(run: Run) -> None:  # noqa: F811
    """The state is larger than a file may be, what is committed each round is not: the run goes on."""
    if not hasattr(resource, "prlimit"):
        pytest.skip("limiting another process's files takes Linux")
    workers = [run.start("worker", f"tiny.worker.{i}") for i in range(2)]
    boss = run.start("coordinator", "tiny.coordinator")
    run.until(lambda: len(run.blobs.list(f"{PREFIX}/manifests/")) >= 2)
    state = max(p.stat().st_size for p in (run.folder / "blobs" / PREFIX / "states").iterdir())
    resource.prlimit(boss.pid, resource.RLIMIT_FSIZE, (state // 2, resource.RLIM_INFINITY))
    run.until(lambda: "the checkpoint of round" in run.logs())
    kept = run.blobs.list(f"{PREFIX}/manifests/")
    at = run.round()
    run.until(lambda: run.round() >= at + 8)
    assert run.blobs.list(f"{PREFIX}/manifests/") == kept, "none is lost for one that is not kept"
    kill(boss)
    assert restored(run) == run.round() >= at + 8
    last = run.start("coordinator", "tiny.coordinator", 2)
    for process in (last, *workers):
        run.ends(process)
    run.audit()


def test_a_fleet_on_a_full_disk_goes_on_when_there_is_room_again(fleet: Callable[..., Fleet]) -> None:
    one = fleet(tokens=200_000)
    with small_disk(one.home, 96 << 20):
        one.up()
        one.wait_for(lambda: commits(one) >= 6, 60, "rounds")
        filler = fill(one.home)
        time.sleep(2.0)
        at = commits(one)
        time.sleep(1.5)
        assert commits(one) == at, "nothing is committed that is not kept"
        assert one.answers(), "the control process bears it"
        filler.unlink()
        one.wait_for(lambda: commits(one) >= at + 3, 40, "the run to go on")
        one.wait_finished()
        one.audit()
        assert one.leave() == 0
        assert one.children() == []


def commits(one: Fleet) -> int:
    return len(list((one.home / "blobs" / "runs" / "tiny").rglob("ledger/*.json")))
