# SPDX-License-Identifier: GPL-3.0-or-later
"""`gatepost status` beside real daemons."""

from __future__ import annotations

import contextlib
import json
import os
import random
import re
import signal
import sqlite3
import struct
import subprocess
import tempfile
import time
from collections.abc import Iterator
from datetime import datetime, timezone
from pathlib import Path
from typing import Any

import pytest
from click.testing import CliRunner, Result
from daemonprocess import CONTOSO, Gatepost, poll
from milterclient import MilterClient

from gatepost.admin.command import main
from gatepost.service import last_errors

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
    assert " Workers all 3 are ready Ledger all is in the store " in words(result)


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
        "  1  passed\n"
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
        replaced = " Workers all 2 are ready (policyd: 1 replaced unasked) "
        poll(lambda: replaced in words(status(gatepost)), "another worker runs, and this is told")
        assert document(gatepost)["last_errors"][0]["text"] == f"policyd: policyd worker {worker} died (signal 9)"


def test_a_configuration_that_is_newer_than_what_runs_is_named(tmp_path: Path) -> None:
    with Gatepost(tmp_path, command="policyd") as gatepost:
        assert document(gatepost)["configuration_changed"] is False
        gatepost.configure(relay='mode = "monitor"')
        assert document(gatepost)["configuration_changed"] is True
        told = "gatepost.toml has changed since; load it with: systemctl reload gatepost.target"
        assert told in words(status(gatepost))


def test_a_configuration_that_was_replaced_by_an_older_file_is_named_and_the_mode_in_force_told(tmp_path: Path) -> None:
    """As by cp -p, rsync -t or from a backup."""
    with Gatepost(tmp_path, command="policyd") as gatepost:
        gatepost.configure(relay='mode = "monitor"')
        os.utime(gatepost.configuration, (0, 0))
        assert document(gatepost)["configuration_changed"] is True
        assert "Organization contoso: enforce " in words(status(gatepost))
        gatepost.signal(signal.SIGHUP)
        gatepost.wait_for_log("configuration reloaded$")
        assert document(gatepost)["configuration_changed"] is False
        assert "Organization contoso: monitor " in words(status(gatepost))


def test_a_configuration_that_was_only_touched_has_not_changed(tmp_path: Path) -> None:
    with Gatepost(tmp_path, command="policyd") as gatepost:
        os.utime(gatepost.configuration, (2e9, 2e9))
        assert document(gatepost)["configuration_changed"] is False


def test_after_a_reload_that_was_refused_the_mode_in_force_is_told(tmp_path: Path) -> None:
    with Gatepost(tmp_path, command="policyd") as gatepost:
        gatepost.configure(relay='mode = "monitor"', more="garbage = 1\n")
        gatepost.signal(signal.SIGHUP)
        gatepost.wait_for_log("not reloaded")
        assert document(gatepost)["organizations"] == {"contoso": "enforce"}
        assert "Organization contoso: enforce " in words(status(gatepost))


def test_an_announced_enforce_that_has_come_is_told_whatever_the_file_says(tmp_path: Path) -> None:
    moment = datetime.fromtimestamp(time.time() + 2, timezone.utc).isoformat()
    with Gatepost(tmp_path, command="policyd", relay=f"enforce_from = {moment}") as gatepost:
        gatepost.configure(relay='mode = "monitor"')
        gatepost.wait_for_log("configuration reloaded$")
        assert document(gatepost)["organizations"] == {"contoso": "enforce"}
        assert document(gatepost)["configuration_changed"] is True


def test_milter_and_policyd_with_different_modes_are_told_apart(tmp_path: Path) -> None:
    with Gatepost(tmp_path, command="milter"):
        policyd = Gatepost(tmp_path, command="policyd", relay='mode = "monitor"')
        with policyd:
            assert document(policyd)["organizations"] == {"contoso": "enforce (milter), monitor (policyd)"}


def test_another_process_that_has_the_supervisors_number_is_not_taken_for_it(tmp_path: Path) -> None:
    with Gatepost(tmp_path, command="policyd") as gatepost:
        gatepost.signal(signal.SIGKILL)
        gatepost.wait()
        (file,) = (gatepost.state / "metrics").glob("supervisor.*.series")
        with subprocess.Popen(["sleep", "60"]) as other:
            with file.open("r+b") as series:
                series.seek(16)
                series.write(struct.pack("=q", other.pid))
            result = status(gatepost)
            other.kill()
        assert result.exit_code == os.EX_UNAVAILABLE
        assert "Running        nothing\n" in result.output


def test_what_ran_before_the_last_boot_runs_no_more(tmp_path: Path) -> None:
    with Gatepost(tmp_path, command="policyd") as gatepost:
        gatepost.signal(signal.SIGSTOP)
        (file,) = (gatepost.state / "metrics").glob("supervisor.*.series")
        with file.open("r+b") as series:
            series.seek(40)
            series.write(struct.pack("=d", time.monotonic() + 1e6))
        result = status(gatepost)
        gatepost.signal(signal.SIGCONT)
        assert result.exit_code == os.EX_UNAVAILABLE


def test_a_daemon_that_drains_is_stopping(tmp_path: Path) -> None:
    with Gatepost(tmp_path) as gatepost, MilterClient(gatepost.socket) as client:
        client.open(ip="192.0.2.5")
        client.mail(b"<app@contoso.com>")
        gatepost.signal(signal.SIGTERM)
        poll(lambda: "; it is stopping Configuration " in words(status(gatepost)), "it is told")
        assert " Workers " not in words(status(gatepost))
        assert document(gatepost)["running"][0]["stopping"] is True


