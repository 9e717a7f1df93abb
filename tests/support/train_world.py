"""A run in virtual time: the production machines of coordinator and sites, and a network that misbehaves.

Frames keep their order on a connection, as TCP keeps it; beyond that everything may happen: any delay, frames
that come twice or not at all, connections that break or go silent, sites that crash, coordinators that
crash between any two steps or go on as fenced ones beside their successor. What survives is what was in the
object store. One seed, one history.
"""

from __future__ import annotations

import heapq
import itertools
from collections.abc import Callable
from dataclasses import dataclass, field, replace
from functools import partial
from pathlib import Path
from random import Random
from typing import Any

import msgspec
import numpy as np

import caudal
from caudal.domain.errors import AlreadyExists, NotFound
from caudal.domain.workload import ModelShape, OuterSpec, StageSpec, TrainSpec
from caudal.train import checkpoint, epochs
from caudal.train.audit import RunRecord, plan_path
from caudal.train.interface import DataManifest, Flat, IdRange, InnerResult, RunPlan, StageData, plan
from caudal.train.keeper import Fenced, Keeper, Overtaken
from caudal.train.kept import Kept
from caudal.train.layout import initial_state
from caudal.train.leases import first
from caudal.train.memory import Known, Memory
from caudal.train.messages import Delta, Hello, Message, Ping
from caudal.train.outer import state_sha256
from caudal.train.protocol import rules
from caudal.train.protocol.coordinator import Coordinator
from caudal.train.protocol.door import parts, plan_sha256
from caudal.train.protocol.effects import (
    Assess,
    Close,
    Commit,
    Compute,
    CutShort,
    Done,
    Forget,
    Keep,
    Load,
    Recall,
    Rejoin,
    Remember,
    Send,
    Shift,
    StopCompute,
    Trained,
)
from caudal.train.protocol.site import Site
from caudal.train.protocol.terms import Terms
from tests.support.learner import Learner, lesson

PREFIX = "runs/tiny/g1"

SPEC = TrainSpec(
    name="tiny",
    data="none",
    stages=(
        StageSpec("first", tokens=8 * 100, sample_tokens=8, batch=2),
        StageSpec("second", tokens=8 * 41 - 3, sample_tokens=8, batch=3),
    ),
    model=ModelShape(layers=1, heads=2, kv_heads=1, width=8, ffn_width=8, context=16),
    outer=OuterSpec(inner_steps=4, fragments=3),
    sites=3,
    evaluate_every_rounds=3,
    checkpoint_every_rounds=5,
)


def tiny_plan(spec: TrainSpec = SPEC) -> RunPlan:
    """The plan of a tiny run, without data."""
    stages = tuple(StageData(s.name, s.kind, 50, s.sample_tokens) for s in spec.stages)
    return plan(spec, DataManifest(16, stages))


class DictBlobs:
    """ports.Blobs in a dictionary."""

    url = "memory://"

    def __init__(self) -> None:
        self.objects: dict[str, bytes] = {}

    def put(self, path: str, data: bytes, *, if_absent: bool = False) -> None:
        if if_absent and path in self.objects:
            raise AlreadyExists(path)
        self.objects[path] = bytes(data)

    def get(self, path: str) -> bytes:
        if path not in self.objects:
            raise NotFound(path)
        return self.objects[path]

    def list(self, prefix: str) -> list[str]:
        return sorted(p for p in self.objects if p.startswith(prefix))

    def delete(self, path: str) -> None:
        self.objects.pop(path, None)

    def local_path(self, path: str) -> None:
        return None


class NoMetrics:
    """Stands where a Metrics is needed."""

    def flush(self) -> None:
        return


def begin(blobs: Any, run_plan: RunPlan) -> None:
    """Round 0, as the first coordinator writes it."""
    record = RunRecord(run_plan.run, run_plan.parameters, run_plan.total_ids, plan_sha256(run_plan))
    blobs.put(plan_path(PREFIX), msgspec.json.encode(record))
    state = initial_state(run_plan.shape, run_plan.vocab, run_plan.seed)
    manifest = checkpoint.Manifest(run_plan.run, 0, "", state_sha256(state), "", checkpoint.Totals(), 0.0)
    checkpoint.write(blobs, PREFIX, state, np.zeros_like(state), manifest)


def hello(run_plan: RunPlan, worker: str, incarnation: int = 1, **more: Any) -> Hello:
    """What a site that fits says."""
    return Hello(
        **{
            "run": run_plan.run,
            "generation": 1,
            "site": worker,
            "worker": worker,
            "incarnation": incarnation,
            "plan": plan_sha256(run_plan),
            "parts": parts(run_plan),
            "parameters": run_plan.parameters,
            "version": caudal.__version__,
            "nonce": "",
            "proof": "",
            **more,
        }
    )


