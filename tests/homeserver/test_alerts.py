"""The alerts and the dashboard ask for what there is, and there is an alert for each promise."""

import re
import shutil
import subprocess
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import orjson
import pytest
import yaml

from homeserver.figure_names import FIGURES

OPERATIONS = Path(__file__).parents[2] / "docs" / "operations"
ALERTS = OPERATIONS / "alerts.yaml"
PROMTOOL = shutil.which("promtool")
PROMISES = {"writes", "devices", "outbound", "inbound", "joins"}

FOREIGN = {"up", "instance", "job"}
"""What Prometheus adds itself."""
FUNCTIONS = {"sum", "max", "min", "rate", "increase", "delta", "histogram_quantile", "predict_linear", "topk", "time"}
WORDS = {"by", "on", "and", "or", "group_left", "le", "label_values"}
_TOKEN = re.compile(
    r"""\s*(?:(?P<text>"[^"]*")|(?P<range>\[[^\]]*\])|(?P<number>\d+(?:\.\d+)?)|(?P<name>[a-zA-Z_:][\w:]*)|"""
    r"""(?P<sign>=~|!~|!=|==|<=|>=|[-+*/<>=(){},]))"""
)


def rules() -> list[dict[str, Any]]:
    groups = yaml.safe_load(ALERTS.read_text(encoding="utf-8"))["groups"]
    return [rule for group in groups for rule in group["rules"]]


def panel_queries() -> Iterator[tuple[str, str]]:
    """Each query of the dashboard, with the title of its panel."""
    board = orjson.loads((OPERATIONS / "dashboard.json").read_bytes())
    for panel in board["panels"]:
        for target in panel.get("targets", ()):
            yield panel["title"], target["expr"]
    for variable in board["templating"]["list"]:
        if variable["type"] == "query":
            yield variable["name"], variable["query"]["query"]


def queries() -> list[tuple[str, str]]:
    return [*((rule["alert"], rule["expr"]) for rule in rules()), *panel_queries()]


def tokens(query: str) -> list[tuple[str, str]]:
    """The kind and text of each part of a query; fails where it is none."""
    found, at = [], 0
    while query[at:].strip():
        match = _TOKEN.match(query, at)
        assert match is not None, query[at:]
        found.append((str(match.lastgroup), match[0].strip()))
        at = match.end()
    return found


def labels_of(name: str) -> set[str]:
    """The labels that a series may have; fails where there is no such series."""
    figure = re.sub(r"_(bucket|sum|count)$", "", name.removeprefix("hearth_"))
    described = FIGURES.get(figure) or FIGURES.get(name.removeprefix("hearth_"))
    assert described is not None, f"there is no {name}"
    if described.is_histogram:
        assert name.endswith(("_bucket", "_sum", "_count")), f"{name} is a histogram"
        return {*described.labels, "le"} if name.endswith("_bucket") else {*described.labels}
    assert name == f"hearth_{figure}", f"{name} is no histogram"
    return {*described.labels}


@pytest.mark.parametrize(("title", "query"), queries())
def test_a_query_asks_for_what_there_is(title: str, query: str) -> None:
    parts = tokens(query)
    names = [text for kind, text in parts if kind == "name"]
    series = [name for name in names if name.startswith("hearth_")]
    assert series or "up" in names, title

    known = FOREIGN | FUNCTIONS | WORDS | set(series)
    for name in series:
        known |= labels_of(name)
    assert {*names} <= known, title

    opened: list[str] = []
    for kind, text in parts:
        if kind == "sign" and text in "({":
            opened.append({"(": ")", "{": "}"}[text])
        elif kind == "sign" and text in ")}":
            assert opened.pop() == text, title
    assert not opened, title


@pytest.mark.parametrize(("title", "query"), queries())
def test_counters_are_asked_for_their_growth_and_states_for_what_they_are(title: str, query: str) -> None:
    grows = re.findall(r"(?:rate|increase)\(\s*(hearth_\w+)", query)
    for name in re.findall(r"hearth_\w+", query):
        is_counter = name.endswith(("_total", "_bucket", "_sum", "_count"))
        assert is_counter == (name in grows), f"{title}: {name}"


def test_every_figure_is_on_the_dashboard() -> None:
    shown = " ".join(query for _, query in panel_queries())
    missing = [name for name in FIGURES if re.search(rf"hearth_{name}(_bucket|_sum|_count)?\b", shown) is None]
    assert missing == []


def test_every_alert_says_what_to_do_and_how_soon() -> None:
    names = [rule["alert"] for rule in rules()]
    assert len(names) == len(set(names))
    for rule in rules():
        assert {*rule} <= {"alert", "expr", "for", "labels", "annotations"}
        assert re.fullmatch(r"Hearth[A-Z]\w+", rule["alert"])
        assert re.fullmatch(r"\d+[mh]", rule.get("for", "1m"))
        assert rule["labels"]["severity"] in {"page", "ticket"}
        assert {*rule["annotations"]} == {"summary", "description"}
        assert len(rule["annotations"]["description"]) > 40
        assert re.search(r"[<>=]", rule["expr"])


def test_there_is_an_alert_for_each_promise() -> None:
    assert {rule["labels"]["promise"] for rule in rules()} == PROMISES | {"none"}


def test_the_dashboard_has_no_two_panels_in_one_place() -> None:
    panels = orjson.loads((OPERATIONS / "dashboard.json").read_bytes())["panels"]
    assert len({panel["id"] for panel in panels}) == len(panels)
    places = {(panel["gridPos"]["x"], panel["gridPos"]["y"]) for panel in panels}
    assert len(places) == len(panels)
    assert all(panel["gridPos"]["x"] + panel["gridPos"]["w"] <= 24 for panel in panels)


@pytest.mark.skipif(PROMTOOL is None, reason="promtool, of Prometheus, is not installed")
def test_prometheus_takes_the_rules() -> None:
    found = subprocess.run([str(PROMTOOL), "check", "rules", str(ALERTS)], capture_output=True, text=True, check=False)
    assert found.returncode == 0, found.stdout + found.stderr