def test_a_supervisor_that_hangs_runs_and_is_silent(tmp_path: Path) -> None:
    with Gatepost(tmp_path, command="policyd") as gatepost:
        gatepost.signal(signal.SIGSTOP)
        poll(lambda: f"supervisor.policyd: process {gatepost.pid} is silent" in words(status(gatepost)), "its silence")
        assert f"Running policyd, process {gatepost.pid}, since" in words(status(gatepost))
        gatepost.signal(signal.SIGCONT)


def test_workers_of_a_supervisor_that_was_killed_are_not_counted(tmp_path: Path) -> None:
    milter = Gatepost(tmp_path, command="milter")
    with milter, Gatepost(tmp_path, command="policyd") as policyd:
        policyd.signal(signal.SIGKILL)
        policyd.wait()
        poll(lambda: " (ledger.policyd: 0 of 1; policyd: 0 of 1) " in words(status(milter)), "policyd is gone")
        assert " Workers 2 of 4 are ready " in words(status(milter))


@pytest.mark.parametrize("kind", ["folder", "pipe"])
def test_last_errors_that_cannot_be_read_are_one_line_and_the_rest_is_told(tmp_path: Path, kind: str) -> None:
    with Gatepost(tmp_path, command="policyd") as gatepost:
        file = gatepost.state / "last-errors"
        file.mkdir() if kind == "folder" else os.mkfifo(file)
        result = status(gatepost)
        assert result.exit_code == 1
        assert f"Wrong: {file}: is no file; the daemons keep no errors there: delete it" in words(result)
        assert "Running policyd, process " in words(result)
        assert "No errors were logged." not in result.output
        assert document(gatepost)["last_errors"] is None


def test_damaged_last_errors_end_nothing(tmp_path: Path) -> None:
    gatepost = Gatepost(tmp_path)
    gatepost.state.mkdir()
    (gatepost.state / "last-errors").write_bytes(random.Random(6).randbytes(16 * 512))
    assert status(gatepost).exit_code == os.EX_UNAVAILABLE
    assert status(gatepost, "--json").exit_code == os.EX_UNAVAILABLE


def test_errors_of_the_future_are_told_last(tmp_path: Path) -> None:
    gatepost = Gatepost(tmp_path)
    gatepost.state.mkdir()
    last_errors.keep(gatepost.state / "last-errors", "ahead", time.time() + 1e7)
    last_errors.keep(gatepost.state / "last-errors", "now", time.time())
    assert [item["text"] for item in document(gatepost)["last_errors"]] == ["now", "ahead"]


@pytest.mark.skipif(os.geteuid() != 0, reason="gives files to another user")
def test_what_root_has_left_in_the_daemons_state_is_named_and_the_rest_told() -> None:
    with tempfile.TemporaryDirectory() as folder:
        Path(folder).chmod(0o755)
        gatepost = Gatepost(Path(folder))
        gatepost.state.mkdir()
        left = [gatepost.state / "metrics", gatepost.state / "last-errors"]
        left[0].mkdir(0o700)
        left[1].touch(0o600)
        os.chown(gatepost.state, 65534, 65534)
        try:
            result = status(gatepost)
        finally:
            os.seteuid(0)
            os.setegid(0)
        told = words(result)
        assert result.exit_code == os.EX_UNAVAILABLE
        for path in left:
            remedy = f"chown -R --reference={gatepost.state} {path}"
            assert f"Wrong: {path} is not the daemons', who cannot use it: {remedy}" in told
        assert "Organization contoso: enforce" in told
        assert "No errors were logged." not in told


def test_a_configuration_that_cannot_be_loaded_is_wrong_while_the_daemons_go_on(tmp_path: Path) -> None:
    with Gatepost(tmp_path, command="policyd") as gatepost:
        gatepost.configure(relay='mod = "monitor"')
        result = status(gatepost)
        assert result.exit_code == 1
        assert words(result).count("the daemons go on with what they have loaded") == 1


def test_a_store_that_is_not_there_is_not_made(tmp_path: Path) -> None:
    gatepost = Gatepost(tmp_path)
    gatepost.state.mkdir()
    store = gatepost.state / "gatepost.db"
    told = f"Not known: the store can't be read: store {store}: is not there; the daemons make it."
    assert told in words(status(gatepost))
    assert not store.exists()


def test_tables_of_an_older_release_stay_as_they_are(tmp_path: Path) -> None:
    gatepost = Gatepost(tmp_path)
    gatepost.state.mkdir()
    store = gatepost.state / "gatepost.db"
    with contextlib.closing(sqlite3.connect(store)) as database:
        database.execute("CREATE TABLE gatepost_schema (version INTEGER NOT NULL)")
        database.execute("INSERT INTO gatepost_schema VALUES (1)")
        database.commit()
        told = f"store {store}: its tables are of version 1; the daemons of this release bring them up to date."
        assert told in words(status(gatepost))
        assert database.execute("SELECT name FROM sqlite_master").fetchall() == [("gatepost_schema",)]


def test_mail_of_the_future_is_not_in_the_last_hour(tmp_path: Path) -> None:
    with Gatepost(tmp_path) as gatepost:
        send(gatepost, b"<app@contoso.com>", b"<x@example.com>")
        one, none = ({"actions": actions, "refused_by_rules": 0} for actions in ({"pass": 1}, {}))
        poll(lambda: document(gatepost)["last_hour"] == one, "one recipient is in the ledger")
        with contextlib.closing(sqlite3.connect(gatepost.state / "gatepost.db")) as database:
            database.execute("UPDATE ledger SET time = time + 1e7")
            database.commit()
        assert document(gatepost)["last_hour"] == none


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
