"""Properties of sample ids: every pass shows every sample exactly once, in the same order everywhere."""

from __future__ import annotations

from hypothesis import given, settings
from hypothesis import strategies as st

from caudal.train.data.samples import permutation, place

small = st.integers(1, 60)
seeds = st.integers(0, 2**32)


@given(seed=seeds, stage=st.integers(0, 3), number=st.integers(0, 5), samples=small)
def test_a_pass_is_a_bijection(seed: int, stage: int, number: int, samples: int) -> None:
    assert sorted(permutation(seed, stage, number, samples)) == list(range(samples))


@settings(max_examples=50)
@given(seed=seeds, samples=small, passes=st.integers(1, 4))
def test_each_id_is_one_sample_of_one_pass(seed: int, samples: int, passes: int) -> None:
    places = [place(seed, 0, samples, position) for position in range(samples * passes)]
    assert len(set(places)) == samples * passes
    assert {number for number, _ in places} == set(range(passes))


@given(seed=seeds, position=st.integers(0, 500))
def test_the_same_id_is_the_same_sample(seed: int, position: int) -> None:
    first = place(seed, 1, 17, position)
    permutation.cache_clear()
    assert place(seed, 1, 17, position) == first
