"""The synchronous part on gradients: the coordinator's AdamW, its step in bytes, and what two sites make of them."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path

import msgspec
import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from caudal.domain.workload import OuterSpec
from caudal.store.blobs import open_blobs
from caudal.train.adam import Adam
from caudal.train.codec import PIECE, Encoder, decode, pieces
from caudal.train.data.prepare import prepare
from caudal.train.fetch import data_folder
from caudal.train.inner import TorchInner
from caudal.train.interface import Flat, IdRange, RunPlan, plan
from caudal.train.layout import initial_state
from caudal.train.ledger import Contribution, Entry, to_bytes
from caudal.train.outer import Outer, apply_update, state_sha256
from caudal.train.replay import _Replay
from caudal.train.schedule import learning_rate
from tests.unit.test_train_inner import SPEC, never

SIZE = PIECE + 700
CUTS = ((0, 300), (300, SIZE))


def numbers(seed: int, size: int = SIZE, scale: float = 1.0) -> Flat:
    return (np.random.default_rng(seed).standard_normal(size) * scale).astype(np.float32)


def test_its_steps_are_those_of_torch() -> None:
    start, rate = numbers(1), 1e-2
    theirs = torch.from_numpy(start.copy()).requires_grad_()
    optimiser = torch.optim.Adam([theirs], lr=rate, betas=(0.9, 0.99), eps=1e-8)
    ours, adam = start.copy(), Adam(SIZE)
    for step in range(12):
        gradient = numbers(100 + step, scale=1e-3)
        theirs.grad = torch.from_numpy(gradient.copy())
        optimiser.step()
        for at, _ in pieces(SIZE):
            adam.piece(at, numbers(7)[at], rate)  # what is asked for and not taken does not count
            ours[at] += adam.piece(at, gradient[at], rate)
        adam.take()
    moved = np.abs(theirs.detach().numpy() - start).max()
    assert moved > 5 * rate
    assert np.abs(theirs.detach().numpy() - ours).max() < 1e-5 * moved


def said(vector: Flat, bits: int) -> list[bytearray]:
    zeros = np.zeros_like(vector)
    return [Encoder().encode(vector[a:b], zeros[a:b], zeros[a:b].copy(), bits) for a, b in CUTS]


@settings(max_examples=20, deadline=None)
@given(
    bits=st.sampled_from([4, 8]),
    weight=st.floats(0.05, 0.95),
    steps=st.integers(1, 4),
    seed=st.integers(0, 1000),
)
def test_every_copy_follows_from_the_bytes(bits: int, weight: float, steps: int, seed: int) -> None:
    state = numbers(seed)
    outer = Outer(state.copy(), np.zeros_like(state), CUTS, ((10, 20),))
    copy, exact = state.copy(), state.copy()
    again = Outer(state.copy(), np.zeros_like(state), CUTS, ((10, 20),))  # one that only replays
    for step in range(steps):
        both = [said(numbers(seed + 31 * step + k + 1, scale=1e-3), bits) for k in range(2)]
        parts: list[list[bytearray]] = []
        for of in (outer, again):
            merged = [
                of.merge_gradients(f, [(weight, both[0][f]), (1 - weight, both[1][f])], 1e-2, 0.1, bits)
                for f in range(len(CUTS))
            ]
            parts.append(merged)
            of.take(b"".join(merged), 0.0, bits, gradients=True)
        assert parts[0] == parts[1]
        for (a, b), part in zip(CUTS, parts[0], strict=True):
            apply_update(copy[a:b], part, bits)
            exact[a:b] += decode(part, b - a, bits)
    assert state_sha256(outer.state) == state_sha256(copy) == state_sha256(exact) == state_sha256(again.state)
    # and what the bytes could not say is not lost: said and unsaid together are AdamW's whole way
    whole, adam = state.copy(), Adam(SIZE)
    decays = np.ones(SIZE, np.float32)
    decays[10:20] = 0
    for step in range(steps):
        both = [said(numbers(seed + 31 * step + k + 1, scale=1e-3), bits) for k in range(2)]
        means = [
            sum(w * decode(p[f], b - a, bits) for w, p in ((weight, both[0]), (1 - weight, both[1])))
            for f, (a, b) in enumerate(CUTS)
        ]
        mean = np.concatenate(means).astype(np.float32)
        for at, _ in pieces(SIZE):
            whole[at] += adam.piece(at, mean[at], 1e-2)
        whole -= np.float32(1e-3) * decays * state  # the state moves by a hundredth: its decay is near
        adam.take()
    assert np.abs(outer.state + outer.residual - whole).max() < 2e-4


def test_the_moments_end_with_a_round_that_is_not_of_gradients() -> None:
    outer = Outer(numbers(1), np.zeros(SIZE, np.float32), CUTS)
    for gradients in (True, False):
        payloads = said(numbers(2, scale=1e-3), 8)
        if gradients:
            parts = [outer.merge_gradients(f, [(1.0, payloads[f])], 1e-2, 0.0) for f in range(2)]
        else:
            parts = [outer.merge(f, [(1.0, payloads[f])], 1.0, 0.0) for f in range(2)]
        outer.take(b"".join(parts), 0.0, gradients=gradients)
        assert (outer.adam is not None) == gradients
        assert outer.adam is None or outer.adam.steps == 1


def test_an_entry_of_before_has_the_bytes_of_before() -> None:
    entry = Entry("r", 1, 1, "", 0, 1, 1.0, 0.0, (), 0, 0, 0.0, "", 0, "", 0.0)
    assert b"gradients" not in to_bytes(entry)
    with_them = msgspec.structs.replace(entry, gradients=True)
    assert b'"gradients":true' in to_bytes(with_them)
    assert msgspec.json.decode(to_bytes(with_them), type=Entry) == with_them


@pytest.fixture(scope="module")
def made(tmp_path_factory: pytest.TempPathFactory) -> tuple[RunPlan, list[TorchInner]]:
    """A plan, and three copies of a small model: two sites, and one process with the batch of both."""
    blobs, cache = open_blobs("memory://"), tmp_path_factory.mktemp("cache")
    manifest = prepare(SPEC, blobs, "r")
    folder = data_folder(blobs, "r", manifest, Path(cache))
    of = plan(replace(SPEC, outer=OuterSpec(fragments=2)), manifest)
    return of, [TorchInner(of, manifest, folder) for _ in range(3)]


def test_a_step_with_its_gradient_is_a_step(made: tuple[RunPlan, list[TorchInner]]) -> None:
    of, (one, two, _) = made
    state = initial_state(of.shape, of.vocab, of.seed)
    for inner in (one, two):
        inner.forget()
        inner.load(state)
    with_it = one.gradient(0, [IdRange(0, 4)], (0.1, 0.2), never, 1.3)
    without = two.run(0, [IdRange(0, 4)], (0.1, 0.2), never, 1.3)
    assert np.array_equal(with_it.params, without.params) and with_it.loss == without.loss
    assert without.gradient is None and with_it.gradient is not None
    assert 0 < np.linalg.norm(with_it.gradient) <= 1.0 + 1e-5
    stopped = one.gradient(0, [IdRange(4, 8)], (0.2, 0.3), lambda _: True)
    assert stopped.stopped and stopped.steps == 0
    assert np.array_equal(stopped.params, with_it.params)


@pytest.mark.parametrize("bits", [8, 4])
def test_two_sites_in_step_are_one_process_with_the_batch_of_both(
    made: tuple[RunPlan, list[TorchInner]], bits: int
) -> None:
    """Against the mean of parameters, which is what it replaces, and through a replay from what the ledger says."""
    of, (one, two, whole) = made
    stage, start, rounds = of.stages[0], initial_state(of.shape, of.vocab, of.seed), 30
    whole.forget()
    whole.load(start)
    for step in range(rounds):
        batch = whole._samples[0].batch(list(range(8 * step, 8 * step + 8)))
        whole._step(batch, learning_rate(stage, (step + 0.5) / rounds / 2), stage.weight_decay)
    wanted = whole._read()

    found = {}
    for gradients in (True, False):
        copies = iter((one, two))
        again = _Replay(of, start.copy(), np.zeros_like(start), lambda copies=copies: next(copies))
        for step in range(rounds):
            progress = (step / rounds / 2, (step + 1) / rounds / 2)
            middle = learning_rate(stage, sum(progress) / 2)
            sites = tuple(
                Contribution(
                    name,
                    name,
                    ((8 * step + 4 * k, 8 * step + 4 * k + 4),),
                    128,
                    1,
                    1.0,
                    1.0,
                    0.5,
                    step == 0,
                    progress,
                    rate=1.0 if gradients else 2**0.5,
                )
                for k, name in enumerate("ab")
            )
            entry = Entry(
                "r", step + 1, 1, "", 0, 1, middle if gradients else 1.0, 0.0, sites, 256, 2, 1.0, "", 0, "", 0.0,
                bits, of.fragments, gradients=gradients,
            )  # fmt: skip
            again.take(again.round(entry), entry)
        found[gradients] = float(np.linalg.norm(again.outer.state - wanted))
    way = float(np.linalg.norm(wanted - start))
    assert found[True] < {8: 0.5, 4: 0.75}[bits] * found[False], (found, way)
    assert found[True] < 0.25 * way
