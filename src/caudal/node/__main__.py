"""`python -m caudal.node CONFIG`: the node agent, until SIGTERM."""

from __future__ import annotations

import json
import signal
import sys
import threading
from pathlib import Path

from caudal.node.agent import Agent


def main(argv: list[str]) -> int:
    """Run the agent of a configuration file; its other files lie beside it."""
    if len(argv) != 1:
        print("usage: python -m caudal.node CONFIG", file=sys.stderr)
        return 2
    path = Path(argv[0]).resolve()
    ending = threading.Event()
    for number in (signal.SIGTERM, signal.SIGINT):
        signal.signal(number, lambda *_: ending.set())
    return Agent(json.loads(path.read_bytes()), path.parent, ending).run()


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
