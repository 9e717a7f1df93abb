"""Rows as JSON: the domain's frozen values to text and back, validated. Knows nothing of tables.

Decimals are text. A union is told apart by its members' `kind`, and `TrainSpec | ServiceSpec` by fields that
one has and the other has not. A field that this version does not know is left out; one that an older version
did not write gets its default. A number that JSON cannot say (NaN, infinity) becomes null: unknown.
"""

from __future__ import annotations

from typing import Any, TypeVar

from pydantic import TypeAdapter, ValidationError
from pydantic_core import PydanticSerializationError

from caudal.domain.errors import StorageFailed, UsageError

T = TypeVar("T")


_adapters: dict[type, TypeAdapter[Any]] = {}  # compiled once: building one takes 10 ms, using it 10 µs


def _adapter(kind: type) -> TypeAdapter[Any]:
    """The compiled codec of a type."""
    if kind not in _adapters:
        _adapters[kind] = TypeAdapter(kind)
    return _adapters[kind]


def encode(value: Any) -> str:
    """A domain value as JSON. Raises UsageError where JSON cannot hold what is in it."""
    try:
        return _adapter(type(value)).dump_json(value, warnings="error").decode()
    except PydanticSerializationError as error:
        raise UsageError(
            f"this {type(value).__name__} cannot be kept as JSON", why=str(error)[:300]
        ) from error


def decode(kind: type[T], text: str | bytes) -> T:
    """The value that `encode` was given. Raises StorageFailed where the text is not one."""
    try:
        value: T = _adapter(kind).validate_json(text)
    except ValidationError as error:
        first = error.errors(include_url=False, include_input=False)[0]
        raise StorageFailed(
            f"a stored {kind.__name__} cannot be read",
            why=f"{'.'.join(map(str, first['loc']))}: {first['msg']}",
            remedy="was the database changed by hand, or written by a newer Caudal?",
        ) from error
    return value
