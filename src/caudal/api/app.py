"""The control API as a FastAPI application: knows the store and the ports, decides nothing."""

from __future__ import annotations

from fastapi import Depends, FastAPI, Request
from fastapi.exceptions import RequestValidationError
from fastapi.responses import JSONResponse
from starlette.exceptions import HTTPException

from caudal.api import costs, events, fleet, gangs, keys, metrics, models, nodes, offers
from caudal.api.context import Context, guard_reading
from caudal.api.door import Door
from caudal.domain.errors import CaudalError, NotFound, UsageError

PREFIX = "/api/v1"


async def _caudal_error(request: Request, error: Exception) -> JSONResponse:
    assert isinstance(error, CaudalError)
    return JSONResponse({"error": error.as_dict()}, status_code=error.http_status)


async def _invalid(request: Request, error: Exception) -> JSONResponse:
    assert isinstance(error, RequestValidationError)
    first = error.errors()[0]
    place = ".".join(str(part) for part in first["loc"])
    return await _caudal_error(request, UsageError(first["msg"], where=f"{request.url.path} {place}"))


async def _http_error(request: Request, error: Exception) -> JSONResponse:
    """What the framework itself refuses, in the shape of all errors."""
    assert isinstance(error, HTTPException)
    kind = NotFound if error.status_code == NotFound.http_status else UsageError
    answer = await _caudal_error(request, kind(str(error.detail), where=request.url.path))
    answer.status_code = error.status_code
    return answer


def create_app(context: Context) -> FastAPI:
    """The application over a context. Documentation of every call is at /api/docs."""
    app = FastAPI(
        title="Caudal control API",
        version=context.version,
        docs_url=None if context.public else "/api/docs",
        redoc_url=None,
        openapi_url=None if context.public else "/api/openapi.json",
    )
    app.state.context = context
    app.add_middleware(Door, hosts=context.hosts)
    app.add_exception_handler(CaudalError, _caudal_error)
    app.add_exception_handler(RequestValidationError, _invalid)
    app.add_exception_handler(HTTPException, _http_error)
    readable = (fleet, gangs, events, models, keys, costs, offers)
    for module in readable:
        app.include_router(module.router, prefix=PREFIX, dependencies=[Depends(guard_reading)])
    for router in (keys.for_gateways, nodes.router):  # each asks for tokens of its own
        app.include_router(router, prefix=PREFIX)
    app.include_router(metrics.router, dependencies=[Depends(guard_reading)])  # where Prometheus looks
    return app
