"""What holds for all tests: a property has no deadline, since a machine may be busy, and no test is a stopwatch."""

from __future__ import annotations

from hypothesis import HealthCheck, settings

settings.register_profile("caudal", deadline=None, suppress_health_check=[HealthCheck.too_slow])
settings.load_profile("caudal")
