"""What a job's entrypoint runs on the head: one gang, from its fence to its last record.

It reads the gang's spec (a message that it deletes at once), refuses what has run before or is fenced, finds
the gang's node, reserves the room in a placement group, has a keeper start the processes there, and says on
its standard output, in lines that the driver reads, what became of them. SIGTERM (a stopped job) ends the gang
within the grace that the driver's message says. It ends when its gang is over, and says that a gang is lost
only when none of its processes can live any more.
"""

from __future__ import annotations

import json
import signal
import time
from types import FrameType
from typing import Any

import ray
from ray.util.placement_group import PlacementGroup, placement_group, remove_placement_group
from ray.util.scheduling_strategies import PlacementGroupSchedulingStrategy

from caudal.drivers.ray import kv, names
from caudal.drivers.ray.keeper import Keeper

LOOK_S = 0.2
START_S = 90.0  # until a keeper stands: a worker process, which imports Ray
ASK_EVERY_S = 1.0  # how often it looks for a stop whose signal was lost
DEFAULT_GRACE_S = 10.0
NICE = {"RAY_worker_niceness": "0"}  # Ray's is 15, and what a worker starts inherits it

Spec = dict[str, Any]


class Over(Exception):
    """The gang is over, or never was."""

    def __init__(self, error: str, exit_code: int | None) -> None:
        super().__init__(error)
        self.error = error
        self.exit_code = exit_code


def main(words: list[str]) -> int:
    """`GANG_ID SPEC_MESSAGE`; returns the job's exit code: the gang's, where a shell can say it."""
    asked = Asked()
    signal.signal(signal.SIGTERM, asked.note)
    ray.init(address="auto", namespace=kv.NAMESPACE, log_to_driver=False, logging_level="ERROR")
    signal.signal(signal.SIGTERM, asked.note)  # ray.init has set its own
    signal.pthread_sigmask(signal.SIG_UNBLOCK, {signal.SIGTERM})  # start.py had it blocked
    gang_id, spec_name = words
    said = kv.message(spec_name)
    kv.drop_message(spec_name)
    if said is None:
        return _say(names.ENDED, exit_code=names.CANNOT_START, error="its spec is not there (any more)")
    spec = json.loads(said)
    asked.prefix = names.stop_prefix(str(spec["site"]), gang_id, str(spec["token"]))
    return Supervisor(gang_id, spec, asked).run()


def _say(kind: str, **more: Any) -> int:
    print(names.RECORD + json.dumps({"kind": kind, "at": time.time(), **more}), flush=True)
    code = more.get("exit_code")
    if kind in (names.BEGUN, names.STARTED) or code == 0:
        return 0
    return 1 if code is None else int(code) if code > 0 else 128 - int(code)


class Asked:
    """Whether the gang was asked to end, and how soon."""

    def __init__(self) -> None:
        self.now = False
        self.grace_s: float | None = None
        self.prefix = ""  # of the messages by which the driver says it
        self._next_look = 0.0

    def note(self, _number: int, _frame: FrameType | None) -> None:
        """SIGTERM's handler."""
        self.now = True

    def look(self) -> float | None:
        """A grace that is new since the last look: the first one, or a shorter one."""
        if not self.now and time.monotonic() < self._next_look:
            return None
        self._next_look = time.monotonic() + ASK_EVERY_S
        said = kv.messages(self.prefix)
        if not said and not self.now:
            return None
        self.now = True
        grace_s = names.grace_of(said[0]) if said else DEFAULT_GRACE_S
        if self.grace_s is not None and grace_s >= self.grace_s:
            return None
        self.grace_s = grace_s
        return grace_s


class Beats:
    """When the head last answered a gang's keeper, at the latest: each look that finds another beat than the one before
    moves it to its own moment."""

    def __init__(self, key: str) -> None:
        self._key = key
        self._last: str | None = None
        self._answered: float | None = None

    def look(self) -> float | None:
        """That moment, of this process's steady clock; None before the first beat. No later beat was answered before
        this look."""
        now = kv.get(self._key)
        if now is not None and now != self._last:
            self._last, self._answered = now, time.monotonic()
        return self._answered

    def forget(self) -> None:
        """Nobody asks any more."""
        kv.delete(self._key)


