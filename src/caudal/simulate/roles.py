"""What simulated gangs do all day: workers compute, a coordinator merges, replicas get ready, all report.

A run makes progress only while its newest coordinator and at least one worker of the same generation run; a
coordinator that dies loses what came after the last checkpoint. Knows nothing about decisions: it sees
processes and what they were started for.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import Any

from caudal.domain.gang import Gang, GangState, Role
from caudal.domain.workload import TrainSpec, Workload
from caudal.drivers.fake import FakeDriver, Process
from caudal.simulate.models import FakeModels

CHECKPOINT_S = 5.0
"""How much of a run's work, in seconds of one worker, is done between two checkpoints."""

WORKER_TOKENS_PER_S = 1000.0
"""What one simulated worker computes."""

TELL_AGAIN_S = 5.0
"""How often a gang reports when it has nothing new to say."""


@dataclass(slots=True)
class Progress:
    """A run's work, in tokens, of one generation."""

    tokens_total: float
    tokens_done: float = 0.0
    tokens_kept: float = 0.0  # up to the last checkpoint
    coordinator: str = ""  # the gang that coordinates: the newest one
    epoch: int = 0
    points: int = 0
    finished: bool = False


class Roles:
    """Moves all simulated gangs on. `deliver(gang, body)` posts a report and says whether it was taken (else
    it is sent again with the next move); `ready_after_s` is how long a replica or gateway takes until it can
    answer; `asked` is what a gateway says of its requests."""

    def __init__(
        self,
        drivers: Mapping[str, FakeDriver],
        models: FakeModels,
        gangs: Mapping[str, Gang],
        workloads: Mapping[str, Workload],
        deliver: Callable[[Gang, Mapping[str, Any]], bool],
        trace: Callable[[str], None],
        ready_after_s: float = 2.0,
        asked: Callable[[Gang], dict[str, Any]] | None = None,
    ) -> None:
        self.runs: dict[tuple[str, int], Progress] = {}
        """By the run's name and generation."""
        self._drivers = drivers
        self._models = models
        self._gangs = gangs
        self._workloads = workloads
        self._deliver = deliver
        self._trace = trace
        self._ready_after_s = ready_after_s
        self._asked = asked
        self._moved_at: float | None = None
        self._told: dict[str, tuple[float, str]] = {}

    def move(self, now: float) -> None:
        """Everything that the gangs did since the last call, and their reports."""
        passed_s = 0.0 if self._moved_at is None else now - self._moved_at
        self._moved_at = now
        running = self._running()
        for gang, _ in running:
            if gang.role is Role.COORDINATOR:
                self._lead(gang)
        for key in sorted(self.runs):
            self._work(key, self.runs[key], running, passed_s)
        for gang, process in running:
            if process.alive:
                self._report(gang, process, now)

    def _running(self) -> list[tuple[Gang, Process]]:
        return [
            (self._gangs[process.spec.gang_id], process)
            for site in sorted(self._drivers)
            for process in self._drivers[site].processes()
            if process.state is GangState.RUNNING and process.spec.gang_id in self._gangs
        ]

    def _lead(self, gang: Gang) -> None:
        """A coordinator that was not seen yet takes over by creating the next epoch."""
        spec = self._spec(gang)
        if spec is None:
            return
        total = float(sum(stage.tokens for stage in spec.stages))
        run = self.runs.setdefault((gang.workload, gang.generation), Progress(total))
        led_by = self._gangs.get(run.coordinator)
        if led_by is None or gang.incarnation > led_by.incarnation:
            run.coordinator = gang.id
            run.epoch += 1
            run.tokens_done = run.tokens_kept
            self._trace(f"run {gang.workload} epoch {run.epoch} at {gang.id} from {run.tokens_done:.0f}")

    def _work(
        self, key: tuple[str, int], run: Progress, running: list[tuple[Gang, Process]], passed_s: float
    ) -> None:
        members = [g for g, p in running if (g.workload, g.generation) == key and p.alive]
        workers = [g for g in members if g.role is Role.WORKER]
        leads = any(g.id == run.coordinator for g in members)
        if leads and workers and not run.finished:
            run.tokens_done = min(
                run.tokens_total, run.tokens_done + WORKER_TOKENS_PER_S * passed_s * len(workers)
            )
            if run.tokens_done - run.tokens_kept >= CHECKPOINT_S * WORKER_TOKENS_PER_S:
                run.tokens_kept = run.tokens_done
            if run.tokens_done >= run.tokens_total:
                self._finish(key, run)
        if run.finished:
            for gang in members:
                if gang.role in (Role.COORDINATOR, Role.WORKER):
                    self._drivers[gang.site].finish(gang.id, 0)

    def _finish(self, key: tuple[str, int], run: Progress) -> None:
        run.finished = True
        run.tokens_kept = run.tokens_done
        workload = self._workloads[key[0]]
        assert isinstance(workload.spec, TrainSpec), f"{key[0]} has a coordinator and is no run"
        record = self._models.publish(workload.spec.model_id, f"run:{key[0]}", run=key[0])
        self._trace(f"run {key[0]} finished, publishes {record.id} version {record.version}")

    def _report(self, gang: Gang, process: Process, now: float) -> None:
        """Tell what is new at once, and what is not every `TELL_AGAIN_S`."""
        status = self._status(gang, process, now)
        news = str(status.get("phase", status.get("ready"))) + str(status.get("demand", ""))
        told_at, told = self._told.get(gang.id, (0.0, ""))
        if news == told and now - told_at < TELL_AGAIN_S:
            return
        points: list[dict[str, Any]] = []
        run = self.runs.get((gang.workload, gang.generation))
        if gang.role is Role.COORDINATOR and run is not None:
            points = [{"seq": run.points, "at": now, "values": {"tokens_done": int(run.tokens_done)}}]
        if self._deliver(gang, {"at": now, "status": status, "points": points}):
            self._told[gang.id] = (now, news)
            if run is not None:
                run.points += len(points)

    def _status(self, gang: Gang, process: Process, now: float) -> dict[str, Any]:
        run = self.runs.get((gang.workload, gang.generation))
        if gang.role is Role.COORDINATOR:
            if run is None or run.coordinator != gang.id:
                return {"phase": "waiting"}
            done, total = int(run.tokens_done), int(run.tokens_total)
            return {
                "phase": "training",
                "epoch": run.epoch,
                "round": done // int(CHECKPOINT_S * WORKER_TOKENS_PER_S),
                "tokens_done": done,
                "tokens_total": total,
            }
        if gang.role is Role.WORKER:
            return {"phase": "computing", "site": gang.site}
        started_at = process.started_at or now
        ready = now - started_at >= self._ready_after_s
        url = f"http://{gang.id}.invalid:8000" if ready else ""
        if gang.role is Role.GATEWAY:
            return {"ready": ready, "url": url, **(self._asked(gang) if self._asked else {"load": {}})}
        return {"ready": ready, "url": url, "model": gang.model, "version": gang.model_version}

    def _spec(self, gang: Gang) -> TrainSpec | None:
        workload = self._workloads.get(gang.workload)
        if workload is None or workload.generation != gang.generation:
            return None
        return workload.spec if isinstance(workload.spec, TrainSpec) else None
