"""One site's copy of a run, in the process that computes.

Loads what computes first, then looks for the newest coordinator and takes part, and comes back as long as the
run is not finished. Keeps nothing: it may be killed at any instruction. A spare does the same, but loads gently
and waits for its word before it takes part; until then it reports nothing. Does not know who minds it: a tether is
all it has (worker.py says which processes there are).
"""

from __future__ import annotations

import asyncio
import os
import signal
import sys
import threading
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass, replace
from functools import partial
from pathlib import Path

import msgspec

from caudal.domain.errors import CaudalError, Failed, Stale
from caudal.domain.workload import InnerSpec
from caudal.ports import Blobs
from caudal.store.blobs import open_blobs
from caudal.store.nearest import nearest
from caudal.telemetry.report import Reporter
from caudal.train import epochs
from caudal.train.base.layout import base_of
from caudal.train.call import Call, Standby
from caudal.train.checkpoint import Restored, restore
from caudal.train.compute import ComputeThread
from caudal.train.config import WorkerConfig, read_config
from caudal.train.data.prepare import load_manifest
from caudal.train.fetch import data_folder
from caudal.train.finish import known_result
from caudal.train.interface import DataManifest, Inner, RunPlan, plan
from caudal.train.log import say
from caudal.train.memory import Memory
from caudal.train.protocol.door import plan_sha256
from caudal.train.protocol.effects import Done
from caudal.train.protocol.site import Site
from caudal.train.runner import Runner
from caudal.train.session import Session
from caudal.train.tether import TERMINATED, Tether

MakeInner = Callable[[RunPlan, DataManifest, Path, int], Inner]
"""Builds what computes: plan, data, the data's folder, threads."""

LOOK_S = 0.1
"""How often a worker looks for a coordinator that it has not found; slower the longer it looks."""

LOOK_MOST_S = 1.0

SPARE_BUILDS_PARAMETERS = 25_000_000
"""A spare builds models up to this size (100 MB) beforehand; of larger ones it has loaded the libraries only."""

GENTLE_NICE = 10
"""A tenth of what the worker gets where both want a processor: at 19 it would load for minutes."""
ALONE, SPARE = "alone", "spare"
ENDED_S = 5.0
"""So long the other processes of a group have to end in order; what goes on for longer (a step of work that is void) ends
with this process."""


