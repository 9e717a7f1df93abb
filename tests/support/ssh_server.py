"""An SSH server on loopback, for the system's ssh to talk to: it runs each command in a shell, as sshd does."""

from __future__ import annotations

import asyncio
import subprocess
import threading
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any


@dataclass
class SshServer:
    """Where it listens, and what ssh has to be told to trust it and be trusted."""

    address: str
    options: tuple[str, ...]
    silence: Any
    """`silence(True)`: connections are refused from then on; `silence(False)`: they are taken again."""


async def _run(process: Any) -> None:
    done = await asyncio.to_thread(
        subprocess.run,
        ["/bin/sh", "-c", process.command or "true"],
        input=await process.stdin.read(),
        capture_output=True,
    )
    process.stdout.write(done.stdout)
    process.stderr.write(done.stderr)
    process.exit(done.returncode)


@contextmanager
def ssh_server(folder: Path) -> Iterator[SshServer]:
    """A server with keys of its own below `folder`, for as long as the block lasts."""
    import asyncssh

    folder.mkdir(parents=True, exist_ok=True)
    theirs, ours = asyncssh.generate_private_key("ssh-ed25519"), asyncssh.generate_private_key("ssh-ed25519")
    ours.write_private_key(str(folder / "id"))
    (folder / "id").chmod(0o600)
    (folder / "authorized").write_bytes(ours.export_public_key())
    loop = asyncio.new_event_loop()
    thread = threading.Thread(target=loop.run_forever, name="ssh", daemon=True)
    thread.start()
    listening: list[Any] = []

    def call(coroutine: Any) -> Any:
        return asyncio.run_coroutine_threadsafe(coroutine, loop).result(20)

    async def listen(port: int) -> int:
        server = await asyncssh.listen(
            "127.0.0.1", port, server_host_keys=[theirs], authorized_client_keys=str(folder / "authorized"),
            process_factory=_run, encoding=None, reuse_address=True,
        )  # fmt: skip
        listening.append(server)
        return int(server.sockets[0].getsockname()[1])

    async def close() -> None:
        while listening:
            server = listening.pop()
            server.close()
            await server.wait_closed()

    port = call(listen(0))
    known = theirs.export_public_key().decode().strip()
    (folder / "known").write_text(f"[127.0.0.1]:{port} {known}\n")
    options = ("-F", "/dev/null", "-p", str(port), "-i", str(folder / "id"))
    options += ("-o", f"UserKnownHostsFile={folder / 'known'}", "-o", "IdentitiesOnly=yes")
    try:
        yield SshServer(
            "me@127.0.0.1",
            options,
            lambda on: call(close()) if on else None if listening else call(listen(port)),
        )
    finally:
        call(close())
        loop.call_soon_threadsafe(loop.stop)
        thread.join(10)
        loop.close()
