"""What users write, and what they are told when it is wrong."""

from __future__ import annotations

import dataclasses
import gzip
import time
from pathlib import Path

import pytest

from caudal import spec
from caudal.domain.errors import DataError, NotFound, SpecError
from caudal.domain.fleet import FleetSpec, GatewaySpec, Resources, SiteSpec
from caudal.domain.workload import BaseSpec, RolloutSpec, ServedModel, ServiceSpec, StageSpec, TrainSpec

TRAIN = """\
type: train
name: tiny
data: builtin:tinyworld
stages:
  - name: pretrain
    tokens: 1.2M
"""


def said(text: str) -> str:
    """The error that the text gives."""
    with pytest.raises(SpecError) as caught:
        spec.parse(text, "f.yaml")
    return str(caught.value)


def test_a_fleet_is_read_with_its_defaults() -> None:
    (fleet,) = spec.parse("type: fleet\nname: laptop\nsites: [{name: north}, {name: south}]\n", "f.yaml")
    assert fleet == FleetSpec("laptop", (SiteSpec("north"), SiteSpec("south")))


def test_a_file_may_hold_several_documents() -> None:
    both = TRAIN + "---\ntype: service\nname: talk\nmodels: [{id: tiny, run: tiny}]\n---\n"
    train, service = spec.parse(both, "f.yaml")
    assert isinstance(train, TrainSpec)
    assert train.stages == (StageSpec("pretrain", 1_200_000),)
    assert service == ServiceSpec("talk", (ServedModel("tiny", run="tiny"),))


def test_units_are_humane() -> None:
    text = TRAIN + "seed: 1_000\nresources: {cpus: 1, memory_bytes: 1.5GiB}\n"
    (train,) = spec.parse(text + "outer: {learning_rate: 8e-1}\n", "f.yaml")
    assert isinstance(train, TrainSpec)
    assert train.resources == Resources(cpus=1.0, memory_bytes=1_610_612_736)
    assert (train.seed, train.outer.learning_rate) == (1000, 0.8)


def test_a_preset_stands_for_what_is_not_said() -> None:
    (long,) = spec.parse(TRAIN + "outer: {preset: long, inner_steps: 30}\n", "f.yaml")
    assert isinstance(long, TrainSpec)
    assert (long.outer.momentum, long.outer.inner_steps, long.outer.bits) == (0.9, 30, 4)
    (short,) = spec.parse(TRAIN + "outer: {preset: short}\n", "f.yaml")
    assert short == spec.parse(TRAIN, "f.yaml")[0]
    assert "did you mean 'long'?" in said(TRAIN + "outer: {preset: lang}\n")


def test_anchors_and_merge_keys_work() -> None:
    text = "type: fleet\nname: x\nsites:\n  - &a {name: a, region: here}\n  - {<<: *a, name: b}\n"
    (fleet,) = spec.parse(text, "f.yaml")
    assert isinstance(fleet, FleetSpec)
    assert [(s.name, s.region) for s in fleet.sites] == [("a", "here"), ("b", "here")]


