"""`python -m caudal.providers.azure_fake --port N`: the fake as a process of its own, on the loopback only."""

from __future__ import annotations

import argparse
import asyncio
import os
import secrets
import socket
import sys
import tempfile
import threading
from pathlib import Path

import uvicorn

from caudal.providers.azure_fake import TOKEN_VARIABLE
from caudal.providers.azure_fake.app import App
from caudal.providers.azure_fake.machines import NoMachines, Processes
from caudal.providers.azure_fake.world import Times, World

HOST = "127.0.0.1"


def main() -> None:
    """Serve until a signal, or until standard input closes where that was asked for."""
    parser = argparse.ArgumentParser(prog="python -m caudal.providers.azure_fake", description=__doc__)
    parser.add_argument("--port", type=int, default=8620, help="0: a free one (default: %(default)s)")
    parser.add_argument("--processes", action="store_true", help="a local process for each machine")
    parser.add_argument("--work-dir", type=Path, help="where machines keep their files (default: a new one)")
    parser.add_argument("--boot-s", type=float, default=Times.boot_s, help="from asked for to running")
    parser.add_argument("--delete-s", type=float, default=Times.delete_s, help="from asked for to gone")
    parser.add_argument("--until-stdin-closes", action="store_true", help="end with who started it")
    asked = parser.parse_args()
    with tempfile.TemporaryDirectory(prefix="caudal-azure-") as own_dir:
        machines = Processes(asked.work_dir or Path(own_dir)) if asked.processes else NoMachines()
        world = World(machines, Times(boot_s=asked.boot_s, delete_s=asked.delete_s))
        try:
            token = os.environ.get(TOKEN_VARIABLE, "")
            if asked.processes and not token:  # started by hand: whoever started it may know
                token = secrets.token_urlsafe(24)
                print(f"{TOKEN_VARIABLE}={token}", flush=True)
            _serve(App(world, token), asked.port, asked.until_stdin_closes)
        finally:
            machines.stop_all()


def _serve(app: App, port: int, until_stdin_closes: bool) -> None:
    listener = socket.socket()
    listener.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
    listener.bind((HOST, port))
    app.url = f"http://{HOST}:{listener.getsockname()[1]}"
    config = uvicorn.Config(app, log_level="error", lifespan="off", timeout_graceful_shutdown=1)
    server = uvicorn.Server(config)
    if until_stdin_closes:
        threading.Thread(target=_watch_stdin, args=(server,), daemon=True).start()
    asyncio.run(_run(server, app, listener))


async def _run(server: uvicorn.Server, app: App, listener: socket.socket) -> None:
    ticking = asyncio.create_task(app.tick())
    listener.listen(512)  # from here on a connection waits instead of being refused
    print(f"ready {app.url}", flush=True)
    try:
        await server.serve(sockets=[listener])
    finally:
        ticking.cancel()


def _watch_stdin(server: uvicorn.Server) -> None:
    while os.read(sys.stdin.fileno(), 1024):
        pass
    server.should_exit = True


if __name__ == "__main__":
    main()
