"""`caudal stores`: the places where everything is kept, when there are several."""

from __future__ import annotations

import click

from caudal.cli.output import console
from caudal.domain.errors import UsageError
from caudal.store.blobs import open_blobs
from caudal.store.home import home
from caudal.store.mirror import Mirror


@click.command("stores")
@click.argument("what", type=click.Choice(["repair", "promote"]))
@click.pass_obj
def verb(root: str | None, what: str) -> None:
    """Look after the object stores, where CAUDAL_BLOBS_URL names several (with a space between them).

    \b
    repair   give the other stores what the first has and they have not
    promote  make the first store the one that decides. For when the one that was first is gone: name the
             addresses in the new order, everywhere, and promote before anything is started again.

    The first store decides what is created only once; a commit is in all stores that answer before it counts.
    """
    mirror = open_blobs(home(root).blobs_url)
    if not isinstance(mirror, Mirror):
        raise UsageError(
            "everything is kept in one store",
            where=mirror.url,
            remedy="name two in CAUDAL_BLOBS_URL, with a space between them",
        )
    if what == "promote":
        marker = mirror.promote()
        console().print(f"{marker.first} decides, under term {marker.term}")
        return
    for url, count in mirror.repair().items():
        console().print(f"{url}: {count} objects given")
