"""HiGHS behind one seam: the only place that imports it. Knows programs, and nothing of contracts."""

from __future__ import annotations

import importlib
import importlib.util
import math
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

import numpy as np

from caudal.plan.program import Program


@dataclass(frozen=True, slots=True)
class Solved:
    """`status`: optimal (within the gap that was asked for), feasible (time ran out), infeasible, or unknown.
    `duals` are what one more on each row's bound would change the cost by; there are none for whole variables."""

    status: str
    cost: float = math.inf
    gap: float = math.inf
    values: tuple[float, ...] = ()
    duals: tuple[float, ...] = ()


def available() -> bool:
    """Whether HiGHS is installed: `pip install 'caudal[plan]'`."""
    return importlib.util.find_spec("highspy") is not None


def warm() -> None:
    """Have HiGHS say its name, which it does once in a process, on standard output."""
    importlib.import_module("highspy").Highs()


def solve(
    program: Program,
    *,
    gap: float = 0.004,
    time_limit_s: float = 55.0,
    fixed: Mapping[int, float] | None = None,
    relaxed: bool = False,
) -> Solved:
    """The cheapest. With `fixed`, those variables have these values, and whole ones need not be; with `relaxed`, none
    has to be whole. Both give duals."""
    highspy = importlib.import_module("highspy")  # optional: the extra `plan`

    solver = highspy.Highs()
    solver.setOptionValue("output_flag", False)
    solver.setOptionValue("mip_rel_gap", gap)
    solver.setOptionValue("time_limit", time_limit_s)
    solver.setOptionValue("random_seed", 1)
    whole = not relaxed and fixed is None
    solver.passModel(_model(highspy, program, whole, fixed or {}))
    solver.run()
    status = solver.getModelStatus()
    known = highspy.HighsModelStatus
    if status in (known.kInfeasible, known.kUnboundedOrInfeasible):
        return Solved("infeasible")
    info = solver.getInfo()
    if info.primal_solution_status != 2:  # no point that keeps all rules
        return Solved("unknown")
    solution = solver.getSolution()
    return Solved(
        "optimal" if status == known.kOptimal else "feasible",
        float(info.objective_function_value),
        float(info.mip_gap) if whole and program.whole else 0.0,
        tuple(solution.col_value),
        () if whole and program.whole else tuple(solution.row_dual),
    )


def _model(highspy: Any, program: Program, whole: bool, fixed: Mapping[int, float]) -> Any:
    model = highspy.HighsLp()
    model.num_col_ = len(program.costs)
    model.num_row_ = len(program.row_lows)
    lows, highs = np.array(program.lows), np.array(program.highs)
    for variable, value in fixed.items():
        lows[variable] = highs[variable] = value
    model.col_cost_ = np.array(program.costs)
    model.col_lower_, model.col_upper_ = lows, highs
    model.row_lower_ = np.array(program.row_lows)
    model.row_upper_ = np.array(program.row_highs)
    model.offset_ = program.offset
    model.a_matrix_.format_ = highspy.MatrixFormat.kRowwise
    model.a_matrix_.start_ = np.array(program.starts)
    model.a_matrix_.index_ = np.array(program.indices)
    model.a_matrix_.value_ = np.array(program.values)
    if whole and program.whole:
        kinds = [highspy.HighsVarType.kContinuous] * len(program.costs)
        for variable in program.whole:
            kinds[variable] = highspy.HighsVarType.kInteger
        model.integrality_ = kinds
    return model
