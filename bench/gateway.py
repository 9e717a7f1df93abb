"""Every measured goal of the gateway, with its peers in the same interleaved run.

    python bench/gateway.py [--rows json,ttft,...] [--repeats 5] [--quick] [--systems direct,caudal,...]

The gateway runs on the first core, load and backends on the second. Its keys are required, limits, usage and metrics
are on; of that the peers do nothing (LiteLLM: one key). `--quick` shows that every row works; its figures are not to
be quoted. See docs/howto/measure.md.
"""

from __future__ import annotations

import argparse
import json
import os
import tempfile
import time
import traceback
from collections.abc import Callable
from pathlib import Path
from typing import Any

from gateway_options import Options
from gateway_peers import KINDS
from harness import finish, shared_traces

Row = Callable[[Options], dict[str, Any]]

QUICK: dict[str, Any] = {
    "warm_s": 1.0,
    "seconds": 1.5,
    "chunk_streams": (64,),
    "overload_s": 20.0,
    "overload_speed": 10.0,
    "patience_s": 15.0,
    "soak_s": 6.0,
    "engine_tokens": 8,
    "site_streams": 6,
    "site_tokens": 24,
}


def rows() -> dict[str, Row]:
    """All rows by name, the short ones first."""
    import gateway_faults
    import gateway_overload
    import gateway_speed

    return {
        "json": gateway_speed.json_rate,
        "ttft": gateway_speed.ttft,
        "chunks": gateway_speed.chunks,
        "kill-replica": gateway_faults.kill_replica,
        "update": gateway_faults.update,
        "kill-site": gateway_faults.kill_site,
        "engine": gateway_speed.engine,
        "overload": gateway_overload.overload,
        "memory": gateway_speed.memory,
    }


def cores() -> tuple[int | None, int | None]:
    """One for gateways and one for all else; none where there is only one."""
    own = sorted(os.sched_getaffinity(0))
    return (own[0], own[1]) if len(own) > 1 else (None, None)


def options_of(told: argparse.Namespace, cache: Path) -> Options:
    """The numbers of a full or a quick run."""
    first, second = cores()
    numbers: dict[str, Any] = {
        "repeats": told.repeats or (1 if told.quick else 5),
        "systems": tuple(told.systems.split(",")),
        "traces": shared_traces(),
        "gateway_core": first,
        "other_core": second,
        **(QUICK if told.quick else {}),
        **json.loads(told.set),
    }
    numbers["traces"] = Path(numbers["traces"])
    return Options(cache=cache, quick=told.quick, **numbers)


def main() -> None:
    """Run the chosen rows; the last line is one JSON object."""
    known = rows()
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--rows", default=os.environ.get("ROWS", ",".join(known)), help=", ".join(known))
    parser.add_argument("--repeats", type=int, default=int(os.environ.get("REPEATS", "0")))
    parser.add_argument("--quick", action="store_true", default=bool(os.environ.get("QUICK")))
    parser.add_argument(
        "--systems", default=os.environ.get("SYSTEMS", ",".join(KINDS)), help=", ".join(KINDS)
    )
    parser.add_argument(
        "--set", default="{}", help="other numbers of gateway_options.Options, as JSON: soak_s, ..."
    )
    told = parser.parse_args()
    for name, chosen, there in (("rows", told.rows, known), ("systems", told.systems, KINDS)):
        unknown = set(chosen.split(",")) - set(there)
        if unknown:
            raise SystemExit(f"no such {name}: {', '.join(sorted(unknown))}; there are {', '.join(there)}")
    figures: dict[str, Any] = {"quick": told.quick}
    with tempfile.TemporaryDirectory(prefix="caudal-gateway-") as folder:
        options, own = options_of(told, Path(folder)), os.sched_getaffinity(0)
        if options.other_core is not None:
            os.sched_setaffinity(0, {options.other_core})  # this process answers for control
        for name in told.rows.split(","):
            started = time.monotonic()
            options.say(f"row {name}")
            try:
                figures[name] = known[name](options)
            except Exception as error:  # a failed row is a result, and must not cost hours of others
                traceback.print_exc()
                figures[name] = {"failed": str(error).splitlines()[0] if str(error) else repr(error)}
            options.say(f"row {name}: {time.monotonic() - started:.0f} s: {json.dumps(figures[name])}")
        os.sched_setaffinity(0, own)
    finish("gateway", figures)


if __name__ == "__main__":
    main()
