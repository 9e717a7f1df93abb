"""Specifies train/base: a Hugging Face model as a run's first state, trained whole or by adapters, and its export."""

from __future__ import annotations

import json
import shutil
import subprocess
import sys
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import httpx
import msgspec
import numpy as np
import pytest
import torch
from peft import PeftModel
from safetensors.torch import load_file
from tokenizers import Tokenizer
from transformers import AutoModelForCausalLM, AutoTokenizer, BertConfig, BertForMaskedLM

from caudal.domain.errors import CaudalError, Failed, ModelInvalid, PullFailed, Stale, UsageError
from caudal.domain.workload import BaseSpec, InnerSpec, StageSpec, TrainSpec
from caudal.ports import Blobs, EngineLaunch
from caudal.serve.llama_cpp import LlamaCppEngine
from caudal.store.blobs import open_blobs
from caudal.store.models import ModelStore
from caudal.train import checkpoint
from caudal.train.base import layout, model
from caudal.train.base.begin import begin
from caudal.train.base.export import GGUF, export
from caudal.train.data.prepare import prepare
from caudal.train.fetch import data_folder
from caudal.train.group.inner import GroupInner
from caudal.train.group.member import Setup
from caudal.train.interface import DataManifest, Flat, IdRange, RunPlan, plan
from caudal.train.protocol.door import plan_sha256
from tests.support.bases import ENTRIES, POSITIONS, TEMPLATE, edit_json, run_on, write_base
from tests.unit.test_train_inner import never

KINDS = ("llama", "qwen2", "gpt2")


@dataclass
class Begun:
    """A run that was begun from a base, with all that its sites need."""

    spec: TrainSpec
    blobs: Blobs
    base: layout.Base
    manifest: DataManifest
    plan: RunPlan
    folder: Path

    @property
    def state(self) -> Flat:
        return checkpoint.read(self.blobs, "r", checkpoint.manifest_path("r", 0))[1]

    def setup(self, inner: InnerSpec | None = None) -> Setup:
        return Setup(
            self.plan, self.manifest, str(self.folder), inner or InnerSpec(precision="float32"), 1, ""
        )


def begun(folder: Path, spec: TrainSpec) -> Begun:
    blobs = open_blobs((folder / f"blobs-{spec.base.method}").as_uri())
    base = begin(spec, blobs, "r", folder / "cache")
    manifest = prepare(spec, blobs, "r")
    data = data_folder(blobs, "r", manifest, folder / "copies")
    return Begun(spec, blobs, base, manifest, plan(spec, manifest), data)


@pytest.fixture(scope="module")
def bases(tmp_path_factory: pytest.TempPathFactory) -> dict[str, Path]:
    folder = tmp_path_factory.mktemp("bases")
    made = {kind: write_base(folder / kind, kind) for kind in KINDS}
    made["untied"] = write_base(folder / "untied", tied=False)
    return made


@pytest.fixture(scope="module")
def runs(bases: dict[str, Path], tmp_path_factory: pytest.TempPathFactory) -> dict[str, Begun]:
    """`llama full`, `gpt2 lora` and so on."""
    made = {}
    for kind in KINDS:
        for method in ("full", "lora"):
            folder = tmp_path_factory.mktemp(f"{kind}-{method}")
            made[f"{kind} {method}"] = begun(folder, run_on(bases[kind], folder / "text.txt", method))
    return made


EACH = [f"{kind} {method}" for kind in KINDS for method in ("full", "lora")]


@pytest.mark.parametrize("which", EACH)
def test_the_first_state_is_the_base_and_the_layout_says_what_is_where(
    which: str, runs: dict[str, Begun], bases: dict[str, Path]
) -> None:
    run = runs[which]
    assert run.plan.parameters == len(run.state) == run.base.trained
    assert run.manifest.vocab == ENTRIES and run.base.positions == POSITIONS
    there = load_file(bases[which.split()[0]] / "model.safetensors")
    for part in run.base.parameters:
        values = torch.from_numpy(run.state[part.offset : part.offset + part.size].reshape(part.shape))
        if run.spec.base.method == "full":
            # as transformers names it inside the model; files of GPT-2 may leave the first word out
            assert torch.equal(
                values, there.get(part.name, there.get(part.name.removeprefix("transformer.")))
            )  # type: ignore[arg-type]
        elif ".lora_B." in part.name:
            assert not values.any()
        else:
            assert part.shape[0] == 4 and values.std() > 0
    if run.spec.base.method == "full":  # tied: the head is the embedding, once
        assert run.base.trained == run.base.whole and not any("lm_head" in n for n in run.base.names)
    else:
        assert run.base.trained < run.base.whole / 4


