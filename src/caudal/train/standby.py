"""A site's standby coordinator: `python -m caudal.train.standby CONFIG`.

It has loaded all it needs and waits. The number of an epoch comes by its standard input when the site's worker
cannot reach that epoch's coordinator; if the coordinator is gone indeed, this process claims the next epoch and
coordinates, until the run is finished or a newer epoch fences it; then it waits again. It ends with the process
that started it, whose end closes its input: the worker, or the one that minds the worker (minder.py); then it goes
on when the worker dies.
"""

from __future__ import annotations

import asyncio
import os
import sys
from pathlib import Path

from caudal.domain.errors import CaudalError, Failed, Stale
from caudal.ports import Blobs
from caudal.store.blobs import open_blobs
from caudal.telemetry.report import Reporter
from caudal.train import epochs
from caudal.train.beat import beats
from caudal.train.config import CoordinatorConfig, read_config
from caudal.train.coordinator import coordinate
from caudal.train.data.prepare import prepare
from caudal.train.finish import known_result, publish_model
from caudal.train.given import nothing_to_prepare, nothing_to_publish
from caudal.train.log import say

TURN_S = 0.4
"""Sites that lose their coordinator at once take over one after the other, by the number of their slot: whoever
comes second finds the epoch taken."""

TURNS = 8
CONNECT_S = 2.0
TERMINATED = 143


def turn_of(slot: str) -> int:
    """A slot's place: its number, where it has one."""
    number = slot.rpartition(".")[2]
    return (int(number) if number.isdigit() else sum(slot.encode())) % TURNS


async def gone(config: CoordinatorConfig, blobs: Blobs, lost: int) -> bool:
    """Whether nobody coordinates: the lost epoch is the newest, and its coordinator refuses connections or,
    where nothing is heard at all, writes no beat."""
    await asyncio.sleep(TURN_S * turn_of(config.slot[0]))
    newest = await asyncio.to_thread(epochs.newest, blobs, config.prefix)
    if newest is None or newest.epoch != lost:
        return newest is None and config.given  # a script's run: nobody else begins it
    host, _, port = newest.address.rpartition(":")
    try:
        _, writer = await asyncio.wait_for(asyncio.open_connection(host, int(port)), CONNECT_S)
        writer.close()
        return False  # it is there, or again
    except ConnectionRefusedError:
        return True
    except (OSError, TimeoutError):
        return not await beats(blobs, config.prefix, lost)


async def stand_by(config: CoordinatorConfig, blobs: Blobs, words: asyncio.StreamReader) -> int:
    """Wait for the worker's word; coordinate when nobody else does. Returns the exit code."""
    while line := await words.readline():
        try:
            if not line.strip().isdigit() or not await gone(config, blobs, int(line)):
                continue
            if known_result(blobs, config.prefix) is not None:
                return 0
            say(f"epoch {int(line)} has no coordinator; this site takes over")
            if config.given:
                return await coordinate(config, blobs, Reporter(), nothing_to_prepare, nothing_to_publish)
            return await coordinate(config, blobs, Reporter(), prepare, publish_model)
        except Stale as error:
            say(f"{error.one_line()}; standing by again")
        except Failed as error:
            say(f"cannot take over: {error.one_line()}")
    return 0


async def _run(config: CoordinatorConfig) -> int:
    words = asyncio.StreamReader()
    loop = asyncio.get_running_loop()
    await loop.connect_read_pipe(lambda: _Words(words), sys.stdin)
    return await stand_by(config, open_blobs(config.blobs_url), words)


class _Words(asyncio.StreamReaderProtocol):
    """Ends the process when the one that started it has ended, whatever it is doing."""

    def connection_lost(self, exc: Exception | None) -> None:
        """It is gone; what is committed is in the store."""
        os._exit(TERMINATED)


def main(path: str) -> int:
    """Stand by with the configuration file; returns the exit code."""
    os.environ.pop("CAUDAL_REPORT_URL", None)  # the worker reports for this site
    try:
        return asyncio.run(_run(read_config(Path(path), CoordinatorConfig)))
    except CaudalError as error:
        say(str(error))
        return error.exit_code


if __name__ == "__main__":
    sys.exit(main(sys.argv[1]))
