"""One site's copy of a run as a process: `python -m caudal.train.worker CONFIG`.

Loads what computes first, then looks for the newest coordinator and takes part, and comes back as long as the
run is not finished. Keeps nothing: it may be killed at any instruction.
"""

from __future__ import annotations

import asyncio
import os
import signal
import sys
from collections.abc import Callable
from functools import partial
from pathlib import Path

from caudal.domain.errors import CaudalError, Failed, Stale
from caudal.domain.workload import InnerSpec
from caudal.ports import Blobs
from caudal.store.blobs import open_blobs
from caudal.telemetry.report import Reporter
from caudal.train import epochs
from caudal.train.base.layout import base_of
from caudal.train.compute import ComputeThread
from caudal.train.config import WorkerConfig, read_config
from caudal.train.data.prepare import load_manifest
from caudal.train.fetch import data_folder
from caudal.train.finish import known_result
from caudal.train.interface import DataManifest, Inner, RunPlan, plan
from caudal.train.log import say
from caudal.train.protocol.effects import Done
from caudal.train.protocol.site import Site
from caudal.train.runner import Runner
from caudal.train.session import Session
from caudal.train.spare import Standby

MakeInner = Callable[[RunPlan, DataManifest, Path, int], Inner]
"""Builds what computes: plan, data, the data's folder, threads."""

LOOK_S = 0.1
"""How often a worker looks for a coordinator that it has not found; slower the longer it looks."""

LOOK_MOST_S = 1.0
TERMINATED = 143


def torch_inner(
    spec: InnerSpec, cache: str, run_plan: RunPlan, manifest: DataManifest, folder: Path, threads: int
) -> Inner:
    """The real one: made for one process of CPUs, or a group, which trains every base. Imported here: loading
    torch takes seconds, and tests bring a smaller one. Raises UsageError where the hardware lacks what the spec asks for."""
    import torch  # noqa: PLC0415 (torch enters here)

    if spec == InnerSpec() and base_of(manifest.details) is None and not torch.cuda.is_available():
        from caudal.train.inner import TorchInner  # noqa: PLC0415

        return TorchInner(run_plan, manifest, folder, threads)
    from caudal.train.group.inner import GroupInner  # noqa: PLC0415
    from caudal.train.group.member import Setup  # noqa: PLC0415

    each = max(1, threads // spec.processes)
    return GroupInner(Setup(run_plan, manifest, str(folder), spec, each, cache))


async def work(
    config: WorkerConfig,
    blobs: Blobs,
    reporter: Reporter,
    make_inner: MakeInner | None = None,
    standby: Standby | None = None,
) -> int:
    """Take part in a run until it is finished; returns the exit code. `standby` takes over where nobody
    coordinates. Raises CaudalError."""
    reporter.update(phase="loading", site=config.site, round=0)
    manifest = await _manifest(config, blobs)
    if manifest is None or known_result(blobs, config.prefix) is not None:
        return _done(reporter)
    run_plan = plan(config.spec, manifest)
    folder = await asyncio.to_thread(data_folder, blobs, config.prefix, manifest, Path(config.cache_dir))

    make = make_inner or partial(torch_inner, config.spec.inner, config.cache_dir)

    def build() -> Inner:
        return make(run_plan, manifest, folder, config.threads)

    await take_part(config, blobs, run_plan, reporter, build, standby)
    return _done(reporter)


async def take_part(
    config: WorkerConfig,
    blobs: Blobs,
    run_plan: RunPlan,
    reporter: Reporter,
    build: Callable[[], Inner],
    standby: Standby | None,
) -> None:
    """Train under one coordinator after the other, until the run is finished. `build` is called in the thread
    that computes. Raises Stale where this site does not fit the run."""
    thread = await _started(build, run_plan)
    runner = Runner(Site(run_plan), thread, reporter)
    known: epochs.Epoch | None = None
    look_s = LOOK_S
    while known_result(blobs, config.prefix) is None:
        known = epochs.newest(blobs, config.prefix, known)
        if known is None:
            if standby is not None:
                await standby.lost(0)
            await asyncio.sleep(LOOK_S)
            continue
        reporter.update(phase="joining")
        session = Session(config, blobs, run_plan, known, runner)
        ending = await session.run(standby.start if standby else None)
        if isinstance(ending, Done):
            break
        if standby is not None and not ending.final:
            await standby.lost(known.epoch)
        say(f"{ending.why}; asking to join again")
        if ending.final:
            raise Stale("this worker cannot take part in the run", where=known.address, why=ending.why)
        look_s = LOOK_S if session.took_part else min(LOOK_MOST_S, 1.5 * look_s)
        await asyncio.sleep(max(look_s, ending.after_s))
    if standby is not None:
        await standby.end()


async def _started(build: Callable[[], Inner], run_plan: RunPlan) -> ComputeThread:
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


def main(path: str, make_inner: MakeInner | None = None) -> int:
    """Run a worker with the configuration file; returns the exit code."""
    # At once, whatever computes: what this process knows is worth nothing that the ledger does not have.
    signal.signal(signal.SIGTERM, lambda *_: os._exit(TERMINATED))
    if int(os.environ.get("RANK", "0")) > 0:  # torchrun started several: the first takes part, these help it
        from caudal.train.group.ranks import Ranks, follow  # noqa: PLC0415 (torch enters here)

        follow(Ranks.join())
        return 0
    reporter = Reporter()
    try:
        config = read_config(Path(path), WorkerConfig)
        standby = Standby(path) if config.standby else None
        return asyncio.run(work(config, open_blobs(config.blobs_url), reporter, make_inner, standby))
    except CaudalError as error:
        say(str(error))
        reporter.update(phase="failed", error=error.one_line())
        return error.exit_code
    finally:
        reporter.close()


if __name__ == "__main__":
    sys.exit(main(sys.argv[1]))
