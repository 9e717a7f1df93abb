#!/usr/bin/env python3
"""A wide-area network on one Linux machine, as root, without the kernel's netem.

    with Wan(["a", "b"], delay_ms=30, mbit=100) as wan:
        process = wan.popen("a", ["python", "server.py", wan.address("a")])
        wan.cut("b")       # silence: no FIN, no RST
        wan.heal("b")
        wan.bytes()        # {"a": {"sent": ..., "received": ..., "dropped": ...}, ...}

or by hand, with the same words on stdin while it runs:

    sudo python tests/support/wan.py a,b --delay-ms 30 --mbit 100

Every site is a network namespace with the address 10.77.0.N (N counts from 1) on the device `wan0`; sites
see each other and nothing else. Any number of WANs run side by side. The namespaces and all that runs in
them go when the WAN is closed, and also when the process that made it is killed.
"""

from __future__ import annotations

import argparse
import json
import os
import shutil
import socket
import subprocess
import sys
import threading
from collections.abc import Mapping, Sequence
from pathlib import Path
from types import TracebackType
from typing import Any

if not __package__:  # as a program: the repository is not on the path yet
    sys.path.insert(0, str(Path(__file__).resolve().parents[2]))

from tests.support.wan_router import DEVICE, Options, end_processes, move_thread, processes_in

ROUTER = Path(__file__).with_name("wan_router.py")

__all__ = ["DEVICE", "Wan", "unusable"]


def unusable() -> str:
    """Why there can be no WAN on this machine; empty where there can."""
    if not sys.platform.startswith("linux"):
        return "the WAN rig needs Linux"
    if os.geteuid() != 0:
        return "the WAN rig needs root (network namespaces and a TUN device)"
    missing = [tool for tool in ("ip", "nsenter", "unshare") if shutil.which(tool) is None]
    if missing:
        return f"the WAN rig needs {', '.join(missing)} (packages iproute2 and util-linux)"
    if not Path("/dev/net/tun").exists():
        return "the WAN rig needs /dev/net/tun"
    if subprocess.run(["unshare", "--net", "true"], capture_output=True, check=False).returncode:
        return "the WAN rig may not make network namespaces here"
    return ""


