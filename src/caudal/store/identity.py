"""Who a fleet is besides its name: `NAME-` and eight hexadecimal digits, drawn once.

Machines are tagged with it, so that two fleets of one name in one account never touch each other's. It lies in the
object store, which all control processes of a fleet share, with a copy in the state directory: the store need not answer
for a fleet to be taken down.
"""

from __future__ import annotations

import re
import secrets

from caudal.domain.errors import AlreadyExists, StorageFailed
from caudal.ports import Blobs
from caudal.store.atomic import write_atomic
from caudal.store.home import Home

FORM = re.compile(r"[0-9a-f]{8}")


def known(place: Home, name: str) -> str:
    """The identity, if the state directory has it; else empty."""
    try:
        found = (place.root / "fleets" / name).read_text().strip()
    except OSError:
        return ""
    return f"{name}-{found}" if FORM.fullmatch(found) else ""


def identity(place: Home, blobs: Blobs, name: str) -> str:
    """The fleet's identity, drawn at the first call. Raises what the object store raises, StorageFailed."""
    if found := known(place, name):
        return found
    path = f"fleets/{name}/identity"
    try:
        blobs.put(path, secrets.token_hex(4).encode(), if_absent=True)
    except AlreadyExists:
        pass  # another control process was first: its word is the one
    drawn = blobs.get(path).decode(errors="replace").strip()
    if not FORM.fullmatch(drawn):
        raise StorageFailed("the fleet's identity is no such thing", where=path, why=repr(drawn[:40]))
    file = place.root / "fleets" / name
    file.parent.mkdir(parents=True, exist_ok=True, mode=0o700)
    write_atomic(file, drawn.encode(), mode=0o600)
    return f"{name}-{drawn}"
