"""Safety: whatever a spec is, its YAML and its JSON say the same; whatever a file is, only our errors come."""

from __future__ import annotations

import json
from decimal import Decimal
from typing import Any

from hypothesis import given, settings
from hypothesis import strategies as st

from caudal import spec
from caudal.domain.errors import CaudalError
from caudal.domain.fleet import (
    BudgetSpec,
    Contract,
    DriverSpec,
    FleetSpec,
    GatewaySpec,
    HostSpec,
    ProviderSpec,
    RampStep,
    Resources,
    SiteSpec,
)
from caudal.domain.workload import (
    BaseSpec,
    ExternalSpec,
    InnerSpec,
    ModelShape,
    OuterSpec,
    ServedModel,
    ServiceSpec,
    StageSpec,
    TokenizerSpec,
    TrainSpec,
)

NAMES = st.from_regex(r"[a-z0-9][a-z0-9._-]{0,20}", fullmatch=True)
FRACTIONS = st.floats(0, 0.9)
RATES = st.floats(1e-9, 1.0)
RESOURCES = st.builds(Resources, st.floats(0.01, 64), st.integers(1 << 20, 1 << 40), st.integers(0, 8))

MONEY = st.decimals("0", "9999999999", places=None, allow_nan=False).map(lambda d: round(d, 10))


@st.composite
def signed(draw: st.DrawFn) -> FleetSpec:
    """A fleet of two clouds with contracts that follow each other, and budgets."""
    sites = draw(st.lists(NAMES, min_size=2, max_size=4, unique=True))
    contracts = []
    for year in range(2027, 2027 + draw(st.integers(0, 3))):
        kind = draw(st.sampled_from(["reserved", "block", "own", "savings", "spend"]))
        machines = kind in ("reserved", "block", "own")
        steps = (RampStep(f"{year}-02-01", 1), RampStep(f"{year}-03-01", draw(st.integers(0, 9))))
        ramp = steps if machines and draw(st.booleans()) else ()
        contracts.append(
            Contract(
                name=f"c{year}",
                kind=kind,
                provider="one",
                start=f"{year}-01-01",
                end=f"{year + 1}-01-01",
                sites=tuple(draw(st.lists(st.sampled_from(sites), max_size=2, unique=True))),
                machine_type=draw(NAMES) if machines else "",
                count=draw(st.integers(1, 99)) if machines and not ramp else 0,
                ramp=ramp,
                price_usd_per_hour=Decimal(0) if kind == "spend" else draw(MONEY) + 1,
                commitment_usd=draw(MONEY) + 1 if kind == "spend" else Decimal(0),
                prepayment_usd=draw(MONEY),
                discount=draw(st.floats(0.01, 1)) if kind == "savings" else 0.0,
                reference=draw(st.sampled_from(["", f"cr-{year}"])),
            )
        )
    teams = draw(st.lists(NAMES, max_size=3, unique=True).filter(lambda t: "default" not in t))
    host = HostSpec("box", sites[0], "box.lan", draw(RESOURCES), price_usd_per_hour=draw(MONEY))
    return FleetSpec(
        name=draw(NAMES),
        sites=tuple(SiteSpec(x, provider="one", driver=draw(st.sampled_from(["local", "d"]))) for x in sites),
        providers=(
            ProviderSpec("one", "hosts", hosts=(host,)),
            ProviderSpec("two", "azure", endpoint="fake"),
        ),
        drivers=(DriverSpec("d", "slurm", "head.lan"),),
        contracts=tuple(contracts),
        budgets=tuple(BudgetSpec(t, draw(MONEY), draw(st.booleans())) for t in teams),
    )


FLEETS = st.builds(
    FleetSpec,
    name=NAMES,
    sites=st.lists(NAMES, min_size=1, max_size=4, unique=True).map(lambda n: tuple(SiteSpec(x) for x in n)),
    gateway=st.builds(GatewaySpec, port=st.integers(1, 8599), keys=st.sampled_from(["optional", "required"])),
)


@st.composite
def stages(draw: st.DrawFn) -> StageSpec:
    """A stage that fits a context of 256."""
    sample_tokens, batch = draw(st.integers(2, 256)), draw(st.integers(1, 64))
    return StageSpec(
        name=draw(NAMES),
        tokens=draw(st.integers(sample_tokens * batch, 10**15)),
        kind=draw(st.sampled_from(["text", "chat"])),
        sample_tokens=sample_tokens,
        batch=batch,
        learning_rate=draw(RATES),
        final_learning_rate=0.0,
        warmup_fraction=draw(FRACTIONS),
    )


BASES = st.just(BaseSpec()) | st.builds(
    BaseSpec,
    path=st.sampled_from(["/models/mine", "s3://bucket/models/mine", "hf:org/name", "pypi:a==1", "/m.gguf"]),
    method=st.just("lora"),
    rank=st.integers(1, 4096),
    alpha=st.floats(0.1, 65536),
    targets=st.lists(st.sampled_from(["q_proj", "k_proj", "c_attn"]), unique=True).map(tuple),
)


