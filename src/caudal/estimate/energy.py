"""Energy and carbon of chips that compute for so many hours.

Board power times its utilisation times PUE: how published runs count (their hosts and switches are left out, their
boards taken at or near the rated power). Where the catalogue knows no power, there is no figure.
"""

from __future__ import annotations

from dataclasses import dataclass

from caudal.domain.errors import UsageError

UTILISATION = 0.95
"""Of the rated board power while training: LLaMA and BLOOM count 1.0, measured boards draw 0.85 to 1.0."""
PUE = 1.1
"""Of a large data centre; LLaMA's paper takes the same."""
POWER_SPREAD = 0.15
"""Half width in logarithms: utilisation, hosts and PUE that nobody stated."""


@dataclass(frozen=True)
class Energy:
    """`co2_t` (tonnes) is None where no grid figure was given."""

    mwh: float
    co2_t: float | None


def energy(
    chip_hours: float,
    watts: float,
    *,
    pue: float = PUE,
    utilisation: float = UTILISATION,
    grid_g_per_kwh: float | None = None,
) -> Energy:
    """Raises `UsageError` for figures that cannot be."""
    if not 1.0 <= pue <= 5.0:
        raise UsageError(f"a PUE of {pue:g}", remedy="from 1 (nothing beside the computers) to 5")
    if not 0.0 < utilisation <= 1.5:
        raise UsageError(f"a utilisation of {utilisation:g}", remedy="above 0, at most 1.5")
    if grid_g_per_kwh is not None and not 0 <= grid_g_per_kwh <= 2000:
        raise UsageError(f"{grid_g_per_kwh:g} g/kWh", remedy="grams of CO2 per kWh, 0 to 2000")
    mwh = chip_hours * watts * utilisation * pue / 1e6
    return Energy(mwh, None if grid_g_per_kwh is None else mwh * grid_g_per_kwh / 1000)
