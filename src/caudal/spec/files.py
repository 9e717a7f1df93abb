"""What users write → domain values: the way in for files, text and dictionaries.

A spec is told from another by its key `type`: fleet, train or service. Starts and stores nothing.
"""

from __future__ import annotations

import dataclasses
from collections.abc import Mapping
from decimal import Decimal
from pathlib import Path
from typing import Any

from caudal.domain.errors import NotFound, SpecError
from caudal.domain.fleet import FleetSpec
from caudal.domain.workload import ServiceSpec, TrainSpec
from caudal.spec.build import BAD, build, unknown
from caudal.spec.checks import (
    check_base,
    check_fleet,
    check_service,
    check_train,
    is_local_source,
)
from caudal.spec.contracts import check_teams
from caudal.spec.data import check_data, is_path, resolved
from caudal.spec.inline import hoist
from caudal.spec.located import Located, Problems, describe, locate
from caudal.spec.served import with_paths
from caudal.spec.yaml_source import MAX_TEXT_BYTES, read_documents

Spec = FleetSpec | TrainSpec | ServiceSpec

TYPES: dict[str, type[FleetSpec] | type[TrainSpec] | type[ServiceSpec]] = {
    "fleet": FleetSpec,
    "train": TrainSpec,
    "service": ServiceSpec,
}

MAX_FILES = 1_000


def load(path: Path | str) -> list[Spec]:
    """All specs of a file, or of every *.yaml in a folder (by name). Relative paths inside are taken from
    the file's own folder, and training data is looked at. Raises SpecError with every problem of all files
    at once, DataError where only data is wrong, NotFound."""
    chosen = Path(path).expanduser()
    files = sorted(chosen.glob("*.yaml")) if chosen.is_dir() else [chosen]
    if not files:
        raise NotFound("no *.yaml file in this folder", where=str(chosen), remedy="name another folder")
    if len(files) > MAX_FILES:
        raise SpecError(f"more than {MAX_FILES} files", where=str(chosen))
    problems = Problems()
    found: list[tuple[Spec, Located]] = []
    for file in files:
        found += _parse(read_text(file), str(file), file.resolve().parent, problems)
    _check_names(found, problems)
    problems.raise_if_any()
    return [spec for spec, _ in found]


def parse(text: str, where: str, folder: Path | None = None) -> list[Spec]:
    """All specs of the text; `where` names it in errors. With `folder`, relative paths are taken from
    there and training data is looked at; without, they stay as written. Raises SpecError, DataError."""
    problems = Problems()
    found = _parse(text, where, folder, problems)
    _check_names(found, problems)
    problems.raise_if_any()
    return [spec for spec, _ in found]


def from_dict(data: Mapping[str, Any], where: str = "") -> Spec:
    """One spec from plain data, as `to_dict` makes it. Paths stay as they are. Raises SpecError."""
    problems = Problems()
    spec = _spec(locate(data, where or "spec"), None, problems)
    problems.raise_if_any()
    assert spec is not None
    return spec


def check(spec: Spec, where: str = "") -> None:
    """The same rules for a spec that was put together in code (from flags, say), and a look at its training
    data. Raises SpecError, DataError."""
    problems = Problems()
    tree = locate(to_dict(spec), where or "spec")
    _spec(tree, None, problems)
    if isinstance(spec, TrainSpec):
        check_data(spec, tree, problems)
        check_base(spec, tree, problems)
    problems.raise_if_any()


def to_dict(spec: Spec) -> dict[str, Any]:
    """The spec as plain data for JSON or YAML, `type` first, with every default written out."""
    name = next(key for key, cls in TYPES.items() if isinstance(spec, cls))
    return {"type": name, **dataclasses.asdict(spec, dict_factory=_plain_dict)}


def _plain_dict(items: list[tuple[str, Any]]) -> dict[str, Any]:
    return {k: _plain_value(v) for k, v in items}


def _plain_value(value: Any) -> Any:
    if isinstance(value, Decimal):
        return format(value, "f")
    return list(value) if isinstance(value, tuple) else value


