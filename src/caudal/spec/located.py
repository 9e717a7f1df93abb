"""Values with the place where the user wrote them, and what is found wrong with them.

The builder and the checks read this tree alone; they know nothing of YAML or JSON.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

from caudal.domain.errors import CaudalError, DataError, SpecError

MAX_NODES = 20_000
"""More values than any file of ours needs, and few enough to walk in no time."""

MAX_DEPTH = 16

MAX_PROBLEMS = 50
"""As many as anybody reads at once."""

Scalar = str | int | float | bool | None


@dataclass(frozen=True, slots=True)
class Located:
    """One value. `where` is `file:line`, or the path inside a dictionary that came over the API."""

    value: Scalar | list[Located] | dict[str, Located]
    where: str

    def at(self, path: Sequence[str | int]) -> str:
        """Where the value at the path stands; where a part is missing, its nearest parent."""
        here = self
        for part in path:
            inner: Located | None = None
            if isinstance(here.value, dict) and isinstance(part, str):
                inner = here.value.get(part)
            elif isinstance(here.value, list) and isinstance(part, int) and part < len(here.value):
                inner = here.value[part]
            if inner is None:
                break
            here = inner
        return here.where


@dataclass(slots=True)
class Problems:
    """Collects what is wrong, so that the user sees all of it at once."""

    found: list[tuple[str, str, bool]] = field(default_factory=list)

    @property
    def full(self) -> bool:
        """Whether enough was found to stop looking."""
        return len(self.found) >= MAX_PROBLEMS

    def add(self, where: str, text: str, *, data: bool = False) -> None:
        """One thing that is wrong; `data`: with the training data, not with the file."""
        if (
            not self.full and (where, text, data) not in self.found
        ):  # an alias shows the same line several times
            self.found.append((where, text, data))

    def raise_if_any(self) -> None:
        """Raises SpecError (DataError where only data is at fault) with one line per problem."""
        if not self.found:
            return
        kind: type[CaudalError] = DataError if all(data for _, _, data in self.found) else SpecError
        where, first, _ = (ordered := sorted(self.found, key=self._place))[0]
        more = [f"{w}: {text}" if w else text for w, text, _ in ordered[1:]]
        remedy = "`caudal schema` prints every key that is allowed" if kind is SpecError else ""
        raise kind("\n".join([first, *more]), where=where, remedy=remedy)

    def _place(self, problem: tuple[str, str, bool]) -> tuple[str, int]:
        """By file, then by line as a number."""
        file, _, line = problem[0].rpartition(":")
        return (file, int(line)) if line.isdigit() else (problem[0], 0)


def locate(data: Any, where: str) -> Located:
    """Plain data (as JSON gives it) as a tree; each value's place is its path. Raises SpecError."""
    budget = [MAX_NODES]

    def walk(value: Any, place: str, depth: int) -> Located:
        """The value and all below it."""
        budget[0] -= 1
        if budget[0] < 0 or depth > MAX_DEPTH:
            raise SpecError("too many values, or nested too deeply", where=where)
        if isinstance(value, Mapping):
            items: dict[str, Located] = {}
            for key, inner in value.items():
                if not isinstance(key, str):
                    raise SpecError(f"a key is {describe(key)}; keys are text", where=place)
                items[key] = walk(inner, f"{place}.{key}", depth + 1)
            return Located(items, place)
        if isinstance(value, list | tuple):
            return Located([walk(v, f"{place}[{i}]", depth + 1) for i, v in enumerate(value)], place)
        if value is None or isinstance(value, str | int | float | bool):
            return Located(value, place)
        raise SpecError(f"{type(value).__name__} is not a value that a file can hold", where=place)

    return walk(data, where, 0)


def describe(value: Any) -> str:
    """What was found, in words, cut to a readable length."""
    if value is None:
        return "nothing"
    if isinstance(value, bool):
        return "yes/no"
    if isinstance(value, int | float):
        return f"the number {str(value)[:40]}"
    if isinstance(value, str):
        return f"the text {value[:40]!r}" + ("..." if len(value) > 40 else "")
    return "a list" if isinstance(value, list | tuple) else "a table of keys"
