"""The rules that look at several fields of a spec, and at what a file of the user's may name.

Values of single fields are limits.py's; data.py looks at the data that is named. Pure.
"""

from __future__ import annotations

import ipaddress
import re
from pathlib import Path

from caudal.domain.fleet import FleetSpec, GatewaySpec
from caudal.domain.workload import (
    BaseSpec,
    ModelShape,
    ScaleSpec,
    ServedModel,
    ServiceSpec,
    StageSpec,
    TokenizerSpec,
    TrainSpec,
)
from caudal.spec.clouds import check_clouds, distinct, is_loopback
from caudal.spec.contracts import check_budgets, check_contracts
from caudal.spec.data import check_data_name
from caudal.spec.limits import NAME_PATTERN, NAME_WORDS
from caudal.spec.located import Located, Problems
from caudal.spec.served import check_engine, check_external
from caudal.telemetry.traces import collector

SOURCE_SCHEMES = ("pypi:", "hf:", "s3://", "az://", "gs://", "file://")

FEWEST_CHARACTERS = 4
"""Of a token, about, in text that people write: a longer opening than that fills the context by itself."""

_NAME = re.compile(NAME_PATTERN)
_SHA256 = re.compile(r"[0-9a-f]{64}")
_PYPI = re.compile(r"pypi:[A-Za-z0-9][A-Za-z0-9._-]*==[A-Za-z0-9][A-Za-z0-9.!+_-]*")


def check_fleet(spec: FleetSpec, tree: Located, problems: Problems) -> None:
    """Sites, and where the two doors listen."""
    if not spec.sites:
        problems.add(tree.at(["sites"]), "sites: at least one is needed")
    distinct("site", [s.name for s in spec.sites], tree, "sites", problems)
    check_clouds(spec, tree, problems)
    check_contracts(spec, tree, problems)
    check_budgets(spec, tree, problems)
    for number, budget in enumerate(spec.budgets):
        _check_name(budget.team, tree, ["budgets", number, "team"], problems)
    _check_traces(spec.gateway.traces, tree, problems)
    _check_certificate(spec.gateway, tree, problems)
    _check_door(
        "gateway", spec.gateway.host, spec.gateway.tls, bool(spec.gateway.certificate), tree, problems
    )
    _check_door("api", spec.api.host, spec.api.tls, False, tree, problems)
    if spec.gateway.port == spec.api.port:
        problems.add(tree.at(["gateway", "port"]), f"port: the gateway and the api both have {spec.api.port}")
    elif spec.gateway.each_site and spec.api.port in (ports := spec.gateway_ports()):
        text = f"port: {ports[0]} to {ports[-1]} are the gateways', and the api has {spec.api.port} too"
        problems.add(tree.at(["gateway", "port"]), text)
    elif spec.gateway_ports()[-1:] > (65_535,):
        problems.add(tree.at(["gateway", "port"]), f"port: {len(spec.sites)} gateways need as many ports")


def _check_door(door: str, host: str, tls: bool, certified: bool, tree: Located, problems: Problems) -> None:
    """Beyond loopback there is TLS, with a certificate that names what clients call."""
    bring = "bring a `certificate` and its `certificate_key`"
    if not tls and not is_loopback(host):
        text = f"host: {host!r} is not this machine's own address (127.0.0.1, ::1 or localhost); to be reached from "
        text += "elsewhere, set `tls: true` and an IP address"
        problems.add(tree.at([door, "host"]), text + (f", or {bring}" if door == "gateway" else ""))
    elif tls and not certified and not _is_address(host):
        text = f"host: {host!r} is not one IP address, for which the fleet's authority could sign"
        problems.add(tree.at([door, "host"]), text + (f"; or {bring}" if door == "gateway" else ""))


def _check_certificate(gateway: GatewaySpec, tree: Located, problems: Problems) -> None:
    for name, path in (("certificate", gateway.certificate), ("certificate_key", gateway.certificate_key)):
        if path and not gateway.tls:
            problems.add(tree.at(["gateway", name]), f"{name}: it is for `tls: true`, which is not set")
        elif path and not Path(path).expanduser().is_absolute():
            problems.add(tree.at(["gateway", name]), f"{name}: {path!r} is not an absolute path")
        elif not path and (gateway.certificate or gateway.certificate_key):
            problems.add(tree.at(["gateway"]), f"{name}: a certificate and its key go together")


