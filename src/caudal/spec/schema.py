"""The JSON Schema of everything that users write, for editors and for the docs. Made from the same
dataclasses and limits that the builder reads, so the two cannot drift apart."""

from __future__ import annotations

import dataclasses
import inspect
import typing
from decimal import Decimal
from typing import Any

from caudal.domain.demand import DemandSpec, QuoteSpec
from caudal.spec.build import hints
from caudal.spec.files import TYPES
from caudal.spec.limits import NAME_PATTERN, NAMES, RANGES
from caudal.spec.units import COUNT_PATTERN, SIZE_PATTERN

ALL: dict[str, type] = {**TYPES, "demand": DemandSpec, "quote": QuoteSpec}

MONEY_PATTERN = r"^[0-9]{1,15}(\.[0-9]{1,10})?$"
DIALECT = "https://json-schema.org/draft/2020-12/schema"


def schema() -> dict[str, Any]:
    """One schema for `type: fleet`, `train`, `service`, `demand` and `quote`."""
    definitions: dict[str, Any] = {}
    for name, cls in ALL.items():
        _table(cls, definitions, kind=name)
    sites = definitions["SiteSpec"]["properties"]
    for key, table in (("provider", "ProviderSpec"), ("driver", "DriverSpec")):
        inline = {**definitions[table], "required": ["kind"]}  # `name` is its kind where it says none
        sites[key] = {"anyOf": [sites[key], inline], "default": sites[key]["default"]}
    branches = [
        {
            "if": {"properties": {"type": {"const": name}}, "required": ["type"]},
            "then": {"$ref": f"#/$defs/{cls.__name__}"},
        }
        for name, cls in ALL.items()
    ]
    return {
        "$schema": DIALECT,
        "title": "Caudal: a fleet, a run, a service, a demand or a quote",
        "type": "object",
        "required": ["type"],
        "properties": {"type": {"enum": list(ALL), "description": "Which of them the file describes."}},
        "allOf": branches,
        "$defs": definitions,
    }


def _table(cls: type, definitions: dict[str, Any], kind: str = "") -> dict[str, Any]:
    """A reference to the dataclass's table, which is added to the definitions."""
    if cls.__name__ not in definitions:
        definitions[cls.__name__] = {}  # taken, should a type ever contain itself
        properties: dict[str, Any] = {"type": {"const": kind}} if kind else {}
        required = ["type"] if kind else []
        for item in dataclasses.fields(cls):
            properties[item.name] = _field(cls, item, definitions)
            if item.default is dataclasses.MISSING and item.default_factory is dataclasses.MISSING:
                required.append(item.name)
        definitions[cls.__name__] = {
            "description": inspect.cleandoc(cls.__doc__ or ""),
            "type": "object",
            "additionalProperties": False,
            "properties": properties,
            "required": required,
        }
    return {"$ref": f"#/$defs/{cls.__name__}"}


def _field(cls: type, item: dataclasses.Field[Any], definitions: dict[str, Any]) -> dict[str, Any]:
    result = _value(hints(cls)[item.name], item.name, definitions)
    limit = RANGES.get(cls, {}).get(item.name)
    if limit is not None:
        number = result["anyOf"][0] if "anyOf" in result else result
        number["exclusiveMinimum" if limit.above else "minimum"] = limit.low
        number["maximum"] = limit.high
    if item.name in NAMES.get(cls, ()):
        result.get("items", result)["pattern"] = NAME_PATTERN
    if isinstance(item.default, str | int | float | bool):
        result["default"] = item.default
    return result


def _value(kind: Any, name: str, definitions: dict[str, Any]) -> dict[str, Any]:
    origin = typing.get_origin(kind)
    if origin is tuple:
        return {"type": "array", "items": _value(typing.get_args(kind)[0], name, definitions)}
    if origin is typing.Literal:
        return {"enum": list(typing.get_args(kind))}
    if dataclasses.is_dataclass(kind):
        assert isinstance(kind, type)
        return _table(kind, definitions)
    if kind is int:
        pattern = SIZE_PATTERN if name.endswith("_bytes") else COUNT_PATTERN
        return {"anyOf": [{"type": "integer"}, {"type": "string", "pattern": pattern}]}
    if kind is Decimal:
        return {"anyOf": [{"type": "number", "minimum": 0}, {"type": "string", "pattern": MONEY_PATTERN}]}
    return {"type": {str: "string", float: "number", bool: "boolean"}[kind]}
