"""The values that single fields may take: one table, read by the builder and by the JSON Schema.

Rules that look at several fields are in checks.py.
"""

from __future__ import annotations

from dataclasses import dataclass

from caudal.domain.fleet import (
    ApiSpec,
    Contract,
    DriverSpec,
    FleetSpec,
    GatewaySpec,
    HostSpec,
    ProviderSpec,
    RampStep,
    Resources,
    SiteSpec,
)
from caudal.domain.workload import (
    BaseSpec,
    ExternalSpec,
    InnerSpec,
    ModelShape,
    OuterSpec,
    RolloutSpec,
    ScaleSpec,
    ServedModel,
    ServiceSpec,
    StageSpec,
    TokenizerSpec,
    TrainSpec,
)

NAME_PATTERN = r"^[a-z0-9][a-z0-9._-]{0,62}$"
NAME_WORDS = "a name: 1 to 63 characters of a-z, 0-9, '.', '_' and '-', the first one a letter or a digit"


@dataclass(frozen=True, slots=True)
class Range:
    """Numbers from `low` to `high`, both allowed unless `above`: then `low` itself is not."""

    low: float
    high: float
    above: bool = False

    def holds(self, value: float) -> bool:
        """Whether the value lies inside."""
        return (value > self.low if self.above else value >= self.low) and value <= self.high

    def words(self) -> str:
        """The range for people."""
        return f"{'above' if self.above else 'from'} {_plain(self.low)} to {_plain(self.high)}"


_FRACTION = Range(0, 1)
_PORT = Range(1, 65535)
_COUNT = Range(1, 1_000_000)

RANGES: dict[type, dict[str, Range]] = {
    GatewaySpec: {"port": _PORT, "hedge": Range(0, 0.1), "processes": Range(1, 64)},
    ApiSpec: {"port": _PORT},
    Resources: {
        "cpus": Range(0, 10_000, above=True),
        "memory_bytes": Range(1 << 20, 1 << 50),
        "accelerators": Range(0, 10_000),
        "neuron_cores": Range(0, 10_000),
    },
    HostSpec: {"port": _PORT},
    ProviderSpec: {"max_machines": Range(0, 1_000_000)},
    RampStep: {"count": Range(0, 10_000_000)},
    Contract: {"count": Range(0, 10_000_000), "discount": _FRACTION},
    # 256 bytes and the special tokens have to find room; 1 M is four times the largest vocabulary in use.
    TokenizerSpec: {"entries": Range(272, 1_000_000)},
    ModelShape: {
        "layers": Range(1, 1_000),
        "heads": Range(1, 1_024),
        "kv_heads": Range(1, 1_024),
        "width": Range(2, 1 << 17),
        "ffn_width": Range(1, 1 << 20),
        "context": Range(2, 1 << 24),
    },
    StageSpec: {
        "tokens": Range(1, 10**16),
        "sample_tokens": Range(2, 1 << 24),
        "batch": _COUNT,
        "learning_rate": Range(0, 10, above=True),
        "final_learning_rate": Range(0, 10),
        "warmup_fraction": _FRACTION,
        "weight_decay": _FRACTION,
    },
    OuterSpec: {
        "learning_rate": Range(0, 10, above=True),
        "momentum": Range(0, 0.999),
        "sync_fraction": _FRACTION,
        "sync_steps": Range(0, 10**9),
        "inner_steps": _COUNT,
    },
    BaseSpec: {"rank": Range(1, 4_096), "alpha": Range(0, 65_536, above=True)},
    InnerSpec: {"processes": Range(1, 1_024), "accumulate": Range(1, 10_000)},
    TrainSpec: {
        "sites": Range(1, 1_024),
        "validation_fraction": Range(0, 0.9),
        "evaluate_every_rounds": _COUNT,
        "checkpoint_every_rounds": _COUNT,
        "seed": Range(0, 2**63 - 1),
    },
    RolloutSpec: {"canary": _FRACTION, "hold_s": Range(0, 30 * 86_400)},
    ScaleSpec: {
        "min": Range(0, 10_000),
        "max": Range(0, 10_000),
        "target": Range(0.05, 1),
        "ttft_s": Range(0, 3_600, above=True),
        "idle_s": Range(1, 86_400),
        "prewarmed": Range(0, 10_000),
    },
    ExternalSpec: {
        "usd_per_million_in": Range(0, 100_000),
        "usd_per_million_out": Range(0, 100_000),
        "budget_usd_per_month": Range(0, 1_000_000),
        "max_requests": Range(1, 10_000),
    },
    ServedModel: {"replicas": Range(1, 10_000), "context": Range(16, 1 << 24), "slots": Range(1, 1_024)},
}

NAMES: dict[type, frozenset[str]] = {
    FleetSpec: frozenset({"name"}),
    SiteSpec: frozenset({"name", "provider", "driver", "region"}),
    ProviderSpec: frozenset({"name"}),
    DriverSpec: frozenset({"name"}),
    HostSpec: frozenset({"name", "site"}),
    Contract: frozenset({"name", "provider", "sites"}),
    TrainSpec: frozenset({"name", "at"}),
    StageSpec: frozenset({"name"}),
    ServiceSpec: frozenset({"name"}),
    ServedModel: frozenset({"id"}),
}
"""Fields that hold names (each entry of them, where they are lists)."""


def _plain(value: float) -> str:
    return f"{int(value):,}" if value == int(value) else str(value)
