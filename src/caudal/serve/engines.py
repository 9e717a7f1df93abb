"""The engines by name: what a replica's configuration may ask for, and which are installed here."""

from __future__ import annotations

import importlib.util
from collections.abc import Callable, Mapping

from caudal.domain.errors import UsageError
from caudal.ports import Engine
from caudal.serve import sglang, vllm
from caudal.serve.llama_cpp import LlamaCppEngine
from caudal.serve.sglang import SglangEngine
from caudal.serve.vllm import VllmEngine

DEFAULT = LlamaCppEngine.name

ENGINES: Mapping[str, Callable[[], Engine]] = {
    LlamaCppEngine.name: LlamaCppEngine,
    VllmEngine.name: VllmEngine,
    SglangEngine.name: SglangEngine,
}


def make_engine(name: str = DEFAULT) -> Engine:
    """An engine that is not started. Raises UsageError for a name that nobody has."""
    try:
        return ENGINES[name]()
    except KeyError:
        known = ", ".join(sorted(ENGINES))
        raise UsageError(f"there is no engine {name!r}", remedy=f"Choose one of: {known}.") from None


def installed() -> dict[str, str]:
    """Where each engine is on this machine, by name; empty where it is not. Starts none of them."""
    package = importlib.util.find_spec("xllamacpp")
    return {
        LlamaCppEngine.name: str(package.origin or "a package") if package is not None else "",
        VllmEngine.name: vllm.found(),
        SglangEngine.name: sglang.found(),
    }
