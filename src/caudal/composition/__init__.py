"""The composition root: the one place where ports meet the things that stand behind them.

Knows which class implements what; decides nothing.
"""

from __future__ import annotations

import importlib.util
import os
import signal
import socket
import threading
import time
from collections.abc import Sequence
from contextlib import ExitStack
from pathlib import Path
from typing import Any

import uvicorn
from fastapi import FastAPI

import caudal
from caudal.api.app import create_app
from caudal.api.context import LOOPBACK, Context
from caudal.composition.process import SystemClock, lead, make_home, this_process, unusable
from caudal.composition.world import Closing, build_world, elsewhere
from caudal.console import page
from caudal.control.apply import apply
from caudal.control.asking import Together
from caudal.control.background import ThreadBackground
from caudal.control.down import Left, rented, take_down
from caudal.control.launch import LaunchSettings
from caudal.control.leave import leave
from caudal.control.loop import ControlLoop, Settings
from caudal.control.runner import Runner
from caudal.domain.errors import (
    CaudalError,
    Failed,
    PortInUse,
    Unreachable,
    UsageError,
)
from caudal.domain.fleet import FleetSpec
from caudal.domain.gang import Role
from caudal.domain.workload import ServiceSpec, TrainSpec
from caudal.ports import World
from caudal.store.atomic import write_atomic
from caudal.store.authority import ensure_certificates, ensure_door, trusting
from caudal.store.blobs import open_blobs
from caudal.store.home import Home
from caudal.store.models import ModelStore
from caudal.store.site_tls import AUTHORITY
from caudal.store.state import open_store

__all__ = ["Control", "Spec", "SystemClock", "make_home", "this_process"]

Spec = FleetSpec | TrainSpec | ServiceSpec

API_START_S = 20.0

CONTROL, GATEWAY = "control", "gateway"
"""The name in the API's certificate."""

GIVE_BACK_S = 120.0
"""How long leaving waits until the providers' lists show no rented machine; clouds take a minute or so."""

HAND_OVER_S = 0.2
"""Until who asked for it has its answer."""


def _in_url(host: str) -> str:
    return f"[{host}]" if ":" in host else host


def _listen(host: str, port: int, what: str, key: str) -> socket.socket:
    listener = socket.socket(socket.AF_INET6 if ":" in host else socket.AF_INET, socket.SOCK_STREAM)
    listener.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
    try:
        listener.bind((host, port))
        listener.listen(128)
    except OSError as error:
        listener.close()
        raise PortInUse(
            f"{what} cannot listen on {host}:{port}",
            why=str(error),
            remedy=f"end what uses the port, or set `{key}` in the fleet file to another one",
        ) from error
    return listener


