"""The rules and dashboards state what the gateway's code does, and nothing of them is left untold or untested."""

from __future__ import annotations

import json
import re
from itertools import combinations
from pathlib import Path
from typing import Any

import pytest
import yaml

from pipeline.peers.slo import FAULTS, OBJECTIVES, Objective
from pipeline.serving.gateway.metrics import Metrics
from tests.support.prometheus import DASHBOARDS, MANIFESTS, families, names, rules

DOCS = Path(__file__).parents[2] / "docs/telemetry.md"
ALERTS = [rule for rule in rules() if "alert" in rule]


def _recorded(name: str, slo: str) -> str:
    (rule,) = [r for r in rules() if r.get("record") == name and r.get("labels") == {"slo": slo}]
    return str(rule["expr"])


@pytest.mark.parametrize("objective", OBJECTIVES, ids=lambda o: o.name)
def test_an_objective_is_the_same_in_code_and_rules(objective: Objective) -> None:
    """Budget, pool and bound are those of the code, and the bound is one of the histograms' buckets."""
    assert float(_recorded("slo:budget:ratio", objective.name)[len("vector(") : -1]) == pytest.approx(objective.budget)
    missed = _recorded("slo:missed:rate5m", objective.name)
    assert ('pool="edge"' in missed) == (objective.pool == "edge")
    if objective.within_ms is None:
        return
    bounds = set(re.findall(r'le="([\d.]+)"', missed))
    assert bounds == {str(objective.within_ms / 1000)}
    metrics = Metrics()
    metrics.first_token("edge").observe(1)
    metrics.duration("chat", "edge", "answered", "false").observe(1)
    text = metrics.exposition().decode()
    for name in ("gateway_time_to_first_token_seconds", "gateway_request_duration_seconds"):
        assert re.search(rf'{name}_bucket{{.*le="{objective.within_ms / 1000}"', text)


def test_what_counts_as_a_fault_is_the_same_in_code_and_rules() -> None:
    """The availability rule lists the very codes, and each of them is a series from the start."""
    found = re.search(r'code=~"([^"]*)"', _recorded("slo:missed:rate5m", "availability"))
    assert found
    assert set(found[1].split("|")) == FAULTS
    text = Metrics().exposition().decode()
    assert all(f'gateway_refused_total{{code="{code}"}} 0.0' in text for code in FAULTS)


@pytest.mark.parametrize("alert", ALERTS, ids=lambda a: a["alert"])
def test_an_alert_is_tested_and_explained(alert: dict[str, Any]) -> None:
    """It fires in a test of promtool's, its text says what is wrong, and its runbook is a section that is there."""
    cases = [
        case
        for path in MANIFESTS.glob("tests/*.yml")
        for test in yaml.safe_load(path.read_text())["tests"]
        for case in test.get("alert_rule_test", ())
    ]
    assert any(case["alertname"] == alert["alert"] and case["exp_alerts"] for case in cases)
    assert alert["labels"]["severity"] in {"page", "ticket"}
    assert alert["annotations"]["summary"]
    page, _, anchor = alert["annotations"]["runbook"].partition("#")
    headings = re.findall(r"^#+ (.*)$", DOCS.read_text(), re.MULTILINE)
    assert page == "docs/telemetry.md"
    assert anchor in {re.sub(r"[^a-z0-9 -]", "", h.lower()).replace(" ", "-") for h in headings}


@pytest.mark.parametrize("path", DASHBOARDS, ids=lambda p: p.stem)
def test_a_dashboard_is_well_formed(path: Path) -> None:
    """Panels have ids of their own and do not overlap, say what they show, and ask the data source that is chosen."""
    document = json.loads(path.read_text())
    assert document["id"] is None
    assert document["uid"] == f"edge-release-{path.stem}"
    variables = {v["name"]: v for v in document["templating"]["list"]}
    assert variables["datasource"]["type"] == "datasource"
    panels = document["panels"]
    assert len({p["id"] for p in panels}) == len(panels)
    for one, other in combinations([p["gridPos"] for p in panels], 2):
        beside = one["x"] + one["w"] <= other["x"] or other["x"] + other["w"] <= one["x"]
        assert beside or one["y"] + one["h"] <= other["y"] or other["y"] + other["h"] <= one["y"]
    for panel in panels:
        assert panel["gridPos"]["x"] + panel["gridPos"]["w"] <= 24
        if panel["type"] == "row":
            continue
        assert panel["title"]
        assert panel["description"]
        for asking in (panel, *panel["targets"]):
            assert asking["datasource"] == {"type": "prometheus", "uid": "${datasource}"}
        assert len({t["refId"] for t in panel["targets"]}) == len(panel["targets"])
        used = set(re.findall(r"\$(\w+)", " ".join(t["expr"] for t in panel["targets"])))
        assert used <= {*variables, "__rate_interval"}


def test_names_are_read_out_of_expressions() -> None:
    """What the other tests rely on: metrics, without functions, labels, strings, durations and words."""
    expression = (
        'sum by (a, le) (rate(x_total{b=~"c|d", e="f(g)"}[5m])) / on (h) group_left (i) j:k:l > 1.5 or vector(0)'
    )
    assert names(expression) == {"x_total", "j:k:l"}
    text = '# HELP a b\n# TYPE a histogram\na_bucket{le="1"} 1\n# TYPE c_total counter\n'
    assert families(text) == {"a_bucket", "a_sum", "a_count", "c_total"}
