# SPDX-License-Identifier: GPL-3.0-or-later
"""`gatepost check message.eml`: what is read from the headers, and that the answer says so first."""

from __future__ import annotations

import io
import json
import os
import ssl
from pathlib import Path

import pytest
from click.testing import CliRunner, Result
from daemonprocess import CONTOSO

from gatepost.admin.authority import Authority
from gatepost.admin.check_message import read_headers
from gatepost.admin.command import main

HERE = os.uname().nodename
POSTFIX = (
    "from app.contoso.com (unknown [192.0.2.5])\n\tby {by} (Postfix) with ESMTP id 4CgSNs5Q9s\n"
    "\tfor <x@gmail.com>; Sun, 22 Nov 2026 07:00:00 +0000 (UTC)"
)
MESSAGE = "From: The Boss <ceo@contoso.com>\nSubject: the figures\n\nhello\n"


class Check:
    def __init__(self, folder: Path) -> None:
        self.folder = folder
        self._configuration = folder / "gatepost.toml"
        self._configuration.write_text(f'state_directory = "{folder}"\n[relay]\nmode = "enforce"\n{CONTOSO}')

    def __call__(self, message: str, *options: str) -> Result:
        file = self.folder / "message.eml"
        file.write_text(message)
        return CliRunner().invoke(main, ["-c", str(self._configuration), "check", *options, str(file)])

    def taken(self, message: str, *options: str) -> list[str]:
        """Return what was taken, and check that the answer says so."""
        found: list[str] = json.loads(self(message, *options, "--json").stdout)["taken_from_message"]
        return found


@pytest.fixture
def check(tmp_path: Path) -> Check:
    return Check(tmp_path)


def received(*values: str) -> str:
    return "".join(f"Received: {value}\n" for value in values)


def test_everything_is_read_from_the_headers_and_said_first(check: Check) -> None:
    headers = "Return-Path: <app@vendor.example>\nX-Original-To: x@gmail.com\nDelivered-To: y@gmail.com\n"
    result = check(headers + received(POSTFIX.format(by=HERE)) + MESSAGE)
    assert result.output.startswith(f"""\
Taken        client 192.0.2.5, HELO app.contoso.com, from Received header 1,
             written by {HERE}.
Taken        P2 ceo@contoso.com, from the header From.
Taken        P1 app@vendor.example, from the header Return-Path.
Taken        recipients from the header X-Original-To.

Client       192.0.2.5
Certificate  none that is trusted
HELO         app.contoso.com (information only, it never counts)
Rule set     2023-11-01

To x@gmail.com: refused
""")
    assert result.exit_code == 1


def test_options_come_before_headers(check: Check) -> None:
    headers = "Return-Path: <app@vendor.example>\nDelivered-To: y@gmail.com\n" + received(POSTFIX.format(by=HERE))
    options = ["--ip", "192.0.2.9", "--mail-from", "<>", "--header-from", "a@b.example", "--rcpt", "z@gmail.com"]
    result = check(headers + MESSAGE, *options)
    assert "Taken" not in result.output
    assert "\nTo z@gmail.com: refused\n" in result.output


def test_every_address_of_every_from_header_is_p2(check: Check) -> None:
    headers = "Return-Path: <>\nFrom: a@one.example, b@two.example\nFrom: c@three.example\nTo: x@gmail.com\n\n"
    assert check.taken(headers)[1] == "P2 a@one.example, b@two.example, c@three.example, from the header From."


def test_without_delivery_headers_to_and_cc_are_the_recipients(check: Check) -> None:
    headers = "Return-Path: <>\nTo: Ann <ann@gmail.com>, undisclosed-recipients:;\nCc: bob@fabrikam.com\n\n"
    result = check(headers)
    assert "Taken        recipients from the header To and Cc.\n" in result.output
    assert "\nTo ann@gmail.com: " in result.output
    assert "\nTo bob@fabrikam.com: " in result.output


def test_the_line_of_this_host_counts_also_below_those_of_later_ones(check: Check) -> None:
    later = "from hub.contoso.com (hub.contoso.com [203.0.113.1]) by mx.example.com (Postfix) with ESMTPS id 1"
    lines = received(later, POSTFIX.format(by=HERE))
    assert check.taken("Return-Path: <>\nTo: x@gmail.com\n" + lines + MESSAGE)[0] == (
        f"client 192.0.2.5, HELO app.contoso.com, from Received header 2, written by {HERE}."
    )


