"""The gate behind a port of this machine: in a thread of a test, or as a process of its own (`__main__`)."""

from __future__ import annotations

import threading
from pathlib import Path
from typing import Any

from caudal.domain.errors import PortInUse
from caudal.providers.aws_fake.gate import Gate
from caudal.providers.aws_fake.world import World

HOST = "127.0.0.1"
TICK_S = 0.2


class FakeServer:
    """Listens from the start on. `folder` as the gate's. `port` 0: any that is free. Raises PortInUse."""

    def __init__(self, port: int = 0, folder: Path | None = None, world: World | None = None) -> None:
        from werkzeug.serving import WSGIRequestHandler, make_server  # noqa: PLC0415 - comes with moto's server

        class Quiet(WSGIRequestHandler):
            """Says nothing of the requests: they are signed."""

            def log_request(self, code: int | str = "-", size: int | str = "-") -> None:
                """Nothing."""

        self.gate = Gate(folder, world)
        try:
            self._server: Any = make_server(HOST, port, self.gate, threaded=True, request_handler=Quiet)
        except (OSError, SystemExit) as error:  # werkzeug leaves the process where the port is taken
            raise PortInUse(f"the fake of AWS cannot listen on {HOST}:{port}", why=str(error)) from error
        self.port = int(self._server.port)
        self.url = f"http://{HOST}:{self.port}"
        self._ended = threading.Event()
        self._threads = [
            threading.Thread(target=self._server.serve_forever, name="aws-fake", daemon=True),
            threading.Thread(target=self._tick, name="aws-fake-time", daemon=True),
        ]
        for thread in self._threads:
            thread.start()

    def close(self) -> None:
        """Stop listening and end every machine."""
        self._ended.set()
        self.gate.close()
        self._server.shutdown()
        self._server.server_close()
        for thread in self._threads:
            thread.join(10.0)

    def _tick(self) -> None:
        while not self._ended.wait(TICK_S):
            self.gate.move_on()
