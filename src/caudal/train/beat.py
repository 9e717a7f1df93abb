"""The coordinator's sign of life in the object store, for sites that cannot hear it.

One small object per epoch, written anew every second. It decides nothing: it only keeps a site whose own link
is cut from taking over a run that goes on without it.
"""

from __future__ import annotations

import asyncio
import itertools

from caudal.domain.errors import Failed, NotFound
from caudal.ports import Blobs

BEAT_S = 1.0

WATCH_S = 3.0
"""A beat that does not change for so long is none."""


def beat_path(prefix: str, epoch: int) -> str:
    """Where an epoch's beat lies."""
    return f"{prefix}/beat-{epoch:06d}"


async def beat(blobs: Blobs, prefix: str, epoch: int) -> None:
    """Write for ever. A store that refuses is asked again: who cannot write does not commit either."""
    for count in itertools.count():
        try:
            await asyncio.to_thread(blobs.put, beat_path(prefix, epoch), str(count).encode())
        except Failed:
            pass
        await asyncio.sleep(BEAT_S)


async def beats(blobs: Blobs, prefix: str, epoch: int, watch_s: float = WATCH_S) -> bool:
    """Whether the epoch's coordinator writes its beat: looks twice. True where the store does not answer,
    because then nobody can take over."""
    try:
        first = await asyncio.to_thread(_read, blobs, prefix, epoch)
        await asyncio.sleep(watch_s)
        return await asyncio.to_thread(_read, blobs, prefix, epoch) != first
    except Failed:
        return True


def _read(blobs: Blobs, prefix: str, epoch: int) -> bytes:
    try:
        return blobs.get(beat_path(prefix, epoch))
    except NotFound:
        return b""
