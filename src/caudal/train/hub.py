"""Carries bytes between a coordinator's state machine and its sites. Decides nothing.

Every connection has its own buffer: a slow site blocks nobody, and one that never reads is dropped. Before a
site has proved that it holds the run's token, nothing but a small header is read from it.
"""

from __future__ import annotations

import asyncio
import itertools
import secrets
import time
from collections.abc import Callable
from dataclasses import dataclass, field
from typing import Any

from caudal.telemetry.report import Reporter
from caudal.train.codec import encoded_bytes
from caudal.train.frames import pack, read_frame
from caudal.train.keeper import Keeper
from caudal.train.ledger import Entry
from caudal.train.messages import BadMessage, Challenge, Finished, Hello, Message, Ping, Refused
from caudal.train.metrics import Metrics
from caudal.train.protocol import door, rules
from caudal.train.protocol.coordinator import Coordinator
from caudal.train.protocol.effects import Close, Commit, CoordinatorEffect, Keep, Measured, Say, Send, Trained
from caudal.train.protocol.members import Phase
from caudal.train.tls import speaks_for

STREAM_BYTES = 1 << 22
"""Read ahead so much per connection: a small one has a frame of megabytes wait for the loop many times."""

HANDSHAKE_S = 10.0
TICK_S = 0.1
LINGER_S = 2.0
MAX_STRANGERS = 64
"""Connections that may be between connecting and proving at once."""

PHASES = {
    Phase.WAITING: "waiting",
    Phase.ROUND: "training",
    Phase.FINAL: "evaluating",
    Phase.ASKING: "evaluating",
    Phase.TRAINED: "publishing",
}


