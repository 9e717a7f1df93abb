"""`caudal.outer`: a script's own training loop as one site of a run over several.

    with caudal.outer(model, optimizer, dataset, run="mine", store="s3://bucket/caudal", site="a", sites=2) as run:
        for batch in run:
            loss = model(**batch).loss
            loss.backward()
            optimizer.step(), optimizer.zero_grad()
            run.report(loss)

Start the same script at every site; each takes its share of the samples, and all end with the same model. One
of them coordinates, another takes over when it is lost; a script that was killed is started again and joins.
"""

from __future__ import annotations

import asyncio
import contextlib
import secrets
import tempfile
import threading
from collections.abc import Callable, Iterator, Sequence
from dataclasses import replace
from pathlib import Path
from types import TracebackType
from typing import Any

import msgspec
import torch
from torch.utils.data import default_collate

from caudal.domain.errors import AlreadyExists, CaudalError, UsageError
from caudal.domain.workload import ModelShape, OuterSpec, StageSpec, TrainSpec
from caudal.store.blobs import open_blobs
from caudal.telemetry.report import Reporter
from caudal.train.call import Standby
from caudal.train.config import WorkerConfig
from caudal.train.data.samples import place
from caudal.train.fragments import cut
from caudal.train.given import give
from caudal.train.interface import RunPlan, Stage
from caudal.train.script.gate import Closed, Gate, Ticket
from caudal.train.script.model import TorchParameters
from caudal.train.tls import server_context
from caudal.train.work import take_part

SETTINGS = OuterSpec(
    learning_rate=0.8, momentum=0.5, scale_rate=False, inner_steps=10, grow=False, bits=8, sync="parameters"
)
"""A script's optimiser keeps its learning rate, so the outer step has to be the longer one; and nobody here knows how
it falls, so that rounds do not grow with it, nor could anybody take its step for it."""


class OuterRun:
    """One site's part of a run; see `caudal.outer`. Iterate it in the thread that trains."""

    def __init__(
        self, parameters: TorchParameters, dataset: Sequence[Any], plan: RunPlan, config: WorkerConfig
    ) -> None:
        self.plan, self.dataset = plan, dataset
        self.gate = Gate(parameters, plan.stages[0])
        self.steps = 0
        self._parameters, self._config = parameters, config
        self._collate: Callable[[list[Any]], Any] = default_collate
        self._loss: Any = 0.0
        self._error: BaseException | None = None
        self._folder = tempfile.TemporaryDirectory(prefix="caudal-run-")
        self._thread = threading.Thread(target=self._main, name="caudal", daemon=True)
        self._loop: asyncio.AbstractEventLoop | None = None
        self._standby: Standby | None = None

    def __enter__(self) -> OuterRun:
        blobs = open_blobs(self._config.blobs_url)
        give(blobs, self._config.prefix, self.plan, self._parameters.read())
        path = Path(self._folder.name) / "config.json"
        path.touch(mode=0o600)
        path.write_bytes(msgspec.json.encode(self._config))
        self._standby = Standby(str(path)) if self._config.standby else None
        self._thread.start()
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, where: TracebackType | None
    ) -> None:
        self.gate.close()
        if kind is not None:
            # An error of the script's: this site leaves at once, the others go on.
            loop = self._loop
            if loop is not None and loop.is_running():
                loop.call_soon_threadsafe(self._cancel, loop)
        self._thread.join(timeout=30.0)
        self._folder.cleanup()
        if kind is None and self._error is not None:
            raise self._error

    def __iter__(self) -> Iterator[Any]:
        while (ticket := self.next_ticket()) is not None:
            if not self.gate.begin(ticket):
                continue
            yield self._collate([self.dataset[index] for index in self.indexes(ticket)])
            self.steps += 1
            self.gate.end(ticket, self._take_loss())
        self._finish()

    def report(self, loss: Any) -> None:
        """Say the step's loss (a number or a tensor), for the curve and the ledger; 0 where it is not said."""
        self._loss = loss.detach() if isinstance(loss, torch.Tensor) else loss

    def next_ticket(self) -> Ticket | None:
        """The next batch, or None at the end. Raises what ended the run before."""
        ticket = self.gate.fetch()
        if ticket is None and self._error is not None:
            raise self._error
        return ticket

    def indexes(self, ticket: Ticket) -> list[int]:
        """Which samples of the dataset a batch is made of."""
        samples = self.plan.stages[0].samples
        return [place(self.plan.seed, 0, samples, position)[1] for position in ticket.ids]

    def _take_loss(self) -> float:
        loss, self._loss = float(self._loss), 0.0
        return loss

    def _finish(self) -> None:
        """The model becomes that of the run: the same at all sites."""
        self.gate.settle()

    def _main(self) -> None:
        try:
            with contextlib.suppress(asyncio.CancelledError):
                asyncio.run(self._work())
        except Closed:
            pass  # the script left its loop
        except CaudalError as error:
            self._error = error
        finally:
            self.gate.close()

    async def _work(self) -> None:
        self._loop = asyncio.get_running_loop()
        blobs, reporter = open_blobs(self._config.blobs_url), Reporter()
        try:
            await take_part(self._config, blobs, self.plan, reporter, lambda: self.gate, self._standby)
        finally:
            reporter.close()

    @staticmethod
    def _cancel(loop: asyncio.AbstractEventLoop) -> None:
        for task in asyncio.all_tasks(loop):
            task.cancel()


