"""`scale` of a served model: what may be written, and what is said where it is wrong."""

from __future__ import annotations

import pytest

from caudal import spec
from caudal.domain.workload import ScaleSpec, ServiceSpec
from tests.unit.test_spec_files import said


def test_replicas_follow_demand_where_a_model_has_a_scale() -> None:
    text = "type: service\nname: s\nmodels: [{id: m, run: m, %s}]\n"
    (service,) = spec.parse(text % "scale: {min: 0, max: 4, idle_s: 60}", "f.yaml")
    assert isinstance(service, ServiceSpec)
    assert service.models[0].scale == ScaleSpec(0, 4, idle_s=60.0) and service.models[0].scale.on
    assert spec.parse(spec.dump(service), "f.yaml") == [service]
    (fixed,) = spec.parse(text % "replicas: 2", "f.yaml")
    assert isinstance(fixed, ServiceSpec) and not fixed.models[0].scale.on
    assert spec.from_dict(spec.to_dict(fixed)) == fixed


@pytest.mark.parametrize(
    ("scale", "expected"),
    [
        ("scale: {min: 0}", "`max` is needed"),
        ("scale: {min: 3, max: 2}", "`min` and `prewarmed` are at most `max`, which is 2"),
        ("scale: {max: 2, prewarmed: 3}", "at most `max`"),
        ("replicas: 2, scale: {max: 2}", "`replicas` is a fixed number"),
        ("scale: {max: 2, target: 0}", "target: expected a number from 0.05 to 1"),
        ("scale: {max: 2, idle_s: 0}", "idle_s: expected a number from 1 to 86,400"),
    ],
)
def test_scales_that_cannot_be(scale: str, expected: str) -> None:
    assert expected in said(f"type: service\nname: s\nmodels: [{{id: m, run: m, {scale}}}]\n")
