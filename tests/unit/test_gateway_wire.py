"""The part in C is used where it was built, left out where it is not wanted, and TLS does without it."""

from __future__ import annotations

import asyncio
import os
import subprocess
import sys
from pathlib import Path
from typing import cast

import pytest
import uvloop

from caudal.gateway import wire
from caudal.gateway.pumped import PumpedConnection
from tests.support.gateway import chat, connect, gateway, post
from tests.support.mock_replica import MockReplica

BUILT = Path(wire.__file__).with_name("_wire.abi3.so").exists()


def test_it_is_left_out_where_it_is_not_wanted() -> None:
    asking = "from caudal.gateway import wire; print(wire.BUILT, hasattr(wire, 'Pump'))"
    for pure, told in (("1", f"False {BUILT}"), ("", f"{BUILT} {BUILT}")):
        env = {**os.environ, "CAUDAL_PURE_PYTHON": pure}
        done = subprocess.run(
            [sys.executable, "-c", asking], env=env, capture_output=True, text=True, check=True
        )
        assert done.stdout.strip() == told


class Encrypted:
    """What is asked of a transport."""

    def get_extra_info(self, name: str) -> object:
        return object() if name == "sslcontext" else None


def test_what_is_encrypted_is_written_by_its_transport() -> None:
    assert wire.outlet(cast(asyncio.Transport, Encrypted())) is None


@pytest.mark.parametrize("built", [True, False])
def test_streams_pass_both_ways(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, built: bool) -> None:
    """Over sockets, on a connection that is kept: the second stream finds it, and is carried by callbacks."""
    if built and not wire.BUILT:
        pytest.skip("the part in C was not built")
    monkeypatch.setattr(wire, "BUILT", built)

    async def run() -> None:
        replica = await MockReplica().start()
        async with gateway(tmp_path, {"m": [replica]}) as one:
            said = []
            for _ in range(3):
                reader, writer = await connect(one)
                writer.write(post(chat(stream=True, max_tokens=20, seed=2), close=False))
                said.append(await asyncio.wait_for(reader.readuntil(b"0\r\n\r\n"), 10))
                writer.close()
            assert all(answer.count(b"data: {") == said[0].count(b"data: {") >= 20 for answer in said)
            assert all(answer.count(b"data: [DONE]\n\n") == 1 for answer in said)
            [kept] = [c for connections in one._pool._idle.values() for c in connections]
            assert isinstance(kept, PumpedConnection) is built
            assert not isinstance(kept, PumpedConnection) or kept._valve.passed >= 20
            assert one.metrics.broken_streams == 0
        await replica.die()

    uvloop.run(run())
