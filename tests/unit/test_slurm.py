"""The parts of the Slurm driver that need no Slurm: rows, states, refusals, the command line, versions, the seam."""

from __future__ import annotations

import json
import subprocess
import sys
import time
from pathlib import Path, PurePath

import pytest

from caudal.domain.errors import (
    CaudalError,
    Failed,
    NotAllowed,
    NotOffered,
    QuotaExceeded,
    Unreachable,
    UsageError,
)
from caudal.domain.fleet import DriverSpec, Resources, SlurmSpec
from caudal.domain.gang import Role
from caudal.drivers import local_folder as files
from caudal.drivers.local import ISOLATED, PACKAGE_ROOT
from caudal.drivers.local_folder import Folder
from caudal.drivers.slurm import check, commands, desk, keeper, queue
from caudal.drivers.slurm.driver import SlurmDriver, open_driver
from caudal.drivers.slurm.hosts import Here, OverSsh
from caudal.drivers.slurm.submit import BOOT, Wish, sbatch, script

MARK, DIGEST = "0123456789abcdef", "fedcba9876543210"
OURS = queue.comment(MARK, "north", 3, DIGEST)


def test_only_our_rows_are_read() -> None:
    rows = [
        f"9|PENDING|Resources||N/A|a-0|{OURS}",
        f"7|RUNNING|None|node3|1795910962|b.replica.m.0@g2v3-1|{OURS} ",
        "8|RUNNING|None|node3|1795910962|c-0|somebody's | own | words",
        f"6|RUNNING|None|node3|1795910962|c-0|{queue.comment('f' * 16, 'north', 3, DIGEST)}",
        f"5|RUNNING|None|node3|1795910962|c-0|{queue.comment(MARK, 'south', 3, DIGEST)}",
        "slurm_load_jobs error: something",
        "",
    ]
    found = queue.parse("\n".join(rows), MARK, "north")
    assert found == [
        queue.Job(7, "RUNNING", "", "node3", "b.replica.m.0@g2v3-1", 3, DIGEST),
        queue.Job(9, "PENDING", "Resources", "", "a-0", 3, DIGEST),
    ]
    assert [job.waits for job in found] == [False, True]
    assert not any(job.final for job in found)


@pytest.mark.parametrize(
    ("state", "shown", "ran", "code"),
    [
        ("COMPLETED", "ExitCode=0:0", True, 0),
        ("FAILED", "ExitCode=3:0", True, 3),
        ("FAILED", "ExitCode=0:9", True, -9),
        ("FAILED", "ExitCode=0:0", True, None),
        ("FAILED", "", True, None),
        ("CANCELLED", "ExitCode=0:0", True, -15),
        ("CANCELLED", "ExitCode=0:0 DerivedExitCode=0:9", False, -15),
        ("PREEMPTED", "DerivedExitCode=5:0 ExitCode=0:0", True, -15),
        ("PREEMPTED", "ExitCode=143:0", True, 143),
        ("TIMEOUT", "ExitCode=0:0", True, -15),
        ("OUT_OF_MEMORY", "ExitCode=0:125", True, -9),
        ("NODE_FAIL", "ExitCode=0:0", True, None),
        ("BOOT_FAIL", "ExitCode=1:0", False, None),
        ("REVOKED", "ExitCode=0:0", False, None),
    ],
)
def test_how_a_job_ended_is_never_guessed(state: str, shown: str, ran: bool, code: int | None) -> None:
    assert queue.exit_code(state, f"JobId=1 {shown} RunTime=1", ran) == code
    assert queue.Job(1, state, "", "", "a-0", 1, DIGEST).final


def test_a_state_that_is_new_to_us_may_still_run() -> None:
    assert not queue.Job(1, "EXPEDITING", "", "", "a-0", 1, DIGEST).final


@pytest.mark.parametrize(
    ("said", "kind"),
    [
        ("Batch job submission failed: Unable to contact slurm controller (connect failure)", Unreachable),
        ("Batch job submission failed: Socket timed out on send/recv operation", Unreachable),
        ("error: Munge encode failed: Failed to connect to socket", Unreachable),
        ("Batch job submission failed: Invalid partition name specified", NotOffered),
        (
            "Batch job submission failed: Invalid account or account/partition combination specified",
            NotOffered,
        ),
        ("Invalid generic resource (gres) specification", NotOffered),
        ("Batch job submission failed: Requested node configuration is not available", NotOffered),
        ("Batch job submission failed: Job violates accounting/QOS policy (job submit limit)", QuotaExceeded),
        ("Batch job submission failed: Access/permission denied", NotAllowed),
        ("Batch job submission failed: something that nobody knows", Failed),
    ],
)
def test_refusals_are_ours(said: str, kind: type[CaudalError]) -> None:
    assert type(commands.refusal("sbatch", f"sbatch: error: {said}")) is kind