@pytest.mark.parametrize(
    ("line", "expected"),
    [
        ("naem: x", "f.yaml:7: train: unknown key 'naem'; did you mean 'name'?"),
        ("sites: two", "f.yaml:7: sites: expected a whole number, found the text 'two'"),
        ("sites: 1.5", "f.yaml:7: sites: expected a whole number, found the number 1.5"),
        ("sites: yes", "f.yaml:7: sites: expected a whole number, found yes/no"),
        ("sites: 1:30", "f.yaml:7: sites: expected a whole number, found the text '1:30'"),
        ("sites: 0", "f.yaml:7: sites: expected a number from 1 to 1,024, found 0"),
        ("publish: 3", "f.yaml:7: publish: expected text, found the number 3; put quotes around it"),
        ("publish: Big Model", "f.yaml:7: publish: 'Big Model' is not a name"),
        ("publish:", "f.yaml:7: publish: expected text, found nothing"),
        ("validation_fraction: 1.5", "f.yaml:7: validation_fraction: expected a number from 0 to 0.9"),
        (
            "validation_fraction: .nan",
            "f.yaml:7: validation_fraction: expected a number, found the number nan",
        ),
        ("model: 7", "f.yaml:7: model: expected a table of keys, found the number 7"),
        ("model: {width: 130}", "f.yaml:7: width: 130 cannot be shared out evenly to 4 heads"),
        ("model: {width: 12}", "f.yaml:7: heads: each has width 3"),
        ("model: {kv_heads: 3}", "f.yaml:7: kv_heads: 3 does not divide the 4 heads"),
        ("model: {context: 64}", "f.yaml:4: sample_tokens: 128 is more than the model's context of 64"),
        ("at: [north]", "f.yaml:7: at: names 1 sites, and `sites` is 2"),
        ("at: [north, north]", "f.yaml:7: at: 2 times the same site 'north'"),
        ("at: north", "f.yaml:7: at: expected a list, found the text 'north'"),
        ("tokenizer: {kind: byte}", "f.yaml:7: kind: expected bpe or characters, found the text 'byte'"),
        ("tokenizer: {kind: charcters}", "did you mean 'characters'?"),
        ("name: again", "f.yaml:7: the key 'name' is there twice"),
        ("resources: {memory_bytes: 1 giga}", "memory_bytes: expected a size in bytes such as 512MiB"),
        ("? [a]\n: b", "f.yaml:7: a key has to be plain text"),
        ("seed: !!python/object/apply:os.system [id]", "f.yaml:7: seed: expected a whole number"),
        ("publish: !secret x", "f.yaml:7: the tag '!secret' is not allowed"),
    ],
)
def test_every_error_has_its_line_and_says_what_was_expected(line: str, expected: str) -> None:
    if line.startswith("model: {context"):
        expected = expected.replace("f.yaml:4", "f.yaml:5")  # the stage, since the key itself is not there
    assert expected in said(TRAIN + line + "\n")


@pytest.mark.parametrize(
    ("text", "expected"),
    [
        ("", "f.yaml:1: nothing in it"),
        ("- a\n", "f.yaml:1: expected a table of keys, found a list"),
        ("name: x\n", "f.yaml:1: the key 'type' is missing: fleet or train or service"),
        ("type: flet\n", "did you mean 'fleet'?"),
        ("a: [\n", "f.yaml:2: not valid YAML"),
        ("a: b\n c: d\n", "f.yaml:2: not valid YAML"),
        ("a: \x07\n", "f.yaml:1: not valid YAML"),
        ("type: fleet\nname: x\nsites: []\n", "f.yaml:3: sites: at least one is needed"),
        ("type: fleet\nname: x\n", "f.yaml:1: fleet: the key 'sites' is missing"),
        ("type: train\nname: x\ndata: builtin:tinyworld\nstages: []\n", "f.yaml:4: stages: at least one"),
        ("type: service\nname: x\nmodels: []\n", "f.yaml:3: models: at least one is needed"),
    ],
)
def test_documents_that_are_no_spec(text: str, expected: str) -> None:
    assert expected in said(text)


@pytest.mark.parametrize(
    ("rest", "expected"),
    [
        ("  - {name: a}\n  - {name: a}\n", "f.yaml:5: sites: 2 times the same site 'a'"),
        (
            "  - {name: a}\ngateway: {port: 0}\n",
            "f.yaml:5: port: expected a number from 1 to 65,535, found 0",
        ),
        ("  - {name: a}\ngateway: {port: 70000}\n", "found 70000"),
        (
            "  - {name: a}\ngateway: {keys: require}\n",
            "keys: expected optional or required, found the text 'require'; did you mean 'required'?",
        ),
        ("  - {name: a}\ngateway: {port: 8600}\n", "f.yaml:5: port: the gateway and the api both have 8600"),
        ("  - {name: a}\napi: {host: 0.0.0.0}\n", "f.yaml:5: host: '0.0.0.0' is not this machine's own"),
        ("  - {name: A}\n", "f.yaml:4: name: 'A' is not a name"),
        ("  - {name: a/../b}\n", "f.yaml:4: name: 'a/../b' is not a name"),
        ('  - {name: "a\\n"}\n', "f.yaml:4: name: 'a\\n' is not a name"),
        ("  - north\n", "f.yaml:4: site 1: expected a table of keys, found the text 'north'"),
    ],
)
def test_fleets_that_cannot_be(rest: str, expected: str) -> None:
    assert expected in said("type: fleet\nname: x\nsites:\n" + rest)