@pytest.mark.parametrize("which", EACH)
def test_the_loss_is_transformers_own_and_falls(which: str, runs: dict[str, Begun]) -> None:
    run = runs[which]
    inner = GroupInner(run.setup())
    inner.load(run.state)
    batch = inner._member._samples[0].batch([0, 1, 2])
    tokens, targets = torch.from_numpy(batch.tokens), torch.from_numpy(batch.targets)
    whole = AutoModelForCausalLM.from_pretrained(run.folder / "base", dtype=torch.float32).eval()
    with torch.no_grad():
        logits = whole(input_ids=tokens).logits.reshape(-1, ENTRIES)
        some = torch.tensor([1, 5, 40, 95])
        wanted = torch.nn.functional.cross_entropy(logits, targets, reduction="sum")
        of_some = torch.nn.functional.cross_entropy(logits[some], targets[some], reduction="sum")
        module = inner._member._model
        torch.testing.assert_close(module(tokens, targets), wanted)
        torch.testing.assert_close(module(tokens, targets[some], some), of_some)
    before = inner.evaluate()
    result = inner.run(0, [IdRange(0, 160)], (0.0, 1.0), never)
    after = inner.evaluate()
    assert result.steps == 40 and result.tokens == 160 * 32
    assert after["val_loss"] < before["val_loss"] - (0.05 if run.spec.base.method == "lora" else 1.0)
    assert after["val_bits_per_byte"] < before["val_bits_per_byte"]
    assert inner.heldout()["of"] == 0
    moved = result.params != run.state
    for part in run.base.parameters:  # every part of what is trained is trained
        assert moved[part.offset : part.offset + part.size].any(), part.name


def test_two_copies_do_the_same_to_the_last_bit(runs: dict[str, Begun]) -> None:
    results = []
    for _ in range(2):
        inner = GroupInner(runs["llama lora"].setup())
        inner.load(runs["llama lora"].state)
        results.append(inner.run(0, [IdRange(3, 40)], (0.1, 0.4), never, 1.4).params)
    assert np.array_equal(*results)


DDP = InnerSpec(precision="float32", processes=2, accumulate=2)
FSDP2 = InnerSpec(precision="float32", processes=2, strategy="fsdp2", checkpoint_activations=True)


@pytest.mark.parametrize(
    ("which", "inner"),
    [("llama lora", DDP), ("qwen2 full", DDP), ("gpt2 lora", FSDP2), ("llama full", FSDP2)],
    ids=lambda value: value if isinstance(value, str) else value.strategy,
)
def test_however_it_is_shared_the_steps_are_the_same(
    which: str, inner: InnerSpec, runs: dict[str, Begun], tmp_path: Path
) -> None:
    run = runs[which]
    alone = GroupInner(run.setup())
    alone.load(run.state)
    wanted = alone.run(0, [IdRange(0, 45)], (0.0, 0.2), never, 1.4)
    values = alone.evaluate()
    path = tmp_path / "setup.json"
    path.write_bytes(msgspec.json.encode(run.setup(inner)))
    command = [sys.executable, "-m", "tests.unit.test_train_base", str(path), str(tmp_path / "state.npy")]
    np.save(tmp_path / "state.npy", run.state)
    done = subprocess.run(command, capture_output=True, timeout=120)
    assert done.returncode == 0, done.stderr.decode()
    found = msgspec.json.decode(done.stdout.splitlines()[-1])
    assert found["loss"] == pytest.approx(wanted.loss, rel=2e-4)
    assert np.mean(np.abs(np.array(found["params"], np.float32) - wanted.params)) < 2e-4
    assert found["values"] == pytest.approx(values, rel=2e-3)


def test_beginning_again_gives_the_same_and_another_base_is_refused(
    runs: dict[str, Begun], bases: dict[str, Path], tmp_path: Path
) -> None:
    first = runs["llama lora"]
    again = begun(tmp_path, run_on(bases["llama"], tmp_path / "text.txt"))
    assert again.base == first.base and np.array_equal(again.state, first.state)
    assert again.plan.model == first.plan.model
    before = again.blobs.list("r/")
    assert begin(again.spec, again.blobs, "r", tmp_path / "cache") == again.base
    assert again.blobs.list("r/") == before  # a crash anywhere, and doing it again, leaves nothing else
    other = replace(again.spec, seed=9)
    with pytest.raises(Failed, match="begun with another base"):
        begin(other, again.blobs, "r", tmp_path / "cache")


