"""The team's own machines on loopback: one real SSH server for each, which runs real commands in a home of its own."""

from __future__ import annotations

import asyncio
import os
import subprocess
import threading
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import asyncssh

from caudal.domain.fleet import HostSpec, ProviderSpec, Resources
from caudal.providers.hosts import HostsProvider
from caudal.providers.hosts.provider import Bootstrap

FLEET = "lab"


@dataclass
class OwnHost:
    """One server. `mode`: `` answers; `lost` runs commands and never says what they printed; `mute` takes
    connections and says nothing."""

    name: str
    folder: Path
    site: str
    key: Any = field(default_factory=lambda: asyncssh.generate_private_key("ssh-ed25519"))
    port: int = 0
    mode: str = ""
    commands: int = 0
    server: Any = None
    connections: list[Any] = field(default_factory=list)

    @property
    def home(self) -> Path:
        return self.folder / self.name

    @property
    def claim(self) -> Path:
        return self.home / ".caudal" / "claim.json"

    def spec(self) -> HostSpec:
        small = Resources(cpus=1.0, memory_bytes=1 << 30)
        return HostSpec(self.name, self.site, "127.0.0.1", small, user="me", port=self.port)

    async def serve(self, process: Any) -> None:
        """Run a command as sshd does: in a shell of the user, in their home."""
        self.commands += 1
        done = await asyncio.to_thread(
            subprocess.run,
            ["/bin/sh", "-c", process.command or "true"],
            input=await process.stdin.read(),
            capture_output=True,
            cwd=self.home,
            env={
                "HOME": str(self.home),
                **{k: os.environ[k] for k in ("PATH", "PYTHONPATH") if k in os.environ},
            },
        )
        if self.mode == "lost":
            process.channel.get_connection().abort()
            return
        process.stdout.write(done.stdout)
        process.stderr.write(done.stderr)
        process.exit(done.returncode)


class Noting(asyncssh.SSHServer):  # type: ignore[misc]
    """Keeps the connections, so that they can be cut."""

    def __init__(self, host: OwnHost) -> None:
        self._host = host

    def connection_made(self, conn: asyncssh.SSHServerConnection) -> None:
        self._host.connections.append(conn)


class OwnHosts:
    """Servers, a key that they let in, and an ssh configuration that names both."""

    def __init__(self, folder: Path, sites: dict[str, str]) -> None:
        folder.mkdir(parents=True, exist_ok=True)
        self.folder = folder
        self.ours = asyncssh.generate_private_key("ssh-ed25519")
        self.ours.write_private_key(str(folder / "id"))
        (folder / "id").chmod(0o600)
        (folder / "authorized").write_bytes(self.ours.export_public_key())
        self.loop = asyncio.new_event_loop()
        self.thread = threading.Thread(target=self.loop.run_forever, name="ssh servers", daemon=True)
        self.thread.start()
        self.mute: list[Any] = []
        self.hosts = {name: OwnHost(name, folder, site) for name, site in sites.items()}
        for host in self.hosts.values():
            host.home.mkdir()
            self.up(host.name)
        lines = [
            f"[127.0.0.1]:{h.port} {h.key.export_public_key().decode().strip()}" for h in self.hosts.values()
        ]
        (folder / "known").write_text("\n".join(lines) + "\n")
        (folder / "config").write_text(
            f"IdentityFile {folder / 'id'}\nUserKnownHostsFile {folder / 'known'}\nIdentityAgent none\n"
        )

    def call(self, work: Any) -> Any:
        return asyncio.run_coroutine_threadsafe(work, self.loop).result(20)

    def up(self, name: str) -> None:
        """Listen (again), at the port that it had."""
        host = self.hosts[name]

        async def listen() -> None:
            host.server = await asyncssh.listen(
                "127.0.0.1", host.port, server_host_keys=[host.key], encoding=None, reuse_address=True,
                authorized_client_keys=str(self.folder / "authorized"), process_factory=host.serve,
                server_factory=lambda: Noting(host),
            )  # fmt: skip
            host.port = int(host.server.sockets[0].getsockname()[1])

        if host.server is None:
            self.call(listen())

    def down(self, name: str, mute: bool = False) -> None:
        """Stop listening, and end its connections. `mute`: then take connections and say nothing."""
        host = self.hosts[name]

        async def close() -> None:
            host.server.close()
            while host.connections:
                host.connections.pop().abort()
            await host.server.wait_closed()
            host.server = None
            if mute:
                self.mute.append(
                    await asyncio.start_server(lambda r, w: asyncio.sleep(60), "127.0.0.1", host.port)
                )

        if host.server is not None:
            self.call(close())

    def silence(self, on: bool) -> None:
        """All of them."""
        for name in self.hosts:
            self.down(name) if on else self.up(name)

    def provider(self, bootstrap: Bootstrap | None = None, fleet: str = FLEET) -> HostsProvider:
        """A provider over all of them; a fleet has a memory of its own."""
        spec = ProviderSpec("own", "hosts", hosts=tuple(h.spec() for h in self.hosts.values()))
        memory = self.folder / "memory" / fleet
        return HostsProvider(spec, fleet, memory, "2026-01-01", bootstrap, self.folder / "config")

    def close(self) -> None:
        for name in self.hosts:
            self.down(name)
        for server in self.mute:
            self.loop.call_soon_threadsafe(server.close)
        self.loop.call_soon_threadsafe(self.loop.stop)
        self.thread.join(10)


@contextmanager
def own_hosts(folder: Path, **sites: str) -> Iterator[OwnHosts]:
    """Hosts by name, each with its site, for as long as the block lasts."""
    built = OwnHosts(folder, sites or {"one": "north", "two": "north"})
    try:
        yield built
    finally:
        built.close()