def test_the_command_line_of_a_service() -> None:
    spec = SlurmSpec(account="team", partition="train", qos="low", service_partition="serve")
    wish = Wish("a-0", Role.REPLICA, Resources(2.5, 3 << 30, 4, 8), "node7", OURS, "/shared/100%/shim.log")
    told = sbatch(wish, spec)
    assert told[0] == "sbatch" and "--no-requeue" in told
    wanted = {"--partition=serve", "--qos=low", "--account=team", "--nodelist=node7", "--cpus-per-task=3"}
    wanted |= {
        "--mem=3072M",
        "--gres=gpu:4,neuroncore:8",
        "--output=/shared/100%%/shim.log",
        "--job-name=a-0",
    }
    assert wanted <= set(told)


def test_the_command_line_of_training_asks_for_nothing_that_is_not_wanted() -> None:
    told = sbatch(
        Wish("a-0", Role.WORKER, Resources(), "", OURS, "/o"), SlurmSpec(partition="train", requeue=True)
    )
    assert "--requeue" in told and "--partition=train" in told and "--cpus-per-task=1" in told
    assert not [
        word for word in told if word.startswith(("--gres", "--mem", "--nodelist", "--account", "--qos"))
    ]


def test_the_script_survives_odd_paths() -> None:
    text = script(["/bin/echo"], PurePath("/a b"), PurePath("/it's/$HOME"))
    said = subprocess.run(["/bin/sh", "-c", text], capture_output=True, text=True, check=True).stdout
    assert said == f"-c {BOOT} /a b /it's/$HOME\n"


def test_versions() -> None:
    assert check.version("slurm-wlm 22.05.8") == (22, 5)
    assert check.version("slurm 24.11.0-rc1") == (24, 11)
    with pytest.raises(Failed, match=r"19\.05 is too old") as old:
        check.version("slurm 19.05.5")
    assert "20.11" in old.value.why and old.value.remedy
    with pytest.raises(Failed, match="no known version"):
        check.version("command not found")


def test_advice_names_what_to_set() -> None:
    found = check.settings(
        "Configuration data\nKillWait = 2 sec\nSlurmdTimeout   = 300 sec\nPreemptType = preempt/none\nOther = 1\n"
    )
    assert found == {"KillWait": "2 sec", "SlurmdTimeout": "300 sec", "PreemptType": "preempt/none"}
    assert [line.split()[0] for line in check.advice(found)] == ["SlurmdTimeout", "KillWait", "PreemptType"]
    assert check.advice({"KillWait": "30 sec", "SlurmdTimeout": "10 sec", "PreemptMode": "REQUEUE"}) == []


def test_credentials_do_not_reach_slurms_commands() -> None:
    ours = {
        "PATH": "/bin",
        "AWS_SECRET_ACCESS_KEY": "x",
        "CAUDAL_HOME": "/c",
        "SQUEUE_FORMAT": "%i",
        "SBATCH_QOS": "q",
    }
    assert commands.environment(ours) == {
        "PATH": "/bin",
        "SBATCH_QOS": "q",
        "SLURM_TIME_FORMAT": "%s",
        "LC_ALL": "C.UTF-8",
    }


