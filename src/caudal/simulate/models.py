"""A model store without files, for the simulator: what can be pulled arrives, what runs publish is there."""

from __future__ import annotations

from collections.abc import Callable, Sequence

from caudal.domain.errors import PullFailed
from caudal.domain.model import ModelRecord
from caudal.ports import Clock


class FakeModels:
    """Implements `ports.Models` in memory. `fails` is asked before each pull whether it fails."""

    def __init__(
        self, clock: Clock, *, fails: Callable[[], bool] = lambda: False, pull_s: float = 0.0
    ) -> None:
        self.pulls = 0
        self._clock = clock
        self._fails = fails
        self._pull_s = pull_s
        self._newest: dict[str, ModelRecord] = {}

    def list(self) -> Sequence[ModelRecord]:
        """The newest version of each, ordered by id."""
        return [self._newest[key] for key in sorted(self._newest)]

    def pull(self, model_id: str, source: str, sha256: str = "") -> ModelRecord:
        """Bring one in; one that is there from the same source is not fetched again."""
        there = self._newest.get(model_id)
        if there is not None and there.source == source:
            return there
        self._clock.sleep(self._pull_s)
        if self._fails():
            raise PullFailed(f"{source} does not answer", where=model_id, remedy="it is tried again")
        self.pulls += 1
        return self.publish(model_id, source)

    def publish(self, model_id: str, source: str, run: str = "") -> ModelRecord:
        """The next version of a model."""
        there = self._newest.get(model_id)
        record = ModelRecord(
            id=model_id,
            version=1 if there is None else there.version + 1,
            source=source,
            published_at=self._clock.now(),
            files=((f"{model_id}.gguf", "0" * 64),),
            size_bytes=1,
            gguf=f"{model_id}.gguf",
            context=2048,
            run=run,
        )
        self._newest[model_id] = record
        return record
