"""Liveness: something good happens in the end. What can run does run, within a bound of calm time.

Looked at now and then, and at the end. Calm time counts from the last fault or healing.
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass, field

from caudal.domain.gang import GangState, Role
from caudal.domain.workload import ServedModel, ServiceSpec, TrainSpec, Workload, WorkloadState
from caudal.simulate.facts import Facts
from caudal.simulate.roles import WORKER_TOKENS_PER_S


def missing(facts: Facts) -> list[str]:
    """Everything that should run or be finished, and is not (yet)."""
    found: list[str] = []
    if facts.serves() and not _running(facts, Role.GATEWAY, "", 0):
        found.append("gateway: none runs")
    for name in sorted(facts.watch.workloads):
        workload = facts.watch.workloads[name]
        if name in facts.scenario.cannot_run:
            continue
        if not workload.wanted:
            found.extend(_leftovers(facts, workload))
        elif isinstance(workload.spec, TrainSpec):
            found.extend(_run(facts, workload))
        else:
            found.extend(_service(facts, workload, workload.spec))
    return found


@dataclass(slots=True)
class Patience:
    """Remembers since when each thing has been missing."""

    facts: Facts
    since: dict[str, float] = field(default_factory=dict)

    def overdue(self) -> str:
        """What has been missing for longer than its bound, all of it in calm time; the empty string:
        nothing. To be asked every few seconds."""
        facts, now = self.facts, self.facts.kernel.now()
        self.since = {text: self.since.get(text, now) for text in missing(facts)}
        calm_s = facts.calm_s()
        late = [
            text
            for text, since in self.since.items()
            if min(calm_s, now - since) >= _bound_s(facts, text) and calm_s
        ]
        return f"after {calm_s:.0f} s of calm: {'; '.join(late)}" if late else ""


def longest_bound_s(facts: Facts) -> float:
    """After that much calm everything has to be done."""
    work_s = sum(_work_s(w) for w in facts.watch.workloads.values())
    return facts.scenario.bound_s + work_s


def _bound_s(facts: Facts, text: str) -> float:
    """A run may take the time that one worker needs for all runs; what waits for a run, too."""
    return longest_bound_s(facts) if text.startswith("run ") else facts.scenario.bound_s


def _work_s(workload: Workload) -> float:
    if not isinstance(workload.spec, TrainSpec) or not workload.wanted:
        return 0.0
    return sum(stage.tokens for stage in workload.spec.stages) / WORKER_TOKENS_PER_S


def _running(facts: Facts, role: Role, workload: str, generation: int, model: str = "") -> int:
    return sum(
        1
        for gang, process in facts.alive()
        if gang.role is role
        and gang.workload == workload
        and process.state is GangState.RUNNING
        and (role is Role.GATEWAY or gang.generation == generation)
        and (not model or (gang.model == model and facts.wanted(gang)))
    )


def _leftovers(facts: Facts, workload: Workload) -> Iterator[str]:
    for gang, _ in facts.alive():
        if gang.workload == workload.name:
            yield f"{workload.name}: is not wanted, and {gang.id} lives"


def _run(facts: Facts, workload: Workload) -> Iterator[str]:
    if workload.state is not WorkloadState.FINISHED:
        yield f"run {workload.name}: is {workload.state.value} ({workload.reason})"
    elif any(gang.workload == workload.name for gang, _ in facts.alive()):
        yield f"{workload.name}: is finished, and gangs of it live"


def _service(facts: Facts, workload: Workload, spec: ServiceSpec) -> Iterator[str]:
    for model in spec.models:
        running = _running(facts, Role.REPLICA, workload.name, workload.generation, model.id)
        published = any(record.id == model.id for record in facts.models.list())
        prefix = "run " if model.run and not published else ""
        least = model.scale.min if model.scale.on else model.replicas
        if running < least and not _waits_for_good(facts, model):
            yield f"{prefix}{workload.name}: {running} of {least} replicas of {model.id} run"


def _waits_for_good(facts: Facts, model: ServedModel) -> bool:
    """Whether it waits for a run that users do not want any more, or fits nowhere."""
    run = facts.watch.workloads.get(model.run)
    published = any(record.id == model.id for record in facts.models.list())
    unwanted = bool(model.run) and not published and (run is None or not run.wanted)
    return unwanted or not any(model.resources.fits(plan.resources) for plan in facts.scenario.sites)