def test_where_no_line_is_by_this_host_the_topmost_counts_and_that_is_said(check: Check) -> None:
    lines = received(POSTFIX.format(by="mx.example.com"), POSTFIX.format(by="other.example.com"))
    assert check.taken("Return-Path: <>\nTo: x@gmail.com\n" + lines + MESSAGE)[0] == (
        "client 192.0.2.5, HELO app.contoso.com, from Received header 1, written by mx.example.com (none is by this "
        f"host, {HERE}; if that is not the host that you ask about, give --ip)."
    )


def test_names_in_local_domains_are_this_hosts_too(check: Check) -> None:
    configuration = check.folder / "gatepost.toml"
    local = '[relay]\nlocal_domains = ["hub.contoso.com"]\n'
    configuration.write_text(configuration.read_text().replace("[relay]\n", local))
    lines = received(POSTFIX.format(by="mx.example.com"), POSTFIX.format(by="hub.contoso.com"))
    assert check.taken("Return-Path: <>\nTo: x@gmail.com\n" + lines + MESSAGE)[0].endswith(
        "from Received header 2, written by hub.contoso.com."
    )


def test_lines_by_which_a_host_got_it_from_itself_do_not_count(check: Check) -> None:
    loopback = f"from localhost (localhost [127.0.0.1]) by {HERE} (Postfix) with ESMTP id 2"
    itself = f"from {HERE} ({HERE} [192.0.2.1]) by {HERE} (Postfix) with ESMTP id 3"
    lines = received(loopback, itself, POSTFIX.format(by=HERE))
    assert check.taken("Return-Path: <>\nTo: x@gmail.com\n" + lines + MESSAGE)[0].endswith(
        f"from Received header 3, written by {HERE}."
    )


def test_a_client_that_says_helo_with_this_hosts_name_is_not_this_host(check: Check) -> None:
    forged = f"from {HERE} (unknown [203.0.113.66]) by {HERE} (Postfix) with ESMTP id 3"
    lines = received(forged, POSTFIX.format(by=HERE))
    assert check.taken("Return-Path: <>\nTo: x@gmail.com\n" + lines + MESSAGE)[0] == (
        f"client 203.0.113.66, HELO {HERE}, from Received header 1, written by {HERE}."
    )


def test_a_message_is_read_to_its_headers_end_only() -> None:
    stream = io.BytesIO(b"Return-Path: <>\r\nSubject: x\r\n\r\nFrom: body\r\n" + b"more\r\n" * 3)
    assert read_headers(stream).keys() == ["Return-Path", "Subject"]
    assert stream.read() == b"From: body\r\n" + b"more\r\n" * 3


def test_a_private_client_is_a_client(check: Check) -> None:
    lines = received(f"from scanner (unknown [10.1.2.3]) by {HERE} (Postfix) with SMTP id 2")
    assert check.taken("Return-Path: <>\nTo: x@gmail.com\n" + lines + MESSAGE)[0].startswith(
        "client 10.1.2.3, HELO scanner,"
    )


@pytest.mark.parametrize(
    ("line", "taken"),
    [
        (
            "from [10.0.0.9] (unknown [192.0.2.5]) by {by} (Postfix) with ESMTPSA id 4",
            "client 192.0.2.5, HELO 10.0.0.9, authenticated",
        ),
        (
            'from crm (unknown [192.0.2.5]) (Client CN "mail.contoso.com", Issuer "CA" (verified OK)) by {by} '
            "(Postfix) with ESMTPS id 4",
            "client 192.0.2.5, HELO crm, certificate mail.contoso.com",
        ),
        (
            'from crm (unknown [192.0.2.5]) (Client CN "mail.contoso.com", Issuer "CA" (not verified)) by {by} '
            "(Postfix) with ESMTPS id 4",
            "client 192.0.2.5, HELO crm",
        ),
        (
            "from app.contoso.com (app.contoso.com [192.0.2.5]) by {by} (8.17.1/8.17.1) with ESMTP id 5",
            "client 192.0.2.5, HELO app.contoso.com",
        ),
        ("from [192.0.2.5] (helo=[10.0.0.9]) by {by} with esmtp (Exim 4.96) id 6", "client 192.0.2.5, HELO [10.0.0.9]"),
        (
            "from AM0P1.EURP1.PROD.OUTLOOK.COM (2603:10a6:208::1) by {by} with HTTPS id 15.20",
            "client 2603:10a6:208::1, HELO AM0P1.EURP1.PROD.OUTLOOK.COM",
        ),
        (
            "from app (unknown [IPv6:2001:db8::5]) by {by} (Postfix) with ESMTP id 7",
            "client 2001:db8::5, HELO app",
        ),
    ],
)
def test_received_lines_of_several_programs(check: Check, line: str, taken: str) -> None:
    message = "Return-Path: <>\nTo: x@gmail.com\n" + received(line.format(by=HERE)) + MESSAGE
    assert check.taken(message)[0] == f"{taken}, from Received header 1, written by {HERE}."


