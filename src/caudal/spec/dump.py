"""A spec → YAML text that `parse` reads back as the same spec."""

from __future__ import annotations

from typing import Any

import yaml

from caudal.spec.files import Spec, to_dict
from caudal.spec.units import show_size


def dump(spec: Spec) -> str:
    """The spec as one YAML document with every default written out; sizes in readable units."""
    text: str = yaml.safe_dump(_readable(to_dict(spec)), sort_keys=False, allow_unicode=True, width=100)
    return text


def _readable(value: Any, key: str = "") -> Any:
    if isinstance(value, dict):
        return {k: _readable(v, k) for k, v in value.items()}
    if isinstance(value, list):
        return [_readable(v) for v in value]
    if isinstance(value, int) and key.endswith("_bytes"):
        return show_size(value)
    return value
