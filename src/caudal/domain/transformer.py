"""The shape of a transformer of any size, dense or a mixture of experts, and how many parameters it has.

A description for estimates: of models that others train and serve, too. (What our own trainer builds is
`workload.ModelShape`.) Knows no chips and no layouts. Norms and biases are left out of the counts: below 0.1 %.
"""

from __future__ import annotations

from dataclasses import dataclass


@dataclass(frozen=True, slots=True)
class Transformer:
    """Decoder-only. Widths in elements.

    `ffn` is the dense feed-forward width (0 where every layer has experts), `gated` is three matrices instead of
    two (SwiGLU, GeGLU). `experts` of width `expert_ffn`, of which a token passes `top_k` and the shared ones
    (`shared_ffn` wide together), stand in all layers but `dense_layers`. `kv_lora` > 0 is multi-head latent
    attention: queries through `q_lora` (0: directly), keys and values through `kv_lora` + `rope_dim`.
    `router_groups` > 0 limits a token to experts of so many groups (nodes). `sinks` is a learnt offset in the
    softmax, which fused attention did not know for long. `window` > 0 limits the attention of a share
    `window_share` of the layers to so many tokens.
    """

    name: str
    layers: int
    hidden: int
    heads: int
    kv_heads: int
    ffn: int
    vocab: int
    head_dim: int = 0
    v_head_dim: int = 0
    gated: bool = True
    tied: bool = False
    experts: int = 0
    top_k: int = 0
    expert_ffn: int = 0
    shared_ffn: int = 0
    dense_layers: int = 0
    q_lora: int = 0
    kv_lora: int = 0
    rope_dim: int = 0
    router_groups: int = 0
    sinks: bool = False
    window: int = 0
    window_share: float = 0.0
    source: str = ""

    @property
    def qk_dim(self) -> int:
        """Width of one head's query and key."""
        return self.head_dim or self.hidden // self.heads

    @property
    def v_dim(self) -> int:
        """Width of one head's value."""
        return self.v_head_dim or self.qk_dim

    @property
    def moe_layers(self) -> int:
        """Layers with experts."""
        return self.layers - self.dense_layers if self.experts else 0

    @property
    def attention_parameters(self) -> int:
        """Of one layer."""
        if not self.kv_lora:
            q, kv = self.heads * self.qk_dim, self.kv_heads * (self.qk_dim + self.v_dim)
            return self.hidden * (q + kv) + self.heads * self.v_dim * self.hidden
        q_width = self.heads * self.qk_dim
        queries = self.hidden * self.q_lora + self.q_lora * q_width if self.q_lora else self.hidden * q_width
        down = self.hidden * (self.kv_lora + self.rope_dim)
        up = self.kv_lora * self.heads * (self.qk_dim - self.rope_dim + self.v_dim)
        return queries + down + up + self.heads * self.v_dim * self.hidden

    @property
    def matrices(self) -> int:
        """Matrices of one feed-forward block."""
        return 3 if self.gated else 2

    @property
    def expert_parameters(self) -> int:
        """Of one routed expert."""
        return self.matrices * self.hidden * self.expert_ffn

    @property
    def dense_ffn_parameters(self) -> int:
        """Of the feed-forward block of a layer without experts."""
        return self.matrices * self.hidden * self.ffn

    @property
    def shared_ffn_parameters(self) -> int:
        """Of what every token passes in a layer with experts: shared experts and the router."""
        return self.matrices * self.hidden * self.shared_ffn + self.hidden * self.experts

    @property
    def embedding_parameters(self) -> int:
        """The table, and the head where it is not tied to it."""
        return self.vocab * self.hidden * (1 if self.tied else 2)

    @property
    def parameters(self) -> int:
        """All of them."""
        return self._count(self.experts)

    @property
    def active_parameters(self) -> int:
        """Those that one token passes."""
        return self._count(self.top_k)

    def _count(self, experts: int) -> int:
        dense = self.layers - self.moe_layers
        ffn = dense * self.dense_ffn_parameters
        ffn += self.moe_layers * (experts * self.expert_parameters + self.shared_ffn_parameters)
        return self.layers * self.attention_parameters + ffn + self.embedding_parameters
