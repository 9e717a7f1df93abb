"""A whole training run: chip-hours, days, interruptions, goodput, dollars, energy, each with an interval.

The best layout's step time, times what published runs took beside it (`PRACTICE`: worse layouts and kernels, data
loading, evaluation, warm-up, runs cut short), over the goodput that interruptions leave. Knows no model's quality:
how many tokens a model needs is whoever asks.
"""

from __future__ import annotations

import math
from dataclasses import dataclass, replace

from caudal.catalog.chips import Chip
from caudal.domain.errors import Impossible, UsageError
from caudal.domain.transformer import Transformer
from caudal.estimate.answer import flops_per_token
from caudal.estimate.case import Job, Layout, Software, peak
from caudal.estimate.energy import POWER_SPREAD, PUE, UTILISATION, energy
from caudal.estimate.failures import (
    CHECKPOINT_S,
    DETECT_S,
    RESTART_S,
    Rate,
    Resilience,
    interruptions,
    rate_of,
    resilience,
)
from caudal.estimate.ranges import Range
from caudal.estimate.search import search

PRACTICE = 1.75
"""Chip-hours that published runs took, in parts of the best layout's: the median over sources (2026-11,
`bench/estimate_runs.py`)."""
PRACTICE_SPREAD = 0.33
"""Half width in logarithms that holds about four of five of them, each source left out in turn."""
EXPERTS_SPREAD = 0.5
"""More, for mixtures of experts: no open row is one, and how well their exchange was done decides."""
LARGE, LARGE_BATCH_TOKENS, SMALL_BATCH_TOKENS = 5e9, 4 << 20, 2 << 20
TOKENS_PER_CHIP = 1024
SPARSE = 4
"""Chips per sequence of a step, beyond which the batch is no longer a multiple of the chips."""
CHIPS_PER_BILLION = 16
SMALLEST_CHIPS = 8
MOST_CHIPS = 1 << 20
PRECISIONS = ("bf16", "fp8", "mxfp8", "fp4")


@dataclass(frozen=True)
class RunQuestion:
    """`chips` None: nobody said; a usual number is taken for the step, and there are no days. `practice` None: the
    published runs'. `price_usd` is per chip-hour."""

    model: Transformer
    chip: Chip
    chips: int | None
    tokens: float
    seq_len: int
    software: Software
    precision: str = "bf16"
    global_batch: int | None = None
    practice: float | None = None
    price_usd: float | None = None
    pue: float = PUE
    utilisation: float = UTILISATION
    grid_g_per_kwh: float | None = None
    checkpoint_s: float = CHECKPOINT_S
    restart_s: float = DETECT_S + RESTART_S
    notes: tuple[str, ...] = ()


@dataclass(frozen=True)
class WholeRun:
    """None is unknown: days without a number of chips, energy without a board's power, dollars without a price."""

    question: RunQuestion
    layout: Layout
    chips: int
    step_time_s: float
    tokens_per_s: float
    mfu: float
    chip_hours: Range
    days: Range | None
    interruptions: Range
    resilience: Resilience
    usd: Range | None
    mwh: Range | None
    co2_t: Range | None
    notes: tuple[str, ...]


def usual_chips(model: Transformer) -> int:
    """A power of two, about sixteen a billion active parameters: what published runs have."""
    wanted = model.active_parameters / 1e9 * CHIPS_PER_BILLION
    return int(min(MOST_CHIPS, max(SMALLEST_CHIPS, 2 ** round(math.log2(max(1.0, wanted))))))