class Wan:
    """Sites joined by an emulated WAN; open while the `with` block runs.

    `delay_ms` is one way, so a round trip costs twice that; `jitter_ms` adds up to so much more, evenly,
    in order. `mbit` is what each site can send (0: no limit; a mapping: for each site), `down_mbit` what it
    can receive. A line's queue holds `queue_ms`; what does not fit is lost, as is each packet with the
    probability `loss`.
    """

    def __init__(
        self,
        sites: Sequence[str],
        *,
        delay_ms: float = 0.0,
        mbit: float | Mapping[str, float] = 0.0,
        down_mbit: float | Mapping[str, float] = 0.0,
        jitter_ms: float = 0.0,
        loss: float = 0.0,
        queue_ms: float = 250.0,
        seed: int = 1,
    ) -> None:
        assert 2 <= len(set(sites)) == len(sites) <= 250, "two sites or more, each named once"
        self.sites = list(sites)
        self._options = Options(
            sites=self.sites,
            delay_ms=delay_ms,
            jitter_ms=jitter_ms,
            loss=loss,
            queue_ms=queue_ms,
            up_mbit=_each(mbit, sites),
            down_mbit=_each(down_mbit, sites),
            seed=seed,
        )
        self._router: subprocess.Popen[bytes] | None = None
        self._where: dict[str, tuple[int, int]] = {}
        self._lock = threading.Lock()

    def __enter__(self) -> Wan:
        reason = unusable()
        if reason:
            raise OSError(reason)
        command = [sys.executable, "-S", str(ROUTER), json.dumps(vars(self._options))]
        router = subprocess.Popen(command, stdin=subprocess.PIPE, stdout=subprocess.PIPE)
        assert router.stdin is not None and router.stdout is not None
        self._router = router
        said = router.stdout.readline()
        if not said:
            self.close()
            raise OSError("the WAN's router did not start; its last words are above")
        self._where = {site: (at[0], at[1]) for site, at in json.loads(said).items()}
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self.close()

    def close(self) -> None:
        """End everything that runs in the namespaces, and the namespaces."""
        router, self._router = self._router, None
        if router is None:
            return
        assert router.stdin is not None and router.stdout is not None
        router.stdin.close()
        try:
            router.wait(10.0)
        except subprocess.TimeoutExpired:
            router.kill()
            router.wait()
        router.stdout.close()
        end_processes({inode for _, inode in self._where.values()})  # nothing, unless the router was killed

    def address(self, site: str) -> str:
        """The site's IPv4 address."""
        return f"10.77.0.{self.sites.index(site) + 1}"

    def enter(self, site: str) -> list[str]:
        """The words before a command that make it run at the site. It keeps its pid."""
        assert self._router is not None, "the WAN is not open"
        return ["nsenter", f"--net=/proc/{self._router.pid}/fd/{self._where[site][0]}", "--"]

    def popen(self, site: str, argv: Sequence[str], **more: Any) -> subprocess.Popen[Any]:
        """`subprocess.Popen` at the site."""
        return subprocess.Popen([*self.enter(site), *argv], **more)

    def socket(self, site: str, kind: socket.SocketKind = socket.SOCK_STREAM) -> socket.socket:
        """A socket of this process that lives at the site."""
        assert self._router is not None, "the WAN is not open"
        there = os.open(f"/proc/{self._router.pid}/fd/{self._where[site][0]}", os.O_RDONLY)
        home = os.open("/proc/thread-self/ns/net", os.O_RDONLY)
        try:
            move_thread(there)
            try:
                return socket.socket(socket.AF_INET, kind)
            finally:
                move_thread(home)
        finally:
            os.close(there)
            os.close(home)

    def pids(self, site: str) -> list[int]:
        """All processes at the site, whoever started them."""
        return processes_in({self._where[site][1]})

    def kill_site(self, site: str) -> None:
        """`kill -9` for everything at the site: what a lost provider looks like, with its network still up."""
        end_processes({self._where[site][1]})

    def cut(self, *sites: str) -> None:
        """Silence: all packets from and to the site are lost; of two sites, those between them."""
        assert 1 <= len(sites) <= 2
        self._ask("cut", *sites)

    def heal(self, *sites: str) -> None:
        """Undo what was cut of this site, between these two, or everywhere."""
        self._ask("heal", *sites)

    def bytes(self) -> dict[str, dict[str, int]]:
        """What each site sent, received and lost so far, with IP and TCP headers, as it weighs on the wire."""
        answer: dict[str, dict[str, int]] = self._ask("bytes")
        return answer

    def cpu_s(self) -> float:
        """What the router took of a processor so far: part of no site's work."""
        assert self._router is not None, "the WAN is not open"
        fields = Path(f"/proc/{self._router.pid}/stat").read_text().rpartition(")")[2].split()
        return (int(fields[11]) + int(fields[12])) / os.sysconf("SC_CLK_TCK")

    @property
    def router_pid(self) -> int:
        """The router's process."""
        assert self._router is not None, "the WAN is not open"
        return self._router.pid

    def _ask(self, *words: str) -> Any:
        assert self._router is not None, "the WAN is not open"
        assert self._router.stdin is not None and self._router.stdout is not None
        assert set(words[1:]) <= set(self.sites), words
        with self._lock:
            self._router.stdin.write(json.dumps(words).encode() + b"\n")
            self._router.stdin.flush()
            return json.loads(self._router.stdout.readline())


def _each(rate: float | Mapping[str, float], sites: Sequence[str]) -> dict[str, float]:
    return {s: float(rate.get(s, 0.0) if isinstance(rate, Mapping) else rate) for s in sites}


def _said(wan: Wan, line: str) -> str:
    """One line of the command line's user."""
    words = line.split()
    if words[:1] == ["bytes"]:
        return json.dumps(wan.bytes())
    if not words or words[0] not in ("cut", "heal") or not set(words[1:]) <= set(wan.sites):
        return "cut SITE [SITE], heal [SITE [SITE]], bytes; Ctrl-D ends"
    (wan.cut if words[0] == "cut" else wan.heal)(*words[1:])
    return " ".join(words)


def main() -> None:
    """The command line."""
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("sites", type=lambda text: text.split(","), metavar="SITE,SITE...")
    for name, default in (("delay-ms", 30.0), ("mbit", 100.0), ("down-mbit", 0.0), ("queue-ms", 250.0)):
        parser.add_argument(f"--{name}", type=float, default=default)
    for name in ("jitter-ms", "loss"):
        parser.add_argument(f"--{name}", type=float, default=0.0)
    options = vars(parser.parse_args())
    with Wan(options.pop("sites"), **options) as wan:
        for site in wan.sites:
            print(site, wan.address(site), *wan.enter(site), "COMMAND", flush=True)
        print("up", flush=True)
        try:
            for line in sys.stdin:
                print(_said(wan, line), flush=True)
        except KeyboardInterrupt:
            pass


if __name__ == "__main__":
    main()
