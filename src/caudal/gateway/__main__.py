"""`python -m caudal.gateway CONFIG.json`: the front door as its own process."""

from __future__ import annotations

import logging
import resource
import sys
from pathlib import Path

import uvloop

from caudal.domain.errors import CaudalError
from caudal.gateway.process import read_config, serve
from caudal.telemetry.report import Reporter


def main(argv: list[str]) -> int:
    """Run until told to end; returns the exit code."""
    logging.basicConfig(level=logging.INFO, stream=sys.stderr, format="%(asctime)s %(levelname)s %(message)s")
    reporter = Reporter()
    try:
        if len(argv) != 2:
            print("usage: python -m caudal.gateway CONFIG.json", file=sys.stderr)
            return 2
        config = read_config(Path(argv[1]))
        _raise_descriptor_limit()
        uvloop.run(serve(config, reporter))
    except CaudalError as error:
        print(f"{error.code}: {error}", file=sys.stderr, flush=True)
        reporter.update(ready=False, error=error.one_line(), code=error.code)
        return error.exit_code
    finally:
        reporter.close()
    return 0


def _raise_descriptor_limit() -> None:
    """Two descriptors per request are needed, and 1,024 is the usual soft limit."""
    soft, hard = resource.getrlimit(resource.RLIMIT_NOFILE)
    wanted = 65_536 if hard == resource.RLIM_INFINITY else min(hard, 65_536)
    if soft < wanted:
        resource.setrlimit(resource.RLIMIT_NOFILE, (wanted, hard))


if __name__ == "__main__":
    sys.exit(main(sys.argv))