@st.composite
def runs(draw: st.DrawFn) -> TrainSpec:
    """Any run that may be."""
    kv_heads, groups, head_width = (draw(st.integers(1, 4)) for _ in range(3))
    at = draw(st.lists(NAMES, max_size=3, unique=True))
    base = draw(BASES)
    shape = ModelShape(
        layers=draw(st.integers(1, 9)),
        heads=kv_heads * groups,
        kv_heads=kv_heads,
        width=kv_heads * groups * head_width * 2,
        tie_embeddings=draw(st.booleans()),
    )
    words = draw(st.builds(TokenizerSpec, st.sampled_from(["bpe", "characters"]), st.integers(272, 9999)))
    return TrainSpec(
        name=draw(NAMES),
        data=draw(
            st.just("builtin:tinyworld") | st.text("abc é/._:#'\"-", min_size=1).map(lambda t: "/" + t)
        ),
        stages=tuple(draw(st.lists(stages(), min_size=1, max_size=3, unique_by=lambda s: s.name))),
        tokenizer=TokenizerSpec() if base.path else words,
        model=ModelShape() if base.path else shape,
        base=base,
        outer=draw(
            st.builds(
                OuterSpec,
                st.sampled_from(["short", "long"]),
                RATES,
                FRACTIONS,
                st.booleans(),
                FRACTIONS,
                st.sampled_from(["gradients", "parameters"]),
                st.integers(1, 100),
            )
        ),
        inner=draw(
            st.builds(InnerSpec, st.integers(1, 9), st.sampled_from(["ddp", "fsdp2"]), st.integers(1, 9))
        ),
        sites=len(at) or draw(st.integers(1, 9)),
        at=tuple(at),
        resources=draw(RESOURCES),
        validation_fraction=draw(FRACTIONS),
        publish=draw(st.just("") | NAMES),
        team=draw(st.just("") | NAMES),
        seed=draw(st.integers(0, 2**63 - 1)),
    )


PRICES = st.floats(1e-6, 1000)
EXTERNALS = st.builds(
    ExternalSpec,
    url=st.sampled_from(["https://api.example.com/v1", "https://h:8443", "https://[::1]/a/b"]),
    model=st.text("abc/-:", max_size=9),
    key_file=st.sampled_from(["", "/secrets/key"]),
    usd_per_million_in=PRICES,
    usd_per_million_out=st.just(0.0) | PRICES,
    budget_usd_per_month=PRICES,
    overflow=st.booleans(),
    max_requests=st.integers(1, 99),
    limit_key=st.sampled_from(["max_tokens", "max_completion_tokens"]),
)

SERVICES = st.builds(
    ServiceSpec,
    name=NAMES,
    models=st.lists(
        st.builds(ServedModel, id=NAMES, run=NAMES, resources=RESOURCES)
        | st.builds(ServedModel, id=NAMES, source=st.just("pypi:a==1"), sha256=st.just("0" * 64))
        | st.builds(ServedModel, id=NAMES, source=st.just("") | st.just("hf:a/b"), external=EXTERNALS)
        | st.builds(
            ServedModel,
            id=NAMES,
            run=NAMES,
            engine=st.sampled_from(["vllm", "sglang"]),
            engine_args=st.lists(st.sampled_from(["--dtype", "half", "-x=1", "é: #"])).map(tuple),
            resources=st.just(Resources(4, 16 << 30, 1)),
        ),
        min_size=1,
        max_size=3,
        unique_by=lambda m: m.id,
    ).map(tuple),
)


@settings(max_examples=150, deadline=None)
@given(FLEETS | signed() | runs() | SERVICES)
def test_yaml_and_json_say_the_same(value: spec.Spec) -> None:
    assert spec.parse(spec.dump(value), "dumped.yaml") == [value]
    assert spec.from_dict(json.loads(json.dumps(spec.to_dict(value)))) == value


JUNK = st.recursive(
    st.none() | st.booleans() | st.integers() | st.floats() | st.text(max_size=5),
    lambda inner: (
        st.lists(inner, max_size=4)
        | st.dictionaries(
            st.sampled_from(
                [
                    "name",
                    "sites",
                    "stages",
                    "models",
                    "model",
                    "data",
                    "tokens",
                    "at",
                    "provider",
                    "contracts",
                ]
            ),
            inner,
            max_size=5,
        )
    ),
    max_leaves=15,
)


@settings(max_examples=300, deadline=None)
@given(st.sampled_from(["fleet", "train", "service"]), JUNK)
def test_any_data_is_a_spec_or_our_error(kind: str, junk: Any) -> None:
    try:
        spec.from_dict({**junk, "type": kind} if isinstance(junk, dict) else {"type": kind, "name": junk})
    except CaudalError as error:
        assert error.what


@settings(max_examples=300, deadline=None)
@given(st.text("abc:-[]{}&*!|>#%@\"'\n \t,?0159.\x00é", max_size=60))
def test_any_text_is_specs_or_our_error(text: str) -> None:
    try:
        spec.parse(text, "f.yaml")
    except CaudalError as error:
        assert error.where.startswith("f.yaml")