def batch_of(question: RunQuestion, chips: int) -> int:
    """Sequences a step: about four million tokens (two for small models), and a thousand for each chip (as Llama 3's
    16 million on 16,384); a multiple of a large divisor of the chips, so that layouts divide evenly."""
    tokens = LARGE_BATCH_TOKENS if question.model.active_parameters > LARGE else SMALL_BATCH_TOKENS
    target = max(1, max(tokens, TOKENS_PER_CHIP * chips) // question.seq_len)
    most = chips if chips <= SPARSE * target else target
    part = max(d for d in range(1, most + 1) if chips % d == 0)
    return question.global_batch or max(1, target // part) * part


def _checked(q: RunQuestion) -> None:
    if not 1e6 <= q.tokens <= 1e16:
        raise UsageError(f"{q.tokens:g} tokens", remedy="from a million to 1e16: 15T is 15 trillion")
    if q.chips is not None and not 1 <= q.chips <= MOST_CHIPS:
        raise UsageError(f"{q.chips} chips", remedy=f"from 1 to {MOST_CHIPS:,}")
    if q.price_usd is not None and not 0 <= q.price_usd <= 1000:
        raise UsageError(f"${q.price_usd:g} per chip-hour", remedy="from 0 to 1000")
    if q.practice is not None and not 1 <= q.practice <= 100:
        raise UsageError(f"practice {q.practice:g}", remedy="1 (the ideal) to 100")


def whole_run(q: RunQuestion, rate: Rate | None = None) -> WholeRun:
    """Raises `Impossible` where the model does not fit, `UsageError` for absurd figures."""
    _checked(q)
    notes = list(q.notes)
    chips = q.chips or usual_chips(q.model)
    found = search(job_of(q, chips), best=1)
    while not found.layouts and q.chips is None and chips < 1 << 14:
        chips *= 2
        found = search(job_of(q, chips), best=1)
    if not found.layouts:
        raise Impossible(found.why, where=f"{q.model.name} on {chips} {q.chip.name}")
    if q.chips is None:
        notes.append(f"chips not stated: the step is that of {chips}, and there are no days")
    job, best = job_of(q, chips), found.layouts[0]
    seconds = best.step_time_s
    tokens_per_s = job.global_batch * q.seq_len / seconds
    rate = rate or rate_of(q.chip.name)
    kept = resilience(chips, rate, q.checkpoint_s, q.restart_s)
    practice, spread = (PRACTICE, PRACTICE_SPREAD) if q.practice is None else (q.practice, 0.2)
    hours = q.tokens / tokens_per_s * chips / 3600 * practice / kept.goodput
    spread = math.hypot(spread, EXPERTS_SPREAD if q.model.experts else 0.0)
    chip_hours = Range(hours, hours / math.exp(spread), hours * math.exp(spread))
    expected = Range(*interruptions(hours, rate))
    if rate.note:
        notes.append(rate.note)
    mwh, co2 = _energy(q, chip_hours, notes)
    mfu = tokens_per_s * flops_per_token(q.model, q.seq_len) / chips / peak(q.chip, q.precision)
    return WholeRun(
        q, best.layout, chips, seconds, tokens_per_s, mfu / practice * kept.goodput, chip_hours,
        chip_hours.times(1 / chips / 24) if q.chips is not None else None, expected, kept,
        None if q.price_usd is None else chip_hours.times(q.price_usd), mwh, co2, tuple(notes),
    )  # fmt: skip


def job_of(q: RunQuestion, chips: int) -> Job:
    """One step of the run on so many chips."""
    return Job(q.model, q.chip, chips, q.seq_len, batch_of(q, chips), q.precision, q.software)


def _energy(q: RunQuestion, chip_hours: Range, notes: list[str]) -> tuple[Range | None, Range | None]:
    if q.chip.watts is None:
        notes.append(f"the board power of {q.chip.name} is not known: no energy")
        return None, None
    one = energy(1.0, q.chip.watts, pue=q.pue, utilisation=q.utilisation, grid_g_per_kwh=q.grid_g_per_kwh)
    mwh = chip_hours.times(one.mwh, POWER_SPREAD)
    return mwh, None if one.co2_t is None else chip_hours.times(one.co2_t, POWER_SPREAD)


def over_chips(q: RunQuestion, counts: list[int]) -> list[WholeRun]:
    """The same run on other numbers of chips: cost against days. Those that do not fit are left out."""
    made = []
    for count in counts:
        try:
            made.append(whole_run(replace(q, chips=count)))
        except Impossible:
            continue
    return made
