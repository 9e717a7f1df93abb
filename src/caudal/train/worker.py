"""The worker of a site as a process: `python -m caudal.train.worker CONFIG`.

Where the run wants a spare (`inner.spare`), this is the gang's first process, which computes nothing:

    python -m caudal.train.worker CONFIG            minds the others (minder.py), 17 MB
    ├── python -m caudal.train.worker CONFIG worker   takes part in the run (work.py)
    ├── python -m caudal.train.worker CONFIG spare    has loaded all and waits to become the worker
    └── python -m caudal.train.standby CONFIG         has loaded what a coordinator needs and waits

Otherwise, where several processes share a site's steps, and where the run begins from a base, the worker is this
process itself, and the standby its child.
"""

from __future__ import annotations

import os
import sys
from collections.abc import Callable, Sequence
from pathlib import Path

from caudal.domain.errors import CaudalError
from caudal.train.config import WorkerConfig, read_config
from caudal.train.minder import Minder

ALONE = "alone"

Work = Callable[[str, str], int]
"""Takes part in a run: the configuration file, and as what (alone, worker or spare); returns the exit code."""


def work(path: str, part: str) -> int:
    """Be the worker, or its spare."""
    from caudal.train import work as proper  # noqa: PLC0415 (numpy and what computes enter here)

    return proper.main(path, part)


def main(words: Sequence[str], work: Work = work) -> int:
    """Run what the words after the program's name ask for: a configuration file, and what its children are
    told they are. Returns the exit code."""
    path, *part = words
    if part:
        return work(path, part[0])
    config = _to_be_minded(path)
    return work(path, ALONE) if config is None else Minder(config, path, sys.orig_argv).run()


def _to_be_minded(path: str) -> WorkerConfig | None:
    """The configuration of a worker that has a spare. One that cannot be read is reported by the worker."""
    if int(os.environ.get("WORLD_SIZE", "1")) > 1 or int(os.environ.get("RANK", "0")) > 0:
        return None
    try:
        config = read_config(Path(path), WorkerConfig)
    except CaudalError:
        return None
    inner = config.spec.inner
    # a spare of a base would hold all of a model that may be as large as the machine
    return config if inner.spare and inner.processes == 1 and not config.spec.base.path else None


if __name__ == "__main__":
    code = main(sys.argv[1:])
    sys.stdout.flush()
    sys.stderr.flush()
    os._exit(code)  # at the interpreter's own end threads of a group may be alive, which aborts it
