"""The OpenAPI document, and requests that schemathesis makes up from it: valid ones, and nearly valid ones."""

from __future__ import annotations

import json
from collections.abc import Iterator
from typing import Any

import httpx
import jsonschema
import pytest
import schemathesis
from hypothesis import HealthCheck, settings

from caudal.gateway.openapi import ERROR, openapi_document
from tests.support.front_door import front_door
from tests.support.mock_replica import MockReplica

DOCUMENT = json.loads(openapi_document())
OPERATIONS = schemathesis.openapi.from_dict(DOCUMENT)


@pytest.fixture(scope="module")
def url(tmp_path_factory: pytest.TempPathFactory) -> Iterator[str]:
    with front_door(tmp_path_factory.mktemp("gateway"), {"m": [MockReplica()]}) as one:
        yield one.url.removesuffix("/v1")


def test_document_is_served_and_says_what_is_checked(url: str) -> None:
    assert httpx.get(f"{url}/openapi.json").json() == DOCUMENT
    chat = DOCUMENT["components"]["schemas"]["ChatRequest"]
    assert {"model", "messages"} <= set(chat["required"]) and chat["additionalProperties"] is False
    temperature = chat["properties"]["temperature"]["anyOf"]
    assert {"type": "number", "minimum": 0, "maximum": 2} in temperature


def test_every_path_of_the_document_answers(url: str) -> None:
    for path, operations in DOCUMENT["paths"].items():
        for method in operations:
            answer = httpx.request(method, url + path.replace("{id}", "x"), content=b"{}")
            assert answer.status_code != 405 and answer.headers["x-request-id"]
            if answer.status_code >= 400:
                jsonschema.validate(answer.json(), ERROR)


@OPERATIONS.parametrize()
@settings(max_examples=25, deadline=None, suppress_health_check=list(HealthCheck), derandomize=True)
def test_no_request_of_the_document_is_answered_otherwise_than_it_says(case: Any, url: str) -> None:
    answer = case.call(base_url=url)
    assert answer.status_code < 500 or answer.status_code == 503
    if answer.status_code >= 400:
        jsonschema.validate(answer.json(), ERROR)
    assert answer.headers["x-request-id"]
