"""`caudal certificates`: what sites prove with who they are."""

from __future__ import annotations

from pathlib import Path

import click

from caudal.cli.output import console
from caudal.store.authority import ensure_certificates
from caudal.store.site_tls import site_files


@click.command("certificates")
@click.argument("folder", type=click.Path(file_okay=False, path_type=Path))
@click.argument("sites", nargs=-1, required=True)
def verb(folder: Path, sites: tuple[str, ...]) -> None:
    """Make certificates for SITES in FOLDER, for `caudal.outer(certificates=...)`.

    The first call makes an authority (`ca.pem`, and `ca.key`, which no site needs: keep it to yourself); each
    site gets SITE.pem and SITE.key, and a new pair a month before the old one ends. Copy `ca.pem` and a site's
    own two files to that site, and nothing else. Where there is no `ca.key` the certificates are your own:
    then they are only checked. `caudal up` does all this by itself.
    """
    ensure_certificates(folder, sites)
    for site in sites:
        console().print(
            f"{site}: ca.pem and {' and '.join(p.name for p in site_files(folder, site))} in {folder}"
        )
