"""A run's coordinator as a process: `python -m caudal.train.coordinator CONFIG`.

Prepares the data, claims the next epoch, restores the run at its last committed round, listens, and trains
to the end; then publishes. It may be killed at any instruction and started again anywhere. Needs no torch.
"""

from __future__ import annotations

import asyncio
import signal
import socket
import sys
import time
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path

import msgspec
import numpy as np

from caudal.domain.errors import AlreadyExists, CaudalError, Failed, Stale, StorageFailed, Unreachable
from caudal.domain.workload import TrainSpec
from caudal.ports import Blobs
from caudal.store.blobs import open_blobs
from caudal.telemetry.report import Reporter
from caudal.train import checkpoint, epochs
from caudal.train.audit import RunRecord, plan_path
from caudal.train.base.coordinator import bring_base
from caudal.train.beat import beat
from caudal.train.config import CoordinatorConfig, read_config
from caudal.train.data.prepare import prepare
from caudal.train.finish import Publish, finish, keep_score, known_result, known_score, publish_model
from caudal.train.given import given_plan
from caudal.train.hub import STREAM_BYTES, Hub
from caudal.train.interface import DataManifest, RunPlan, plan
from caudal.train.keeper import Keeper, Overtaken
from caudal.train.layout import initial_state
from caudal.train.log import say
from caudal.train.metrics import Metrics
from caudal.train.outer import state_sha256
from caudal.train.protocol.coordinator import Coordinator
from caudal.train.protocol.door import plan_sha256
from caudal.train.protocol.effects import Trained
from caudal.train.protocol.terms import Terms
from caudal.train.tls import server_context

Prepare = Callable[[TrainSpec, Blobs, str], DataManifest]

TERMINATED = 143


@dataclass(slots=True)
class Run:
    """Everything that stays the same while one process coordinates, over epochs."""

    config: CoordinatorConfig
    blobs: Blobs
    reporter: Reporter
    publish: Publish
    manifest: DataManifest
    plan: RunPlan
    stop: asyncio.Event

    @property
    def prefix(self) -> str:
        """Where the run's objects lie."""
        return self.config.prefix


async def coordinate(
    config: CoordinatorConfig,
    blobs: Blobs,
    reporter: Reporter,
    prepare: Prepare = prepare,
    publish: Publish = publish_model,
) -> int:
    """Coordinate a run to its end, or until SIGTERM; returns the exit code. Raises CaudalError."""
    server_context(config, config.host)  # before anything is claimed
    stop = asyncio.Event()
    asyncio.get_running_loop().add_signal_handler(signal.SIGTERM, stop.set)
    result = known_result(blobs, config.prefix)
    if result is None:
        reporter.update(phase="preparing")
        await asyncio.to_thread(bring_base, config, blobs)
        manifest = await asyncio.to_thread(prepare, config.spec, blobs, config.prefix)
        run_plan = given_plan(blobs, config.prefix) if config.given else plan(config.spec, manifest)
        run = Run(config, blobs, reporter, publish, manifest, run_plan, stop)
        _record(run)
        result = await _epochs(run)
    if result is None:
        return TERMINATED
    reporter.update(
        phase="finished", heldout=_score(result["heldout"]), val_loss=result["val_loss"], error=""
    )
    say(f"run {config.run} is finished: {result['model']} version {result['version']}")
    return 0


async def _epochs(run: Run) -> dict[str, object] | None:
    """Coordinate epoch after epoch; None where SIGTERM came first."""
    while True:
        listener = socket.create_server((run.config.host, 0))
        try:
            return await _epoch(run, listener)
        except Overtaken as error:
            say(f"{error.one_line()}; restoring again under a new epoch")
        finally:
            listener.close()


async def _epoch(run: Run, listener: socket.socket) -> dict[str, object] | None:
    address = "{}:{}".format(*listener.getsockname()[:2])
    epoch = await asyncio.to_thread(
        epochs.claim,
        run.blobs,
        run.prefix,
        address=address,
        site=run.config.site,
        gang=run.config.gang,
        at=time.time(),
    )
    restored = await asyncio.to_thread(_restore, run)
    say(f"epoch {epoch.epoch} at {address}, from round {restored.round}")
    metrics = Metrics(run.blobs, run.prefix, epoch.epoch, run.reporter)
    trained = known_score(run.blobs, run.prefix)
    if trained is not None:
        return await _publish(run, restored, trained, metrics)
    spec = run.config.spec
    terms = Terms(
        run.plan,
        run.config.generation,
        epoch.epoch,
        spec.sites,
        spec.evaluate_every_rounds,
        spec.checkpoint_every_rounds,
    )
    now = time.monotonic()
    hub = Hub(
        Coordinator(terms, restored, now, time.time() - now), run.config.token, metrics, run.reporter, say
    )
    keeper = Keeper(run.blobs, run.prefix, epoch.epoch, metrics, hub.committed, hub.trouble, say)
    hub.keeper = keeper
    context = server_context(run.config, run.config.host)
    server = await asyncio.start_server(hub.connected, sock=listener, limit=STREAM_BYTES, ssl=context)
    living = asyncio.create_task(beat(run.blobs, run.prefix, epoch.epoch))
    try:
        trained = await _train(run, hub, keeper)
        if trained is None:
            return None
        await asyncio.to_thread(keep_score, run.blobs, run.prefix, trained)
        final = await asyncio.to_thread(_restore, run)
        result = await _publish(run, final, trained, metrics)
        await hub.finish()
        return result
    finally:
        living.cancel()
        server.close()
        await hub.close()


