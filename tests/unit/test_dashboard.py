"""The dashboard and the scrape example in docs say what the code says."""

from __future__ import annotations

import json
import re
from pathlib import Path
from typing import Any

import pytest
import yaml

from caudal.api.metrics import SHOWN
from caudal.domain.key import Slo
from caudal.gateway.metrics import Metrics
from caudal.telemetry import names

DOCS = Path(__file__).resolve().parents[2] / "docs"
DASHBOARD: dict[str, Any] = json.loads((DOCS / "grafana" / "caudal-gateway.json").read_text())
PANELS = [panel for panel in DASHBOARD["panels"] if panel["type"] != "row"]
NAME = re.compile(r"\bcaudal_[a-z_]+\b")
SUFFIX = re.compile(r"_(bucket|sum|count)$")


def samples() -> dict[str, set[str]]:
    """Metric → its labels, as a gateway's `/metrics` shows them once everything has happened."""
    metrics = Metrics()
    metrics.answered("m", 200)
    metrics.rescued("whole")
    one = Slo.STANDARD
    metrics.admission.queued = lambda: {one: 1}
    metrics.admission.refused[one, "overloaded"] += 1
    found: dict[str, set[str]] = {}
    for line in metrics.render(1, [("m", 1, 0)]).decode().splitlines():
        if not line.startswith("#"):
            name = re.split(r"[{ ]", line)[0]
            found.setdefault(name, set()).update(re.findall(r'(\w+)="', line))
    for name in (names.GATEWAY_EXTERNAL_SPENT, names.GATEWAY_EXTERNAL_BUDGET):
        found[name] = {"address"}  # gateway/spending.py adds them
    for name in [*SHOWN, names.RUN_SITES]:
        found[name] = {"run"}
    return found


def expressions() -> list[str]:
    return [target["expr"] for panel in PANELS for target in panel["targets"]]


def test_every_metric_of_the_dashboard_is_one_that_is_exposed() -> None:
    exposed = samples()
    used = {name for text in expressions() for name in NAME.findall(text)}
    assert used <= set(exposed)
    assert {SUFFIX.sub("", name) if name not in names.HELP else name for name in used} <= set(names.HELP)


def test_every_metric_of_a_gateway_has_its_place() -> None:
    used = {SUFFIX.sub("", name) for text in expressions() for name in NAME.findall(text)}
    wanted = {name for name in names.HELP if name.startswith("caudal_gateway_")}
    assert wanted - used == set()


def test_labels_are_those_that_the_metrics_have() -> None:
    exposed = samples()
    known = {"instance", "le"}  # Prometheus' own, and a histogram's
    for panel in PANELS:
        for target in panel["targets"]:
            labels = known | set().union(*(exposed[name] for name in NAME.findall(target["expr"])))
            grouped = re.findall(r"by \(([^)]*)\)", target["expr"])
            asked = {label.strip() for group in grouped for label in group.split(",")}
            asked |= set(re.findall(r"(\w+)=~?\"", target["expr"]))
            asked |= set(re.findall(r"{{(\w+)}}", target["legendFormat"]))
            assert asked <= labels, panel["title"]


def test_expressions_are_closed() -> None:
    for text in expressions():
        bare = re.sub(r'"[^"]*"', "", text)
        assert all(bare.count(a) == bare.count(b) for a, b in ("()", "{}", "[]")) and text.count('"') % 2 == 0


def test_grafana_can_import_it_anywhere() -> None:
    assert DASHBOARD["uid"] == "caudal-gateway" and DASHBOARD["title"] and DASHBOARD["schemaVersion"] >= 36
    assert "id" not in DASHBOARD and "__inputs" not in DASHBOARD  # it takes over nobody's dashboard
    variables = {one["name"]: one for one in DASHBOARD["templating"]["list"]}
    source = variables["datasource"]
    assert (source["type"], source["query"]) == ("datasource", "prometheus")
    text = json.dumps(DASHBOARD)
    assert set(re.findall(r"\$\{?(\w+)", text)) - {"__rate_interval", "__all"} == set(variables)
    ids = [panel["id"] for panel in DASHBOARD["panels"]]
    assert len(set(ids)) == len(ids)
    for panel in PANELS:
        assert panel["title"] and panel["datasource"] == {"type": "prometheus", "uid": "${datasource}"}
        refs = [target["refId"] for target in panel["targets"]]
        assert refs and len(set(refs)) == len(refs)
        assert all(target["datasource"] == panel["datasource"] for target in panel["targets"])


def test_panels_do_not_lie_over_each_other() -> None:
    taken: set[tuple[int, int]] = set()
    for panel in DASHBOARD["panels"]:
        at = panel["gridPos"]
        assert at["x"] + at["w"] <= 24
        cells = {(x, y) for x in range(at["x"], at["x"] + at["w"]) for y in range(at["y"], at["y"] + at["h"])}
        assert not cells & taken, panel["title"]
        taken |= cells


@pytest.mark.parametrize("job", ["caudal-gateway", "caudal-control"])
def test_the_scrape_example_is_prometheus_own(job: str) -> None:
    page = (DOCS / "howto" / "monitor.md").read_text()
    (block,) = re.findall(r"```yaml\n(scrape_configs:.*?)```", page, re.S)
    jobs = {one["job_name"]: one for one in yaml.safe_load(block)["scrape_configs"]}
    (static,) = jobs[job]["static_configs"]
    assert all(re.fullmatch(r"127\.0\.0\.1:86\d\d", target) for target in static["targets"])
    assert jobs[job].get("metrics_path", "/metrics") == "/metrics"


def test_alerts_in_docs_name_metrics_that_exist() -> None:
    page = (DOCS / "howto" / "monitor.md").read_text()
    assert set(NAME.findall(page)) <= set(samples())
