"""Coordinator and sites over real sockets: a frame that is none ends its connection, with its reason, and no other."""

from __future__ import annotations

import asyncio
import contextlib
import struct
import zlib
from collections.abc import AsyncIterator, Awaitable, Callable
from typing import Any

import numpy as np
import pytest
from msgspec import structs

from caudal.telemetry.report import Reporter
from caudal.train import checkpoint, epochs, frames
from caudal.train.codec import Encoder
from caudal.train.compute import ComputeThread
from caudal.train.config import WorkerConfig
from caudal.train.frames import MAGIC, MAX_HEADER_BYTES, pack, read_frame
from caudal.train.hub import Hub
from caudal.train.keeper import Keeper
from caudal.train.messages import Challenge, Delta, Message, Ping, Ready, Round, Update, Welcome, encode
from caudal.train.metrics import Metrics
from caudal.train.outer import state_sha256
from caudal.train.protocol.coordinator import Coordinator
from caudal.train.protocol.door import prove
from caudal.train.protocol.effects import Rejoin
from caudal.train.protocol.site import Site
from caudal.train.protocol.terms import Terms
from caudal.train.runner import Runner
from caudal.train.session import Session
from tests.support.train_world import PREFIX, SPEC, DictBlobs, begin, hello, tiny_plan

PLAN = tiny_plan()
TOKEN = "secret"
LARGEST = 1 << 20


class Head:
    """A coordinator on loopback, and what it said."""

    def __init__(self) -> None:
        self.blobs, self.said = DictBlobs(), list[str]()
        begin(self.blobs, PLAN)
        restored = checkpoint.restore(self.blobs, PREFIX, PLAN.parameters, self.said.append)
        assert restored is not None
        reporter = Reporter()
        metrics = Metrics(self.blobs, PREFIX, 1, reporter)
        self.hub = Hub(
            Coordinator(Terms(PLAN, 1, 1, 2, 100, 100), restored, 0.0, 0.0),
            TOKEN,
            metrics,
            reporter,
            self.said.append,
        )
        self.keeper = Keeper(
            self.blobs, PREFIX, 1, metrics, self.hub.committed, self.hub.trouble, self.said.append
        )


@contextlib.asynccontextmanager
async def head() -> AsyncIterator[tuple[Head, int]]:
    made = Head()
    server = await asyncio.start_server(made.hub.connected, "127.0.0.1", 0)
    running = asyncio.create_task(made.hub.run(made.keeper))
    try:
        yield made, server.sockets[0].getsockname()[1]
    finally:
        running.cancel()
        server.close()
        await made.hub.close()


