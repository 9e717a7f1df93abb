"""The outer loop under Hugging Face's `Trainer`: a callback, and the dataset that it deals out.

    outer = OuterCallback(dataset, run="mine", store="s3://bucket/caudal", site="a", sites=2)
    trainer = Trainer(model, args, train_dataset=outer.dataset(), callbacks=[outer], ...)
    trainer.train()

What the Trainer calls an epoch is one round's share of this site, so that it never loads ahead of what was
leased; let it log, save and evaluate by steps. `max_steps` bounds this site's steps and shapes the Trainer's
schedule: set it to what one site will take, or more with a constant rate. Verified with one process a site.
"""

from __future__ import annotations

from collections import deque
from collections.abc import Iterator, Sequence
from typing import Any

import torch
from torch.utils.data import IterableDataset
from transformers import TrainerCallback, TrainerControl, TrainerState, TrainingArguments

from caudal.domain.errors import UsageError
from caudal.train.script.gate import Ticket
from caudal.train.script.run import OuterRun, outer


class _Dealt(IterableDataset[Any]):
    """The samples of one round after the other: every iteration ends with its round."""

    def __init__(self, callback: OuterCallback) -> None:
        self._callback = callback

    def __iter__(self) -> Iterator[Any]:
        return self._callback.deal()


class OuterCallback(TrainerCallback):  # type: ignore[misc] # transformers is not typed
    """Makes a Trainer one site of a run; the arguments are those of `caudal.outer`, but for `batch`, which is
    the Trainer's own. Raises UsageError where the Trainer does not fit."""

    def __init__(self, dataset: Sequence[Any], **settings: Any) -> None:
        self._dataset, self._settings = dataset, settings
        self._begun: deque[Ticket] = deque()  # dealt, and their steps not yet taken
        self._now: Ticket | None = None
        self._loss = 0.0
        self._next: Ticket | None = None
        self.run: OuterRun | None = None

    def dataset(self) -> IterableDataset[Any]:
        """What the Trainer's `train_dataset` has to be."""
        return _Dealt(self)

    def deal(self) -> Iterator[Any]:
        """The samples of the next round."""
        assert self.run is not None, "the dataset is iterated before training begins"
        while self._next is not None:
            ticket, self._next = self._next, None
            self._begun.append(ticket)
            for index in self.run.indexes(ticket):
                yield self._dataset[index]
            if ticket.last:
                return
            self._next = self.run.next_ticket()

    def on_train_begin(
        self, args: TrainingArguments, state: TrainerState, control: TrainerControl, **more: Any
    ) -> None:
        """Join the run."""
        if args.world_size > 1 or args.dataloader_num_workers > 0:
            raise UsageError(
                "the callback deals samples to one process a site",
                why=f"world size {args.world_size}, {args.dataloader_num_workers} loader processes",
                remedy="set dataloader_num_workers=0 and start one process a site",
            )
        batch = args.per_device_train_batch_size * args.gradient_accumulation_steps
        self.run = outer(more["model"], more["optimizer"], self._dataset, batch=batch, **self._settings)
        self.run.__enter__()
        self._next = self.run.next_ticket()
        if self._next is None:
            raise UsageError(
                "the run is finished already", where=self.run.plan.run, remedy="take another name"
            )

    def on_step_begin(
        self, args: TrainingArguments, state: TrainerState, control: TrainerControl, **more: Any
    ) -> None:
        """Let what is due be done to the model before this step."""
        assert self.run is not None
        self._now = self._begun.popleft()
        # The step of a batch that was revoked meanwhile cannot be left out; what it does is undone with the
        # state that is loaded before the next one.
        self.run.gate.begin(self._now)

    def on_step_end(
        self, args: TrainingArguments, state: TrainerState, control: TrainerControl, **more: Any
    ) -> None:
        """The step counts."""
        assert self.run is not None and self._now is not None
        self.run.steps += not self._now.void
        self.run.gate.end(self._now, self._loss)

    def on_log(
        self,
        args: TrainingArguments,
        state: TrainerState,
        control: TrainerControl,
        logs: dict[str, float] | None = None,
        **more: Any,
    ) -> None:
        """The last loss that was logged is what the run's curve shows."""
        value = (logs or {}).get("loss")
        if value is not None:
            self._loss = float(value)

    def on_epoch_end(
        self, args: TrainingArguments, state: TrainerState, control: TrainerControl, **more: Any
    ) -> None:
        """Wait for the next round; end the training with the run."""
        assert self.run is not None
        if self._next is None:
            self._next = self.run.next_ticket()
        if self._next is None:
            control.should_training_stop = True

    @torch.no_grad()
    def on_train_end(
        self, args: TrainingArguments, state: TrainerState, control: TrainerControl, **more: Any
    ) -> None:
        """The model is that of the run, where the run is over; else this site leaves it."""
        assert self.run is not None
        self.run.gate.settle()
        self.run.__exit__(None, None, None)
