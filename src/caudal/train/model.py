"""The model that is trained: the Llama layout over one flat vector, arranged for speed on CPUs.

It computes what `transformers`' LlamaForCausalLM computes from the same numbers, with fewer passes over
memory: the norms' weights, the attention's scale and the order of rotary pairs are folded into the matrices
once per step (they are small), so that per token there is one pass where there were three or four. Knows
nothing about data, optimisers or rounds.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass

import torch
from torch import Tensor
from torch.nn import functional

from caudal.domain.workload import ModelShape
from caudal.train.kernels import attention, cross_entropy, normalise, swiglu
from caudal.train.layout import NORM_EPSILON, ROPE_THETA, head_width, state_size


@dataclass(frozen=True, slots=True)
class _Layer:
    """One layer's matrices, ready for use: `inner` is query, key and value together, with the norm's
    weight, the scale and the rotary order folded in; `gate_up` has its norm's weight folded in."""

    inner: Tensor
    out: Tensor
    gate_up: Tensor
    down: Tensor


@dataclass(frozen=True, slots=True)
class _Weights:
    """All matrices of one step; `head` has the last norm's weight folded in."""

    embedding: Tensor
    layers: tuple[_Layer, ...]
    head: Tensor


class Llama:
    """The model as functions of a flat float32 vector of `size` numbers; holds no weights itself."""

    def __init__(self, shape: ModelShape, vocabulary: int) -> None:
        self.shape = shape
        self.vocabulary = vocabulary
        self.size = state_size(shape, vocabulary)
        width, self._head_width = shape.width, head_width(shape)
        self._heads = shape.heads + 2 * shape.kv_heads
        per_layer = [width, self._heads * self._head_width * width, width * width]
        per_layer += [width, 2 * shape.ffn_width * width, width * shape.ffn_width]
        self._sizes = [vocabulary * width, *per_layer * shape.layers, width]
        if not shape.tie_embeddings:
            self._sizes.append(vocabulary * width)
        self._order, self._scale = self._folds()
        self._turns = _turns(self._head_width, shape.context)

    def loss(self, flat: Tensor, tokens: Tensor, targets: Tensor, rows: Tensor | None = None) -> Tensor:
        """The mean loss in nats over the positions `rows` (of the flattened batch; None: all).

        `tokens` is [batch, length]; `targets` has one entry for each of the positions that count.
        """
        weights = self._prepare(flat)
        hidden = self._hidden(weights, tokens, rows)
        return cross_entropy(hidden, weights.head, targets)

    @torch.no_grad()
    def logits(self, flat: Tensor, tokens: Tensor, rows: Tensor | None = None) -> Tensor:
        """The logits, [positions, vocabulary], at `rows` of the flattened batch [batch, length]."""
        weights = self._prepare(flat)
        return functional.linear(self._hidden(weights, tokens, rows), weights.head)

    @torch.no_grad()
    def generate(self, flat: Tensor, prompt: Sequence[int], end: int, limit: int) -> list[int]:
        """The most probable continuation, token by token, up to `end` (left out), `limit` tokens, or the
        context's end. Computes every step from the start: for scores and samples, not for serving."""
        tokens = list(prompt)
        while len(tokens) - len(prompt) < limit and len(tokens) < self.shape.context:
            last = torch.tensor([len(tokens) - 1])
            token = int(self.logits(flat, torch.tensor([tokens]), last).argmax())
            if token == end:
                break
            tokens.append(token)
        return tokens[len(prompt) :]

    def _folds(self) -> tuple[Tensor, Tensor]:
        """The order of rows that puts rotary pairs side by side, and the factor of each row.

        Hugging Face turns number i with number i + half; complex multiplication turns neighbours. Queries
        and keys are reordered alike, so their products stay the same.
        """
        width, shape = self._head_width, self.shape
        pairs = torch.arange(width).view(2, width // 2).t().reshape(-1)
        turned = shape.heads + shape.kv_heads
        starts = torch.arange(self._heads).view(-1, 1) * width
        order = starts + torch.where(
            torch.arange(self._heads).view(-1, 1) < turned, pairs, torch.arange(width)
        )
        scale = torch.ones(self._heads * width, 1)
        scale[: shape.heads * width] = 1 / math.sqrt(width)
        return order.view(-1), scale

    def _prepare(self, flat: Tensor) -> _Weights:
        """Views into the flat vector, with what can be folded together folded."""
        width, ffn = self.shape.width, self.shape.ffn_width
        parts = torch.split(flat, self._sizes)
        embedding = parts[0].view(self.vocabulary, width)
        layers = []
        for i in range(self.shape.layers):
            norm1, inner, out, norm2, gate_up, down = parts[1 + 6 * i : 7 + 6 * i]
            layers.append(
                _Layer(
                    inner=(inner.view(-1, width) * norm1)[self._order] * self._scale,
                    out=out.view(width, width),
                    gate_up=gate_up.view(2 * ffn, width) * norm2,
                    down=down.view(width, ffn),
                )
            )
        norm = parts[1 + 6 * self.shape.layers]
        head = embedding if self.shape.tie_embeddings else parts[-1].view(self.vocabulary, width)
        return _Weights(embedding, tuple(layers), head * norm)

    def _hidden(self, weights: _Weights, tokens: Tensor, rows: Tensor | None) -> Tensor:
        """The normalised output of the last layer at `rows`, [positions, width]."""
        batch, length = tokens.shape
        assert length <= self.shape.context
        turns = self._turns[:length]
        x = functional.embedding(tokens.reshape(-1), weights.embedding)
        for number, layer in enumerate(weights.layers):
            inner = functional.linear(normalise(x, NORM_EPSILON), layer.inner)
            heard = attention(inner.view(batch, length, -1), turns, self.shape.heads, self.shape.kv_heads)
            if rows is not None and number == len(weights.layers) - 1:
                # Past the last attention, positions that do not count influence nothing: leave them out.
                x, heard = x.index_select(0, rows), heard.index_select(0, rows)
            x = torch.addmm(x, heard, layer.out.t())
            wide = functional.linear(normalise(x, NORM_EPSILON), layer.gate_up)
            x = torch.addmm(x, swiglu(wide), layer.down.t())
        return normalise(x, NORM_EPSILON)


def _turns(width: int, context: int) -> Tensor:
    """Rotary positions as complex numbers of length one, [context, width / 2]."""
    frequencies = 1 / ROPE_THETA ** (torch.arange(0, width, 2, dtype=torch.float64) / width)
    angles = torch.arange(context, dtype=torch.float64).view(-1, 1) * frequencies
    return torch.polar(torch.ones_like(angles), angles).to(torch.complex64)
