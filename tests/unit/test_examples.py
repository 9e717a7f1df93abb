"""Every example is loaded, is valid by the published schema, and fits a small machine."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import jsonschema
import pytest
import yaml

from caudal import spec
from caudal.domain.workload import ServiceSpec, TrainSpec
from caudal.estimate.memory import parameters, vocabulary, worker_bytes
from caudal.spec.demand import load_demand, load_quote

EXAMPLES = Path(__file__).parents[2] / "examples"
FILES = sorted(EXAMPLES.glob("*/*.yaml"))
FLEETS = sorted({f.parent for f in FILES} - {EXAMPLES / "plan"})


def valid(data: Any) -> bool:
    """By the published schema."""
    return bool(jsonschema.Draft202012Validator(spec.schema()).is_valid(data))


def starter() -> TrainSpec:
    """The run of examples/starter."""
    found = [s for s in spec.load(EXAMPLES / "starter") if isinstance(s, TrainSpec)]
    assert len(found) == 1
    return found[0]


@pytest.mark.parametrize("file", FILES, ids=lambda f: f"{f.parent.name}/{f.name}")
def test_an_example_is_loaded_and_fits_the_schema(file: Path) -> None:
    load = load_quote if file.stem == "quote" else load_demand if file.parent.name == "plan" else spec.load
    assert load(file)
    for document in yaml.safe_load_all(file.read_text()):
        jsonschema.validate(document, spec.schema(), cls=jsonschema.Draft202012Validator)


@pytest.mark.parametrize("folder", FLEETS, ids=lambda f: f.name)
def test_an_example_folder_goes_together(folder: Path) -> None:
    specs = spec.load(folder)
    runs = {s.name for s in specs if isinstance(s, TrainSpec)}
    for service in specs:
        if isinstance(service, ServiceSpec):
            assert {m.run for m in service.models if m.run} <= runs


def test_the_starter_is_small() -> None:
    run = starter()
    assert 1_000_000 <= parameters(run.model, vocabulary(run.tokenizer)) <= 1_200_000
    assert [s.kind for s in run.stages] == ["text", "chat"]
    assert worker_bytes(run) <= run.resources.memory_bytes


def test_the_schema_is_valid_and_json() -> None:
    schema = spec.schema()
    jsonschema.Draft202012Validator.check_schema(schema)
    assert json.loads(json.dumps(schema)) == schema


def test_the_schema_refuses_what_the_loader_refuses() -> None:
    good = {"type": "fleet", "name": "x", "sites": [{"name": "a"}]}
    assert valid(good)
    assert valid({**good, "gateway": {"port": 1}})
    for change in (
        {"type": "flet"},
        {"nam": "y"},
        {"name": "X"},
        {"sites": [{"nam": "a"}]},
        {"sites": "a"},
        {"gateway": {"port": 0}},
        {"gateway": {"port": "x"}},
    ):
        assert not valid({**good, **change}), change
    assert not valid({"type": "train", "name": "x", "stages": []})  # no data


def test_the_schema_knows_units() -> None:
    data = spec.to_dict(starter())
    assert valid(data)
    assert valid({**data, "resources": {"memory_bytes": "1GiB"}})
    assert not valid({**data, "resources": {"memory_bytes": "1 giga"}})