def test_mail_of_sendmail_is_exempt(check: Check) -> None:
    lines = received(f"by {HERE} (Postfix, from userid 1000)\n\tid 4CgSNs5Q9s; Sun, 22 Nov 2026 07:00:00 +0000")
    result = check("Return-Path: <cron@contoso.com>\nTo: x@gmail.com\n" + lines + MESSAGE)
    assert "Taken        client sendmail(1) on this host, from Received header 1.\n" in result.output
    assert "\nTo x@gmail.com: relayed, exempt\n" in result.output


@pytest.mark.parametrize(
    ("message", "error"),
    [
        ("From: a@b.c\nTo: x@gmail.com\n\n", "there is no header Return-Path, so P1 is not known; give --mail-from"),
        ("From: a@b.example\nReturn-Path: <>\n\n", "no header names a recipient; give --rcpt"),
        ("hello\n", "is no message: it begins with no header"),
    ],
)
def test_what_is_missing_is_asked_for(check: Check, message: str, error: str) -> None:
    result = check(message)
    assert result.output.splitlines()[-1] == f"Error: {check.folder}/message.eml: {error}"
    assert result.exit_code == 64


def test_message_on_standard_input(check: Check, tmp_path: Path) -> None:
    arguments = ["-c", str(tmp_path / "gatepost.toml"), "check", "--mail-from", "a@contoso.com", "-"]
    result = CliRunner().invoke(main, arguments, input="To: x@gmail.com\nFrom: a@contoso.com\n\n")
    assert "\nTo x@gmail.com: refused\n" in result.output


def test_a_certificate_file_gives_cn_and_sans(check: Check, tmp_path: Path) -> None:
    pem = Authority(tmp_path / "tls").issue("crm.example", ["mail.contoso.com", "crm.example"]).certificate
    result = check(MESSAGE, "--certificate-file", str(pem), "--mail-from", "<>", "--rcpt", "x@gmail.com")
    assert f"{pem}: names crm.example, mail.contoso.com; valid until " in " ".join(result.output.split())
    assert "\nCertificate  crm.example, mail.contoso.com\n" in result.output
    assert result.exit_code == 0


@pytest.mark.parametrize("why", ["it expired on ", "it is self-signed"])
def test_a_certificate_that_no_mta_trusts_has_no_names(check: Check, why: str) -> None:
    authority, expired = Authority(check.folder / "tls"), "expired" in why
    pem = authority.issue("mail.contoso.com", expired=expired, self_signed=not expired).certificate
    result = check(MESSAGE, "--certificate-file", str(pem), "--mail-from", "<>", "--rcpt", "x@gmail.com")
    assert f"{pem}: {why}" in " ".join(result.output.split())
    assert "\nCertificate  none that is trusted\n" in result.output
    assert result.exit_code == 1


def test_a_certificate_file_that_has_none_is_wrong_usage(check: Check) -> None:
    result = check(MESSAGE, "--certificate-file", str(check.folder / "gatepost.toml"))
    assert result.output.splitlines()[-1].endswith("gatepost.toml holds no certificate, neither PEM nor DER")
    assert result.exit_code == 64


def test_a_certificate_that_is_not_valid_yet_has_no_names(check: Check, tmp_path: Path) -> None:
    pem = Authority(tmp_path / "tls").issue("mail.contoso.com").certificate
    options = ("--certificate-file", str(pem), "--at", "2020-02-01", "--mail-from", "<>", "--rcpt", "x@gmail.com")
    result = check(MESSAGE, *options)
    assert f"{pem}: it is valid from " in " ".join(result.output.split())
    assert "\nCertificate  none that is trusted\n" in result.output


def test_a_certificate_file_may_be_der(check: Check, tmp_path: Path) -> None:
    pem = Authority(tmp_path / "tls").issue("mail.contoso.com").certificate
    der = tmp_path / "client.cer"
    der.write_bytes(ssl.PEM_cert_to_DER_cert(pem.read_text()))
    result = check(MESSAGE, "--certificate-file", str(der), "--mail-from", "<>", "--rcpt", "x@gmail.com")
    assert "\nCertificate  mail.contoso.com\n" in result.output
