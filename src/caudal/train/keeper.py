"""Writes a coordinator's rounds and checkpoints, in order, beside the event loop.

A round counts when its ledger entry is there, never before. What the store refuses is asked for again, for
ever: sites wait, nothing is lost. Knows nothing of connections.
"""

from __future__ import annotations

import asyncio
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass

from caudal.domain.errors import AlreadyExists, Failed, Stale
from caudal.ports import Blobs
from caudal.train import checkpoint, epochs, ledger
from caudal.train.metrics import Metrics
from caudal.train.protocol.effects import Commit, Keep

KEEP_CHECKPOINTS = 3
RETRY_S = (0.5, 1.0, 2.0, 5.0, 10.0)


class Fenced(Stale):
    """A newer coordinator has taken over this run."""

    code = "fenced"


class Overtaken(Stale):
    """An older coordinator committed one more round before this one did: restore again."""

    code = "overtaken"


@dataclass
class Keeper:
    """`done` is called in the event loop with each committed round; `trouble` with what the store said (empty
    when it is well again)."""

    blobs: Blobs
    prefix: str
    epoch: int
    metrics: Metrics
    done: Callable[[ledger.Entry], None]
    trouble: Callable[[str], None]
    say: Callable[[str], None]

    def __post_init__(self) -> None:
        self._queue: asyncio.Queue[Commit | Keep] = asyncio.Queue()
        self._thread = ThreadPoolExecutor(1, "keeper")

    def ask(self, what: Commit | Keep) -> None:
        """Write this behind what was asked for before."""
        self._queue.put_nowait(what)

    async def run(self) -> None:
        """Write for ever. Raises Fenced, Overtaken."""
        loop = asyncio.get_running_loop()
        while True:
            what = await self._queue.get()
            if isinstance(what, Commit):
                self.done(await self._commit(what))
            else:
                await loop.run_in_executor(self._thread, self._keep, what)
            self._queue.task_done()

    async def drained(self) -> None:
        """Return when all that was asked for is written."""
        await self._queue.join()

    async def _commit(self, what: Commit) -> ledger.Entry:
        loop, tries = asyncio.get_running_loop(), 0
        while True:
            try:
                entry = await loop.run_in_executor(self._thread, self._append, what)
                break
            except (Fenced, Overtaken):
                raise
            except Failed as error:
                self.trouble(error.one_line())
                self.say(f"round {what.entry.round} is not kept yet: {error.one_line()}")
                await asyncio.sleep(RETRY_S[min(tries, len(RETRY_S) - 1)])
                tries += 1
        if tries:
            self.trouble("")
        return entry

    def _append(self, what: Commit) -> ledger.Entry:
        if epochs.read(self.blobs, self.prefix, self.epoch + 1) is not None:
            raise Fenced(f"epoch {self.epoch} is over: a newer coordinator has the run")
        try:
            return ledger.append(self.blobs, self.prefix, what.entry, what.update)
        except AlreadyExists:
            theirs = ledger.read_entry(self.blobs, self.prefix, what.entry.round)
            assert theirs is not None and theirs.entry.epoch != self.epoch, "two coordinators in one epoch"
            if theirs.entry.epoch > self.epoch:
                raise Fenced(f"epoch {theirs.entry.epoch} committed round {theirs.entry.round}") from None
            raise Overtaken(f"epoch {theirs.entry.epoch} committed round {theirs.entry.round}") from None

    def _keep(self, what: Keep) -> None:
        """A checkpoint that cannot be written is said; those before stay, and the updates since are there."""
        try:
            checkpoint.write(self.blobs, self.prefix, what.state, what.momentum, what.manifest)
            checkpoint.prune(self.blobs, self.prefix, KEEP_CHECKPOINTS)
            self.metrics.flush()
        except Failed as error:
            self.say(f"the checkpoint of round {what.manifest.round} is not kept: {error.one_line()}")
