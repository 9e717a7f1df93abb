"""Write docs/reference anew from the code: verbs, file formats, errors, the API. `make docs` runs it.

A test compares what lies there with what this would write, so the reference cannot grow stale.
"""

from __future__ import annotations

import dataclasses
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import click
from fastapi import APIRouter
from fastapi.routing import APIRoute

from caudal.api import costs, events, gangs, keys, models, nodes, offers
from caudal.api import fleet as fleet_calls
from caudal.api.app import PREFIX
from caudal.cli import VERBS, group
from caudal.domain import errors, fleet, workload
from caudal.spec import schema
from caudal.telemetry import names

HEAD = "<!-- Written by `make docs` from the code. Do not edit. -->\n"


def cli() -> str:
    """Every verb's --help."""
    parts = [HEAD, "# The command line\n"]
    context = click.Context(group, info_name="caudal", max_content_width=110)
    parts.append(f"```text\n{group.get_help(context)}\n```\n")
    for name in VERBS:
        command = group.get_command(context, name)
        assert command is not None
        parts.extend(_help(command, context, name))
    return "\n".join(parts)


def _help(command: click.Command, parent: click.Context, name: str) -> Iterator[str]:
    context = click.Context(command, info_name=name, parent=parent, max_content_width=110)
    yield f"## `{context.command_path}`\n\n```text\n{command.get_help(context)}\n```\n"
    if isinstance(command, click.Group):
        for sub in command.list_commands(context):
            found = command.get_command(context, sub)
            assert found is not None
            yield from _help(found, context, sub)


def _kinds(kind: type[errors.CaudalError], depth: int = 0) -> Iterator[tuple[int, type[errors.CaudalError]]]:
    yield depth, kind
    for sub in sorted(kind.__subclasses__(), key=lambda k: k.__name__):
        yield from _kinds(sub, depth + 1)


def error_list() -> str:
    """Every error: its code, exit code and HTTP status."""
    rows = [
        f"| {'&nbsp;&nbsp;' * depth}`{kind.code}` | {kind.exit_code} | {kind.http_status} | {_first(kind)} |"
        for depth, kind in _kinds(errors.CaudalError)
        if kind.__module__ == errors.__name__
    ]
    head = "| code | exit code | HTTP | what it means |\n| --- | --- | --- | --- |"
    return "\n".join([HEAD, "# Errors\n", head, *rows, ""])


def _first(kind: type[Any]) -> str:
    return (kind.__doc__ or "").strip().splitlines()[0]


def files() -> str:
    """Every key of fleet, train and service files with its default."""
    parts = [
        HEAD,
        "# Fleet, train and service files\n",
        "`caudal schema` prints the JSON Schema of all three.\n",
    ]
    top = (
        ("fleet", fleet.FleetSpec, (fleet.SiteSpec, fleet.GatewaySpec, fleet.ApiSpec)),
        (
            "train",
            workload.TrainSpec,
            (
                workload.StageSpec,
                workload.TokenizerSpec,
                workload.ModelShape,
                workload.BaseSpec,
                workload.OuterSpec,
                workload.InnerSpec,
            ),
        ),
        ("service", workload.ServiceSpec, (workload.ServedModel, workload.ExternalSpec, fleet.Resources)),
    )
    for name, kind, inner in top:
        parts.append(f"## `type: {name}`\n")
        for one in (kind, *inner):
            parts.append(f"### {one.__name__}\n\n{(one.__doc__ or '').strip()}\n")
            parts.append("| key | type | default |\n| --- | --- | --- |")
            parts.extend(_field(field) for field in dataclasses.fields(one))
            parts.append("")
    schema()  # what is documented here must also have a schema
    return "\n".join(parts)


def _field(field: dataclasses.Field[Any]) -> str:
    default = "required"
    if field.default is not dataclasses.MISSING:
        default = f"`{field.default!r}`"
    elif field.default_factory is not dataclasses.MISSING:
        default = f"`{field.default_factory()!r}`"
    kind = str(field.type).replace("|", "or")
    return f"| `{field.name}` | `{kind}` | {default} |"


def metrics() -> str:
    """Every metric that `/metrics` shows."""
    rows = [f"| `{name}` | {text} |" for name, text in names.HELP.items()]
    return "\n".join([HEAD, "# Metrics\n", "| name | meaning |\n| --- | --- |", *rows, ""])


def api_calls() -> str:
    """Every call of the control API, and what `GET /api/v1/offers` says of an offer."""
    rows = []
    for module in (fleet_calls, offers, gangs, events, models, keys, costs, nodes):
        routers = [found for found in vars(module).values() if isinstance(found, APIRouter)]
        for route in (r for router in routers for r in router.routes if isinstance(r, APIRoute)):
            (method,) = route.methods
            rows.append(f"| `{method}` | `{PREFIX}{route.path}` | {' '.join(route.description.split())} |")
    parts = [HEAD, "# The control API\n", "`/api/docs` of a control process shows every field.\n"]
    parts += ["| | path | what it does |\n| --- | --- | --- |", *rows, ""]
    for view in (offers.OffersView, offers.OfferView):
        parts.append(f"## {view.__name__}\n\n{' '.join((view.__doc__ or '').split())}\n")
        parts.append("| key | type |\n| --- | --- |")
        kinds = ((f.name, str(f.type).replace("|", "or")) for f in dataclasses.fields(view))
        parts.extend(f"| `{name}` | `{kind}` |" for name, kind in kinds)
        parts.append("")
    return "\n".join(parts)


def pages() -> dict[str, str]:
    """File name → text of every page."""
    return {
        "api.md": api_calls(),
        "cli.md": cli(),
        "errors.md": error_list(),
        "files.md": files(),
        "metrics.md": metrics(),
    }


def main(folder: Path) -> None:
    """Write all pages into the folder."""
    folder.mkdir(parents=True, exist_ok=True)
    for name, text in pages().items():
        (folder / name).write_text(text)


if __name__ == "__main__":
    main(Path(sys.argv[1]))
