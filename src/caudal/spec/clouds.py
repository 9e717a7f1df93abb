"""The rules for a fleet's providers, drivers and hosts: that what is named exists, and where it may be reached."""

from __future__ import annotations

import difflib
import ipaddress
import re
from collections import Counter
from collections.abc import Iterable
from urllib.parse import urlsplit

from caudal.domain.fleet import FleetSpec, ProviderSpec
from caudal.spec.located import Located, Problems

LOCAL = "local"
FAKE = "fake"
FETCHED = ("https://", "http://", "file://", "/")
SHA256 = re.compile(r"[0-9a-f]{64}")


def check_clouds(spec: FleetSpec, tree: Located, problems: Problems) -> None:
    """Names that sites use, endpoints, hosts."""
    providers, drivers = [p.name for p in spec.providers], [d.name for d in spec.drivers]
    distinct("provider", providers, tree, "providers", problems)
    distinct("driver", drivers, tree, "drivers", problems)
    for number, site in enumerate(spec.sites):
        for key, name, known in (("provider", site.provider, providers), ("driver", site.driver, drivers)):
            if name not in (*known, LOCAL):
                text = f"{key}: the fleet has no {key} {name!r}; {did_you_mean(name, [*known, LOCAL])}"
                problems.add(tree.at(["sites", number, key]), text)
    kinds: dict[str, list[tuple[str, str]]] = {
        "providers": [(p.name, p.kind) for p in spec.providers],
        "drivers": [(d.name, d.kind) for d in spec.drivers],
    }
    for listed, rows in kinds.items():
        for number, (name, kind) in enumerate(rows):
            if name == LOCAL and kind != LOCAL:
                text = f"name: {LOCAL!r} is this machine; call the {kind} one something else"
                problems.add(tree.at([listed, number, "name"]), text)
    for number, provider in enumerate(spec.providers):
        _check_provider(spec, provider, tree, number, problems)
    for key, url, digest in (
        ("wheel", spec.nodes.wheel, spec.nodes.wheel_sha256),
        ("lock", spec.nodes.lock, spec.nodes.lock_sha256),
    ):
        if url and not url.startswith(FETCHED):
            text = f"{key}: {url!r} is no address that a machine can fetch: {', '.join(FETCHED)}"
            problems.add(tree.at(["nodes", key]), text)
        if url and not SHA256.fullmatch(digest):
            text = f"{key}_sha256: the SHA-256 of {url} is needed, in 64 small hexadecimal digits"
            problems.add(tree.at(["nodes", f"{key}_sha256"]), text)
    if spec.nodes.lock and not spec.nodes.wheel:
        problems.add(tree.at(["nodes", "lock"]), "lock: is for a wheel, and there is none")


def _check_provider(
    spec: FleetSpec, provider: ProviderSpec, tree: Located, number: int, problems: Problems
) -> None:
    here: list[str | int] = ["providers", number]
    if provider.endpoint not in ("", FAKE) and not _is_loopback_url(provider.endpoint):
        text = (
            f"endpoint: {provider.endpoint!r} is not this machine's (http://127.0.0.1:PORT); leave it out for the "
            f"cloud's own, or say {FAKE}"
        )
        problems.add(tree.at([*here, "endpoint"]), text)
    if provider.hosts and provider.kind != "hosts":
        problems.add(tree.at([*here, "hosts"]), f"hosts: a provider of kind {provider.kind} has none")
    if provider.kind == "hosts" and not provider.hosts:
        problems.add(
            tree.at(here), f"provider {provider.name}: `hosts` is needed: the machines it is made of"
        )
    distinct("host", [h.name for h in provider.hosts], tree, "hosts", problems, here)
    sites = {s.name: s for s in spec.sites}
    for place, host in enumerate(provider.hosts):
        where = tree.at([*here, "hosts", place, "site"])
        if host.site not in sites:
            problems.add(
                where, f"site: the fleet has no site {host.site!r}; {did_you_mean(host.site, sites)}"
            )
        elif sites[host.site].provider != provider.name:
            owner = sites[host.site].provider
            problems.add(where, f"site: {host.site} is of provider {owner}, and not of {provider.name}")


def did_you_mean(name: str, known: Iterable[str]) -> str:
    """The nearest name that exists, or all of them."""
    options = sorted(known)
    near = difflib.get_close_matches(name, options, n=1, cutoff=0.6)
    return f"did you mean {near[0]!r}?" if near else f"known: {', '.join(options) or 'none'}"


def distinct(
    what: str,
    names: Iterable[str],
    tree: Located,
    key: str,
    problems: Problems,
    below: Iterable[str | int] = (),
) -> None:
    """That no name is there twice; the last one is at fault."""
    listed = list(names)
    for name, count in Counter(listed).items():
        if count > 1:
            last = len(listed) - 1 - listed[::-1].index(name)
            problems.add(tree.at([*below, key, last]), f"{key}: {count} times the same {what} {name!r}")


def is_loopback(host: str) -> bool:
    """Whether an address is this machine's own."""
    try:
        return host == "localhost" or ipaddress.ip_address(host).is_loopback
    except ValueError:
        return False


def _is_loopback_url(url: str) -> bool:
    try:
        found = urlsplit(url)
        return found.scheme in ("http", "https") and is_loopback(found.hostname or "")
    except ValueError:
        return False
