"""The processes of a group: started by the first, or by torchrun; told what to do by the first, one after the other.

Words are JSON, numbers are raw: nothing is unpickled. A process ends when the first one is gone.
"""

from __future__ import annotations

import os
import subprocess
import sys
import threading
from dataclasses import dataclass, field
from datetime import timedelta
from typing import Any, NoReturn

import msgspec
import numpy as np
import torch
import torch.distributed as dist
from torch import Tensor
from torch.distributed import TCPStore  # type: ignore[attr-defined]

from caudal.train.group.member import Member, Setup, device_of

STORE_IS_OURS = "CAUDAL_GROUP_STORE"
"""Environment variable of the processes that the first one started: it keeps the store already."""

PATIENCE = timedelta(days=30)
"""A round may be waited for as long as a site is alone."""


@dataclass
class Ranks:
    """The group as its process number `rank` of `world` sees it."""

    rank: int
    world: int
    _others: list[subprocess.Popen[bytes]] = field(default_factory=list)

    @staticmethod
    def start(processes: int) -> Ranks:
        """The first process: joins what torchrun started, or starts the others itself, on this machine."""
        world = int(os.environ.get("WORLD_SIZE", "1"))
        if world > 1:
            return Ranks.join()
        ranks = Ranks(0, processes)
        if processes > 1:
            store = TCPStore("127.0.0.1", 0, processes, is_master=True, wait_for_workers=False)
            for rank in range(1, processes):
                ranks._others.append(_follower(rank, processes, store.port))
            ranks._open(store)
        return ranks

    @staticmethod
    def join() -> Ranks:
        """A process that finds RANK, WORLD_SIZE, MASTER_ADDR and MASTER_PORT in its surroundings."""
        ranks = Ranks(int(os.environ["RANK"]), int(os.environ["WORLD_SIZE"]))
        ours = os.environ.get(STORE_IS_OURS)
        place = os.environ["MASTER_ADDR"], int(os.environ["MASTER_PORT"])
        ranks._open(TCPStore(*place, ranks.world, is_master=False) if ours else None)
        return ranks

    def _open(self, store: TCPStore | None) -> None:
        backend = "nccl" if torch.cuda.is_available() else "gloo"
        if torch.cuda.is_available():
            torch.cuda.set_device(device_of(int(os.environ.get("LOCAL_RANK", self.rank))))
        if store is None:
            dist.init_process_group(backend, timeout=PATIENCE)
        else:
            dist.init_process_group(
                backend, store=store, rank=self.rank, world_size=self.world, timeout=PATIENCE
            )

    def say(self, words: dict[str, Any]) -> None:
        """The first process tells the others what comes."""
        if self.world > 1:
            data = torch.from_numpy(np.frombuffer(msgspec.json.encode(words), np.uint8).copy())
            self.share(torch.tensor([len(data)]))
            self.share(data)

    def hear(self) -> dict[str, Any]:
        """What the first process says."""
        length = self.share(torch.zeros(1, dtype=torch.int64))
        data = self.share(torch.zeros(int(length), dtype=torch.uint8))
        words: dict[str, Any] = msgspec.json.decode(data.numpy().tobytes())
        return words

    def share(self, numbers: Tensor) -> Tensor:
        """The first process' numbers, at all."""
        if self.world > 1:
            there = numbers.to(device_of(self.rank))
            dist.broadcast(there, 0)
            return there.cpu()
        return numbers

    def close(self) -> None:
        """End the others. Threads of the group live on: who calls this ends by `os._exit`, as `follow` does."""
        self.say({"do": "end"})
        for other in self._others:
            assert other.stdin is not None
            other.stdin.close()
            other.wait()


def _follower(rank: int, world: int, port: int) -> subprocess.Popen[bytes]:
    env = {
        **os.environ,
        "RANK": str(rank),
        "LOCAL_RANK": str(rank),
        "WORLD_SIZE": str(world),
        "LOCAL_WORLD_SIZE": str(world),
        "MASTER_ADDR": "127.0.0.1",
        "MASTER_PORT": str(port),
        STORE_IS_OURS: "1",
    }
    command = [sys.executable, "-m", "caudal.train.group.ranks"]
    return subprocess.Popen(command, env=env, stdin=subprocess.PIPE)


def follow(ranks: Ranks) -> NoReturn:
    """Do what the first process says, until it says that it is over; then end this process.

    At once: at the interpreter's own end the group's threads may be alive, which aborts it.
    """
    member = Member(msgspec.convert(ranks.hear(), type=Setup), ranks.rank, ranks.world)
    while (words := ranks.hear())["do"] != "end":
        match words["do"]:
            case "load":
                member.load(ranks.share(torch.zeros(member.plan.parameters)))
            case "add":
                member.add(words["start"], ranks.share(torch.zeros(words["size"])))
            case "step":
                rate, decay = words["rate"], words["weight_decay"]
                member.step(words["stage"], words["positions"], rate, decay, words["keep"])
            case "evaluate":
                member.evaluate()
            case "read":
                member.read()
            case "forget":
                member.forget()
    sys.stdout.flush()
    sys.stderr.flush()
    os._exit(0)


def _end_with_the_first() -> None:
    sys.stdin.buffer.read()
    os._exit(0)


if __name__ == "__main__":
    threading.Thread(target=_end_with_the_first, daemon=True).start()
    follow(Ranks.join())
