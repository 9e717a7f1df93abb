"""What every process of a site's group does: its part of each batch, the same step of AdamW at all of them."""

from __future__ import annotations

import os
from collections.abc import Iterator, Sequence
from contextlib import AbstractContextManager, nullcontext
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
import torch.distributed as dist
from torch import Tensor, nn
from torch.distributed.device_mesh import init_device_mesh
from torch.distributed.fsdp import FSDPModule, fully_shard
from torch.distributed.tensor import DTensor, distribute_tensor
from torch.nn.parallel import DistributedDataParallel

from caudal.domain.errors import UsageError
from caudal.domain.workload import InnerSpec
from caudal.train.adam import BETAS, EPSILON
from caudal.train.base.layout import FOLDER, base_of, require_libraries
from caudal.train.data.samples import Batch, Samples, read_tokens, windows
from caudal.train.group.module import LlamaModule
from caudal.train.inner import GRADIENT_NORM, MAX_VALIDATION_TOKENS, spread
from caudal.train.interface import DataManifest, Devices, RunPlan, trained_parameters
from caudal.train.module import SharedModule

VALIDATION_AT_ONCE = 4_096


@dataclass(frozen=True, slots=True)
class Setup:
    """What a process has to know to build its part."""

    plan: RunPlan
    manifest: DataManifest
    folder: str
    inner: InnerSpec
    threads: int
    cache: str


def device_of(rank: int) -> torch.device:
    """This process' device: one of CUDA's where there are any, else the CPU."""
    if torch.cuda.is_available():
        return torch.device("cuda", rank % torch.cuda.device_count())
    return torch.device("cpu")


def computes_in(asked: str, device: torch.device) -> torch.dtype:
    """The precision of the forward and backward pass. Raises UsageError where the hardware lacks it."""
    if device.type == "cuda":
        has = torch.cuda.get_device_capability(device) >= (8, 0)
        faster = has
    else:
        found = torch.cpu.get_capabilities()
        has, faster = bool(found.get("avx512_bf16") or found.get("amx_bf16")), bool(found.get("amx_bf16"))
    if asked == "bf16" and not has:
        raise UsageError(
            "this hardware has no bfloat16",
            where=str(device),
            remedy="set `inner.precision: auto` or `float32`",
        )
    return torch.bfloat16 if asked == "bf16" or (asked == "auto" and faster) else torch.float32


