"""The gateway as a process: configuration, start, reports, and an orderly end."""

from __future__ import annotations

import asyncio
import contextlib
import errno
import os
import resource
import signal
import time
from pathlib import Path
from typing import Annotated, Any, Literal, Protocol

import msgspec
import psutil

from caudal.domain.errors import PortInUse, UsageError
from caudal.gateway.admitter import Admitter
from caudal.gateway.app import App
from caudal.gateway.callers import Callers, key_poller, others_reach, required_at
from caudal.gateway.descriptors import fitted
from caudal.gateway.external import Externals
from caudal.gateway.generation import Generations
from caudal.gateway.guesses import Guesses
from caudal.gateway.http_server import HttpServer
from caudal.gateway.limits import Limits
from caudal.gateway.metrics import Metrics
from caudal.gateway.openai_errors import refusal_body
from caudal.gateway.place import ALONE, Place
from caudal.gateway.responses_store import ResponseStore
from caudal.gateway.router import Router
from caudal.gateway.routes import RoutePoller
from caudal.gateway.short_calls import ShortCalls
from caudal.gateway.siblings import Siblings
from caudal.gateway.spending import Spending
from caudal.gateway.tls import Door
from caudal.gateway.tracing import Tracing, span_sender
from caudal.gateway.upstream import UpstreamLimits
from caudal.gateway.upstream_pool import UpstreamPool
from caudal.gateway.usage_journal import usage_journal
from caudal.policy.hedging import MAX_SHARE as MAX_HEDGE
from caudal.policy.hedging import HedgeRules
from caudal.store.site_tls import client_context
from caudal.telemetry.report import TOKEN_FILE

REPORT_S = 0.5
SPENDING = "gateway-spending.sqlite"
"""Beside the state file: all gateways of a machine share it."""
MOST_WRONG = 20
"""Wrong keys a minute from one address, all processes together."""

GRACE_S = 8.0
"""How long answers may go on after SIGTERM; below the 10 s that a gang is given."""


class GatewayConfig(msgspec.Struct, frozen=True):
    """What control writes for a gateway. `port` 0 takes any. Without `keys_url` no key is known, without `usage_dir`
    no usage is kept, and without `certificates`, a folder, replicas on other machines are not reached. `keys`, `hedge`,
    `traces` and `processes`: see GatewaySpec."""

    host: str
    port: int
    routes_url: str
    state_file: str
    site: str
    gang: str
    keys: Literal["optional", "required"] = "optional"
    keys_url: str = ""
    keys_file: str = ""
    usage_url: str = ""
    usage_dir: str = ""
    traces: str = ""
    hedge: Annotated[float, msgspec.Meta(ge=0, le=MAX_HEDGE)] = 0.0
    processes: Annotated[int, msgspec.Meta(ge=1, le=64)] = 1
    certificate: str = ""
    certificate_key: str = ""
    certificates: str = ""

    def url(self, port: int) -> str:
        """What clients are told, for the port that was taken."""
        host = f"[{self.host}]" if ":" in self.host else self.host
        return f"{'https' if self.certificate else 'http'}://{host}:{port}/v1"


def read_config(path: Path) -> GatewayConfig:
    """Raises UsageError where the file cannot be used."""
    try:
        read = msgspec.json.decode(path.read_bytes(), type=GatewayConfig)
        return msgspec.structs.replace(
            read,
            **{
                name: str(Path(value).expanduser())
                for name in ("state_file", "keys_file", "usage_dir", "certificate", "certificate_key")
                if (value := getattr(read, name))
            },
        )
    except (OSError, msgspec.DecodeError) as error:
        remedy = "Give the path of a JSON file with host, port, routes_url, state_file, site and gang."
        raise UsageError(
            "the gateway's configuration cannot be read", where=str(path), why=str(error), remedy=remedy
        ) from error


