# SPDX-License-Identifier: GPL-3.0-or-later
"""Alert rules, dashboard and manual name metrics and labels that there are, and commands that exist."""

from __future__ import annotations

import json
import re
from collections.abc import Iterator
from pathlib import Path

import click
import pytest
from daemonprocess import TOP
from prometheusserver import DASHBOARD, EXAMPLES, PANELS, expressions_of, promtool

from gatepost.admin.command import main
from gatepost.service import metrics
from gatepost.service.metrics import Counter, Gauge, Histogram, Metric

ALERTS = (EXAMPLES / "alerts.yml").read_text()
ALERT_TESTS = (EXAMPLES / "alerts.test.yml").read_text()
MANUAL = (TOP / "packaging/man/gatepost.8").read_text()
OF_PROMETHEUS = {"instance", "job", "cluster", "le"}


def expressions_of_rules() -> list[str]:
    """Return the expressions of all rules, each in one line, without the names of recording rules."""
    found = re.findall(r"^ +expr: (?:>-\n)?(.*(?:\n {10}\S.*)*)", ALERTS, re.MULTILINE)
    return [re.sub(r"\w+:gatepost_\w+:\w+", "recorded", " ".join(text.split())) for text in found]


OF_DASHBOARD = [text for panel in PANELS for text in expressions_of(panel)]
EXPRESSIONS = [*expressions_of_rules(), *OF_DASHBOARD]
ALERT_NAMES = re.findall(r"- alert: (\w+)", ALERTS)


def metric(name: str) -> Metric:
    """Return the metric that a sample's name is of. Raises KeyError."""
    known = metrics.BY_NAME.get(name)
    if known is None and isinstance(found := metrics.BY_NAME[re.sub("_(bucket|count|sum)$", "", name)], Histogram):
        return found
    assert known is not None
    assert not isinstance(known, Histogram)
    return known


def selectors(expression: str) -> Iterator[tuple[Metric, set[str]]]:
    """Yield each metric of an expression with the labels that it is selected by."""
    for name, braces in re.findall(r"\b(gatepost_\w+)(?:\{(.*?)\})?", expression):
        yield metric(name), set(re.findall(r'(\w+)\s*(?:=~|!~|!=|=)\s*"', braces))


# The alert rules


def test_promtool_finds_the_rules_right() -> None:
    checked = promtool("check", "rules", "--lint=all", "--lint-fatal", "alerts.yml")
    assert (checked.returncode, checked.stderr) == (0, "")
    assert f"{len(expressions_of_rules())} rules found" in checked.stdout


def test_promtool_finds_the_configuration_right() -> None:
    checked = promtool("check", "config", "prometheus.yml")
    assert (checked.returncode, checked.stderr) == (0, "")


def test_each_alert_fires_and_does_not() -> None:
    checked = promtool("test", "rules", "alerts.test.yml")
    assert (checked.returncode, checked.stderr) == (0, ""), checked.stdout + checked.stderr


@pytest.mark.parametrize("name", ALERT_NAMES)
def test_each_alert_has_a_test_in_which_it_fires(name: str) -> None:
    assert f'{{alertname="{name}", alertstate="firing"' in ALERT_TESTS


def test_the_unit_tests_notice_a_rule_that_is_wrong(tmp_path: Path) -> None:
    (tmp_path / "alerts.yml").write_text(ALERTS.replace("14 * 86400", "1 * 86400"))
    head, tests = ALERT_TESTS.split("\n  - name: ", 1)[0], ALERT_TESTS.split("\n  # The clock of these")[1]
    (tmp_path / "alerts.test.yml").write_text(f"{head}\n  # {tests}")
    checked = promtool("test", "rules", str(tmp_path / "alerts.test.yml"))
    assert checked.returncode == 1
    assert "GatepostCertificateEnds" in checked.stdout + checked.stderr


@pytest.mark.parametrize("alert", re.findall(r"- alert: [\s\S]*?(?=\n\n|\Z)", ALERTS), ids=ALERT_NAMES)
def test_each_alert_says_how_bad_it_is_what_it_means_and_which_command_helps(alert: str) -> None:
    name = alert.split()[2]
    assert re.search(r"labels: \{severity: (critical|warning)\}", alert)
    summary, description = alert.split("summary:")[1].split("description:")
    assert summary.strip()
    assert re.search(r"`(gatepost|systemctl|journalctl) ", description)
    fired = re.findall(rf'\{{alertname="{name}", (.*?)\}}', ALERT_TESTS)
    there = {label for labels in fired for label in re.findall(r'(\w+)="', labels)}
    assert set(re.findall(r"\$labels\.(\w+)", alert)) <= there


def test_the_commands_that_alerts_name_exist() -> None:
    named = re.findall(r"`gatepost ([a-z ]+)", " ".join((ALERTS + (EXAMPLES / "README.md").read_text()).split()))
    assert len(named) > 20
    for words in named:
        command: click.Command = main
        for word in words.split():
            if isinstance(command, click.Group):
                found = command.get_command(click.Context(command), word)
                assert found, words
                command = found


def test_the_readme_tells_of_every_alert() -> None:
    text = (EXAMPLES / "README.md").read_text()
    assert [name for name in ALERT_NAMES if f"`{name}`" not in text] == []


# The dashboard


def test_every_expression_of_the_dashboard_parses(tmp_path: Path) -> None:
    rules = [{"record": f"panel_{number}", "expr": text} for number, text in enumerate(OF_DASHBOARD)]
    file = tmp_path / "dashboard.json"  # JSON is YAML
    file.write_text(json.dumps({"groups": [{"name": "dashboard", "rules": rules}]}))
    checked = promtool("check", "rules", str(file))
    assert (checked.returncode, checked.stderr) == (0, "")
    assert f"{len(rules)} rules found" in checked.stdout