def devices_used(name: str, world: int, local: int, on_this_machine: int, dtype: torch.dtype) -> Devices:
    """What a group of `world` processes computes on, `local` of them on each machine that has so many devices:
    processes beyond that share. Single precision may go through tensor cores, which have a peak of their own."""
    count = max(1, world // local) * min(local, on_this_machine)
    precision = str(dtype).removeprefix("torch.")
    if dtype is torch.float32 and torch.get_float32_matmul_precision() != "highest":
        precision = "tf32"
    return Devices(name, count, precision)


def _module(setup: Setup) -> SharedModule:
    """The model: of the plan's shape, or the base that the data came with."""
    base, checkpoints = base_of(setup.manifest.details), setup.inner.checkpoint_activations
    if base is None:
        return LlamaModule(setup.plan.shape, setup.plan.vocab, checkpoints)
    require_libraries()
    # transformers and peft enter here: who trains a model of a shape does without them
    from caudal.train.base.model import HubModule, built  # noqa: PLC0415 (an optional extra)

    return HubModule(built(Path(setup.folder) / FOLDER, base), base.names, checkpoints)


class Member:
    """One process' part. Every method is called at all processes of the group at the same time."""

    def __init__(self, setup: Setup, rank: int, world: int) -> None:
        torch.set_num_threads(setup.threads)
        self.plan, self.rank, self.world = setup.plan, rank, world
        self._inner, self._device = setup.inner, device_of(rank)
        self._dtype = computes_in(setup.inner.precision, self._device)
        self._parts = trained_parameters(self.plan.shape, setup.manifest)
        self._model = _module(setup).to(self._device)
        self._wrapped = self._wrap(setup)
        self.gradient = torch.zeros(0)
        self.forget()
        folder = Path(setup.folder)
        stages = range(len(self.plan.stages))
        self._samples = [Samples(folder, setup.manifest, stage, self.plan.seed) for stage in stages]
        length = self.plan.stages[0].sample_tokens
        tokens = read_tokens(folder / "validation.tokens.bin", setup.manifest)
        batches = windows(tokens, length, max(1, VALIDATION_AT_ONCE // length))
        self.validation = list(spread(batches, MAX_VALIDATION_TOKENS))

    def devices(self) -> Devices | None:
        """The group's accelerators; None on CPUs."""
        if self._device.type != "cuda":
            return None
        local = int(os.environ.get("LOCAL_WORLD_SIZE", self.world))
        name, here = torch.cuda.get_device_name(self._device), torch.cuda.device_count()
        return devices_used(name, self.world, local, here, self._dtype)

    def _wrap(self, setup: Setup) -> Any:
        wrapped: Any = self._model
        if self.world > 1 and setup.inner.strategy == "fsdp2":
            mesh = init_device_mesh(self._device.type, (self.world,))
            for layer in self._model.layers:
                fully_shard(layer, mesh=mesh)
            wrapped = fully_shard(self._model, mesh=mesh)
        elif self.world > 1:
            wrapped = DistributedDataParallel(self._model)
        if setup.inner.compile:
            if setup.cache:
                os.environ["TORCHINDUCTOR_CACHE_DIR"] = str(Path(setup.cache) / "compiled")
            wrapped = torch.compile(wrapped)
        return wrapped

    # ---- the state ----------------------------------------------------------------------------------------

    def _each(self) -> Iterator[tuple[nn.Parameter, int, int]]:
        """Each parameter, and where it lies in the flat vector."""
        for parameter, part in zip(self._model.ordered(), self._parts, strict=True):
            yield parameter, part.offset, part.offset + part.size

    @torch.no_grad()
    def load(self, flat: Tensor) -> None:
        """Take over the whole state, [parameters]; the moments stay."""
        for parameter, start, stop in self._each():
            parameter.copy_(self._placed(parameter, flat[start:stop]))

    @torch.no_grad()
    def add(self, start: int, change: Tensor) -> None:
        """Add to the numbers from `start` on."""
        end = start + len(change)
        for parameter, first, last in self._each():
            low, high = max(start, first), min(end, last)
            if low < high:
                whole = torch.zeros(last - first)
                whole[low - first : high - first] = change[low - start : high - start]
                parameter.add_(self._placed(parameter, whole))

    def _placed(self, parameter: nn.Parameter, numbers: Tensor) -> Tensor:
        """Numbers as this process holds the parameter. All processes have them: nothing is sent."""
        whole = numbers.view(parameter.shape).to(self._device)
        if isinstance(parameter, DTensor):
            return distribute_tensor(whole, parameter.device_mesh, parameter.placements, src_data_rank=None)
        return whole

    @torch.no_grad()
    def read(self) -> Tensor:
        """The whole state, [parameters], on the CPU."""
        return self._flat(self._model.ordered())

    def _flat(self, each: Sequence[Tensor | None]) -> Tensor:
        """Tensors of all parameters as one vector; one that is not there is zeros."""
        whole = [t.full_tensor() if isinstance(t, DTensor) else t for t in each]
        parts = zip(whole, self._parts, strict=True)
        return torch.cat(
            [torch.zeros(p.size) if t is None else t.detach().float().cpu().reshape(-1) for t, p in parts]
        )

    def forget(self) -> None:
        """Begin again without moments."""
        every = self._model.ordered()
        groups = [
            {"params": [p for p in every if p.ndim > 1], "decays": True},
            {"params": [p for p in every if p.ndim == 1], "decays": False},
        ]
        self._optimiser = torch.optim.AdamW(groups, lr=0.0, betas=BETAS, eps=EPSILON, foreach=True)

    # ---- work ---------------------------------------------------------------------------------------------

    def step(
        self, stage: int, positions: Sequence[int], rate: float, weight_decay: float, keep: bool = False
    ) -> tuple[float, int]:
        """One step over these samples, each process with its part: (sum of losses, positions that counted). With
        `keep` the gradient is in `gradient` then, [parameters], on the CPU."""
        if keep:
            self.gradient = torch.zeros(self.plan.parameters)
        mine = positions[self.rank :: self.world]
        batches = [self._batch(stage, mine[k :: self._inner.accumulate], positions) for k in self._turns()]
        figures = self._summed([0.0, float(sum(len(b.targets) for b in batches))])
        if not figures[1]:
            return 0.0, 0
        total = torch.zeros((), device=self._device)
        for number, batch in enumerate(batches):
            with self._kept_here(last=number == len(batches) - 1):
                loss = self._loss(batch)
                # gradients are averaged over the processes; what is wanted is their sum over all that counts
                (loss * (self.world / figures[1])).backward()  # type: ignore[no-untyped-call]
                total += loss.detach()
        every = self._model.ordered()
        torch.nn.utils.clip_grad_norm_(every, GRADIENT_NORM)
        if keep:
            self.gradient = self._flat([parameter.grad for parameter in every])
        for group in self._optimiser.param_groups:
            group["lr"], group["weight_decay"] = rate, weight_decay if group["decays"] else 0.0
        self._optimiser.step()
        self._optimiser.zero_grad(set_to_none=True)
        return self._summed([float(total), 0.0])[0], int(figures[1])

    def _turns(self) -> range:
        return range(self._inner.accumulate)

    def _batch(self, stage: int, positions: Sequence[int], instead: Sequence[int]) -> Batch:
        """Samples; where there are none, one whose positions do not count: all processes take all turns."""
        batch = self._samples[stage].batch(positions or instead[:1])
        if positions:
            return batch
        return Batch(batch.tokens, batch.targets[:0], batch.targets[:0])

    def _loss(self, batch: Batch) -> Tensor:
        rows = None if batch.rows is None else torch.from_numpy(batch.rows).to(self._device)
        tokens, targets = (torch.from_numpy(a).to(self._device) for a in (batch.tokens, batch.targets))
        with torch.autocast(self._device.type, self._dtype, enabled=self._dtype is not torch.float32):
            loss: Tensor = self._wrapped(tokens, targets, rows)
        return loss

    def _kept_here(self, *, last: bool) -> AbstractContextManager[Any]:
        """Gradients are exchanged with the last part of a batch only."""
        if isinstance(self._model, FSDPModule):
            self._model.set_requires_gradient_sync(last)
        elif isinstance(self._wrapped, DistributedDataParallel) and not last:
            return self._wrapped.no_sync()
        return nullcontext()

    @torch.no_grad()
    def evaluate(self) -> tuple[float, int]:
        """(sum of losses, positions) over the validation text, each process with its part of it."""
        total, counted = 0.0, 0
        turns = -(-len(self.validation) // self.world)
        for turn in range(turns):
            at = turn * self.world + self.rank
            batch = self.validation[min(at, len(self.validation) - 1)]
            loss = float(self._loss(batch))  # FSDP2 gathers layer by layer: all take all turns
            if at < len(self.validation):
                total, counted = total + loss, counted + len(batch.targets)
        figures = self._summed([total, float(counted)])
        return figures[0], int(figures[1])

    def _summed(self, figures: list[float]) -> list[float]:
        if self.world == 1:
            return figures
        both = torch.tensor(figures, dtype=torch.float64, device=self._device)
        dist.all_reduce(both)
        return [float(figure) for figure in both]
