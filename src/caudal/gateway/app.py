"""What the gateway answers at which path. Knows the API's words; sockets, replicas and retries are below."""

from __future__ import annotations

import asyncio
from collections.abc import Awaitable, Callable

import msgspec

from caudal.gateway.account import CLIENT_LEFT
from caudal.gateway.answer_heads import AnswerHeads
from caudal.gateway.callers import Caller, Callers
from caudal.gateway.engine_dialects import fans_out
from caudal.gateway.exchange import Answering, Exchange
from caudal.gateway.fan_out import fan_out
from caudal.gateway.generation import Generations
from caudal.gateway.http_request import Head
from caudal.gateway.legacy_logprobs import LegacyLogprobs
from caudal.gateway.metrics import Metrics
from caudal.gateway.openai_api import Call
from caudal.gateway.openai_errors import ApiError, keys_unknown, model_not_found
from caudal.gateway.openapi import openapi_document
from caudal.gateway.plain_head import PARSERS, PlainHead, plain_head, refuse_foreign_pages, require_json
from caudal.gateway.responses_api import Responses
from caudal.gateway.responses_store import ResponseStore
from caudal.gateway.router import Router
from caudal.gateway.routes import ModelRoutes
from caudal.gateway.short_calls import Embeddings, ShortCalls
from caudal.gateway.spending import Spending

TEXT = b"text/plain; version=0.0.4; charset=utf-8"
UNKNOWN_MODEL = "unknown"
KEYED = "/v1/"
"""Below it everything is for those who may: a path that is added is guarded by being there."""

Endpoint = Callable[[Exchange], Answering]


