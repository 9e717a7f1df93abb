"""The production loop over seeds and scenarios: safe at every step, alive after the last fault, the same
each time; and proof that the checkers would have said so if it were not."""

from __future__ import annotations

import dataclasses
import hashlib
import os
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path

import pytest
from click.testing import CliRunner

from caudal.control import loop as control_loop
from caudal.control import record as recording
from caudal.domain.decision import Choice, Decision, Reason, ReleaseNode, StartGang, StopGang
from caudal.domain.gang import gang_id
from caudal.domain.snapshot import Snapshot
from caudal.policy import decide
from caudal.policy.rules import Rules
from caudal.ports import Change
from caudal.simulate.__main__ import main
from caudal.simulate.run import Result, run
from caudal.simulate.scenario import SCENARIOS, Rates, Scenario, calm, named

SEEDS = range(1, 21)
STORM_SEEDS = range(1, 11)  # each takes twice as long

Decide = Callable[[Snapshot, float, Rules], Decision]


@pytest.mark.parametrize("name", sorted(SCENARIOS))
def test_many_seeds_are_safe_and_alive(name: str) -> None:
    for seed in SEEDS if name != "storm" else STORM_SEEDS:
        run(seed, named(name)).raise_violation()


@pytest.mark.parametrize("name", sorted(SCENARIOS))
def test_without_faults_nothing_is_ever_stopped_or_lost(name: str) -> None:
    result = run(1, calm(named(name)))
    result.raise_violation()
    text = "\n".join(result.trace)
    assert " stop " not in text
    assert " lost " not in text
    assert "run starter finished" in text


def test_machines_that_die_before_they_were_ever_listed_are_replaced() -> None:
    """An acquire that was taken is no proof: asking again with its token brings no other machine."""
    dying = Scenario(
        "dying", workloads=named("two-sites").workloads, rates=Rates(machine_dies=40), faulty_s=30.0
    )
    for seed in (1, 2, 3, 4):
        run(seed, dying).raise_violation()


def test_faults_do_happen() -> None:
    seen = "\n".join(line for name in SCENARIOS for line in run(3, named(name)).trace)
    for what in (
        "died",
        "falls silent",
        "is killed",
        "hangs",
        "refused",
        "is lost",
        "user",
        "nothing to give",
    ):
        assert what in seen, what


@pytest.mark.parametrize("name", sorted(SCENARIOS))
def test_the_same_seed_is_the_same_story(name: str) -> None:
    first, again, other = run(7, named(name)), run(7, named(name)), run(8, named(name))
    assert first.trace == again.trace
    assert first.trace != other.trace


def test_the_story_does_not_depend_on_the_process(tmp_path: Path) -> None:
    """Sets and hashes are ordered differently in another process; nothing may follow from that."""
    digests = set()
    arguments = ["--seed", "5", "--scenario", "control-crashes"]
    for hash_seed in ("1", "2"):
        trace = tmp_path / f"{hash_seed}.txt"
        told = subprocess.run(
            [sys.executable, "-m", "caudal.simulate", *arguments, "--trace", str(trace)],
            env={**os.environ, "PYTHONHASHSEED": hash_seed},
            capture_output=True,
            text=True,
            timeout=60,
        )
        assert told.returncode == 0, told.stdout + told.stderr
        digests.add(hashlib.sha256(trace.read_bytes()).hexdigest())
    here = "\n".join(run(5, named("control-crashes")).trace) + "\n"
    assert digests == {hashlib.sha256(here.encode()).hexdigest()}


# What the checkers are worth: bugs on purpose.


def broken(monkeypatch: pytest.MonkeyPatch, name: str, wrong: Decide) -> Result:
    """A scenario with another policy in the production loop."""
    monkeypatch.setattr(control_loop, "decide", wrong)
    return run(1, named(name))


def caught(result: Result, *checkers: str) -> str:
    """The violation that was found: by one of these, and not by luck of another kind."""
    assert result.violation is not None, "no checker has noticed"
    assert result.violation.checker in checkers, result.violation
    assert f"--seed {result.seed} --scenario {result.scenario}" in result.replay
    return result.violation.text


def with_choice(decision: Decision, action: StartGang | StopGang | ReleaseNode, subject: str) -> Decision:
    """The decision with one thing more."""
    choice = Choice(action, subject, Reason("planted", "a bug on purpose"))
    return dataclasses.replace(decision, choices=(*decision.choices, choice))


def test_a_policy_that_starts_things_twice_is_caught(monkeypatch: pytest.MonkeyPatch) -> None:
    def twice(snapshot: Snapshot, now: float, rules: Rules) -> Decision:
        decision = decide(snapshot, now, rules)
        for gang in snapshot.state.gangs:
            if gang.slot == "gateway.0" and gang.incarnation == 1 and len(snapshot.gangs) > 3:
                second = dataclasses.replace(gang, id=gang_id(gang.slot, 2), incarnation=2)
                if all(g.incarnation < 2 for g in snapshot.state.gangs if g.slot == gang.slot):
                    decision = with_choice(decision, StartGang(second), gang.slot)
        return decision

    text = caught(broken(monkeypatch, "two-sites", twice), "nothing_started_twice")
    assert "gateway.0-2 lives beside gateway.0-1" in text


