# SPDX-License-Identifier: GPL-3.0-or-later
"""Mail that means to do something to the ledger, to who reads a report of it, or to the metrics.

It goes the whole way: a milter session, the spool, SQLite or PostgreSQL, the report's filters, CSV, page and mail.
"""

from __future__ import annotations

import csv
import inspect
import io
import json
import os
import re
import socket
import time
from collections.abc import Callable
from email import message_from_bytes, policy
from email.message import EmailMessage
from html.parser import HTMLParser
from pathlib import Path
from typing import Optional

import pytest
from click.testing import CliRunner, Result
from daemonprocess import CONTOSO, Gatepost, poll
from milterclient import MilterClient
from prometheus_client.parser import text_string_to_metric_families

from gatepost.admin.command import main

Query = Callable[[str, str], list[str]]
LOCAL_PARTS = [
    "x'; DROP TABLE ledger; --",
    'x"; DROP TABLE ledger; --',
    "x'); DELETE FROM ledger WHERE ('1'='1",
    "%",
    "_",
    "a\\",
    ":name",
    "%(name)s",
    "{0.__class__}",
    "$1",
    "=cmd|'/c calc'!a0",
    "+1+1",
    "-2+3",
    "@sum(a1)",
    ";=1+1",
    "<script>alert(1)</script>",
    "'\"><img src=x onerror=alert(1)>",
    "javascript:alert(1)",
    "{{7*7}}{%for%}",
    "&lt;script&gt;",
    "\u202egpj.exe",
    "[link](http://evil.example)",
    "bcc: x",
]
FORMULA = re.compile("[=+\\-@\\t\\r\uff1d\uff0b\uff0d\uff20]")
SENDMAIL = """#!/bin/sh
cat > {folder}/mail
"""
APART = {"mix_stderr": False} if "mix_stderr" in inspect.signature(CliRunner).parameters else {}


class Host:
    """A milter in mode monitor with its ledger in *url*, and the command on the same configuration."""

    def __init__(self, folder: Path, url: str) -> None:
        self.folder = folder
        store = f'[store]\nurl = "{url}"\n[ledger]\nsubjects = true\n'
        self.gatepost = Gatepost(folder, relay='mode = "monitor"', more=store)

    def __call__(self, *arguments: str) -> Result:
        return CliRunner(**APART).invoke(main, ["-c", str(self.gatepost.configuration), *arguments])

    def report(self, *filters: str) -> list[dict[str, object]]:
        """Return the rows of a report with these filters."""
        started = self("report", "start", "--type", "Refused", "--title", "x\r\nBcc: a@evil.example", *filters)
        assert started.exit_code == 0, started.stderr
        found = re.search(r"Kept as job (\S+):", started.stdout)
        assert found
        self.job = found[1]
        rows: list[dict[str, object]] = json.loads(self.export("json").decode())["rows"]
        return rows

    def export(self, form: str) -> bytes:
        exported = self("report", "export", self.job, "--format", form)
        assert exported.exit_code == 0, exported.stderr
        return exported.stdout_bytes


def quoted(local: str) -> str:
    return '"' + local.replace("\\", "\\\\").replace('"', '\\"') + '"'


@pytest.fixture
def host(tmp_path: Path, url: str, monkeypatch: pytest.MonkeyPatch) -> Host:
    return recorded(tmp_path, url, monkeypatch)


def recorded(tmp_path: Path, url: str, monkeypatch: pytest.MonkeyPatch) -> Host:
    """Return a host whose milter has seen all the hostile mail."""
    (tmp_path / "bin").mkdir()
    (tmp_path / "bin/sendmail").write_text(SENDMAIL.format(folder=tmp_path))
    (tmp_path / "bin/sendmail").chmod(0o755)
    monkeypatch.setenv("PATH", f"{tmp_path / 'bin'}:{os.environ['PATH']}")
    host = Host(tmp_path, url)
    with host.gatepost as gatepost:
        with MilterClient(gatepost.socket) as client:
            client.connect()
            client.helo(b"'; DROP TABLE ledger; --<script>alert(1)</script>")
            for local in [*LOCAL_PARTS, "plain"]:
                sender = f"<{quoted(local)}@vendor.example>".encode()
                headers = [
                    (b"From", f"{local} <{quoted(local)}@contoso.com>".encode()),
                    (b"Subject", b"\t" + local.encode()),
                    (b"Message-ID", f"<{local}@vendor.example>".encode()),
                ]
                assert client.send(sender, [f"<{quoted(local)}@example.com>".encode()], headers).eom == "continue"
            client.quit()
        now, loaded = time.time(), gatepost.state / "ledger/loaded"
        poll(lambda: loaded.exists() and loaded.stat().st_mtime > now, "the ledger's loader has caught up")
    return host


def test_hostile_addresses_are_kept_filtered_shown_and_erased_as_what_they_are(
    host: Host, url: str, query: Query
) -> None:
    count = len(LOCAL_PARTS) + 1
    assert query(url, "SELECT count(*) FROM ledger") == [str(count)]
    assert len(host.report()) == count
    for wildcard in ("%", "_"):  # * is the only one
        (row,) = host.report("--sender-address", f'"{wildcard}"@vendor.example')
        assert row["sender_address"] == f'"{wildcard}"@vendor.example'
    assert host.report("--sender-address", "%@vendor.example") == []
    assert host.report("--sender-address", "x' OR '1'='1@vendor.example") == []
    assert len(host.report("--recipient-address", '"plai*@example.com')) == 1

    erased = host("ledger", "erase", "--address", f"{quoted(LOCAL_PARTS[0])}@vendor.example", "--yes")
    assert erased.exit_code == 0, erased.stderr
    assert query(url, "SELECT count(*) FROM ledger") == [str(count - 1)]
    for name in ("' OR '1'='1", "%", "_", "x'; DROP TABLE jobs; --", "../../etc/passwd"):
        assert host("report", "show", name).exit_code == os.EX_USAGE
        assert host("explain", name).exit_code not in (0, 1)
    assert query(url, "SELECT count(*) FROM ledger") == [str(count - 1)]