async def _train(run: Run, hub: Hub, keeper: Keeper) -> Trained | None:
    """Train to the end; None after SIGTERM, with a checkpoint of where it stopped."""
    training = asyncio.create_task(hub.run(keeper))
    stopping = asyncio.create_task(run.stop.wait())
    await asyncio.wait([training, stopping], return_when=asyncio.FIRST_COMPLETED)
    stopping.cancel()
    if training.done():
        return training.result()
    say("asked to end: keeping a checkpoint first")
    try:
        await asyncio.wait_for(hub.keep(), timeout=5.0)
    except TimeoutError:
        say("the store does not answer; the rounds that are committed are there")
    training.cancel()
    return None


async def _publish(
    run: Run, final: checkpoint.Restored, trained: Trained, metrics: Metrics
) -> dict[str, object]:
    run.reporter.update(
        phase="publishing", heldout=_score(trained.heldout), val_loss=trained.values.get("val_loss")
    )
    scores = {f"heldout_{key}": value for key, value in _score(trained.heldout).items()}
    metrics.add(final.round + 1, time.time(), {"round": final.round, **trained.values, **scores})
    result = await asyncio.to_thread(finish, run.config, run.manifest, run.blobs, final, trained, run.publish)
    await asyncio.to_thread(metrics.flush)
    return result


def _score(heldout: object) -> dict[str, int]:
    """The two numbers of a held-out score, without the samples."""
    assert isinstance(heldout, dict)
    return {"correct": int(heldout["correct"]), "of": int(heldout["of"])}


def _record(run: Run) -> None:
    """Write down what the run set out to do, or compare: another plan must not go on with these rounds."""
    record = RunRecord(
        run.config.run, run.plan.parameters, run.plan.total_ids, plan_sha256(run.plan), run.config.spec
    )
    path = plan_path(run.prefix)
    try:
        run.blobs.put(path, msgspec.json.encode(record), if_absent=True)
    except AlreadyExists:
        there = msgspec.json.decode(run.blobs.get(path), type=RunRecord)
        if msgspec.structs.replace(there, spec=None) != msgspec.structs.replace(record, spec=None):
            raise Failed(
                "the run was begun with another plan",
                where=path,
                why=f"{there} is there, {record} is asked for",
                remedy="apply the run under another name, or again as it was",
            ) from None


def _restore(run: Run) -> checkpoint.Restored:
    """The run at its last committed round; a new run at round 0, which is kept too."""
    restored = checkpoint.restore(run.blobs, run.prefix, run.plan.parameters, say)
    if restored is not None:
        return restored
    if run.plan.model:
        raise Failed(
            "the run's first state is not there",
            where=f"{run.prefix}/manifests/",
            why="it comes from the model that the run begins from, and somebody deleted it",
            remedy="apply the run under another name",
        )
    state = initial_state(run.plan.shape, run.plan.vocab, run.plan.seed)
    momentum = np.zeros_like(state)
    manifest = checkpoint.Manifest(
        run.config.run, 0, "", state_sha256(state), "", checkpoint.Totals(), time.time()
    )
    checkpoint.write(run.blobs, run.prefix, state, momentum, manifest)
    return checkpoint.Restored(0, state, momentum, None, checkpoint.Totals(), 0)


def main(path: str, prepare: Prepare = prepare, publish: Publish = publish_model) -> int:
    """Run a coordinator with the configuration file; returns the exit code."""
    reporter = Reporter()
    try:
        config = read_config(Path(path), CoordinatorConfig)
        return asyncio.run(coordinate(config, open_blobs(config.blobs_url), reporter, prepare, publish))
    except CaudalError as error:
        say(str(error))
        if not isinstance(error, Stale):  # who is fenced does not speak for the run any more
            transient = isinstance(error, StorageFailed | Unreachable)
            reporter.update(phase="waiting" if transient else "failed", error=error.one_line())
        return error.exit_code
    finally:
        reporter.close()


if __name__ == "__main__":
    sys.exit(main(sys.argv[1]))