@pytest.mark.parametrize(
    ("model", "expected"),
    [
        ("{id: a}", "exactly one of `source` and `run` is needed, found neither"),
        ("{id: a, run: a, source: hf:a/b}", "found both"),
        ("{id: a, source: pypi:a}", "is not of the form pypi:NAME==VERSION"),
        ("{id: a, source: 'pypi:--index-url==1'}", "is not of the form pypi:NAME==VERSION"),
        ("{id: a, source: hf:a}", "is not of the form hf:ORG/NAME"),
        ("{id: a, source: http://x/y}", "is none of pypi:, hf:"),
        ("{id: a, run: a, sha256: abc}", "sha256: expected 64 characters"),
        ("{id: a, run: a, slots: 20, context: 16}", "cannot share a context of 16 tokens"),
        ("{id: a, run: A}", "run: 'A' is not a name"),
        ("{id: ../a, run: a}", "id: '../a' is not a name"),
    ],
)
def test_services_that_cannot_be(model: str, expected: str) -> None:
    text = said(f"type: service\nname: x\nmodels:\n  - {model}\n")
    assert expected in text
    assert text.startswith("f.yaml:4: ")


def test_several_errors_are_said_at_once_in_the_order_of_the_file() -> None:
    text = said("type: train\nname: Big\nstages:\n  - {name: a, tokens: x}\n  - {nam: b}\n")
    lines = text.splitlines()
    assert [line.split(": ")[0] for line in lines[:5]] == [f"f.yaml:{n}" for n in (1, 2, 4, 5, 5)]
    assert "caudal schema" in lines[-1]


def test_where_is_the_first_files_line() -> None:
    with pytest.raises(SpecError) as caught:
        spec.parse("type: fleet\nname: X\nsites: 1\n", "some/f.yaml")
    assert caught.value.where == "some/f.yaml:2"


@pytest.mark.parametrize(
    "text",
    [
        "[" * 100_000,
        "a: " + "x" * 300_000,
        "\n".join(f"k{i}: 1" for i in range(20_000)),
        "a: &a [*a]\ntype: fleet\n",
        "\n".join(
            ["a0: &a0 [x,x,x,x,x,x,x,x,x,x]"]
            + [f"a{i}: &a{i} [{','.join([f'*a{i - 1}'] * 10)}]" for i in range(1, 9)]
        ),
        "type: fleet\n" + "".join(f"key{i}: 1\n" for i in range(5_000)),
        "type: fleet\nname: x\nsites: " + "9" * 5_000,
    ],
    ids=["deep", "long", "wide", "self", "bomb", "unknown", "digits"],
)
def test_hostile_files_are_refused_quickly(text: str) -> None:
    started = time.process_time()
    message = said(text)
    assert time.process_time() - started < 5
    assert len(message) < 20_000


def test_a_folder_is_loaded_in_order_and_paths_are_the_files(tmp_path: Path) -> None:
    inner = tmp_path / "specs"
    inner.mkdir()
    (inner / "text.txt").write_text("To be, or not to be")
    (inner / "b.yaml").write_text(TRAIN.replace("builtin:tinyworld", "text.txt"))
    (inner / "a.yaml").write_text("type: service\nname: s\nmodels: [{id: m, source: ./m.gguf}]\n")
    (inner / "notes.md").write_text("not a spec")
    service, train = spec.load(inner)
    assert isinstance(train, TrainSpec)
    assert isinstance(service, ServiceSpec)
    assert train.data == str(inner / "text.txt")
    assert service.models[0].source == str(inner / "m.gguf")