class Control:
    """One control process: the loop, the API and the web page over one state directory.

    What it starts (gangs) outlives it; `stop` ends them too, unless asked to leave them running.
    """

    def __init__(
        self,
        place: Home,
        specs: Sequence[Spec],
        name: str = "caudal up",
        default_fleet: FleetSpec | None = None,
        closing: bool = False,
    ) -> None:
        make_home(place)
        self.place = place
        self.clock = SystemClock()
        self.settings = Settings()
        self.store = open_store(place.database_url)
        self.models = ModelStore(open_blobs(place.blobs_url), place.cache / "models")
        holder = this_process(name)
        epoch = lead(self.store, holder, self.clock, self.settings.leader_ttl_s)
        with ExitStack() as undo:
            undo.callback(self.store.resign, epoch)
            self.fleet = self._fleet(specs, default_fleet)
            self.world = build_world(
                World(self.clock, self.store, self.models, {}, {}, self.fleet.sites),
                self.fleet,
                place,
                lambda: self.url,
            )
            # To take a fleet down no port is needed that others could have: whoever calls is told the address.
            port = 0 if closing else self.fleet.api.port
            self._listener = _listen(self.fleet.api.host, port, "the control API", "api.port")
            undo.callback(self._listener.close)
            if not closing:
                self._check_gateway_port(specs)
            api = self.fleet.api
            self.url = (
                f"{'https' if api.tls else 'http'}://{_in_url(api.host)}:{self._listener.getsockname()[1]}"
            )
            wished = [self.fleet, *(spec for spec in specs if not isinstance(spec, FleetSpec))]
            self.changes = apply(self.store, wished, self.clock.now())
            undo.pop_all()
        self.loop = ControlLoop(
            self.world, holder, self.settings, self._launch(), ThreadBackground(), Together()
        )
        self.runner = Runner(self.loop, on_lost=self._lost)
        self.handing_over = False
        """Whether it was asked over the API to leave, and what runs to whoever asked."""
        self.left: list[Left] = []
        """What of rented machines could not be given back when it left."""
        self._server = uvicorn.Server(
            uvicorn.Config(
                self._app(),
                log_level="warning",
                access_log=False,
                timeout_graceful_shutdown=2,
                **self._tls(),
            )
        )
        self._api = threading.Thread(target=self._serve, name="api", daemon=True)

    def _tls(self) -> dict[str, Any]:
        """What uvicorn is told of the API's certificate, where it has one."""
        if not self.fleet.api.tls:
            return {}
        certificate, key = ensure_door(self.place.certificates, CONTROL, self.fleet.api.host)
        return {"ssl_certfile": str(certificate), "ssl_keyfile": str(key)}

    def start(self) -> None:
        """Serve and loop, in threads. Returns when the API answers."""
        self.serve()
        self.runner.start()

    def serve(self) -> None:
        """Serve the API, in a thread. Returns when it answers."""
        self._api.start()
        deadline = time.monotonic() + API_START_S
        while not self._server.started:
            if not self._api.is_alive() or time.monotonic() > deadline:
                raise Failed("the control API did not start", remedy="run `caudal doctor`")
            time.sleep(0.02)
        try:
            write_atomic(self.place.root / "control.url", self.url.encode())
        except OSError as error:
            raise unusable(self.place, error) from error

    def hand_over(self) -> None:
        """Leave as by Ctrl-C, a moment from now, and touch nothing that runs."""
        self.handing_over = True
        threading.Timer(HAND_OVER_S, signal.raise_signal, (signal.SIGINT,)).start()

    def _lost(self, error: CaudalError) -> None:
        """Another process leads: this one leaves as by Ctrl-C, and touches nothing that runs."""
        signal.raise_signal(signal.SIGINT)

    def stop(self, keep_gangs: bool = False) -> list[str]:
        """End the loop, then (unless kept) every gang and every rented machine, then the API. Returns the gangs that
        would not end; `left` has what may still bill."""
        left: list[str] = []
        self.runner.stop(resign=False)
        try:
            if not (keep_gangs or self.handing_over) and self.runner.lost is None:
                left = leave(self.world)
                if rented(self.world):
                    self.left = take_down(self.loop, "rented", GIVE_BACK_S)
        finally:
            self.close()
        return left

    def close(self) -> None:
        """Give the leadership back and end the API."""
        found = self.store.leader()
        if found and found[0].pid == os.getpid():
            self.store.resign(found[1])
        for part in (*self.world.providers.values(), *self.world.drivers.values()):
            if isinstance(part, Closing):
                part.close()
        self._server.should_exit = True
        if self._api.is_alive():
            self._api.join(timeout=5.0)

    def _check_gateway_port(self, specs: Sequence[Spec]) -> None:
        """Raise PortInUse where a gateway is wanted and could not listen, unless it is ours that does."""
        state = self.store.read()
        wanted = [*specs, *(w.spec for w in state.workloads if w.wanted)]
        if not any(isinstance(spec, ServiceSpec) for spec in wanted):
            return
        try:
            alive = {s.gang_id for d in self.world.drivers.values() for s in d.gangs() if s.alive}
        except Unreachable:
            return  # nothing is known of what runs there: the gateway says it itself if it cannot listen
        if all(site.name in elsewhere(self.fleet) for site in self.fleet.sites):
            return  # so it listens on another machine
        if not any(g.role is Role.GATEWAY and g.id in alive for g in state.gangs):
            for port in self.fleet.gateway_ports():
                _listen(self.fleet.gateway.host, port, "the gateway", "gateway.port").close()

    def _serve(self) -> None:
        self._server.run(sockets=[self._listener])

    def _fleet(self, specs: Sequence[Spec], default: FleetSpec | None) -> FleetSpec:
        given = [spec for spec in specs if isinstance(spec, FleetSpec)]
        if len(given) > 1:
            raise UsageError("two fleets are given; one state directory holds one fleet")
        fleet = given[0] if given else (self.store.read().fleet or default)
        if fleet is None:
            raise UsageError(
                "no fleet is known here yet",
                remedy="give a `type: fleet` file: caudal up examples/starter",
            )
        return fleet

    def _launch(self) -> LaunchSettings:
        ensure_certificates(self.place.certificates, (site.name for site in self.fleet.sites))
        certificate, key = self._gateway_door()
        return LaunchSettings(
            api_url=self.url,
            token_file=str(self.place.token_file),
            blobs_url=self.place.blobs_url,
            cache_dir=str(self.place.cache),
            secret=self.place.token(),
            certificates=str(self.place.certificates),
            gateway=self.fleet.gateway,
            gateway_certificate=certificate,
            gateway_key=key,
            gateway_state_file=str(self.place.root / "gateway-routes.json"),
            gateway_dir=str(self.place.root),
            elsewhere=elsewhere(self.fleet),
            ca_file=str(self.place.certificates / AUTHORITY) if self.fleet.api.tls else "",
        )

    def _gateway_door(self) -> tuple[str, str]:
        """The gateway's certificate and key, as files; nothing where it has no TLS."""
        gateway = self.fleet.gateway
        if not gateway.tls:
            return "", ""
        if gateway.certificate:
            own = (gateway.certificate, gateway.certificate_key)
            return str(Path(own[0]).expanduser()), str(Path(own[1]).expanduser())
        certificate, key = ensure_door(self.place.certificates, GATEWAY, gateway.host)
        return str(certificate), str(key)

    def _app(self) -> FastAPI:
        app = create_app(
            Context(
                store=self.store,
                models=self.models,
                drivers=self.world.drivers,
                clock=self.clock,
                token=self.place.token(),
                version=caudal.__version__,
                poke=self.runner.poke,
                hosts=LOOPBACK | {self.fleet.api.host},
                public=self.fleet.api.host not in LOOPBACK,
                leave=self.hand_over,
                seen=lambda: self.loop.seen,
                rules=self.settings.rules,
            )
        )
        if self.fleet.api.host not in LOOPBACK:
            return app  # the page is for this machine: it shows all, and asks for no token
        if importlib.util.find_spec("nicegui"):
            gateway = self.fleet.gateway
            trusted = trusting(self.place.certificates) if gateway.tls else True
            page.mount(app, self.url, gateway.url(gateway.port), trusted)
        else:
            page.mount_without(app)
        return app
