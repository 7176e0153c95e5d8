# SPDX-License-Identifier: GPL-3.0-or-later
"""`gatepost report` and `gatepost ledger` on a ledger in SQLite: what is printed, kept, exported, mailed and erased."""

from __future__ import annotations

import csv
import inspect
import io
import json
import os
import signal
import subprocess
import sys
import time
from collections.abc import Sequence
from dataclasses import replace
from datetime import datetime, timedelta, timezone
from email import message_from_bytes, policy
from email.message import EmailMessage
from pathlib import Path

import ledgers
import pytest
import sqlalchemy as sa
from click.testing import CliRunner, Result
from daemonprocess import ROOTS, poll
from ledgers import bounce, entry, rewritten

from gatepost.admin import report_mail
from gatepost.admin.command import main
from gatepost.admin.report_export import write_csv
from gatepost.admin.report_model import ReportType
from gatepost.admin.report_request import Options, job_of
from gatepost.admin.report_run import LedgerLags, Selection, job_and_summary, run, stored, wait_for_ledger
from gatepost.relay import Rules
from gatepost.service.config import load
from gatepost.service.database import Database
from gatepost.service.erasure import erase
from gatepost.service.ledger import Record, line
from gatepost.service.ledger_store import set_loaded_until
from gatepost.service.loader import Loader
from gatepost.service.report_store import begin, reports, rows
from gatepost.service.schema import report_rows
from gatepost.service.store import StoreError

CONFIG = """
state_directory = "{folder}"
[[organization]]
name = "contoso"
{contoso}
[[organization.accepted_domain]]
domain = "contoso.com"
[[organization.connector]]
name = "head office"
sender_ip_addresses = ["192.0.2.0/28"]
[[organization]]
name = "fabrikam"
{fabrikam}
[[organization.accepted_domain]]
domain = "fabrikam.example"
"""
SENDMAIL = """#!/bin/sh
echo "$@" >> {folder}/calls
cat > {folder}/mail.$(wc -l < {folder}/calls)
"""
# click 8.2 keeps them apart by itself
APART = {"mix_stderr": False} if "mix_stderr" in inspect.signature(CliRunner).parameters else {}
RUNNER = CliRunner(**APART)
RECENT = time.time() - 3600
P2 = ("start", "--type", "P2SenderAttribution")


class Gatepost:
    """The command, its configuration, its ledger and a sendmail(1) that keeps what it is given in *folder*."""

    def __init__(self, folder: Path) -> None:
        self.folder = folder
        self.configure()

    def configure(self, contoso: str = "", fabrikam: str = "", more: str = "") -> None:
        text = CONFIG.format(folder=self.folder, contoso=contoso, fabrikam=fabrikam)
        (self.folder / "gatepost.toml").write_text(text + more)

    def __call__(self, *arguments: str) -> Result:
        return RUNNER.invoke(main, self.command(*arguments))

    def command(self, *arguments: str) -> list[str]:
        return ["-c", str(self.folder / "gatepost.toml"), *arguments]

    def report(self, *arguments: str) -> Result:
        return self("report", *arguments)

    def database(self) -> Database:
        return Database(f"sqlite:///{self.folder / 'gatepost.db'}", statement_s=0)

    def recorded(self, *records: Record) -> None:
        ledgers.sqlite(self.folder, *records)

    def mails(self) -> list[EmailMessage]:
        files = sorted(self.folder.glob("mail.*"))
        return [message_from_bytes(path.read_bytes(), EmailMessage, policy=policy.default) for path in files]

    def calls(self) -> list[str]:
        path = self.folder / "calls"
        return path.read_text().splitlines() if path.exists() else []


