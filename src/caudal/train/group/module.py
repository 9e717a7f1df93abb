"""The Llama layout as an `nn.Module`, for what wraps modules: DDP, FSDP2, checkpointing, torch.compile.

It computes what `caudal.train.model.Llama` computes from the same numbers, in torch's own operations.
"""

from __future__ import annotations

import torch
from torch import Tensor, nn
from torch.nn import functional
from torch.utils.checkpoint import checkpoint

from caudal.domain.workload import ModelShape
from caudal.train.layout import NORM_EPSILON, ROPE_THETA, head_width
from caudal.train.module import SharedModule


class Layer(nn.Module):
    """Attention and MLP with their norms. Parameters in the order of `layout.layer_shapes`."""

    def __init__(self, shape: ModelShape) -> None:
        super().__init__()
        self.shape, self.head = shape, head_width(shape)
        width, ffn = shape.width, shape.ffn_width
        self.norm_in = nn.Parameter(torch.ones(width))
        self.query = nn.Parameter(torch.empty(shape.heads * self.head, width))
        self.key = nn.Parameter(torch.empty(shape.kv_heads * self.head, width))
        self.value = nn.Parameter(torch.empty(shape.kv_heads * self.head, width))
        self.out = nn.Parameter(torch.empty(width, shape.heads * self.head))
        self.norm_mid = nn.Parameter(torch.ones(width))
        self.gate = nn.Parameter(torch.empty(ffn, width))
        self.up = nn.Parameter(torch.empty(ffn, width))
        self.down = nn.Parameter(torch.empty(width, ffn))

    def ordered(self) -> list[nn.Parameter]:
        """The parameters as they are now: FSDP2 puts others in their place."""
        attention = [self.norm_in, self.query, self.key, self.value, self.out]
        return [*attention, self.norm_mid, self.gate, self.up, self.down]

    def forward(self, x: Tensor, cosine: Tensor, sine: Tensor) -> Tensor:
        """[batch, length, width] to the same."""
        batch, length, width = x.shape
        inner = functional.rms_norm(x, (width,), self.norm_in, NORM_EPSILON)
        q, k, v = (
            functional.linear(inner, matrix).view(batch, length, -1, self.head).transpose(1, 2)
            for matrix in (self.query, self.key, self.value)
        )
        heard = functional.scaled_dot_product_attention(
            _turned(q, cosine, sine), _turned(k, cosine, sine), v, is_causal=True, enable_gqa=True
        )
        x = x + functional.linear(heard.transpose(1, 2).reshape(batch, length, -1), self.out)
        inner = functional.rms_norm(x, (width,), self.norm_mid, NORM_EPSILON)
        wide = functional.silu(functional.linear(inner, self.gate)) * functional.linear(inner, self.up)
        return x + functional.linear(wide, self.down)


class LlamaModule(SharedModule):
    """The whole model. `checkpoints`: layers are computed again on the way back instead of being kept."""

    def __init__(self, shape: ModelShape, vocabulary: int, checkpoints: bool = False) -> None:
        super().__init__()
        self.shape, self.checkpoints = shape, checkpoints
        self.embedding = nn.Parameter(torch.empty(vocabulary, shape.width))
        self.layers = nn.ModuleList(Layer(shape) for _ in range(shape.layers))
        self.norm = nn.Parameter(torch.ones(shape.width))
        self.head = None if shape.tie_embeddings else nn.Parameter(torch.empty(vocabulary, shape.width))
        half = torch.arange(0, head_width(shape), 2, dtype=torch.float64) / head_width(shape)
        angles = torch.arange(shape.context, dtype=torch.float64).view(-1, 1) / ROPE_THETA**half
        both = torch.cat((angles, angles), dim=-1)
        self.register_buffer("cosine", both.cos().float(), persistent=False)
        self.register_buffer("sine", both.sin().float(), persistent=False)

    def ordered(self) -> list[nn.Parameter]:
        """All parameters in the order of `layout.tensors`."""
        inside = [p for layer in self.layers if isinstance(layer, Layer) for p in layer.ordered()]
        last = [] if self.head is None else [self.head]
        return [self.embedding, *inside, self.norm, *last]

    def forward(self, tokens: Tensor, targets: Tensor, rows: Tensor | None = None) -> Tensor:
        """The SUM of the losses in nats over the positions `rows` of the flattened batch (None: all)."""
        x = functional.embedding(tokens, self.embedding)
        assert isinstance(self.cosine, Tensor) and isinstance(self.sine, Tensor)
        cosine, sine = self.cosine[: tokens.shape[1]], self.sine[: tokens.shape[1]]
        for layer in self.layers:
            if self.checkpoints and torch.is_grad_enabled():
                x = checkpoint(layer, x, cosine, sine, use_reentrant=False)
            else:
                x = layer(x, cosine, sine)
        x = x.reshape(-1, self.shape.width)
        if rows is not None:
            x = x.index_select(0, rows)
        x = functional.rms_norm(x, (self.shape.width,), self.norm, NORM_EPSILON)
        logits = functional.linear(x, self.embedding if self.head is None else self.head)
        return functional.cross_entropy(logits.float(), targets, reduction="sum")


def _turned(x: Tensor, cosine: Tensor, sine: Tensor) -> Tensor:
    """Rotary positions as Hugging Face has them: number i turns with number i + half."""
    first, second = x.chunk(2, dim=-1)
    turned: Tensor = x * cosine.to(x.dtype) + torch.cat((-second, first), dim=-1) * sine.to(x.dtype)
    return turned
