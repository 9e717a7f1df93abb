"""What should exist: the slots of every workload that is wanted, and the models to bring in.

Knows nothing of nodes: where a slot goes is placement's.
"""

from __future__ import annotations

from dataclasses import dataclass, field

from caudal.domain.decision import PullModel, Reason
from caudal.domain.gang import Gang, Role
from caudal.domain.model import ModelRecord
from caudal.domain.workload import ServedModel, ServiceSpec, TrainSpec, Workload
from caudal.policy.board import Board
from caudal.policy.demand import wanted_replicas
from caudal.policy.scaling import Need
from caudal.policy.slots import Slot, gateway_slot, replica_slot


@dataclass(slots=True)
class Desired:
    """The slots that should be held, by name in the order of placement; `later` names the bases of replicas
    that are wanted but cannot be made now, because their model is not in the model store. `scales` says of each
    model whose replicas follow demand how many there are to be and why, by the head of its slots' names."""

    slots: dict[str, Slot] = field(default_factory=dict)
    later: set[str] = field(default_factory=set)
    scales: dict[str, Need] = field(default_factory=dict)

    def add(self, slot: Slot) -> None:
        """One more."""
        self.slots[slot.name] = slot


def desired(board: Board, over: frozenset[str]) -> Desired:
    """Gateways first, then services, then runs (each by name): people wait for answers. `over` are the
    runs that have just been found finished or failed."""
    wanted = [w for w in board.workloads.values() if w.wanted and not w.over and w.name not in over]
    services = [w for w in wanted if isinstance(w.spec, ServiceSpec)]
    found = Desired()
    if services:
        _gateways(board, found)
    for workload in services:
        _service(board, workload, found)
    for workload in wanted:
        if isinstance(workload.spec, TrainSpec):
            _train(board, workload, workload.spec, found)
    return found


def _gateways(board: Board, found: Desired) -> None:
    fleet = board.snapshot.state.fleet
    each = fleet is not None and fleet.gateway.each_site
    for number, sites in enumerate([(s,) for s in board.sites] if each else [board.sites]):
        found.add(Slot(gateway_slot(number), Role.GATEWAY, "", 0, board.rules.gateway, sites))


def _train(board: Board, workload: Workload, spec: TrainSpec, found: Desired) -> None:
    sites = tuple(s for s in board.sites if not spec.at or s in spec.at)
    name, generation = workload.name, workload.generation
    head = f"{name}.coordinator"
    found.add(Slot(head, Role.COORDINATOR, name, generation, board.rules.coordinator, sites))
    for index in range(spec.sites):
        slot = f"{name}.worker.{index}"
        if not _worker_is_done(board, workload, slot):
            found.add(Slot(slot, Role.WORKER, name, generation, spec.resources, sites, apart=True))


def _worker_is_done(board: Board, workload: Workload, slot: str) -> bool:
    """Whether a slot's last worker left with its work done, and nobody has asked for workers since: neither
    a coordinator that was started later, nor one that says later that it still trains."""
    if board.holder(slot) is not None:
        return False
    newest = next(iter(board.ended(slot)), None)
    head = board.holder(f"{workload.name}.coordinator")
    if newest is None or head is None or not _left_well(newest, workload):
        return False
    ended_at = newest.ended_at or board.now
    report = board.reports.get(head.id)
    asks = report and report.at > ended_at and report.status.get("phase") in ("waiting", "training")
    return head.created_at <= ended_at and not asks


def _left_well(gang: Gang, workload: Workload) -> bool:
    return (
        gang.exit_code == 0
        and not gang.stopping
        and gang.end_reason.startswith("gang.exited")
        and gang.generation == workload.generation
    )


def _service(board: Board, workload: Workload, found: Desired) -> None:
    assert isinstance(workload.spec, ServiceSpec)
    listed = {m.id: m for m in board.snapshot.models}
    for model in workload.spec.models:
        if not model.own:
            continue  # served elsewhere: gateways send requests there, and nothing runs here
        record = listed.get(model.id)
        head = f"{workload.name}.replica.{model.id}"
        need = wanted_replicas(board, workload.name, model)
        if need is not None:
            found.scales[head] = need
        count = model.replicas if need is None else need.replicas
        if record is None:
            found.later.update(f"{head}.{i}" for i in range(count))
            _absent(board, workload, model)
            continue
        for index in range(count):
            found.add(_replica(board, workload, model, record, index, need.reason.text if need else ""))
        if need is not None and not count:
            text = f"{need.reason.text}; a request starts a replica"
            board.wait(head, workload.name, Reason("scale.asleep", text))


def _replica(
    board: Board, workload: Workload, model: ServedModel, record: ModelRecord, index: int, why: str
) -> Slot:
    return Slot(
        name=replica_slot(workload.name, model.id, index, workload.generation, record.version),
        role=Role.REPLICA,
        workload=workload.name,
        generation=workload.generation,
        resources=model.resources,
        sites=board.sites,
        model=model.id,
        model_version=record.version,
        why=why,
    )


def _absent(board: Board, workload: Workload, model: ServedModel) -> None:
    """A model that the model store does not list: pulled where it has a source, else waited for."""
    subject = f"{workload.name}.replica.{model.id}"
    if not model.source:
        code, text = "model.unpublished", f"run {model.run} has not published {model.id} yet"
        board.wait(subject, workload.name, Reason(code, text, {"run": model.run}))
        return
    if any(isinstance(i.action, PullModel) and i.action.model_id == model.id for i in board.open) or any(
        isinstance(c.action, PullModel) and c.action.model_id == model.id for c in board.choices
    ):
        text = f"{model.id} is being pulled from {model.source}"
        board.wait(subject, workload.name, Reason("model.pulling", text, {"source": model.source}))
        return
    _pull(board, workload, model, subject)


def _pull(board: Board, workload: Workload, model: ServedModel, subject: str) -> None:
    failed = [
        i
        for i in board.failed
        if isinstance(i.action, PullModel)
        and (i.action.model_id, i.action.source) == (model.id, model.source)
        and i.created_at >= workload.applied_at
    ]
    last = max(failed, key=lambda i: (i.changed_at, i.id), default=None)
    tries = int(last.reason.data.get("attempt", 1)) if last else 0
    if last is not None and board.now < last.changed_at + board.rules.pull_delay_s(tries):
        said = last.error.splitlines()[0] if last.error else "no reason given"
        data = {"attempts": tries, "again_at": last.changed_at + board.rules.pull_delay_s(tries)}
        board.wait(
            subject, workload.name, Reason("model.pull_failed", f"pull of {model.id} failed: {said}", data)
        )
        return
    reason = Reason(
        "model.absent",
        f"the model store does not list {model.id}",
        {"source": model.source, "attempt": tries + 1},
    )
    board.choose(PullModel(model.id, model.source, model.sha256), subject, reason)
    text = f"{model.id} is being pulled from {model.source}"
    board.wait(subject, workload.name, Reason("model.pulling", text, {"source": model.source}))
