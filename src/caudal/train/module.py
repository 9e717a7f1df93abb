"""What the trainer of a group of processes needs of a model, whichever it is."""

from __future__ import annotations

from abc import ABC, abstractmethod

from torch import Tensor, nn


class SharedModule(nn.Module, ABC):
    """A model that processes share. `layers` are what FSDP2 takes apart one by one."""

    layers: nn.ModuleList

    @abstractmethod
    def ordered(self) -> list[nn.Parameter]:
        """The trained parameters in the order of the flat vector, as they are now: FSDP2 puts others in their
        place."""

    @abstractmethod
    def forward(self, tokens: Tensor, targets: Tensor, rows: Tensor | None = None) -> Tensor:
        """The SUM of the losses in nats over the positions `rows` of the flattened batch (None: all). `tokens`
        is [samples, length], `targets` has one token for each position that counts."""
