"""Example alerts of the documentation: rules that parse, and metrics that exist."""

import re
from pathlib import Path
from typing import Any

import yaml

from services.prober.metrics import ProberMetrics
from services.prober.tenants.gauges import TenantMetrics
from servox.telemetry import Metrics

PAGE = Path(__file__).parents[2] / "docs" / "tenants.md"


def rules() -> list[dict[str, Any]]:
    blocks = re.findall(r"```yaml\n(.*?)```", PAGE.read_text(), re.DOTALL)
    documents = [yaml.safe_load(block) for block in blocks]
    found = [document for document in documents if document.get("kind") == "PrometheusRule"]
    assert found
    return [rule for document in found for group in document["spec"]["groups"] for rule in group["rules"]]


def test_alerts_are_of_metrics_that_exist() -> None:
    shown = Metrics()
    ProberMetrics(shown)
    TenantMetrics(shown.registry, list, most=0)
    known = {f"{family.name}{'_total' if family.type == 'counter' else ''}" for family in shown.registry.collect()}
    for rule in rules():
        named = set(re.findall(r"servox_\w+", rule["expr"]))
        assert named
        assert named <= known, named - known
        assert rule["expr"].count("(") == rule["expr"].count(")")


def test_alerts_say_what_to_do() -> None:
    for rule in rules():
        assert set(rule) == {"alert", "expr", "for", "labels", "annotations"}
        assert re.fullmatch(r"\d+[mhd]", rule["for"])
        assert rule["annotations"]["summary"]
