"""The pieces of the model that PyTorch would take in many passes, each with its own backward pass.

On a CPU a small model spends its time on matrix products and on walking through memory; these save the
walking. Everything is float32. Knows nothing of weights, names or layers.
"""

from __future__ import annotations

from functools import lru_cache
from typing import Any

import torch
from torch import Tensor
from torch.autograd import Function
from torch.nn import functional

ATTENTION_BLOCK = 64
"""Queries per block of causal attention: keys after a block's end are never touched (measured: 64)."""

LOSS_BLOCK = 256
"""Positions whose logits are alive at once: 256 x 1,024 floats fit the second-level cache."""


class _Normalise(Function):
    """See `normalise`."""

    @staticmethod
    def forward(ctx: Any, x: Tensor, epsilon: float) -> Tensor:
        """[positions, width] to the same shape."""
        length = torch.linalg.vector_norm(x, dim=-1, keepdim=True)
        inverse = length.square_().div_(x.shape[-1]).add_(epsilon).rsqrt_()
        out: Tensor = x * inverse
        ctx.save_for_backward(out, inverse)
        return out

    @staticmethod
    def backward(ctx: Any, *grads: Tensor) -> tuple[Tensor, None]:
        """The gradient with respect to x."""
        (grad,) = grads
        out, inverse = ctx.saved_tensors
        along = (grad * out).mean(dim=-1, keepdim=True)
        return torch.addcmul(grad, out, along, value=-1).mul_(inverse), None


class _SwiGlu(Function):
    """See `swiglu`."""

    @staticmethod
    def forward(ctx: Any, wide: Tensor) -> Tensor:
        """[positions, 2 * width] to [positions, width]."""
        gate, up = wide.chunk(2, dim=-1)
        bent = functional.silu(gate)
        ctx.save_for_backward(wide, bent)
        return bent * up

    @staticmethod
    def backward(ctx: Any, *grads: Tensor) -> Tensor:
        """The gradient with respect to both halves, written side by side."""
        (grad,) = grads
        wide, bent = ctx.saved_tensors
        gate, up = wide.chunk(2, dim=-1)
        both = torch.empty_like(wide)
        to_gate, to_up = both.chunk(2, dim=-1)
        torch.mul(grad, bent, out=to_up)
        torch.ops.aten.silu_backward.grad_input(grad * up, gate, grad_input=to_gate)
        return both