def outer(
    model: torch.nn.Module,
    optimizer: torch.optim.Optimizer,
    dataset: Sequence[Any],
    *,
    run: str,
    store: str,
    site: str,
    sites: int = 2,
    batch: int = 8,
    epochs: float = 1.0,
    seed: int = 1,
    host: str = "127.0.0.1",
    certificates: str = "",
    settings: OuterSpec | None = None,
    collate: Callable[[list[Any]], Any] | None = None,
    checkpoint_every_rounds: int = 25,
) -> OuterRun:
    """Make a training loop one site of a run over several.

    `dataset` is anything with a length and an index, the same at every site; `epochs` passes over it are
    shared out in batches of `batch` samples. `store` is the address of an object store that all sites reach
    (`file://`, `s3://`, `az://`, `gs://`); `host` the address at which this site can be reached by the others,
    for which `certificates` names a folder that `caudal certificates` made (loopback needs none).
    `settings` are the outer optimisation's (`OuterSpec`; `scale_rate`, `grow` and `sync` cannot reach into a script).
    What is yielded is what `collate` makes of a list of samples (torch's default_collate). Learning rates are the
    script's own; `run.steps` counts this site's steps. A dataset's samples go through the loop exactly once per
    epoch over all sites, but for those of steps that were lost with a site, which another trains again.

    Raises UsageError where the run was begun with another model, dataset length or settings.
    """
    if len(dataset) == 0:
        raise UsageError("the dataset is empty")
    parameters = TorchParameters(model, optimizer)
    wanted = replace(settings, scale_rate=False, grow=False, sync="parameters") if settings else SETTINGS
    ids = round(len(dataset) * epochs)
    stage = Stage("data", "text", 0, ids, len(dataset), batch, 1, 0.0, 0.0, 0.0, 0.0)
    plan = _plan(run, seed, parameters, stage, wanted)
    spec = TrainSpec(
        name=run,
        data="script",
        stages=(StageSpec("data", tokens=ids, sample_tokens=1, batch=batch),),
        outer=wanted,
        sites=sites,
        checkpoint_every_rounds=checkpoint_every_rounds,
    )
    config = WorkerConfig(
        run=run,
        generation=1,
        site=site,
        gang=f"{run}.worker.{site}-1",
        blobs_url=store,
        cache_dir="",
        spec=spec,
        token=_token(store, run),
        given=True,
        host=host,
        certificates=certificates,
    )
    server_context(config, host)
    made = OuterRun(parameters, dataset, plan, config)
    if collate is not None:
        made._collate = collate
    return made


def _plan(run: str, seed: int, parameters: TorchParameters, stage: Stage, outer: OuterSpec) -> RunPlan:
    return RunPlan(
        run=run,
        seed=seed,
        vocab=0,
        shape=ModelShape(),
        parameters=parameters.size,
        outer=outer,
        stages=(stage,),
        fragments=cut(parameters.size, parameters.offsets, outer.fragments),
        model=parameters.signature(),
        made_of={"dtype": parameters.dtypes()},
    )


def _token(store: str, run: str) -> str:
    """The run's token: made by whoever comes first. Who may write the run's objects may take part in it."""
    blobs, path = open_blobs(store), f"runs/{run}/g1/token"
    try:
        blobs.put(path, secrets.token_hex(32).encode(), if_absent=True)
    except AlreadyExists:
        pass
    return blobs.get(path).decode()