def test_what_is_trained_is_part_of_the_plan(runs: dict[str, Begun], bases: dict[str, Path]) -> None:
    lora, full = runs["llama lora"], runs["llama full"]
    assert len({run.plan.model for run in runs.values()}) == len(runs)
    assert plan_sha256(lora.plan) != plan_sha256(full.plan)
    files = lora.base.files
    for change in ({"rank": 8}, {"alpha": 9.0}, {"targets": ("q_proj",)}, {"method": "full"}):
        other = replace(lora.spec.base, **change)  # type: ignore[arg-type]
        assert layout.signature(other, files) != lora.plan.model
        with pytest.raises(Stale, match="begun with another base") as refused:
            plan(replace(lora.spec, base=other), lora.manifest)
        assert "rank 4" in refused.value.why
    assert layout.signature(lora.spec.base, {**files, "base/config.json": "0" * 64}) != lora.plan.model
    with pytest.raises(Stale, match="begun with another base"):
        plan(replace(lora.spec, base=BaseSpec()), lora.manifest)


def test_a_site_that_is_elsewhere_fetches_and_checks_the_base(runs: dict[str, Begun], tmp_path: Path) -> None:
    run = runs["llama lora"]
    far = open_blobs("memory://")
    for path in run.blobs.list("r/data/"):
        far.put(path, run.blobs.get(path))
    folder = data_folder(far, "r", run.manifest, tmp_path)
    assert model.built(folder / "base", run.base) is not None
    far.put("r/data/base/model.safetensors", b"changed")
    (folder / "base/model.safetensors").unlink()
    with pytest.raises(CaudalError, match="not what the manifest says"):
        data_folder(far, "r", run.manifest, tmp_path)


@pytest.mark.parametrize("which", EACH)
def test_the_exported_folder_is_the_trained_model(which: str, runs: dict[str, Begun], tmp_path: Path) -> None:
    run = runs[which]
    inner = GroupInner(run.setup())
    inner.load(run.state)
    state = inner.run(0, [IdRange(0, 40)], (0.2, 0.4), never).params
    out = tmp_path / "out"
    why = export(run.spec, run.base, run.folder / "base", state, out)
    assert (why == "") == (out / GGUF).is_file() == (not which.startswith("gpt2"))
    tokens = torch.arange(12).reshape(1, 12)
    trained = model.built(run.folder / "base", run.base)
    model.write(trained, state, run.base.parameters)
    with torch.no_grad():
        wanted = trained(input_ids=tokens).logits
        got = AutoModelForCausalLM.from_pretrained(out).eval()(input_ids=tokens).logits
        torch.testing.assert_close(got, wanted, atol=2e-6, rtol=1e-5)
        if run.spec.base.method == "lora":
            base = AutoModelForCausalLM.from_pretrained(run.folder / "base")
            adapted = PeftModel.from_pretrained(base, out / "adapter").eval()
            torch.testing.assert_close(adapted(input_ids=tokens).logits, wanted, atol=2e-6, rtol=1e-5)
    words = AutoTokenizer.from_pretrained(out)
    assert words.chat_template == TEMPLATE and len(words) <= ENTRIES
    bytes_of = {p.relative_to(out): p.read_bytes() for p in out.rglob("*") if p.is_file()}
    again = tmp_path / "again"
    export(run.spec, run.base, run.folder / "base", state, again)
    assert {p.relative_to(again): p.read_bytes() for p in again.rglob("*") if p.is_file()} == bytes_of
    record = ModelStore(open_blobs("memory://"), tmp_path / "models").publish("tuned", out, source="test")
    assert record.context == POSITIONS and bool(record.gguf) == (not why)


