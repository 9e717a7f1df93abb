"""The gateway under TLS: who is let in, what a stream and a refusal look like, and certificates that are renewed."""

from __future__ import annotations

import asyncio
import contextlib
import json
import os
import ssl
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from dataclasses import replace
from pathlib import Path

import httpx
import pytest
import uvloop

from caudal.domain.errors import UsageError
from caudal.gateway.limits import Limits
from caudal.gateway.process import Gateway
from caudal.gateway.tls import Door
from caudal.store.authority import ensure_certificates, ensure_door, trusting
from tests.support.gateway import chat, gateway, parsed, post
from tests.support.mock_replica import MockReplica

HOST = "127.0.0.1"


def certificates(folder: Path) -> tuple[str, str]:
    """A new authority's, for this machine."""
    ensure_certificates(folder, ["north"])
    certificate, key = ensure_door(folder, "gateway", HOST)
    return str(certificate), str(key)


@asynccontextmanager
async def under_tls(
    folder: Path, replicas: list[MockReplica | str], limits: Limits | None = None
) -> AsyncIterator[Gateway]:
    folder.mkdir(exist_ok=True)
    certificate, key = certificates(folder)
    more = {"certificate": certificate, "certificate_key": key}
    async with gateway(folder, {"m": replicas}, more=more, limits=limits) as one:
        yield one


def test_whole_and_streamed_answers(tmp_path: Path) -> None:
    async def run() -> None:
        replica = await MockReplica().start()
        async with (
            under_tls(tmp_path, [replica]) as one,
            httpx.AsyncClient(verify=trusting(tmp_path), trust_env=False, base_url=one.url) as client,
        ):
            assert one.url.startswith("https://127.0.0.1:")
            for _ in range(3):
                whole = await client.post("/chat/completions", json=chat())
                assert whole.status_code == 200 and whole.json()["choices"][0]["message"]["content"]
            streamed = await client.post("/chat/completions", json=chat(stream=True))
            assert streamed.status_code == 200 and streamed.text.rstrip().endswith("data: [DONE]")
            events = [
                line.removeprefix("data: ")
                for line in streamed.text.splitlines()
                if line.startswith("data: {")
            ]
            choices = [choice for event in events for choice in json.loads(event)["choices"]]
            words = "".join(choice["delta"].get("content") or "" for choice in choices)
            assert words.split() == whole.json()["choices"][0]["message"]["content"].split()

    uvloop.run(run())


def test_who_does_not_know_the_authority_does_not_get_in(tmp_path: Path) -> None:
    async def run() -> None:
        (tmp_path / "other").mkdir()
        certificates(tmp_path / "other")
        async with under_tls(tmp_path / "ours", []) as one:
            for verify in (True, trusting(tmp_path / "other")):
                async with httpx.AsyncClient(verify=verify, trust_env=False) as client:
                    with pytest.raises(httpx.ConnectError, match=r"(?i)certificate"):
                        await client.get(f"{one.url}/models")

    uvloop.run(run())


def test_plain_http_and_noise_come_to_nothing_and_others_are_served(tmp_path: Path) -> None:
    async def run() -> None:
        async with under_tls(tmp_path, []) as one:
            port = int(one.url.removesuffix("/v1").rpartition(":")[2])
            for hello in (
                b"GET /health HTTP/1.1\r\nhost: x\r\n\r\n",
                os.urandom(300),
                b"\x16\x03\x01\xff\xff",
            ):
                reader, writer = await asyncio.open_connection(HOST, port)
                writer.write(hello)
                writer.write_eof()
                assert b"HTTP/1.1" not in await asyncio.wait_for(reader.read(), 5.0)
                writer.close()
            async with httpx.AsyncClient(verify=trusting(tmp_path), trust_env=False) as client:
                assert (await client.get(f"https://{HOST}:{port}/health")).status_code == 200

    uvloop.run(run())


def test_a_client_that_says_no_hello_is_left(tmp_path: Path) -> None:
    async def run() -> None:
        async with under_tls(tmp_path, [], replace(Limits(), head_s=0.2)) as one:
            port = int(one.url.removesuffix("/v1").rpartition(":")[2])
            reader, writer = await asyncio.open_connection(HOST, port)
            assert await asyncio.wait_for(reader.read(), 5.0) == b""
            writer.close()

    uvloop.run(run())


