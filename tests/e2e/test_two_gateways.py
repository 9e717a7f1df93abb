"""Two gateways as real processes at two sites: they learn of each other's load over control, a client may use
either, one that is killed costs the connections through it only, and control may be away."""

from __future__ import annotations

import asyncio
import json
import os
import signal
import subprocess
import sys
import time
from decimal import Decimal
from pathlib import Path
from typing import Any

import msgspec
import pytest

from caudal.control.routes import routes
from caudal.domain.fleet import Lease, LeaseState, MachineType, Market, Resources
from caudal.domain.gang import Gang, Report, Role
from caudal.domain.snapshot import State
from caudal.telemetry.report import REPORT_URL
from tests.support.fleet import free_port
from tests.support.gateway import chat, post
from tests.support.mock_replica import MockReplica

SITES = ("north", "south")
WAIT_S = 20.0


class Control:
    """The two paths of the control API that gateways use: control's own routes over a state in memory."""

    def __init__(self, replicas: dict[str, MockReplica]) -> None:
        kind = MachineType("m", Resources(1.0, 1 << 30))
        self.leases = tuple(
            Lease(s, s, s, kind, "o", Market.OWN, Decimal(0), LeaseState.ACTIVE, 1, 0.0) for s in SITES
        )
        self.gangs = [_gang(f"gateway.{n}", Role.GATEWAY, site) for n, site in enumerate(SITES)]
        self.gangs += [_gang(f"a.replica.m.{n}", Role.REPLICA, site) for n, site in enumerate(SITES)]
        self.reports = {
            f"a.replica.m.{n}-1": Report(
                f"a.replica.m.{n}-1", 0.0, {"ready": True, "url": replicas[site].url}
            )
            for n, site in enumerate(SITES)
        }
        self.server: asyncio.Server | None = None
        self.port = 0

    async def start(self) -> Control:
        self.server = await asyncio.start_server(self._client, "127.0.0.1", 0)
        self.port = self.server.sockets[0].getsockname()[1]
        return self

    def routes(self, gateway: str) -> bytes:
        state = State(1, None, (), self.leases, tuple(self.gangs), (), tuple(self.reports.values()))
        return msgspec.json.encode(routes(state, time.time(), gateway))

    async def _client(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        try:
            while True:
                head = (await reader.readuntil(b"\r\n\r\n")).decode()
                path = head.split(" ")[1]
                lengths = [x for x in head.lower().splitlines() if x.startswith("content-length:")]
                body = await reader.readexactly(int(lengths[0].split(":")[1])) if lengths else b""
                answer = b"{}"
                if path.endswith("/report"):
                    gang = path.split("/")[-2]
                    self.reports[gang] = Report(gang, time.time(), json.loads(body)["status"])
                else:
                    answer = self.routes(path.rpartition("gateway=")[2])
                writer.write(b"HTTP/1.1 200 OK\r\ncontent-length: %d\r\n\r\n%b" % (len(answer), answer))
        except (asyncio.IncompleteReadError, ConnectionError):
            writer.close()


def _gang(slot: str, role: Role, site: str) -> Gang:
    model = "m" if role is Role.REPLICA else ""
    return Gang(f"{slot}-1", slot, 1, role, "a", 1, site, site, site, 1, Resources(0.1), 0.0, model, 1)


def start_gateway(folder: Path, number: int, control: Control) -> tuple[subprocess.Popen[bytes], int]:
    port = free_port()
    config = {
        "host": "127.0.0.1",
        "port": port,
        "routes_url": f"http://127.0.0.1:{control.port}/api/v1/routes",
        "state_file": str(folder / f"routes-{number}.json"),
        "site": SITES[number],
        "gang": f"gateway.{number}-1",
    }
    path = folder / f"gateway-{number}.json"
    path.write_text(json.dumps(config))
    report = f"http://127.0.0.1:{control.port}/api/v1/gangs/gateway.{number}-1/report"
    with (folder / f"gateway-{number}.log").open("wb") as log:
        argv = [sys.executable, "-m", "caudal.gateway", str(path)]
        return subprocess.Popen(argv, env={**os.environ, REPORT_URL: report}, stderr=log), port


async def ask(port: int, **more: Any) -> bytes:
    """A whole exchange; what came of it, also where the connection was cut off."""
    reader, writer = await asyncio.open_connection("127.0.0.1", port)
    got = b""
    try:
        writer.write(post(chat(stream=True, **more)))
        while data := await asyncio.wait_for(reader.read(65536), WAIT_S):
            got += data
    except ConnectionError:
        pass
    finally:
        writer.close()
    return got


def whole(answer: bytes) -> bool:
    return answer.startswith(b"HTTP/1.1 200") and b"[DONE]" in answer and b'"error"' not in answer


async def until(what: Any) -> None:
    async with asyncio.timeout(WAIT_S):
        while not what():
            await asyncio.sleep(0.02)


async def answers(port: int) -> bool:
    try:
        return whole(await ask(port, max_tokens=1))
    except OSError:
        return False


async def exchange_of_load(control: Control, ports: list[int], replicas: dict[str, MockReplica]) -> None:
    """What one gateway has in flight moves the other one's next requests: with a long answer of the northern one
    at the north, the southern one queues at its own site rather than go there."""
    for replica in replicas.values():
        replica.gate.clear()

    def told(gateway: str) -> list[dict[str, Any]]:
        found: list[dict[str, Any]] = msgspec.json.decode(control.routes(gateway))["others_in_flight"]
        return found

    held = [asyncio.create_task(ask(ports[0], max_completion_tokens=100_000))]
    await until(lambda: [row["gang"] for row in told("gateway.1-1")] == ["a.replica.m.0-1"])
    assert replicas["north"].running == 1 and told("gateway.0-1") == []
    await asyncio.sleep(1.0)  # two polls
    held += [asyncio.create_task(ask(ports[1], max_completion_tokens=4000)) for _ in range(2)]
    await until(lambda: sum(r.running for r in replicas.values()) == 3)
    assert (replicas["north"].running, replicas["south"].running) == (1, 2)
    for task in held:
        task.cancel()
    await asyncio.gather(*held, return_exceptions=True)
    await until(lambda: not any(r.running for r in replicas.values()))
    for replica in replicas.values():
        replica.gate.set()


async def killed_gateway(ports: list[int], victim: subprocess.Popen[bytes]) -> None:
    """Clients stream through both, one is killed, and they go on with the other."""
    dead = asyncio.Event()
    over = asyncio.Event()
    results: list[tuple[int, bool, bool]] = []  # port, begun before the kill, whole

    async def client(number: int) -> None:
        mine = number % 2
        while not over.is_set():
            before = not dead.is_set()
            try:
                good = whole(await ask(ports[mine], max_tokens=10, seed=20))
            except OSError:
                mine = 1 - mine  # nobody listens there any more: the other one will do
                continue
            results.append((ports[mine], before, good))

    clients = [asyncio.create_task(client(n)) for n in range(8)]
    await asyncio.sleep(1.0)
    dead.set()
    victim.send_signal(signal.SIGKILL)
    victim.wait()
    await asyncio.sleep(1.5)
    over.set()
    await asyncio.gather(*clients)
    lost = [r for r in results if not r[2]]
    assert all(port == ports[0] and before for port, before, _ in lost) and len(lost) <= 4
    after = [r for r in results if not r[1]]
    assert len(after) > 20 and all(port == ports[1] and good for port, _, good in after)


@pytest.mark.timeout(120)
def test_gateways_share_their_load_and_one_of_them_is_enough(tmp_path: Path) -> None:
    async def run(started: list[subprocess.Popen[bytes]]) -> None:
        replicas = {site: await MockReplica().start() for site in SITES}
        control = await Control(replicas).start()
        ports = []
        for number in range(2):
            process, port = start_gateway(tmp_path, number, control)
            started.append(process)
            ports.append(port)
        for port in ports:
            async with asyncio.timeout(WAIT_S):
                while not await answers(port):
                    await asyncio.sleep(0.1)
        assert {s: bool(replicas[s].requests) for s in SITES} == {"north": True, "south": True}
        await exchange_of_load(control, ports, replicas)
        await killed_gateway(ports, started[0])
        assert control.server is not None
        control.server.close()
        await asyncio.sleep(1.0)
        assert await answers(ports[1])
        for replica in replicas.values():
            await replica.die()

    processes: list[subprocess.Popen[bytes]] = []
    try:
        asyncio.run(run(processes))
    finally:
        for process in processes:
            process.kill()
            process.wait()