def test_names_are_shared_by_all_files_of_a_folder(tmp_path: Path) -> None:
    (tmp_path / "a.yaml").write_text(TRAIN)
    (tmp_path / "b.yaml").write_text("type: service\nname: tiny\nmodels: [{id: m, run: tiny}]\n")
    with pytest.raises(
        SpecError, match=r"b\.yaml:2: name: a second workload 'tiny'; the first is at .*a\.yaml:1"
    ):
        spec.load(tmp_path)


def test_all_files_of_a_folder_are_checked_at_once(tmp_path: Path) -> None:
    (tmp_path / "a.yaml").write_text("type: fleet\nname: A\nsites: [{name: a}]\n")
    (tmp_path / "b.yaml").write_text("type: fleet\nname: B\nsites: [{name: b}]\n")
    with pytest.raises(SpecError, match=r"(?s)a\.yaml:2.*b\.yaml:2"):
        spec.load(tmp_path)


@pytest.mark.parametrize(
    ("content", "expected"),
    [
        (None, "cannot read .*No such file"),
        (b"", "is empty"),
        (b" \n\n", "is empty"),
        (b"abc\0def", "is not text in UTF-8"),
        ("año".encode("latin-1") * 10, "is not text in UTF-8"),
    ],
)
def test_training_data_is_looked_at(tmp_path: Path, content: bytes | None, expected: str) -> None:
    (tmp_path / "a.yaml").write_text(TRAIN.replace("builtin:tinyworld", "text.txt"))
    if content is not None:
        (tmp_path / "text.txt").write_bytes(content)
    with pytest.raises(DataError, match=rf"(?s)a\.yaml:3: data: .*{expected}"):
        spec.load(tmp_path / "a.yaml")


def test_text_that_is_cut_within_a_character_is_text(tmp_path: Path) -> None:
    (tmp_path / "a.yaml").write_text(TRAIN.replace("builtin:tinyworld", "text.txt"))
    (tmp_path / "text.txt").write_text("a" + "ñ" * 40_000)
    assert len(spec.load(tmp_path / "a.yaml")) == 1


def found_in(folder: Path, data: str) -> spec.Spec:
    """What a file in the folder says whose `data` is this."""
    (folder / "specs").mkdir(exist_ok=True)
    (folder / "specs" / "a.yaml").write_text(TRAIN.replace("builtin:tinyworld", f'"{data}"'))
    (one,) = spec.load(folder / "specs" / "a.yaml")
    return one


@pytest.mark.parametrize(
    "data",
    ["../text.txt", "../rows.jsonl", "../rows.jsonl.gz", "../table.parquet", "../some", "../some/*.md",
     "s3://bucket/rows", "az://container/a.parquet", "gs://bucket/*.jsonl"],
)  # fmt: skip
def test_all_that_data_may_name(tmp_path: Path, data: str) -> None:
    (tmp_path / "text.txt").write_text("words")
    (tmp_path / "rows.jsonl").write_text('\n{"text": "a\u2028b"}\n' + '{"text": "b"}\n' * 9_000)
    (tmp_path / "rows.jsonl.gz").write_bytes(gzip.compress(b"{}"))
    (tmp_path / "table.parquet").write_bytes(b"PAR1...")
    (tmp_path / "some").mkdir()
    (tmp_path / "some" / "a.md").write_text("words")
    train = found_in(tmp_path, data)
    assert isinstance(train, TrainSpec)
    assert train.data == (data if "://" in data else str(tmp_path / data.removeprefix("../")))
    assert isinstance(found_in(tmp_path, (tmp_path / "text.txt").as_uri()), TrainSpec)


@pytest.mark.parametrize(
    ("data", "said"),
    [
        ("../void", "is an empty folder"),
        ("../*.arrow", "no file matches"),
        ("../text.tx", "cannot read .*No such file.*did you mean '.*/text.txt'"),
        ("../false.parquet", "is not Parquet, as its name says"),
        ("../false.jsonl.gz", "is not packed by gzip"),
        ("../list.json", "list.json:2 is not an object; each line"),
        ("../broken.jsonl", "broken.jsonl:1 is not JSON"),
        ("file:///no/such/file.txt", "cannot read /no/such/file.txt"),
        ("/dev/null", "neither a file nor a folder"),
    ],
)
def test_data_that_is_not_what_it_is_called(tmp_path: Path, data: str, said: str) -> None:
    (tmp_path / "void").mkdir()
    (tmp_path / "void" / ".hidden").write_text("a")
    for name in ("text.txt", "false.parquet", "false.jsonl.gz", "broken.jsonl"):
        (tmp_path / name).write_text("words")
    (tmp_path / "list.json").write_text("\n[1, 2]\n")
    with pytest.raises(DataError, match=rf"a\.yaml:3: data: (?s:.)*{said}"):
        found_in(tmp_path, data)


