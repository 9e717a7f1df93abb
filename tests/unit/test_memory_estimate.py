"""What a model weighs, against counts made by others and by hand."""

from __future__ import annotations

import dataclasses

import pytest
from hypothesis import given
from hypothesis import strategies as st

from caudal.domain.workload import BaseSpec, InnerSpec, ModelShape, StageSpec, TokenizerSpec, TrainSpec
from caudal.estimate.memory import (
    activations_bytes,
    base_worker_bytes,
    exported_bytes,
    kv_cache_bytes,
    logits_bytes,
    parameters,
    replica_bytes,
    training_states_bytes,
    worker_bytes,
)

MIB = 1 << 20


def test_parameters_of_models_that_everybody_knows() -> None:
    smollm2_135m = ModelShape(
        layers=30, heads=9, kv_heads=3, width=576, ffn_width=1536, context=8192, tie_embeddings=True
    )
    assert parameters(smollm2_135m, 49_152) == 134_515_008
    llama2_7b = ModelShape(
        layers=32, heads=32, kv_heads=32, width=4096, ffn_width=11008, context=4096, tie_embeddings=False
    )
    assert parameters(llama2_7b, 32_000) == 6_738_415_616


def test_parameters_by_hand() -> None:
    shape = ModelShape(layers=1, heads=2, kv_heads=1, width=4, ffn_width=3, context=8)
    # embedding 5x4, q 4x4, o 4x4, k and v 4x2 each, three ffn matrices 4x3, two norms and the last one
    assert parameters(shape, 5) == 20 + 16 + 16 + 8 + 8 + 36 + 8 + 4


def test_the_starter_needs_about_half_a_gigabyte_and_its_spare_a_quarter() -> None:
    run = TrainSpec("starter", "builtin:tinyworld", (StageSpec("pretrain", 3_000_000),))
    bare = dataclasses.replace(run, inner=InnerSpec(spare=False))
    assert 400 * MIB < worker_bytes(bare) < 640 * MIB
    assert 240 * MIB < worker_bytes(run) - worker_bytes(bare) < 256 * MIB
    assert worker_bytes(run) < run.resources.memory_bytes
    shared = dataclasses.replace(run, inner=InnerSpec(processes=2))
    assert worker_bytes(shared) == worker_bytes(bare)


def test_the_hungriest_stage_counts() -> None:
    small, large = StageSpec("a", 10_000, batch=1), StageSpec("b", 10_000, batch=32)
    run = TrainSpec("x", "builtin:tinyworld", (small, large))
    assert worker_bytes(run) == worker_bytes(dataclasses.replace(run, stages=(large,)))
    assert worker_bytes(run) > worker_bytes(dataclasses.replace(run, stages=(small,)))


def test_adapters_cost_their_own_copies_and_the_frozen_model_once() -> None:
    spec = TrainSpec("x", "d", (StageSpec("a", 100_000),), base=BaseSpec("/m", "lora"))
    lora = base_worker_bytes(spec, whole=1_000_000, trained=10_000, vocab=500)
    full = base_worker_bytes(
        dataclasses.replace(spec, base=BaseSpec("/m", "full")), whole=1_000_000, trained=1_000_000, vocab=500
    )
    assert full - lora == 4 * (8_000_000 - 1_000_000 - 80_000)
    with pytest.raises(AssertionError):
        worker_bytes(spec)


def test_logits_are_three_copies() -> None:
    assert logits_bytes(StageSpec("a", 1, sample_tokens=10, batch=2), 1000) == 4 * 20 * 1000 * 3


def test_a_replica_with_an_unknown_shape_is_the_least_it_can_take() -> None:
    shape = ModelShape()
    known = replica_bytes(100 * MIB, 2048, shape)
    assert known - replica_bytes(100 * MIB, 2048) == kv_cache_bytes(5, 64, 2048) == 2 * 2 * 5 * 64 * 2048


@given(st.integers(1, 20), st.integers(1, 64), st.integers(2, 512), st.integers(300, 50_000))
def test_more_of_anything_never_needs_less(layers: int, batch: int, tokens: int, vocab: int) -> None:
    stage = StageSpec("a", 10**9, batch=batch, sample_tokens=tokens)
    bigger = dataclasses.replace(stage, batch=batch + 1)
    shape, deeper = ModelShape(layers=layers), ModelShape(layers=layers + 1)
    run = TrainSpec("x", "d", (stage,), TokenizerSpec(entries=vocab), shape)
    assert activations_bytes(shape, stage) < activations_bytes(deeper, stage)
    assert training_states_bytes(shape, vocab) < training_states_bytes(deeper, vocab)
    assert worker_bytes(run) < worker_bytes(dataclasses.replace(run, model=deeper))
    assert worker_bytes(run) < worker_bytes(dataclasses.replace(run, stages=(bigger,)))
    assert exported_bytes(shape, vocab) == 4 * parameters(shape, vocab)