class App:
    """The handler of every request."""

    def __init__(
        self,
        router: Router,
        generations: Generations,
        metrics: Metrics,
        connections: Callable[[], int],
        callers: Callers,
        short_calls: ShortCalls,
        responses: ResponseStore,
        spending: Spending,
    ) -> None:
        self._callers = callers
        self._spending = spending
        self._router = router
        self._generations = generations
        self._metrics = metrics
        self._connections = connections
        self._short_calls = short_calls
        self._responses = Responses(responses, self._generate)
        self._now = router.now
        self._heads = AnswerHeads(router.now)
        self.keyed: tuple[str, ...] = (
            KEYED,
        )  # below which a key is looked at, and asked for where one is required
        self.gather: Callable[[bytes], Awaitable[bytes]] | None = None  # adds what other processes count
        self._endpoints: dict[str, tuple[str, Endpoint]] = {
            **dict.fromkeys(PARSERS, ("POST", self._nowhere)),
            "/v1/embeddings": ("POST", self._embedding),
            "/v1/tokenize": ("POST", self._tokenize),
            "/v1/detokenize": ("POST", self._detokenize),
            "/v1/responses": ("POST", self._response),
            "/v1/models": ("GET", self._models),
            "/openapi.json": ("GET", self._openapi),
            "/health": ("GET", self._health),
            "/ready": ("GET", self._ready),
            "/metrics": ("GET", self._metrics_text),
        }

    def handle(self, exchange: Exchange) -> Answering | None:
        """Answer one request: at once, from callbacks, or by what is returned, which is to be awaited."""
        head = exchange.request.head
        exchange.begun_at = self._now()
        plain = head.notes
        if not isinstance(plain, PlainHead):
            plain = head.notes = plain_head(head, self._heads.of(head))
            if plain is None:
                return self._other_now(exchange, head)
        exchange.lines = plain.lines
        model = UNKNOWN_MODEL
        try:
            exchange.caller = self._callers.of(head.headers, exchange.address)
            call = plain.parse(exchange.request.body)
            known = self._router.model(call.model) is not None
            if known:
                model = call.model
            if call.choices != 1 or call.logprobs:
                return self._answered(exchange, self._generate(exchange, lambda _: call))
            # most calls go straight to one replica, without a task
            return self._generations.begin(exchange, call, plain, known)
        except ApiError as error:
            self._metrics.answered(model, error.status)
            exchange.respond(error.status, error.body(), extra=error.headers())
            return None

    def _other_now(self, exchange: Exchange, head: Head) -> Answering | None:
        exchange.lines = self._heads.of(head)
        try:
            return self._other(exchange, head)
        except ApiError as error:
            exchange.respond(error.status, error.body(), extra=error.headers())
            return None

    def _other(self, exchange: Exchange, head: Head) -> Answering:
        """What is no generation, or one whose head is refused."""
        refuse_foreign_pages(head)
        if head.path.startswith(self.keyed):
            exchange.caller = self._caller(exchange)
        if head.path in PARSERS and head.method == "POST":
            return self._answered(exchange, self._generate(exchange, PARSERS[head.path]))
        return self._answered(exchange, self._endpoint(head.method, head.path)(exchange))

    async def _answered(self, exchange: Exchange, answering: Answering) -> None:
        try:
            await answering
        except ApiError as error:
            exchange.respond(error.status, error.body(), extra=error.headers())

    def _caller(self, exchange: Exchange) -> Caller:
        """Who asks; who may not is counted as an answer to nobody knows which model."""
        try:
            return self._callers.of(exchange.request.headers, exchange.address)
        except ApiError as error:
            self._metrics.answered(UNKNOWN_MODEL, error.status)
            raise

    def _endpoint(self, method: str, path: str) -> Endpoint:
        found = self._endpoints.get(path)
        if found is None and path.startswith("/v1/models/"):
            found = ("GET", self._model)
        if found is None and path.startswith("/v1/responses/"):
            return self._responses.one
        if found is None:
            raise ApiError(404, "unknown_url", f"Unknown request URL: {method} {path[:200]}.")
        if method != found[0] and not (method == "HEAD" and found[0] == "GET"):
            raise ApiError(405, "method_not_allowed", f"{path} answers {found[0]}, not {method}.")
        return found[1]

    async def _nowhere(self, exchange: Exchange) -> None:
        """Generations are answered before an endpoint is looked for; what stands here is their method."""
        raise AssertionError(exchange.request.path)

    async def _response(self, exchange: Exchange) -> None:
        require_json(exchange.request.head)
        await self._responses.create(exchange)

    async def _embedding(self, exchange: Exchange) -> None:
        embeddings = Embeddings(exchange)
        await self._generate(embeddings, embeddings.parse)

    async def _tokenize(self, exchange: Exchange) -> None:
        require_json(exchange.request.head)
        exchange.respond(200, await self._short_calls.tokenize(exchange))

    async def _detokenize(self, exchange: Exchange) -> None:
        require_json(exchange.request.head)
        exchange.respond(200, await self._short_calls.detokenize(exchange))

    async def _openapi(self, exchange: Exchange) -> None:
        exchange.respond(200, openapi_document())

    async def _generate(self, exchange: Exchange, parse: Callable[[bytes], Call]) -> None:
        """Every generation is counted once, with the status that its client saw."""
        model = UNKNOWN_MODEL
        try:
            require_json(exchange.request.head)
            call = parse(exchange.request.body)
            if self._router.model(call.model) is not None:
                model = call.model
            status = await self._run(exchange, call)
        except ApiError as error:
            self._metrics.answered(model, error.status)
            raise
        except asyncio.CancelledError:
            self._metrics.answered(model, CLIENT_LEFT)
            raise
        self._metrics.answered(model, status)

    async def _run(self, exchange: Exchange, call: Call) -> int:
        if call.logprobs and call.path == "/v1/completions":
            exchange = LegacyLogprobs(exchange)
        model = self._router.model(call.model)
        engines = {route.engine for route in model.replicas} if model is not None else set()
        if call.choices > 1 and (not engines or any(fans_out(engine) for engine in engines)):
            return await fan_out(exchange, call, self._generations.run)
        return await self._generations.run(exchange, call, exchange.caller)

    async def _models(self, exchange: Exchange) -> None:
        caller = exchange.caller
        data = [_described(model) for model in self._router.models() if caller.may_use(model.id)]
        exchange.respond(200, msgspec.json.encode({"object": "list", "data": data}))

    async def _model(self, exchange: Exchange) -> None:
        model_id = exchange.request.path.removeprefix("/v1/models/")
        model = self._router.model(model_id)
        if model is None or not exchange.caller.may_use(model_id):
            raise model_not_found(model_id)
        exchange.respond(200, msgspec.json.encode(_described(model)))

    async def _health(self, exchange: Exchange) -> None:
        exchange.respond(200, b'{"status":"ok"}')

    async def _ready(self, exchange: Exchange) -> None:
        if not self._router.known:
            message = "The gateway knows no routes yet: control has not answered since it was started."
            raise ApiError(503, "not_ready", message, retry_after_s=1)
        if not self._callers.known:
            raise keys_unknown()
        exchange.respond(200, b'{"status":"ready"}')

    async def _metrics_text(self, exchange: Exchange) -> None:
        text = self.metrics_text()
        exchange.respond(200, await self.gather(text) if self.gather is not None else text, TEXT)

    def metrics_text(self) -> bytes:
        """What this process counts, for a scrape."""
        rows = [(m.id, m.ready, self._router.in_flight(m.id)) for m in self._router.models()]
        counted = self._metrics.render(self._connections(), rows, self._callers.wrong, self._router.hedged)
        return counted + self._spending.render()


def _described(model: ModelRoutes) -> dict[str, object]:
    """OpenAI's fields (`created` is 0: not known here), and below `caudal` what this fleet knows besides."""
    return {
        "id": model.id,
        "object": "model",
        "created": 0,
        "owned_by": "caudal",
        "caudal": {"version": model.version, "context": model.context, "replicas": model.ready},
    }
