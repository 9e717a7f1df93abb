"""drivers/local.py: gangs of real processes on this machine: what they are given, and what is kept."""

from __future__ import annotations

import os
import signal
import stat
import subprocess
import sys
import time
from collections.abc import Iterator
from pathlib import Path

import psutil
import pytest

from caudal.domain.errors import Failed, NotFound, Stale, StorageFailed, Unreachable
from caudal.domain.gang import GangState
from caudal.drivers import local, local_archive
from caudal.drivers.local import passed_on
from tests.support.gangs import SLEEP, Site, site_at


@pytest.fixture
def site(tmp_path: Path) -> Iterator[Site]:
    with site_at(tmp_path / "gangs") as made:
        yield made


def test_start_run_and_end(site: Site) -> None:
    assert site.driver.gangs() == []
    site.sh("a-1", "echo hello; read line; exit 3")  # stdin is empty, so read ends at once
    end = site.over("a-1")
    assert (end.state, end.exit_code, end.site) == (GangState.EXITED, 3, "north")
    assert end.started_at and end.ended_at and end.started_at <= end.ended_at
    assert site.driver.logs("a-1") == "hello\n"


def test_a_started_gang_is_listed_when_start_returns(site: Site) -> None:
    site.start("a-1", SLEEP)
    (pid,) = site.running("a-1").pids
    assert psutil.Process(pid).name() == "sleep"


@pytest.mark.parametrize(
    ("script", "code"),
    [("exit 0", 0), ("exit 143", 143), ("kill -9 $$", -9), ("kill -TERM $$", -15), ("kill -SEGV $$", -11)],
)
def test_exit_codes_and_signals(site: Site, script: str, code: int) -> None:
    site.sh("a-1", script)
    assert site.over("a-1").exit_code == code


def test_a_program_that_is_not_there(site: Site) -> None:
    site.start("a-1", ("no-such-program",))
    assert site.over("a-1").exit_code == 127
    assert "cannot run no-such-program: No such file" in site.driver.logs("a-1")