class Wire:
    """A site's end of a connection, by hand."""

    def __init__(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        self.reader, self.writer = reader, writer

    def say(self, message: Message, payload: bytes = b"") -> None:
        self.writer.write(pack(message, payload) + payload)

    async def hears(self, kind: type) -> tuple[Any, bytes]:
        while True:
            message, payload = await asyncio.wait_for(read_frame(self.reader, LARGEST), 10.0)
            if isinstance(message, kind):
                return message, payload

    async def ended(self) -> None:
        """Until the other side closes; pings and the like may come before."""
        with contextlib.suppress(ConnectionResetError):
            while await asyncio.wait_for(self.reader.read(1 << 16), 10.0):
                pass
        self.writer.close()


async def joined(port: int, slot: str) -> Wire:
    wire = Wire(*await asyncio.open_connection("127.0.0.1", port))
    challenge, _ = await wire.hears(Challenge)
    proof = prove(TOKEN, "site", challenge.nonce, "n", slot)
    wire.say(structs.replace(hello(PLAN, slot), nonce="n", proof=proof))
    welcome, state = await wire.hears(Welcome)
    assert state_sha256(np.frombuffer(state, "<f4").astype(np.float32)) == welcome.state_sha256
    wire.say(Ready(1, welcome.round))
    return wire


async def answer(wire: Wire, order: Round) -> None:
    """A sound delta for a lease."""
    ids = sum(b - a for a, b in order.ids)
    stage = PLAN.stages[order.stage]
    for fragment, (start, stop) in enumerate(PLAN.fragments):
        learnt = np.full(stop - start, 1e-3, np.float32)
        payload = Encoder().encode(learnt, np.zeros_like(learnt), np.zeros_like(learnt), order.bits)
        steps, tokens = -(-ids // stage.batch), ids * stage.sample_tokens
        said = Delta(1, order.round, order.lease, tokens, 2.0, steps, 0.1, fragment=fragment, bits=order.bits)
        wire.say(said, bytes(payload))


def framed(head_bytes: bytes, body: bytes = b"", **wrong: int) -> bytes:
    """A frame, with another checksum or other lengths than it has."""
    crc = wrong.get("crc", zlib.crc32(body, zlib.crc32(head_bytes)))
    lengths = wrong.get("header", len(head_bytes)), wrong.get("payload", len(body))
    return frames.PREFIX.pack(MAGIC, *lengths, crc) + head_bytes + body


PING = encode(Ping())

BAD = {
    "a wrong checksum": (framed(PING, b"12345678", crc=7), "damaged on the way"),
    "a payload bit": (framed(PING, b"12345678", crc=zlib.crc32(b"12345679", zlib.crc32(PING))), "damaged"),
    "too large a payload": (framed(PING, payload=1 << 40), "too long"),
    "too large a header": (framed(PING, header=MAX_HEADER_BYTES + 1), "too long"),
    "a length that is too small": (framed(PING, b"x" * 64, payload=8), "damaged on the way"),
    "no frame": (b"GET / HTTP/1.1\r\nHost: here\r\n\r\n", "not a frame"),
    "a header that is no JSON": (framed(b'{"type":"ping"'), "cannot be read"),
    "a header of no type": (framed(b'{"type":"pickle","data":"gASV"}'), "cannot be read"),
    "a header of wrong types": (framed(b'{"type":"ready","epoch":"one","round":[]}'), "cannot be read"),
    "bytes that are no text": (framed(b"\xff\xfe\x00"), "cannot be read"),
    "an old magic": (struct.pack("<4sIQI", b"CDL0", 2, 0, 0) + b"{}", "not a frame"),
}


@pytest.mark.parametrize("what", list(BAD))
def test_a_frame_that_is_none_ends_its_connection_and_the_run_goes_on_without_it(what: str) -> None:
    data, said = BAD[what]

    async def go() -> None:
        async with head() as (made, port):
            good, bad = await joined(port, "a"), await joined(port, "b")
            order, _ = await good.hears(Round)
            theirs, _ = await bad.hears(Round)
            bad.writer.write(data)
            await bad.ended()
            assert any(said in line for line in made.said), made.said
            assert any(line.startswith("b at b is gone") and said in line for line in made.said)
            await answer(good, order)
            update, _ = await good.hears(Update)
            assert update.round == 1 and update.merged == (order.lease,)
            again, _ = await good.hears(Round)
            assert set(theirs.ids) & set(again.ids), "what the other held is leased again"
            back = await joined(port, "b2")  # and who is sound may come
            for wire in (good, back):
                wire.writer.close()

    asyncio.run(go())


@pytest.mark.parametrize("what", list(BAD))
def test_before_it_has_proved_who_it_is_a_stranger_is_let_go(what: str) -> None:
    data, said = BAD[what]

    async def go() -> None:
        async with head() as (made, port):
            wire = Wire(*await asyncio.open_connection("127.0.0.1", port))
            await wire.hears(Challenge)
            wire.writer.write(data)
            await wire.ended()
            # a stranger is read nothing of but a small header: any payload is too long
            assert any(said in line or "too long" in line for line in made.said), made.said

    asyncio.run(go())


# ---- the same the other way: a coordinator's frames at a site ----------------------------------------------


class Still:
    """An inner side that is never asked for steps."""

    size = PLAN.parameters

    def load(self, state: Any) -> None:
        return

    def forget(self) -> None:
        return


async def session_with(talk: Callable[[asyncio.StreamReader, asyncio.StreamWriter], Awaitable[None]]) -> Any:
    """How a worker's session ends with a coordinator that talks so."""
    ends = asyncio.Event()

    async def serve(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        await talk(reader, writer)
        await ends.wait()
        writer.close()

    server = await asyncio.start_server(serve, "127.0.0.1", 0)
    config = WorkerConfig(
        run="tiny",
        generation=1,
        site="a",
        gang="a-1",
        blobs_url="memory://",
        cache_dir="",
        spec=SPEC,
        token=TOKEN,
        standby=False,
    )
    blobs = DictBlobs()
    port = server.sockets[0].getsockname()[1]
    epoch = epochs.claim(blobs, PREFIX, address=f"127.0.0.1:{port}", site="a", gang="", at=0.0)
    thread = ComputeThread(Still)  # type: ignore[arg-type]
    await thread.ready
    runner = Runner(Site(PLAN), thread, Reporter())
    try:
        return await asyncio.wait_for(Session(config, blobs, PLAN, epoch, runner).run(), 20.0)
    finally:
        ends.set()
        thread.close()
        server.close()


@pytest.mark.parametrize("what", list(BAD))
def test_a_site_leaves_a_coordinator_whose_frames_are_damaged_and_asks_again(what: str) -> None:
    data, said = BAD[what]

    async def talk(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        writer.write(pack(Challenge("c")))
        await read_frame(reader, 0)
        writer.write(data)

    ending = asyncio.run(session_with(talk))
    assert isinstance(ending, Rejoin) and said in ending.why and not ending.final


def test_a_state_that_was_changed_on_the_way_is_not_taken_over() -> None:
    """Its checksum is right: it was made so."""

    async def talk(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        writer.write(pack(Challenge("c")))
        asked, _ = await read_frame(reader, 0)
        state = np.zeros(PLAN.parameters, np.float32)
        proof = prove(TOKEN, "coordinator", asked.nonce, "c")  # type: ignore[union-attr]
        welcome = Welcome(1, 0, "0" * 64, proof)
        writer.write(pack(welcome, state.tobytes()) + state.tobytes())

    ending = asyncio.run(session_with(talk))
    assert isinstance(ending, Rejoin) and "not the one that it is said to be" in ending.why


def test_a_coordinator_reports_the_steps_reason_and_who_is_kept_out() -> None:
    async def go() -> None:
        async with head() as (made, port):
            wire = await joined(port, "a")
            made.hub.machine.ladder.why = "1 → 2 inner steps a round: for a test"
            for _ in range(3):
                made.hub.machine.strikes.add("b", asyncio.get_running_loop().time() + 1e6)
            for _ in range(3):
                order, _ = await wire.hears(Round)
                await answer(wire, order)
            await asyncio.sleep(0.3)
            status = made.hub.reporter._status
            assert status["why"] == "1 → 2 inner steps a round: for a test" and status["round"] >= 1
            assert status["kept_out"] == {"b": "3 bad deltas in a row"}
            assert status["sites"]["a"]["worker"] == "a" and "mfu" not in status
            wire.writer.close()

    asyncio.run(go())
