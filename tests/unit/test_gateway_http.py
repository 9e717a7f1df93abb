"""The gateway's HTTP: limits, slow and hostile clients, pipelining, and the end of a process."""

from __future__ import annotations

import asyncio
import os
import socket
import subprocess
import sys
import time
from dataclasses import replace
from pathlib import Path

import msgspec
import pytest
import uvloop

from caudal.gateway.limits import Limits
from tests.support.gateway import NOWHERE, chat, connect, gateway, parsed, post, raw
from tests.support.mock_replica import MockReplica

QUICK = replace(Limits(), head_s=0.15, body_s=0.15, idle_s=0.3, sweep_s=0.02, write_stall_s=0.3, linger_s=0.3)

SMUGGLING = [
    b"POST /v1/models HTTP/1.1\r\nhost: x\r\ncontent-length: 3\r\ntransfer-encoding: chunked\r\n\r\n0\r\n\r\n",
    b"POST /v1/models HTTP/1.1\r\nhost: x\r\ncontent-length: 3\r\ncontent-length: 4\r\n\r\nabc",
    b"POST /v1/models HTTP/1.1\r\nhost: x\r\ntransfer-encoding: gzip, chunked\r\n\r\n0\r\n\r\n",
    b"POST /v1/models HTTP/1.1\r\nhost: x\r\ntransfer-encoding: chunked\r\ntransfer-encoding: chunked\r\n\r\n0\r\n\r\n",
    b"POST /v1/models HTTP/1.0\r\nhost: x\r\ntransfer-encoding: chunked\r\n\r\n0\r\n\r\n",
    b"POST /v1/models HTTP/1.1\r\nhost: x\r\ncontent-length: +3\r\n\r\nabc",
    b"GET /v1/models HTTP/1.1\nhost: x\n\n",
    b"GET /v1/models HTTP/1.1\r\nhost: x\nevil: y\r\n\r\n",
    b"GET /v1/models HTTP/1.1\r\nhost : x\r\n\r\n",
    b"GET /v1/models HTTP/1.1\r\nhost: x\r\na: b\r\n c\r\n\r\n",
    b"GET /v1/models HTTP/1.1\r\nhost: x\r\nhost: y\r\n\r\n",
    b"GET /v1/models HTTP/1.1\r\n\r\n",
    b"GET /v1/models HTTP/1.1\r\nhost: x\r\na: b\x00c\r\n\r\n",
    b"GET http://other/v1/models HTTP/1.1\r\nhost: x\r\n\r\n",
    b"GET /v1/models HTTP/1.1\r\nhost: x\r\nconnection: upgrade\r\nupgrade: h2c\r\n\r\n",
    b"CONNECT other:80 HTTP/1.1\r\nhost: x\r\n\r\n",
    b"\x16\x03\x01\x02\x00\x01\x00\x01\xfc\x03\x03",
]


@pytest.mark.parametrize("request_bytes", SMUGGLING)
def test_ambiguous_requests_are_refused_and_the_connection_ends(tmp_path: Path, request_bytes: bytes) -> None:
    async def run() -> None:
        async with gateway(tmp_path, {}, limits=QUICK) as one:
            answer = await raw(one, request_bytes + b"GET /health HTTP/1.1\r\nhost: x\r\n\r\n")
            assert parsed(answer)[0] == 400 and parsed(answer)[1]["error"]["code"]
            assert answer.count(b"\r\ncontent-length: ") == 1  # what follows is not read as another request

    uvloop.run(run())


@pytest.mark.parametrize(
    ("request_bytes", "status"),
    [
        (b"GET / HTTP/2.0\r\nhost: x\r\n\r\n", 505),
        (b"GET / HTTP/1.1\r\nhost: x\r\nlong: " + b"a" * 40_000, 431),
        (b"GET /" + b"a" * 40_000, 431),
        (b"GET / HTTP/1.1\r\nhost: x\r\n" + b"a: b\r\n" * 101, 431),
        (b"POST / HTTP/1.1\r\nhost: x\r\ncontent-length: 4194305\r\n\r\n", 413),
        (
            b"POST / HTTP/1.1\r\nhost: x\r\ntransfer-encoding: chunked\r\n\r\n500000\r\n" + b"a" * 0x500000,
            413,
        ),
        (b"GET / HTTP/1.1\r\nho", 408),
        (b"POST / HTTP/1.1\r\nhost: x\r\ncontent-length: 10\r\n\r\nabc", 408),
    ],
)
def test_over_the_limits(tmp_path: Path, request_bytes: bytes, status: int) -> None:
    async def run() -> None:
        async with gateway(tmp_path, {}, limits=QUICK) as one:
            answer = await raw(one, request_bytes)
            assert parsed(answer)[0] == status

    uvloop.run(run())


