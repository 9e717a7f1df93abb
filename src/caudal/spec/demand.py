"""`type: demand` and `type: quote` files → domain/demand, with every problem and its line. Plans nothing."""

from __future__ import annotations

import difflib
import re
from collections.abc import Iterable
from pathlib import Path
from typing import Any, TypeVar

from caudal.domain.demand import (
    BY_THE_HOUR,
    COMMITTED,
    PROMISES,
    CapacityOffer,
    DemandSpec,
    QuoteSpec,
    RunDemand,
    ServiceDemand,
)
from caudal.domain.errors import SpecError
from caudal.spec.build import BAD, build
from caudal.spec.files import read_text
from caudal.spec.located import Located, Problems, describe
from caudal.spec.yaml_source import read_documents

T = TypeVar("T", DemandSpec, QuoteSpec)

MOST_MONTHS = 120
MOST_SCENARIOS = 50
EXACT = 1e-6

_MONTH = re.compile(r"[0-9]{4}-(0[1-9]|1[0-2])")


def load_demand(path: Path) -> DemandSpec:
    """The demand of a file. Raises SpecError with every problem, NotFound."""
    return _load(path, "demand", DemandSpec, check_demand)


def load_quote(path: Path) -> QuoteSpec:
    """The quote of a file. Raises SpecError with every problem, NotFound."""
    return _load(path, "quote", QuoteSpec, _check_quote)


def _load(path: Path, kind: str, cls: type[T], check: Any) -> T:
    problems = Problems()
    documents = read_documents(read_text(path), str(path), problems)
    if len(documents) != 1:
        raise SpecError(
            f"one document with `type: {kind}` is expected, {len(documents)} found", where=str(path)
        )
    tree = documents[0]
    said = tree.value.get("type") if isinstance(tree.value, dict) else None
    if said is None or said.value != kind:
        found = describe(said.value) if said is not None else "nothing"
        problems.add(said.where if said else tree.where, f"type: expected {kind}, found {found}")
        problems.raise_if_any()
    built = build(cls, tree, problems, kind, ignore="type")
    if built is not BAD:
        check(built, tree, problems)
    problems.raise_if_any()
    assert isinstance(built, cls)
    return built


def check_demand(spec: DemandSpec, tree: Located, problems: Problems) -> None:
    """The rules that look at several fields."""
    _month(spec.first, tree, ["first"], problems)
    if not 1 <= spec.months <= MOST_MONTHS:
        problems.add(tree.at(["months"]), f"months: expected 1 to {MOST_MONTHS}, found {spec.months}")
    if not spec.services and not spec.runs:
        problems.add(tree.where, "nothing is asked for: give `services` or `runs`")
    if not spec.offers and not spec.held:
        problems.add(tree.where, "nothing can be had: give `offers` or `held`")
    _positive(spec.max_provider_share, 1.0, "max_provider_share", tree, ["max_provider_share"], problems)
    if not -0.5 <= spec.discount_rate_per_year <= 10.0:
        text = "discount_rate_per_year: expected a rate such as 0.08"
        problems.add(tree.at(["discount_rate_per_year"]), text)
    _check_scenarios(spec, tree, problems)
    _check_load(spec, tree, problems)
    _distinct("offers", [one.name for one in spec.offers], tree, problems)
    _distinct("services", [one.name for one in spec.services], tree, problems)
    _distinct("runs", [one.name for one in spec.runs], tree, problems)
    for number, offer in enumerate(spec.offers):
        check_offer(offer, tree, ["offers", number], problems)
    chips = {o.chip for o in spec.offers if o.chip} | {h.chip for h in spec.held}
    _check_demands(spec, chips, tree, problems)
    for number, held in enumerate(spec.held):
        where: list[str | int] = ["held", number]
        _span(held.first, held.last, held.name, tree, where, problems)
        _amount(held.chips, "chips", tree, [*where, "chips"], problems)


def _check_quote(spec: QuoteSpec, tree: Located, problems: Problems) -> None:
    check_offer(spec.offer, tree, ["offer"], problems)
    if spec.offer.kind in BY_THE_HOUR:
        text = "kind: a quote is something to sign: reserved, block, own, savings or spend"
        problems.add(tree.at(["offer", "kind"]), text)


def check_offer(offer: CapacityOffer, tree: Located, where: list[str | int], problems: Problems) -> None:
    """One offer: what its kind needs, and what it has no use for."""

    def wrong(key: str, text: str) -> None:
        problems.add(tree.at([*where, key]), f"{offer.name}: {key}: {text}")

    if offer.kind not in PROMISES:
        if not offer.chip:
            wrong("chip", "is missing")
        if offer.price_usd_per_chip_hour <= 0 and offer.kind != "own":
            wrong("price_usd_per_chip_hour", "expected dollars above 0")
    else:
        if offer.unit_usd <= 0:
            wrong("unit_usd", "expected dollars above 0: what one unit of the commitment is")
        if not 0 < offer.discount < 1:
            wrong("discount", f"expected a share between 0 and 1, found {offer.discount}")
        if not 1 <= offer.max_units <= 1_000_000:
            wrong("max_units", "expected 1 to 1,000,000")
    if not 1 <= offer.term_months <= 240:
        wrong("term_months", f"expected 1 to 240, found {offer.term_months}")
    if offer.unit_chips <= 0:
        wrong("unit_chips", "expected a number above 0")
    if offer.max_chips < 0 or (offer.kind in COMMITTED and 0 < offer.max_chips < offer.unit_chips):
        wrong("max_chips", f"expected 0 (any number) or at least one unit of {offer.unit_chips:g}")
    if not 0 <= offer.prepaid <= 1:
        wrong("prepaid", f"expected a share from 0 to 1, found {offer.prepaid}")
    if not 0 <= offer.interrupted < 1:
        wrong("interrupted", f"expected a share from 0 to below 1, found {offer.interrupted}")
    if any(not 0 <= share <= 1 for share in offer.ramp) or list(offer.ramp) != sorted(offer.ramp):
        wrong("ramp", "expected shares from 0 to 1 that never fall")
    for number, text in enumerate(offer.starts):
        _month(text, tree, [*where, "starts", number], problems)


