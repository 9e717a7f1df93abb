"""The process behind `wan.Wan`: network namespaces, one TUN device in each, and the road between them.

    python wan_router.py OPTIONS_AS_JSON

The namespaces have no names: they are held by this process's file descriptors and by the processes that run
inside, so nothing is left of them when those are gone, however they end. Large TCP segments are taken from
the kernel whole (as a network card would take them) and are cut up in the accounts only, which is what makes
100 Mbit/s cheap. Reads orders, one JSON list a line, from stdin; answers each with one line; ends, with
everything that runs in its namespaces, when stdin ends.
"""

from __future__ import annotations

import ctypes
import fcntl
import heapq
import itertools
import json
import os
import random
import select
import signal
import struct
import subprocess
import sys
import time
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

DEVICE = "wan0"
MTU = 1500
CLONE_NEWNET = 0x40000000
TUNSETIFF, IFF_TUN, IFF_NO_PI, IFF_VNET_HDR = 0x400454CA, 0x0001, 0x1000, 0x4000
TUNSETOFFLOAD, TUN_F_CSUM, TUN_F_TSO4 = 0x400454D0, 0x01, 0x02
VIRTIO_HEADER = struct.Struct("<BBHHHH")  # flags, gso_type, hdr_len, gso_size, csum_start, csum_offset
SEGMENT_S = 0.002
"""A large segment occupies the line for at most so long: it is delivered whole, when its last byte is."""

TICK_S = 0.001
"""The router looks at most so often: what came and what is due meanwhile is moved together. Waking up is most
of what it costs."""

_libc = ctypes.CDLL(None, use_errno=True)


@dataclass(frozen=True)
class Options:
    """See `wan.Wan`. `up_mbit` and `down_mbit` have a rate for each site; 0 is unlimited."""

    sites: list[str]
    delay_ms: float
    jitter_ms: float
    loss: float
    queue_ms: float
    up_mbit: dict[str, float]
    down_mbit: dict[str, float]
    seed: int


@dataclass
class Port:
    """One site's end of the road."""

    site: str
    namespace: int
    tun: int
    up_bytes_per_s: float
    down_bytes_per_s: float
    up_free_at: float = 0.0
    down_free_at: float = 0.0
    counts: dict[str, int] = field(default_factory=lambda: {"sent": 0, "received": 0, "dropped": 0})


def _check(result: int, what: str) -> None:
    if result:
        number = ctypes.get_errno()
        raise OSError(number, f"{what}: {os.strerror(number)}")


def move_thread(namespace: int) -> None:
    """Put the calling thread into the network namespace of this descriptor."""
    _check(_libc.setns(namespace, CLONE_NEWNET), "setns")


def open_port(number: int, site: str, options: Options) -> Port:
    """A new namespace with the address 10.77.0.`number` on its device."""
    home = os.open("/proc/self/ns/net", os.O_RDONLY)
    _check(_libc.unshare(CLONE_NEWNET), "unshare")
    try:
        namespace = os.open("/proc/self/ns/net", os.O_RDONLY)
        tun = os.open("/dev/net/tun", os.O_RDWR | os.O_NONBLOCK)
        flags = IFF_TUN | IFF_NO_PI | IFF_VNET_HDR
        fcntl.ioctl(tun, TUNSETIFF, struct.pack("16sH", DEVICE.encode(), flags))
        rate = options.up_mbit.get(site, 0.0) * 1e6 / 8
        # A lost large segment would be many lost packets at once: with loss, each packet stands for itself.
        fcntl.ioctl(tun, TUNSETOFFLOAD, TUN_F_CSUM | (0 if options.loss else TUN_F_TSO4))
        largest = int(min(65_536, max(2 * MTU, rate * SEGMENT_S))) if rate else 65_536
        for words in (
            f"addr add 10.77.0.{number}/24 dev {DEVICE}",
            f"link set {DEVICE} mtu {MTU} txqueuelen 4000 gso_max_size {largest} up",
            "link set lo up",
        ):
            subprocess.run(["ip", *words.split()], check=True)
    finally:
        move_thread(home)
        os.close(home)
    return Port(site, namespace, tun, rate, options.down_mbit.get(site, 0.0) * 1e6 / 8)