@pytest.mark.slow
@pytest.mark.parametrize("which", ["llama lora", "qwen2 full"])
def test_llama_cpp_says_what_transformers_says(which: str, runs: dict[str, Begun], tmp_path: Path) -> None:
    pytest.importorskip("xllamacpp", reason="the `serve` extra is not installed")
    run = runs[which]
    inner = GroupInner(run.setup())
    inner.load(run.state)
    state = inner.run(0, [IdRange(0, 160)], (0.0, 1.0), never, 2.0).params
    assert export(run.spec, run.base, run.folder / "base", state, tmp_path) == ""
    engine = LlamaCppEngine()
    engine.start(EngineLaunch("tuned", tmp_path / GGUF, "127.0.0.1", 0, POSITIONS, 1, 1))
    words = Tokenizer.from_file(str(tmp_path / "tokenizer.json"))
    whole = AutoModelForCausalLM.from_pretrained(tmp_path).eval()
    with httpx.Client(base_url=engine.url, timeout=60, trust_env=False) as client:
        for prompt in ("The cat of the year 19", "The dog of the year 2001 says", "others"):
            ids = words.encode(prompt).ids
            told = client.post("/tokenize", json={"content": prompt}).json()["tokens"]
            assert told == ids
            body = {"prompt": ids, "n_predict": 1, "temperature": 0, "n_probs": 20, "cache_prompt": False}
            said = client.post("/completion", json=body).json()["completion_probabilities"][0]
            with torch.no_grad():
                wanted = whole(input_ids=torch.tensor([ids])).logits[0, -1].log_softmax(-1)
            assert said["top_logprobs"]
            for entry in said["top_logprobs"]:
                assert entry["logprob"] == pytest.approx(float(wanted[entry["id"]]), abs=1e-3)
    engine.stop()


def wrong(folder: Path, spec: TrainSpec, kind: type[CaudalError], *words: str) -> None:
    """Beginning fails with an error of the kind that says all of this, and nothing is begun."""
    blobs = open_blobs("memory://")
    with pytest.raises(kind) as failed:
        begin(spec, blobs, "r", folder / "cache")
    for word in words:
        assert word in str(failed.value), str(failed.value)
    assert failed.value.remedy
    assert layout.begun(blobs, "r") is None and not list((folder / "cache").iterdir())


def test_what_cannot_be_a_base_is_refused_in_words(bases: dict[str, Path], tmp_path: Path) -> None:
    text = tmp_path / "text.txt"
    good = run_on(bases["llama"], text)
    wrong(tmp_path, run_on(tmp_path / "nowhere", text), PullFailed, "no such file or folder")
    pickled = tmp_path / "pickled"
    shutil.copytree(bases["llama"], pickled)
    (pickled / "model.safetensors").rename(pickled / "pytorch_model.bin")
    wrong(tmp_path, run_on(pickled, text), ModelInvalid, "pickle", "save_pretrained")
    BertForMaskedLM(BertConfig(vocab_size=ENTRIES, hidden_size=32, num_hidden_layers=2, num_attention_heads=2,
                               intermediate_size=32)).save_pretrained(tmp_path / "bert")  # fmt: skip
    wrong(tmp_path, run_on(tmp_path / "bert", text), UsageError, "goes on with a text", "BertForMaskedLM")
    wrong(tmp_path, replace(good, base=replace(good.base, targets=("query",))), UsageError,
          "no layer 'query'", "q_proj")  # fmt: skip
    wrong(tmp_path, replace(good, base=replace(good.base, rank=64)), UsageError, "rank of 64", "16 or less")
    long = replace(good, stages=(replace(good.stages[0], sample_tokens=POSITIONS + 1),))
    wrong(tmp_path, long, UsageError, f"samples of {POSITIONS + 1}", f"{POSITIONS} positions")
    longer = write_base(tmp_path / "longer")
    words = Tokenizer.from_file(str(longer / "tokenizer.json"))
    words.add_special_tokens([f"<|more {number}|>" for number in range(ENTRIES)])
    words.save(str(longer / "tokenizer.json"))
    wrong(tmp_path, run_on(longer, text), UsageError, "longer than its embedding", "<|more ", str(ENTRIES))
    foreign = tmp_path / "foreign"
    shutil.copytree(bases["llama"], foreign)
    edit_json(foreign / "config.json", model_type="nobodys", architectures=["NobodysForCausalLM"],
              auto_map={"AutoModelForCausalLM": "evil.NobodysForCausalLM"})  # fmt: skip
    (foreign / "evil.py").write_text("raise SystemExit('was run')")
    wrong(tmp_path, run_on(foreign, text), UsageError, "never run")


