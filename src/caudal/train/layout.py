"""How a model lies in ONE flat float32 vector: Hugging Face's names, shapes, offsets and first values.

What has to be multiplied together lies together (query, key, value; gate, up), so that the trainer takes
several matrices as one view. Uses numpy only: the coordinator, the exporter and the tests need no torch.
Knows nothing of how the model computes.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
import numpy.typing as npt

from caudal.domain.workload import ModelShape

Floats = npt.NDArray[np.float32]

NORM_EPSILON = 1e-5
"""Added to the mean square in RMSNorm: Llama's value, written into config.json too."""

ROPE_THETA = 10_000.0
"""The base of the rotary frequencies: Llama's value, written into config.json too."""

EMBEDDING = "model.embed_tokens.weight"
HEAD = "lm_head.weight"
NORM = "model.norm.weight"


@dataclass(frozen=True, slots=True)
class Parameter:
    """One matrix or vector: its Hugging Face name, its shape, and where it starts in the flat vector."""

    name: str
    shape: tuple[int, ...]
    offset: int

    @property
    def size(self) -> int:
        """How many numbers it holds."""
        return math.prod(self.shape)


def head_width(shape: ModelShape) -> int:
    """The width of one attention head."""
    return shape.width // shape.heads


def layer_shapes(shape: ModelShape) -> tuple[tuple[str, tuple[int, ...]], ...]:
    """One layer's parameters in their order, without the `model.layers.N.` before each name."""
    width, ffn = shape.width, shape.ffn_width
    queries, keys = shape.heads * head_width(shape), shape.kv_heads * head_width(shape)
    return (
        ("input_layernorm.weight", (width,)),
        ("self_attn.q_proj.weight", (queries, width)),
        ("self_attn.k_proj.weight", (keys, width)),
        ("self_attn.v_proj.weight", (keys, width)),
        ("self_attn.o_proj.weight", (width, queries)),
        ("post_attention_layernorm.weight", (width,)),
        ("mlp.gate_proj.weight", (ffn, width)),
        ("mlp.up_proj.weight", (ffn, width)),
        ("mlp.down_proj.weight", (width, ffn)),
    )


def tensors(shape: ModelShape, vocabulary: int) -> tuple[Parameter, ...]:
    """All parameters of a model in the order of the flat vector."""
    assert shape.width % shape.heads == 0 and shape.heads % shape.kv_heads == 0
    assert head_width(shape) % 2 == 0, "rotary positions turn pairs of numbers"
    named: list[tuple[str, tuple[int, ...]]] = [(EMBEDDING, (vocabulary, shape.width))]
    for layer in range(shape.layers):
        named += [(f"model.layers.{layer}.{name}", size) for name, size in layer_shapes(shape)]
    named.append((NORM, (shape.width,)))
    if not shape.tie_embeddings:
        named.append((HEAD, (vocabulary, shape.width)))
    parameters, offset = [], 0
    for name, size in named:
        parameters.append(Parameter(name, size, offset))
        offset += parameters[-1].size
    return tuple(parameters)


def state_size(shape: ModelShape, vocabulary: int) -> int:
    """How many numbers the flat vector holds."""
    last = tensors(shape, vocabulary)[-1]
    return last.offset + last.size


def views(state: Floats, parameters: Sequence[Parameter]) -> dict[str, Floats]:
    """The flat vector as named arrays that share its memory."""
    assert state.shape == (parameters[-1].offset + parameters[-1].size,)
    return {p.name: state[p.offset : p.offset + p.size].reshape(p.shape) for p in parameters}


def initial_state(shape: ModelShape, vocabulary: int, seed: int) -> Floats:
    """The first values, the same on every machine for the same seed.

    Matrices are normal with 1/sqrt(inputs), the embedding too: with the usual 0.02 the first 100,000 tokens
    of a small model teach half as much (measured). Those that write to the residual stream are divided by
    sqrt(2 * layers), so that its size does not grow with depth; norms are one.
    """
    random = np.random.Generator(np.random.PCG64(seed))
    parameters = tensors(shape, vocabulary)
    state = np.ones(state_size(shape, vocabulary), dtype=np.float32)
    for name, array in views(state, parameters).items():
        if array.ndim == 1:
            continue
        std = 1 / math.sqrt(array.shape[1])
        if name.endswith(("o_proj.weight", "down_proj.weight")):
            std /= math.sqrt(2 * shape.layers)
        array[...] = random.standard_normal(array.shape, dtype=np.float32) * np.float32(std)
    return state