def _check_traces(url: str, tree: Located, problems: Problems) -> None:
    if url:
        try:
            collector(url)
        except ValueError as error:
            problems.add(tree.at(["gateway", "traces"]), f"traces: {error}; as in http://127.0.0.1:4318")


def check_train(spec: TrainSpec, tree: Located, problems: Problems) -> None:
    """Stages, the model's shape, sites."""
    if not spec.stages:
        problems.add(tree.at(["stages"]), "stages: at least one is needed")
    distinct("stage", [s.name for s in spec.stages], tree, "stages", problems)
    _check_shape(spec.model, tree, problems)
    _check_base(spec, tree, problems)
    for number, stage in enumerate(spec.stages):
        shape = (
            None if spec.base.path else spec.model
        )  # how much a base can see is known when it is brought in
        _check_stage(stage, shape, tree, ["stages", number], problems)
    distinct("site", list(spec.at), tree, "at", problems)
    if spec.at and len(spec.at) != spec.sites:
        problems.add(tree.at(["at"]), f"at: names {len(spec.at)} sites, and `sites` is {spec.sites}")
    check_data_name(spec.data, tree.at(["data"]), problems)
    _check_name(spec.publish, tree, ["publish"], problems)
    _check_name(spec.team, tree, ["team"], problems)


def check_base(spec: TrainSpec, tree: Located, problems: Problems) -> None:
    """Whether something lies where the base is said to be, on this machine."""
    path = spec.base.path
    if is_local_source(path) and not Path(path).exists():
        problems.add(tree.at(["base", "path"]), f"path: there is no base at {path}", data=True)


def check_service(spec: ServiceSpec, tree: Located, problems: Problems) -> None:
    """Models: each from one place."""
    if not spec.models:
        problems.add(tree.at(["models"]), "models: at least one is needed")
    distinct("model", [m.id for m in spec.models], tree, "models", problems)
    _check_name(spec.team, tree, ["team"], problems)
    for number, model in enumerate(spec.models):
        _check_served(model, tree, ["models", number], problems)


def is_local_source(source: str) -> bool:
    """Whether a model's source is a path of this machine."""
    return bool(source) and not source.startswith(SOURCE_SCHEMES) and "://" not in source


def _check_base(spec: TrainSpec, tree: Located, problems: Problems) -> None:
    """A base has its own shape and tokenizer; without one there is nothing to adapt."""
    base = spec.base
    if not base.path:
        if base != BaseSpec():
            problems.add(
                tree.at(["base"]),
                f"base: a path is needed: there is no model for `{base.method}` to begin from",
            )
        return
    _check_source(base.path, tree.at(["base", "path"]), problems, "path")
    for key, value, default in (
        ("model", spec.model, ModelShape()),
        ("tokenizer", spec.tokenizer, TokenizerSpec()),
    ):
        if value != default:
            problems.add(tree.at([key]), f"{key}: the base at {base.path} decides that; leave it out")
    if base.method == "full" and base.targets:
        problems.add(tree.at(["base", "targets"]), "targets: `full` trains everything; they are for `lora`")


