"""Least squares that single rows cannot bend (pseudo-Huber), held near priors: Gauss-Newton with damping, over logarithms.

Knows nothing of what the numbers mean: estimate_fit.py and serving_fit.py do.
"""

from __future__ import annotations

from collections.abc import Callable

import numpy as np

from caudal.estimate.case import Vector


def solve(
    residuals: Callable[[Vector], Vector],
    at: Vector,
    prior: Vector,
    width: Vector,
    by_row: Vector,
    *,
    rounds: int,
    robust: float,
    prior_weight: float,
    most: float,
) -> Vector:
    """The best from `at` on. `by_row` weighs rows, `width` is a prior's in logarithms; a residual far above `robust` counts
    linearly; no step changes a number by more than `most`."""

    def cost(logs: Vector) -> float:
        r = residuals(logs) / robust
        near = prior_weight * (((logs - prior) / width) ** 2).sum()
        return float((by_row * (np.sqrt(1 + r**2) - 1) * 2).sum() + near)

    damping, now = 1e-2, cost(at)
    for _ in range(rounds):
        r = residuals(at)
        slope = np.stack([(residuals(at + 1e-4 * unit) - r) / 1e-4 for unit in np.eye(len(at))], axis=1)
        w = by_row / np.sqrt(1 + (r / robust) ** 2) / robust**2
        hessian = slope.T @ (w[:, None] * slope) + prior_weight * np.diag(1 / width**2)
        gradient = slope.T @ (w * r) + prior_weight * (at - prior) / width**2
        for _ in range(6):
            step = np.linalg.solve(hessian + damping * np.diag(np.diag(hessian)), -gradient)
            new = at + np.clip(step, -most, most)
            after = cost(new)
            if after < now:
                damping = max(damping / 3, 1e-4)
                break
            damping *= 4
        else:
            break
        gain, at, now = now - after, new, after
        if gain < 1e-5 * now:
            break
    return at
