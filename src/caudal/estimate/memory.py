"""How many parameters a model has, and how much memory its training and its serving take.

Training holds everything in fp32 (4 bytes). For P parameters, B samples of T tokens, width D, L layers, F
ffn width, H heads, G key/value heads of width D/H, and V entries in the vocabulary, a worker needs

    states       4·P·(1 weights + 1 gradients + 2 AdamW)
    agreement    4·P·(1 last outer state + 1 delta + 1 error feedback + 1 decoded update)
    activations  4·B·T·L·(10·D + 2·D·G/H + 4·F + 2·H·T)    what the backward pass reads again; the last
                                                            term is for attention weights that are kept
    logits       4·B·T·V·3                                  logits, their softmax, their gradient
    process      PROCESS_BYTES                              Python, the libraries, the allocator's slack
    beside it    BESIDE_BYTES + SPARE_BYTES + 4·P·2         the gang's first process, the idle standby, and the
                                                            spare, where there is one: weights and a mask

and a replica the weights as they lie in the file, the keys and values of its whole context in fp16
(2 · 2 · L · context · D·G/H), and its process. It is an upper estimate of what the formula knows; it does
not know fragmentation beyond PROCESS_BYTES, nor quantised key/value caches.
"""

from __future__ import annotations

from caudal.domain.workload import ModelShape, StageSpec, TokenizerSpec, TrainSpec

FP32_BYTES = 4
FP16_BYTES = 2

TRAIN_PROCESS_BYTES = 320 << 20
"""Python with torch 2.13 for CPUs after one backward pass: 242 MB resident, measured 2026-11-22 (Linux,
x86-64); the rest is slack for its allocator."""

BESIDE_BYTES = 48 << 20
SPARE_BYTES = 240 << 20
"""Of their own (unique set size): 10 and 33 MB; and 236 MB at 1.1 million parameters, 266 MB at 5 million, measured
2026-11-25 (Linux, x86-64, torch 2.13 for CPUs). The libraries themselves are shared with the worker."""

REPLICA_PROCESS_BYTES = 128 << 20
"""Python with xllamacpp: 62 MB resident, measured 2026-11-22 (Linux, x86-64); the rest is for llama.cpp's
compute buffers."""

CHARACTERS_AT_MOST = 4096
"""How many different characters a text is taken to have, before it has been read (English prose: below
200; a text in Chinese: up to about 4,000)."""


def vocabulary(tokenizer: TokenizerSpec) -> int:
    """Entries of the vocabulary: exact for `bpe`, an upper estimate for `characters`."""
    return tokenizer.entries if tokenizer.kind == "bpe" else CHARACTERS_AT_MOST


def parameters(shape: ModelShape, vocab: int) -> int:
    """The exact number of parameters."""
    kv_width = shape.width // shape.heads * shape.kv_heads
    attention = 2 * shape.width * shape.width + 2 * shape.width * kv_width
    ffn = 3 * shape.width * shape.ffn_width
    norms = 2 * shape.width
    embeddings = vocab * shape.width * (1 if shape.tie_embeddings else 2)
    return embeddings + shape.layers * (attention + ffn + norms) + shape.width


def training_states_bytes(shape: ModelShape, vocab: int) -> int:
    """Weights, gradients, AdamW's two moments, and the four copies that sites need to agree."""
    return parameters(shape, vocab) * FP32_BYTES * 8


def activations_bytes(shape: ModelShape, stage: StageSpec) -> int:
    """What one forward pass keeps for the backward pass, without the logits."""
    kv_width = shape.width // shape.heads * shape.kv_heads
    per_token_and_layer = (
        10 * shape.width + 2 * kv_width + 4 * shape.ffn_width + 2 * shape.heads * stage.sample_tokens
    )
    return FP32_BYTES * stage.batch * stage.sample_tokens * shape.layers * per_token_and_layer


def logits_bytes(stage: StageSpec, vocab: int) -> int:
    """Logits, their softmax and their gradient for one batch."""
    return FP32_BYTES * stage.batch * stage.sample_tokens * vocab * 3


def worker_bytes(spec: TrainSpec) -> int:
    """What one worker of the run needs at its hungriest stage, with the processes beside it. A standby that
    coordinates takes more. Of a run that begins from nothing: see `base_worker_bytes` for the others."""
    assert not spec.base.path, "a base is not of the spec's shape"
    vocab = vocabulary(spec.tokenizer)
    passes = [activations_bytes(spec.model, s) + logits_bytes(s, vocab) for s in spec.stages]
    own = training_states_bytes(spec.model, vocab) + max(passes, default=0) + TRAIN_PROCESS_BYTES
    return own + BESIDE_BYTES + spare_bytes(spec, vocab)


def spare_bytes(spec: TrainSpec, vocab: int) -> int:
    """What a worker's spare takes for itself; 0 where the run has none."""
    if not spec.inner.spare or spec.inner.processes > 1:
        return 0
    return SPARE_BYTES + 2 * FP32_BYTES * parameters(spec.model, vocab)


def base_worker_bytes(spec: TrainSpec, whole: int, trained: int, vocab: int) -> int:
    """What one worker of a run that begins from a base needs at least, once the base's layout is known: `whole`
    parameters of which `trained` are trained (with `lora`, `trained` are the adapters', beside the whole model).

    A base's activations depend on its architecture, which is not known here: they are left out, not guessed.
    Before the base is brought in nothing is known of it, and nothing is estimated.
    """
    frozen = whole if spec.base.method == "lora" else 0
    logits = max((logits_bytes(stage, vocab) for stage in spec.stages), default=0)
    return FP32_BYTES * (frozen + 8 * trained) + logits + TRAIN_PROCESS_BYTES + BESIDE_BYTES


def kv_cache_bytes(layers: int, kv_width: int, context: int) -> int:
    """Keys and values in fp16 for `context` tokens; `kv_width` is key/value heads x width of a head."""
    return 2 * FP16_BYTES * layers * kv_width * context


def replica_bytes(model_file_bytes: int, context: int, shape: ModelShape | None = None) -> int:
    """What one replica needs. Where the shape is not known its cache is left out, not guessed: then this is
    the least that it can take."""
    cache = 0
    if shape is not None:
        kv_width = shape.width // shape.heads * shape.kv_heads
        cache = kv_cache_bytes(shape.layers, kv_width, context)
    return model_file_bytes + cache + REPLICA_PROCESS_BYTES


def exported_bytes(shape: ModelShape, vocab: int) -> int:
    """The weights of a trained model as they are exported, in fp32."""
    return parameters(shape, vocab) * FP32_BYTES