@pytest.mark.parametrize(
    ("data", "said"),
    [
        ("s4://bucket/a", "did you mean 's3://'"),
        ("https://host/a.txt", "known: s3://, az://, gs://, file://"),
    ],
)
def test_addresses_of_no_known_kind(data: str, said: str) -> None:
    assert said in said_of(data)


def said_of(data: str) -> str:
    """What is said of a spec with this data."""
    return said(TRAIN.replace("builtin:tinyworld", data))


def test_a_base_is_taken_from_the_files_own_folder_and_decides_its_shape(tmp_path: Path) -> None:
    (tmp_path / "text.txt").write_text("some text\n")
    (tmp_path / "mine").mkdir()
    text = TRAIN.replace("builtin:tinyworld", "text.txt")
    (train,) = spec.parse(text + "base: {path: mine, method: lora}\n", "f.yaml", tmp_path)
    assert isinstance(train, TrainSpec) and train.base == BaseSpec(str(tmp_path / "mine"), "lora")
    (far,) = spec.parse(text + "base: {path: 's3://b/mine'}\n", "f.yaml", tmp_path)
    assert isinstance(far, TrainSpec) and far.base.path == "s3://b/mine"
    long = TRAIN + "    sample_tokens: 2048\n"
    assert spec.parse(long + "base: {path: /mine}\n", "f.yaml")  # its own context counts, not `model`'s
    with pytest.raises(DataError, match="there is no base at"):
        spec.parse(text + "base: {path: yours}\n", "f.yaml", tmp_path)


@pytest.mark.parametrize(
    ("rest", "expected"),
    [
        ("base: {method: lora}", "a path is needed"),
        ("base: {rank: 8}", "a path is needed"),
        ("base: {path: /m, method: lore}", "did you mean 'lora'?"),
        ("base: {path: /m, targets: [q_proj]}", "they are for `lora`"),
        ("base: {path: /m, method: lora, rank: 0}", "from 1 to 4,096"),
        ("base: {path: 'ftp://x/m'}", "path: 'ftp://x/m' is none of"),
        ("base: {path: /m}\nmodel: {layers: 2}", "model: the base at /m decides that"),
        ("base: {path: /m}\ntokenizer: {kind: characters}", "tokenizer: the base at /m decides that"),
    ],
)
def test_bases_that_cannot_be(rest: str, expected: str) -> None:
    assert expected in said(f"{TRAIN}{rest}\n")


def test_data_that_is_not_built_in() -> None:
    assert "'builtin:tinyword' is not built in; builtin:tinyworld is" in said(
        TRAIN.replace("tinyworld", "tinyword")
    )


def test_missing_and_unreadable_files(tmp_path: Path) -> None:
    with pytest.raises(NotFound):
        spec.load(tmp_path / "none.yaml")
    with pytest.raises(NotFound):
        spec.load(tmp_path)
    (tmp_path / "latin.yaml").write_bytes("type: fleet\nname: ñ\n".encode("latin-1"))
    with pytest.raises(SpecError, match=r"latin\.yaml:2: not text in UTF-8"):
        spec.load(tmp_path)


def test_from_dict_reads_what_to_dict_wrote_and_names_the_place() -> None:
    (train,) = spec.parse(TRAIN, "f.yaml")
    data = spec.to_dict(train)
    assert data["type"] == "train"
    assert spec.from_dict(data) == train
    data["stages"][0]["batch"] = "many"
    with pytest.raises(SpecError, match=r"spec\.stages\[0\]\.batch: batch: expected a whole number"):
        spec.from_dict(data)


