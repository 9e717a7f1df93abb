"""Failures, checkpoints, energy and whole runs: published facts and formulas by hand."""

from __future__ import annotations

import math
from dataclasses import replace

import pytest

from caudal.catalog.architectures import architecture
from caudal.catalog.chips import chip
from caudal.domain.errors import Impossible, UsageError
from caudal.estimate.case import Software
from caudal.estimate.energy import energy
from caudal.estimate.failures import (
    OBSERVED,
    best_interval_s,
    daly_s,
    interruptions,
    rate_of,
    resilience,
    young_s,
)
from caudal.estimate.run_points import COLUMNS, answered_runs
from caudal.estimate.whole_run import PRACTICE, RunQuestion, batch_of, over_chips, usual_chips, whole_run

LLAMA3_HOURS = 16384 * 54 * 24


def question(**more: object) -> RunQuestion:
    model, h100 = architecture("Llama-3-8B"), chip("H100")
    assert model is not None and h100 is not None
    base = RunQuestion(model, h100, 64, 1e12, 8192, Software("megatron", 2025.5))
    return replace(base, **more)  # type: ignore[arg-type]


def test_llama_3_within_a_fifth_by_a_rate_that_fits_the_others_too() -> None:
    expected, low, high = interruptions(LLAMA3_HOURS, rate_of("H100-80GB"))
    assert expected == pytest.approx(419, rel=0.2) and low < 419 < high
    unseen, _, _ = interruptions(LLAMA3_HOURS, rate_of("H100-80GB", leave_out="llama3"))
    assert unseen == pytest.approx(419, rel=0.2)
    rate = rate_of("A100-80GB")
    inside = [
        rate.per_chip_hour / rate.factor <= x.per_chip_hour <= rate.per_chip_hour * rate.factor
        for x in OBSERVED
    ]
    assert sum(inside) >= 4


def test_chips_that_nobody_watched_say_so_and_are_less_sure() -> None:
    seen, unseen = rate_of("H200-141GB"), rate_of("Trainium2")
    assert not seen.note and "Trainium2" in unseen.note and unseen.factor > seen.factor


def test_intervals_between_checkpoints_by_hand() -> None:
    assert young_s(50, 10_000) == pytest.approx(1000)
    part = math.sqrt(50 / 20_000)
    assert daly_s(50, 10_000) == pytest.approx(1000 * (1 + part / 3 + part**2 / 9) - 50)
    assert daly_s(300, 100) == 100
    for bad in (0, -1, math.inf, math.nan):
        with pytest.raises(UsageError):
            best_interval_s(bad, 1000)
        with pytest.raises(UsageError):
            young_s(10, bad)


def test_goodput_falls_with_chips() -> None:
    made = [resilience(n, rate_of("H100-80GB")).goodput for n in (64, 1024, 16384, 131072)]
    assert made == sorted(made, reverse=True) and made[0] > 0.99 and 0.8 < made[2] < 0.95
    with pytest.raises(UsageError):
        resilience(0, rate_of("H100-80GB"))


def test_energy_as_the_llama_paper_counts_it() -> None:
    """82,432 hours at 400 W and a PUE of 1.1 are its 36 MWh; ours takes 95 % of the rated power."""
    assert energy(82_432, 400, pue=1.1, utilisation=1.0).mwh == pytest.approx(36, rel=0.02)
    assert energy(1000, 1000, pue=1, utilisation=1, grid_g_per_kwh=385).co2_t == pytest.approx(0.385)
    for bad in ({"pue": 0.9}, {"utilisation": 0}, {"grid_g_per_kwh": -1}):
        with pytest.raises(UsageError):
            energy(1, 1, **bad)


def test_a_run_adds_up() -> None:
    made = whole_run(question(price_usd=2.0, grid_g_per_kwh=400.0))
    hours = 1e12 / made.tokens_per_s * 64 / 3600 * PRACTICE / made.resilience.goodput
    assert made.chip_hours.value == pytest.approx(hours)
    assert made.days is not None and made.days.value == pytest.approx(hours / 64 / 24)
    assert made.usd is not None and made.usd.value == pytest.approx(2 * hours)
    assert made.mwh is not None and made.co2_t is not None
    assert made.co2_t.value == pytest.approx(made.mwh.value * 0.4)
    for each in (made.chip_hours, made.days, made.usd, made.mwh, made.co2_t, made.interruptions):
        assert each.low < each.value < each.high
    ideal = whole_run(question(practice=1.0))
    assert ideal.chip_hours.value == pytest.approx(hours / PRACTICE)


def test_what_is_not_known_is_empty_and_said() -> None:
    made = whole_run(question(chips=None))
    assert made.days is None and any("chips not stated" in note for note in made.notes)
    trn = chip("trn1")
    assert trn is not None and trn.watts is None
    dark = whole_run(question(chip=trn, software=Software("neuron", 2025.0)))
    assert dark.mwh is None and any("board power" in note for note in dark.notes)


def test_cost_against_days() -> None:
    made = over_chips(question(), [8, 64, 512])
    days = [x.days.value for x in made if x.days]
    assert len(days) == 3 and days == sorted(days, reverse=True)


@pytest.mark.parametrize(
    "more", [{"tokens": 0.0}, {"tokens": 1e20}, {"chips": 0}, {"price_usd": -1.0}, {"practice": 0.5}]
)
def test_absurd_runs(more: dict[str, object]) -> None:
    with pytest.raises(UsageError):
        whole_run(question(**more))


def test_a_model_that_fits_nowhere() -> None:
    big = architecture("Llama-3.1-405B")
    with pytest.raises(Impossible, match="GiB"):
        whole_run(question(model=big, chips=8))


def test_batches_divide_and_grow_with_the_chips() -> None:
    for chips in (8, 440, 2304, 16384, 131072):
        batch = batch_of(question(chips=chips), chips)
        assert batch >= 1 and (batch % chips == 0 or chips % math.gcd(batch, chips) == 0)
    assert batch_of(question(global_batch=7), 64) == 7
    model = architecture("Llama-3-70B")
    assert model is not None and usual_chips(model) == 1024


def test_a_table_of_runs() -> None:
    rows = [
        {"id": "a", "model": "Llama3-8B", "tokens_t": "1", "chip": "H100", "chips": "64"},
        {"id": "fleet", "chip": "A100-80GB", "chips": "16384", "days": "54"},
        {"id": "b", "model": "Llama3-8B", "tokens_t": "-1", "chip": "H100"}, {"id": "c", "chip": "A100"},
        {"id": "d", "model": "8b", "tokens_t": "1", "chip": "A1000"}, {"": "the row has 9 cells, the header 5"},
        {"id": "e", "model": "Llama3-8B", "tokens_t": "1e9", "chip": "H100"},
        {"id": "f", "model": "Llama3-8B", "tokens_t": "1", "chip": "H100", "seq_len": "99999999999"},
    ]  # fmt: skip
    lines = answered_runs(rows)
    assert [bool(line.found) for line in lines] == [True, True, False, False, False, False, False, False]
    assert all(len(line.cells()) == len(COLUMNS) for line in lines) and all(line.reason for line in lines[1:])
    fleet = dict(zip(COLUMNS, lines[1].cells(), strict=True))
    assert fleet["chip_hours"] == "" and float(fleet["interruptions"]) == pytest.approx(419, rel=0.2)
    assert "did you mean" in lines[4].reason and lines[5].id == "row 6"
    assert answered_runs([{"id": "g"}], {"model": "8b", "tokens_t": "1", "chip": "H100"})[0].found