class Gateway:
    """One gateway process: its parts, wired. `place`: which of a gateway's processes it is."""

    def __init__(
        self,
        config: GatewayConfig,
        *,
        limits: Limits | None = None,
        upstream_limits: UpstreamLimits | None = None,
        wait_s: float = 10.0,
        place: Place = ALONE,
    ) -> None:
        now = asyncio.get_running_loop().time
        self._config = config
        self._place = place
        folder = config.certificates
        fleet = client_context(Path(folder), config.site) if folder else None
        self._pool = UpstreamPool(upstream_limits or UpstreamLimits(), fleet)
        self.metrics = Metrics()
        self.router = Router(config.site, now, HedgeRules(share=config.hedge))
        token_file = os.environ.get(TOKEN_FILE, "")
        guesses = Guesses(max(1, MOST_WRONG // place.processes))
        asks = required_at(config.host, config.keys)
        self.callers = Callers(asks, known=not config.keys_url, guesses=guesses)
        self.usage = usage_journal(config.usage_url, config.usage_dir, config.gang, token_file)
        self.spending = Spending(Path(config.state_file).with_name(SPENDING), time.time)
        self.spans = span_sender(config.traces, config.gang, config.site)
        admitter = Admitter(self.router.capacity, now, self.metrics.admission, share=place.processes)
        generations = Generations(
            self.router,
            self._pool,
            self.metrics,
            Externals(self.spending),
            wait_s,
            self.usage.record,
            tracing=Tracing(self.spans.add) if self.spans is not None else None,
            admitter=admitter,
        )
        self.app = App(
            self.router,
            generations,
            self.metrics,
            lambda: self.server.connections,
            self.callers,
            ShortCalls(self.router, self._pool, wait_s, admitter, self.usage.record),
            ResponseStore(Path(config.state_file).parent / "responses"),
            self.spending,
        )
        if others_reach(config.host):
            self.app.keyed += ("/metrics",)  # whose models and keys are served is nobody else's business
        self.server = HttpServer(self.app.handle, refusal_body, limits or Limits())
        self.routes = RoutePoller(
            config.routes_url,
            token_file,
            Path(place.own(config.state_file)),
            self._pool,
            self.router.update,
            self.router.learn,
            config.gang,
        )
        keys_file = place.own(config.keys_file)
        self.keys = key_poller(config.keys_url, token_file, keys_file, self._pool, self.callers)
        self._door = Door(config.certificate, config.certificate_key) if config.certificate else None
        self._siblings: Siblings | None = None
        self._pool.on_connect = self.router.connected
        self.routes.hurry = lambda: bool(self.router.waking())
        self._pollers: list[asyncio.Task[None]] = []
        self.url = ""

    async def start(self) -> None:
        """Take up the last known routes and listen. Raises PortInUse."""
        self.routes.load()
        if self.keys is not None:
            self.keys.load()
        host, port = self._config.host, self._place.port or self._config.port
        try:
            context = self._door.context if self._door is not None else None
            port = await self.server.listen(host, port, reuse_port=self._place.shared, tls=context)
        except OSError as error:
            if error.errno != errno.EADDRINUSE:
                raise
            raise port_in_use(host, port) from error
        self.url = self._config.url(port)
        if self._place.shared:
            self._siblings = Siblings(Path(self._place.folder), self._place, self.app.metrics_text)
            await self._siblings.start()
            self.app.gather = self._siblings.gather
        loop = asyncio.get_running_loop()
        self._pollers = [loop.create_task(p.run()) for p in (self.routes, self.keys) if p is not None]
        if self._door is not None:
            self._pollers.append(loop.create_task(self._door.watch()))
        self.usage.start()
        if self.spans is not None:
            self.spans.start()

    async def stop(self, grace_s: float = GRACE_S) -> None:
        """Let answers end within the grace, then leave."""
        await self.server.close(grace_s)
        if self._siblings is not None:
            self._siblings.close()
        for poller in self._pollers:
            poller.cancel()
            with contextlib.suppress(asyncio.CancelledError):
                await poller
        await asyncio.to_thread(self.usage.close)
        if self.spans is not None:
            await asyncio.to_thread(self.spans.close)
        self._pool.close()
        self.spending.close()


class Reports(Protocol):
    """Who is told how things stand: control, or a parent."""

    def update(self, **status: Any) -> None:
        """Change these keys."""


async def serve(
    config: GatewayConfig, reporter: Reports, place: Place = ALONE, told_to_end: asyncio.Event | None = None
) -> None:
    """Run a gateway process until SIGTERM, SIGINT or `told_to_end`. Raises PortInUse."""
    loop = asyncio.get_running_loop()
    told_to_end = told_to_end or asyncio.Event()
    for number in (signal.SIGTERM, signal.SIGINT):
        loop.add_signal_handler(number, told_to_end.set)
    limits = fitted(Limits(), resource.getrlimit(resource.RLIMIT_NOFILE)[0])
    gateway = Gateway(config, limits=limits, place=place)
    await gateway.start()
    reporting = loop.create_task(_report(gateway, reporter, place))
    await told_to_end.wait()
    reporting.cancel()
    reporter.update(ready=False)
    await gateway.stop()


async def _report(gateway: Gateway, reporter: Reports, place: Place) -> None:
    news = asyncio.Event()
    gateway.router.demand.on_news = news.set
    while True:
        news.clear()
        demand, peaks = gateway.router.demand.report()
        more = {"metrics": gateway.app.metrics_text().decode()} if place.shared else {}
        reporter.update(
            **more,
            ready=True,
            url=gateway.url,
            requests=gateway.metrics.requests,
            streams=gateway.metrics.streams,
            hedged=gateway.router.hedged,
            load=gateway.router.load(),
            demand=demand,
            peaks=peaks,
            waking=gateway.router.waking(),
            spent=gateway.spending.report(),
        )
        with contextlib.suppress(TimeoutError):
            await asyncio.wait_for(news.wait(), REPORT_S)


def port_in_use(host: str, port: int) -> PortInUse:
    """The error that says who listens there."""
    return PortInUse(
        f"port {port} is taken",
        where=f"gateway at {host}:{port}",
        why=_listener(port),
        remedy="End that program, or give the gateway another port in the fleet file (gateway: port:).",
    )


def _listener(port: int) -> str:
    """Who listens there, as far as this user may know."""
    try:
        for connection in psutil.net_connections("inet"):
            if connection.laddr and connection.laddr.port == port and connection.status == psutil.CONN_LISTEN:
                if connection.pid is None:
                    break
                return f"process {connection.pid} ({psutil.Process(connection.pid).name()}) listens there"
    except psutil.Error:
        pass  # not allowed to look: the sentence below says as much
    return "another program listens there"