def test_trickling_client_is_cut_off_and_others_are_served(tmp_path: Path) -> None:
    async def run() -> None:
        async with gateway(tmp_path, {}, limits=QUICK) as one:
            reader, writer = await connect(one)
            writer.write(b"GET /health HTTP/1.1\r\n")

            async def trickle() -> None:
                while True:
                    writer.write(b"a: b\r\n")
                    await asyncio.sleep(0.02)

            slow = asyncio.create_task(trickle())
            assert (
                parsed(await raw(one, b"GET /health HTTP/1.1\r\nhost: x\r\nconnection: close\r\n\r\n"))[0]
                == 200
            )
            assert parsed(await asyncio.wait_for(reader.read(), 2))[0] == 408
            slow.cancel()
            writer.close()

    uvloop.run(run())


def test_silent_connection_is_closed_without_a_word(tmp_path: Path) -> None:
    async def run() -> None:
        async with gateway(tmp_path, {}, limits=QUICK) as one:
            assert await raw(one, b"") == b""

    uvloop.run(run())


def test_client_that_never_reads_is_cut_off(tmp_path: Path) -> None:
    async def run() -> None:
        replica = await MockReplica().start()
        async with gateway(tmp_path, {"m": [replica]}, limits=QUICK) as one:
            _, writer = await connect(one)
            writer.write(post(chat(stream=True, max_tokens=1000, user="fat")))
            async with asyncio.timeout(10):
                while not replica.running:
                    await asyncio.sleep(0.02)
                while replica.running:
                    await asyncio.sleep(0.02)
            writer.close()
        await replica.die()

    uvloop.run(run())


def test_connections_over_the_limit_get_503_and_room_comes_back(tmp_path: Path) -> None:
    async def run() -> None:
        async with gateway(tmp_path, {}, limits=replace(QUICK, connections=2, idle_s=60)) as one:
            held = [await connect(one) for _ in range(2)]
            answer = await raw(one, b"")
            assert parsed(answer)[0] == 503 and b"retry-after" in answer
            held[0][1].close()
            await asyncio.sleep(0.05)
            assert (
                parsed(await raw(one, b"GET /health HTTP/1.1\r\nhost: x\r\nconnection: close\r\n\r\n"))[0]
                == 200
            )
            held[1][1].close()

    uvloop.run(run())


def test_pipelined_requests_are_answered_in_order(tmp_path: Path) -> None:
    async def run() -> None:
        replica = await MockReplica().start()
        async with gateway(tmp_path, {"m": [replica]}) as one:
            first = post(chat(max_tokens=2, seed=50), close=False)
            answer = await raw(
                one, first + b"GET /health HTTP/1.1\r\nhost: x\r\n\r\n" + post(chat(max_tokens=1))
            )
            assert answer.index(b"w0 w1") < answer.index(b'"status":"ok"') < answer.rindex(b'"w0"')
            assert answer.count(b"HTTP/1.1 200") == 3
        await replica.die()

    uvloop.run(run())


def test_refusal_waits_for_the_answers_before_it(tmp_path: Path) -> None:
    async def run() -> None:
        replica = await MockReplica().start()
        async with gateway(tmp_path, {"m": [replica]}, limits=QUICK) as one:
            answer = await raw(one, post(chat(seed=50), close=False) + b"\x00garbage\r\n\r\n")
            assert answer.startswith(b"HTTP/1.1 200") and answer.count(b"HTTP/1.1 400") == 1
        await replica.die()

    uvloop.run(run())


def test_flood_of_pipelined_requests_is_refused(tmp_path: Path) -> None:
    async def run() -> None:
        replica = await MockReplica().start()
        async with gateway(tmp_path, {"m": [replica]}, limits=QUICK) as one:
            flood = b"GET /health HTTP/1.1\r\nhost: x\r\n\r\n" * 1000
            answer = await raw(one, post(chat(seed=50), close=False) + flood)
            assert answer.count(b"HTTP/1.1 200") < 40 and b"too_many_pipelined" in answer
        await replica.die()

    uvloop.run(run())


