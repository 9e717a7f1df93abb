"""A host over SSH: one connection that is kept, commands with bounded answers, errors that say what to do.

Host keys are checked against the user's known_hosts, always; keys, agent, jump hosts and names come from the user's own
ssh configuration. Never asks for a password. Knows nothing of claims.
"""

from __future__ import annotations

import asyncio
import threading
from collections.abc import Coroutine
from pathlib import Path
from typing import Any, TypeVar

import asyncssh

from caudal.domain.errors import CaudalError, Failed, NotAllowed, Unreachable
from caudal.domain.fleet import HostSpec

CONNECT_S = 4.0
ANSWER_S = 6.0
KEEPALIVE_S = 3.0
MAX_ANSWER_BYTES = 1 << 20
T = TypeVar("T")

SETTINGS = (asyncssh.ConfigParseError, asyncssh.KeyImportError, asyncssh.KeyEncryptionError)
"""The user's own ssh configuration or key cannot be used: no other host is at fault for it."""


class LoopThread:
    """An event loop in a thread of its own, for ports whose methods block."""

    def __init__(self, name: str) -> None:
        self._loop = asyncio.new_event_loop()
        self._thread = threading.Thread(target=self._loop.run_forever, name=name, daemon=True)
        self._thread.start()

    def run(self, work: Coroutine[Any, Any, T], within_s: float) -> T:
        """The result. Raises what it raises, or Unreachable after `within_s`."""
        future = asyncio.run_coroutine_threadsafe(work, self._loop)
        try:
            return future.result(within_s)
        except TimeoutError as error:
            future.cancel()
            raise Unreachable(f"no answer within {within_s:.0f} s", where="hosts") from error

    def close(self) -> None:
        """End the loop and its thread."""
        self._loop.call_soon_threadsafe(self._loop.stop)
        self._thread.join(5.0)
        if not self._thread.is_alive():
            self._loop.close()


class Remote:
    """One host. Its coroutines run on one loop. `config`: an ssh configuration instead of the user's own."""

    def __init__(self, spec: HostSpec, config: Path | None = None) -> None:
        self.spec = spec
        self._config: Any = () if config is None else [str(config)]
        self._connection: asyncssh.SSHClientConnection | None = None
        self._connecting = asyncio.Lock()

    @property
    def where(self) -> str:
        """How it is called in errors."""
        return f"host {self.spec.name} ({self.spec.address or self.spec.name})"

    async def run(self, script: str, given: str = "", within_s: float = ANSWER_S) -> str:
        """What a shell script prints, with `given` on its standard input. Raises Unreachable (no answer: it may
        have run), NotAllowed (key or host key), Failed (it ended with a code)."""
        try:
            async with asyncio.timeout(within_s + CONNECT_S):
                return await self._run(script, given, within_s)
        except (TimeoutError, OSError, asyncssh.Error, *SETTINGS) as error:
            await self.drop()
            raise self._explained(error) from error

    async def _run(self, script: str, given: str, within_s: float) -> str:
        connection = await self._connected()
        async with asyncio.timeout(within_s):
            process = await connection.create_process(script, encoding=None)
            process.stdin.write(given.encode())
            process.stdin.write_eof()
            out, said = await asyncio.gather(_bounded(process.stdout), _bounded(process.stderr))
            await process.wait_closed()
        code = process.exit_status
        if code is None:
            raise Unreachable("the connection ended before the answer", where=self.where)
        if code != 0:
            raise Failed(
                f"a command ended with code {code}",
                where=self.where,
                why=said.decode(errors="replace").strip()[-400:],
            )
        return out.decode(errors="replace")

    async def drop(self) -> None:
        """Forget the connection."""
        connection, self._connection = self._connection, None
        if connection is not None:
            connection.abort()

    async def _connected(self) -> asyncssh.SSHClientConnection:
        async with self._connecting:
            if self._connection is None or self._connection.is_closed():
                spec = self.spec
                self._connection = await asyncssh.connect(
                    spec.address or spec.name,
                    port=spec.port if spec.port != 22 else (),
                    username=spec.user or (),
                    config=self._config,
                    connect_timeout=CONNECT_S,
                    login_timeout=CONNECT_S,
                    keepalive_interval=KEEPALIVE_S,
                    keepalive_count_max=2,
                    password_auth=False,
                    kbdint_auth=False,
                    x11_forwarding=False,
                    agent_forwarding=False,
                )
            return self._connection

    def _explained(self, error: Exception) -> CaudalError:
        if isinstance(error, asyncssh.HostKeyNotVerifiable):
            return NotAllowed(
                "the host key is not the known one",
                where=self.where,
                why=str(error),
                remedy=f"compare its fingerprint with its owner's, then log in once: ssh {self.spec.address}",
            )
        if isinstance(error, asyncssh.PermissionDenied):
            return NotAllowed(
                "the host does not let us in",
                where=self.where,
                why=error.reason[:300],
                remedy="put the public key into its ~/.ssh/authorized_keys, or load yours into the agent (ssh-add)",
            )
        if isinstance(error, SETTINGS):
            return NotAllowed(
                "the ssh configuration or a key of it cannot be used",
                where=self.where,
                why=str(error)[:300],
                remedy="correct ~/.ssh/config; load an encrypted key into the agent (ssh-add)",
            )
        why = "no answer in time" if isinstance(error, TimeoutError) else f"{type(error).__name__}: {error}"
        return Unreachable(
            "the host does not answer",
            where=self.where,
            why=why[:300],
            remedy="see whether it is on, and its network",
        )


async def _bounded(stream: asyncssh.SSHReader[bytes]) -> bytes:
    """All that is printed, up to the bound; more is not waited for."""
    parts, size = [], 0
    while size <= MAX_ANSWER_BYTES and (part := await stream.read(65536)):
        parts.append(part)
        size += len(part)
    if size > MAX_ANSWER_BYTES:
        raise Failed(f"an answer is over {MAX_ANSWER_BYTES} bytes")
    return b"".join(parts)