def test_a_spec_made_in_code_is_held_to_the_same_rules(tmp_path: Path) -> None:
    (train,) = spec.parse(TRAIN, "f.yaml")
    assert isinstance(train, TrainSpec)
    spec.check(train)
    with pytest.raises(SpecError, match="sites: expected a number from 1"):
        spec.check(dataclasses.replace(train, sites=0))
    with pytest.raises(DataError, match=r"caudal train\.data: data: cannot read"):
        spec.check(dataclasses.replace(train, data=str(tmp_path / "none.txt")), "caudal train")


@pytest.mark.parametrize("value", [object(), {1: 2}, b"x"])
def test_from_dict_refuses_what_json_cannot_hold(value: object) -> None:
    with pytest.raises(SpecError):
        spec.from_dict({"type": "fleet", "name": value, "sites": []})


def test_from_dict_refuses_endless_data() -> None:
    endless: dict[str, object] = {"type": "fleet"}
    endless["sites"] = endless
    with pytest.raises(SpecError, match="nested too deeply"):
        spec.from_dict(endless)


def test_the_gateway_takes_an_address_of_this_machine() -> None:
    text = "type: fleet\nname: x\nsites: [{name: a}]\ngateway: {host: '::1', port: 9}\n"
    (fleet,) = spec.parse(text, "f.yaml")
    assert isinstance(fleet, FleetSpec)
    assert fleet.gateway == GatewaySpec("::1", 9, "optional")


@pytest.mark.parametrize(
    ("gateway", "wrong"),
    [
        ("host: 10.0.0.5", "set `tls: true` and an IP address, or bring a `certificate`"),
        ("host: 0.0.0.0, tls: true", "'0.0.0.0' is not one IP address"),
        ("host: door.example.org, tls: true", "not one IP address"),
        ("certificate: /c.pem, certificate_key: /k.pem", "it is for `tls: true`"),
        ("tls: true, certificate: /c.pem", "certificate_key: a certificate and its key go together"),
        ("tls: true, certificate_key: /k.pem", "certificate: a certificate and its key go together"),
        ("tls: true, certificate: c.pem, certificate_key: /k.pem", "'c.pem' is not an absolute path"),
        ("host: 10.0.0.5, tls: true", ""),
        ("tls: true", ""),
        ("host: 0.0.0.0, tls: true, certificate: /c.pem, certificate_key: ~/k.pem", ""),
    ],
)
def test_a_gateway_for_others_has_tls(gateway: str, wrong: str) -> None:
    text = f"type: fleet\nname: x\nsites: [{{name: a}}]\ngateway: {{{gateway}}}\n"
    if wrong:
        assert wrong in said(text)
    else:
        (fleet,) = spec.parse(text, "f.yaml")
        assert isinstance(fleet, FleetSpec) and fleet.gateway.url(443).startswith("https://")


def test_a_fleet_may_have_a_gateway_at_each_site_and_needs_a_port_for_each() -> None:
    text = "type: fleet\nname: f\nsites: [{name: a}, {name: b}]\ngateway: {each_site: true, hedge: 0.05, port: %d}\n"
    (fleet,) = spec.parse(text % 8601, "f.yaml")
    assert isinstance(fleet, FleetSpec) and fleet.gateway_ports() == (8601, 8602)
    assert "the api has 8600 too" in said(text % 8599)
    assert "2 gateways need as many ports" in said(text % 65535)
    assert "hedge: expected a number from 0 to 0.1" in said((text % 8601).replace("0.05", "0.5"))
    more = text.replace("each_site: true", "processes: 65") % 8601
    assert "processes: expected a number from 1 to 64" in said(more)


def test_a_canary_needs_a_time_to_be_watched() -> None:
    text = "type: service\nname: s\nmodels: [{id: m, run: m, rollout: {canary: 0.1%s}}]\n"
    (service,) = spec.parse(text % ", hold_s: 60", "f.yaml")
    assert isinstance(service, ServiceSpec) and service.models[0].rollout == RolloutSpec(0.1, 60.0)
    assert "a canary needs `hold_s`" in said(text % "")
