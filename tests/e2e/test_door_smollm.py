"""Real replicas that are reached under TLS alone: answers, and a stream that outlives one of them, as on one machine."""

from __future__ import annotations

import time
from collections.abc import Iterator
from pathlib import Path

import httpx
import openai
import pytest

from caudal.store.authority import ensure_certificates
from tests.e2e.test_serve_smollm import HI, MODEL, Gangs, gangs, gguf, wait_routed

__all__ = ["gangs", "gguf"]  # fixtures

pytestmark = [pytest.mark.e2e, pytest.mark.slow, pytest.mark.timeout(300)]


@pytest.fixture
def folder(tmp_path: Path) -> Iterator[Path]:
    """The certificates of a fleet's sites."""
    made = tmp_path / "certificates"
    ensure_certificates(made, ["north"])
    yield made


def start(gangs: Gangs, name: str, folder: Path) -> str:
    """A replica that listens to other machines; where it is."""
    cache = str(gangs.folder / "cache")
    gangs.start(
        name,
        "caudal.serve.replica",
        **{"model": MODEL, "cache_dir": cache, "certificates": str(folder), "blobs_url": gangs.blobs_url},
        **{"version": 1, "context": 512, "slots": 2, "threads": 1},
    )
    return str(gangs.wait_ready(name)["url"])


def long_answer(client: openai.OpenAI) -> Iterator[str]:
    """What comes of a stream of some seconds."""
    chunks = client.chat.completions.create(
        model=MODEL, messages=HI, temperature=0, max_tokens=250, stream=True, extra_body={"ignore_eos": True}
    )
    for chunk in chunks:
        if chunk.choices and chunk.choices[0].delta.content:
            yield chunk.choices[0].delta.content


def where(gangs: Gangs) -> str:
    """The replica that the gateway says it has a request at."""
    end = time.monotonic() + 20.0
    while time.monotonic() < end:
        load = gangs.control.reports["gateway-1"].get("load", {})
        for name, row in load.items():
            if row[0]:
                return str(name)
        time.sleep(0.02)
    raise AssertionError("the gateway does not say where its stream is")


def test_a_stream_goes_on_at_another_replica_and_nobody_listens_plainly(gangs: Gangs, folder: Path) -> None:
    urls = {name: start(gangs, name, folder) for name in ("replica-1", "replica-2")}
    assert all(url.startswith("https://") for url in urls.values())
    state, routes = str(gangs.folder / "routes.json"), f"{gangs.control.url}/routes"
    told = {"port": 0, "routes_url": routes, "state_file": state, "certificates": str(folder)}
    gangs.start("gateway-1", "caudal.gateway", **told)
    client = openai.OpenAI(
        base_url=gangs.wait_ready("gateway-1")["url"], api_key="none", max_retries=0, timeout=60
    )
    wait_routed(client, 2)
    text = "".join(long_answer(client))
    assert text
    for url in urls.values():
        with pytest.raises(httpx.TransportError):  # no certificate is shown
            httpx.get(f"{url}/health", verify=False, trust_env=False)
    said = ""
    for number, piece in enumerate(long_answer(client)):
        said += piece
        if number == 5:
            at = where(gangs)
            gangs.processes[at].kill()
            del gangs.control.reports[at]
    assert said == text
    metrics = httpx.get(str(client.base_url).replace("/v1/", "/metrics"), trust_env=False).text
    assert 'caudal_gateway_rescues_total{outcome="whole"} 1' in metrics
