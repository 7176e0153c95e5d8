# SPDX-License-Identifier: GPL-3.0-or-later
"""A real Prometheus scrapes real daemons, with the example's configuration and alert rules."""

from __future__ import annotations

import os
import shutil
import signal
import socket
from collections.abc import Iterator
from pathlib import Path

import pytest
from daemonprocess import Gatepost, poll
from milterclient import MilterClient
from prometheusserver import PANELS, Prometheus, expressions_of, promtool

from gatepost.admin.authority import Authority

RCPT = (
    "request=smtpd_access_policy\nprotocol_state=RCPT\nprotocol_name=ESMTP\nclient_address=192.0.2.5\n"
    "sender=bob@fabrikam.com\nrecipient=bounces+SRS=aaaaaaaa=AB=example.com=x@contoso.com\ninstance=1.2\n\n"
)


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return tmp_path_factory.mktemp("gatepost")


@pytest.fixture(scope="module")
def gatepost(folder: Path) -> Iterator[Gatepost]:
    with Gatepost(folder, command="run", metrics=True) as running:
        yield running


@pytest.fixture(scope="module")
def prometheus(gatepost: Gatepost, tmp_path_factory: pytest.TempPathFactory) -> Iterator[Prometheus]:
    with Prometheus(tmp_path_factory.mktemp("prometheus"), gatepost.metrics_port) as running:
        running.wait_for('up{job="gatepost"}', 1.0)
        yield running


def send_refused_mail(gatepost: Gatepost) -> None:
    client = MilterClient(gatepost.socket).open("192.0.2.5")
    outcome = client.send(b"<bob@fabrikam.com>", [b"<x@example.com>"])
    assert outcome.rcpt[0].startswith("550 5.7.64 ")
    client.quit()


def ask_policyd(gatepost: Gatepost) -> str:
    with socket.socket(socket.AF_UNIX) as client:
        client.connect(gatepost.policyd_socket)
        client.sendall(RCPT.encode())
        return client.recv(1000).decode()


def test_promtool_has_nothing_to_say_against_the_page(gatepost: Gatepost) -> None:
    send_refused_mail(gatepost)
    ask_policyd(gatepost)
    status, text = gatepost.get("/metrics")
    checked = promtool("check", "metrics", given=text)
    assert (status, checked.returncode, checked.stdout, checked.stderr) == (200, 0, "", "")


def test_a_refused_message_is_counted(gatepost: Gatepost, prometheus: Prometheus) -> None:
    labels = '{organization="contoso",verdict="refuse",reason="nothing-accepted"}'
    before = prometheus.value(f"gatepost_relay_decisions_total{labels}") or 0.0
    send_refused_mail(gatepost)
    poll(lambda: prometheus.value(f"gatepost_relay_decisions_total{labels}") == before + 1.0, "the refusal")
    assert prometheus.value('gatepost_stage_duration_seconds_bucket{stage="rcpt",le="+Inf"}') or 0.0 >= 1.0


def test_a_policy_request_is_counted(gatepost: Gatepost, prometheus: Prometheus) -> None:
    assert ask_policyd(gatepost).startswith("action=550 5.1.1 ")
    poll(lambda: prometheus.value('gatepost_policy_requests_total{state="RCPT",action="reject"}'), "the policy request")
    poll(lambda: prometheus.value('gatepost_srs_reversals_total{result="forged"}'), "the forged SRS address")


def test_prometheus_can_evaluate_every_rule_of_the_example(prometheus: Prometheus) -> None:
    def evaluated() -> list[str]:
        rules = [rule for group in prometheus.get("rules")["groups"] for rule in group["rules"]]
        return [rule["name"] for rule in rules if rule["health"] != "ok"]

    poll(lambda: evaluated() == [], "rules evaluated")


