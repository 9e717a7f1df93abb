"""`python -m caudal.gateway CONFIG.json`: the front door as its own process."""

from __future__ import annotations

import gc
import logging
import resource
import sys
from pathlib import Path

import uvloop

from caudal.domain.errors import CaudalError
from caudal.gateway.line import Line
from caudal.gateway.process import GatewayConfig, read_config, serve
from caudal.gateway.siblings import leave
from caudal.gateway.workers import serve_all
from caudal.telemetry.report import Reporter


def main(argv: list[str]) -> int:
    """Run until told to end; returns the exit code."""
    logging.basicConfig(level=logging.INFO, stream=sys.stderr, format="%(asctime)s %(levelname)s %(message)s")
    if len(argv) == 4 and argv[2] == "--worker":
        return _one_of_several(Path(argv[1]))
    reporter = Reporter()
    try:
        if len(argv) != 2:
            print("usage: python -m caudal.gateway CONFIG.json", file=sys.stderr)
            return 2
        file = Path(argv[1])
        config = read_config(file)
        _raise_descriptor_limit()
        _collect_seldom()
        uvloop.run(serve(config, reporter) if config.processes == 1 else serve_all(config, file, reporter))
    except CaudalError as error:
        print(f"{error.code}: {error}", file=sys.stderr, flush=True)
        reporter.update(ready=False, error=error.one_line(), code=error.code)
        return error.exit_code
    finally:
        reporter.close()
    return 0


def _one_of_several(file: Path) -> int:
    """A process of a gateway, started by its parent, which says on standard input which one it is."""
    try:
        line = Line()
    except ValueError:
        print("--worker is for the gateway's own use: its parent starts it", file=sys.stderr)
        return 2
    try:
        _collect_seldom()
        uvloop.run(_serve_with(line, read_config(file)))
    except CaudalError as error:
        line.last(error=error.as_dict())
        return error.exit_code
    finally:
        if line.parent_gone.is_set():
            leave(Path(line.place.folder))
    return 0


async def _serve_with(line: Line, config: GatewayConfig) -> None:
    line.watch()
    await serve(config, line, line.place, line.parent_gone)


def _collect_seldom() -> None:
    """What is there now stays: the collector need not look at it again, and requests leave few cycles behind."""
    gc.collect()
    gc.freeze()
    gc.set_threshold(20_000, 20, 20)


def _raise_descriptor_limit() -> None:
    """Two descriptors per request are needed, and 1,024 is the usual soft limit."""
    soft, hard = resource.getrlimit(resource.RLIMIT_NOFILE)
    wanted = 65_536 if hard == resource.RLIM_INFINITY else min(hard, 65_536)
    if soft < wanted:
        resource.setrlimit(resource.RLIMIT_NOFILE, (wanted, hard))


if __name__ == "__main__":
    sys.exit(main(sys.argv))
