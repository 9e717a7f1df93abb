"""The code that runs on a site, as the zip that Ray unpacks there: the same for every gang of this version.

It is sent rather than taken from what the site has installed, so that the two ends of a conversation are always of
one version, also when the control process was updated and the site was not. Its name is its content's hash.
"""

from __future__ import annotations

import hashlib
import io
import zipfile
from functools import cache
from pathlib import Path

from caudal.drivers.ray.names import ENTRY

PACKAGE = Path(__file__).resolve().parents[2]  # src/caudal
SENT = (
    "__init__.py",
    "drivers/__init__.py",
    "drivers/local_folder.py",
    "drivers/local_log.py",
    "drivers/local_shim.py",
    "drivers/processes.py",
    "drivers/ray/__init__.py",
    "drivers/ray/keeper.py",
    "drivers/ray/kv.py",
    "drivers/ray/names.py",
    "drivers/ray/shim.py",
    "drivers/ray/supervisor.py",
)
START = """import os, signal, sys

signal.pthread_sigmask(signal.SIG_BLOCK, {signal.SIGTERM})  # until somebody heeds it: Ray takes a second to import

from caudal.drivers.ray.supervisor import main

code = main(sys.argv[1:])
sys.stdout.flush()
os._exit(code)  # all is said: leaving Ray politely takes most of a second, and its end is noticed all the same
"""
EPOCH = (1980, 1, 1, 0, 0, 0)  # the oldest that a zip can say: the same bytes whenever they are made


@cache
def code() -> tuple[str, bytes]:
    """The package's name and its bytes."""
    made = io.BytesIO()
    with zipfile.ZipFile(made, "w") as archive:
        for name in SENT:
            _add(archive, f"caudal/{name}", (PACKAGE / name).read_bytes())
        _add(archive, ENTRY, START.encode())
    data = made.getvalue()
    return f"caudal-site-{hashlib.sha256(data).hexdigest()[:32]}.zip", data


def _add(archive: zipfile.ZipFile, name: str, data: bytes) -> None:
    archive.writestr(zipfile.ZipInfo(name, EPOCH), data, zipfile.ZIP_DEFLATED)