def test_prometheus_can_evaluate_every_expression_of_the_dashboard(prometheus: Prometheus) -> None:
    prometheus.wait_for("count(gatepost_ledger_loaded_timestamp_seconds)", 1.0)
    numbers = {}
    for panel in PANELS:
        for expression in expressions_of(panel):
            found = prometheus.query(expression)
            if panel["type"] == "stat":
                numbers[panel["title"]] = len(found)
    assert numbers.pop("First certificate ends in") == 0
    assert set(numbers.values()) == {1}


def test_a_worker_that_dies_once_raises_the_alert(gatepost: Gatepost, prometheus: Prometheus) -> None:
    prometheus.wait_for('gatepost_worker_restarts_total{daemon="policyd",cause="died"}', 0.0)
    os.kill(gatepost.workers("policyd")[0], signal.SIGKILL)
    poll(lambda: "GatepostWorkersRestarting" in prometheus.alerts(), "alert")
    annotations = prometheus.alerts()["GatepostWorkersRestarting"]
    assert annotations["summary"] == "Workers of policyd on mail.contoso.com had to be replaced (died)"


def test_bypass_raises_the_alert_until_it_is_off(gatepost: Gatepost, prometheus: Prometheus) -> None:
    (gatepost.state / "bypass").touch()
    poll(lambda: "GatepostBypass" in prometheus.alerts(), "alert")
    (gatepost.state / "bypass").unlink()
    poll(lambda: "GatepostBypass" not in prometheus.alerts(), "no alert")


def test_the_first_certificate_to_end_is_shown_until_its_file_is_gone(
    gatepost: Gatepost, prometheus: Prometheus, tmp_path: Path
) -> None:
    issued = Authority(tmp_path).issue("mail.contoso.com")
    folder = gatepost.folder / "certificates"
    folder.mkdir()
    shutil.copy(issued.certificate, folder / "mail.pem")
    sample = 'gatepost_certificate_not_after_timestamp_seconds{daemon="milter+policyd",organization="contoso"}'
    poll(lambda: (prometheus.value(f"{sample} - time()") or 0.0) > 0.0, "the certificate's end")
    assert prometheus.value("gatepost_certificates") == 1.0
    (folder / "mail.pem").unlink()
    poll(lambda: prometheus.value(sample) is None, "no certificate's end")
    assert prometheus.value("gatepost_certificates") == 0.0


def test_of_two_processes_that_share_an_address_one_scrape_has_both_whichever_is_stopped_or_killed(
    tmp_path: Path,
) -> None:
    milter = Gatepost(tmp_path, command="milter", metrics=True)
    policyd = Gatepost(tmp_path, command="policyd")
    policyd.metrics_port = milter.metrics_port
    policyd.configure()
    (tmp_path / "prometheus").mkdir()
    with policyd, Prometheus(tmp_path / "prometheus", milter.metrics_port) as prometheus:
        with milter:
            for daemon in ("milter", "policyd"):
                prometheus.wait_for(f'gatepost_workers{{daemon="{daemon}"}}', 1.0)
            prometheus.wait_for("gatepost_healthy", 1.0)
            prometheus.wait_for("up", 1.0)
            send_refused_mail(milter)
            ask_policyd(policyd)
            poll(lambda: prometheus.value('gatepost_relay_decisions_total{verdict="refuse"}'), "the milter's count")
            poll(lambda: prometheus.value('gatepost_policy_requests_total{action="reject"}'), "policyd's count")
        prometheus.wait_for('gatepost_workers{daemon="milter"}', None)
        prometheus.wait_for("up", 1.0)
        prometheus.wait_for("gatepost_healthy", 1.0)
        milter.start()
        milter.wait_for_log(r" ready$")
        prometheus.wait_for('gatepost_workers{daemon="milter"}', 1.0)
        try:
            milter.signal(signal.SIGKILL)
            prometheus.wait_for("gatepost_healthy", 0.0)
            prometheus.wait_for('gatepost_workers{daemon="milter"}', 1.0)  # what it said last
        finally:
            milter.stop()
