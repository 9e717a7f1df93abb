"""A model is updated twice under load: the production policy decides, control's
routes are followed by two real gateways, and replicas are real servers that hang up at once when they are stopped.
No request may notice."""

from __future__ import annotations

import asyncio
import time
from contextlib import AsyncExitStack
from dataclasses import replace
from pathlib import Path

import msgspec
import uvloop

from caudal.control.routes import routes
from caudal.domain.fleet import GatewaySpec
from caudal.domain.gang import Role
from caudal.domain.workload import RolloutSpec, ServedModel
from caudal.gateway.process import Gateway
from caudal.gateway.routes import RouteTable, decode_routes
from caudal.policy import Rules
from tests.support.gateway import chat, gateway, post, raw
from tests.support.mock_replica import MockReplica
from tests.unit.policy_world import Play, model, service

RULES = Rules(drain_least_s=0.4, drain_s=20.0)
STEP_S = 0.05
POLL_S = 0.1
READY_AFTER_S = 0.2


class Fleet:
    """The policy's world, with servers for its replicas and gateways that report and poll."""

    def __init__(self, play: Play, gateways: list[Gateway]) -> None:
        self.play = play
        self.gateways = gateways
        self.servers: dict[str, MockReplica] = {}
        self.cut = 0
        self.canary: list[float] = []

    async def live(self) -> None:
        """Decide and act, for ever."""
        polled = 0.0
        while True:
            self.play.step(time.monotonic() - self.play.now, RULES)
            for gang in list(self.play.gangs.values()):
                if gang.role is Role.REPLICA:
                    await self._server(gang.id)
            if time.monotonic() - polled >= POLL_S:
                polled = time.monotonic()
                self._exchange()
            await asyncio.sleep(STEP_S)

    async def _server(self, gang_id: str) -> None:
        server = self.servers.get(gang_id)
        lives = self.play.processes[gang_id].alive
        if server is None and lives:
            gang = self.play.gangs[gang_id]
            self.servers[gang_id] = await MockReplica(model=f"m-{gang.model_version}").start()
        elif server is not None and not lives and server.port:
            self.cut += server.running
            await server.die()
            server.port = 0
        elif (
            server is not None
            and lives
            and time.monotonic() - self.play.gangs[gang_id].created_at > READY_AFTER_S
        ):
            self.play.report(self.play.gangs[gang_id].slot, ready=True, url=server.url)

    def _exchange(self) -> None:
        state = self.play.snapshot().state
        for number, one in enumerate(self.gateways):
            answer = routes(state, time.monotonic(), f"gateway.{number}-1")
            table = decode_routes(msgspec.json.encode(answer))
            self.canary += [w.weight for m in table.models for w in m.weights if w.version == m.version]
            one.router.update(RouteTable(0, tuple(msgspec.structs.replace(m, id="m") for m in table.models)))
            one.router.learn(table.others_in_flight)
            self.play.report(f"gateway.{number}", ready=True, load=one.router.load())

    async def until_only(self, version: int) -> None:
        """Wait until every replica has that version, and none of another is left."""
        async with asyncio.timeout(25):
            while {g.model_version for g in self.play.live() if g.role is Role.REPLICA} != {version}:
                await asyncio.sleep(STEP_S)


async def ask(one: Gateway, answers: list[bytes], over: asyncio.Event) -> None:
    """One client: answers of about half a second, streamed or whole, one after the other."""
    number = 0
    while not over.is_set():
        number += 1
        body = chat(stream=number % 3 > 0, max_tokens=20, seed=20) if number % 3 else chat(seed=300)
        answers.append(await raw(one, post(body), 20.0))


def test_updates_under_load_drop_no_request(tmp_path: Path) -> None:
    rollout = RolloutSpec(canary=0.2, hold_s=1.0)
    small = ServedModel("small", source="x", replicas=2, slots=8, rollout=rollout)
    play = Play(service("assistant", small))
    play.now = time.monotonic()
    play.models["small"] = model()
    play.fleet = replace(play.fleet, gateway=GatewaySpec(each_site=True))
    answers: list[bytes] = []

    async def run() -> Fleet:
        async with AsyncExitStack() as stack:
            gateways = [
                await stack.enter_async_context(gateway(tmp_path / str(n), {}, wait_s=5.0)) for n in range(2)
            ]
            fleet = Fleet(play, gateways)
            living = asyncio.create_task(fleet.live())
            await fleet.until_only(1)
            over = asyncio.Event()
            await asyncio.sleep(0.5)
            clients = [asyncio.create_task(ask(gateways[n % 2], answers, over)) for n in range(8)]
            for version in (2, 3):
                await asyncio.sleep(0.5)
                play.models["small"] = model(version=version)
                await fleet.until_only(version)
            over.set()
            await asyncio.gather(*clients)
            living.cancel()
            for server in fleet.servers.values():
                if server.port:
                    await server.die()
            return fleet

    fleet = uvloop.run(run())
    bad = [a for a in answers if not a.startswith(b"HTTP/1.1 200") or b'"error"' in a]
    bad += [a for a in answers if b"event-stream" in a and b"[DONE]" not in a]
    assert not bad and len(answers) > 40, (len(answers), bad[:2])
    assert fleet.cut == 0, "nothing was stopped in the middle of an answer"
    assert set(fleet.canary) == {0.2}
    asked = {name: len(server.requests) for name, server in fleet.servers.items()}
    assert len(asked) == 6 and all(asked.values()), asked