def read_text(file: Path) -> str:
    """A file of the user's as text, within limits. Raises NotFound, SpecError."""
    try:
        with file.open("rb") as stream:
            raw = stream.read(MAX_TEXT_BYTES + 1)
        return raw.decode() if len(raw) <= MAX_TEXT_BYTES else raw.decode(errors="replace")
    except FileNotFoundError as error:
        raise NotFound("no such file", where=str(file), remedy="check the path") from error
    except UnicodeDecodeError as error:
        line = raw[: error.start].count(b"\n") + 1
        raise SpecError("not text in UTF-8", where=f"{file}:{line}") from error
    except OSError as error:
        raise SpecError(f"cannot be read: {error.strerror}", where=str(file)) from error


def _parse(text: str, where: str, folder: Path | None, problems: Problems) -> list[tuple[Spec, Located]]:
    documents = read_documents(text, where, problems)
    if not documents:
        problems.add(f"{where}:1", "nothing in it; a spec starts with `type: fleet`, `train` or `service`")
    built = [(_spec(tree, folder, problems), tree) for tree in documents]
    return [(spec, tree) for spec, tree in built if spec is not None]


def _spec(tree: Located, folder: Path | None, problems: Problems) -> Spec | None:
    """The spec of one document, or None with its problems written down."""
    if not isinstance(tree.value, dict):
        problems.add(tree.where, f"expected a table of keys, found {describe(tree.value)}")
        return None
    kind = tree.value.get("type")
    options = " or ".join(TYPES)
    if kind is None:
        problems.add(tree.where, f"the key 'type' is missing: {options}")
        return None
    if not isinstance(kind.value, str) or kind.value not in TYPES:
        said = describe(kind.value)
        text = unknown(kind.value, TYPES, "").partition("; ")[2] if isinstance(kind.value, str) else ""
        hint = f"; {text}" if text.startswith("did") else ""
        problems.add(kind.where, f"type: expected {options}, found {said}{hint}")
        return None
    if kind.value == "fleet":
        tree = hoist(tree, problems)
    built = build(TYPES[kind.value], tree, problems, kind.value, ignore="type")
    if built is BAD:
        return None
    assert isinstance(built, FleetSpec | TrainSpec | ServiceSpec)
    return _checked(built, tree, folder, problems)


def _checked(spec: Spec, tree: Located, folder: Path | None, problems: Problems) -> Spec:
    if isinstance(spec, FleetSpec):
        check_fleet(spec, tree, problems)
    elif isinstance(spec, TrainSpec):
        check_train(spec, tree, problems)
        if folder is not None and is_path(spec.data):
            spec = dataclasses.replace(spec, data=resolved(spec.data, folder))
        if folder is not None:
            check_data(spec, tree, problems)
        if folder is not None and is_local_source(spec.base.path):
            base = dataclasses.replace(spec.base, path=_resolve(spec.base.path, folder))
            spec = dataclasses.replace(spec, base=base)
            check_base(spec, tree, problems)
    else:
        check_service(spec, tree, problems)
        if folder is not None:
            models = (
                dataclasses.replace(m, source=_resolve(m.source, folder)) if is_local_source(m.source) else m
                for m in spec.models
            )
            models = (with_paths(m, lambda path: _resolve(path, folder)) for m in models)
            spec = dataclasses.replace(spec, models=tuple(models))
    return spec


def _resolve(path: str, folder: Path) -> str:
    return str((folder / Path(path).expanduser()).resolve())


def _check_names(found: list[tuple[Spec, Located]], problems: Problems) -> None:
    """Runs and services share one set of names; a set of files has one fleet."""
    seen: dict[str, str] = {}
    for spec, tree in found:
        what = "fleet" if isinstance(spec, FleetSpec) else f"workload {spec.name!r}"
        first = seen.setdefault(what, tree.where)
        if first != tree.where:
            problems.add(tree.at(["name"]), f"name: a second {what}; the first is at {first}")
    teams = [spec.team for spec, _ in found if not isinstance(spec, FleetSpec)]
    for spec, tree in found:
        if isinstance(spec, FleetSpec) and teams:
            check_teams(spec, tree, teams, problems)