class Page(HTMLParser):
    """What a browser would find in a page."""

    def __init__(self, text: str) -> None:
        super().__init__()
        self.elements: list[str] = []
        self.attributes: list[tuple[str, Optional[str]]] = []
        self.feed(text)

    def handle_starttag(self, tag: str, attrs: list[tuple[str, Optional[str]]]) -> None:
        self.elements.append(tag)
        self.attributes += attrs


def harmless_page(text: str) -> bool:
    page = Page(text)
    acting = [name for name, _ in page.attributes if name.startswith("on") or name in ("href", "src")]
    return page.elements.count("script") == 1 and "img" not in page.elements and acting == []


def formulas(text: str) -> list[str]:
    """Return the cells that a spreadsheet would take for formulas, whatever it takes for the delimiter."""
    rows = [row for delimiter in ",;\t" for row in csv.reader(io.StringIO(text, newline=""), delimiter=delimiter)]
    return [cell for row in rows for cell in row if FORMULA.match(cell)]


def test_report_of_hostile_mail_does_nothing_to_who_reads_it(
    tmp_path: Path, sqlite_url: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    host = recorded(tmp_path, sqlite_url, monkeypatch)
    assert len(host.report("--notify-address", "ceo@contoso.com")) == len(LOCAL_PARTS) + 1
    assert harmless_page(host.export("html").decode())
    assert formulas(host.export("csv").decode()) == []
    shown = host("report", "show", host.job).stdout
    assert all(character.isprintable() or character == "\n" for character in shown)

    octets = (host.folder / "mail").read_bytes()
    mail: EmailMessage = message_from_bytes(octets, EmailMessage, policy=policy.default)  # type: ignore[assignment]
    assert sorted(mail.keys()) == [
        "Auto-Submitted",
        "Content-Type",
        "Date",
        "From",
        "MIME-Version",
        "Message-ID",
        "Subject",
        "To",
    ]
    assert (mail["From"], mail["To"]) == ("gatepost <postmaster@contoso.com>", "ceo@contoso.com")
    assert mail["Subject"] == "x??Bcc: a@evil.example"
    page, table = (
        next(part for part in mail.iter_attachments() if part.get_content_type() == kind)
        for kind in ("text/html", "text/csv")
    )
    assert harmless_page(page.get_content())
    assert formulas(table.get_content()) == []
    (text,) = [part for part in mail.walk() if part.get_content_type() == "text/plain"]
    assert all(character.isprintable() or character == "\n" for character in text.get_content())


# Metrics


def test_strangers_cannot_add_a_series_by_anything_that_they_send(tmp_path: Path) -> None:
    hostile = ["'\"\\\n# HELP", "{", 'a",organization="b']
    with Gatepost(tmp_path, command="run", metrics=True) as gatepost:

        def series() -> set[str]:
            text = gatepost.get("/metrics")[1]
            parsed = text_string_to_metric_families(text)
            families = [item for item in parsed if not item.name.startswith("gatepost_ledger_")]  # these come with time
            return {f"{item.name}{sorted(item.labels.items())}" for family in families for item in family.samples}

        def say(number: int) -> None:
            """Send what strangers choose to both daemons."""
            word = f"{hostile[number % 3]}{number}".encode()
            with MilterClient(gatepost.socket) as client:
                client.connect(f"198.51.100.{number % 250}", 1024 + number, word)
                client.helo(word)
                client.send(b"<%b@%d.example>" % (word, number), [b"<x@%d.test>" % number, b"<%b@contoso.com>" % word])
                client.quit()
            request = b"request=smtpd_access_policy\nprotocol_state=S%d\nsender=%d@a.test\nrecipient=x@%d.test\n\n"
            with_policyd(gatepost, request % (number, number, number))
            with_policyd(gatepost, b"%d:map%03d a@b," % (10, number))

        for number in range(10):
            say(number)
        before = series()
        for number in range(10, 60):
            say(number)
        assert series() == before


def with_policyd(gatepost: Gatepost, request: bytes) -> None:
    with socket.socket(socket.AF_UNIX) as client:
        client.settimeout(10)
        client.connect(gatepost.policyd_socket)
        client.sendall(request)
        client.recv(100)


def test_organization_whose_name_would_end_its_line_in_the_metrics_is_refused(tmp_path: Path) -> None:
    """It may come from an export."""
    gatepost = Gatepost(tmp_path, organizations=CONTOSO.replace('name = "contoso"', 'name = "a\\"} 1\\nevil{x=\\""'))
    assert gatepost.run() == os.EX_CONFIG
    assert gatepost.log == [
        'error: gatepost.toml: organization[0].name: "a\\"} 1?evil{x=\\"" has a character in it that can\'t be printed'
    ]


def test_organization_whose_name_has_quotes_and_braces_is_one_label(tmp_path: Path) -> None:
    name = 'a"} 1 \\ {x="'
    toml = json.dumps(name)
    with Gatepost(tmp_path, organizations=CONTOSO.replace('"contoso"', toml), metrics=True) as gatepost:
        with MilterClient(gatepost.socket) as client:
            client.open().send(b"<app@contoso.com>", [b"<x@gmail.example>"])
            client.quit()
        families = text_string_to_metric_families(gatepost.get("/metrics")[1])
        (sample,) = next(item for item in families if item.name == "gatepost_relay_decisions").samples
        assert (sample.labels["organization"], sample.value) == (name, 1)