def test_placeholders_files_environment_and_descriptors(site: Site, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("SOMEBODYS_PASSWORD", "hunter2")
    monkeypatch.setenv("OMP_NUM_THREADS", "1")
    code = (
        "import os, sys, pathlib; e = os.environ;"
        "print(pathlib.Path(sys.argv[1]).read_text(), e['COLOUR'], e['OMP_NUM_THREADS'], os.getcwd());"
        "print(e.get('SOMEBODYS_PASSWORD'), sorted(map(int, os.listdir('/proc/self/fd')))[:-1], os.umask(0))"
    )
    site.start(
        "a-1",
        ("{python}", "-c", code, "{dir}/config.json"),
        env={"COLOUR": "red"},
        files={"config.json": "text"},
    )
    assert site.over("a-1").exit_code == 0
    assert site.driver.logs("a-1").splitlines() == [f"text red 1 {site.root / 'a-1'}", "None [0, 1, 2] 63"]


def test_signals_are_as_a_program_expects_them(site: Site) -> None:
    before = signal.signal(signal.SIGQUIT, signal.SIG_IGN)  # as in a shell's background
    try:
        site.start("a-1", ("grep", "-E", "Sig(Ign|Blk)", "/proc/self/status"))
    finally:
        signal.signal(signal.SIGQUIT, before)
    site.over("a-1")
    words = site.driver.logs("a-1").split()
    libc_own = 0b11 << 31  # signals 32 and 33: glibc keeps them to itself, nobody can set them through it
    masks = zip(words[::2], words[1::2], strict=True)
    assert {name: int(mask, 16) & ~libc_own for name, mask in masks} == {
        "SigIgn:": 0,
        "SigBlk:": 0,
    }


def test_signals_that_the_starter_blocks_are_not_blocked_in_a_gang(site: Site) -> None:
    signal.pthread_sigmask(signal.SIG_BLOCK, [signal.SIGTERM, signal.SIGUSR1])
    try:
        site.start("a-1", ("grep", "SigBlk", "/proc/self/status"))
        site.start("a-2", SLEEP)
    finally:
        signal.pthread_sigmask(signal.SIG_UNBLOCK, [signal.SIGTERM, signal.SIGUSR1])
    site.over("a-1")
    assert int(site.driver.logs("a-1").split()[1], 16) == 0
    site.driver.stop("a-2", 10.0)
    assert site.over("a-2").exit_code == -15


def test_only_what_is_known_to_be_needed_is_passed_on() -> None:
    kept = {"PATH": "/bin", "CAUDAL_HOME": "/h", "PYTHONPATH": "/p", "https_proxy": "x", "AWS_REGION": "r"}
    dropped = {"GITHUB_TOKEN": "s", "PS1": "$", "SSH_AUTH_SOCK": "/s", "DATABASE_URL": "x"}
    assert passed_on({**kept, **dropped}) == kept


def test_only_the_owner_can_read(site: Site) -> None:
    before = os.umask(0)
    try:
        site.start("a-1", SLEEP, files={"token": "secret"})
    finally:
        os.umask(before)
    folder = site.root / "a-1"
    assert {stat.S_IMODE(p.stat().st_mode) for p in (site.root, folder)} == {0o700}
    modes = {p.name: stat.S_IMODE(p.stat().st_mode) for p in folder.iterdir()}
    assert set(modes.values()) == {0o600} and modes.keys() >= {"token", "spec.json", "shim.json", "0.log"}


def test_secrets_are_on_no_command_line_and_in_no_environment(site: Site) -> None:
    site.start("a-1", SLEEP, token="very-secret-token", files={"token": "very-secret-file"})
    for pid in (site.shim("a-1"), *site.running("a-1").pids):
        process = Path(f"/proc/{pid}")
        assert b"very-secret" not in (process / "cmdline").read_bytes() + (process / "environ").read_bytes()


def test_starting_again_is_asking_once(site: Site) -> None:
    site.start("a-1", SLEEP)
    pids = site.running("a-1").pids
    site.start("a-1", SLEEP)
    assert site.running("a-1").pids == pids
    site.driver.stop("a-1", 5.0)
    site.over("a-1")
    site.start("a-1", SLEEP)
    assert site.over("a-1").exit_code == -15


def test_another_token_for_the_same_id_is_stale(site: Site) -> None:
    site.start("a-1", SLEEP)
    pids = site.running("a-1").pids
    with pytest.raises(Stale):
        site.start("a-1", SLEEP, token="t-2")
    assert site.running("a-1").pids == pids


def test_no_zombies_and_no_children_stay_with_the_starter(site: Site) -> None:
    before = set(psutil.Process().children())
    for number in range(3):
        site.sh(f"a-{number}", "exit 0")
        site.over(f"a-{number}")
    assert set(psutil.Process().children()) == before


def test_output_without_end_does_not_fill_the_disk(tmp_path: Path) -> None:
    site = Site(tmp_path / "gangs", log_cap_bytes=1 << 16)
    site.sh("a-1", "head -c 20000000 /dev/zero | tr '\\0' 'x'; echo; echo the end")
    assert site.over("a-1").exit_code == 0
    assert sum(p.stat().st_size for p in (site.root / "a-1").glob("0.log*")) <= 1 << 16
    assert site.driver.logs("a-1").endswith("x\nthe end\n")
    assert len(site.driver.logs("a-1", tail_bytes=5)) == 5


def test_logs_of_a_gang_of_two(site: Site) -> None:
    site.sh("a-1", "echo one; echo err >&2; sleep 0.1", "echo two; exec sleep 60")
    site.over("a-1")
    assert site.driver.logs("a-1") == "== process 0 ==\none\nerr\n== process 1 ==\ntwo\n"
    with pytest.raises(NotFound):
        site.driver.logs("nobody-1")
    with pytest.raises(NotFound):
        site.driver.logs("../a-1")


def test_forget_drops_the_gang_and_its_secrets_and_keeps_its_logs(site: Site) -> None:
    site.start("a-1", ("echo", "hello"), files={"token": "very-secret"}, token="very-secret-token")
    site.over("a-1")
    site.driver.forget("a-1")
    site.driver.forget("a-1")
    assert site.driver.gangs() == []
    assert site.driver.logs("a-1") == "hello\n"
    assert [p.name for p in site.root.rglob("*") if p.is_file()] == ["0.log"]
    site.start("a-1", ("echo", "again"), token="very-secret-token")
    assert site.driver.gangs() == [], "a late repetition of the start does not run it a second time"
    site.start("a-1", ("echo", "another"), token="t-2")
    site.over("a-1")
    assert site.driver.logs("a-1") == "another\n"


def test_what_lives_is_not_forgotten(site: Site) -> None:
    site.start("a-1", SLEEP)
    site.driver.forget("a-1")
    site.driver.forget("nobody-1")
    site.running("a-1")


def test_only_the_last_forgotten_gangs_are_kept(site: Site, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(local_archive, "KEPT_GANGS", 2)
    monkeypatch.setattr(local_archive, "KEPT_LOG_BYTES", 4)
    for number in range(4):
        site.sh(f"a-{number}", f"echo long text {number}")
        site.over(f"a-{number}")
        site.driver.forget(f"a-{number}")
    assert [site.driver.logs(f"a-{n}") for n in (2, 3)] == ["t 2\n", "t 3\n"]
    with pytest.raises(NotFound):
        site.driver.logs("a-1")


def test_sites_may_share_a_root(site: Site) -> None:
    south = Site(site.root, "south")
    south.sh("s-1", "exit 0")
    site.start("a-1", SLEEP)
    south.over("s-1")
    assert [s.gang_id for s in site.driver.gangs()] == ["a-1"]
    assert [s.gang_id for s in south.driver.gangs()] == ["s-1"]
    south.driver.stop("a-1", 0.0)
    site.driver.forget("s-1")
    site.running("a-1")
    south.over("s-1")


def test_a_root_that_cannot_be_used(tmp_path: Path) -> None:
    (tmp_path / "gangs").write_text("not a folder")
    site = Site(tmp_path / "gangs")
    with pytest.raises(StorageFailed):
        site.start("a-1", SLEEP)
    with pytest.raises(Unreachable):
        site.driver.gangs()


def test_a_shim_that_cannot_come_up_is_an_error_that_says_why(
    site: Site, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(local, "BOOT", "raise SystemExit('no such luck')")
    with pytest.raises(Failed, match="no such luck"):
        site.start("a-1", SLEEP)
    monkeypatch.undo()
    site.start("a-1", SLEEP)
    site.running("a-1")


def test_files_of_a_gang_stay_in_its_folder(site: Site) -> None:
    for name in ("../x", "/etc/x", "spec.json", "0.log", ""):
        with pytest.raises(AssertionError):
            site.start("a-1", SLEEP, files={name: "x"})
    with pytest.raises(AssertionError):
        site.start("../a-1", SLEEP)


def test_the_shim_is_small_and_quick(site: Site) -> None:
    code = (
        "import sys; sys.path.append(sys.argv[1]); import caudal.drivers.local_shim; print(len(sys.modules))"
    )
    done = subprocess.run(
        [sys.executable, "-I", "-S", "-c", code, str(local.PACKAGE_ROOT)],
        capture_output=True,
        text=True,
        check=True,
    )
    assert int(done.stdout) < 120, "each module is a millisecond of every start"
    times_s = []
    for number in range(5):
        began = time.monotonic()
        site.start(f"a-{number}", SLEEP)
        times_s.append(time.monotonic() - began)
    assert min(times_s) < 0.25
