"""Engines and external addresses in a service file: what is accepted, and what is said of the rest."""

from __future__ import annotations

from pathlib import Path

import jsonschema
import pytest
import yaml

from caudal import spec
from caudal.domain.errors import SpecError
from caudal.domain.fleet import Resources
from caudal.domain.workload import ExternalSpec, ServiceSpec

GPU = "resources: {cpus: 4, memory_bytes: 16GiB, accelerators: 1}"
PAID = "usd_per_million_in: 0.5, usd_per_million_out: 1.5, budget_usd_per_month: 20"


def service(model: str) -> str:
    return f"type: service\nname: talk\nmodels:\n  - {{id: m, {model}}}\n"


def read(model: str, folder: Path | None = None) -> ServiceSpec:
    (found,) = spec.parse(service(model), "f.yaml", folder)
    assert isinstance(found, ServiceSpec)
    jsonschema.validate(yaml.safe_load(service(model)), spec.schema())
    return found


def said(model: str) -> str:
    with pytest.raises(SpecError) as caught:
        spec.parse(service(model), "f.yaml")
    return str(caught.value)


def test_an_engine_is_chosen_with_what_it_needs() -> None:
    (model,) = read("run: r").models
    assert (model.engine, model.engine_args, model.own) == ("llama.cpp", (), True)
    arguments = "engine_args: [--tool-call-parser, hermes]"
    (model,) = read(f"source: 'hf:org/name', engine: vllm, {arguments}, {GPU}").models
    assert (model.engine, model.engine_args) == ("vllm", ("--tool-call-parser", "hermes"))
    assert model.resources == Resources(4.0, 16 << 30, 1)


@pytest.mark.parametrize(
    ("model", "words"),
    [
        ("run: r, engine: vlm", "did you mean 'vllm'?"),
        ("run: r, engine: vllm", "say which cpus, memory_bytes and accelerators vllm gets"),
        (f"source: models/m.gguf, engine: sglang, {GPU}", "models/m.gguf is a GGUF file"),
        (f"source: 'hf:o/n:m.gguf', engine: vllm, {GPU}", "hf:o/n:m.gguf is a GGUF file"),
        ("run: r, engine_args: [-x]", "has no command line"),
        (f"run: r, engine: vllm, engine_args: [--port, '1'], {GPU}", "--port is set from the other keys"),
        (
            f"run: r, engine: vllm, engine_args: ['--served_model_name=x'], {GPU}",
            "is set from the other keys",
        ),
        (f"run: r, engine: vllm, engine_args: ['--api-key=x'], {GPU}", "--api-key would show a secret"),
        (f"run: r, engine: vllm, engine_args: ['--api_k', x], {GPU}", "--api-k would show a secret"),
        (f"engine: vllm, external: {{url: 'https://h/v1'}}, {GPU}", "nothing to serve: m is external"),
    ],
)
def test_what_an_engine_cannot_do_is_said_before_anything_starts(model: str, words: str) -> None:
    assert words in said(model)


def test_an_external_address_beside_or_instead_of_replicas(tmp_path: Path) -> None:
    external = f"external: {{url: 'https://api.example.com/v1', model: big, key_file: keys/one, {PAID}}}"
    (both,) = read(f"source: m.gguf, {external}", tmp_path).models
    assert both.own and both.external == ExternalSpec(
        "https://api.example.com/v1",
        "big",
        str(tmp_path / "keys/one"),
        usd_per_million_in=0.5,
        usd_per_million_out=1.5,
        budget_usd_per_month=20.0,
    )
    (only,) = read("external: {url: 'http://10.0.0.7:8000/v1', overflow: false}").models
    assert not only.own and not only.external.overflow and not only.external.paid


@pytest.mark.parametrize(
    ("external", "words"),
    [
        ("model: big", "an address is needed"),
        ("url: 'ftp://h/v1'", "is not of the form https://"),
        ("url: 'https:///v1'", "names no host"),
        ("url: 'https://h:99999/v1'", "is no address"),
        ("url: 'https://me:sk-1@h/v1'", "keys go into key_file"),
        ("url: 'https://h/v1?key=1'", "has more than a path"),
        ("url: 'http://10.0.0.7/v1', key_file: k", "the key would travel in the clear"),
        ("url: 'http://10.0.0.7/v1', ca_file: k", "certificates are for https"),
        ("url: 'https://h/v1', usd_per_million_out: 1", "what has a price needs a budget"),
        ("url: 'https://h/v1', budget_usd_per_month: 1", "without a price nothing is ever spent"),
        ("url: 'https://h/v1', usd_per_million_in: -1", "expected a number from 0 to 100,000"),
        ("url: 'https://h/v1', key: sk-1", "unknown key 'key'"),
        ("url: 'https://h/v1', limit_key: tokens", "limit_key: expected"),
    ],
)
def test_an_external_address_that_cannot_be(external: str, words: str) -> None:
    assert words in said(f"run: r, external: {{{external}}}")


def test_a_key_may_stay_on_this_machine_in_the_clear() -> None:
    for host in ("localhost", "127.0.0.1", "[::1]"):
        read(f"external: {{url: 'http://{host}:8000/v1', key_file: /k}}")


def test_a_model_comes_from_somewhere() -> None:
    assert "exactly one of `source` and `run`" in said("context: 64")
    external = "external: {url: 'https://h/v1'}"
    assert "found both" in said(f"run: r, source: x, {external}")


def test_an_opening_leaves_room_for_the_rest() -> None:
    (model,) = read("run: r, context: 16, slots: 2, opening: You are brief.").models
    assert model.opening == "You are brief."
    many = "a" * 65
    assert "65 characters leave no room in a context of 16 tokens" in said(
        f"run: r, context: 16, slots: 2, opening: {many}"
    )
