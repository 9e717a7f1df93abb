"""A link test between nodes, over plain TCP: how long a byte takes, and how many come through a second.

Whoever connects sends 8 bytes with a length (at most MAX_BYTES), then so many bytes, and gets one byte back. Carries
nothing that matters; the answering end reads, counts and throws away.
"""

from __future__ import annotations

import socket
import struct
import threading
import time
from dataclasses import dataclass

MAX_BYTES = 256 << 20
TEST_BYTES = 32 << 20
PATIENCE_S = 10.0
AT_ONCE = 8
HEAD = struct.Struct("!Q")


@dataclass(frozen=True, slots=True)
class Link:
    """One peer: the shortest round trip of some, and what came through."""

    peer: str
    round_trip_s: float
    bytes_per_s: float


class Answering:
    """Answers other nodes' tests at `host:port` (port 0: any), in threads, until it is closed."""

    def __init__(self, address: str) -> None:
        host, _, port = address.rpartition(":")
        self._listener = socket.create_server((host, int(port)), backlog=AT_ONCE)
        self.address = f"{host}:{self._listener.getsockname()[1]}"
        self._room = threading.BoundedSemaphore(AT_ONCE)
        threading.Thread(target=self._take, name="links", daemon=True).start()

    def close(self) -> None:
        """Take no more."""
        self._listener.close()

    def _take(self) -> None:
        while True:
            try:
                peer, _ = self._listener.accept()
            except OSError:
                return
            if self._room.acquire(blocking=False):
                threading.Thread(target=self._answer, args=(peer,), daemon=True).start()
            else:
                peer.close()

    def _answer(self, peer: socket.socket) -> None:
        try:
            with peer:
                peer.settimeout(PATIENCE_S)
                while head := _exactly(peer, HEAD.size):
                    left = int(HEAD.unpack(head)[0])
                    if left > MAX_BYTES:
                        return
                    while left:
                        part = peer.recv(min(left, 1 << 20))
                        if not part:
                            return
                        left -= len(part)
                    peer.sendall(b"!")
        except OSError:
            return  # whoever tests sees it
        finally:
            self._room.release()


def measured(address: str, size: int = TEST_BYTES) -> Link | None:
    """Test the link to a peer; None where it does not answer."""
    host, _, port = address.rpartition(":")
    try:
        with socket.create_connection((host, int(port)), timeout=PATIENCE_S) as peer:
            peer.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)
            trips = [_timed(peer, 1) for _ in range(5)]
            return Link(address, min(trips), size / max(_timed(peer, size), 1e-9))
    except (OSError, ValueError):
        return None


def _timed(peer: socket.socket, size: int) -> float:
    begun, block = time.monotonic(), bytes(1 << 20)
    peer.sendall(HEAD.pack(size))
    left = size
    while left:
        part = block[: min(left, len(block))]
        peer.sendall(part)
        left -= len(part)
    if peer.recv(1) != b"!":
        raise OSError("the peer ended the test")
    return time.monotonic() - begun


def _exactly(peer: socket.socket, count: int) -> bytes:
    """So many bytes; empty where the peer ends."""
    taken = b""
    while len(taken) < count:
        part = peer.recv(count - len(taken))
        if not part:
            return b""
        taken += part
    return taken