def test_a_refusal_is_read_to_its_end(tmp_path: Path) -> None:
    async def run() -> None:
        async with under_tls(tmp_path, []) as one:
            port = int(one.url.removesuffix("/v1").rpartition(":")[2])
            reader, writer = await asyncio.open_connection(HOST, port, ssl=trusting(tmp_path))
            writer.write(post(chat(), headers="transfer-encoding: chunked\r\n") + b"x" * 100_000)
            answer = await asyncio.wait_for(reader.read(), 5.0)
            assert parsed(answer)[0] == 400
            writer.close()

    uvloop.run(run())


def test_beyond_loopback_metrics_take_a_key(tmp_path: Path) -> None:
    async def run() -> None:
        certificate, key = certificates(tmp_path)
        more = {"certificate": certificate, "certificate_key": key}
        for host, expected in ((HOST, 200), ("0.0.0.0", 401)):
            async with (
                gateway(tmp_path, {}, more=more, host=host) as one,
                httpx.AsyncClient(verify=trusting(tmp_path), trust_env=False) as client,
            ):
                at = one.url.removesuffix("/v1").replace("0.0.0.0", HOST)
                assert (await client.get(f"{at}/metrics")).status_code == expected
                assert (await client.get(f"{at}/health")).status_code == 200

    uvloop.run(run())


def test_tls_1_1_is_refused(tmp_path: Path) -> None:
    context = Door(*certificates(tmp_path)).context
    assert context.minimum_version is ssl.TLSVersion.TLSv1_2


def test_a_renewed_certificate_is_taken_up_and_a_broken_one_is_not(tmp_path: Path) -> None:
    def shown(server: Door) -> bytes:
        """The certificate that a client gets, through memory."""
        client = ssl.SSLContext(ssl.PROTOCOL_TLS_CLIENT)
        client.check_hostname, client.verify_mode = False, ssl.CERT_NONE
        a_in, a_out = ssl.MemoryBIO(), ssl.MemoryBIO()
        b_in, b_out = ssl.MemoryBIO(), ssl.MemoryBIO()
        ours, theirs = client.wrap_bio(a_in, a_out), server.context.wrap_bio(b_in, b_out, server_side=True)
        for _ in range(4):
            for one in (ours, theirs):
                with contextlib.suppress(ssl.SSLWantReadError):
                    one.do_handshake()
                b_in.write(a_out.read())
                a_in.write(b_out.read())
        return ours.getpeercert(binary_form=True) or b""

    certificate, key = (Path(file) for file in certificates(tmp_path))
    door = Door(str(certificate), str(key))
    first = shown(door)
    assert first
    (tmp_path / "new").mkdir()
    new_certificate, new_key = (Path(file) for file in certificates(tmp_path / "new"))

    certificate.write_bytes(new_certificate.read_bytes())  # half of a pair, as it lies there for a moment
    os.utime(certificate, (1, 1))
    door.look()
    assert shown(door) == first
    key.write_bytes(new_key.read_bytes())
    door.look()
    assert shown(door) not in (first, b"")

    second = shown(door)
    certificate.write_text("nonsense")
    door.look()
    certificate.unlink()
    door.look()
    assert shown(door) == second


@pytest.mark.parametrize("broken", ["missing", "mixed", "nonsense", "encrypted"])
def test_files_that_cannot_be_used_are_named(tmp_path: Path, broken: str) -> None:
    certificate, key = (Path(file) for file in certificates(tmp_path))
    if broken == "missing":
        key.unlink()
    elif broken == "mixed":
        key.write_bytes((tmp_path / "north.key").read_bytes())
    elif broken == "nonsense":
        certificate.write_text("nonsense")
    else:
        key.write_text(
            "-----BEGIN ENCRYPTED PRIVATE KEY-----\n" + "A" * 64 + "\n-----END ENCRYPTED PRIVATE KEY-----\n"
        )
    with pytest.raises(UsageError, match="the gateway's certificate cannot be used") as refused:
        Door(str(certificate), str(key))
    assert str(certificate) in refused.value.where and refused.value.remedy