def wire_bytes(header: bytes, packet: bytes) -> int:
    """What the packet weighs on the wire, where each of its segments has headers of its own."""
    gso_type, segment = header[1], header[4] | header[5] << 8
    if not gso_type or not segment:
        return len(packet)
    ip_bytes = (packet[0] & 15) * 4
    headers = ip_bytes + (packet[ip_bytes + 12] >> 4) * 4
    payload = len(packet) - headers
    return payload + headers * -(-payload // segment)


class Router:
    """Moves packets; knows nothing of what they carry."""

    def __init__(self, options: Options) -> None:
        self.options = options
        self.ports = {n: open_port(n, site, options) for n, site in enumerate(options.sites, 1)}
        self.number_of = {site: n for n, site in enumerate(options.sites, 1)}
        self.cut: set[tuple[int, int]] = set()
        self._by_tun = {port.tun: n for n, port in self.ports.items()}
        self._random = random.Random(options.seed)
        self._flight: list[tuple[float, int, int, int, int, bytes]] = []
        self._last_due: dict[tuple[int, int], float] = {}
        self._count = itertools.count()

    def run(self) -> None:
        """Route until stdin ends."""
        orders, pending = sys.stdin.fileno(), b""
        watched = [orders, *self._by_tun]
        while True:
            now = time.monotonic()
            wait_s = max(0.0, self._flight[0][0] - TICK_S / 2 - now) if self._flight else 60.0
            ready, _, _ = select.select(watched, [], [], wait_s)
            now = time.monotonic()
            for descriptor in ready:
                if descriptor != orders:
                    self._take(self._by_tun[descriptor], now)
                    continue
                data = os.read(orders, 65_536)
                if not data:
                    return
                *lines, pending = (pending + data).split(b"\n")
                for line in lines:
                    print(json.dumps(self._order(*json.loads(line))), flush=True)
            self._deliver(now + TICK_S / 2)
            time.sleep(TICK_S)

    def _order(self, verb: str, *names: str) -> Any:
        """`cut A [B]`, `heal [A [B]]`, `bytes`."""
        if verb == "bytes":
            return {port.site: port.counts for port in self.ports.values()}
        numbers = [self.number_of[name] for name in names]
        if len(numbers) == 2:
            pairs = {(numbers[0], numbers[1]), (numbers[1], numbers[0])}
        else:
            of = set(numbers) or set(self.ports)
            pairs = {(a, b) for a in self.ports for b in self.ports if a != b and (a in of or b in of)}
        self.cut = self.cut | pairs if verb == "cut" else self.cut - pairs
        return True

    def _take(self, source: int, now: float) -> None:
        """What a site sent: onto the road, or lost."""
        port = self.ports[source]
        for _ in range(256):
            try:
                data = os.read(port.tun, 65_546)
            except BlockingIOError:
                return
            packet = data[VIRTIO_HEADER.size :]
            target = packet[19] if len(packet) >= 20 and packet[0] >> 4 == 4 else 0
            if target not in self.ports or target == source:
                continue
            size = wire_bytes(data, packet)
            due = self._due(port, self.ports[target], (source, target), size, now)
            if due is None:
                port.counts["dropped"] += size
            else:
                heapq.heappush(self._flight, (due, next(self._count), source, target, size, data))

    def _due(self, port: Port, to: Port, pair: tuple[int, int], size: int, now: float) -> float | None:
        """When the packet arrives; None where it does not. Order is kept on each way."""
        if pair in self.cut or (self.options.loss and self._random.random() < self.options.loss):
            return None
        queue_s, at = self.options.queue_ms / 1e3, now
        if port.up_bytes_per_s:
            start = max(port.up_free_at, now)
            if start - now > queue_s:
                return None
            at = port.up_free_at = start + size / port.up_bytes_per_s
        port.counts["sent"] += size
        at += (self.options.delay_ms + self.options.jitter_ms * self._random.random()) / 1e3
        if to.down_bytes_per_s:
            start = max(to.down_free_at, at)
            if start - at > queue_s:
                return None
            at = to.down_free_at = start + size / to.down_bytes_per_s
        at = self._last_due[pair] = max(at, self._last_due.get(pair, 0.0))
        return at

    def _deliver(self, until: float) -> None:
        while self._flight and self._flight[0][0] <= until:
            _, _, source, target, size, data = heapq.heappop(self._flight)
            port = self.ports[target]
            if (source, target) in self.cut:
                port.counts["dropped"] += size
                continue
            try:
                os.write(port.tun, data)
                port.counts["received"] += size
            except OSError:  # the kernel of the other end has no room: a loss like any other
                port.counts["dropped"] += size


def processes_in(inodes: set[int]) -> list[int]:
    """The pids of all processes whose network namespace is one of these."""
    found = []
    for folder in Path("/proc").iterdir():
        if not folder.name.isdigit() or int(folder.name) == os.getpid():
            continue
        try:
            if (folder / "ns" / "net").stat().st_ino in inodes:
                found.append(int(folder.name))
        except OSError:
            pass  # it ended meanwhile
    return found


def end_processes(inodes: set[int]) -> None:
    """Kill all that runs in these namespaces, and what it starts meanwhile."""
    for _ in range(100):
        pids = processes_in(inodes)
        if not pids:
            return
        for pid in pids:
            try:
                os.kill(pid, signal.SIGKILL)
            except ProcessLookupError:
                pass
        time.sleep(0.01)


def main() -> None:
    """Open the namespaces, say where they are, route, and leave nothing behind."""
    signal.signal(signal.SIGINT, signal.SIG_IGN)  # Ctrl-C is for our parent, which closes stdin
    try:
        os.nice(-10)  # a road does not wait for the cars
    except OSError:
        pass
    router = Router(Options(**json.loads(sys.argv[1])))
    inodes = {os.fstat(port.namespace).st_ino for port in router.ports.values()}
    try:
        said = {p.site: [p.namespace, os.fstat(p.namespace).st_ino] for p in router.ports.values()}
        print(json.dumps(said), flush=True)
        router.run()
    finally:
        end_processes(inodes)


if __name__ == "__main__":
    main()