def test_dialogues_fine_tune_a_base_by_its_own_template(bases: dict[str, Path], tmp_path: Path) -> None:
    talks = tmp_path / "talks.jsonl"
    rows = [{"messages": [{"role": "system", "content": "Be kind."},
                          {"role": "user", "content": f"What is {n} and {n}?"},
                          {"role": "assistant", "content": "It is the same twice, my friend."}]}
            for n in range(300)]  # fmt: skip
    talks.write_text("".join(json.dumps(row) + "\n" for row in rows))
    asked = run_on(bases["llama"], tmp_path / "text.txt")
    chat = StageSpec("chat", tokens=4_000, kind="chat", sample_tokens=64, batch=4, learning_rate=3e-3)
    run = begun(tmp_path, replace(asked, data=str(talks), stages=(chat,)))
    assert run.manifest.stages[0].kind == "chat" and run.manifest.vocab == ENTRIES
    assert set(run.base.files) <= set(run.manifest.files), "every site fetches and checks the base"
    inner = GroupInner(run.setup())
    batch = inner._member._samples[0].batch([0])
    words = AutoTokenizer.from_pretrained(run.folder / "base")
    assert batch.rows is not None and "It is the" in words.decode(batch.targets.tolist())
    assert "What is" not in words.decode(batch.targets.tolist()), "only the assistant's words count"
    inner.load(run.state)
    before = inner.run(0, [IdRange(0, 4)], (0.0, 0.1), never).loss
    inner.run(0, [IdRange(4, 60)], (0.1, 1.0), never)
    assert inner.run(0, [IdRange(0, 4)], (0.9, 1.0), never).loss < before - 0.1


def test_what_is_not_installed_is_named(monkeypatch: pytest.MonkeyPatch) -> None:
    layout.require_libraries()
    monkeypatch.setattr(layout, "find_spec", lambda name: None if name == "peft" else object())
    with pytest.raises(UsageError, match="more than is installed") as missing:
        layout.require_libraries()
    assert "peft" in missing.value.why and "caudal[train,huggingface]" in missing.value.remedy


def test_untied_matrices_are_both_trained(bases: dict[str, Path], tmp_path: Path) -> None:
    run = begun(tmp_path, run_on(bases["untied"], tmp_path / "text.txt", "full"))
    assert run.base.names[-1] == "lm_head.weight" and run.base.trained == run.base.whole


def test_a_base_may_lie_in_an_object_store(bases: dict[str, Path], tmp_path: Path) -> None:
    there = open_blobs((tmp_path / "bucket").as_uri())
    for file in bases["llama"].iterdir():
        there.put(f"models/mine/{file.name}", file.read_bytes())
    run = begun(tmp_path, run_on((tmp_path / "bucket/models/mine").as_uri(), tmp_path / "text.txt"))
    assert {Path(name).name for name in run.base.files} >= {
        "config.json",
        "model.safetensors",
        "tokenizer.json",
    }


@pytest.mark.parametrize("which", ["llama full", "qwen2 full"])
def test_a_gguf_is_the_folder_that_it_was_made_from(
    which: str, runs: dict[str, Begun], tmp_path: Path
) -> None:
    run = runs[which]
    export(run.spec, run.base, run.folder / "base", run.state, tmp_path / "out")
    again = begun(tmp_path, run_on(tmp_path / "out" / GGUF, tmp_path / "text.txt", "full"))
    assert (again.base.names, again.base.dtype) == (run.base.names, "float16")
    assert np.abs(again.state - run.state).max() < 1e-3  # half precision, and nothing else
    ours, theirs = (Tokenizer.from_file(str(r.folder / "base/tokenizer.json")) for r in (again, run))
    for text in ("In 2024, 12 of 3,456!\n\n  ok", "<|end|>a", "¿Qué? 日本"):
        assert ours.encode(text).ids == theirs.encode(text).ids
    assert again.manifest.vocab == run.manifest.vocab


def test_half_precision_is_exported_as_it_came(tmp_path: Path) -> None:
    folder = write_base(tmp_path / "half")
    AutoModelForCausalLM.from_pretrained(folder, dtype=torch.bfloat16).save_pretrained(folder)
    run = begun(tmp_path, run_on(folder, tmp_path / "text.txt", "full"))
    assert run.base.dtype == "bfloat16" and run.state.dtype == np.float32
    assert export(run.spec, run.base, run.folder / "base", run.state, tmp_path / "out") == ""
    for name, values in load_file(tmp_path / "out/model.safetensors").items():
        assert values.dtype == torch.bfloat16
        assert torch.equal(values, load_file(folder / "model.safetensors")[name])


def main() -> None:
    """A site's first process."""
    setup = msgspec.json.decode(Path(sys.argv[1]).read_bytes(), type=Setup)
    inner = GroupInner(setup)
    inner.load(np.load(sys.argv[2]))
    result = inner.run(0, [IdRange(0, 45)], (0.0, 0.2), never, 1.4)
    said: dict[str, Any] = {"loss": result.loss, "params": result.params.tolist(), "values": inner.evaluate()}
    sys.stdout.buffer.write(msgspec.json.encode(said) + b"\n")
    sys.stdout.flush()
    inner.close()


if __name__ == "__main__":
    main()
