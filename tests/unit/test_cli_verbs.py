"""Every verb through the real entry point, against a real control API on loopback."""

from __future__ import annotations

import json
import platform
import subprocess
import sys
import threading
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import jsonschema
import pytest
import yaml

import caudal
from caudal.cli import VERBS, events, main
from caudal.control.reports import curve_of
from caudal.domain.event import Point
from caudal.domain.gang import Report
from caudal.ports import Change
from caudal.spec import dump
from caudal.store.blobs import open_blobs
from caudal.store.state import SqlStore
from tests.support.served import RUN, SERVICE, Served
from tests.support.train_world import TrainWorld

EXAMPLES = Path(__file__).parents[2] / "examples"


@pytest.fixture
def served(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> Iterator[Served]:
    made = Served(tmp_path / "home", capsys)
    made.fill()
    made.start()
    yield made
    made.stop()


@pytest.fixture
def alone(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> Served:
    """A state directory of which no control process was ever heard."""
    return Served(tmp_path / "home", capsys)


@pytest.fixture
def away(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> Served:
    """A state directory whose control process has gone: its address is known, nobody answers there."""
    made = Served(tmp_path / "home", capsys)
    made.fill()
    made.start()
    made.stop()
    return made


READS: dict[tuple[str, ...], tuple[str, set[str]]] = {
    ("status",): (
        "status/1",
        {
            "at",
            "caudal",
            "fleet",
            "gateway_ready",
            "gateway_url",
            "gateways",
            "models",
            "sites",
            "version",
            "workloads",
        },
    ),
    ("status", "starter"): (
        "workload/1",
        {"applied_at", "changed_at", "gangs", "generation", "kind", "models", "name", "progress", "reason"}
        | {"restarts", "state", "wanted"},
    ),
    ("explain", "starter"): ("explain/1", {"items"}),
    ("events",): ("events/1", {"items"}),
    ("logs", "starter"): ("logs/1", {"gang", "text"}),
    ("models", "list"): ("models/1", {"items"}),
    ("version",): ("version/1", {"caudal", "python"}),
}
ITEMS = {
    "explain/1": {"at", "code", "data", "rejected", "state", "subject", "text"},
    "events/1": {"at", "data", "kind", "seq", "subject", "text"},
}


@pytest.mark.parametrize("words", READS, ids=" ".join)
def test_json_has_a_versioned_shape_and_these_keys(served: Served, words: tuple[str, ...]) -> None:
    shape, keys = READS[words]
    told = served.caudal(*words, "--json")
    assert (told.code, told.err) == (0, "")
    assert told.json["shape"] == shape
    assert set(told.json) - {"shape"} == keys
    for item in told.json.get("items", ()):
        assert set(item) == ITEMS.get(shape, set(item))


def test_the_parts_of_a_status_have_these_keys(served: Served) -> None:
    status = served.caudal("status", "--json").json
    assert {k for s in status["sites"] for k in s} == {
        *("name", "provider", "driver", "node", "node_state", "machine_type", "cpus", "memory_bytes"),
        *("price_usd_per_hour", "gangs"),
    }
    assert {k for w in status["workloads"] for g in w["gangs"] for k in g} == {
        *("id", "slot", "role", "workload", "site", "node", "incarnation", "started_at", "stopping"),
        *("reported_at", "status"),
    }


@pytest.mark.parametrize(
    ("words", "seen"),
    [
        (("status",), ["laptop", "north-0", "south", "starter", "round 7", "loss 2.125", "assistant"]),
        (("status", "starter"), ["starter.coordinator", "starter.worker.0", "round 7", "north-0"]),
        (("status", "assistant"), ["assistant.replica.small.0", "ready"]),
        (("explain", "starter"), ["starter.worker.0", "runs on north-0"]),
        (("events",), ["test.said", "starter", "[bold]not markup[/] but text"]),
        (("events", "starter"), ["[bold]not markup[/] but text"]),
        (("logs", "starter.worker.0"), ["starter.worker.0-1 said hello"]),
        (("version",), [caudal.__version__, platform.python_version()]),
    ],
)
def test_people_see_the_names_that_matter(served: Served, words: tuple[str, ...], seen: list[str]) -> None:
    told = served.caudal(*words)
    assert told.code == 0, told.err
    for word in seen:
        assert word in told.out


def test_brackets_in_reasons_are_shown_as_they_are(served: Served) -> None:
    state = served.state()
    run = next(w for w in state.workloads if w.name == "starter")
    reason = "waits for [/tmp/a [bold]/file]: [/] is not there"
    served.store.commit(Change(workloads=[type(run)(**{**_fields(run), "reason": reason})]))
    served.store.put_report(_report(served, {"ready": False, "error": "[/red] no"}))
    assert reason in served.caudal("explain", "starter").out
    assert served.caudal("status").code == 0
    assert "[/red] no" in served.caudal("status", "assistant").out


def _fields(value: Any) -> dict[str, Any]:
    return {name: getattr(value, name) for name in value.__dataclass_fields__}


def _report(served: Served, status: dict[str, Any]) -> Any:
    old = next(r for r in served.state().reports if "replica" in r.gang_id)
    return type(old)(old.gang_id, 61.0, status)


def test_long_names_are_not_cut_where_nobody_looks(served: Served) -> None:
    served.store.put_report(_report(served, {"ready": False, "error": "x" * 300}))
    assert "x" * 300 in served.caudal("status", "assistant").out


# ---- exit codes, each by a case that a user can meet ------------------------------------------------------


def test_exit_0_for_what_was_done(served: Served) -> None:
    told = served.caudal("stop", "starter")
    assert told.code == 0
    assert "no longer wanted" in told.out
    assert not next(w for w in served.state().workloads if w.name == "starter").wanted
    assert served.pokes == 1
    assert served.caudal("stop", "assistant", "--json").json["wanted"] is False


CONTROL_VERBS = [
    ("status",),
    ("explain", "starter"),
    ("events",),
    ("events", "-f"),
    ("logs", "starter"),
    ("stop", "starter"),
    ("apply", str(EXAMPLES / "starter" / "service.yaml")),
]


@pytest.mark.parametrize("words", CONTROL_VERBS, ids=" ".join)
def test_exit_1_where_no_control_process_answers(away: Served, words: tuple[str, ...]) -> None:
    told = away.caudal(*words)
    assert (told.code, told.out) == (1, "")
    assert told.err.startswith("error[control_away]: no control process answers at http://127.0.0.1:")
    assert "Do: start it with `caudal up`" in told.err
    assert str(away.home.root) in told.err


@pytest.mark.parametrize(
    ("words", "said"),
    [
        (("banana",), "there is no verb 'banana'"),
        (("stauts",), "did you mean `caudal status`?"),
        (("aplly", "x.yaml"), "did you mean `caudal apply`?"),
        (("status", "--jsno"), "--jsno"),
        (("explain",), "NAME"),
        (("apply",), "FILE"),
        (("events", "-n", "0"), "0"),
        (("logs", "starter", "--bytes", "0"), "bytes"),
        (("models", "pull"), "SOURCE"),
        (("models", "pull", ""), "SOURCE is empty"),
        (("models", "banana"), "banana"),
        (("train",), "either a train file or --data"),
        (("train", "a.yaml", "--data", "b.txt"), "either a train file or --data"),
        (("train", "--data", "b.txt", "--sites", "0"), "--sites"),
        (("train", "--data", "/nowhere/at/all.txt"), "cannot read /nowhere/at/all.txt"),
        (("train", "--data", __file__, "--name", "No Name!"), "name"),
        (("train", str(EXAMPLES / "starter" / "fleet.yaml")), "holds 0 `type: train` documents"),
        (("chat", "--max-tokens", "0", "hi"), "--max-tokens"),
    ],
)
def test_exit_2_for_wrong_usage(alone: Served, words: tuple[str, ...], said: str) -> None:
    told = alone.caudal(*words)
    assert (told.code, told.out) == (2, "")
    assert said in told.err
    assert "Traceback" not in told.err


@pytest.mark.parametrize(
    "words",
    [
        ("status", "nobody"),
        ("explain", "nobody"),
        ("logs", "nobody"),
        ("stop", "nobody"),
        ("audit", "nobody"),
        ("apply", "/nowhere/at/all.yaml"),
        ("train", "/nowhere/at/all.yaml"),
        ("up", "/nowhere/at/all.yaml"),
    ],
    ids=" ".join,
)
def test_exit_3_for_what_is_not_there(served: Served, words: tuple[str, ...]) -> None:
    told = served.caudal(*words)
    assert (told.code, told.out) == (3, "")
    assert told.err.startswith("error[not_found]:")


def test_a_name_that_does_not_exist_names_those_that_do(served: Served) -> None:
    for verb in ("status", "explain", "logs", "stop"):
        assert "starter" in served.caudal(verb, "nobody").err, verb


def test_names_with_slashes_and_escapes_are_only_names(served: Served) -> None:
    for name in ("../../etc", "a/b", "%2e%2e", "starter?x=1", "starter#x", "ñ", "a b", ""):
        for verb in ("status", "explain", "logs", "stop", "audit"):
            told = served.caudal(verb, name)
            if not (verb == "status" and name == ""):
                assert told.code in (2, 3), (verb, name, told)
            assert "Traceback" not in told.err
    assert all(w.wanted for w in served.state().workloads)


def test_exit_4_for_what_this_fleet_cannot_do(served: Served, tmp_path: Path) -> None:
    file = tmp_path / "wide.yaml"
    file.write_text(dump(RUN).replace("sites: 2", "sites: 9").replace("name: starter", "name: wide"))
    before = served.state()
    told = served.caudal("apply", str(file))
    assert (told.code, told.out) == (4, "")
    assert "error[impossible]" in told.err
    assert "Do: " in told.err
    assert served.state() == before


class Restless:
    """A store that somebody else commits to before each commit: no state ever stands still."""

    def __init__(self, store: SqlStore) -> None:
        self._store = store

    def __getattr__(self, name: str) -> Any:
        return getattr(self._store, name)

    def commit(self, change: Change, **more: Any) -> int:
        self._store.commit(Change())
        return self._store.commit(change, **more)


def test_exit_5_where_the_state_never_stands_still(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    made = Served(tmp_path / "home", capsys, wrap=Restless)
    made.store._store.commit(Change(fleet=made.fleet))
    made.start()
    try:
        file = tmp_path / "run.yaml"
        file.write_text(dump(RUN))
        told = made.caudal("apply", str(file))
    finally:
        made.stop()
    assert (told.code, told.out) == (5, "")
    assert "error[stale]" in told.err
    assert made.state().workloads == ()


def test_a_wrong_token_is_said_with_its_remedy(served: Served) -> None:
    served.home.token_file.write_text("another")
    told = served.caudal("stop", "starter")
    assert told.code == 1
    assert "error[unauthorized]" in told.err
    assert served.caudal("status").code == 0, "reading on loopback takes none"


def test_without_a_token_reading_goes_on_and_changing_is_refused(served: Served) -> None:
    served.home.token_file.unlink()
    assert served.caudal("status").code == 0
    told = served.caudal("stop", "starter")
    assert (told.code, told.err.partition(":")[0]) == (1, "error[unauthorized]")
    served.stop()
    assert "Illegal" not in served.caudal("status").err


@pytest.mark.skipif(not Path("/dev/full").exists(), reason="a full device takes Linux")
@pytest.mark.parametrize(("into", "code"), [("/dev/full", 1), ("pipe", 0)])
def test_a_reader_that_leaves_is_no_failure_and_a_full_disk_is_one(into: str, code: int) -> None:
    words = f"{sys.executable} -m caudal.cli schema"
    line = f"{words} > {into}" if into != "pipe" else f"set -o pipefail; {words} | true"
    told = subprocess.run(["bash", "-c", line], capture_output=True, text=True, check=False)
    assert told.returncode == code, told.stderr
    assert "Traceback" not in told.stderr
    assert ("no space" in told.stderr) == bool(code)


# ---- apply -------------------------------------------------------------------------------------------------


def test_apply_says_what_it_changed(served: Served, tmp_path: Path) -> None:
    (tmp_path / "a.yaml").write_text(dump(RUN).replace("name: starter", "name: other"))
    (tmp_path / "b.yaml").write_text(dump(SERVICE))
    told = served.caudal("apply", str(tmp_path))
    assert (told.code, told.out) == (0, "train other: new\nservice assistant: unchanged\n")
    again = served.caudal("apply", str(tmp_path / "a.yaml"), str(tmp_path / "b.yaml"), "--json")
    assert again.json["shape"] == "applied/1"
    assert [(i["name"], i["change"]) for i in again.json["items"]] == [
        ("other", "unchanged"),
        ("assistant", "unchanged"),
    ]


def test_apply_of_files_with_errors_names_each_line_and_changes_nothing(
    served: Served, tmp_path: Path
) -> None:
    (tmp_path / "a.yaml").write_text(dump(RUN).replace("name: starter", "name: fine"))
    (tmp_path / "b.yaml").write_text("type: train\nname: bad\ndaat: builtin:tinyworld\nstages: 7\n")
    (tmp_path / "c.yaml").write_text("type: service\nname: x\n\n\nmodels: []\n")
    before = served.state()
    told = served.caudal("apply", str(tmp_path))
    assert (told.code, told.out) == (2, "")
    assert "error[spec]" in told.err
    assert f"{tmp_path / 'b.yaml'}:3" in told.err
    assert "did you mean 'data'" in told.err
    assert f"{tmp_path / 'b.yaml'}:4" in told.err
    assert f"{tmp_path / 'c.yaml'}:5" in told.err
    assert served.state() == before
    assert served.pokes == 0


@pytest.mark.parametrize(
    "text",
    [
        "type: [unclosed\n",
        "\ttype: fleet\n",
        "type: train\x00",
        "",
        "- 1\n- 2\n",
        "type: banana\n",
        "&a [*a]",
    ],
)
def test_apply_of_what_is_no_spec_names_the_file(served: Served, tmp_path: Path, text: str) -> None:
    file = tmp_path / "bad.yaml"
    file.write_text(text)
    before = served.state()
    told = served.caudal("apply", str(file))
    assert (told.code, told.out) == (2, "")
    assert told.err.startswith(f"error[spec]: {file}")
    assert served.state() == before


def test_apply_of_a_folder_without_files_is_not_silence(served: Served, tmp_path: Path) -> None:
    (tmp_path / "none").mkdir()
    assert served.caudal("apply", str(tmp_path / "none")).code == 3


# ---- events ------------------------------------------------------------------------------------------------


def test_following_events_ends_when_the_control_process_goes(
    served: Served, capsys: pytest.CaptureFixture[str]
) -> None:
    told: list[Any] = []
    thread = threading.Thread(target=lambda: told.append(served.caudal("events", "-f", "--json")))
    thread.start()
    threading.Event().wait(0.5)  # it follows now, and the server looks for news every 0.3 s
    for number in range(3):
        served.say(f"later {number}")
    threading.Event().wait(0.5)
    served.stop()
    thread.join(timeout=10)
    assert not thread.is_alive()
    (answer,) = told
    assert answer.code == 0, answer.err
    seen = [json.loads(line) for line in answer.out.splitlines()]
    assert [e["text"] for e in seen][-3:] == ["later 0", "later 1", "later 2"]
    assert [e["seq"] for e in seen] == sorted({e["seq"] for e in seen})


def test_events_of_one_subject_are_found_behind_many_others(
    served: Served, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(events, "PAGE", 7)
    for number in range(60):
        served.say(f"noise {number}", "assistant")
    found = served.caudal("events", "starter", "-n", "1", "--json").json["items"]
    assert [e["subject"] for e in found] == ["starter"]
    found = served.caudal("events", "assistant", "-n", "10", "--json").json["items"]
    assert [e["text"] for e in found] == [f"noise {n}" for n in range(50, 60)]
    assert len(served.caudal("events", "-n", "3", "--json").json["items"]) == 3


# ---- audit, schema, help -----------------------------------------------------------------------------------


def test_audit_proves_a_run_and_says_where_it_does_not_hold(away: Served) -> None:
    world = TrainWorld(1, 2)
    world.calm = True
    world.run(600.0)
    blobs = open_blobs(away.home.blobs_url)
    for path, data in world.blobs.objects.items():
        blobs.put(path, data)
    told = away.caudal("audit", "tiny", "--json")
    assert told.code == 0, told.err
    assert told.json["shape"] == "audit/1"
    assert told.json["ids"] == told.json["ids_total"] > 0
    assert told.json["missing"] == []
    assert "each in exactly one commit" in away.caudal("audit", "tiny").out
    updates = sorted(p for p in blobs.list("runs/tiny/g1/updates/"))
    blobs.put(updates[1], blobs.get(updates[1])[:-1] + b"\x7f")
    told = away.caudal("audit", "tiny", "--json")
    assert (told.code, told.out) == (1, "")
    assert "error[ledger_broken]" in told.err
    assert "round 2" in told.err


def test_the_schema_takes_every_example_and_refuses_a_typing_error(alone: Served) -> None:
    schema = alone.caudal("schema").json
    files = sorted(EXAMPLES.rglob("*.yaml"))
    assert files
    for file in files:
        for document in yaml.safe_load_all(file.read_text()):
            jsonschema.validate(document, schema)
            with pytest.raises(jsonschema.ValidationError):
                jsonschema.validate({**document, "nmae": "x"}, schema)


@pytest.mark.parametrize("verb", VERBS)
def test_every_verb_has_help(alone: Served, verb: str) -> None:
    told = alone.caudal(verb, "--help")
    assert (told.code, told.err) == (0, "")
    assert told.out.startswith(f"Usage: caudal {verb}")
    assert verb in alone.caudal("--help").out


def test_nothing_at_all_shows_the_help(capsys: pytest.CaptureFixture[str]) -> None:
    with pytest.raises(SystemExit) as end:
        main([])
    assert end.value.code == 2
    assert "Verbs:" in capsys.readouterr().err


def test_a_curve_is_tracked_from_where_it_was(served: Served, tmp_path: Path) -> None:
    path = tmp_path / "curve.jsonl"
    curve = curve_of("starter", 1)
    rows = [Point(curve, seq, 60.0 + seq, {"tokens": 10 * seq, "loss": 4.0 - seq}) for seq in range(1, 4)]
    served.store.put_report(Report("starter.coordinator-1", 61.0, {}), rows[:2])
    told = served.caudal("track", "starter", "--to", f"jsonl={path}", "--once")
    assert told.code == 0 and "2 points sent" in told.out
    served.store.put_report(Report("starter.coordinator-1", 62.0, {}), rows[2:])
    assert "1 points sent" in served.caudal("track", "starter", "--to", f"jsonl={path}", "--once").out
    assert [json.loads(line)["loss"] for line in path.read_text().splitlines()] == [3.0, 2.0, 1.0]
    assert served.caudal("track", "nobody", "--to", f"jsonl={path}", "--once").code == 3
    assert served.caudal("track", "starter", "--to", "fax=1", "--once").code == 2
