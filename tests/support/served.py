"""The control API served on loopback over a real store, and the command line called against it."""

from __future__ import annotations

import contextlib
import json
import socket
import threading
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, replace
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from typing import Any

import pytest
import uvicorn

import caudal
from caudal.api.app import create_app
from caudal.api.context import Context
from caudal.cli import main
from caudal.control.apply import apply
from caudal.domain.event import Event
from caudal.domain.fleet import ApiSpec, FleetSpec, GatewaySpec, SiteSpec
from caudal.domain.gang import Report, Role
from caudal.domain.snapshot import State
from caudal.domain.workload import ServedModel, ServiceSpec, StageSpec, TrainSpec, WorkloadState
from caudal.ports import Change
from caudal.store.blobs import open_blobs
from caudal.store.home import Home
from caudal.store.models import ModelStore
from caudal.store.state import SqlStore, open_store
from tests.support.fleet import free_port
from tests.unit.test_api_app import Clock, Logs
from tests.unit.test_api_views import LEASE, gang

RUN = TrainSpec("starter", "builtin:tinyworld", (StageSpec("pretrain", 100_000),))
SERVICE = ServiceSpec("assistant", (ServedModel("small", source="pypi:x==1"),))
PROGRESS = {"phase": "training", "stage": "pretrain", "round": 7, "loss": 2.125, "tokens_per_s": 12_345.0}


@dataclass(frozen=True, slots=True)
class Told:
    """What a verb answered."""

    code: int
    out: str
    err: str

    @property
    def json(self) -> Any:
        """Its standard output as one JSON document."""
        return json.loads(self.out)


class Served:
    """One state directory and, between `start` and `stop`, a control API over it: a fleet of two sites with
    a run, a service, leases, gangs, reports and events. No loop: what is wanted stays wanted."""

    def __init__(
        self, root: Path, capsys: pytest.CaptureFixture[str], wrap: Callable[[SqlStore], Any] = lambda s: s
    ) -> None:
        self.home = Home(root)
        root.mkdir()
        self._capsys = capsys
        self.gateway_port = free_port()
        self.fleet = FleetSpec(
            "laptop",
            (SiteSpec("north"), SiteSpec("south")),
            gateway=GatewaySpec(port=self.gateway_port),
            api=ApiSpec(port=free_port()),
        )
        self.store = wrap(open_store(self.home.database_url))
        self.models = ModelStore(open_blobs(self.home.blobs_url), self.home.cache / "models")
        self.pokes = 0
        self._server: uvicorn.Server | None = None
        self._thread: threading.Thread | None = None

    def fill(self) -> None:
        """The usual books."""
        apply(self.store, [self.fleet, RUN, SERVICE], 50.0)
        head = gang("starter.coordinator", Role.COORDINATOR, "starter")
        worker = gang("starter.worker.0", Role.WORKER, "starter")
        replica = replace(gang("assistant.replica.small.0", Role.REPLICA, "assistant"), model="small")
        front = gang("gateway.0", Role.GATEWAY, "")
        running = [
            replace(w, state=WorkloadState.RUNNING, reason="as wanted") for w in self.state().workloads
        ]
        self.store.commit(Change(workloads=running, leases=[LEASE], gangs=[head, worker, replica, front]))
        self.store.put_report(Report(head.id, 60.0, PROGRESS))
        self.store.put_report(Report(replica.id, 60.0, {"ready": True, "model": "small"}))
        self.say("[bold]not markup[/] but text")

    def say(self, text: str, subject: str = "starter") -> None:
        """One more event."""
        self.store.commit(Change(events=[Event(60.0, "test.said", subject, text)]))

    def start(self) -> None:
        """Serve the API, and write down where, as a control process does."""
        listener = socket.create_server(("127.0.0.1", 0))
        context = Context(
            store=self.store,
            models=self.models,
            drivers={"north": Logs()},
            clock=Clock(),
            token=self.home.token(),
            version=caudal.__version__,
            poke=self._poke,
        )
        config = uvicorn.Config(
            create_app(context), log_level="error", access_log=False, timeout_graceful_shutdown=1
        )
        self._server = uvicorn.Server(config)
        self._thread = threading.Thread(target=self._server.run, kwargs={"sockets": [listener]}, daemon=True)
        self._thread.start()
        url = f"http://127.0.0.1:{listener.getsockname()[1]}"
        (self.home.root / "control.url").write_text(url)

    def stop(self) -> None:
        """The control process goes."""
        if self._server is not None and self._thread is not None:
            self._server.should_exit = True
            self._thread.join(timeout=10)
            assert not self._thread.is_alive()
            self._server = None

    def caudal(self, *words: str) -> Told:
        """Run a verb in this process, as `caudal` does."""
        self._capsys.readouterr()
        try:
            main(["--home", str(self.home.root), *words])
        except SystemExit as end:
            code = end.code
        out, err = self._capsys.readouterr()
        assert isinstance(code, int)
        return Told(code, out, err)

    def state(self) -> State:
        """What the books hold."""
        state: State = self.store.read()
        return state

    def files(self) -> dict[str, bytes]:
        """Every object of the store, to see that nothing was changed."""
        folder = self.home.root / "blobs"
        return {str(p.relative_to(folder)): p.read_bytes() for p in folder.rglob("*") if p.is_file()}

    def _poke(self) -> None:
        self.pokes += 1


@contextlib.contextmanager
def mock_gateway(
    port: int,
    answers: Sequence[tuple[int, str]],
    models: Sequence[str],
    keys: list[str | None] | None = None,
) -> Iterator[list[Any]]:
    """A stand-in for the gateway: `/v1/models` lists these, each chat gets the next of the answers (status,
    body; `text/event-stream` where the status is 200). Yields the list of what it is asked; `keys` gets the header
    with the key of every request."""
    keys = [] if keys is None else keys
    asked: list[Any] = []
    left = list(answers)

    class Handler(BaseHTTPRequestHandler):
        def do_GET(self) -> None:
            keys.append(self.headers.get("authorization"))
            self._answer(200, json.dumps({"object": "list", "data": [{"id": m} for m in models]}))

        def do_POST(self) -> None:
            asked.append(json.loads(self.rfile.read(int(self.headers["content-length"]))))
            keys.append(self.headers.get("authorization"))
            self._answer(*left.pop(0))

        def _answer(self, status: int, body: str) -> None:
            self.send_response(status)
            self.end_headers()
            self.wfile.write(body.encode())

        def log_message(self, format: str, *args: Any) -> None:
            pass

    server = ThreadingHTTPServer(("127.0.0.1", port), Handler)
    thread = threading.Thread(target=server.serve_forever, args=(0.02,), daemon=True)
    thread.start()
    try:
        yield asked
    finally:
        server.shutdown()
        server.server_close()
        thread.join()
