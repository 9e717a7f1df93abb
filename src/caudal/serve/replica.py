"""`python -m caudal.serve.replica CONFIG.json`: one model on one node, from the model store to tokens.

Finds the model, starts an engine, says `ready` only after it has really generated, watches it, and ends:
with 0 when told to (after the requests in flight), with 1 when it cannot start, with 3 when the engine died
or hangs, so that it is replaced. Knows nothing of gateways or of other replicas.
"""

from __future__ import annotations

import logging
import os
import signal
import sys
import threading
from collections.abc import Callable
from pathlib import Path
from typing import Any

import httpx
import msgspec

from caudal.domain.errors import CaudalError, Failed, ModelInvalid, UsageError
from caudal.domain.model import ModelRecord
from caudal.ports import Engine, EngineLaunch
from caudal.serve.door import Door
from caudal.serve.engines import DEFAULT, make_engine
from caudal.store.blobs import open_blobs
from caudal.store.models import ModelStore
from caudal.store.site_tls import is_loopback, server_context
from caudal.telemetry.report import REPORT_URL, Reporter

log = logging.getLogger("caudal.serve")

HEALTH_EVERY_S = 1.0
UNHEALTHY_CHECKS = 3
"""So many bad checks in a row and the engine counts as dead or hung: 3 s where it refuses connections, about
half a minute where it does not answer."""

WARM_UP_S = 60.0
ROUTES_FORGET_S = 1.2
"""How long gateways may still send requests after `ready` was withdrawn: a report and two polls of routes."""

GRACE_S = 8.0
"""How long requests in flight may go on after SIGTERM; below the 10 s that a gang is given."""

EXIT_UNHEALTHY = 3
LOOPBACK = "127.0.0.1"


class ReplicaConfig(msgspec.Struct, frozen=True):
    """What control writes for a replica. `context` is per request, in tokens; `opening`: see ServedModel. With
    `certificates`, a folder, gateways of other machines come in under TLS; without, `host` is this machine's own."""

    model: str
    version: int
    context: int
    slots: int
    threads: int
    blobs_url: str
    cache_dir: str
    host: str
    site: str
    gang: str
    opening: str = ""
    engine: str = DEFAULT
    engine_args: tuple[str, ...] = ()
    accelerators: int = 0
    certificates: str = ""


def read_config(path: Path) -> ReplicaConfig:
    """Raises UsageError where the file cannot be used."""
    try:
        return msgspec.json.decode(path.read_bytes(), type=ReplicaConfig)
    except (OSError, msgspec.DecodeError) as error:
        raise UsageError(
            "the replica's configuration cannot be read",
            where=str(path),
            why=str(error),
            remedy="Give the path of a JSON file as control writes it for a replica.",
        ) from error


def launch_of(config: ReplicaConfig, record: ModelRecord, folder: Path) -> EngineLaunch:
    """What the engine is asked to do. Raises ModelInvalid where the model has no file for it."""
    context = min(config.context, record.context) if record.context else config.context
    return EngineLaunch(
        model_id=config.model,
        path=_path(config.engine, record, folder),
        host=LOOPBACK if config.certificates else config.host,
        port=0,
        context=context,
        slots=max(1, config.slots),
        threads=max(1, config.threads),
        accelerators=config.accelerators,
        arguments=config.engine_args,
    )


def _path(engine: str, record: ModelRecord, folder: Path) -> Path:
    """The file or the folder that the engine reads: llama.cpp a GGUF file, all others a Hugging Face directory."""
    where = f"{record.id} version {record.version}"
    if engine == DEFAULT:
        if record.gguf:
            return folder / record.gguf
        raise ModelInvalid(
            "the model has no GGUF file",
            where=where,
            why=f"{DEFAULT} reads nothing else",
            remedy="Pull a model that has one, or publish the run's model again, or say `engine: vllm`.",
        )
    if not any(name == "config.json" for name, _ in record.files):
        raise ModelInvalid(
            "the model is not a Hugging Face directory",
            where=where,
            why=f"{engine} reads nothing else, and there is no config.json",
            remedy=f"Pull the directory (hf:ORG/NAME), or say `engine: {DEFAULT}`.",
        )
    return folder


def start(config: ReplicaConfig, engine: Engine) -> None:
    """Bring the engine to the point where it has generated a token. Raises CaudalError."""
    store = ModelStore(open_blobs(config.blobs_url), Path(config.cache_dir).expanduser())
    record = store.get(config.model, config.version)
    engine.start(launch_of(config, record, store.materialise(record)))
    if not engine.healthy():
        raise Failed("the engine started and does not answer", where=config.model)
    warm_up(engine.url, config.model, generates=engine.capabilities().completions)
    open_with(config, engine)


def open_with(config: ReplicaConfig, engine: Engine) -> None:
    """Have it read what requests begin with. One that cannot serves all the same, only later."""
    try:
        held = engine.open_with(config.opening)
    except Failed as failed:
        log.warning("%s: requests are read from their beginning: %s", config.model, failed.one_line())
    else:
        log.info("%s holds %d tokens that chats begin with", config.model, held)


def start_unless(told_to_end: threading.Event, config: ReplicaConfig, engine: Engine) -> bool:
    """Start it; False where it was told to end meanwhile: loading may take minutes. Raises CaudalError."""
    over = threading.Event()

    def end_early() -> None:
        told_to_end.wait()
        if not over.is_set():
            engine.kill()

    threading.Thread(target=end_early, name="end early", daemon=True).start()
    try:
        start(config, engine)
    except CaudalError:
        if not told_to_end.is_set():
            raise
    finally:
        over.set()
    if told_to_end.is_set():
        engine.kill()
        return False
    return True


