"""Specifies train/layout: one flat vector, Hugging Face's names, the same first values everywhere."""

from __future__ import annotations

import hashlib

import numpy as np

from caudal.domain.workload import ModelShape
from caudal.train.layout import initial_state, state_size, tensors, views

SHAPE = ModelShape(layers=2, heads=4, kv_heads=2, width=32, ffn_width=48, context=16)


def test_tensors_follow_each_other_without_gaps() -> None:
    offset = 0
    for tensor in tensors(SHAPE, 50):
        assert tensor.offset == offset
        offset += tensor.size
    assert offset == state_size(SHAPE, 50)


def test_the_shipped_shape_has_about_1_1_million_parameters() -> None:
    assert state_size(ModelShape(), 1024) == 1_054_080


def test_what_is_multiplied_together_lies_together() -> None:
    names = [tensor.name.rsplit(".", 2)[1] for tensor in tensors(SHAPE, 50)]
    at = names.index("q_proj")
    assert names[at : at + 3] == ["q_proj", "k_proj", "v_proj"]
    at = names.index("gate_proj")
    assert names[at : at + 2] == ["gate_proj", "up_proj"]


def test_an_untied_head_is_the_last_tensor() -> None:
    untied = ModelShape(layers=1, heads=2, kv_heads=1, width=8, ffn_width=8, context=8, tie_embeddings=False)
    assert tensors(untied, 10)[-1].name == "lm_head.weight"


def test_views_share_the_vectors_memory() -> None:
    state = initial_state(SHAPE, 50, seed=1)
    views(state, tensors(SHAPE, 50))["model.norm.weight"][...] = 7
    assert (state[-32:] == 7).all()


def test_first_values_depend_on_the_seed_only() -> None:
    state = initial_state(SHAPE, 50, seed=1)
    assert np.array_equal(state, initial_state(SHAPE, 50, seed=1))
    assert not np.array_equal(state, initial_state(SHAPE, 50, seed=2))
    assert state.dtype == np.float32
    # A golden value: a change of it means that runs of two versions cannot train together.
    assert hashlib.sha256(state.astype("<f4").tobytes()).hexdigest()[:16] == "025eab1c9172da41"
