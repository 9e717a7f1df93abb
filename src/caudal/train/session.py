"""One connection of a worker to its coordinator: bytes to the state machine and back. Decides nothing."""

from __future__ import annotations

import asyncio
import itertools
import secrets
import time
from collections.abc import Awaitable, Callable
from dataclasses import dataclass
from typing import Any

import caudal
from caudal.domain.errors import Failed, Unauthorized
from caudal.ports import Blobs
from caudal.train import epochs
from caudal.train.codec import BLOCK
from caudal.train.config import WorkerConfig
from caudal.train.frames import pack, read_frame
from caudal.train.interface import RunPlan
from caudal.train.machine import machine
from caudal.train.messages import BadMessage, Challenge, Hello, Message, Ping, Refused, Welcome
from caudal.train.protocol import door, rules
from caudal.train.protocol.effects import Rejoin
from caudal.train.runner import Ending, Runner
from caudal.train.tls import client_context, not_ours

STREAM_BYTES = 1 << 22
CONNECT_S = 5.0
LOOK_EVERY = 5
"""Beats between two looks for a newer epoch."""


@dataclass
class Session:
    """What one connection needs. `run` returns how it ended; raises what the computing thread raised."""

    config: WorkerConfig
    blobs: Blobs
    plan: RunPlan
    epoch: epochs.Epoch
    runner: Runner

    def __post_init__(self) -> None:
        self._ending: asyncio.Future[Ending] = asyncio.get_running_loop().create_future()
        self._heard_at = time.monotonic()
        self._writer: asyncio.StreamWriter | None = None
        self.took_part = False  # whether it was welcomed
        self._welcomed: Callable[[], Awaitable[None]] | None = None

    async def run(self, welcomed: Callable[[], Awaitable[None]] | None = None) -> Ending:
        """Take part until the run is finished or the connection is not what it should be; `welcomed` is called
        once this site takes part."""
        self._welcomed = welcomed
        host, _, port = self.epoch.address.rpartition(":")
        try:
            context = client_context(self.config)
            name = self.epoch.site if context else None
            opening = asyncio.open_connection(
                host, int(port), limit=STREAM_BYTES, ssl=context, server_hostname=name
            )
            reader, writer = await asyncio.wait_for(opening, CONNECT_S)
        except (OSError, TimeoutError) as error:
            self._raise_where_not_ours(error)
            return Rejoin(f"no coordinator at {self.epoch.address}: {error}", after_s=0.2)
        self._writer = writer
        tasks = [asyncio.create_task(self._read(reader)), asyncio.create_task(self._beat())]
        try:
            failed = self.runner.thread.failed
            watched: list[asyncio.Future[Any]] = [*tasks, self._ending, failed]
            await asyncio.wait(watched, return_when=asyncio.FIRST_COMPLETED)
            if failed.done():
                failed.result()
            for task in tasks:
                if task.done():
                    task.result()
            return await self._ending
        finally:
            self.runner.detach()
            for task in tasks:
                task.cancel()
            writer.close()

    def _end(self, how: Ending) -> None:
        if not self._ending.done():
            self._ending.set_result(how)

    async def _read(self, reader: asyncio.StreamReader) -> None:
        """Every frame to the machine, until the connection ends."""
        try:
            nonces = await asyncio.wait_for(self._greet(reader), rules.LIVENESS_S)
            most = 4 * self.plan.parameters + 4 * BLOCK
            while True:
                message, payload = await read_frame(reader, most, self._heard)
                self._heard()
                if isinstance(message, Welcome):
                    self._check(message, nonces)
                    if self._welcomed is not None:
                        await self._welcomed()
                elif isinstance(message, Refused) and message.reason == "unauthorized":
                    raise Unauthorized(
                        f"the coordinator at {self.epoch.address} refuses this worker", why=message.text
                    )
                self.runner.heard(message, payload)
        except (asyncio.IncompleteReadError, OSError, TimeoutError) as error:
            self._raise_where_not_ours(error)
            self._end(Rejoin(f"the connection ended ({type(error).__name__})"))
        except BadMessage as error:
            self._end(Rejoin(error.one_line(), after_s=0.2))

    def _raise_where_not_ours(self, error: Exception) -> None:
        if why := not_ours(error):
            raise Unauthorized(
                f"the certificates of the coordinator at {self.epoch.address} and of this site do not fit together",
                where=self.config.certificates,
                why=f"{self.epoch.site} coordinates, this is {self.config.site}: {why}",
                remedy="give all sites certificates of the same authority, each of its own name",
            ) from None

    def _heard(self) -> None:
        self._heard_at = time.monotonic()

    async def _greet(self, reader: asyncio.StreamReader) -> tuple[str, str]:
        """Answer the challenge and say who we are; returns both nonces."""
        challenge, _ = await read_frame(reader, 0)
        if not isinstance(challenge, Challenge):
            raise BadMessage("a coordinator that does not begin with a challenge")
        nonce = secrets.token_hex(16)
        slot = self.config.slot[0]
        state_round, state_sha256, held = self.runner.site.offer()
        hello = Hello(
            run=self.config.run,
            generation=self.config.generation,
            site=self.config.site,
            worker=slot,
            incarnation=self.config.incarnation,
            plan=door.plan_sha256(self.plan),
            parameters=self.plan.parameters,
            version=caudal.__version__,
            nonce=nonce,
            proof=door.prove(self.config.token, "site", challenge.nonce, nonce, slot),
            round=state_round,
            state_sha256=state_sha256,
            held=held,
            machine=machine(self.config.threads),
        )
        self._send(hello, b"")
        self.runner.attach(self._send, self._ending)
        return nonce, challenge.nonce

    def _check(self, welcome: Welcome, nonces: tuple[str, str]) -> None:
        """Raises BadMessage where the other side does not hold the token: its numbers are not ours."""
        if not door.proven(welcome.proof, self.config.token, "coordinator", *nonces):
            raise BadMessage("a coordinator that does not hold the run's token", where=self.epoch.address)
        self.took_part = True

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