def test_the_dashboard_shows_every_metric() -> None:
    shown = {found for text in OF_DASHBOARD for found, _ in selectors(text)}
    assert [item.name for item in metrics.CATALOGUE if item not in shown] == []


def test_legends_name_labels_that_the_expression_keeps() -> None:
    for panel in PANELS:
        for target in panel["targets"]:
            legend = set(re.findall(r"\{\{(\w+)\}\}", target["legendFormat"]))
            kept = set(re.findall(r"\w+", " ".join(re.findall(r"by \((.*?)\)", target["expr"]))))
            kept = kept or {label for found, _ in selectors(target["expr"]) for label in found.labels} | OF_PROMETHEUS
            assert legend <= kept, target["expr"]


def test_the_dashboard_can_be_imported_anywhere() -> None:
    """Grafana 9 and later: no identifiers of another Grafana, one variable for the data source."""
    assert (DASHBOARD["id"], DASHBOARD["uid"], DASHBOARD["schemaVersion"]) == (None, "gatepost", 37)
    variables = {item["name"]: item for item in DASHBOARD["templating"]["list"]}
    assert list(variables) == ["datasource", "instance", "organization"]
    assert (variables["datasource"]["type"], variables["datasource"]["query"]) == ("datasource", "prometheus")
    source = {"type": "prometheus", "uid": "${datasource}"}
    assert all(variables[name]["datasource"] == source for name in ("instance", "organization"))
    for panel in PANELS:
        assert panel["datasource"] == source
        assert all(target["datasource"] == source for target in panel["targets"])
        assert all("$instance" in target["expr"] for target in panel["targets"])
    numbers = [panel["id"] for panel in DASHBOARD["panels"]]
    assert len(set(numbers)) == len(numbers)
    assert "__inputs" not in DASHBOARD


def test_the_variables_of_the_dashboard_are_labels_that_there_are() -> None:
    for item in DASHBOARD["templating"]["list"][1:]:
        found = re.fullmatch(r"label_values\((\w+), (\w+)\)", item["query"]["query"])
        assert found
        assert found[2] in {*metric(found[1]).labels, *OF_PROMETHEUS}


def test_panels_lie_beside_each_other_and_do_not_overlap() -> None:
    taken: set[tuple[int, int]] = set()
    for panel in DASHBOARD["panels"]:
        at = panel["gridPos"]
        cells = {(at["x"] + x, at["y"] + y) for x in range(at["w"]) for y in range(at["h"])}
        assert at["x"] + at["w"] <= 24
        assert not cells & taken, panel["title"]
        taken |= cells


# Both


@pytest.mark.parametrize("expression", EXPRESSIONS)
def test_an_expression_names_metrics_and_labels_that_there_are(expression: str) -> None:
    found = list(selectors(expression))
    for item, labels in found:
        assert labels <= {*item.labels, *OF_PROMETHEUS}, item.name
    there = {label for item, _ in found for label in item.labels} | OF_PROMETHEUS
    if "recorded" not in expression:
        assert set(re.findall(r"\w+", " ".join(re.findall(r"(?:by|on) \((.*?)\)", expression)))) <= there


def test_counters_are_only_asked_for_their_increase() -> None:
    for expression in EXPRESSIONS:
        for item, _ in selectors(expression):
            if isinstance(item, Counter):
                assert re.search(rf"(?:increase|rate)\({item.name}", expression), expression
            if isinstance(item, Gauge):
                assert not re.search(rf"(?:increase|rate)\({item.name}", expression), expression


# The catalogue


def test_the_manual_has_every_metric_with_its_labels_and_no_other() -> None:
    section = MANUAL.split("\n.Sh METRICS\n")[1].split("\n.Sh ")[0]
    found = re.findall(r"^\.It (gatepost_\w+)(?:\{(.*)\})?$", section, re.MULTILINE)
    assert dict(found) == {item.name: ",".join(item.labels) for item in metrics.CATALOGUE}
    assert len(found) == len(metrics.CATALOGUE)


def test_names_tell_kind_and_unit_in_base_units() -> None:
    for item in metrics.CATALOGUE:
        assert item.name.endswith("_total") is isinstance(item, Counter), item.name
        assert not re.search(r"_(ms|milliseconds|minutes|hours|days|kb|megabytes)(_|$)", item.name)


@pytest.mark.parametrize("daemon", ["milter", "policyd"])
def test_srs_recipients_that_are_not_brought_back_are_shown_from_the_start(daemon: str) -> None:
    wanted = {(metrics.SRS_REVERSALS, (result,)) for result in ("forged", "expired", "unknown")}
    assert wanted <= set(metrics.shown_at_zero(daemon))


def test_kinds_of_errors_in_the_code_are_shown_from_the_start() -> None:
    def source(folder: str) -> str:
        return "".join(path.read_text() for path in (TOP / folder).rglob("*.py"))

    found = {*re.findall(r'ERRORS, \("(\w+)", "([\w-]+)"\)', source("milter") + source("service"))}
    found |= {("policyd", kind) for kind in re.findall(r'\.(?:fault|complain)\("(\w+)", ', source("policyd"))}
    found |= {("policyd", kind) for kind in re.findall(r'ERRORS, \("policyd", "([\w-]+)"\)', source("policyd"))}
    assert found == {(daemon, kind) for daemon, kinds in metrics.ERROR_KINDS.items() for kind in kinds}
