"""Refusals for want of time or room, worded: what, why, and what to do next."""

from __future__ import annotations

import math

from caudal.domain.key import Slo
from caudal.policy.admission_types import OVER_SHARE, OVERLOADED, Ask, Refuse

MIN_RETRY_S = 1.0
MAX_RETRY_S = 3600.0


def too_long(ask: Ask, wait_s: float, bearable_s: float, *, own_fault: bool) -> Refuse:
    """It would wait for longer than it may. `own_fault`: behind its own key's requests, while others wait too
    and another key's would be served in time."""
    retry_s = _retry_s(wait_s)
    if own_fault:
        text = (
            f"This key's own requests for {ask.model!r} take its share for the next {_s(wait_s)}; "
            f"others wait, too. {_again(retry_s)}"
        )
        return Refuse(ask.id, 429, OVER_SHARE, retry_s, text)
    if bearable_s <= 0:
        what = "a request like this takes longer than that without any wait"
    else:
        what = f"the wait would be about {_s(wait_s)}"
    bound = "its deadline" if ask.deadline_at else f"what is promised to {ask.slo.value} requests"
    text = f"The model {ask.model!r} is overloaded: {what}, which {bound} does not allow. {_again(retry_s)}"
    return Refuse(ask.id, 503, OVERLOADED, retry_s, text + _patience(ask))


def lost(ask: Ask, waited_s: float, wait_s: float) -> Refuse:
    """It waited and can no more be answered in time."""
    retry_s = _retry_s(wait_s)
    text = (
        f"The model {ask.model!r} is overloaded: after {_s(waited_s)} of waiting this request can no more be "
        f"answered in time. {_again(retry_s)}"
    )
    return Refuse(ask.id, 503, OVERLOADED, retry_s, text + _patience(ask))


def full(ask: Ask, wait_s: float) -> Refuse:
    """As many wait as may."""
    retry_s = _retry_s(wait_s)
    text = f"As many {ask.slo.value} requests as may be kept wait for {ask.model!r}. {_again(retry_s)}"
    return Refuse(ask.id, 503, OVERLOADED, retry_s, text)


def hopeless(ask: Ask) -> Refuse:
    """Nobody is before it, and its deadline is too near all the same."""
    text = (
        f"The model {ask.model!r} takes longer than this request's deadline allows, although nobody is before it. "
        "Give it more time, or ask for fewer tokens."
    )
    return Refuse(ask.id, 503, OVERLOADED, 0.0, text)


def _patience(ask: Ask) -> str:
    if ask.slo is Slo.BATCH or ask.deadline_at:
        return ""
    return " What can wait may say so: x-caudal-class: batch."


def _retry_s(wait_s: float) -> float:
    return min(MAX_RETRY_S, max(MIN_RETRY_S, wait_s))


def _again(retry_s: float) -> str:
    return f"Try again in {math.ceil(retry_s)} s."


def _s(seconds: float) -> str:
    return f"{seconds:.1f} s" if seconds < 10 else f"{seconds:.0f} s"
