# SPDX-License-Identifier: GPL-3.0-or-later
"""`gatepost status` beside real daemons."""

from __future__ import annotations

import json
import os
import re
import signal
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
from click.testing import CliRunner, Result
from daemonprocess import CONTOSO, Gatepost, poll
from milterclient import MilterClient

from gatepost.admin.command import main

REFUSED = b"<news@fabrikam.com>"


def status(gatepost: Gatepost, *options: str) -> Result:
    return CliRunner().invoke(main, ["-c", str(gatepost.configuration), "status", *options])


def document(gatepost: Gatepost) -> dict[str, Any]:
    found: dict[str, Any] = json.loads(status(gatepost, "--json").output)
    return found


def words(result: Result) -> str:
    """The output as one line, with TIME for each time."""
    return re.sub(r"\d{4}-\d\d-\d\d \d\d:\d\d:\d\d", "TIME", " ".join(result.output.split()))


def send(gatepost: Gatepost, sender: bytes, rcpt: bytes) -> None:
    with MilterClient(gatepost.socket) as client:
        client.open(ip="192.0.2.5")
        client.send(sender, [rcpt])


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return tmp_path_factory.mktemp("status")


@pytest.fixture(scope="module")
def gatepost(folder: Path) -> Iterator[Gatepost]:
    with Gatepost(folder, command="run") as running:
        yield running


def test_what_runs_is_told_with_its_start_configuration_and_workers(gatepost: Gatepost) -> None:
    result = status(gatepost)
    assert result.exit_code == 0
    assert f"Running milter and policyd, process {gatepost.pid}, since TIME (0 min) " in words(result)
    assert " loaded TIME, by milter+policyd Organization contoso: enforce " in words(result)
    assert " Workers ledger 1 of 1, milter 1 of 1, policyd 1 of 1 Ledger all is in the store " in words(result)


def test_the_start_is_the_process_start(gatepost: Gatepost) -> None:
    (running,) = document(gatepost)["running"]
    assert running["since"] <= running["configuration_loaded"]


def test_the_last_hour_counts_recipients_by_what_was_done(gatepost: Gatepost) -> None:
    send(gatepost, b"<app@contoso.com>", b"<x@example.com>")
    send(gatepost, REFUSED, b"<x@example.com>")
    send(gatepost, REFUSED, b"<y@example.com>")
    poll(
        lambda: document(gatepost)["last_hour"] == {"actions": {"pass": 1, "reject": 2}, "refused_by_rules": 2},
        "three recipients are in the ledger",
    )
    assert (
        "The last hour, by recipients\n"
        "  2  rejected\n"
        "  1  passed unchanged\n"
        "  2 of them the rules refuse; gatepost report start --type Refused says which.\n"
    ) in status(gatepost).output


def test_bypass_is_loud_and_no_success(gatepost: Gatepost) -> None:
    runner = CliRunner()
    runner.invoke(main, ["-c", str(gatepost.configuration), "bypass", "on"])
    try:
        result = status(gatepost)
    finally:
        runner.invoke(main, ["-c", str(gatepost.configuration), "bypass", "off"])
    assert result.exit_code == 1
    assert "Bypass is ON since " in result.output
    assert status(gatepost).exit_code == 0


def test_a_worker_that_died_is_among_the_last_errors(tmp_path: Path) -> None:
    with Gatepost(tmp_path, command="policyd") as gatepost:
        (worker,) = gatepost.workers("policyd")
        os.kill(worker, signal.SIGKILL)
        replaced = "policyd 1 of 1 (1 replaced unasked)"
        poll(lambda: replaced in words(status(gatepost)), "another worker runs, and this is told")
        assert document(gatepost)["last_errors"][0]["text"] == f"policyd: policyd worker {worker} died (signal 9)"


def test_a_configuration_that_is_newer_than_what_runs_is_named(tmp_path: Path) -> None:
    with Gatepost(tmp_path, command="policyd") as gatepost:
        assert document(gatepost)["configuration_changed"] is False
        gatepost.configure(relay='mode = "monitor"')
        assert document(gatepost)["configuration_changed"] is True
        told = "gatepost.toml has changed since; load it with: systemctl reload gatepost.target"
        assert told in words(status(gatepost))


def test_a_configuration_that_cannot_be_loaded_is_wrong_while_the_daemons_go_on(tmp_path: Path) -> None:
    with Gatepost(tmp_path, command="policyd") as gatepost:
        gatepost.configure(relay='mod = "monitor"')
        result = status(gatepost)
        assert result.exit_code == 1
        assert words(result).count("the daemons go on with what they have loaded") == 1


def test_nothing_runs_is_said_with_69(tmp_path: Path) -> None:
    result = status(Gatepost(tmp_path))
    assert result.exit_code == os.EX_UNAVAILABLE
    assert "Running        nothing\n" in result.output


def test_a_ledger_that_is_off_has_no_last_hour(tmp_path: Path) -> None:
    gatepost = Gatepost(tmp_path, organizations=CONTOSO, more="[ledger]\ndays = 0\n")
    assert "Not known: ledger.days = 0: nothing is recorded." in status(gatepost).output


def test_times_of_a_switch_to_enforce_are_told(tmp_path: Path) -> None:
    gatepost = Gatepost(tmp_path, relay="enforce_from = 2999-12-10T09:00:00Z")
    assert "Organization   contoso: monitor, enforce from 10 December 2999, 09:00 UTC\n" in status(gatepost).output
