"""Blockwise int8, and the outer step that speaks it."""

from __future__ import annotations

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from caudal.train.codec import BLOCK, PIECE, Encoder, decode, encoded_bytes, magnitude
from caudal.train.outer import Outer, apply_update, roll_forward, state_sha256


def some(count: int, seed: int = 0, scale: float = 1e-3) -> np.ndarray:
    return (np.random.default_rng(seed).standard_normal(count) * scale).astype(np.float32)


@pytest.mark.parametrize("count", [1, BLOCK - 1, BLOCK, BLOCK + 1, PIECE, PIECE + 3, 2 * PIECE + BLOCK + 7])
def test_decoding_is_near_and_the_residual_is_the_rest(count: int) -> None:
    x, before, after = some(count), some(count, 1, 1e-5), np.zeros(count, np.float32)
    payload = Encoder(count).encode(x, before, after)
    said = decode(payload, count)
    assert len(payload) == encoded_bytes(count)
    assert np.array_equal(after, (x + before) - said)
    limit = np.repeat(np.maximum.reduceat(np.abs(x + before), np.arange(0, count, BLOCK)), BLOCK)[:count]
    assert np.all(np.abs(after) <= limit / 127 * 0.5001)


@settings(max_examples=50)
@given(
    st.lists(
        st.floats(width=32, allow_nan=False, allow_infinity=False, max_value=2**100, min_value=-(2**100)),
        min_size=1,
        max_size=600,
    )
)
def test_any_finite_numbers_survive(values: list[float]) -> None:
    x = np.array(values, np.float32)
    after = np.zeros_like(x)
    said = decode(Encoder(len(x)).encode(x, np.zeros_like(x), after), len(x))
    assert np.all(np.isfinite(said)) and np.max(np.abs(said)) <= np.max(np.abs(x)) * 1.01 + 1e-20


def test_zeros_and_tiny_numbers_do_not_divide_by_zero() -> None:
    for x in (np.zeros(700, np.float32), np.full(700, 1e-42, np.float32)):
        after = np.zeros_like(x)
        assert np.all(np.isfinite(decode(Encoder(700).encode(x, np.zeros_like(x), after), 700)))


@pytest.mark.parametrize("bad", [np.nan, np.inf, -np.inf])
def test_a_number_that_is_none_shows_in_the_magnitude(bad: float) -> None:
    x = some(1000)
    x[321] = bad
    payload = Encoder(1000).encode(x, np.zeros_like(x), np.zeros_like(x))
    assert not np.isfinite(magnitude(payload, 1000))


def test_error_feedback_says_everything_in_the_end() -> None:
    encoder, x = Encoder(5000), some(5000)
    residual, spare, total = np.zeros_like(x), np.zeros_like(x), np.zeros_like(x)
    for _ in range(50):
        total += decode(encoder.encode(x, residual, spare), 5000)
        residual, spare = spare, residual
    assert np.max(np.abs(total / 50 - x)) < 0.02 * np.max(np.abs(x)) / 50 + 1e-7


def test_a_payload_of_another_length_is_refused() -> None:
    with pytest.raises(ValueError, match="are not 100 encoded numbers"):
        decode(b"123", 100)


def test_the_step_is_nesterov_and_everybody_can_take_it_again() -> None:
    count, lr, mu = PIECE + 1000, 0.8, 0.5
    start = some(count, 5, 0.1)
    outer = Outer(start.copy(), np.zeros(count, np.float32))
    theirs, replayed, momentum = start.copy(), start.copy(), np.zeros(count, np.float32)
    exact, v = start.astype(np.float64), np.zeros(count)
    encoder, zeros = Encoder(count), np.zeros(count, np.float32)
    for round_number in range(12):
        a, b = some(count, 10 + round_number), some(count, 50 + round_number)
        coded = [encoder.encode(d, zeros, np.empty_like(zeros)) for d in (a, b)]
        update = outer.step([(0.25, coded[0]), (0.75, coded[1])], lr, mu)
        apply_update(theirs, update)
        roll_forward(replayed, momentum, update, mu)
        delta = 0.25 * decode(coded[0], count) + 0.75 * decode(coded[1], count)
        v = mu * v + lr * delta
        exact += mu * v + lr * delta
        assert state_sha256(theirs) == state_sha256(outer.state) == state_sha256(replayed)
        assert np.array_equal(momentum, outer.momentum)
    assert np.max(np.abs(outer.state - exact)) < 1e-4, "beyond what int8 with error feedback leaves open"


def test_without_momentum_the_step_is_the_mean() -> None:
    outer = Outer(np.zeros(3000, np.float32), np.zeros(3000, np.float32))
    zeros = np.zeros(3000, np.float32)
    coded = [Encoder(3000).encode(some(3000, s), zeros, np.empty_like(zeros)) for s in (1, 2)]
    outer.step([(0.5, coded[0]), (0.5, coded[1])], 1.0, 0.0)
    mean = 0.5 * decode(coded[0], 3000) + 0.5 * decode(coded[1], 3000)
    assert np.allclose(outer.state + outer.residual, mean, atol=1e-8)