@dataclass
class Wire:
    """One connection: a number at the coordinator's side, frames in order in both directions."""

    number: int
    boss: Boss
    node: Node
    up: bool = True
    silent: bool = False
    arrives: dict[str, float] = field(default_factory=lambda: {"boss": 0.0, "site": 0.0})


@dataclass(eq=False)
class Boss:
    """A coordinator process."""

    machine: Coordinator
    keeper: Keeper
    epoch: int
    wires: dict[int, Wire] = field(default_factory=dict)
    alive: bool = True
    writing: list[Commit | Keep] = field(default_factory=list)
    busy: bool = False


@dataclass(eq=False)
class Node:
    """A worker process: at most one connection, and jobs that run one after the other."""

    name: str
    incarnation: int = 1
    site: Site | None = None
    wire: Wire | None = None
    heard_at: float = 0.0
    jobs_until: float = 0.0
    stop: list[bool] = field(default_factory=list)
    finish: Callable[[], None] = field(default=lambda: None)
    shifts: list[Shift] = field(default_factory=list)
    params: Any = None
    inner: Any = None  # its memory
    kept: Kept = field(default_factory=Kept)
    memory: Memory | None = None  # of all its processes
    pace: float = 1.0
    done: bool = False


class TrainWorld:
    """See the module. `calm` ends the faults: from then on the run has to finish."""

    def __init__(
        self,
        seed: int,
        sites: int,
        spec: TrainSpec = SPEC,
        poison: frozenset[int] = frozenset(),
        remembers: bool = False,
        folder: Path | None = None,
    ) -> None:
        """`poison`: sample ids that make whoever trains them learn nothing but numbers that are none. `remembers`:
        what sites learn depends on what they learnt before; with a `folder` processes leave that to those after them."""
        self.inherited = 0
        self.poison, self.remembers = poison, remembers
        self.taught: dict[tuple[int, tuple[IdRange, ...]], Flat] = {}
        self.random = Random(seed)
        self.plan = tiny_plan(spec)
        self.spec = spec
        self.blobs = DictBlobs()
        begin(self.blobs, self.plan)
        self.now = 0.0
        self.calm = False
        self.trained: Trained | None = None
        self.adopted = 0
        self.cut_short = 0
        self.landed: list[tuple[int, int]] = []  # (epoch, round) of each commit, in the order of time
        self.hashes: dict[tuple[int, int], str] = {}
        self.log: list[str] = []
        self._queue: list[tuple[float, int, Callable[[], None]]] = []
        self._numbers = itertools.count()
        self.bosses: list[Boss] = []
        self.nodes = [Node(f"site-{i}", pace=self.random.choice([1.0, 1.0, 2.5])) for i in range(sites)]
        for node in self.nodes if folder else []:
            node.memory = Memory(folder / node.name, "plan")
        self.new_boss()
        for node in self.nodes:
            self.at(self.random.random(), lambda n=node: self.join(n))
        self.at(0.1, self.beat)

    # ---- time ---------------------------------------------------------------------------------------------

    def at(self, delay: float, what: Callable[[], None]) -> None:
        self.at_moment(self.now + delay, what)

    def at_moment(self, moment: float, what: Callable[[], None]) -> None:
        heapq.heappush(self._queue, (moment, next(self._numbers), what))

    def run(self, until: float) -> None:
        """Let virtual time pass, or until the run is trained."""
        while self._queue and self._queue[0][0] <= until and self.trained is None:
            self.now, _, what = heapq.heappop(self._queue)
            what()

    def beat(self) -> None:
        """Ticks of coordinators, pings both ways, sites that notice silence."""
        for boss in self.bosses:
            if boss.alive:
                self.boss_does(boss, boss.machine.tick(self.now))
        for node in self.nodes:
            wire = node.wire
            if wire and wire.up:
                self.carry(wire, "boss", Ping(), b"")
                if wire.boss.alive:
                    self.carry(wire, "site", Ping(), b"")
                outdated = wire.boss is not self.bosses[-1] and self.random.random() < 0.1
                if outdated or self.now - node.heard_at > rules.LIVENESS_S:
                    self.cut(wire)  # a worker looks for a newer epoch every few beats
        self.at(0.5, self.beat)

    # ---- coordinators -------------------------------------------------------------------------------------

    def new_boss(self) -> None:
        """Another coordinator takes over; the ones before may still believe in themselves."""
        mine = epochs.claim(self.blobs, PREFIX, address="", site="", gang="", at=self.now)
        restored = checkpoint.restore(self.blobs, PREFIX, self.plan.parameters, self.log.append)
        assert restored is not None
        terms = Terms(
            self.plan,
            1,
            mine.epoch,
            self.spec.sites,
            self.spec.evaluate_every_rounds,
            self.spec.checkpoint_every_rounds,
        )
        keeper = Keeper(
            self.blobs, PREFIX, mine.epoch, NoMetrics(), lambda _: None, self.log.append, self.log.append
        )
        self.bosses.append(Boss(Coordinator(terms, restored, self.now, 0.0), keeper, mine.epoch))

    def kill_boss(self, boss: Boss) -> None:
        boss.alive = False
        for wire in list(boss.wires.values()):
            self.cut(wire)

    def boss_does(self, boss: Boss, effects: list[Any]) -> None:
        for effect in effects:
            if isinstance(effect, Send):
                if effect.connection in boss.wires:
                    self.carry(boss.wires[effect.connection], "site", effect.message, bytes(effect.payload))
            elif isinstance(effect, Close):
                if effect.connection in boss.wires:
                    wire = boss.wires[effect.connection]
                    self.at(max(0.0, wire.arrives["site"] - self.now) + 0.01, lambda w=wire: self.cut(w))
            elif isinstance(effect, Commit | Keep):
                if isinstance(effect, Commit):
                    key = boss.epoch, effect.entry.round
                    self.hashes[key] = state_sha256(boss.machine.outer.state)
                boss.writing.append(effect)
                self.write_next(boss)
            elif isinstance(effect, Trained):
                self.trained = effect

    def write_next(self, boss: Boss) -> None:
        if boss.busy or not boss.writing:
            return
        boss.busy = True
        slow_s = self.random.uniform(0.0, 5.0) if self.fault(0.1) else 0.0
        self.at(self.random.expovariate(50) + slow_s, lambda: self.written(boss, boss.writing.pop(0)))

    def written(self, boss: Boss, what: Commit | Keep) -> None:
        """One write lands. A crash before it loses it; one after it, before anybody is told, keeps it."""
        boss.busy = False
        if not boss.alive:
            return
        if isinstance(what, Keep):
            boss.keeper._keep(what)
        else:
            try:
                entry = boss.keeper._append(what)
            except Fenced:
                self.kill_boss(boss)
                return
            except Overtaken:
                self.kill_boss(boss)
                self.new_boss()
                return
            self.landed.append((entry.epoch, entry.round))
            if self.fault(0.01):
                self.crash_boss(boss)
            if not boss.alive:
                return
            self.boss_does(boss, boss.machine.committed(entry, self.now))
        self.write_next(boss)

    def crash_boss(self, boss: Boss) -> None:
        """It dies (or seems to), and another takes over later."""
        if not self.fault(0.3):
            self.kill_boss(boss)
        self.at(self.random.uniform(0.1, 3.0), self.new_boss)

    # ---- sites --------------------------------------------------------------------------------------------

    def join(self, node: Node) -> None:
        """Connect to the newest coordinator, or try again later."""
        if node.wire is not None and node.wire.up:
            return
        boss = self.bosses[-1]
        if not boss.alive:
            self.at(0.3, lambda: self.join(node))
            return
        wire = Wire(next(self._numbers), boss, node)
        boss.wires[wire.number] = wire
        if node.site is None:
            self.start(node)
        assert node.site is not None
        node.wire, node.heard_at = wire, self.now
        held_round, sha256, held = node.site.offer()
        said = hello(self.plan, node.name, node.incarnation, round=held_round, state_sha256=sha256, held=held)
        self.carry(wire, "boss", said, b"")
        self.at(10.0, partial(self.unproven, wire))

    def start(self, node: Node) -> None:
        """A new process, which may find what the one before it knew."""
        node.site, node.kept = Site(self.plan, self.remembers), Kept()
        node.inner = Learner(self.plan, self.remembers)
        known = node.memory.read(self.plan.parameters, self.blobs, PREFIX, node.name) if node.memory else None
        if known is not None:
            self.inherited += 1
            node.inner.recall(known.moments)
            node.site.inherit(known.round)

    def known(self, node: Node, effect: Remember) -> None:
        if node.memory is not None and self.random.random() < 0.8:
            moments = node.kept.after(effect.round, node.inner)
            node.memory.write(Known(effect.round, effect.epoch, moments))

    def unproven(self, wire: Wire) -> None:
        """The hub's handshake timeout: who has not said hello by then is cut."""
        if wire.boss.alive and wire.boss.machine.members.of(wire.number) is None:
            self.cut(wire)

    def cut(self, wire: Wire) -> None:
        """The connection breaks; both sides learn it."""
        if not wire.up:
            return
        wire.up = False
        wire.boss.wires.pop(wire.number, None)
        if wire.boss.alive:
            self.boss_does(wire.boss, wire.boss.machine.lost(wire.number, "cut", self.now))
        node = wire.node
        if node.wire is wire:
            self.at(self.random.uniform(0.05, 0.5), lambda: self.join(node))

    def crash_node(self, node: Node) -> None:
        """The process dies and comes back as its next incarnation."""
        node.incarnation += 1
        node.params, node.jobs_until, node.site = None, self.now, None
        node.shifts, node.stop = [], []
        if node.wire is not None and node.wire.up:
            self.cut(node.wire)

    def site_does(self, node: Node, effects: list[Any]) -> None:
        site = node.site
        assert site is not None
        for effect in effects:
            if isinstance(effect, Send):
                if isinstance(effect.message, Delta) and effect.message.fragment == 0:
                    self.learnt_once(site, effect.message)
                if node.wire is not None and node.wire.up:
                    self.carry(node.wire, "boss", effect.message, bytes(effect.payload))
            elif isinstance(effect, Load):
                key = site.epoch, site.round
                if key in self.hashes:
                    assert state_sha256(effect.state) == self.hashes[key], f"copies differ after {key}"
                self.job(node, 0.001, partial(setattr, node, "params", effect.state.copy()))
            elif isinstance(effect, Shift):
                node.shifts.append(effect)
                self.job(node, 0.0, partial(self.shifted, node, effect))
            elif isinstance(effect, Compute):
                seconds = node.pace * 0.05 * sum(r.size for r in effect.ids) * self.random.uniform(0.7, 1.5)
                if self.fault(0.03):
                    seconds *= 50  # alive, and slow for once
                node.stop, over = [False, False], [False]
                node.finish = partial(
                    self.once, over, partial(self.computed, node, effect, node.stop, seconds)
                )
                self.job(node, seconds, node.finish)
            elif isinstance(effect, StopCompute):
                assert site.computing
                node.stop[0] = True
            elif isinstance(effect, CutShort):
                assert site.computing
                node.stop[1] = True
                self.finish_soon(node)
            elif isinstance(effect, Assess):
                self.job(node, 0.2, partial(self.assessed, node, effect))
            elif isinstance(effect, Rejoin):
                assert not effect.final or self.fault(1.0), effect.why
                if node.wire is not None:
                    self.cut(node.wire)
            elif isinstance(effect, Forget):
                self.job(node, 0.0, partial(self.forget, node))
            elif isinstance(effect, Remember):
                self.job(node, 0.0, partial(self.known, node, effect))
            elif isinstance(effect, Recall):
                self.job(node, 0.0, partial(node.kept.recall, effect, node.inner))
            else:
                assert isinstance(effect, Done)

    def learnt_once(self, site: Site, delta: Delta) -> None:
        """What is cut for a round is what its own ids taught, however updates came in between."""
        work = next(w for w in site.works if w.order.lease == delta.lease)
        assert work.learnt is not None
        ids = tuple(IdRange(*r) for r in work.order.ids)
        wanted = self.taught[id(site), ids]
        if not np.isfinite(wanted).all():
            return
        if work.order.gradient:
            assert work.result is not None
            assert np.array_equal(work.result.gradient, lesson(self.plan.parameters, ids))
        assert np.allclose(work.learnt, wanted, atol=2e-5), (
            "a delta holds what others learnt, or twice its own"
        )

    def lesson(self, node: Node, ids: tuple[IdRange, ...]) -> Flat:
        """What these ids teach a site."""
        if any(r.start <= bad < r.stop for bad in self.poison for r in ids):
            said = np.full(self.plan.parameters, np.nan, np.float32)
        else:
            said = node.inner.learn(ids)
        self.taught[id(node.site), ids] = said
        return said

    def forget(self, node: Node) -> None:
        node.kept.forget()
        node.inner.forget()

    def shifted(self, node: Node, shift: Shift) -> None:
        if shift in node.shifts:
            node.shifts.remove(shift)
            self.shift(node, shift)

    def shift(self, node: Node, shift: Shift) -> None:
        node.params = node.params.copy()
        node.params[shift.start : shift.start + len(shift.change)] += shift.change

    def assessed(self, node: Node, order: Assess) -> None:
        assert node.site is not None
        node.params = order.back.copy()
        heldout = {"correct": 1, "of": 2} if order.heldout else None
        self.site_does(node, node.site.assessed(order.round, {"val_loss": 1.0}, heldout))

    def finish_soon(self, node: Node) -> None:
        """The steps under way end after the one that they are at."""
        incarnation, finish = node.incarnation, node.finish
        self.at(self.random.uniform(0.01, 0.2), lambda: finish() if node.incarnation == incarnation else None)

    def once(self, over: list[bool], what: Callable[[], None]) -> None:
        """What ends early does not end again."""
        if not over[0]:
            over[0] = True
            what()

    def job(self, node: Node, seconds: float, what: Callable[[], None]) -> None:
        incarnation = node.incarnation
        node.jobs_until = max(node.jobs_until, self.now) + seconds
        # the moment itself: now + (moment - now) may be another float, and jobs would change places
        self.at_moment(node.jobs_until, lambda: what() if node.incarnation == incarnation else None)

    def computed(self, node: Node, order: Compute, stop: list[bool], seconds: float) -> None:
        assert node.site is not None
        node.kept.mark(order, node.inner)
        stage = self.plan.stages[order.stage]
        count = sum(r.size for r in order.ids)
        assert all(stage.first_id <= r.start < r.stop <= stage.end_id for r in order.ids), "crosses a stage"
        steps, applied = -(-count // stage.batch), {}
        # what came meanwhile is added between two steps, or behind the last one by its own job
        for shift in list(node.shifts) if self.random.random() < 0.7 else []:
            node.shifts.remove(shift)
            self.shift(node, shift)
            applied[shift.key] = self.random.randrange(steps)
        if stop[0]:
            node.inner.learn(order.ids)  # in part, and for nothing
            result = InnerResult(node.params.copy(), 0, 0.0, 0, seconds, stopped=True)
        elif stop[1] and steps > 1:
            done = self.random.randrange(1, steps)
            some = first(order.ids, done * stage.batch)
            node.params = node.params + self.lesson(node, some)
            count = sum(r.size for r in some)
            applied = {key: min(step, done - 1) for key, step in applied.items()}
            tokens = count * stage.sample_tokens
            result = InnerResult(node.params.copy(), tokens, 1.0, done, seconds, stopped=True)
            self.cut_short += 1
        else:
            node.params = node.params + self.lesson(node, order.ids)
            loss = 1.0 if np.isfinite(node.params).all() else float("nan")
            tokens = count * stage.sample_tokens
            result = InnerResult(node.params.copy(), tokens, loss, steps, seconds)
            if order.gradient:
                said = lesson(self.plan.parameters, order.ids)
                result = replace(result, gradient=said if np.isfinite(loss) else node.params.copy())
        self.site_does(node, node.site.computed(result, applied, self.now))

    # ---- the network --------------------------------------------------------------------------------------

    def fault(self, chance: float) -> bool:
        return not self.calm and self.random.random() < chance

    def carry(self, wire: Wire, to: str, message: Message, payload: bytes) -> None:
        """A frame on its way: in order, late, perhaps twice, perhaps lost, perhaps the end of the connection."""
        if not wire.up or wire.silent:
            return
        if not isinstance(message, Ping):
            if self.fault(0.004):
                return
            if self.fault(0.006):
                self.at(self.random.random(), lambda: self.cut(wire))
            if self.fault(0.003):
                wire.silent = True
            if self.fault(0.003):
                self.at(self.random.random(), lambda: self.crash_node(wire.node))
            if self.fault(0.003) and wire.boss.alive:
                self.at(self.random.random(), lambda: self.crash_boss(wire.boss) if wire.boss.alive else None)
        for _ in range(2 if self.fault(0.02) else 1):
            delay = self.random.expovariate(100) + (self.random.uniform(1, 8) if self.fault(0.005) else 0)
            wire.arrives[to] = max(wire.arrives[to] + 1e-9, self.now + delay)
            arrive = self.to_boss if to == "boss" else self.to_site
            self.at(wire.arrives[to] - self.now, partial(arrive, wire, message, payload))

    def to_boss(self, wire: Wire, message: Message, payload: bytes) -> None:
        if not wire.up or wire.silent or not wire.boss.alive:
            return
        machine = wire.boss.machine
        if isinstance(message, Hello):
            self.boss_does(wire.boss, machine.hello(wire.number, message, "", self.now))
        else:
            self.boss_does(wire.boss, machine.message(wire.number, message, payload, self.now))

    def to_site(self, wire: Wire, message: Message, payload: bytes) -> None:
        node = wire.node
        if not wire.up or wire.silent or node.wire is not wire or node.site is None:
            return
        node.heard_at = self.now
        self.site_does(node, node.site.message(message, payload, self.now))