def warm_up(url: str, model: str, generates: bool = True) -> None:
    """Have it generate one token, or embed one word where that is all it can. Raises Failed where it does not."""
    path = "completions" if generates else "embeddings"
    asked = {"model": model, "prompt": "Hello", "max_tokens": 1, "temperature": 0}
    if not generates:
        asked = {"model": model, "input": "Hello"}
    try:
        answer = httpx.post(f"{url}/v1/{path}", json=asked, timeout=WARM_UP_S, trust_env=False)
    except httpx.HTTPError as error:
        raise Failed(
            "the engine loaded the model and cannot generate", where=model, why=str(error)
        ) from error
    if answer.status_code != 200:
        raise Failed("the engine loaded the model and cannot generate", where=model, why=answer.text[:500])


def watch(
    engine: Engine,
    told_to_end: Callable[[float], bool],
    checks: int = UNHEALTHY_CHECKS,
    each: Callable[[], None] = lambda: None,
) -> bool:
    """Return True when told to end, False when the engine is dead or hung. `told_to_end` waits that many
    seconds at most. `each` is called after every good check."""
    bad = 0
    while not told_to_end(HEALTH_EVERY_S):
        bad = 0 if engine.healthy() else bad + 1
        if bad:
            log.warning("the engine does not answer (%d of %d)", bad, checks)
        else:
            each()
        if bad >= checks:
            return False
    return True


def check_host(config: ReplicaConfig) -> None:
    """Raises UsageError where an engine would listen to other machines without encryption."""
    if not config.certificates and not is_loopback(config.host):
        raise UsageError(
            f"a replica would listen on {config.host} without encryption",
            why="connections between machines are encrypted, always",
            remedy="control gives replicas on other machines their site's certificates: name their folder",
        )


def reached_at(config: ReplicaConfig, engine: Engine) -> str:
    """Where gateways find it: at its engine, or at the door before it. Raises UsageError, PortInUse."""
    if not config.certificates:
        return engine.url
    door = Door(config.host, server_context(Path(config.certificates), config.site), engine.url)
    door.open()
    return door.url


def described(config: ReplicaConfig, engine: Engine) -> dict[str, Any]:
    """What a replica says of its engine, once."""
    can = engine.capabilities()
    capabilities = {
        "chat": can.chat,
        "completions": can.completions,
        "embeddings": can.embeddings,
        "tools": can.tools,
        "parameters": sorted(can.parameters),
    }
    return {"engine": engine.name, "slots": config.slots, "capabilities": capabilities}


def drain(engine: Engine, grace_s: float) -> bool:
    """Let requests in flight end; False where the grace was too short for them, and they were cut off."""
    stopping = threading.Thread(target=engine.stop, name="drain", daemon=True)
    stopping.start()
    stopping.join(grace_s)
    if not stopping.is_alive():
        return True
    engine.kill()
    return False


def run(config: ReplicaConfig, reporter: Reporter, told_to_end: threading.Event) -> int:
    """From start to end; returns the exit code. Raises CaudalError where it cannot start."""
    check_host(config)
    reporter.update(ready=False, url="", model=config.model, version=config.version, error="")
    engine = make_engine(config.engine)
    if not start_unless(told_to_end, config, engine):
        return 0
    gone = threading.Event()

    def told() -> None:
        gone.set()
        told_to_end.set()

    engine.when_gone(told)
    url = reached_at(config, engine)
    reporter.update(ready=True, url=url, **described(config, engine))
    log.info("%s version %d is ready at %s", config.model, config.version, url)

    def report_figures() -> None:
        reporter.update(metrics=dict(engine.figures()))

    if not watch(engine, told_to_end.wait, each=report_figures) or gone.is_set():
        reporter.update(
            ready=False, error="the engine ended" if gone.is_set() else "the engine stopped answering"
        )
        engine.kill()
        return EXIT_UNHEALTHY
    reporter.update(ready=False)
    if os.environ.get(REPORT_URL):
        threading.Event().wait(ROUTES_FORGET_S)
    if not drain(engine, GRACE_S - ROUTES_FORGET_S):
        log.warning("requests were still running at the end of the grace: they are cut off")
    return 0


def main(argv: list[str]) -> int:
    """Run until told to end; returns the exit code."""
    logging.basicConfig(level=logging.INFO, stream=sys.stderr, format="%(asctime)s %(levelname)s %(message)s")
    logging.getLogger("httpx").setLevel(logging.WARNING)
    told_to_end = threading.Event()
    for number in (signal.SIGTERM, signal.SIGINT):
        signal.signal(number, lambda *_: told_to_end.set())
    reporter = Reporter()
    try:
        if len(argv) != 2:
            raise UsageError(
                "a replica is given its configuration", remedy="python -m caudal.serve.replica FILE"
            )
        return run(read_config(Path(argv[1])), reporter, told_to_end)
    except CaudalError as error:
        print(f"{error.code}: {error}", file=sys.stderr)
        reporter.update(ready=False, error=error.one_line(), code=error.code)
        return 1
    finally:
        reporter.close()


if __name__ == "__main__":
    code = main(sys.argv)
    sys.stderr.flush()
    os._exit(code)  # the engine's native threads may still be in a request: nothing is left to save