@dataclass
class Hub:
    """One epoch's server. `run` returns what the sites answered in the end."""

    machine: Coordinator
    token: str
    metrics: Metrics
    reporter: Reporter
    say: Callable[[str], None]
    keeper: Keeper | None = None
    writers: dict[int, asyncio.StreamWriter] = field(default_factory=dict)

    def __post_init__(self) -> None:
        self._numbers = itertools.count(1)
        self._strangers = 0
        self._ending = False
        self._error = ""
        self._why = ""  # the last word on the steps of a round
        self._packed: tuple[Message | None, bytes] = None, b""
        self._trained: asyncio.Future[Trained] = asyncio.get_running_loop().create_future()
        parameters = self.machine.plan.parameters
        self._max_payload_bytes = max(
            encoded_bytes(stop - start) for start, stop in self.machine.plan.fragments
        )
        self._max_buffer_bytes = 3 * 4 * parameters + STREAM_BYTES

    async def run(self, keeper: Keeper) -> Trained:
        """Train to the end. Raises Fenced, Overtaken."""
        self.keeper = keeper
        tasks = [asyncio.create_task(keeper.run()), asyncio.create_task(self._tick())]
        try:
            watched: list[asyncio.Future[Any]] = [*tasks, self._trained]
            await asyncio.wait(watched, return_when=asyncio.FIRST_COMPLETED)
            for task in tasks:
                if task.done():
                    task.result()
            trained = await self._trained
            await keeper.drained()
            return trained
        finally:
            for task in tasks:
                task.cancel()

    def committed(self, entry: Entry) -> None:
        """The keeper says that a round is durable."""
        self._do(self.machine.committed(entry, time.monotonic()))

    def trouble(self, text: str) -> None:
        """The keeper says what the store said."""
        self._error = text
        self._report()

    async def keep(self) -> None:
        """Write a checkpoint of the last committed round, before the process ends. What sites say from now on is not
        heard: where rounds are short, others would be committed behind it."""
        assert self.keeper is not None
        self._ending = True
        await self.keeper.drained()
        while not self.machine.settled:  # the next round's deltas were all here
            await self.keeper.drained()
            await asyncio.sleep(0)
        self.machine.keep()
        self._do(self.machine.tick(time.monotonic()))
        await self.keeper.drained()

    async def finish(self) -> None:
        """Tell all sites that the run is finished, and close."""
        for number in list(self.writers):
            self._send(number, Finished(), b"")
        await self.close()

    async def close(self) -> None:
        """Close all connections, what was sent before first."""
        writers = list(self.writers.values())
        for writer in writers:
            writer.close()
        waiting = [asyncio.create_task(writer.wait_closed()) for writer in writers]
        if waiting:
            await asyncio.wait(waiting, timeout=LINGER_S)

    async def connected(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        """One connection, from the first byte to the last."""
        number = next(self._numbers)
        why = "its connection ended"
        try:
            if self._strangers >= MAX_STRANGERS:
                return
            self._strangers += 1
            try:
                admitted = await asyncio.wait_for(self._handshake(number, reader, writer), HANDSHAKE_S)
            finally:
                self._strangers -= 1

            def heard() -> None:
                self.machine.heard(number, time.monotonic())

            while admitted:
                message, payload = await read_frame(reader, self._max_payload_bytes, heard)
                if not self._ending:
                    self._do(self.machine.message(number, message, payload, time.monotonic()))
        except BadMessage as error:
            why = error.one_line()
            self.say(f"connection {number}: {why}")
        except (asyncio.IncompleteReadError, TimeoutError, OSError):
            pass
        finally:
            self.writers.pop(number, None)
            writer.close()
            self._do(self.machine.lost(number, why, time.monotonic()))

    async def _handshake(
        self, number: int, reader: asyncio.StreamReader, writer: asyncio.StreamWriter
    ) -> bool:
        """Whether who connects holds the token; then the machine has been told."""
        nonce = secrets.token_hex(16)
        writer.write(pack(Challenge(nonce)))
        hello, _ = await read_frame(reader, 0)
        if not isinstance(hello, Hello):
            raise BadMessage("a site that does not say who it is", why=type(hello).__name__)
        if not door.proven(hello.proof, self.token, "site", nonce, hello.nonce, hello.worker):
            writer.write(pack(Refused("unauthorized", "the run's token is another", retry_after_s=-1.0)))
            self.say(f"{hello.worker} at {hello.site} does not hold the run's token")
            return False
        if not speaks_for(writer, hello.site):
            writer.write(
                pack(Refused("unauthorized", f"its certificate is not of {hello.site}", retry_after_s=-1.0))
            )
            self.say(f"{hello.worker} says that it is at {hello.site}, its certificate is another site's")
            return False
        self.writers[number] = writer
        proof = door.prove(self.token, "coordinator", hello.nonce, nonce)
        self._do(self.machine.hello(number, hello, proof, time.monotonic()))
        return True

    async def _tick(self) -> None:
        """Time, pings and the report."""
        for beat in itertools.count():
            self._do(self.machine.tick(time.monotonic()))
            if beat % round(rules.PING_S / TICK_S) == 0:
                for number in list(self.writers):
                    self._send(number, Ping(), b"")
            self._report()
            await asyncio.sleep(TICK_S)

    def _do(self, effects: list[CoordinatorEffect]) -> None:
        for effect in effects:
            if isinstance(effect, Send):
                self._send(effect.connection, effect.message, effect.payload)
            elif isinstance(effect, Close):
                self._close(effect.connection)
            elif isinstance(effect, Commit | Keep):
                assert self.keeper is not None
                self.keeper.ask(effect)
            elif isinstance(effect, Measured):
                self._why = effect.values.get("why", self._why)
                self.metrics.add(effect.seq, time.time(), effect.values)
            elif isinstance(effect, Say):
                self.say(effect.text)
            elif not self._trained.done():
                self._trained.set_result(effect)

    def _send(self, number: int, message: Message, payload: Any) -> None:
        writer = self.writers.get(number)
        if writer is None or writer.is_closing():
            return
        if writer.transport.get_write_buffer_size() > self._max_buffer_bytes:
            self.say(f"connection {number} does not read what it is sent; it is closed")
            writer.transport.abort()
            return
        if message is not self._packed[0]:  # an update goes to many: its checksum is computed once
            self._packed = message, pack(message, payload)
        writer.write(self._packed[1])
        if payload:
            writer.write(payload)

    def _close(self, number: int) -> None:
        writer = self.writers.pop(number, None)
        if writer is not None:
            writer.close()
            # who never reads would keep the connection open with what is still to be sent
            asyncio.get_running_loop().call_later(LINGER_S, writer.transport.abort)

    def _sites(self) -> dict[str, dict[str, Any]]:
        """Each site as people see it: in the end there is nothing more to be busy with."""
        view = self.machine.members.view()
        over = {"state": "done"} if self.machine.phase is Phase.TRAINED else {}
        return {name: {**site, **over} for name, site in view.items()}

    def _report(self) -> None:
        machine = self.machine
        last = machine.last.entry if machine.last else None
        self.reporter.update(
            phase=PHASES[machine.phase],
            epoch=machine.terms.epoch,
            round=last.round if last else 0,
            stage=machine.plan.stages[machine.stage].name,
            ids_done=sum(stop - start for start, stop in machine.scribe.totals.committed),
            ids_total=machine.plan.total_ids,
            ids_skipped=machine.scribe.totals.skipped,
            tokens_done=machine.scribe.totals.tokens,
            tokens_total=machine.plan.total_tokens,
            tokens_per_s=round(machine.scribe.tokens_per_s, 1),
            **machine.scribe.report(),
            val_loss=machine.evaluations.values.get("val_loss"),
            val_bits_per_byte=machine.evaluations.values.get("val_bits_per_byte"),
            sites=self._sites(),
            kept_out=machine.strikes.kept_out(time.monotonic()),
            why=self._why,
            error=self._error,
        )
