# SPDX-License-Identifier: GPL-3.0-or-later
"""`gatepost check --batch`: questions as CSV and JSON lines, an answer a row, and what becomes of bad lines."""

from __future__ import annotations

import csv
import inspect
import io
import json
import time
from pathlib import Path
from typing import Any

import pytest
from click.testing import CliRunner, Result
from daemonprocess import CONTOSO

from gatepost.admin.check_batch import OUTPUT
from gatepost.admin.command import main

# click before 8.2 puts both streams together unless told otherwise.
APART: Any = {"mix_stderr": False} if "mix_stderr" in inspect.signature(CliRunner).parameters else {}
HEADER = "ip,helo,certificate,authenticated,mail_from,header_from,rcpt\n"


class Batch:
    """The command with a configuration and a file of questions, on 2024-01-05."""

    def __init__(self, folder: Path) -> None:
        self.folder = folder
        self.file = folder / "batch"
        self.configuration = folder / "gatepost.toml"
        (folder / "srs.secret").write_text("the first key\n")
        (folder / "srs.secret").chmod(0o600)
        self.configuration.write_text(f'state_directory = "{folder}"\n[relay]\nmode = "enforce"\n{CONTOSO}')

    def __call__(self, text: str, *options: str) -> Result:
        self.file.write_text(text)
        return self.run(str(self.file), *options)

    def run(self, file: str, *options: str, stdin: str = "") -> Result:
        arguments = ["-c", str(self.configuration), "check", "--batch", file, "--at", "2024-01-05", *options]
        return CliRunner(**APART).invoke(main, arguments, input=stdin)


def rows(result: Result) -> list[dict[str, str]]:
    return list(csv.DictReader(io.StringIO(result.stdout)))


@pytest.fixture
def batch(tmp_path: Path) -> Batch:
    return Batch(tmp_path)


def test_csv_answers_each_recipient_with_a_row(batch: Batch) -> None:
    result = batch(
        HEADER
        + "192.0.2.5,,,,app@vendor.example,,x@gmail.com\n"
        + "203.0.113.9,,mail.contoso.com other.example,,bob@fabrikam.com,,x@gmail.com ann@contoso.com\n"
    )
    assert [row["line"] for row in rows(result)] == ["2", "3", "3"]
    assert rows(result)[0] == {
        "line": "2",
        "ip": "192.0.2.5",
        "mail_from": "app@vendor.example",
        "rcpt": "x@gmail.com",
        "verdict": "refuse",
        "reason": "nothing-accepted",
        "organization": "contoso",
        "connector": "head office",
        "action": "reject",
        "reply": "550 5.7.64 TenantAttribution; Relay Access Denied",
        "failed": "Condition 1 failed: the P1 domain vendor.example is not accepted, and the client presented no "
        'trusted certificate. Condition 2 holds: connector "head office" of contoso matches the client. An IP address '
        "is enough only where P1 or the recipient is in an accepted domain.",
        "remedy": "If vendor.example is your own, declare it: [[organization.accepted_domain]] "
        'domain = "vendor.example" under organization[contoso], and set default = true for contoso.com.',
        "mail_from_afterwards": "",
        "upstream": "",
    }
    some = [{name: row[name] for name in ("verdict", "action", "mail_from_afterwards")} for row in rows(result)[1:]]
    assert some == [
        {
            "verdict": "relay",
            "action": "rewrite",
            "mail_from_afterwards": "bounces+SRS=czvzs4na=IP=fabrikam.com=bob@contoso.com",
        },
        {"verdict": "inside", "action": "pass", "mail_from_afterwards": "bob@fabrikam.com"},
    ]
    assert result.exit_code == 1


def test_remedy_of_a_client_without_connector_has_both_parts(batch: Batch) -> None:
    (row,) = rows(batch(HEADER + "203.0.113.9,,,,app@vendor.example,,x@gmail.com\n"))
    assert row["remedy"].startswith("If vendor.example is your own, declare it: ")
    assert row["remedy"].endswith(
        ' The client needs a connector as well: add "203.0.113.9" to '
        "organization[contoso].connector[head office].sender_ip_addresses."
    )


def test_json_lines_are_told_by_their_content(batch: Batch) -> None:
    result = batch(
        '\n{"ip": "192.0.2.5", "mail_from": "app@contoso.com", "rcpt": ["x@gmail.com", "y@gmail.com"]}\n'
        '{"certificate": ["mail.contoso.com"], "mail_from": "<>", "rcpt": "x@gmail.com", "authenticated": false}\n',
        "--json",
    )
    answers = [json.loads(line) for line in result.stdout.splitlines()]
    assert [(answer["line"], answer["rcpt"], answer["reason"]) for answer in answers] == [
        (2, "x@gmail.com", "p1-accepted"),
        (2, "y@gmail.com", "p1-accepted"),
        (3, "x@gmail.com", "certificate-accepted"),
    ]
    assert tuple(answers[0]) == OUTPUT
    assert result.exit_code == 0