class _Attention(Function):
    """See `attention`."""

    @staticmethod
    def forward(ctx: Any, inner: Tensor, turns: Tensor, heads: int, kv_heads: int) -> Tensor:
        """`turns` is complex, [length, head width / 2]."""
        batch, length, _ = inner.shape
        queries, keys, values = _split(inner, heads, kv_heads)
        k = _turned(keys, turns).view(batch * kv_heads, length, -1)
        v = values.contiguous().view(batch * kv_heads, length, -1)
        out = inner.new_empty(batch, length, heads * k.shape[-1])
        out_heads = _grouped(out, kv_heads, k.shape[-1])
        kept = []
        for start in range(0, length, ATTENTION_BLOCK):
            end = min(start + ATTENTION_BLOCK, length)
            q = _turned(queries[:, :, :, start:end], turns[start:end])
            q = q.view(batch * kv_heads, -1, k.shape[-1])
            scores = torch.baddbmm(_mask(start, end, heads // kv_heads), q, k[:, :end].transpose(1, 2))
            weights = torch.softmax(scores, dim=-1)
            heard = torch.bmm(weights, v[:, :end])
            out_heads[:, :, :, start:end].copy_(heard.view(batch, kv_heads, -1, end - start, k.shape[-1]))
            kept += [q, weights]
        ctx.save_for_backward(turns, k, v, *kept)
        ctx.heads, ctx.kv_heads, ctx.inner_shape = heads, kv_heads, inner.shape
        return out.view(batch * length, -1)

    @staticmethod
    def backward(ctx: Any, *grads: Tensor) -> tuple[Tensor, None, None, None]:
        """The gradient with respect to the input."""
        turns, k, v, *kept = ctx.saved_tensors
        batch, length, _ = ctx.inner_shape
        heads, kv_heads, width = ctx.heads, ctx.kv_heads, k.shape[-1]
        inner = grads[0].new_empty(ctx.inner_shape)
        to_queries, to_keys, to_values = _split(inner, heads, kv_heads)
        told = _grouped(grads[0].reshape(batch, length, -1), kv_heads, width)
        to_k, to_v = torch.zeros_like(k), torch.zeros_like(v)
        back = turns.conj().resolve_conj()
        for block, start in enumerate(range(0, length, ATTENTION_BLOCK)):
            end = min(start + ATTENTION_BLOCK, length)
            q, weights = kept[2 * block : 2 * block + 2]
            grad = told[:, :, :, start:end].reshape(batch * kv_heads, -1, width)
            to_v[:, :end].baddbmm_(weights.transpose(1, 2), grad)
            to_weights = torch.bmm(grad, v[:, :end].transpose(1, 2))
            to_scores = torch._softmax_backward_data(to_weights, weights, -1, torch.float32)
            to_k[:, :end].baddbmm_(to_scores.transpose(1, 2), q)
            to_q = torch.bmm(to_scores, k[:, :end]).view(batch, kv_heads, -1, end - start, width)
            _turned(to_q, back[start:end], out=to_queries[:, :, :, start:end])
        _turned(to_k.view(batch, kv_heads, 1, length, width), back, out=to_keys)
        to_values.copy_(to_v.view(batch, kv_heads, 1, length, width))
        return inner, None, None, None


class _CrossEntropy(Function):
    """See `cross_entropy`. The gradients are computed on the way forward, block by block, while the logits are
    in the cache."""

    @staticmethod
    def forward(ctx: Any, hidden: Tensor, head: Tensor, targets: Tensor) -> Tensor:
        """`hidden` is [positions, width], `head` [vocabulary, width], `targets` [positions]."""
        wanted = ctx.needs_input_grad[0] or ctx.needs_input_grad[1]
        to_hidden, to_head = torch.empty_like(hidden), torch.zeros_like(head)
        total = hidden.new_zeros(())
        for start in range(0, len(targets), LOSS_BLOCK):
            some = slice(start, start + LOSS_BLOCK)
            right = targets[some].view(-1, 1)
            logs = torch.log_softmax(torch.mm(hidden[some], head.t()), dim=-1)
            total -= logs.gather(1, right).sum()
            if wanted:
                wrong = logs.exp_().scatter_add_(1, right, hidden.new_full((), -1.0).expand(right.shape))
                torch.mm(wrong, head, out=to_hidden[some])
                to_head.addmm_(wrong.t(), hidden[some])
        ctx.save_for_backward(to_hidden, to_head)
        ctx.positions = len(targets)
        return total / len(targets)

    @staticmethod
    def backward(ctx: Any, *grads: Tensor) -> tuple[Tensor, Tensor, None]:
        """What was computed on the way forward, scaled."""
        to_hidden, to_head = ctx.saved_tensors
        factor = grads[0] / ctx.positions
        return to_hidden.mul_(factor), to_head.mul_(factor), None


def normalise(x: Tensor, epsilon: float) -> Tensor:
    """x / sqrt(mean(x^2) + epsilon) over the last dimension of [positions, width]: RMSNorm without its
    weight, which the caller folds into the next matrix."""
    out: Tensor = _Normalise.apply(x, epsilon)  # type: ignore[no-untyped-call]
    return out


def swiglu(wide: Tensor) -> Tensor:
    """silu(gate) * up, for gate and up side by side in [positions, 2 * width]."""
    out: Tensor = _SwiGlu.apply(wide)  # type: ignore[no-untyped-call]
    return out


def attention(inner: Tensor, turns: Tensor, heads: int, kv_heads: int) -> Tensor:
    """Causal attention with rotary positions and grouped keys.

    `inner` is [batch, length, (heads + 2 * kv_heads) * head width]: queries, already scaled, then keys,
    then values, with rotary pairs side by side; `turns` is complex, [length, head width / 2]. The output is
    [batch * length, heads * head width]. Blocks of queries look only at the keys up to their end, which
    skips most of what the causal mask would throw away.
    """
    out: Tensor = _Attention.apply(inner, turns, heads, kv_heads)  # type: ignore[no-untyped-call]
    return out


def cross_entropy(hidden: Tensor, head: Tensor, targets: Tensor) -> Tensor:
    """The mean loss of `hidden @ head.T` against `targets`, without ever holding all logits.

    `hidden` is [positions, width], `head` [vocabulary, width], `targets` [positions].
    """
    loss: Tensor = _CrossEntropy.apply(hidden, head, targets)  # type: ignore[no-untyped-call]
    return loss


def _grouped(x: Tensor, kv_heads: int, width: int) -> Tensor:
    """A view of [batch, length, heads * width] as [batch, kv head, heads per kv head, length, width]."""
    batch, length, _ = x.shape
    return x.view(batch, length, kv_heads, -1, width).permute(0, 2, 3, 1, 4)


def _split(inner: Tensor, heads: int, kv_heads: int) -> tuple[Tensor, Tensor, Tensor]:
    """Queries, keys and values of [batch, length, (heads + 2 * kv_heads) * width], each grouped."""
    width = inner.shape[-1] // (heads + 2 * kv_heads)
    sizes = [heads * width, kv_heads * width, kv_heads * width]
    queries, keys, values = (_grouped(part, kv_heads, width) for part in torch.split(inner, sizes, dim=-1))
    return queries, keys, values


def _turned(x: Tensor, turns: Tensor, out: Tensor | None = None) -> Tensor:
    """Pairs of numbers of [..., length, width] as complex numbers, times `turns`; contiguous without `out`."""
    if out is None:
        out = x.new_empty(x.shape)
    pairs, to = (torch.view_as_complex(y.view(*y.shape[:-1], -1, 2)) for y in (x, out))
    torch.mul(pairs, turns, out=to)
    return out


@lru_cache(maxsize=64)
def _mask(start: int, end: int, groups: int) -> Tensor:
    """What is added to the scores of queries start..end: -inf for later keys, [groups * queries, end]."""
    later = torch.arange(end) > torch.arange(start, end).view(-1, 1)
    return torch.zeros(end - start, end).masked_fill_(later, float("-inf")).repeat(groups, 1)