def _check_scenarios(spec: DemandSpec, tree: Located, problems: Problems) -> None:
    where = tree.at(["scenarios"])
    if not 1 <= len(spec.scenarios) <= MOST_SCENARIOS:
        problems.add(where, f"scenarios: expected 1 to {MOST_SCENARIOS}, found {len(spec.scenarios)}")
        return
    total = sum(one.probability for one in spec.scenarios)
    if abs(total - 1.0) > EXACT:
        problems.add(where, f"scenarios: the probabilities add up to {total:g}, not to 1")
    _distinct("scenarios", [one.name for one in spec.scenarios], tree, problems)
    for number, one in enumerate(spec.scenarios):
        path: list[str | int] = ["scenarios", number]
        _positive(one.probability, 1.0, "probability", tree, [*path, "probability"], problems)
        _positive(one.growth_per_year, 100.0, "growth_per_year", tree, [*path, "growth_per_year"], problems)
        if one.runs < 0:
            problems.add(tree.at([*path, "runs"]), f"runs: expected 0 or more, found {one.runs}")


def _check_load(spec: DemandSpec, tree: Located, problems: Problems) -> None:
    where = tree.at(["load"])
    shares = sum(block.share for block in spec.load)
    mean = sum(block.share * block.load for block in spec.load)
    if not spec.load or any(block.share <= 0 or block.load < 0 for block in spec.load):
        problems.add(where, "load: expected blocks with a share above 0 and a load of 0 or more")
    elif abs(shares - 1.0) > EXACT:
        problems.add(where, f"load: the shares add up to {shares:g}, not to 1")
    elif abs(mean - 1.0) > 1e-3:
        text = f"load: share × load adds up to {mean:g}, not to 1: loads are against the mean"
        problems.add(where, text)


def _check_demands(spec: DemandSpec, chips: set[str], tree: Located, problems: Problems) -> None:
    for number, service in enumerate(spec.services):
        where: list[str | int] = ["services", number]
        _check_chips(service, chips, tree, where, problems)
        _amount(service.mean_chips, "mean_chips", tree, [*where, "mean_chips"], problems)
        if not 0 <= service.survives <= 1:
            text = f"survives: expected a share from 0 to 1, found {service.survives}"
            problems.add(tree.at([*where, "survives"]), text)
    for number, run in enumerate(spec.runs):
        where = ["runs", number]
        _check_chips(run, chips, tree, where, problems)
        _amount(run.chip_hours, "chip_hours", tree, [*where, "chip_hours"], problems)
        if run.max_chips < 0:
            problems.add(tree.at([*where, "max_chips"]), "max_chips: expected 0 (any) or more")
        if not run.first or not run.last:
            problems.add(tree.at(where), f"{run.name}: `first` and `last` are needed")


def _check_chips(
    demand: ServiceDemand | RunDemand,
    chips: set[str],
    tree: Located,
    where: list[str | int],
    problems: Problems,
) -> None:
    if not demand.chips:
        problems.add(tree.at([*where, "chips"]), f"{demand.name}: chips: at least one is needed")
    for which, one in enumerate(demand.chips):
        place = [*where, "chips", which, "chip"]
        _amount(one.speed, "speed", tree, [*where, "chips", which, "speed"], problems)
        if one.chip not in chips:
            problems.add(tree.at(place), f"{demand.name}: {_unknown(one.chip, chips)}")
    _span(demand.first, demand.last, demand.name, tree, where, problems)


def _unknown(chip: str, chips: set[str]) -> str:
    near = difflib.get_close_matches(chip, sorted(chips), n=1, cutoff=0.5)
    hint = f"did you mean {near[0]!r}?" if near else f"there are {', '.join(sorted(chips)) or 'none'}"
    return f"no offer has the chip {chip!r}; {hint}"


def _span(
    first: str, last: str, name: str, tree: Located, where: Iterable[str | int], problems: Problems
) -> None:
    good = [
        not text or _month(text, tree, [*where, key], problems)
        for key, text in (("first", first), ("last", last))
    ]
    if all(good) and first and last and last < first:
        problems.add(tree.at([*where, "last"]), f"{name}: it ends ({last}) before it starts ({first})")


def _month(text: str, tree: Located, where: list[str | int], problems: Problems) -> bool:
    if _MONTH.fullmatch(text):
        return True
    problems.add(tree.at(where), f"{where[-1]}: expected a month such as 2027-03, found {text!r}")
    return False


def _amount(value: float, key: str, tree: Located, where: list[str | int], problems: Problems) -> None:
    if not 0 < value <= 1e12:
        problems.add(tree.at(where), f"{key}: expected a number above 0, found {value:g}")


def _positive(
    value: float, most: float, key: str, tree: Located, where: list[str | int], problems: Problems
) -> None:
    if not 0 < value <= most:
        problems.add(
            tree.at(where), f"{key}: expected a number above 0 and at most {most:g}, found {value:g}"
        )


def _distinct(key: str, names: list[str], tree: Located, problems: Problems) -> None:
    for number, name in enumerate(names):
        if name in names[:number]:
            problems.add(tree.at([key, number, "name"]), f"name: a second {name!r} in {key}")
