"""Located values → the domain's dataclasses, by their type hints. Knows no YAML and no rule that looks at
two fields."""

from __future__ import annotations

import dataclasses
import difflib
import functools
import math
import re
import types
import typing
from decimal import Decimal, InvalidOperation
from typing import Any, Final

from caudal.domain.workload import PRESETS
from caudal.spec.limits import NAME_PATTERN, NAME_WORDS, NAMES, RANGES
from caudal.spec.located import Located, Problems, describe
from caudal.spec.units import parse_count, parse_size

BAD: Final = object()
"""Stands for a value that was wrong; the problem has been written down."""

MOST_USD = Decimal(10) ** 13
_NAME = re.compile(NAME_PATTERN)


@functools.cache
def hints(cls: type) -> dict[str, Any]:
    """The type of each field, with the annotations resolved."""
    return typing.get_type_hints(cls)


def build(cls: type, tree: Located, problems: Problems, called: str, ignore: str = "") -> Any:
    """An instance of the dataclass, or BAD with every problem written down.

    `called` is what the user knows the table as; the key `ignore` is skipped.
    """
    if not isinstance(tree.value, dict):
        problems.add(tree.where, f"{called}: expected a table of keys, found {describe(_plain(tree))}")
        return BAD
    fields = {f.name: f for f in dataclasses.fields(cls)}
    values: dict[str, Any] = {}
    for key, item in tree.value.items():
        if key == ignore or problems.full:
            continue
        if key not in fields:
            problems.add(item.where, unknown(key, fields, called))
            continue
        value = _value(hints(cls)[key], item, problems, key)
        values[key] = value if value is BAD else _checked(cls, key, value, item, problems)
    for name, value in PRESETS.get(cls, {}).get(str(values.get("preset")), {}).items():
        values.setdefault(name, value)
    for name, spec in fields.items():
        has_default = (
            spec.default is not dataclasses.MISSING or spec.default_factory is not dataclasses.MISSING
        )
        if not has_default and name not in values:
            problems.add(tree.where, f"{called}: the key {name!r} is missing")
            values[name] = BAD
    return BAD if any(v is BAD for v in values.values()) else cls(**values)


def unknown(key: str, known: typing.Iterable[str], called: str) -> str:
    """The sentence for a key that does not exist, with the nearest that does."""
    options = sorted(known)
    near = difflib.get_close_matches(key, options, n=1, cutoff=0.6)
    hint = f"did you mean {near[0]!r}?" if near else f"known keys: {', '.join(options)}"
    return f"{called}: unknown key {key[:60]!r}; {hint}"


def _value(kind: Any, item: Located, problems: Problems, key: str) -> Any:
    """One value of the given type, or BAD."""
    origin = typing.get_origin(kind)
    if origin is tuple:
        return _sequence(typing.get_args(kind)[0], item, problems, key)
    if dataclasses.is_dataclass(kind):
        assert isinstance(kind, type)
        return build(kind, item, problems, key)
    if origin is typing.Literal:
        return _literal(typing.get_args(kind), item, problems, key)
    assert kind in _SCALARS, f"spec/build.py cannot build {kind!r} for {key!r}"
    expected, convert = _SCALARS[kind]
    value = convert(item.value, key)
    if value is BAD:
        expected = "a size in bytes such as 512MiB" if key.endswith("_bytes") else expected
        hint = "; put quotes around it" if kind is str and item.value is not None else ""
        found = describe(_plain(item))
        problems.add(item.where, f"{key}: expected {expected}, found {found}{hint}")
    return value


def _sequence(kind: Any, item: Located, problems: Problems, key: str) -> Any:
    if not isinstance(item.value, list):
        problems.add(item.where, f"{key}: expected a list, found {describe(_plain(item))}")
        return BAD
    singular = key.removesuffix("s")
    values = [
        _value(kind, inner, problems, f"{singular} {number}") for number, inner in enumerate(item.value, 1)
    ]
    return BAD if any(v is BAD for v in values) else tuple(values)


def _literal(options: tuple[Any, ...], item: Located, problems: Problems, key: str) -> Any:
    for option in options:
        if option == item.value and type(option) is type(item.value):
            return option
    words = " or ".join(str(option) for option in options)
    texts = [str(option) for option in options]
    near = difflib.get_close_matches(str(item.value), texts, n=1) if isinstance(item.value, str) else []
    hint = f"; did you mean {near[0]!r}?" if near else ""
    problems.add(item.where, f"{key}: expected {words}, found {describe(_plain(item))}{hint}")
    return BAD


def _checked(cls: type, key: str, value: Any, item: Located, problems: Problems) -> Any:
    """The value, or BAD where the limits of its field forbid it."""
    limit = RANGES.get(cls, {}).get(key)
    if limit is not None and not limit.holds(value):
        problems.add(item.where, f"{key}: expected a number {limit.words()}, found {value}")
        return BAD
    if key in NAMES.get(cls, ()):
        for name in value if isinstance(value, tuple) else (value,):
            if not _NAME.fullmatch(name):
                problems.add(item.where, f"{key}: {name[:80]!r} is not {NAME_WORDS}")
                return BAD
    return value


def _text(value: Any, key: str) -> Any:
    return value if isinstance(value, str) else BAD


def _flag(value: Any, key: str) -> Any:
    return value if isinstance(value, bool) else BAD


def _whole(value: Any, key: str) -> Any:
    if isinstance(value, str):
        parsed = parse_size(value) if key.endswith("_bytes") else parse_count(value)
        return BAD if parsed is None else parsed
    if isinstance(value, float) and value.is_integer():
        return int(value)  # 1e6 is a count too
    return value if isinstance(value, int) and not isinstance(value, bool) else BAD


def _number(value: Any, key: str) -> Any:
    """YAML 1.1 takes `3e-3` for text, since it has no point: here it is a number."""
    if isinstance(value, str) and re.fullmatch(r"[-+]?[0-9]{1,20}(\.[0-9]{0,20})?[eE][-+]?[0-9]{1,3}", value):
        value = float(value)
    if isinstance(value, bool) or not isinstance(value, int | float):
        return BAD
    return float(value) if math.isfinite(value) else BAD


def _money(value: Any, key: str) -> Any:
    """Dollars, exactly as written: 98.32 is 98.32."""
    if isinstance(value, bool) or not isinstance(value, int | float | str):
        return BAD
    if isinstance(value, str) and not re.fullmatch(r"[0-9]{1,15}(\.[0-9]{1,10})?", value):
        return BAD
    try:
        amount = Decimal(repr(value) if isinstance(value, float) else value)
    except InvalidOperation:
        return BAD
    exponent = amount.as_tuple().exponent if amount.is_finite() else 0
    fine = amount.is_finite() and isinstance(exponent, int) and exponent >= -10
    return amount if fine and 0 <= amount <= MOST_USD else BAD


_SCALARS: dict[type, tuple[str, typing.Callable[[Any, str], Any]]] = {
    str: ("text", _text),
    bool: ("true or false", _flag),
    int: ("a whole number", _whole),
    float: ("a number", _number),
    Decimal: ("dollars such as 98.32", _money),
}


def _plain(item: Located) -> Any:
    return item.value if not isinstance(item.value, dict) else types.MappingProxyType({})
