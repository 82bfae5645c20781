"""The dashboard and the alerts ask for metrics that exist, by labels that they have."""

from __future__ import annotations

import json
import re
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import promql_parser
import pytest
import yaml
from prometheus_client import CollectorRegistry

from app.http.application import create_app
from app.settings import Settings

ROOT = Path(__file__).resolve().parent.parent
FILES = ROOT / "deploy" / "chart" / "files"
REFERENCE = (ROOT / "docs" / "reference.md").read_text(encoding="utf-8")
DASHBOARD = json.loads((FILES / "dashboard.json").read_text(encoding="utf-8"))
ALERTS = yaml.safe_load((FILES / "alerts.yml").read_text(encoding="utf-8"))["groups"][0]["rules"]
TRIGGER = "max(taesar_unfinished_chunks)"

QUERIES = [
    *(target["expr"] for panel in DASHBOARD["panels"] for target in panel["targets"]),
    *(rule["expr"] for rule in ALERTS),
    TRIGGER,
]


def exposed() -> dict[str, set[str]]:
    """Every series of an API process, a worker's among them -> its labels: ours as docs/reference.md has them."""
    registry = CollectorRegistry()
    create_app(Settings.model_construct(), registry=registry)
    names = {sample.name: set(sample.labels) for family in registry.collect() for sample in family.samples}
    rows = re.findall(r"^\| `(taesar_\w+)` \| (\w+) \| .* \| ([\w, ]+) \|$", REFERENCE, re.MULTILINE)
    for name, kind, labels in rows:
        has = set() if labels == "none" else set(labels.split(", "))
        if kind == "histogram":
            names |= {f"{name}_bucket": has | {"le"}, f"{name}_sum": has, f"{name}_count": has}
        else:
            names[name] = has
    assert len(rows) > 15
    return names


def selectors(query: Any) -> Iterator[Any]:
    """Every metric that a parsed query asks for."""
    if isinstance(query, promql_parser.VectorSelector):
        yield query
        return
    for name in ("expr", "lhs", "rhs", "vector_selector", "param"):
        inside = getattr(query, name, None)
        if inside is not None:
            yield from selectors(inside)
    for argument in getattr(query, "args", None) or ():
        yield from selectors(argument)


@pytest.fixture(scope="module")
def known() -> dict[str, set[str]]:
    return exposed()


@pytest.mark.parametrize("query", QUERIES)
def test_a_query_can_be_parsed_and_asks_for_what_is_exposed(query, known):
    asked = list(selectors(promql_parser.parse(query)))

    assert asked
    for selector in asked:
        assert selector.name in known, query
        assert {matcher.name for matcher in selector.matchers.matchers} <= known[selector.name], query


def test_the_check_knows_a_name_and_a_label_that_are_not_there(known):
    (wrong,) = selectors(promql_parser.parse('rate(taesar_http_request_total{code="500"}[5m])'))

    assert wrong.name not in known
    assert "code" not in known["taesar_http_requests_total"]


def test_every_metric_of_ours_is_on_the_dashboard_or_in_an_alert(known):
    """One that nobody looks at is not worth its place."""
    asked = {selector.name for query in QUERIES for selector in selectors(promql_parser.parse(query))}
    parts = ("_created", "_sum", "_count")
    ours = {name for name in known if name.startswith("taesar_") and not name.endswith(parts)}
    unseen = {name for name in ours if not any(found.startswith(name.removesuffix("_bucket")) for found in asked)}

    assert unseen == set()


def test_every_alert_says_how_bad_it_is_and_what_to_do():
    for rule in ALERTS:
        assert rule["labels"]["severity"] in ("warning", "critical")
        assert rule["annotations"]["summary"]
        assert rule["annotations"]["what_to_do"]


def test_the_scaler_of_the_chart_asks_what_is_checked_here():
    template = (FILES.parent / "templates" / "worker.yaml").read_text(encoding="utf-8")

    assert TRIGGER.removesuffix(")") in template