@pytest.fixture
def gatepost(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Gatepost:
    (tmp_path / "bin").mkdir()
    sendmail(tmp_path, SENDMAIL.format(folder=tmp_path))
    monkeypatch.setenv("PATH", f"{tmp_path / 'bin'}:{os.environ['PATH']}")
    return Gatepost(tmp_path)


def sendmail(folder: Path, script: str) -> None:
    program = folder / "bin" / "sendmail"
    program.write_text(script)
    program.chmod(0o755)


def printed(result: Result, status: int = 0) -> str:
    assert (result.exit_code, result.stderr) == (status, "")
    return result.stdout


# report start


def test_a_report_prints_what_is_affected_and_what_to_type_next(gatepost: Gatepost) -> None:
    gatepost.recorded(entry("A", RECENT), entry("A", RECENT, "y@gmail.com"), rewritten("B", RECENT))
    text = printed(gatepost.report(*P2))
    job_id = reports(gatepost.database())[0].job_id
    assert text.startswith("1 message from 1 host between ")
    assert "1   192.0.2.5   vendor.example   contoso.com   Condition 1 failed: the P1 domain" in text
    assert text.endswith(
        f"Kept as job {job_id}: 2 rows.\n"
        f"  gatepost report show {job_id[:8]}        what to change for each of them\n"
        f"  gatepost report export {job_id[:8]} --format html > report.html\n"
        f"  gatepost report export {job_id[:8]} --format csv > report.csv\n"
    )


def test_nobody_affected_is_said_and_is_no_error(gatepost: Gatepost) -> None:
    gatepost.recorded(rewritten("B", RECENT))
    text = printed(gatepost.report(*P2))
    assert "relied on its From address (P2): not affected." in " ".join(text.split())
    (kept,) = reports(gatepost.database())
    job, _ = job_and_summary(kept)
    assert (job.status, job.status_description, job.rows) == ("Done", "Complete – No results found", 0)


def test_time_from_before_the_ledger_began_is_named_so(gatepost: Gatepost) -> None:
    gatepost.recorded(rewritten("B", RECENT))
    assert " The ledger begins on " in " ".join(printed(gatepost.report(*P2)).split())


def test_nobody_is_called_not_affected_by_an_empty_ledger(gatepost: Gatepost) -> None:
    text = " ".join(printed(gatepost.report(*P2)).split())
    assert text.startswith("The ledger has no mail of that time, so nothing can be said of it.")
    assert "not affected" not in text


def test_nobody_is_called_not_affected_where_p2_was_not_seen(gatepost: Gatepost) -> None:
    """Policyd alone, or a refusal at RCPT: whose P2 that was is not known, so senders asked for may be among them."""
    unseen = {"header_from": "", "verdict_legacy": ""}
    gatepost.recorded(
        entry("A", RECENT, **unseen),
        entry("A", RECENT, "y@gmail.com", **unseen),
        entry("B", RECENT, "y@gmail.com", action="reject", **unseen),
        entry("C", RECENT, reason="left-to-mta", **unseen),
    )
    for options, count in (((), "2 messages"), (("--recipient-address", "x@*"), "1 message")):
        text = " ".join(printed(gatepost.report(*P2, "--sender-address", "*@contoso.com", *options)).split())
        assert f"Of {count} that the rules refuse, the From address was not seen" in text
        assert "not affected" not in text


def test_refusals_that_made_room_in_the_ledger_are_named_so(gatepost: Gatepost) -> None:
    gatepost.configure(more="[ledger]\nrows = 1000\n")
    old = rewritten("OLD", RECENT - 40 * 86400)
    flood = [entry(f"R{number}", RECENT, action="reject") for number in range(100)]
    gatepost.recorded(old, *flood)
    start = ("start", "--type", "Refused")
    note = "Many were refused, so the ledger has refusals only from "
    assert note in " ".join(printed(gatepost.report(*start)).split())
    gatepost.configure(more="[ledger]\nrows = 2000\n")
    assert note not in " ".join(printed(gatepost.report(*start)).split())


def test_what_waits_in_the_spool_is_in_the_report(gatepost: Gatepost) -> None:
    folder = gatepost.folder / "ledger"
    folder.mkdir()
    (folder / "00000000000000000001-1.spool").write_bytes(line(entry("A", RECENT)))
    assert "1 message from 1 host" in printed(gatepost.report(*P2))


def test_filters_choose_the_rows(gatepost: Gatepost) -> None:
    gatepost.recorded(entry("A", RECENT), entry("B", RECENT, "y@example.com", header_from="ann@contoso.com"))
    gatepost.report(*P2, "--sender-address", "an*@contoso.com,zoe@contoso.com", "--recipient-address", "*@example.com")
    (kept,) = reports(gatepost.database())
    assert [json.loads(row)[7] for row in rows(gatepost.database(), kept.job_id)] == ["B"]


def test_options_that_are_wrong_are_all_named(gatepost: Gatepost) -> None:
    result = gatepost.report(*P2, "--start-date", "soon", "--notify-address", "ann@vendor.example")
    assert result.exit_code == os.EX_USAGE
    assert '--start-date: "soon" is no date' in result.stderr
    assert '--notify-address: "ann@vendor.example" is no address in an accepted domain' in result.stderr


def test_arguments_that_are_no_utf8_are_wrong_usage(gatepost: Gatepost) -> None:
    gatepost.recorded()
    for command in (
        ("report", *P2, "--title", "caf\udce9"),
        ("report", "show", "caf\udce9"),
        ("ledger", "erase", "--yes", "--address", "caf\udce9@gmail.com"),
    ):
        result = gatepost(*command)
        assert (result.exit_code, "caf?" in result.stderr) == (os.EX_USAGE, True)


def test_json_has_the_job_by_exchanges_names_and_the_summary(gatepost: Gatepost) -> None:
    gatepost.recorded(entry("A", RECENT))
    answer = json.loads(printed(gatepost.report(*P2, "--title", "Test", "--json")))
    job = answer["job"]
    assert {name: job[name] for name in ("ReportTitle", "ReportType", "Status", "JobProgress", "Rows")} == {
        "ReportTitle": "Test",
        "ReportType": "P2SenderAttribution",
        "Status": "Done",
        "JobProgress": 100,
        "Rows": 1,
    }
    assert answer["summary"]["groups"][0]["sender_domain"] == "vendor.example"


def test_without_a_ledger_there_is_no_report(gatepost: Gatepost) -> None:
    gatepost.configure(more="[ledger]\ndays = 0\n")
    result = gatepost.report(*P2)
    assert result.exit_code == os.EX_CONFIG
    assert result.stderr.endswith("ledger.days = 0: nothing is recorded, so there is nothing to report on\n")


def test_a_host_that_lags_is_named(gatepost: Gatepost) -> None:
    gatepost.recorded()
    set_loaded_until(gatepost.database(), "hub2", 1763805600.0)
    set_loaded_until(gatepost.database(), "hub3", time.time() - 60)
    result = gatepost.report(*P2)
    assert result.exit_code == 0
    assert result.stderr == (
        "warning: of hub2 there is nothing from after 2025-11-22 10:00 UTC: it is down, or cannot reach the store\n"
    )


def test_a_store_that_cannot_be_opened_is_said(gatepost: Gatepost) -> None:
    gatepost.configure(more=f'[store]\nurl = "sqlite:///{gatepost.folder}/missing/gatepost.db"\n')
    result = gatepost.report("list")
    assert result.exit_code == os.EX_TEMPFAIL
    assert "missing does not exist" in result.stderr


# Waiting for the ledger


def test_where_a_daemon_loads_the_ledger_is_complete_when_it_says_so(gatepost: Gatepost) -> None:
    config = load(gatepost.folder / "gatepost.toml")
    daemon = Loader(config)
    assert daemon.lock()
    assert daemon.load()
    loaded = (config.ledger_folder / "loaded").stat().st_mtime
    wait_for_ledger(config, loaded, wait_s=0)
    with pytest.raises(LedgerLags, match="the daemon has not put all records into the store since 20"):
        wait_for_ledger(config, loaded + 1, wait_s=0)
    daemon.close()


# A job that does not come to its end


def job_and_rules(gatepost: Gatepost) -> tuple[object, Rules]:
    config = load(gatepost.folder / "gatepost.toml")
    rules = Rules(config.organizations.values())
    return job_of(Options("P2SenderAttribution"), rules, "abc", datetime.now(timezone.utc), 90), rules


@pytest.mark.parametrize(
    ("error", "status", "said"),
    [(KeyboardInterrupt(), "Cancelled", ""), (StoreError("the disk is gone"), "Failed", "the disk is gone")],
)
def test_a_report_that_is_broken_off_says_so_and_has_no_rows(
    gatepost: Gatepost, error: BaseException, status: str, said: str
) -> None:
    gatepost.recorded(entry("A", RECENT))
    database = gatepost.database()
    job, rules = job_and_rules(gatepost)

    def stop(percent: float) -> None:
        raise error

    with pytest.raises(type(error)):
        run(database, job, Selection("P2SenderAttribution"), rules, stop)  # type: ignore[arg-type]
    (kept,) = reports(database)
    ended, summary = job_and_summary(kept)
    assert (ended.status, ended.error_description, ended.rows, summary) == (status, said, 0, None)
    result = gatepost.report("export", "abc", "--format", "csv")
    assert (result.exit_code, result.stderr) == (
        os.EX_DATAERR,
        f"abc: the report is {status}, so there is nothing to export\n",
    )


def test_a_report_that_runs_is_seen_to_run(gatepost: Gatepost) -> None:
    gatepost.recorded(entry("A", RECENT))
    job, rules = job_and_rules(gatepost)
    seen = []

    def look(percent: float) -> None:
        seen.append(job_and_summary(reports(gatepost.database())[0])[0].status)

    run(gatepost.database(), job, Selection("P2SenderAttribution"), rules, look)  # type: ignore[arg-type]
    assert seen == ["InProgress"]


def test_a_report_that_was_killed_is_said_to_stay_as_it_is(gatepost: Gatepost) -> None:
    job, _ = job_and_rules(gatepost)
    begin(gatepost.database(), stored(replace(job, status="InProgress", progress=40), None))  # type: ignore[type-var]
    for command in (("list",), ("show", "abc")):
        text = printed(gatepost.report(*command))
        assert "stays InProgress at one JobProgress for minutes was killed: start it anew." in text


def test_a_report_that_runs_while_an_address_is_erased_is_deleted_and_says_so(gatepost: Gatepost) -> None:
    """What it has read before and not yet written names the address."""
    gatepost.recorded(entry("A", RECENT), entry("B", RECENT, "ann@gmail.com"))
    job, rules = job_and_rules(gatepost)

    def erase_now(percent: float) -> None:
        erase(gatepost.database(), "x@gmail.com")

    with pytest.raises(StoreError, match="the report was deleted before it was done"):
        run(gatepost.database(), job, Selection("P2SenderAttribution"), rules, erase_now)  # type: ignore[arg-type]
    assert reports(gatepost.database()) == []
    assert list(rows(gatepost.database(), "abc")) == []


def test_sigterm_cancels_a_report(gatepost: Gatepost) -> None:
    """It waits for a ledger that nobody loads, its lock being held here."""
    gatepost.recorded()
    daemon = Loader(load(gatepost.folder / "gatepost.toml"))
    assert daemon.lock()
    command = [sys.executable, "-m", "gatepost.admin", *gatepost.command("report", *P2)]
    environment = {**os.environ, "PYTHONPATH": os.pathsep.join(ROOTS)}
    process = subprocess.Popen(command, env=environment, stderr=subprocess.PIPE, text=True)
    status = Path(f"/proc/{process.pid}/status")
    mask = f"{1 << (signal.SIGTERM - 1):x}"

    def catches() -> bool:
        (caught,) = [item.split()[1] for item in status.read_text().splitlines() if item.startswith("SigCgt")]
        return bool(int(caught, 16) & int(mask, 16))

    poll(catches, "the report has begun")
    process.terminate()
    assert process.communicate(timeout=20)[1] == "Cancelled.\n"
    assert process.returncode == 128 + signal.SIGINT
    daemon.close()


# report list, show


def test_the_list_has_the_newest_first(gatepost: Gatepost) -> None:
    gatepost.recorded(entry("A", RECENT))
    now = datetime.now(timezone.utc)
    for number, title in enumerate(("first", "second\x1b[31m")):
        rules = Rules(load(gatepost.folder / "gatepost.toml").organizations.values())
        job = job_of(Options("Refused", title), rules, f"id{number}", now + timedelta(seconds=number), 90)
        run(gatepost.database(), job, Selection("Refused"), rules)
    lines = printed(gatepost.report("list")).splitlines()
    assert lines[0].split() == ["JobId", "Submitted", "(UTC)", "Status", "Rows", "Title"]
    assert [line.split()[0] for line in lines[2:]] == ["id1", "id0"]
    assert lines[2].split()[-3:] == ["Done", "1", "second?[31m"]
    assert [job["JobId"] for job in json.loads(printed(gatepost.report("list", "--json")))] == ["id1", "id0"]


def test_an_empty_list_says_how_to_begin(gatepost: Gatepost) -> None:
    gatepost.recorded()
    assert "gatepost report start" in printed(gatepost.report("list"))
    assert json.loads(printed(gatepost.report("list", "--json"))) == []


def test_show_has_every_field_and_every_group_with_its_remedies(gatepost: Gatepost) -> None:
    gatepost.recorded(entry("A", RECENT, helo="crm\x1b[31m"))
    gatepost.report(*P2, "--start-date", f"{datetime.fromtimestamp(RECENT, timezone.utc):%Y-%m-%d}")
    text = printed(gatepost.report("show", "last"))
    names = [line.partition(" ")[0] for line in text.splitlines()[:15]]
    assert names == [
        *("JobId", "ReportTitle", "ReportType", "Status", "ReportStatusDescription", "JobProgress", "Rows"),
        *("SubmitDate", "CompletionDate", "StartDate", "EndDate", "SenderAddress", "RecipientAddress"),
        *("NotifyAddress", "ErrorDescription"),
    ]
    assert "192.0.2.5 (crm?[31m), P1 domain vendor.example: 1 message\n  P2: contoso.com\n  Condition 1 failed" in text
    assert "\n  - Let the application use an accepted P1, such as one in contoso.com. P1 is\n" in text


def test_a_job_is_named_by_a_beginning_that_no_other_has(gatepost: Gatepost) -> None:
    gatepost.recorded()
    for _ in range(2):
        gatepost.report(*P2)
    first, second = (kept.job_id for kept in reports(gatepost.database()))
    shown = json.loads(printed(gatepost.report("show", second[:20].upper(), "--json")))
    assert shown["job"]["JobId"] == second
    for name, said in (("", "is the beginning of several"), ("zz", 'no report "zz" is kept')):
        result = gatepost.report("show", name)
        assert result.exit_code == os.EX_USAGE
        assert said in result.stderr
    assert first != second


# report export


def exported(gatepost: Gatepost, form: str) -> str:
    return printed(gatepost.report("export", "last", "--format", form))


def test_csv_has_a_header_and_a_line_for_each_row(gatepost: Gatepost) -> None:
    gatepost.recorded(rewritten("A", RECENT), bounce(RECENT + 1), rewritten("B", RECENT + 2, subject='a "b", c'))
    gatepost.report("start", "--type", "Rewritten")
    result = gatepost.report("export", "last", "--format", "csv")
    assert result.stdout_bytes.count(b"\r\n") == 3
    header, *lines = csv.reader(io.StringIO(result.stdout_bytes.decode(), newline=""))
    assert header[:3] == ["origin_timestamp", "sender_address", "header_from"]
    assert [(row[7], row[4], row[18]) for row in lines] == [("A", "", "1"), ("B", 'a "b", c', "1")]


@pytest.mark.parametrize(
    ("subject", "written"),
    [
        ("=1+1", "'=1+1"),
        ("+1", "'+1"),
        ("-1", "'-1"),
        ("@SUM(A1)", "'@SUM(A1)"),
        ("\t=1", "'?=1"),
        ("\r=1", "'?=1"),
        ("\n=1", "'?=1"),
        ("＝1", "'＝1"),
        ("red \x1b[31m\u202e", "red ?[31m?"),
        ("Grüße", "Grüße"),
        ("x;=1", "x;'=1"),
        ("a; @SUM(A1); b", "a;' @SUM(A1); b"),
        ('a;"=1";c', 'a;\'"=1";c'),
        ("a;－1", "a;'－1"),
    ],
)
def test_no_cell_is_a_formula_or_has_control_characters(subject: str, written: str, gatepost: Gatepost) -> None:
    job, _ = job_and_rules(gatepost)
    output = io.StringIO(newline="")
    write_csv(output, job, iter([(subject, 7)]))  # type: ignore[arg-type]
    assert list(csv.reader(io.StringIO(output.getvalue(), newline="")))[1] == [written, "7"]


def test_a_reader_that_splits_at_semicolons_finds_no_formula(gatepost: Gatepost) -> None:
    gatepost.recorded(entry("A", RECENT, subject='";"=1+1', message_id="<x;=HYPERLINK('http://evil.example')>"))
    gatepost.report(*P2)
    text = io.StringIO(exported(gatepost, "csv"), newline="")
    cells = [cell for row in csv.reader(text, delimiter=";") for cell in row]
    assert len(cells) > 3
    assert [cell for cell in cells if cell.startswith(("=", "+", "-", "@"))] == []


def test_json_has_job_summary_and_rows_by_column(gatepost: Gatepost) -> None:
    gatepost.recorded(entry("A", RECENT), entry("B", RECENT))
    gatepost.report(*P2)
    document = json.loads(exported(gatepost, "json"))
    assert list(document) == ["job", "summary", "rows"]
    assert document["summary"]["messages"] == 2
    assert [(row["network_message_id"], row["total_bytes"]) for row in document["rows"]] == [("A", 1234), ("B", 1234)]


def test_client_name_and_what_exchange_online_will_say_are_exported(gatepost: Gatepost) -> None:
    gatepost.recorded(entry("A", RECENT, reverse_name="crm.contoso.com", fcrdns="confirmed", upstream="p1"))
    gatepost.report(*P2)
    (row,) = json.loads(exported(gatepost, "json"))["rows"]
    assert (row["reverse_name"], row["fcrdns"], row["upstream"]) == ("crm.contoso.com", "confirmed", "p1")


@pytest.mark.parametrize("form", ["csv", "json", "html"])
def test_report_that_an_earlier_release_kept_has_no_cells_for_what_that_did_not_know(
    gatepost: Gatepost, form: str
) -> None:
    gatepost.recorded(entry("A", RECENT, reverse_name="crm.contoso.com"))
    gatepost.report(*P2)
    row = report_rows.c.row
    (cells,) = map(json.loads, gatepost.database().read(lambda found: found.execute(sa.select(row)).scalars().all()))
    shorter = report_rows.update().values(row=json.dumps(cells[:-3]))
    gatepost.database().write(lambda found: found.execute(shorter))
    text = exported(gatepost, form)
    assert "crm.contoso.com" in text  # the HELO name
    if form == "json":
        columns = ReportType("P2SenderAttribution").columns
        assert json.loads(text)["rows"] == [dict(zip(columns, [*cells[:-3], "", "", ""]))]


def test_json_without_rows_is_json(gatepost: Gatepost) -> None:
    gatepost.recorded()
    gatepost.report(*P2)
    assert json.loads(exported(gatepost, "json"))["rows"] == []


def test_html_is_the_page(gatepost: Gatepost) -> None:
    gatepost.recorded(entry("A", RECENT))
    gatepost.report(*P2, "--title", "Before <the> switch")
    page = exported(gatepost, "html")
    assert page.startswith("<!DOCTYPE html>") or page.startswith("<!doctype html>")
    assert "Before &lt;the&gt; switch" in page


def test_a_file_is_made_for_its_owner_only_and_never_overwritten_unasked(gatepost: Gatepost) -> None:
    gatepost.recorded(entry("A", RECENT))
    gatepost.report(*P2)
    file = gatepost.folder / "report.csv"
    arguments = ("export", "last", "--format", "csv", "--output", str(file))
    assert printed(gatepost.report(*arguments)) == ""
    assert file.stat().st_mode & 0o777 == 0o600
    before = file.read_bytes()
    assert before.startswith(b'"origin_timestamp",')
    file.write_bytes(b"something longer\n" * 1000)
    result = gatepost.report(*arguments)
    assert (result.exit_code, result.stderr) == (os.EX_CANTCREAT, f"{file}: is there already; --force overwrites it\n")
    printed(gatepost.report(*arguments, "--force"))
    assert file.read_bytes() == before


def test_a_report_that_is_not_there_makes_no_file_and_spares_the_one_that_is(gatepost: Gatepost) -> None:
    gatepost.recorded()
    there, new = gatepost.folder / "there.csv", gatepost.folder / "new.csv"
    there.write_text("precious")
    for file in (there, new):
        result = gatepost.report("export", "zz", "--format", "csv", "--output", str(file), "--force")
        assert result.exit_code == os.EX_USAGE
    assert (there.read_text(), new.exists()) == ("precious", False)


# Mail


def attached(mail: EmailMessage) -> list[tuple[str, str]]:
    return [(part.get_filename() or "", part.get_content_type()) for part in mail.iter_attachments()]


def text_of(mail: EmailMessage) -> str:
    return str(mail.get_body(("plain",)).get_content())  # type: ignore[union-attr]


def test_the_report_is_mailed_to_its_notify_address(gatepost: Gatepost) -> None:
    gatepost.recorded(entry("A", RECENT))
    result = gatepost.report(*P2, "--title", "Test", "--notify-address", "ceo@contoso.com")
    assert (result.exit_code, result.stderr) == (0, "Mailed to ceo@contoso.com.\n")
    assert gatepost.calls() == ["-oi -f postmaster@contoso.com -- ceo@contoso.com"]
    (mail,) = gatepost.mails()
    assert [mail[name] for name in ("From", "To", "Subject", "Auto-Submitted")] == [
        "gatepost <postmaster@contoso.com>",
        "ceo@contoso.com",
        "Test",
        "auto-generated",
    ]
    assert mail["Message-ID"].endswith("@contoso.com>")
    assert mail["Date"]
    text = text_of(mail)
    assert text.startswith("1 message from 1 host between ")
    assert "192.0.2.5 (crm.contoso.com), P1 domain vendor.example: 1 message" in text
    assert attached(mail) == [("report.csv", "text/csv"), ("report.html", "text/html")]


def test_the_mail_comes_from_the_organization_of_each_address(gatepost: Gatepost) -> None:
    gatepost.recorded()
    gatepost.report(*P2, "--notify-address", "ceo@contoso.com,it@fabrikam.example")
    assert gatepost.calls() == [
        "-oi -f postmaster@contoso.com -- ceo@contoso.com",
        "-oi -f postmaster@fabrikam.example -- it@fabrikam.example",
    ]


def test_where_sendmail_fails_the_report_is_kept(gatepost: Gatepost) -> None:
    sendmail(gatepost.folder, "#!/bin/sh\necho 'queue file write error' >&2\nexit 75\n")
    gatepost.recorded(entry("A", RECENT))
    result = gatepost.report(*P2, "--notify-address", "ceo@contoso.com")
    assert result.exit_code == os.EX_TEMPFAIL
    assert result.stderr == (
        "The report is kept, but could not be mailed to ceo@contoso.com: "
        f"{gatepost.folder}/bin/sendmail ended with status 75: queue file write error\n"
    )
    assert job_and_summary(reports(gatepost.database())[0])[0].status == "Done"


def test_a_large_csv_is_compressed_and_a_huge_one_left_out(gatepost: Gatepost, monkeypatch: pytest.MonkeyPatch) -> None:
    gatepost.recorded(entry("A", RECENT))
    monkeypatch.setattr(report_mail, "GZIP_ABOVE_BYTES", 100)
    gatepost.report(*P2, "--notify-address", "ceo@contoso.com")
    monkeypatch.setattr(report_mail, "LEFT_OUT_ABOVE_BYTES", 100)
    gatepost.report(*P2, "--notify-address", "ceo@contoso.com")
    compressed, left_out = gatepost.mails()
    assert attached(compressed) == [("report.csv.gz", "application/gzip"), ("report.html", "text/html")]
    assert attached(left_out) == [("report.html", "text/html")]
    assert "too many to be attached" in text_of(left_out)


# report notify

SOON = datetime.now(timezone.utc).replace(microsecond=0) + timedelta(days=9)
LATER = SOON + timedelta(days=60)


def switching(*, contoso: datetime = SOON, fabrikam: datetime = SOON, more: str = "") -> Sequence[str]:
    return f"enforce_from = {contoso.isoformat()}\n{more}", f"enforce_from = {fabrikam.isoformat()}"


def test_organizations_that_are_affected_are_told_and_others_are_not(gatepost: Gatepost) -> None:
    gatepost.configure(*switching(more='notify_addresses = ["it@contoso.com", "boss@example.com"]'))
    gatepost.recorded(entry("A", RECENT), entry("B", RECENT, verdict_legacy="refuse", client="192.0.2.6"))
    at = f"{SOON.day} {SOON:%B %Y}, {SOON:%H:%M} UTC"
    numbers = (
        "2 messages from 2 hosts in the last 30 days would have been refused; 1 of them relied on the From address "
        "(P2) alone."
    )
    assert printed(gatepost.report("notify")) == (
        f"contoso: {numbers}\n"
        "contoso: mailed to it@contoso.com.\n"
        "contoso: mailed to boss@example.com.\n"
        f"fabrikam: not affected by the switch on {at}, so nobody is told.\n"
    )
    assert gatepost.calls() == [
        "-oi -f postmaster@contoso.com -- it@contoso.com",
        "-oi -f postmaster@contoso.com -- boss@example.com",
    ]
    mail = gatepost.mails()[0]
    assert mail["Subject"] == f"contoso: mail will be refused from {SOON:%Y-%m-%d} on"
    assert text_of(mail).startswith(
        f"From {at} on, this mail server enforces the relay rules for contoso.\nUntil then it only watches.\n\n"
        f"{numbers}\n"
    )
    assert attached(mail) == [("report.csv", "text/csv"), ("report.html", "text/html")]
    (kept,) = reports(gatepost.database())
    assert job_and_summary(kept)[0].rows == 2


def test_what_was_refused_anyway_the_switch_does_not_change(gatepost: Gatepost) -> None:
    gatepost.configure(*switching())
    gatepost.recorded(entry("A", RECENT, action="reject"), rewritten("B", RECENT))
    assert "contoso: not affected" in printed(gatepost.report("notify"))
    assert gatepost.calls() == []


def test_nobody_is_called_not_affected_by_a_switch_where_the_ledger_is_empty(gatepost: Gatepost) -> None:
    gatepost.configure(*switching(fabrikam=LATER))
    result = gatepost.report("notify")
    assert result.stderr == "contoso: The ledger has no mail of that time, so nothing can be said of it.\n"
    assert (result.exit_code, result.stdout) == (os.EX_TEMPFAIL, "")


def test_the_mail_goes_to_a_labels(gatepost: Gatepost) -> None:
    gatepost.configure(*switching(more='notify_addresses = ["IT@Bücher.example"]'))
    gatepost.recorded(entry("A", RECENT))
    gatepost.report("notify")
    assert gatepost.calls() == ["-oi -f postmaster@contoso.com -- IT@xn--bcher-kva.example"]


def test_a_switch_that_is_far_or_past_is_left_alone(gatepost: Gatepost) -> None:
    gatepost.configure(*switching(contoso=LATER, fabrikam=SOON - timedelta(days=30)))
    gatepost.recorded(entry("A", RECENT))
    assert printed(gatepost.report("notify")) == (
        "No organization has an enforce_from in the next 30 days: nothing to say.\n"
    )
    assert "contoso: 1 message" in printed(gatepost.report("notify", "--within", "70"))


def test_a_dry_run_mails_and_keeps_nothing(gatepost: Gatepost) -> None:
    gatepost.configure(*switching(fabrikam=LATER))
    gatepost.recorded(entry("A", RECENT))
    assert printed(gatepost.report("notify", "--dry-run")) == (
        "contoso: 1 message from 1 host in the last 30 days would have been refused; 1 of them relied on the From "
        "address (P2) alone. Would be mailed to postmaster@contoso.com.\n"
    )
    assert (gatepost.calls(), reports(gatepost.database())) == ([], [])


def test_where_one_mail_fails_the_others_are_tried(gatepost: Gatepost) -> None:
    script = SENDMAIL.format(folder=gatepost.folder)
    sendmail(gatepost.folder, f"{script}case $* in *contoso.com) echo no >&2; exit 75;; esac\n")
    gatepost.configure(*switching())
    gatepost.recorded(entry("A", RECENT), entry("B", RECENT, organization="fabrikam"))
    result = gatepost.report("notify")
    assert result.exit_code == os.EX_TEMPFAIL
    assert "contoso: could not be mailed to postmaster@contoso.com: " in result.stderr
    assert "fabrikam: mailed to postmaster@fabrikam.example." in result.stdout


# ledger erase


def test_erasing_says_what_went_and_what_is_still_there(gatepost: Gatepost) -> None:
    gatepost.recorded(entry("A", RECENT), entry("B", RECENT, "ann@gmail.com"), bounce(RECENT))
    gatepost.report(*P2)
    folder = gatepost.folder / "ledger"
    (folder / "00000000000000000001-1.spool").write_bytes(line(entry("C", RECENT, "X@gmail.com".lower())))
    assert printed(gatepost("ledger", "erase", "--address", "X@Gmail.com", "--yes")) == (
        "Deleted of x@gmail.com:\n"
        "          2  rows of the ledger\n"
        "          0  counts of bounces\n"
        "          1  rows of kept reports\n"
        "          0  whole reports: named in the question or the summary, or under way\n"
        "Still there: log files of gatepost and the MTA; for ten minutes, spool files of running daemons;\n"
        "until they expire, compact SRS addresses, which bounces need. Reports that were exported or mailed are\n"
        "out of reach.\n"
    )
    (kept,) = reports(gatepost.database())
    assert job_and_summary(kept)[0].rows == 1


def test_an_address_without_a_domain_name_is_erased_too(gatepost: Gatepost) -> None:
    gatepost.recorded(entry("A", RECENT, reverse_path="bob@[192.0.2.9]", sender_domain=""))
    gatepost.report(*P2)
    text = printed(gatepost("ledger", "erase", "--yes", "--address", "bob@[192.0.2.9]"))
    assert "1  rows of the ledger" in text
    assert "1  whole reports" in text  # its summary shows P1 where that has no domain
    assert reports(gatepost.database()) == []


@pytest.mark.parametrize("address", ["bob", "@contoso.com", "bob@", "*@"])
def test_only_a_whole_address_is_erased(gatepost: Gatepost, address: str) -> None:
    result = gatepost("ledger", "erase", "--address", address, "--yes")
    assert result.exit_code == os.EX_USAGE
    assert "is no address" in result.stderr


def test_where_nobody_can_be_asked_yes_is_needed(gatepost: Gatepost) -> None:
    gatepost.recorded(entry("A", RECENT))
    result = gatepost("ledger", "erase", "--address", "x@gmail.com")
    assert result.exit_code == os.EX_USAGE
    assert "--yes is needed" in result.stderr
