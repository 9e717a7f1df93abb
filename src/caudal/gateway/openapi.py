"""The gateway's API as an OpenAPI 3.1 document, made from the types that requests are checked with."""

from __future__ import annotations

from functools import cache
from typing import Any

import msgspec

import caudal
from caudal.gateway.openai_api import ChatRequest, CompletionRequest
from caudal.gateway.responses_request import ResponseRequest
from caudal.gateway.short_calls import DetokenizeRequest, EmbeddingRequest, TokenizeRequest

POSTS = {
    "/v1/chat/completions": (ChatRequest, "The next turn of a chat, whole or as a stream."),
    "/v1/completions": (CompletionRequest, "How a text goes on, whole or as a stream."),
    "/v1/responses": (
        ResponseRequest,
        "The next turn of a chat as a response, kept unless `store` is false.",
    ),
    "/v1/embeddings": (EmbeddingRequest, "Texts as vectors."),
    "/v1/tokenize": (TokenizeRequest, "A text or a chat as the model's tokens."),
    "/v1/detokenize": (DetokenizeRequest, "Tokens as text."),
}
GETS = {
    "/v1/models": "The models of this fleet.",
    "/v1/models/{id}": "One model.",
    "/v1/responses/{id}": "A response that was kept.",
    "/v1/responses/{id}/input_items": "What was said before a response that was kept.",
    "/health": "200 while the process answers.",
    "/ready": "200 once it knows its routes.",
}
STREAMED = frozenset({"/v1/chat/completions", "/v1/completions", "/v1/responses"})

ERROR = {
    "type": "object",
    "required": ["error"],
    "properties": {
        "error": {
            "type": "object",
            "required": ["message", "type", "param", "code"],
            "properties": {
                "message": {"type": "string"},
                "type": {"type": "string"},
                "param": {"type": ["string", "null"]},
                "code": {"type": ["string", "null"]},
            },
        }
    },
}


@cache
def openapi_document() -> bytes:
    """The document as JSON. Engines take further parameters, which it does not list."""
    types = [kind for kind, _ in POSTS.values()]
    refs, components = msgspec.json.schema_components(types, ref_template="#/components/schemas/{name}")
    paths: dict[str, Any] = {}
    for (path, (_, summary)), ref in zip(POSTS.items(), refs, strict=True):
        content = {"application/json": {"schema": ref}}
        body = {"required": True, "content": content}
        paths[path] = {"post": {**_operation(path, summary), "requestBody": body}}
    for path, summary in GETS.items():
        paths[path] = {"get": _operation(path, summary)}
    paths["/v1/responses/{id}"]["delete"] = _operation("/v1/responses/{id}", "Forget a response.")
    return msgspec.json.encode(
        {
            "openapi": "3.1.0",
            "info": {"title": "Caudal's gateway", "version": caudal.__version__},
            "paths": paths,
            "components": {
                "schemas": {**components, "Error": ERROR},
                "securitySchemes": {"key": {"type": "http", "scheme": "bearer"}},
            },
            "security": [{}, {"key": []}],
        }
    )


def _operation(path: str, summary: str) -> dict[str, Any]:
    good: dict[str, Any] = {"application/json": {"schema": {"type": "object"}}}
    if path in STREAMED:
        good["text/event-stream"] = {"schema": {"type": "string"}}
    failed = {"application/json": {"schema": {"$ref": "#/components/schemas/Error"}}}
    operation: dict[str, Any] = {
        "summary": summary,
        "responses": {
            "200": {"description": "It is answered.", "content": good},
            "4XX": {"description": "The request cannot be answered.", "content": failed},
            "5XX": {"description": "The fleet cannot answer now.", "content": failed},
        },
    }
    if "{id}" in path:
        parameter = {"name": "id", "in": "path", "required": True, "schema": {"type": "string"}}
        operation["parameters"] = [parameter]
    return operation