def torch_inner(
    spec: InnerSpec, cache: str, run_plan: RunPlan, manifest: DataManifest, folder: Path, threads: int
) -> Inner:
    """The real one: made for one process of CPUs, or a group, which trains every base. Imported here: loading
    torch takes seconds, and tests bring a smaller one. Raises UsageError where the hardware lacks what the spec asks for."""
    own = base_of(manifest.details) is None and replace(spec, spare=True) == InnerSpec()
    if own and not on_cuda():
        from caudal.train.inner import TorchInner  # noqa: PLC0415 (torch enters here)

        return TorchInner(run_plan, manifest, folder, threads)
    from caudal.train.group.inner import GroupInner  # noqa: PLC0415 (torch enters here)
    from caudal.train.group.member import Setup  # noqa: PLC0415 (torch enters here)

    each = max(1, threads // spec.processes)
    return GroupInner(Setup(run_plan, manifest, str(folder), spec, each, cache))


def on_cuda() -> bool:
    """Whether this machine computes on CUDA."""
    import torch  # noqa: PLC0415 (torch enters here)

    return torch.cuda.is_available()


def load_gently() -> None:
    """Load what the trainer for CPUs needs, while others of this machine compute.

    On Linux a thread has a niceness of its own, so that the process keeps its own: an unprivileged one could not
    take it back when the spare has to go. Threads that compute are started later, by others."""
    if sys.platform == "linux":
        os.setpriority(os.PRIO_PROCESS, threading.get_native_id(), GENTLE_NICE)
    import caudal.train.inner  # noqa: F401, PLC0415 (torch enters here)


@dataclass(frozen=True, slots=True)
class Loaded:
    """All that a worker needs before it can join: the run's plan, and how to build what computes."""

    plan: RunPlan
    build: Callable[[], Inner]


async def load(config: WorkerConfig, blobs: Blobs, make_inner: MakeInner | None = None) -> Loaded | None:
    """Wait for the run's data and read it; None where the run is finished."""
    manifest = await _manifest(config, blobs)
    if manifest is None or known_result(blobs, config.prefix) is not None:
        return None
    run_plan = plan(config.spec, manifest)
    folder = await asyncio.to_thread(data_folder, blobs, config.prefix, manifest, Path(config.cache_dir))
    make = make_inner or partial(torch_inner, config.spec.inner, config.cache_dir)
    return Loaded(run_plan, partial(make, run_plan, manifest, folder, config.threads))


async def work(
    config: WorkerConfig,
    blobs: Blobs,
    reporter: Reporter,
    make_inner: MakeInner | None = None,
    call: Call | None = None,
) -> int:
    """Take part in a run until it is finished; returns the exit code. `call` reaches the standby, which takes
    over where nobody coordinates. Raises CaudalError."""
    reporter.update(phase="loading", site=config.site, round=0)
    loaded = await load(config, blobs, make_inner)
    if loaded is not None:
        await take_part(config, blobs, loaded.plan, reporter, loaded.build, call)
    return _done(reporter)


async def work_as_spare(
    config: WorkerConfig, blobs: Blobs, reporter: Reporter, make_inner: MakeInner | None, tether: Tether
) -> int:
    """Load all, wait for the word, then be the worker."""
    if make_inner is None:
        with ThreadPoolExecutor(1) as once:  # a thread of its own: one that is kept would stay gentle
            await asyncio.get_running_loop().run_in_executor(once, load_gently)
    loaded = await load(config, blobs, make_inner)
    thread = None
    if loaded is not None and _worth_building(loaded.plan, make_inner):
        thread = await started(loaded.build, loaded.plan)
    say(f"the spare is ready (process {os.getpid()})")
    restart = await tether.go()
    reporter.update(phase="joining", site=config.site, round=0, restarts=restart)
    reporter.begin()
    if loaded is not None:
        config = msgspec.structs.replace(config, restart=restart)
        thread = thread or await started(loaded.build, loaded.plan)
        await train(config, blobs, loaded.plan, reporter, thread, tether)
    return _done(reporter)


def _worth_building(run_plan: RunPlan, make_inner: MakeInner | None) -> bool:
    """Not what would fill memory, least of all an accelerator's, that the worker needs."""
    return run_plan.parameters <= SPARE_BUILDS_PARAMETERS and (make_inner is not None or not on_cuda())


async def take_part(
    config: WorkerConfig,
    blobs: Blobs,
    run_plan: RunPlan,
    reporter: Reporter,
    build: Callable[[], Inner],
    call: Call | None,
) -> None:
    """Train under one coordinator after the other, until the run is finished. `build` is called in the thread
    that computes. Raises Stale where this site does not fit the run."""
    looking = asyncio.create_task(asyncio.to_thread(state_from_store, config, blobs, run_plan.parameters))
    thread = await started(build, run_plan)
    found = looking.result() if looking.done() else None
    await train(config, blobs, run_plan, reporter, thread, call, found)


async def train(
    config: WorkerConfig,
    blobs: Blobs,
    run_plan: RunPlan,
    reporter: Reporter,
    thread: ComputeThread,
    call: Call | None,
    found: Restored | None = None,
) -> None:
    """The same with what computes at hand, and with a state that was found."""
    runner = Runner(Site(run_plan, thread.recalls), thread, reporter)
    if found is not None:
        runner.site.begin_with(found.state, found.round)
    memory = Memory.of(config, plan_sha256(run_plan))
    if thread.recalls:
        slot = config.slot[0]
        runner.remember(
            memory, await asyncio.to_thread(memory.read, run_plan.parameters, blobs, config.prefix, slot)
        )
    known: epochs.Epoch | None = None
    look_s = LOOK_S
    while known_result(blobs, config.prefix) is None:
        known = epochs.newest(blobs, config.prefix, known)
        if known is None:
            if call is not None:
                await call.lost(0)
            await asyncio.sleep(LOOK_S)
            continue
        reporter.update(phase="joining")
        session = Session(config, blobs, run_plan, known, runner)
        ending = await session.run(call.start if call else None)
        if isinstance(ending, Done):
            break
        if call is not None and not ending.final:
            await call.lost(known.epoch)
        say(f"{ending.why}; asking to join again")
        if ending.final:
            raise Stale("this worker cannot take part in the run", where=known.address, why=ending.why)
        look_s = LOOK_S if session.took_part else min(LOOK_MOST_S, 1.5 * look_s)
        await asyncio.sleep(max(look_s, ending.after_s))
    memory.end()
    if call is not None:
        await call.end()
    thread.close()
    await asyncio.to_thread(thread.join, ENDED_S)


def state_from_store(config: WorkerConfig, blobs: Blobs, size: int) -> Restored | None:
    """The run's last committed round from the nearest store, for as long as what computes is being loaded anyway:
    what is not here by then comes from the coordinator."""
    try:
        return restore(nearest(blobs), config.prefix, size, say)
    except Failed as error:
        say(f"the state does not come from the store: {error.one_line()}")
        return None


async def started(build: Callable[[], Inner], run_plan: RunPlan) -> ComputeThread:
    """What computes, in its thread, built. Raises Failed where it is not the plan's model."""
    thread = ComputeThread(build)
    size = await thread.ready
    if size != run_plan.parameters:
        raise Failed(f"the model has {size} parameters, the run's plan says {run_plan.parameters}")
    return thread


async def _manifest(config: WorkerConfig, blobs: Blobs) -> DataManifest | None:
    """The run's data, once its coordinator has prepared it; None where the run is finished."""
    while (manifest := load_manifest(blobs, config.prefix)) is None:
        if known_result(blobs, config.prefix) is not None:
            return None
        await asyncio.sleep(LOOK_S)
    return manifest


def _done(reporter: Reporter) -> int:
    reporter.update(phase="done")
    say("the run is finished")
    return 0


def main(path: str, part: str = ALONE, make_inner: MakeInner | None = None) -> int:
    """Run a worker with the configuration file: alone, or minded as the worker or its spare. Returns the exit
    code."""
    # At once, whatever computes: what this process knows is worth nothing that the ledger does not have.
    signal.signal(signal.SIGTERM, lambda *_: os._exit(TERMINATED))
    if int(os.environ.get("RANK", "0")) > 0:  # torchrun started several: the first takes part, these help it
        from caudal.train.group.ranks import Ranks, follow  # noqa: PLC0415 (torch enters here)

        follow(Ranks.join())
    reporter = Reporter(begin=part != SPARE)
    tether = Tether() if part != ALONE else None
    try:
        config = read_config(Path(path), WorkerConfig)
        return asyncio.run(_be(part, config, path, reporter, make_inner, tether))
    except CaudalError as error:
        say(str(error))
        reporter.update(phase="failed", error=error.one_line())
        if tether is not None:
            tether.meant()
        return error.exit_code
    finally:
        reporter.close()


async def _be(
    part: str,
    config: WorkerConfig,
    path: str,
    reporter: Reporter,
    make_inner: MakeInner | None,
    tether: Tether | None,
) -> int:
    blobs = open_blobs(config.blobs_url)
    if tether is None:
        return await work(config, blobs, reporter, make_inner, Standby(path) if config.standby else None)
    if part == SPARE:
        return await work_as_spare(config, blobs, reporter, make_inner, tether)
    config = msgspec.structs.replace(config, restart=await tether.go())
    if config.restart:
        reporter.update(restarts=config.restart)
    return await work(config, blobs, reporter, make_inner, tether)