def test_without_slurm_it_says_what_to_install(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("PATH", str(tmp_path))
    driver = SlurmDriver("north", SlurmSpec(folder=str(tmp_path / "shared")), Here())
    with pytest.raises(Failed, match="cannot run squeue") as failed:
        driver.gangs()
    assert "address" in failed.value.remedy


def test_a_folder_that_cannot_be_used_is_named(tmp_path: Path) -> None:
    (tmp_path / "file").touch()
    with pytest.raises(CaudalError, match="cannot use the folder") as failed:
        SlurmDriver("north", SlurmSpec(folder=str(tmp_path / "file")), Here()).gangs()
    assert failed.value.code == "storage_failed"


@pytest.mark.parametrize("address", ["-oProxyCommand=touch /tmp/x", "a b", "host;id", ""])
def test_an_address_is_never_an_option_of_ssh(address: str) -> None:
    with pytest.raises(UsageError):
        OverSsh(address)


@pytest.mark.parametrize("slurm", [SlurmSpec(folder="shared"), SlurmSpec(python="~/venv/bin/python")])
def test_paths_are_the_same_everywhere(slurm: SlurmSpec) -> None:
    with pytest.raises(UsageError, match="driver hpc"):
        open_driver("north", DriverSpec("hpc", "slurm", slurm=slurm))


def test_a_host_that_refuses_is_unreachable() -> None:
    spec = DriverSpec("hpc", "slurm", address="ssh://nobody@127.0.0.1:1")
    with pytest.raises(Unreachable, match="login host") as failed:
        open_driver("north", spec).gangs()
    assert "BatchMode" in failed.value.remedy


def test_another_version_on_the_login_host_is_said() -> None:
    question = {"protocol": desk.PROTOCOL + 1, "site": "north", "slurm": {}, "do": "gangs", "with": {}}
    done = subprocess.run(
        [sys.executable, "-m", "caudal.drivers.slurm.desk"],
        input=json.dumps(question).encode(), capture_output=True, check=True, env={"PYTHONPATH": str(PACKAGE_ROOT)},
    )  # fmt: skip
    assert json.loads(done.stdout)["error"]["what"] == "the Caudal on the login host is of another version"


def _gang(folder: Path, *, requeue: bool = False, epoch: int = 1) -> Folder:
    gang = Folder(folder / "a-0")
    gang.create()
    spec = {"gang_id": "a-0", "site": "north", "token": "t", "mark": "m", "fence": "lease", "epoch": epoch}
    spec |= {"requeue": requeue, "environment": {}, "log_cap_bytes": 1 << 16}
    marker = str(folder / "ran")
    code = f"open({marker!r}, 'a').write('x')"
    gang.write(
        files.SPEC, {**spec, "processes": [{"argv": [sys.executable, "-c", code], "env": {}, "files": {}}]}
    )
    return gang


def _keep(gang: Folder, job: int, restarts: int = 0) -> int:
    """Run the keeper as a job would: as a process of its own."""
    return subprocess.run(
        [sys.executable, *ISOLATED, "-c", BOOT, str(PACKAGE_ROOT), str(gang.path)],
        env={"SLURM_JOB_ID": str(job), "SLURM_RESTART_COUNT": str(restarts), "PATH": "/usr/bin:/bin"},
        check=False, timeout=60,
    ).returncode  # fmt: skip


def test_a_gang_begins_once(tmp_path: Path) -> None:
    gang = _gang(tmp_path)
    assert _keep(gang, job=1) == 0
    assert _keep(gang, job=2) == keeper.NOT_STARTED, "another job"
    assert _keep(gang, job=1, restarts=1) == keeper.NOT_STARTED, "it may not be requeued"
    assert (tmp_path / "ran").read_text() == "x"


def test_only_its_own_job_begins_a_gang_again(tmp_path: Path) -> None:
    gang = _gang(tmp_path, requeue=True)
    assert _keep(gang, job=1) == 0
    assert _keep(gang, job=1) == keeper.NOT_STARTED, "the same start"
    assert _keep(gang, job=2, restarts=1) == keeper.NOT_STARTED, "another job"
    assert _keep(gang, job=1, restarts=1) == 0
    gang.write(files.STOP, {"grace_s": 0.0, "kill_at": 0.0})
    assert _keep(gang, job=1, restarts=2) == keeper.NOT_STARTED, "it was stopped"
    assert (tmp_path / "ran").read_text() == "xx"


def test_an_older_epoch_begins_nothing(tmp_path: Path) -> None:
    gang = _gang(tmp_path, epoch=1)
    fences = Folder(tmp_path / keeper.FENCES)
    fences.create()
    fences.write("lease", {"epoch": 2})
    assert _keep(gang, job=1) == keeper.NOT_STARTED
    end = gang.read(files.EXIT)
    assert end is not None and (end["exit_code"], end["why"]) == (-15, keeper.FENCED)
    assert not (tmp_path / "ran").exists()


def test_a_folder_that_is_gone_begins_nothing(tmp_path: Path) -> None:
    assert _keep(Folder(tmp_path / "gone"), job=1) == keeper.NOT_STARTED


def test_a_later_start_ends_what_an_earlier_one_left_running(tmp_path: Path) -> None:
    """Slurm gave a node up and started the job elsewhere, but the node lives and still reaches the folder."""
    gang = _gang(tmp_path, requeue=True)
    spec = gang.read(files.SPEC)
    assert spec is not None
    mark = str(tmp_path / "ran")
    write = f"import time; w = open({mark!r}, 'a'); w.write('1 '); w.close()"
    code = f"{write}\nif len(open({mark!r}).read()) < 10: time.sleep(600)"
    spec["processes"][0]["argv"] = [sys.executable, "-c", code]
    gang.write(files.SPEC, spec)
    first = subprocess.Popen(
        [sys.executable, *ISOLATED, "-c", BOOT, str(PACKAGE_ROOT), str(gang.path)],
        env={"SLURM_JOB_ID": "1", "PATH": "/usr/bin:/bin"},
    )
    try:
        until = time.monotonic() + 20
        while not (Path(mark).exists() and Path(mark).read_text().endswith(" ")):
            assert time.monotonic() < until
            time.sleep(0.02)
        Path(mark).write_text("x" * 20)
        assert _keep(gang, job=1, restarts=1) == 0
        assert first.wait(10) != 0
    finally:
        first.kill()