def test_standard_input_and_a_byte_order_mark_and_semicolons(batch: Batch) -> None:
    batch.file.write_bytes("\ufeffip;mail-from;rcpt\r\n192.0.2.5;app@contoso.com;x@gmail.com\r\n".encode())
    assert [row["verdict"] for row in rows(batch.run(str(batch.file)))] == ["relay"]


@pytest.mark.parametrize("encoding", ["utf-16", "utf-16-be"])
def test_utf_16_as_spreadsheets_write_it_is_read(batch: Batch, encoding: str) -> None:
    octets = "\ufeff".encode(encoding) if encoding != "utf-16" else b""
    octets += "ip,mail_from,rcpt\n192.0.2.5,app@contoso.com,x@gmail.com\n".encode(encoding)
    batch.file.write_bytes(octets)
    assert [row["verdict"] for row in rows(batch.run(str(batch.file)))] == ["relay"]


def test_what_action_rewrite_mends_is_let_through(batch: Batch) -> None:
    text = batch.configuration.read_text().replace("[relay]\n", '[relay]\naction = "rewrite"\n')
    batch.configuration.write_text(text)
    result = batch(HEADER + "192.0.2.5,,,,app@vendor.example,,x@gmail.com\n")
    assert [(row["verdict"], row["action"], row["remedy"]) for row in rows(result)] == [("refuse", "mend", "")]
    assert result.exit_code == 0


def test_line_that_is_no_question_is_named_and_the_others_are_answered(batch: Batch) -> None:
    result = batch(
        "ip,authenticated,mail_from,rcpt\n192.0.2,,a@contoso.com,x@gmail.com\n192.0.2.5,,a@contoso.com,x@gmail.com\n"
        "192.0.2.5,perhaps,a@contoso.com,x@gmail.com\n192.0.2.5,yes,a@contoso.com,\n192.0.2.5,,a@contoso.com,bob\n"
    )
    assert result.stderr.splitlines() == [
        f'{batch.file}: line 2: ip: "192.0.2" is no IP address',
        f'{batch.file}: line 4: authenticated: "perhaps" is neither yes nor no',
        f"{batch.file}: line 5: rcpt: has no address",
        f'{batch.file}: line 6: rcpt: "bob" has no domain',
    ]
    assert [row["line"] for row in rows(result)] == ["3"]
    assert result.exit_code == 65


@pytest.mark.parametrize(
    ("text", "error"),
    [
        (
            "ip,mail_form,rcpt\n",
            '"mail_form" is no column; there are: ip, helo, certificate, authenticated, mail_from, header_from, rcpt',
        ),
        ("ip,rcpt\n", 'column "mail_from" is missing'),
        ("ip,ip,mail_from,rcpt\n", 'column "ip" is there twice'),
        ("mail_from,rcpt\na@contoso.com\n", "line 2: has 1 cells, and the header 2"),
        ('mail_from,rcpt\n"a@contoso.com"x,b@c.example\n', "line 2: ',' expected after '\"'"),
        ('{"mail_from": "a@contoso.com", "to": "x@gmail.com"}', 'line 1: "to" is no column; there are: '),
        ('{"mail_from": "a@contoso.com"\n', "line 1: is no JSON object; each line has one, whole"),
        ("", 'column "mail_from" is missing'),
    ],
)
def test_batch_that_cannot_be_read_answers_nothing(batch: Batch, text: str, error: str) -> None:
    result = batch(text)
    assert result.stderr.startswith(f"{batch.file}: {error}")
    assert (result.stdout, result.exit_code) == ("", 65)


def test_json_value_of_a_wrong_type_is_named(batch: Batch) -> None:
    result = batch('{"mail_from": "a@contoso.com", "rcpt": 7}\n{"mail_from": ["a"], "rcpt": "x@gmail.com"}\n')
    assert result.stderr.splitlines() == [
        f"{batch.file}: line 1: rcpt: 7 is no text",
        f'{batch.file}: line 2: mail_from: ["a"] is no text',
    ]
    assert result.exit_code == 65


def test_what_a_spreadsheet_takes_for_a_formula_is_guarded(batch: Batch) -> None:
    result = batch("ip,mail_from,rcpt\n192.0.2.5,=1+1@contoso.com,x@gmail.com\n")
    assert rows(result)[0]["mail_from"] == "'=1+1@contoso.com"


def test_file_that_is_not_there(batch: Batch) -> None:
    result = batch.run("/nowhere.csv")
    assert (result.stderr, result.exit_code) == ("/nowhere.csv: No such file or directory\n", 66)


def test_options_that_belong_into_the_file_are_refused(batch: Batch) -> None:
    result = batch(HEADER, "--ip", "192.0.2.5")
    assert "--batch has all questions in its file" in result.stderr
    assert result.exit_code == 64


def test_ten_thousand_verdicts_take_seconds(batch: Batch) -> None:
    lines = [f"192.0.2.{number % 30},app@v{number}.example,x{number}@gmail.com\n" for number in range(10_000)]
    begin = time.monotonic()
    result = batch("ip,mail_from,rcpt\n" + "".join(lines))
    assert len(result.stdout.splitlines()) == 10_001
    assert time.monotonic() - begin < 20
