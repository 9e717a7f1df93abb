"""The engines by name: what a replica's configuration may ask for."""

from __future__ import annotations

from collections.abc import Callable, Mapping

from caudal.domain.errors import UsageError
from caudal.ports import Engine
from caudal.serve.llama_cpp import LlamaCppEngine

DEFAULT = LlamaCppEngine.name

ENGINES: Mapping[str, Callable[[], Engine]] = {LlamaCppEngine.name: LlamaCppEngine}


def make_engine(name: str = DEFAULT) -> Engine:
    """An engine that is not started. Raises UsageError for a name that nobody has."""
    try:
        return ENGINES[name]()
    except KeyError:
        known = ", ".join(sorted(ENGINES))
        raise UsageError(f"there is no engine {name!r}", remedy=f"Choose one of: {known}.") from None