def test_a_policy_that_stops_what_is_healthy_is_caught(monkeypatch: pytest.MonkeyPatch) -> None:
    def restless(snapshot: Snapshot, now: float, rules: Rules) -> Decision:
        decision = decide(snapshot, now, rules)
        old = [g for g in snapshot.state.gangs if g.ended_at is None and now - g.created_at > 20.0]
        return with_choice(decision, StopGang(old[0].id), old[0].slot) if old else decision

    assert "is healthy, wanted and in reach" in caught(broken(monkeypatch, "two-sites", restless), "commit")


def test_a_policy_that_gives_a_busy_machine_back_is_caught(monkeypatch: pytest.MonkeyPatch) -> None:
    def generous(snapshot: Snapshot, now: float, rules: Rules) -> Decision:
        decision = decide(snapshot, now, rules)
        busy = [g for g in snapshot.state.gangs if g.ended_at is None and now - g.created_at > 20.0]
        return with_choice(decision, ReleaseNode(busy[0].lease_id), busy[0].node) if busy else decision

    assert "is stopped: planted" in caught(broken(monkeypatch, "two-sites", generous), "commit")


def test_a_policy_that_puts_everything_on_one_node_is_caught(monkeypatch: pytest.MonkeyPatch) -> None:
    def crowd(snapshot: Snapshot, now: float, rules: Rules) -> Decision:
        decision = decide(snapshot, now, rules)
        choices = []
        for choice in decision.choices:
            if isinstance(choice.action, StartGang):
                huge = dataclasses.replace(choice.action.gang.resources, cpus=1.5)
                gang = dataclasses.replace(choice.action.gang, resources=huge)
                choice = dataclasses.replace(choice, action=StartGang(gang))
            choices.append(choice)
        return dataclasses.replace(decision, choices=tuple(choices))

    caught(broken(monkeypatch, "two-sites", crowd), "nothing_overcommitted")


def test_a_policy_that_does_nothing_is_caught(monkeypatch: pytest.MonkeyPatch) -> None:
    def idle(snapshot: Snapshot, now: float, rules: Rules) -> Decision:
        return Decision(snapshot.version, now)

    monkeypatch.setattr(control_loop, "decide", idle)
    assert "gateway: none runs" in caught(run(1, calm(named("two-sites"))), "liveness")


def test_a_policy_that_leaves_strays_alone_is_caught(monkeypatch: pytest.MonkeyPatch) -> None:
    def careless(snapshot: Snapshot, now: float, rules: Rules) -> Decision:
        decision = decide(snapshot, now, rules)
        kept = [c for c in decision.choices if c.action.kind != "release_machine"]
        return dataclasses.replace(decision, choices=tuple(kept))

    monkeypatch.setattr(control_loop, "decide", careless)
    scenario = dataclasses.replace(named("two-sites"), rates=Rates(stray_machines=6))
    assert "which is not live" in caught(run(1, scenario), "machines_have_leases")


def test_a_policy_that_takes_silence_for_absence_is_caught(monkeypatch: pytest.MonkeyPatch) -> None:
    """Losing contact is not losing work: what a silent site runs is not gone."""

    def rash(snapshot: Snapshot, now: float, rules: Rules) -> Decision:
        blind = dataclasses.replace(snapshot, silent_drivers=frozenset(), silent_since={})
        return decide(blind, now, rules)

    monkeypatch.setattr(control_loop, "decide", rash)
    found = [run(seed, named("flaky-network")).violation for seed in (1, 2, 3)]
    assert {v.checker for v in found if v} & {"nothing_started_twice", "commit", "nothing_overcommitted"}


def test_a_loop_that_forgets_its_intents_is_caught(monkeypatch: pytest.MonkeyPatch) -> None:
    """It writes down what it believes, and not what it is about to do."""

    def forget(decision: Decision, snapshot: Snapshot, epoch: int) -> Change:
        return dataclasses.replace(recording.record(decision, snapshot, epoch), intents=())

    monkeypatch.setattr(control_loop, "record", forget)
    result = run(1, calm(named("two-sites")))
    caught(result, "leases_have_machines", "books_agree", "liveness")


def test_a_violation_is_printed_with_the_command_that_replays_it(
    monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    monkeypatch.setattr(control_loop, "decide", lambda snapshot, now, rules: Decision(snapshot.version, now))
    trace = tmp_path / "trace.txt"
    arguments = ["--seed", "4", "--scenario", "two-sites", "--trace", str(trace)]
    told = CliRunner().invoke(main, arguments)
    assert told.exit_code == 1
    assert "VIOLATION seed 4 two-sites: liveness" in told.output
    assert "replay: python -m caudal.simulate --seed 4 --scenario two-sites" in told.output
    assert trace.read_text().splitlines()[-1].split(maxsplit=1)[1].startswith("VIOLATION liveness")


def test_the_command_line_counts_seeds_and_refuses_nonsense() -> None:
    told = CliRunner().invoke(main, ["--seeds", "2..3", "--scenario", "two-sites"])
    assert told.exit_code == 0, told.output
    assert "2 simulations" in told.output and "0 violations" in told.output
    for arguments in (["--seeds", "many"], ["--seeds", "5..1"], ["--scenario", "paradise"]):
        assert CliRunner().invoke(main, arguments).exit_code == 2


def test_a_scenario_is_data() -> None:
    """A user's own scenario needs no code beyond itself."""
    own = Scenario("own", workloads=named("two-sites").workloads, rates=Rates(gang_dies=20), faulty_s=30.0)
    run(1, own).raise_violation()
