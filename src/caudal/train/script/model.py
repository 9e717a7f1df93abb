"""A script's torch model and optimiser as one flat vector. The only place here that knows torch."""

from __future__ import annotations

import hashlib

import numpy as np
import torch

from caudal.domain.errors import UsageError
from caudal.train.interface import Flat


class TorchParameters:
    """The trainable parameters of a model, in their order, each once. On any device, in any floating type:
    they travel as float32."""

    def __init__(self, model: torch.nn.Module, optimizer: torch.optim.Optimizer) -> None:
        self._named = [(name, p) for name, p in model.named_parameters() if p.requires_grad]
        self._optimizer = optimizer
        if not self._named:
            raise UsageError("the model has no parameter that is trained", remedy="set requires_grad")
        self.offsets: list[int] = []
        self.size = 0
        for _, parameter in self._named:
            self.offsets.append(self.size)
            self.size += parameter.numel()

    def signature(self) -> str:
        """A hash of the parameters' names, shapes and types: sites that differ in it must not train together."""
        words = [f"{name} {tuple(p.shape)} {p.dtype}" for name, p in self._named]
        return hashlib.sha256("\n".join(words).encode()).hexdigest()

    def dtypes(self) -> str:
        """The types of the parameters, in words: `float32`, or several joined by `+`."""
        return "+".join(sorted({str(p.dtype).removeprefix("torch.") for _, p in self._named}))

    @torch.no_grad()
    def read(self) -> Flat:
        """A copy of all parameters as one vector."""
        parts = [p.detach().to("cpu", torch.float32).reshape(-1) for _, p in self._named]
        flat: Flat = torch.cat(parts).numpy()
        return flat

    @torch.no_grad()
    def write(self, state: Flat) -> None:
        """Take over all parameters."""
        for (_, parameter), start in zip(self._named, self.offsets, strict=True):
            part = torch.from_numpy(np.ascontiguousarray(state[start : start + parameter.numel()]))
            parameter.copy_(part.view(parameter.shape))

    @torch.no_grad()
    def add(self, start: int, change: Flat) -> None:
        """Add to the parameters from number `start` on."""
        stop = start + len(change)
        for (_, parameter), offset in zip(self._named, self.offsets, strict=True):
            low, high = max(start, offset), min(stop, offset + parameter.numel())
            if low < high:
                part = torch.from_numpy(change[low - start : high - start]).to(
                    parameter.device, parameter.dtype
                )
                parameter.view(-1)[low - offset : high - offset] += part

    def forget(self) -> None:
        """Clear the optimiser's moments."""
        self._optimizer.state.clear()
