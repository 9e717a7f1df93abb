"""A cloud as a process of its own: its inventory lives there and nowhere else. Lists lag, answers get lost.

`python -m tests.support.inventory` prints its port, and keeps machines until it is killed. `InventoryProvider` is the
`ports.Provider` over it. What it truly has, listed or not, is at `/truth`.
"""

from __future__ import annotations

import json
import random
import sys
import threading
import time
import urllib.error
import urllib.request
from collections.abc import Sequence
from decimal import Decimal
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from typing import Any

from caudal.domain.errors import Unreachable
from caudal.domain.fleet import Machine, MachineState, MachineType, Market, Offer, Resources

LAG_S = 0.4
END_S = 0.1
LOST = 0.1
"""The share of calls that change something and are lost; of as many only the answer is."""

SITE = "cloud"


class Inventory:
    """Machines by id: lease, when they are listed, when they are gone."""

    def __init__(self, seed: int) -> None:
        self.lock = threading.Lock()
        self.machines: dict[str, dict[str, Any]] = {}
        self.faulty = True
        self.chance = random.Random(seed)

    def call(self, path: str, body: dict[str, Any]) -> tuple[Any, bool]:
        """The answer, and whether it gets lost."""
        with self.lock:
            now = time.monotonic()
            if path == "/calm":
                self.faulty = False
                return {}, False
            if path in ("/machines", "/truth"):
                return [m for m in self._there(now) if path == "/truth" or now >= m["listed_at"]], False
            luck = self.chance.random() if self.faulty else 1.0
            if luck >= LOST:
                self._change(path, body, now)
            return {}, luck < 2 * LOST

    def _there(self, now: float) -> list[dict[str, Any]]:
        return [m for m in self.machines.values() if m["gone_at"] is None or now < m["gone_at"]]

    def _change(self, path: str, body: dict[str, Any], now: float) -> None:
        if path == "/acquire":
            if not any(m["token"] == body["token"] for m in self.machines.values()):
                machine_id = f"vm-{len(self.machines) + 1}"
                listed_at = now + self.chance.uniform(0.0, LAG_S)
                row = {"id": machine_id, **body, "listed_at": listed_at, "gone_at": None}
                self.machines[machine_id] = row
        elif body["id"] in self.machines and self.machines[body["id"]]["gone_at"] is None:
            self.machines[body["id"]]["gone_at"] = now + END_S


def serve(seed: int) -> None:
    """Answer until killed."""
    inventory = Inventory(seed)

    class Handler(BaseHTTPRequestHandler):
        """One call."""

        def do_POST(self) -> None:
            body = json.loads(self.rfile.read(int(self.headers["content-length"])))
            answer, lost = inventory.call(self.path, body)
            if lost:
                self.close_connection = True
                return
            raw = json.dumps(answer).encode()
            self.send_response(200)
            self.send_header("content-length", str(len(raw)))
            self.end_headers()
            self.wfile.write(raw)

        def log_message(self, *_args: object) -> None:
            """Nothing."""

    server = ThreadingHTTPServer(("127.0.0.1", 0), Handler)
    print(server.server_address[1], flush=True)
    server.serve_forever()


class InventoryProvider:
    """Implements `ports.Provider` over HTTP."""

    def __init__(self, port: int) -> None:
        self._url = f"http://127.0.0.1:{port}"
        self._open = urllib.request.build_opener(urllib.request.ProxyHandler({})).open

    def offers(self) -> Sequence[Offer]:
        """One, without bound."""
        kind = MachineType("vm", Resources(2.0, 8 << 30))
        return [Offer("vm@cloud", SITE, kind, Market.ON_DEMAND, Decimal("1.25"), "test", "2026-01-01")]

    def acquire(self, lease_id: str, offer: Offer, token: str) -> None:
        """Ask for a machine."""
        self.ask("/acquire", {"lease": lease_id, "token": token})

    def release(self, machine_id: str) -> None:
        """Give it back."""
        self.ask("/release", {"id": machine_id})

    def machines(self) -> Sequence[Machine]:
        """Its own list."""
        rows = self.ask("/machines", {})
        return [_machine(row) for row in rows]

    def truth(self) -> Sequence[Machine]:
        """What is there, listed or not."""
        return [_machine(row) for row in self.ask("/truth", {})]

    def calm(self) -> None:
        """No call is lost from now on."""
        self.ask("/calm", {})

    def ask(self, path: str, body: dict[str, Any]) -> Any:
        """The answer. Raises Unreachable."""
        request = urllib.request.Request(self._url + path, json.dumps(body).encode(), method="POST")
        try:
            with self._open(request, timeout=5.0) as answer:
                return json.loads(answer.read())
        except (OSError, urllib.error.URLError, ValueError) as error:
            raise Unreachable(f"no answer to {path}", why=str(error)) from error


def _machine(row: dict[str, Any]) -> Machine:
    state = MachineState.RUNNING if row["gone_at"] is None else MachineState.STOPPING
    return Machine(row["id"], SITE, "vm", state, row["lease"])


if __name__ == "__main__":
    serve(int(sys.argv[1]))
