"""One process of a peer: the same model, data, optimiser and steps as Caudal's sites, another way to agree.

    python bench/wan_peer.py '{"kind": "ddp", "rank": 0, ...}'

`ddp` is PyTorch's DistributedDataParallel over gloo; `torchft-ddp`, `localsgd` and `diloco` are torchft's, on
its own lighthouse (`lighthouse` runs one). Every step is said as one JSON line with its time.
"""

from __future__ import annotations

import itertools
import json
import os
import socket
import sys
import time
from collections.abc import Callable, Iterator
from contextlib import ExitStack
from dataclasses import dataclass
from datetime import timedelta
from pathlib import Path
from typing import Any

import msgspec
import torch
import torch.distributed as dist
from torch import Tensor, nn

from caudal.domain.workload import TrainSpec
from caudal.train.data.samples import Samples
from caudal.train.inner import BETAS, EPSILON, GRADIENT_NORM, TorchInner
from caudal.train.interface import DataManifest, RunPlan, plan
from caudal.train.layout import initial_state, tensors
from caudal.train.model import Llama
from caudal.train.schedule import learning_rate


@dataclass(frozen=True)
class Options:
    """What a peer is told. `sync_every`, `fragments` and `delay` are DiLoCo's; `seconds` bounds the time,
    `steps` the steps (0: those of the whole run)."""

    kind: str
    rank: int
    world: int
    address: str
    master: str
    port: int
    device: str
    data: str
    spec: dict[str, Any]
    seconds: float = 0.0
    steps: int = 0
    fixed_step_s: float = 0.0
    sync_every: int = 20
    fragments: int = 2
    delay: int = 5
    evaluate: bool = False
    lighthouse: str = ""
    min_replicas: int = 1


class Fragment(nn.Module):
    """A contiguous part of the parameters."""

    def __init__(self, values: Tensor, decays: Tensor) -> None:
        super().__init__()
        self.flat = nn.Parameter(values.clone())
        self.decays = decays


class Parts(nn.Module):
    """Caudal's model, its parameters cut into fragments; the loss is what `forward` returns."""

    def __init__(self, run_plan: RunPlan, fragments: int, fixed_step_s: float) -> None:
        super().__init__()
        self._llama, self._fixed_step_s = Llama(run_plan.shape, run_plan.vocab), fixed_step_s
        values = torch.from_numpy(initial_state(run_plan.shape, run_plan.vocab, run_plan.seed))
        decays, starts = torch.zeros(len(values)), []
        for tensor in tensors(run_plan.shape, run_plan.vocab):
            starts.append(tensor.offset)
            if len(tensor.shape) > 1:
                decays[tensor.offset : tensor.offset + tensor.size] = 1
        ends = [min(starts, key=lambda s: abs(s - len(values) * i / fragments)) for i in range(1, fragments)]
        bounds = [0, *ends, len(values)]
        pairs = list(itertools.pairwise(bounds))
        self.fragments = nn.ModuleList(Fragment(values[a:b], decays[a:b]) for a, b in pairs)

    def forward(self, tokens: Tensor, targets: Tensor) -> Tensor:
        """The mean loss; with a fixed step, after that time, something with a cheap gradient."""
        flat = torch.cat([fragment.flat for fragment in self.fragments])
        if self._fixed_step_s:
            time.sleep(self._fixed_step_s)
            return flat.mean()
        return self._llama.loss(flat, tokens, targets)

    def flat(self) -> Tensor:
        """All parameters."""
        return torch.cat([fragment.flat.detach() for fragment in self.fragments])


