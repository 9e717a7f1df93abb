"""What the gateway answers at which path. Knows the API's words; sockets, replicas and retries are below."""

from __future__ import annotations

import asyncio
import re
from collections.abc import Awaitable, Callable

import msgspec

from caudal.gateway.generation import Generations
from caudal.gateway.http_request import Request
from caudal.gateway.http_server import Exchange
from caudal.gateway.metrics import Metrics
from caudal.gateway.openai_api import Call, parse_chat, parse_completion
from caudal.gateway.openai_errors import ApiError, model_not_found
from caudal.gateway.router import Router
from caudal.gateway.routes import ModelRoutes
from caudal.gateway.spending import Spending

TEXT = b"text/plain; version=0.0.4; charset=utf-8"
LOCAL_ORIGIN = re.compile(rb"https?://(localhost|127\.\d+\.\d+\.\d+|\[::1\])(:\d+)?")
UNKNOWN_MODEL = "unknown"
CLIENT_LEFT = 499
"""The status that is counted, and seen by nobody, where a client did not wait for its answer."""

Endpoint = Callable[[Exchange], Awaitable[None]]


class App:
    """The handler of every request."""

    def __init__(
        self,
        router: Router,
        generations: Generations,
        metrics: Metrics,
        connections: Callable[[], int],
        spending: Spending,
    ) -> None:
        self._spending = spending
        self._router = router
        self._generations = generations
        self._metrics = metrics
        self._connections = connections
        self._endpoints: dict[str, tuple[str, Endpoint]] = {
            "/v1/chat/completions": ("POST", self._chat),
            "/v1/completions": ("POST", self._completion),
            "/v1/models": ("GET", self._models),
            "/health": ("GET", self._health),
            "/ready": ("GET", self._ready),
            "/metrics": ("GET", self._metrics_text),
        }

    async def handle(self, exchange: Exchange) -> None:
        """Answer one request."""
        try:
            _refuse_foreign_pages(exchange.request)
            await self._endpoint(exchange.request.method, exchange.request.path)(exchange)
        except ApiError as error:
            exchange.respond(error.status, error.body(), extra=error.headers())

    def _endpoint(self, method: str, path: str) -> Endpoint:
        found = self._endpoints.get(path)
        if found is None and path.startswith("/v1/models/"):
            found = ("GET", self._model)
        if found is None:
            raise ApiError(404, "unknown_url", f"Unknown request URL: {method} {path[:200]}.")
        if method != found[0] and not (method == "HEAD" and found[0] == "GET"):
            raise ApiError(405, "method_not_allowed", f"{path} answers {found[0]}, not {method}.")
        return found[1]

    async def _chat(self, exchange: Exchange) -> None:
        await self._generate(exchange, parse_chat)

    async def _completion(self, exchange: Exchange) -> None:
        await self._generate(exchange, parse_completion)

    async def _generate(self, exchange: Exchange, parse: Callable[[bytes], Call]) -> None:
        """Every generation is counted once, with the status that its client saw."""
        model = UNKNOWN_MODEL
        try:
            _require_json(exchange)
            call = parse(exchange.request.body)
            if self._router.model(call.model) is not None:
                model = call.model
            status = await self._generations.run(exchange, call)
        except ApiError as error:
            self._metrics.answered(model, error.status)
            raise
        except asyncio.CancelledError:
            self._metrics.answered(model, CLIENT_LEFT)
            raise
        self._metrics.answered(model, status)

    async def _models(self, exchange: Exchange) -> None:
        data = [_described(model) for model in self._router.models()]
        exchange.respond(200, msgspec.json.encode({"object": "list", "data": data}))

    async def _model(self, exchange: Exchange) -> None:
        model_id = exchange.request.path.removeprefix("/v1/models/")
        model = self._router.model(model_id)
        if model is None:
            raise model_not_found(model_id)
        exchange.respond(200, msgspec.json.encode(_described(model)))

    async def _health(self, exchange: Exchange) -> None:
        exchange.respond(200, b'{"status":"ok"}')

    async def _ready(self, exchange: Exchange) -> None:
        if not self._router.known:
            message = "The gateway knows no routes yet: control has not answered since it was started."
            raise ApiError(503, "not_ready", message, retry_after_s=1)
        exchange.respond(200, b'{"status":"ready"}')

    async def _metrics_text(self, exchange: Exchange) -> None:
        rows = [(m.id, len(m.replicas), self._router.in_flight(m.id)) for m in self._router.models()]
        exchange.respond(200, self._metrics.render(self._connections(), rows) + self._spending.render(), TEXT)


def _described(model: ModelRoutes) -> dict[str, object]:
    """OpenAI's fields (`created` is 0: not known here), and below `caudal` what this fleet knows besides."""
    return {
        "id": model.id,
        "object": "model",
        "created": 0,
        "owned_by": "caudal",
        "caudal": {"version": model.version, "context": model.context, "replicas": len(model.replicas)},
    }


def _refuse_foreign_pages(request: Request) -> None:
    """Browsers say from which page a request comes. A page of another site must not get in, not even one
    whose name was made to point here (DNS rebinding), for which the browser asks no permission."""
    origin = request.headers.get(b"origin")
    if origin is not None and not LOCAL_ORIGIN.fullmatch(origin):
        raise ApiError(403, "origin_refused", "Web pages of other sites may not use this gateway.")


def _require_json(exchange: Exchange) -> None:
    """A page of another site can make a browser post plain text here, but not JSON."""
    kind = exchange.request.headers.get(b"content-type", b"").partition(b";")[0].strip().lower()
    if kind != b"application/json":
        message = "The body of this request must be JSON: send the header 'content-type: application/json'."
        raise ApiError(415, "unsupported_media_type", message)
    if exchange.request.headers.get(b"content-encoding", b"identity").lower() != b"identity":
        message = "The body of this request must not be compressed: leave out 'content-encoding'."
        raise ApiError(415, "unsupported_media_type", message)