class Supervisor:
    """One gang on this cluster."""

    def __init__(self, gang_id: str, spec: Spec, asked: Asked) -> None:
        self._gang_id = gang_id
        self._spec = spec
        self._asked = asked
        self._group: PlacementGroup | None = None
        self._beats = Beats(names.beat_key(str(spec["site"]), gang_id))

    def run(self) -> int:
        """The whole life; returns the job's exit code."""
        try:
            return self._run()
        except Over as over:
            return _say(names.ENDED, exit_code=over.exit_code, error=over.error)
        except ray.exceptions.RayActorError as error:
            return self._lost(str(error).splitlines()[0])
        finally:
            if self._group is not None:
                remove_placement_group(self._group)
            for message in kv.messages(self._asked.prefix):
                kv.drop_message(message)
            self._beats.forget()

    def _run(self) -> int:
        site, token = str(self._spec["site"]), str(self._spec["token"])
        lease = (site, str(self._spec["lease_id"]), str(self._spec["node"]))
        epoch = int(self._spec["epoch"])
        if not kv.put_once(names.begun_key(site, self._gang_id), token):
            return _say(names.REPEATED, exit_code=names.CANNOT_START)
        # First written, then looked at: of two starts at one time the older one sees the newer.
        kv.put_once(names.fence_key(*lease, epoch), self._gang_id)
        newest = int(kv.keys(names.fence_prefix(*lease))[-1].rpartition("/")[2])
        if newest > epoch:
            raise Over(f"epoch {epoch} of lease {lease[1] or lease[2]} is fenced by {newest}", names.FENCED)
        _say(names.BEGUN)
        group, asks = self._place(), _asks(self._spec)
        keeper = (
            ray.remote(Keeper)
            .options(
                **_options(asks),
                scheduling_strategy=PlacementGroupSchedulingStrategy(group, 0),
                max_restarts=0,
                max_concurrency=4,
                runtime_env={"env_vars": NICE},
            )
            .remote(self._spec)
        )
        starting = keeper.start.remote()
        until = time.monotonic() + START_S
        while not self._looks(keeper, starting):
            if time.monotonic() > until:
                ray.kill(keeper)  # whether it has started anything is not known: it is given up as lost
                return self._lost("its node did not start it in time")
        started = ray.get(starting)
        if "error" in started:
            raise Over(started["error"], started["exit_code"])
        _say(names.STARTED, **started)
        return self._watch(keeper)

    def _watch(self, keeper: Any) -> int:
        """Until it is over."""
        waiting = keeper.wait.remote(5.0)
        while True:
            if not self._looks(keeper, waiting):
                continue
            end = ray.get(waiting)
            if end is None:
                waiting = keeper.wait.remote(5.0)
            else:
                return _say(names.LOST if end["exit_code"] is None else names.ENDED, **end)

    def _looks(self, keeper: Any, future: Any) -> bool:
        """Pass on what the gang was asked; whether the keeper has answered within a moment."""
        grace_s = self._asked.look()
        if grace_s is not None:
            keeper.stop.remote(grace_s)
        self._beats.look()
        return bool(ray.wait([future], timeout=LOOK_S)[0])

    def _lost(self, error: str) -> int:
        """The keeper is gone, with its node or alone. Its processes end when it dies, or when its node has had
        no answer from here for the bound, or when it reads that it is given up: wait until one of these is so. The
        bound counts from the last time that it was answered: Ray takes a while to say that a node is gone."""
        kv.put_once(names.lost_key(str(self._spec["site"]), self._gang_id), error[:200])
        answered = self._beats.look()
        until = (time.monotonic() if answered is None else answered) + float(self._spec["cut_s"])
        time.sleep(max(0.0, until + names.CUT_MARGIN_S - time.monotonic()))
        return _say(names.LOST, exit_code=None, error=error)

    def _place(self) -> PlacementGroup:
        """A placement group that has its room. Raises Over where there is none in time."""
        until = time.monotonic() + float(self._spec["place_s"])
        asks = _asks(self._spec)
        while True:
            where, why = _where(ray.nodes(), asks, self._spec["lease_id"])
            if where is not None:
                break
            self._pause(until, why)
        bundle = {**asks, **where} or {"CPU": 0.001}  # an empty one is none
        self._group = placement_group([bundle], strategy="STRICT_PACK", name=self._gang_id)
        while not self._group.wait(LOOK_S):
            self._pause(until, f"no node has {bundle} free")
        return self._group

    def _pause(self, until: float, why: str) -> None:
        if self._asked.look() is not None:
            raise Over("it was to end before it had started", names.STOPPED_BEFORE)
        if time.monotonic() > until:
            raise Over(why, names.CANNOT_START)
        time.sleep(LOOK_S)


def _asks(spec: Spec) -> dict[str, float]:
    """What the gang asks of its node, in Ray's words; nothing that is zero."""
    asked = spec["resources"]
    wanted = {
        "CPU": float(asked["cpus"]),
        "memory": float(asked["memory_bytes"]),
        "GPU": float(asked["accelerators"]),
        "neuron_cores": float(asked["neuron_cores"]),
    }
    if wanted["neuron_cores"]:
        wanted["GPU"] = 0.0  # Neuron's accelerators are counted by their cores
    return {name: amount for name, amount in wanted.items() if amount > 0}


def _options(asks: dict[str, float]) -> dict[str, Any]:
    """The same for an actor."""
    own = {"CPU": "num_cpus", "memory": "memory", "GPU": "num_gpus"}
    options: dict[str, Any] = {own[name]: amount for name, amount in asks.items() if name in own}
    options.setdefault("num_cpus", 0)
    return {**options, "resources": {name: n for name, n in asks.items() if name not in own}}


def _where(
    nodes: list[dict[str, Any]], asks: dict[str, float], lease_id: str
) -> tuple[dict[str, float] | None, str]:
    """What ties the gang to its node: a share of the lease's resource; nothing, where no node of this cluster has
    joined under a lease; else a node that has none. None, with why, where there is no such node (yet)."""
    alive = [node["Resources"] for node in nodes if node["Alive"]]
    lease = names.lease_resource(lease_id)
    if any(lease in has for has in alive):
        return {lease: names.LEASE_SHARE}, ""
    leased = [has for has in alive if any(name.startswith(names.LEASE_PREFIX) for name in has)]
    free = [has for has in alive if has not in leased or not lease_id]
    fitting = [has for has in free if all(has.get(name, 0) >= amount for name, amount in asks.items())]
    if not fitting:
        return None, f"no node has joined as {lease}, and none that is free of leases has {asks}"
    if len(free) == len(alive):
        return {}, ""
    return {next(name for name in fitting[0] if _is_address(name)): names.LEASE_SHARE}, ""


def _is_address(resource: str) -> bool:
    return resource.startswith("node:") and resource != "node:__internal_head__"
