"""`python -m caudal.providers.aws_fake --port N --state DIR`: the fake as a process, until SIGTERM.

With --machines every instance runs its user data as a process of this machine. `DIR/fake.json` says where it listens and
who it is, once it does.
"""

from __future__ import annotations

import argparse
import json
import os
import signal
import sys
import threading
from pathlib import Path

import psutil

from caudal.domain.errors import CaudalError
from caudal.providers.aws_fake.launcher import RECORD, lock
from caudal.providers.aws_fake.server import FakeServer
from caudal.providers.aws_fake.world import Times, World


def main() -> int:
    """Run it; returns the exit code."""
    parser = argparse.ArgumentParser(prog="python -m caudal.providers.aws_fake", description=__doc__)
    parser.add_argument("--port", type=int, default=0, help="0: any that is free")
    parser.add_argument("--state", type=Path, required=True, help="a folder for its machines and its record")
    parser.add_argument("--machines", action="store_true", help="run user data as processes of this machine")
    parser.add_argument("--boot-s", type=float, default=0.5, help="seconds until a machine runs")
    parser.add_argument("--stop-s", type=float, default=0.5, help="seconds until it is gone")
    asked = parser.parse_args()
    ended = threading.Event()
    for number in (signal.SIGTERM, signal.SIGINT):
        signal.signal(number, lambda *_: ended.set())
    asked.state.mkdir(mode=0o700, parents=True, exist_ok=True)
    held = lock(asked.state)
    if held is None:
        print(f"another fake has {asked.state}", file=sys.stderr)
        return 1
    world = World(times=Times(boot_s=asked.boot_s, stop_s=asked.stop_s))
    try:
        server = FakeServer(asked.port, asked.state if asked.machines else None, world)
    except CaudalError as error:
        print(error, file=sys.stderr)
        return 1
    record = {"url": server.url, "pid": os.getpid(), "born": psutil.Process().create_time()}
    draft = asked.state / f"{RECORD}.draft"
    draft.write_text(json.dumps(record))
    draft.replace(asked.state / RECORD)
    print(server.url, flush=True)
    ended.wait()
    (asked.state / RECORD).unlink(missing_ok=True)
    server.close()
    return 0


if __name__ == "__main__":
    sys.exit(main())
