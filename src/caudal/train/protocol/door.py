"""Who may join a run: the same program, the same plan, one live site per slot. Pure."""

from __future__ import annotations

import hashlib
import hmac
from collections.abc import Iterator, Mapping
from typing import Any

import msgspec

import caudal
from caudal.train.interface import RunPlan
from caudal.train.messages import MAX_PARTS, MAX_WORD, PROTOCOL, Hello, Refused
from caudal.train.protocol import rules
from caudal.train.protocol.members import Member

STATE_DTYPE = "float32"
"""What states are kept and sent in; what a site computes in is its own affair."""

NAMED = 5
"""So many differences are named: one model of another width differs in more."""


def plan_sha256(plan: RunPlan) -> str:
    """The plan in one word: equal where shape, data, stages, seed and outer optimiser are."""
    return hashlib.sha256(msgspec.json.encode(plan, order="deterministic")).hexdigest()


def prove(token: str, role: str, *nonces: str) -> str:
    """What shows that one holds the run's token, without saying it."""
    return hmac.new(token.encode(), "|".join((role, *nonces)).encode(), hashlib.sha256).hexdigest()


def proven(proof: str, token: str, role: str, *nonces: str) -> bool:
    """Whether the other side holds the same token."""
    return hmac.compare_digest(proof.encode(), prove(token, role, *nonces).encode())


def parts(plan: RunPlan) -> dict[str, str]:
    """What a plan is made of, by name, each in one short word: `model.layers` → `4`, `tokenizer.json` → its
    sha256. At most MAX_PARTS: of a plan with more the rest is one part, a hash."""
    said = msgspec.to_builtins(plan)
    model = {"sha256": said.pop("model"), **said.pop("shape")}
    said["stages"] = {stage.pop("name"): stage for stage in said["stages"]}
    # What follows from the rest comes last: a refusal names the first that differ.
    follows = {"parameters": said.pop("parameters"), "fragments": _short_hash(said.pop("fragments"))}
    named = {"model": model, "dtype": STATE_DTYPE, **said.pop("made_of"), **said, **follows}
    words = {_word(name): _word(value) for name, value in _flat("", named)}
    if len(words) > MAX_PARTS:
        kept = dict(list(words.items())[: MAX_PARTS - 1])
        return {**kept, "the rest": _short_hash(words)}
    return words


def _flat(prefix: str, tree: Mapping[str, Any]) -> Iterator[tuple[str, Any]]:
    """The leaves of nested objects, under dotted names."""
    for name, value in tree.items():
        if isinstance(value, Mapping):
            yield from _flat(f"{prefix}{name}.", value)
        else:
            yield prefix + name, value


def _word(value: object) -> str:
    """A value that fits into a message. A longer one is cut, and
    ends with its hash."""
    text = "".join(c if c.isascii() and c.isprintable() else "?" for c in str(value))
    return text if len(text) <= MAX_WORD else f"{text[: MAX_WORD - 20]}...{_short_hash(text)}"


def _short_hash(value: object) -> str:
    return hashlib.sha256(str(value).encode()).hexdigest()[:16]


def refusal(hello: Hello, plan: RunPlan, generation: int) -> Refused | None:
    """Why this site cannot take part, naming what differs and both sides; None where it can."""
    compared = [
        ("protocol", hello.protocol, PROTOCOL),
        ("version", hello.version, caudal.__version__),
        ("run", hello.run, plan.run),
        ("generation", hello.generation, generation),
    ]
    differ = [row for row in compared if row[1] != row[2]][:1]
    ours = plan_sha256(plan)
    if not differ and (hello.plan, hello.parameters) != (ours, plan.parameters):
        differ = _differing(hello.parts, parts(plan)) if hello.parts and hello.plan != ours else []
        both = (("parameters", hello.parameters, plan.parameters), ("plan", hello.plan, ours))
        differ = differ or [row for row in both if row[1] != row[2]]
    if not differ:
        return None
    lines = [f"the {what} at {hello.site} is {a}, at the coordinator {b}" for what, a, b in differ[:NAMED]]
    more = f"; and {len(differ) - NAMED} more" if len(differ) > NAMED else ""
    text = "".join(c if c.isprintable() else "?" for c in "; ".join(lines) + more)
    return Refused("mismatch", text, retry_after_s=-1.0)


def _differing(theirs: Mapping[str, str], ours: Mapping[str, str]) -> list[tuple[str, object, object]]:
    """The parts that are not the same at both, in the coordinator's order."""
    names = [*ours, *(name for name in theirs if name not in ours)]
    both = [(name, theirs.get(name, "unknown"), ours.get(name, "unknown")) for name in names]
    return [(name, a, b) for name, a, b in both if a != b]


def duplicate(hello: Hello, live: Member | None) -> Refused | None:
    """Why a slot's second member is refused: an older incarnation that was replaced and has come back."""
    if live is None or live.hello.incarnation <= hello.incarnation:
        return None
    text = f"incarnation {hello.incarnation} of {hello.worker} was replaced by {live.hello.incarnation}"
    return Refused("replaced", text, retry_after_s=-1.0)


class Strikes:
    """Bad deltas in a row, by slot; after rules.STRIKES of them a slot is kept out for a while."""

    def __init__(self) -> None:
        self._counts: dict[str, tuple[int, float]] = {}

    def add(self, worker: str, now: float) -> None:
        """One more."""
        count, _ = self._counts.get(worker, (0, 0.0))
        self._counts[worker] = (count + 1, now + rules.QUARANTINE_S)

    def clear(self, worker: str) -> None:
        """A good one."""
        self._counts.pop(worker, None)

    def kept_out(self, now: float) -> dict[str, str]:
        """The slots that are kept out now, each with the reason."""
        said = {worker: self.refusal(worker, now) for worker in sorted(self._counts)}
        return {worker: refused.text for worker, refused in said.items() if refused is not None}

    def refusal(self, worker: str, now: float) -> Refused | None:
        """What a slot is told that is kept out."""
        count, until = self._counts.get(worker, (0, 0.0))
        if count < rules.STRIKES or now >= until:
            return None
        return Refused("quarantined", f"{count} bad deltas in a row", retry_after_s=until - now)
