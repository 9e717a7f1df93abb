"""The rules for a served model's engine and for its external address. Pure: nobody is asked."""

from __future__ import annotations

import dataclasses
import ipaddress
from collections.abc import Callable
from urllib.parse import urlsplit

from caudal.domain.workload import ExternalSpec, ServedModel
from caudal.spec.located import Located, Problems

LLAMA_CPP = "llama.cpp"

# fmt: off
OURS = frozenset((
    "--host", "--port", "--uds", "--config", "--served-model-name",
    "--model", "--max-model-len", "--max-num-seqs", "--tensor-parallel-size",  # vLLM
    "--model-path", "--context-length", "--max-running-requests", "--tp-size",  # SGLang
))
# fmt: on
"""What Caudal says itself when it starts an engine."""

SECRET = ("--api-key", "--admin-api-key", "--hf-token", "--ssl-keyfile-password")
"""Command lines can be read by everybody on a machine."""

MAX_ARGUMENTS = 64


def check_engine(model: ServedModel, tree: Located, path: list[str | int], problems: Problems) -> None:
    """Whether the engine can read what it is given, and is given what it needs."""
    if model.engine == LLAMA_CPP:
        if model.engine_args:
            where = tree.at([*path, "engine_args"])
            problems.add(where, f"engine_args: {LLAMA_CPP} runs inside the replica and has no command line")
        return
    if not model.own:
        problems.add(
            tree.at([*path, "engine"]), f"engine: {model.engine} has nothing to serve: {model.id} is external"
        )
        return
    if model.source.endswith(".gguf"):
        text = f"engine: {model.engine} reads a Hugging Face directory, and {model.source} is a GGUF file"
        problems.add(tree.at([*path, "engine"]), text)
    if model.resources == ServedModel("").resources:
        text = (
            f"resources: what is meant without it is for a small model on {LLAMA_CPP}; "
            f"say which cpus, memory_bytes and accelerators {model.engine} gets"
        )
        problems.add(tree.at([*path, "resources"]), text)
    _check_arguments(model, tree.at([*path, "engine_args"]), problems)


def _check_arguments(model: ServedModel, where: str, problems: Problems) -> None:
    if len(model.engine_args) > MAX_ARGUMENTS:
        problems.add(where, f"engine_args: at most {MAX_ARGUMENTS}")
    for argument in model.engine_args:
        name = argument.partition("=")[0].replace("_", "-")  # vLLM takes both, and abbreviations
        if name in OURS:
            problems.add(where, f"engine_args: {name} is set from the other keys of the model")
        elif len(name) > len("--api") and any(full.startswith(name) for full in SECRET):
            problems.add(where, f"engine_args: {name} would show a secret to everybody on the machine")
        elif "\0" in argument:
            problems.add(where, "engine_args: a command line has no zero bytes")


def check_external(model: ServedModel, tree: Located, path: list[str | int], problems: Problems) -> None:
    """Its address, its key and its price."""
    external = model.external

    def add(key: str, text: str) -> None:
        problems.add(tree.at([*path, "external", key]), f"{key}: {text}")

    if not external.url:
        if external != ExternalSpec():
            add("url", f"an address is needed for the external {model.id}")
        return
    wrong = _wrong_url(external.url)
    if wrong:
        add("url", f"{external.url[:200]!r} {wrong}")
    elif external.key_file and not external.url.startswith("https:") and not _stays_here(external.url):
        add("key_file", "the key would travel in the clear; use https")
    if external.ca_file and not external.url.startswith("https:"):
        add("ca_file", "certificates are for https")
    if external.paid and not external.budget_usd_per_month:
        add("budget_usd_per_month", "what has a price needs a budget, so that a busy night has an end")
    if external.budget_usd_per_month and not external.paid:
        add("budget_usd_per_month", "without a price nothing is ever spent of it")


def with_paths(model: ServedModel, resolve: Callable[[str], str]) -> ServedModel:
    """The model with the paths of its `key_file` and `ca_file` resolved."""
    external = dataclasses.replace(
        model.external,
        key_file=resolve(model.external.key_file) if model.external.key_file else "",
        ca_file=resolve(model.external.ca_file) if model.external.ca_file else "",
    )
    return dataclasses.replace(model, external=external)


def _wrong_url(url: str) -> str:
    """What is wrong with it; empty where nothing is."""
    try:
        parts = urlsplit(url)
        port = parts.port
    except ValueError:
        return "is no address"
    if any(ord(c) <= 32 or ord(c) > 126 for c in url) or parts.scheme not in ("http", "https"):
        return "is not of the form https://HOST[:PORT]/PATH"
    if not parts.hostname or port == 0:
        return "names no host"
    if parts.username is not None or parts.password is not None:
        return "holds a name or a password; keys go into key_file"
    if parts.query or parts.fragment:
        return "has more than a path"
    return ""


def _stays_here(url: str) -> bool:
    host = urlsplit(url).hostname or ""
    try:
        return host == "localhost" or ipaddress.ip_address(host).is_loopback
    except ValueError:
        return False
