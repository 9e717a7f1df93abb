"""The scoreboard's arithmetic, on made-up rows."""

from __future__ import annotations

import dataclasses
import sys
from pathlib import Path

import numpy as np
import pytest

sys.path.insert(0, str(Path(__file__).parents[2] / "bench"))
import estimate
import estimate_fit as fit
import estimate_runs
import serving_fit
from caudal.estimate.constants import FITTED
from caudal.estimate.serving_constants import FITTED as SERVING
from caudal.estimate.step_time import step_time
from caudal.estimate.whole_run import PRACTICE


def test_every_source_counts_alike() -> None:
    errors = np.array([0.1] * 100 + [0.3] * 3 + [0.5])
    sources = np.array(["many"] * 100 + ["few"] * 3 + ["one"])
    assert fit.balanced(errors, sources) == pytest.approx(0.3)
    weights = fit.weights(sources)
    assert weights[sources == "many"].sum() < 4 * weights[sources == "one"].sum()


def test_ranks() -> None:
    up = np.array([1.0, 2.0, 3.0, 4.0])
    assert estimate.spearman(up, up * 3) == pytest.approx(1)
    assert estimate.spearman(up, -up) == pytest.approx(-1)


def test_the_constant_utilisation_never_sees_its_own_source() -> None:
    rows = fit.read()
    slower = fit.Rows(
        rows.points, rows.columns, np.where(rows.sources == "tinyllama", 1e6, rows.measured_s), rows.sources,
        rows.ids, rows.raw,
    )  # fmt: skip
    mine = rows.sources == "tinyllama"
    assert (estimate.constant_mfu(rows)[mine] == estimate.constant_mfu(slower)[mine]).all()


def test_a_left_out_source_is_estimated_without_it() -> None:
    rows = fit.read()
    chosen = np.isin(rows.sources, ["tinyllama", "nemo2407", "mtnlg"])
    some = fit.Rows(
        [p for p, c in zip(rows.points, chosen, strict=True) if c], fit.taken(rows.columns, chosen),
        rows.measured_s[chosen], rows.sources[chosen], [i for i, c in zip(rows.ids, chosen, strict=True) if c],
        [r for r, c in zip(rows.raw, chosen, strict=True) if c],
    )  # fmt: skip
    mine = some.sources == "mtnlg"
    others = fit.Rows(
        some.points, some.columns, np.where(mine, some.measured_s * 7, some.measured_s), some.sources, some.ids,
        some.raw,
    )  # fmt: skip
    assert (fit.leave_one_out(some)[mine] == fit.leave_one_out(others)[mine]).all()


def test_the_constants_are_what_the_fit_gives() -> None:
    rows = fit.read()
    again = fit.fit(rows.columns, rows.measured_s, rows.sources, FITTED, rounds=3)
    before, after = (step_time(rows.columns, k).total for k in (FITTED, again))
    assert np.median(np.abs(np.log(after / before))) < 0.01
    assert all(getattr(FITTED, name) > 0 for name in fit.NAMES)


def test_the_serving_constants_are_what_the_fit_gives() -> None:
    rows = serving_fit.read()
    again = serving_fit.estimated(rows, serving_fit.fit(rows, SERVING, rounds=3))
    now = serving_fit.estimated(rows, SERVING)
    assert float(np.median(np.abs(np.log(again / now)))) < 0.01


def test_a_left_out_serving_source_is_estimated_without_it() -> None:
    rows = serving_fit.read()
    some = serving_fit.taken(rows, np.isin(rows.sources, ["sglang_96h100", "trtllm_050"]))
    mine = some.sources == "sglang_96h100"
    wrong = dataclasses.replace(some, measured=np.where(mine, some.measured * 7, some.measured))
    assert (serving_fit.left_out(some)[mine] == serving_fit.left_out(wrong)[mine]).all()


def test_the_factor_of_whole_runs_is_the_published_one() -> None:
    runs = estimate_runs.read()
    assert estimate_runs.practice(runs, np.ones(len(runs.ids), dtype=bool)) == pytest.approx(
        PRACTICE, rel=0.02
    )
    mine = runs.sources == "BLOOM"
    assert mine.any() and estimate_runs.left_out(runs)[mine] == pytest.approx(
        runs.ideal[mine] * estimate_runs.practice(runs, ~mine)
    )