def _check_shape(shape: ModelShape, tree: Located, problems: Problems) -> None:
    if shape.width % shape.heads:
        where = tree.at(["model", "width"])
        problems.add(where, f"width: {shape.width} cannot be shared out evenly to {shape.heads} heads")
    elif (shape.width // shape.heads) % 2:
        where = tree.at(["model", "heads"])
        problems.add(
            where, f"heads: each has width {shape.width // shape.heads}; rotary positions need it even"
        )
    if shape.heads % shape.kv_heads:
        where = tree.at(["model", "kv_heads"])
        problems.add(where, f"kv_heads: {shape.kv_heads} does not divide the {shape.heads} heads")


def _check_stage(
    stage: StageSpec, shape: ModelShape | None, tree: Located, path: list[str | int], problems: Problems
) -> None:
    if shape is not None and stage.sample_tokens > shape.context:
        problems.add(
            tree.at([*path, "sample_tokens"]),
            f"sample_tokens: {stage.sample_tokens} is more than the model's context of {shape.context}",
        )
    if stage.tokens < stage.batch * stage.sample_tokens:
        problems.add(
            tree.at([*path, "tokens"]),
            f"tokens: {stage.tokens} do not fill one batch ({stage.batch} x {stage.sample_tokens})",
        )
    if stage.final_learning_rate > stage.learning_rate:
        problems.add(
            tree.at([*path, "final_learning_rate"]),
            f"final_learning_rate: {stage.final_learning_rate} is above learning_rate "
            f"({stage.learning_rate}); it falls towards the end",
        )


def _check_served(model: ServedModel, tree: Located, path: list[str | int], problems: Problems) -> None:
    where = tree.at(path)
    if bool(model.source) == bool(model.run) and (model.own or not model.external.url):
        found = "both" if model.source else "neither"
        problems.add(where, f"model {model.id}: exactly one of `source` and `run` is needed, found {found}")
    if model.sha256 and not _SHA256.fullmatch(model.sha256):
        problems.add(tree.at([*path, "sha256"]), "sha256: expected 64 characters of 0-9 and a-f")
    if model.sha256 and not model.source:
        problems.add(tree.at([*path, "sha256"]), "sha256: there is no `source` that it could be of")
    check_engine(model, tree, path, problems)
    check_external(model, tree, path, problems)
    _check_source(model.source, tree.at([*path, "source"]), problems)
    _check_name(model.run, tree, [*path, "run"], problems)
    if model.rollout.canary < 1 and not model.rollout.hold_s:
        where_rollout = tree.at([*path, "rollout"])
        problems.add(where_rollout, "rollout: a canary needs `hold_s`, for how long it is watched")
    _check_scale(model, tree.at([*path, "scale"]), problems)
    if len(model.opening) > FEWEST_CHARACTERS * model.context:
        problems.add(
            tree.at([*path, "opening"]),
            f"opening: {len(model.opening)} characters leave no room in a context of {model.context} tokens",
        )
    if model.context < model.slots:
        problems.add(
            tree.at([*path, "slots"]),
            f"slots: {model.slots} requests at once cannot share a context of {model.context} tokens",
        )


def _check_scale(model: ServedModel, where: str, problems: Problems) -> None:
    scale = model.scale
    if scale == ScaleSpec():
        return
    if not scale.on:
        problems.add(where, "scale: `max` is needed: how many replicas there may be")
    elif max(scale.min, scale.prewarmed) > scale.max:
        problems.add(where, f"scale: `min` and `prewarmed` are at most `max`, which is {scale.max}")
    if model.replicas != 1:
        problems.add(where, "scale: `replicas` is a fixed number; leave it out where `scale` decides")


def _check_source(source: str, where: str, problems: Problems, key: str = "source") -> None:
    if source.startswith("pypi:") and not _PYPI.fullmatch(source):
        problems.add(where, f"{key}: {source!r} is not of the form pypi:NAME==VERSION")
    elif source.startswith("hf:") and not re.fullmatch(r"hf:[\w.-]+/[\w.-]+(@[\w./-]+)?(:[\w./-]+)?", source):
        problems.add(where, f"{key}: {source!r} is not of the form hf:ORG/NAME, hf:ORG/NAME:FILE.gguf")
    elif "://" in source and not source.startswith(SOURCE_SCHEMES):
        problems.add(where, f"{key}: {source!r} is none of {', '.join(SOURCE_SCHEMES)} or a path")


def _check_name(name: str, tree: Located, path: list[str | int], problems: Problems) -> None:
    if name and not _NAME.fullmatch(name):
        problems.add(tree.at(path), f"{path[-1]}: {name[:80]!r} is not {NAME_WORDS}")


def _is_address(host: str) -> bool:
    try:
        return not ipaddress.ip_address(host).is_unspecified
    except ValueError:
        return False
