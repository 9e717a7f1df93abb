"""One connection of a worker to its coordinator: bytes to the state machine, its wishes to the thread that
computes. Decides nothing."""

from __future__ import annotations

import asyncio
import itertools
import secrets
import threading
import time
from collections.abc import Callable
from dataclasses import dataclass
from functools import partial
from typing import Any

import caudal
from caudal.domain.errors import Failed, Unauthorized
from caudal.ports import Blobs
from caudal.telemetry.report import Reporter
from caudal.train import epochs
from caudal.train.codec import encoded_bytes
from caudal.train.compute import ComputeThread
from caudal.train.config import WorkerConfig
from caudal.train.frames import pack, read_frame
from caudal.train.interface import Inner, InnerResult, RunPlan
from caudal.train.messages import BadMessage, Challenge, Hello, Message, Ping, Refused, Welcome
from caudal.train.protocol import door, rules
from caudal.train.protocol.effects import Assess, Compute, Done, Load, Rejoin, Send, SiteEffect, StopCompute
from caudal.train.protocol.site import Site

STREAM_BYTES = 1 << 22
CONNECT_S = 5.0
LOOK_EVERY = 5
"""Beats between two looks for a newer epoch."""

Ending = Done | Rejoin


@dataclass
class Session:
    """What one connection needs. `run` returns how it ended; raises what the computing thread raised."""

    config: WorkerConfig
    blobs: Blobs
    plan: RunPlan
    epoch: epochs.Epoch
    thread: ComputeThread
    reporter: Reporter
    say: Callable[[str], None]

    def __post_init__(self) -> None:
        self._site = Site(self.plan.parameters)
        self._ending: asyncio.Future[Ending] = asyncio.get_running_loop().create_future()
        self._stop = threading.Event()
        self._heard_at = time.monotonic()
        self._writer: asyncio.StreamWriter | None = None

    async def run(self) -> Ending:
        """Take part until the run is finished or the connection is not what it should be."""
        host, _, port = self.epoch.address.rpartition(":")
        try:
            opening = asyncio.open_connection(host, int(port), limit=STREAM_BYTES)
            reader, writer = await asyncio.wait_for(opening, CONNECT_S)
        except (OSError, TimeoutError) as error:
            return Rejoin(f"no coordinator at {self.epoch.address}: {error}", after_s=0.2)
        self._writer = writer
        tasks = [asyncio.create_task(self._read(reader)), asyncio.create_task(self._beat())]
        try:
            watched: list[asyncio.Future[Any]] = [*tasks, self._ending, self.thread.failed]
            await asyncio.wait(watched, return_when=asyncio.FIRST_COMPLETED)
            if self.thread.failed.done():
                self.thread.failed.result()
            for task in tasks:
                if task.done():
                    task.result()
            return await self._ending
        finally:
            self._site.leave()
            self._stop.set()
            for task in tasks:
                task.cancel()
            writer.close()

    @property
    def took_part(self) -> bool:
        """Whether it was welcomed."""
        return self._site.round >= 0

    def _end(self, how: Ending) -> None:
        if not self._ending.done():
            self._ending.set_result(how)

    async def _read(self, reader: asyncio.StreamReader) -> None:
        """Every frame to the machine, until the connection ends."""
        try:
            nonces = await asyncio.wait_for(self._greet(reader), rules.LIVENESS_S)
            most = max(4 * self.plan.parameters, encoded_bytes(self.plan.parameters))
            while True:
                message, payload = await read_frame(reader, most)
                self._heard_at = time.monotonic()
                if isinstance(message, Welcome):
                    self._check(message, nonces)
                elif isinstance(message, Refused) and message.reason == "unauthorized":
                    raise Unauthorized(f"the coordinator at {self.epoch.address} refuses this worker's token")
                self._do(self._site.message(message, payload))
        except (asyncio.IncompleteReadError, OSError, TimeoutError) as error:
            self._end(Rejoin(f"the connection ended ({type(error).__name__})"))
        except BadMessage as error:
            self._end(Rejoin(error.one_line(), after_s=0.2))

    async def _greet(self, reader: asyncio.StreamReader) -> tuple[str, str]:
        """Answer the challenge and say who we are; returns both nonces."""
        challenge, _ = await read_frame(reader, 0)
        if not isinstance(challenge, Challenge):
            raise BadMessage("a coordinator that does not begin with a challenge")
        nonce = secrets.token_hex(16)
        slot, incarnation = self.config.slot
        hello = Hello(
            run=self.config.run,
            generation=self.config.generation,
            site=self.config.site,
            worker=slot,
            incarnation=incarnation,
            plan=door.plan_sha256(self.plan),
            parameters=self.plan.parameters,
            version=caudal.__version__,
            nonce=nonce,
            proof=door.prove(self.config.token, "site", challenge.nonce, nonce, slot),
        )
        self._send(hello, b"")
        return nonce, challenge.nonce

    def _check(self, welcome: Welcome, nonces: tuple[str, str]) -> None:
        """Raises BadMessage where the other side does not hold the token: its numbers are not ours."""
        if not door.proven(welcome.proof, self.config.token, "coordinator", *nonces):
            raise BadMessage("a coordinator that does not hold the run's token", where=self.epoch.address)

    async def _beat(self) -> None:
        """Say that we are here, and notice when the coordinator no longer does, or another has taken over."""
        for beat in itertools.count(1):
            await asyncio.sleep(rules.PING_S)
            self._send(Ping(), b"")
            if beat % LOOK_EVERY == 0 and await asyncio.to_thread(self._newer):
                self._end(Rejoin("a newer coordinator has the run"))
            if time.monotonic() - self._heard_at > rules.LIVENESS_S:
                self._end(Rejoin("the coordinator is silent"))

    def _newer(self) -> bool:
        """Whether this coordinator is fenced. One that hangs may never learn it and keeps its sites."""
        try:
            return epochs.read(self.blobs, self.config.prefix, self.epoch.epoch + 1) is not None
        except Failed:
            return False  # the store does not answer: the coordinator that does is the one to follow

    def _send(self, message: Message, payload: Any) -> None:
        if self._writer is not None and not self._writer.is_closing():
            self._writer.write(pack(message, payload))
            if payload:
                self._writer.write(payload)

    def _do(self, effects: list[SiteEffect]) -> None:
        for effect in effects:
            if isinstance(effect, Send):
                self._send(effect.message, effect.payload)
            elif isinstance(effect, Load):
                self.thread.submit(partial(_load, effect), _nothing)
                self.reporter.update(phase="waiting", round=effect.round)
            elif isinstance(effect, Compute):
                self._stop = threading.Event()
                self.thread.submit(partial(_compute, effect, self._stop), self._computed)
                self.reporter.update(phase="computing")
            elif isinstance(effect, Assess):
                self.thread.submit(partial(_assess, effect), self._assessed)
                self.reporter.update(phase="evaluating")
            elif isinstance(effect, StopCompute):
                self._stop.set()
            else:
                self._end(effect)

    def _computed(self, result: InnerResult) -> None:
        self._do(self._site.computed(result))
        if not result.stopped:
            speed = round(result.tokens / max(1e-6, result.seconds), 1)
            self.reporter.update(phase="waiting", loss=result.loss, tokens_per_s=speed)

    def _assessed(self, answer: tuple[int, dict[str, float], dict[str, Any] | None]) -> None:
        self._do(self._site.assessed(*answer))


def _load(order: Load, inner: Inner) -> None:
    inner.load(order.state)


def _compute(order: Compute, stop: threading.Event, inner: Inner) -> InnerResult:
    return inner.run(order.stage, order.ids, order.progress, lambda _: stop.is_set())


def _assess(order: Assess, inner: Inner) -> tuple[int, dict[str, float], dict[str, Any] | None]:
    return order.round, inner.evaluate(), inner.heldout() if order.heldout else None


def _nothing(_: None) -> None:
    return
