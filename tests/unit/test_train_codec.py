"""Blockwise int8, int4 and four levels, the fragments that they travel in, and the outer step that speaks them."""

from __future__ import annotations

import itertools

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from caudal.train.codec import BLOCK, LARGEST, PIECE, Encoder, decode, encoded_bytes, magnitude
from caudal.train.fragments import LARGEST_NUMBERS, cut, split
from caudal.train.outer import Outer, apply_update, roll_forward, state_sha256


def some(count: int, seed: int = 0, scale: float = 1e-3) -> np.ndarray:
    return (np.random.default_rng(seed).standard_normal(count) * scale).astype(np.float32)


@pytest.mark.parametrize("bits", [8, 4])
@pytest.mark.parametrize("count", [1, BLOCK - 1, BLOCK, BLOCK + 1, PIECE, PIECE + 3, 2 * PIECE + BLOCK + 7])
def test_decoding_is_near_and_the_residual_is_the_rest(count: int, bits: int) -> None:
    x, before, after = some(count), some(count, 1, 1e-5), np.zeros(count, np.float32)
    payload = Encoder().encode(x, before, after, bits)
    said = decode(payload, count, bits)
    assert len(payload) == encoded_bytes(count, bits)
    assert np.array_equal(after, (x + before) - said)
    limit = np.repeat(np.maximum.reduceat(np.abs(x + before), np.arange(0, count, BLOCK)), BLOCK)[:count]
    assert np.all(np.abs(after) <= limit / LARGEST[bits] * 0.5001)


@settings(max_examples=50)
@given(
    st.lists(
        st.floats(width=32, allow_nan=False, allow_infinity=False, max_value=2**100, min_value=-(2**100)),
        min_size=1,
        max_size=600,
    ),
    st.sampled_from([8, 4]),
)
def test_any_finite_numbers_survive(values: list[float], bits: int) -> None:
    x = np.array(values, np.float32)
    after = np.zeros_like(x)
    said = decode(Encoder().encode(x, np.zeros_like(x), after, bits), len(x), bits)
    assert np.all(np.isfinite(said)) and np.max(np.abs(said)) <= np.max(np.abs(x)) * 1.01 + 1e-20


