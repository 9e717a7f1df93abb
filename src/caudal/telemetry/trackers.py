"""Where a run's curve can be sent: JSON lines, TensorBoard, Weights & Biases, or whatever is installed beside.

A tracker is a callable of an entry point in the group `caudal.trackers`: it is given the run's name and a
destination and returns a `Tracker`. It is told of each point once, in order, and says where it was when it is
opened again.
"""

from __future__ import annotations

import json
from collections.abc import Callable, Mapping
from importlib import metadata
from pathlib import Path
from typing import Any, Protocol

from caudal.domain.errors import UsageError

GROUP = "caudal.trackers"


class Tracker(Protocol):
    """Takes a run's points. `last` is the newest that it has already, -1 where there is none."""

    last: int

    def add(self, seq: int, at: float, values: Mapping[str, Any]) -> None:
        """One point: `at` in seconds since 1970; values are numbers, texts or null."""
        ...

    def close(self) -> None:
        """Write what waits."""
        ...


def open_tracker(run: str, to: str) -> Tracker:
    """`KIND=DESTINATION`. Raises UsageError where there is no such kind, or its library is not installed."""
    kind, separator, destination = to.partition("=")
    known = {point.name: point for point in metadata.entry_points(group=GROUP)}
    if not separator or not destination or kind not in known:
        raise UsageError(
            f"{to!r} is not KIND=DESTINATION", why=f"kinds that are installed: {', '.join(sorted(known))}"
        )
    try:
        make: Callable[[str, str], Tracker] = known[kind].load()
        return make(run, destination)
    except ImportError as error:
        raise UsageError(
            f"{kind} is not installed", why=str(error), remedy="pip install 'caudal[tracking]'"
        ) from None


def numbers(values: Mapping[str, Any]) -> dict[str, float]:
    """The values that can be drawn."""
    return {
        key: float(value)
        for key, value in values.items()
        if isinstance(value, int | float) and not isinstance(value, bool)
    }


class JsonLines:
    """A file with one point a line, as it comes; a line that a crash cut off is dropped."""

    def __init__(self, run: str, destination: str) -> None:
        path = Path(destination)
        path.parent.mkdir(parents=True, exist_ok=True)
        self.last = -1
        whole = 0
        if path.exists():
            for line in path.read_bytes().splitlines(keepends=True):
                try:
                    seq = int(json.loads(line)["seq"])
                except (ValueError, KeyError, TypeError):
                    break
                if not line.endswith(b"\n"):
                    break
                self.last = seq
                whole += len(line)
        self._file = path.open("ab")
        self._file.truncate(whole)
        self._run = run

    def add(self, seq: int, at: float, values: Mapping[str, Any]) -> None:
        """One line."""
        row = {"run": self._run, "seq": seq, "at": at, **values}
        self._file.write(json.dumps(row, sort_keys=True).encode() + b"\n")
        self.last = seq

    def close(self) -> None:
        """Close the file."""
        self._file.close()


class TensorBoard:
    """Event files below a folder, `DESTINATION/RUN`: what TensorBoard shows as one run."""

    def __init__(self, run: str, destination: str) -> None:
        from tensorboard.summary import Writer  # noqa: PLC0415 (an extra)

        folder = Path(destination) / run
        folder.mkdir(parents=True, exist_ok=True)
        self._place = folder / "caudal-last.json"
        self.last = int(self._place.read_text()) if self._place.exists() else -1
        self._writer = Writer(str(folder))

    def add(self, seq: int, at: float, values: Mapping[str, Any]) -> None:
        """Every number as a scalar, against the tokens trained."""
        step = int(values.get("tokens") or seq)
        for key, value in numbers(values).items():
            if key != "tokens":
                self._writer.add_scalar(key, value, step, wall_time=at)
        self.last = seq

    def close(self) -> None:
        """Write the events, then how far they go."""
        self._writer.close()
        self._place.write_text(str(self.last))


class WeightsAndBiases:
    """A run of the project DESTINATION at Weights & Biases. The key is in WANDB_API_KEY or in wandb's own file."""

    def __init__(self, run: str, destination: str) -> None:
        import wandb  # noqa: PLC0415 (an extra)

        self._run = wandb.init(project=destination, id=run, name=run, resume="allow")
        self.last = self._run.starting_step - 1

    def add(self, seq: int, at: float, values: Mapping[str, Any]) -> None:
        """One step, numbered as the run's curve."""
        self._run.log({**numbers(values), "at": at}, step=seq)
        self.last = seq

    def close(self) -> None:
        """Send what waits."""
        self._run.finish()
