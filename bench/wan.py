"""Every measured goal of training over a WAN, with its peers in the same run. Needs root.

    python bench/wan.py [--rows speed,loss,...] [--repeats 3] [--quick] [--peers ddp,diloco,...]

Rows take turns between systems and networks within a repeat. `--quick` shows that every row works, with a
small model and short windows; its figures are not to be quoted. See docs/howto/measure.md.
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

from harness import finish
from wan_options import Options
from wan_peers import KINDS
from wan_place import unusable
from wan_run import MIDDLE, SMALL

Row = Callable[[Options], dict[str, Any]]


def rows() -> dict[str, Row]:
    """All rows by name, the short ones first."""
    import wan_chaos
    import wan_faults
    import wan_loss
    import wan_speed

    return {
        "start": wan_speed.start,
        "kill-site": wan_faults.kill_site,
        "kill-worker": wan_faults.kill_worker,
        "partition": wan_faults.partition,
        "kill-coordinator": wan_faults.kill_coordinator,
        "kill-everything": wan_faults.kill_everything,
        "peer-faults": wan_faults.peer_faults,
        "bytes": wan_speed.wire,
        "speed": wan_speed.speed,
        "speed-fixed": wan_speed.speed_fixed,
        "goodput": wan_chaos.goodput,
        "chaos": wan_chaos.chaos,
        "loss": wan_loss.loss,
    }


def options_of(told: argparse.Namespace, cache: Path) -> Options:
    """The numbers of a full or a quick run."""
    small: dict[str, Any] = {
        "settle_s": 6.0,
        "measure_s": 15.0,
        "fixed_step_s": 0.1,
        "sync_every": 10,
        "loss_tokens": 120_000,
        "chaos_events": 8,
        "chaos_tokens": 400_000,
        "goodput_s": 45.0,
    }
    return Options(
        cache=cache,
        shape=SMALL if told.quick else MIDDLE,
        repeats=told.repeats or (1 if told.quick else 3),
        quick=told.quick,
        peers=tuple(told.peers.split(",")) if told.peers else (),
        outer=json.loads(told.outer),
        **(small if told.quick else {}) | json.loads(told.set),
    )


def main() -> None:
    """Run the chosen rows; the last line is one JSON object."""
    known = rows()
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--rows", default=os.environ.get("ROWS", ",".join(known)), help=", ".join(known))
    parser.add_argument("--repeats", type=int, default=int(os.environ.get("REPEATS", "0")))
    parser.add_argument("--quick", action="store_true", default=bool(os.environ.get("QUICK")))
    parser.add_argument("--peers", default=os.environ.get("PEERS", ",".join(KINDS)), help=", ".join(KINDS))
    parser.add_argument("--outer", default="{}", help="fields of the run's `outer`, as JSON")
    parser.add_argument(
        "--set", default="{}", help="other numbers of wan_options.Options, as JSON: chaos_tokens, ..."
    )
    told = parser.parse_args()
    reason = unusable()
    if reason:
        raise SystemExit(f"bench-wan cannot run here: {reason}")
    chosen = told.rows.split(",")
    unknown = set(chosen) - set(known)
    if unknown:
        raise SystemExit(f"no such rows: {', '.join(sorted(unknown))}; there are {', '.join(known)}")
    figures: dict[str, Any] = {"quick": told.quick}
    with tempfile.TemporaryDirectory(prefix="caudal-wan-") as folder:
        options = options_of(told, Path(folder))
        for name in chosen:
            started = time.monotonic()
            options.say(f"row {name}")
            try:
                figures[name] = known[name](options)
            except (RuntimeError, OSError, AssertionError) as error:  # a row that fails is a result too
                traceback.print_exc()
                figures[name] = {"failed": str(error).splitlines()[0] if str(error) else repr(error)}
            options.say(f"row {name}: {time.monotonic() - started:.0f} s: {json.dumps(figures[name])}")
    finish("wan", figures)


if __name__ == "__main__":
    main()