@pytest.mark.parametrize(
    "count", [1, 3, BLOCK - 1, BLOCK, BLOCK + 1, PIECE, PIECE + 3, 2 * PIECE + BLOCK + 7]
)
def test_four_levels_say_what_loses_least_and_the_residual_is_the_rest(count: int) -> None:
    x, before, after = some(count), some(count, 1, 1e-5), np.zeros(count, np.float32)
    payload = Encoder().encode(x, before, after, 2)
    said, wanted = decode(payload, count, 2), x + before
    assert len(payload) == encoded_bytes(count, 2) <= 4 * -(-count // BLOCK) + count // 4 + 1
    assert np.array_equal(after, wanted - said)
    for start in range(0, count, BLOCK):
        block, known = wanted[start : start + BLOCK], said[start : start + BLOCK]
        rms = np.sqrt(np.mean(np.square(block, dtype=np.float64)))
        levels = rms * np.array([-1.5104, -0.4528, 0.4528, 1.5104])
        nearest = levels[np.argmin(np.abs(block[:, None] - levels), axis=1)]
        assert np.all(np.abs(known - block) <= np.abs(nearest - block) + 1e-5 * np.max(np.abs(levels)))
    if count > PIECE:
        assert np.mean(np.square(after)) < 0.12 * np.mean(np.square(wanted)), "Max 1960: 0.1175"


@settings(max_examples=50)
@given(
    st.lists(
        st.floats(width=32, allow_nan=False, max_value=2**50, min_value=-(2**50)), min_size=1, max_size=600
    )
)
def test_with_four_levels_any_number_that_can_be_squared_survives(values: list[float]) -> None:
    x = np.array(values, np.float32)
    after = np.zeros_like(x)
    said = decode(Encoder().encode(x, np.zeros_like(x), after, 2), len(x), 2)
    assert np.all(np.isfinite(said)) and np.max(np.abs(said)) <= np.max(np.abs(x)) * 1.52 + 1e-20


def test_zeros_of_four_levels_and_a_message_of_zeros_change_nothing_that_counts() -> None:
    assert np.max(np.abs(decode(Encoder().encode(*np.zeros((3, 700), np.float32), 2), 700, 2))) < 1e-29
    assert not np.any(decode(bytes(encoded_bytes(700, 2)), 700, 2))


def test_zeros_and_tiny_numbers_do_not_divide_by_zero() -> None:
    for x in (np.zeros(700, np.float32), np.full(700, 1e-42, np.float32)):
        after = np.zeros_like(x)
        assert np.all(np.isfinite(decode(Encoder().encode(x, np.zeros_like(x), after), 700)))


@pytest.mark.parametrize("bits", [8, 4, 2])
@pytest.mark.parametrize("bad", [np.nan, np.inf, -np.inf])
def test_a_number_that_is_none_shows_in_the_magnitude(bad: float, bits: int) -> None:
    x = some(1000)
    x[321] = bad
    payload = Encoder().encode(x, np.zeros_like(x), np.zeros_like(x), bits)
    assert not np.isfinite(magnitude(payload, 1000, bits))


@pytest.mark.parametrize(("bits", "left"), [(8, 0.02), (2, 12.0)])
def test_error_feedback_says_everything_in_the_end(bits: int, left: float) -> None:
    encoder, x = Encoder(), some(5000)
    residual, spare, total = np.zeros_like(x), np.zeros_like(x), np.zeros_like(x)
    for _ in range(50):
        total += decode(encoder.encode(x, residual, spare, bits), 5000, bits)
        residual, spare = spare, residual
    assert np.max(np.abs(total / 50 - x)) < left * np.max(np.abs(x)) / 50 + 1e-7


def test_a_payload_of_another_length_is_refused() -> None:
    with pytest.raises(ValueError, match="are not 100 numbers of 8 bits"):
        decode(b"123", 100)


def merged(
    outer: Outer, parts: list[tuple[float, list[bytearray]]], lr: float, mu: float, bits: int
) -> bytes:
    """All fragments, one after the other."""
    said = [
        outer.merge(f, [(weight, payloads[f]) for weight, payloads in parts], lr, mu, bits)
        for f in range(len(outer.cuts))
    ]
    return b"".join(said)


def coded(x: np.ndarray, cuts: tuple[tuple[int, int], ...], bits: int) -> list[bytearray]:
    zeros = np.zeros_like(x)
    return [Encoder().encode(x[a:b], zeros[a:b], np.empty(b - a, np.float32), bits) for a, b in cuts]


@pytest.mark.parametrize("bits", [8, 4, 2])
def test_the_step_is_nesterov_and_everybody_can_take_it_again(bits: int) -> None:
    count, lr, mu = PIECE + 1000, 0.8, 0.5
    cuts = ((0, 700), (700, PIECE + 1), (PIECE + 1, count))
    start = some(count, 5, 0.1)
    outer = Outer(start.copy(), np.zeros(count, np.float32), cuts)
    theirs, replayed, momentum = start.copy(), start.copy(), np.zeros(count, np.float32)
    exact, v = start.astype(np.float64), np.zeros(count)
    for round_number in range(12):
        a, b = some(count, 10 + round_number), some(count, 50 + round_number)
        said = [coded(d, cuts, bits) for d in (a, b)]
        update = merged(outer, [(0.25, said[0]), (0.75, said[1])], lr, mu, bits)
        outer.take(update, mu, bits)
        for (low, high), part in zip(
            cuts, split(update, [encoded_bytes(y - x, bits) for x, y in cuts]), strict=True
        ):
            apply_update(theirs[low:high], part, bits)
        roll_forward(replayed, momentum, update, mu, bits, cuts)
        a, b = (
            np.concatenate([decode(p, y - x, bits) for p, (x, y) in zip(s, cuts, strict=True)]) for s in said
        )
        v = mu * v + lr * (0.25 * a + 0.75 * b)
        exact += mu * v + lr * (0.25 * a + 0.75 * b)
        assert state_sha256(theirs) == state_sha256(outer.state) == state_sha256(replayed)
        assert np.array_equal(momentum, outer.momentum)
    allowed = {8: 1e-4, 4: 2e-3, 2: 1e-2}[bits]
    assert np.max(np.abs(outer.state - exact)) < allowed, "beyond what error feedback leaves open"


def test_without_momentum_the_step_is_the_mean() -> None:
    cuts = ((0, 1000), (1000, 3000))
    outer = Outer(np.zeros(3000, np.float32), np.zeros(3000, np.float32), cuts)
    said = [coded(some(3000, s), cuts, 8) for s in (1, 2)]
    outer.take(merged(outer, [(0.5, said[0]), (0.5, said[1])], 1.0, 0.0, 8), 0.0)
    mean = (some(3000, 1) + some(3000, 2)) / 2
    assert np.allclose(outer.state + outer.residual, mean, atol=1e-4)


def test_a_fragment_merged_early_and_again_without_a_lost_site_is_as_if_it_had_never_been_there() -> None:
    cuts, zeros = ((0, 1000), (1000, 3000)), np.zeros(3000, np.float32)
    said = [coded(some(3000, s), cuts, 8) for s in (1, 2)]
    early, plain = (Outer(zeros.copy(), zeros.copy(), cuts) for _ in range(2))
    early.merge(0, [(0.5, said[0][0]), (0.5, said[1][0])], 0.8, 0.5)
    ours = merged(early, [(1.0, said[0])], 0.8, 0.5, 8)
    assert ours == merged(plain, [(1.0, said[0])], 0.8, 0.5, 8)
    assert not early.state.any(), "nothing counts before it is taken"
    early.take(ours, 0.5)
    plain.take(ours, 0.5)
    assert np.array_equal(early.residual, plain.residual)


@given(st.lists(st.integers(1, 50_000), min_size=1, max_size=40), st.integers(1, 20))
def test_fragments_cover_everything_once_in_order(sizes: list[int], wanted: int) -> None:
    bounds = np.cumsum([0, *sizes]).tolist()
    cuts = cut(bounds[-1], bounds[:-1], wanted)
    assert cuts[0][0] == 0 and cuts[-1][1] == bounds[-1]
    assert all(a[1] == b[0] for a, b in itertools.pairwise(cuts))
    assert len(cuts) <= wanted + 1 and {stop for _, stop in cuts} <= set(bounds)


def test_no_fragment_is_too_large_and_bytes_that_do_not_add_up_are_refused() -> None:
    cuts = cut(3 * LARGEST_NUMBERS + 5, [0], 1)
    assert len(cuts) == 4 and max(b - a for a, b in cuts) <= LARGEST_NUMBERS
    with pytest.raises(ValueError, match="are not fragments"):
        split(b"12345", [2, 2])
