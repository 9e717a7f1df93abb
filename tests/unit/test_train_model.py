"""Specifies train/model: what Llama computes, with the right gradients, and who sees what."""

from __future__ import annotations

import pytest
import torch
from torch.nn import functional

from caudal.domain.workload import ModelShape
from caudal.train.kernels import ATTENTION_BLOCK, attention, cross_entropy, normalise, swiglu
from caudal.train.layout import initial_state
from caudal.train.model import Llama

SHAPE = ModelShape(layers=2, heads=4, kv_heads=2, width=32, ffn_width=48, context=ATTENTION_BLOCK + 40)
VOCABULARY = 50


@pytest.fixture
def flat() -> torch.Tensor:
    """Weights large enough to matter, and an embedding large enough for slopes to be measured."""
    state = initial_state(SHAPE, VOCABULARY, 1) * 2
    state[: VOCABULARY * SHAPE.width] *= 3
    return torch.from_numpy(state).requires_grad_()


def some_tokens(length: int = ATTENTION_BLOCK + 30) -> torch.Tensor:
    return torch.randint(0, VOCABULARY, (3, length), generator=torch.Generator().manual_seed(1))


def test_the_loss_is_the_cross_entropy_of_the_logits(flat: torch.Tensor) -> None:
    model, tokens = Llama(SHAPE, VOCABULARY), some_tokens()
    targets = tokens.roll(-1, 1).reshape(-1)
    expected = functional.cross_entropy(model.logits(flat, tokens), targets)
    assert torch.allclose(model.loss(flat, tokens, targets), expected, atol=1e-6)


def test_rows_that_do_not_count_change_nothing(flat: torch.Tensor) -> None:
    model, tokens = Llama(SHAPE, VOCABULARY), some_tokens()
    rows = torch.tensor([0, 5, 93, 94, 200])
    targets = torch.tensor([1, 2, 3, 4, 5])
    logits = model.logits(flat, tokens)
    assert torch.allclose(model.logits(flat, tokens, rows), logits[rows], atol=1e-5)
    loss = model.loss(flat, tokens, targets, rows)
    assert torch.allclose(loss, functional.cross_entropy(logits[rows], targets), atol=1e-6)


def test_a_token_sees_only_what_came_before(flat: torch.Tensor) -> None:
    model, tokens = Llama(SHAPE, VOCABULARY), some_tokens()
    length = tokens.shape[1]
    changed = tokens.clone()
    changed[:, 70:] = 0
    before = model.logits(flat, tokens).view(3, length, -1)
    after = model.logits(flat, changed).view(3, length, -1)
    assert torch.allclose(before[:, :70], after[:, :70], atol=1e-4)
    assert not torch.allclose(before[:, 70:], after[:, 70:], atol=1e-3)


def test_the_gradient_is_the_slope(flat: torch.Tensor) -> None:
    model, tokens = Llama(SHAPE, VOCABULARY), some_tokens()
    targets = tokens.roll(-1, 1).reshape(-1)
    model.loss(flat, tokens, targets).backward()
    assert flat.grad is not None
    direction = flat.grad / flat.grad.norm()
    step = 1e-3
    with torch.no_grad():
        up = model.loss(flat + step * direction, tokens, targets)
        down = model.loss(flat - step * direction, tokens, targets)
    assert float((up - down) / (2 * step)) == pytest.approx(float(flat.grad.norm()), rel=1e-2)


def naive_attention(inner: torch.Tensor, turns: torch.Tensor, heads: int, kv_heads: int) -> torch.Tensor:
    """The same as `attention`, the plain way."""
    batch, length, _ = inner.shape
    width = turns.shape[1] * 2
    q, k, v = inner.split([heads * width, kv_heads * width, kv_heads * width], -1)
    q, k, v = (x.reshape(batch, length, -1, width).transpose(1, 2) for x in (q, k, v))

    def turned(x: torch.Tensor) -> torch.Tensor:
        return torch.view_as_real(
            torch.view_as_complex(x.unflatten(-1, (-1, 2)).contiguous()) * turns
        ).flatten(-2)

    groups = heads // kv_heads
    k, v = turned(k).repeat_interleave(groups, 1), v.repeat_interleave(groups, 1)
    out = functional.scaled_dot_product_attention(turned(q), k, v, is_causal=True, scale=1.0)
    return out.transpose(1, 2).reshape(batch * length, -1)


@pytest.mark.parametrize("length", [1, 7, ATTENTION_BLOCK, ATTENTION_BLOCK + 9, 3 * ATTENTION_BLOCK])
def test_attention_and_its_gradient(length: int) -> None:
    inner = torch.randn(2, length, 8 * 6, generator=torch.Generator().manual_seed(length)).requires_grad_()
    turns = torch.polar(torch.ones(length, 3), torch.rand(length, 3))
    fast, plain = attention(inner, turns, 4, 2), naive_attention(inner, turns, 4, 2)
    assert torch.allclose(fast, plain, atol=1e-5)
    grad = torch.randn_like(plain)
    (one,) = torch.autograd.grad(fast, inner, grad)
    (two,) = torch.autograd.grad(plain, inner, grad)
    assert torch.allclose(one, two, atol=1e-4)


def test_the_small_kernels_and_their_gradients() -> None:
    x, grad = torch.randn(5, 8, requires_grad=True), torch.randn(5, 8)
    fast, plain = normalise(x, 1e-5), functional.rms_norm(x, (8,), eps=1e-5)
    assert torch.allclose(fast, plain, atol=1e-6)
    assert torch.allclose(*(torch.autograd.grad(y, x, grad)[0] for y in (fast, plain)), atol=1e-5)
    fast, plain = swiglu(x), functional.silu(x[:, :4]) * x[:, 4:]
    assert torch.allclose(fast, plain, atol=1e-6)
    assert torch.allclose(*(torch.autograd.grad(y, x, grad[:, :4])[0] for y in (fast, plain)), atol=1e-6)


@pytest.mark.parametrize("positions", [1, 255, 700])
def test_the_loss_in_blocks(positions: int) -> None:
    hidden, head = torch.randn(positions, 8, requires_grad=True), torch.randn(20, 8, requires_grad=True)
    targets = torch.randint(0, 20, (positions,))
    fast, plain = (
        cross_entropy(hidden, head, targets),
        functional.cross_entropy(hidden @ head.t(), targets),
    )
    assert torch.allclose(fast, plain, atol=1e-5)
    ones, twos = (torch.autograd.grad(3 * loss, [hidden, head]) for loss in (fast, plain))
    assert all(torch.allclose(one, two, atol=1e-5) for one, two in zip(ones, twos, strict=True))


def test_generate_stops_at_the_end_the_limit_and_the_context(flat: torch.Tensor) -> None:
    model = Llama(SHAPE, VOCABULARY)
    free = model.generate(flat, [1, 2, 3], end=-1, limit=6)
    assert len(free) == 6
    end = free[3]
    assert model.generate(flat, [1, 2, 3], end=end, limit=6) == free[: free.index(end)]
    full = model.generate(flat, [1] * (SHAPE.context - 2), end=-1, limit=9)
    assert len(full) == 2