def test_http_1_0_and_expect_continue_and_chunked_bodies(tmp_path: Path) -> None:
    async def run() -> None:
        replica = await MockReplica().start()
        async with gateway(tmp_path, {"m": [replica]}) as one:
            old = post(chat(stream=True)).replace(b"HTTP/1.1", b"HTTP/1.0")
            answer = await raw(one, old)
            assert b"transfer-encoding" not in answer and answer.endswith(b"data: [DONE]\n\n")
            reader, writer = await connect(one)
            head, _, body = post(chat(), headers="expect: 100-continue\r\n").partition(b"\r\n\r\n")
            writer.write(head + b"\r\n\r\n")
            assert await reader.readuntil(b"\r\n\r\n") == b"HTTP/1.1 100 Continue\r\n\r\n"
            writer.write(body)
            assert parsed(await reader.read())[0] == 200
            writer.close()
            head, _, body = post(chat()).partition(b"\r\n\r\n")
            lines = [line for line in head.split(b"\r\n") if not line.startswith(b"content-length")]
            chunked = b"\r\n".join([*lines, b"transfer-encoding: chunked", b"", b""])
            for i in range(0, len(body), 7):
                chunked += b"%x\r\n%b\r\n" % (len(body[i : i + 7]), body[i : i + 7])
            assert parsed(await raw(one, chunked + b"0\r\n\r\n"))[0] == 200
        await replica.die()

    uvloop.run(run())


def test_our_own_bug_costs_one_answer(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    async def run() -> None:
        async with gateway(tmp_path, {}, limits=QUICK) as one:
            monkeypatch.setattr(type(one.router), "models", lambda self: 1 / 0)
            assert parsed(await raw(one, b"GET /v1/models HTTP/1.1\r\nhost: x\r\n\r\n"))[0] == 500
            assert (
                parsed(await raw(one, b"GET /health HTTP/1.1\r\nhost: x\r\nconnection: close\r\n\r\n"))[0]
                == 200
            )

    uvloop.run(run())


def test_stop_lets_streams_end_and_takes_nothing_new(tmp_path: Path) -> None:
    async def run() -> None:
        replica = await MockReplica().start()
        async with gateway(tmp_path, {"m": [replica]}) as one:
            idle_reader, idle_writer = await connect(one)
            reader, writer = await connect(one)
            writer.write(post(chat(stream=True, max_tokens=20, seed=10), close=False))
            await reader.readuntil(b"w3")
            await one.server.close(grace_s=5)
            assert (await reader.read()).endswith(b"data: [DONE]\n\n\r\n0\r\n\r\n")
            assert await idle_reader.read() == b""
            with pytest.raises(OSError):
                await connect(one)
            idle_writer.close()
            writer.close()
        await replica.die()

    uvloop.run(run())


def start(tmp_path: Path, port: int) -> subprocess.Popen[str]:
    """The real process."""
    config = tmp_path / "config.json"
    content = {
        "host": "127.0.0.1",
        "port": port,
        "routes_url": NOWHERE,
        "state_file": str(tmp_path / "routes.json"),
    }
    config.write_bytes(msgspec.json.encode({**content, "site": "north", "gang": "gateway-1"}))
    environment = {k: v for k, v in os.environ.items() if not k.startswith("CAUDAL_")}
    command = [sys.executable, "-m", "caudal.gateway", str(config)]
    return subprocess.Popen(command, stderr=subprocess.PIPE, text=True, env=environment)


def test_process_says_who_has_the_port(tmp_path: Path) -> None:
    with socket.create_server(("127.0.0.1", 0)) as taken:
        process = start(tmp_path, taken.getsockname()[1])
        _, said = process.communicate(timeout=20)
    assert process.returncode == 1
    assert said.startswith("port_in_use: ") and f"process {os.getpid()} " in said and "Do: " in said


def test_process_ends_with_0_on_sigterm(tmp_path: Path) -> None:
    with socket.create_server(("127.0.0.1", 0)) as free:
        port = free.getsockname()[1]
    process = start(tmp_path, port)
    try:
        for _ in range(400):
            try:
                with socket.create_connection(("127.0.0.1", port), 1) as client:
                    client.sendall(b"GET /ready HTTP/1.1\r\nhost: x\r\nconnection: close\r\n\r\n")
                    assert client.recv(65536).startswith(b"HTTP/1.1 503")  # control was never there
                break
            except ConnectionRefusedError:
                time.sleep(0.025)
        process.terminate()
        process.communicate(timeout=5)
    finally:
        process.kill()
    assert process.returncode == 0
