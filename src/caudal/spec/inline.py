"""Providers and drivers that a site writes in place: `provider: {kind: aws, endpoint: fake}` becomes an entry of the
fleet's own list, and the site names it. Looks at the tree only; what an entry may say is checked later."""

from __future__ import annotations

from typing import Any

from caudal.spec.located import Located, Problems

LISTS = {"provider": "providers", "driver": "drivers"}


def hoist(tree: Located, problems: Problems) -> Located:
    """The tree of a fleet with every such table moved to its list. Its name is its `name`, or else its `kind`; the
    same table at several sites is one entry."""
    if not isinstance(tree.value, dict):
        return tree
    sites = tree.value.get("sites")
    if sites is None or not isinstance(sites.value, list):
        return tree
    found: dict[str, dict[str, Located]] = {key: {} for key in LISTS}
    named = [_named(site, found, problems) for site in sites.value]
    top = {**tree.value, "sites": Located(named, sites.where)}
    for key, listed in LISTS.items():
        if found[key]:
            before = top.get(listed)
            rows = before.value if before is not None and isinstance(before.value, list) else []
            where = before.where if before is not None else sites.where
            if before is None or isinstance(before.value, list):
                top[listed] = Located([*rows, *found[key].values()], where)
    return Located(top, tree.where)


def _named(site: Located, found: dict[str, dict[str, Located]], problems: Problems) -> Located:
    if not isinstance(site.value, dict):
        return site
    values = dict(site.value)
    for key in LISTS:
        table = values.get(key)
        if table is None or not isinstance(table.value, dict):
            continue
        name = table.value.get("name") or table.value.get("kind")
        if name is None or not isinstance(name.value, str):
            problems.add(table.where, f"{key}: the key 'kind' is missing, or is no text")
            values[key] = Located("local", table.where)
            continue
        entry = Located({"name": name, **table.value}, table.where)
        first = found[key].setdefault(name.value, entry)
        if plain(first) != plain(entry):
            text = f"{key}: another {key} called {name.value!r} is at {first.where}; give one a `name`"
            problems.add(table.where, text)
        values[key] = Located(name.value, table.where)
    return Located(values, site.where)


def plain(tree: Located) -> Any:
    """The values of a tree without their places."""
    if isinstance(tree.value, dict):
        return {key: plain(inner) for key, inner in tree.value.items()}
    if isinstance(tree.value, list):
        return [plain(inner) for inner in tree.value]
    return tree.value