class Trainer:
    """The steps: same samples, same rates, same AdamW as the inner steps of Caudal."""

    def __init__(self, options: Options) -> None:
        torch.set_num_threads(1)
        self.options = options
        folder = Path(options.data)
        spec = msgspec.convert(options.spec, TrainSpec)
        self.manifest = msgspec.json.decode((folder / "manifest.json").read_bytes(), type=DataManifest)
        self.plan = plan(spec, self.manifest)
        self.stage = self.plan.stages[0]
        self.samples = Samples(folder, self.manifest, 0, self.plan.seed)
        fragments = options.fragments if options.kind == "diloco" else 1
        self.parts = Parts(self.plan, fragments, options.fixed_step_s)
        self.optimiser = torch.optim.Adam(
            self.parts.parameters(), lr=0.0, betas=BETAS, eps=EPSILON, fused=True
        )
        self.batch_tokens = self.stage.batch * self.stage.sample_tokens

    def steps(self) -> Iterator[int]:
        """Numbers of steps, until the time or the run is over."""
        total = self.stage.ids // (self.stage.batch * self.options.world)
        started, step = time.monotonic(), 0
        while step < (self.options.steps or total):
            if self.options.seconds and time.monotonic() - started > self.options.seconds:
                return
            yield step
            step += 1

    def step(
        self,
        number: int,
        loss_of: Callable[..., Tensor],
        before: Callable[[], object] = lambda: None,
        accepted: Callable[[], bool] = lambda: True,
    ) -> None:
        """One inner step of this rank; what is not `accepted` changes nothing."""
        each, ids = self.stage.batch, self.stage.ids
        start = (number * self.options.world + self.options.rank) * each
        batch = self.samples.batch([(start + i) % ids for i in range(each)])
        before()
        loss = loss_of(torch.from_numpy(batch.tokens), torch.from_numpy(batch.targets))
        loss.backward()  # type: ignore[no-untyped-call]
        nn.utils.clip_grad_norm_(self.parts.parameters(), GRADIENT_NORM)
        if not accepted():
            self.optimiser.zero_grad()
            say(refused=number)
            return
        total = max(1, ids // (each * self.options.world))
        rate = learning_rate(self.stage, (number + 0.5) / total)
        with torch.no_grad():
            for part in self.parts.fragments:
                decays = part.decays
                assert isinstance(part, Fragment) and isinstance(decays, Tensor)
                part.flat.addcmul_(part.flat, decays, value=-rate * self.stage.weight_decay)
        for group in self.optimiser.param_groups:
            group["lr"] = rate
        self.optimiser.step()
        self.optimiser.zero_grad()
        say(step=number, tokens=self.batch_tokens, loss=round(float(loss.detach()), 4))

    def evaluate(self) -> None:
        """Say the loss on the validation text."""
        judge = TorchInner(self.plan, self.manifest, Path(self.options.data), 1)
        judge.load(self.parts.flat().numpy())
        say(**judge.evaluate())


def say(**values: Any) -> None:
    """One JSON line."""
    print(json.dumps({"at": time.time(), **values}), flush=True)


def plain_ddp(options: Options) -> None:
    """PyTorch's DDP over gloo: every gradient in fp32, at every step."""
    os.environ.update(GLOO_SOCKET_IFNAME=options.device, TP_SOCKET_IFNAME=options.device)
    dist.init_process_group(
        "gloo",
        init_method=f"tcp://{options.master}:{options.port}",
        rank=options.rank,
        world_size=options.world,
        timeout=timedelta(seconds=120),
    )
    trainer = Trainer(options)
    model = nn.parallel.DistributedDataParallel(trainer.parts, bucket_cap_mb=1_000)
    say(ready=True)
    for number in trainer.steps():
        # Which rank's clock ends first must not decide: rank 0 says whether there is a next step.
        if options.seconds and not _together(number, options):
            break
        trainer.step(number, model)
    if options.evaluate and options.rank == 0:
        trainer.evaluate()


def _together(number: int, options: Options) -> bool:
    """Every 16 steps, whether rank 0 goes on."""
    if number % 16:
        return True
    go = torch.tensor([1 if time.time() < START + options.seconds else 0])
    dist.broadcast(go, 0)
    return bool(go.item())


START = time.time()


def fault_tolerant(options: Options) -> None:
    """torchft: a replica group of one process."""
    socket.gethostname = lambda: options.address  # what torchft tells others to connect to
    from torchft import Manager, ProcessGroupGloo
    from torchft.ddp import DistributedDataParallel
    from torchft.local_sgd import DiLoCo, LocalSGD

    os.environ.update(GLOO_SOCKET_IFNAME=options.device)
    store = dist.TCPStore(options.address, 0, is_master=True, wait_for_workers=False)
    trainer = Trainer(options)
    per_step = options.kind == "torchft-ddp"

    def load(state: dict[str, Any]) -> None:
        trainer.parts.load_state_dict(state["parts"])
        trainer.optimiser.load_state_dict(state["optimiser"])

    manager = Manager(
        pg=ProcessGroupGloo(timeout=timedelta(seconds=30)),
        load_state_dict=load,
        state_dict=lambda: {
            "parts": trainer.parts.state_dict(),
            "optimiser": trainer.optimiser.state_dict(),
        },
        min_replica_size=options.min_replicas,
        use_async_quorum=per_step,
        rank=0,
        world_size=1,
        store_addr=options.address,
        store_port=store.port,
        lighthouse_addr=options.lighthouse,
        replica_id=f"site-{options.rank}-",
        hostname=options.address,
    )
    model = DistributedDataParallel(manager, trainer.parts) if per_step else trainer.parts
    with ExitStack() as stack:
        if options.kind == "localsgd":
            stack.enter_context(LocalSGD(manager, trainer.parts, trainer.optimiser, options.sync_every))
        elif options.kind == "diloco":
            parts = list(trainer.parts.fragments)
            outer = [torch.optim.SGD(p.parameters(), lr=0.7, momentum=0.9, nesterov=True) for p in parts]
            stack.enter_context(
                DiLoCo(
                    manager,
                    parts,
                    trainer.optimiser,
                    outer,
                    options.sync_every,
                    pin_memory=False,
                    fragment_sync_delay=min(options.delay, options.sync_every // options.fragments - 1),
                )
            )
        say(ready=True)
        for number in trainer.steps():
            if per_step:
                trainer.step(number, model, manager.start_quorum, manager.should_commit)
            else:
                trainer.step(number, model)
            say(committed=manager.current_step(), participants=manager.num_participants())
    if options.evaluate and options.rank == 0:
        trainer.evaluate()
    manager.shutdown(wait=False)


def lighthouse(options: Options) -> None:
    """torchft's coordination server, until it is killed."""
    from torchft.coordination import LighthouseServer

    server = LighthouseServer(
        f"{options.address}:{options.port}", options.min_replicas, join_timeout_ms=1_000, quorum_tick_ms=100
    )
    say(ready=True, address=server.address())
    while True:
        time.sleep(60)


if __name__ == "__main__":
    told = Options(**json.loads(sys.argv[1]))
    {"ddp": plain_ddp, "lighthouse": lighthouse}.get(told.kind, fault_tolerant)(told)
    os._exit(0)  # gloo's and torchft's threads may still wait for a peer that has left
