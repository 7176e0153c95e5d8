# SPDX-License-Identifier: GPL-3.0-or-later
"""A client's names in the ledger and the log, from a Postfix that asks DNS, and from gatepost where that does not."""

from __future__ import annotations

import smtplib
from collections.abc import Iterator
from typing import Callable

import pytest
from ledgerrows import Row, rows
from nameserver import NameServer

from gatepost.admin.stage import Stage, command, transact

INSIDE, OUTSIDE = "mary@contoso.com", "x@example.com"
SERVER = (
    "mydestination = mail.contoso.com, localhost\nmynetworks = 127.0.0.0/8, 192.0.2.0/28\n"
    "relay_domains = contoso.com\nrelay_transport = relay:[mailbox.contoso.com]:25\n"
)
LOOKED_UP = "smtpd_peername_lookup = yes\n"
NAME_SERVER = "127.91.0.53"
RECORDS = {
    "2.0.0.127.in-addr.arpa": {"PTR": ["Good.Contoso.com."]},
    "good.contoso.com": {"A": ["127.0.0.2"]},
    "3.0.0.127.in-addr.arpa": {"PTR": ["liar.contoso.com."]},
    "liar.contoso.com": {"A": ["192.0.2.77"]},
    "5.0.0.127.in-addr.arpa": {"PTR": [r"a\255\010b\044\032reason\061relay.example."]},
    "5.2.0.192.in-addr.arpa": {"PTR": ["crm.contoso.com."]},
    "crm.contoso.com": {"A": ["192.0.2.5"]},
    "6.2.0.192.in-addr.arpa": {"PTR": ["liar.contoso.com."]},
    "8.2.0.192.in-addr.arpa": {"PTR": [r"a\255\010b\044\032reason\061relay.example."]},
}
SILENT = "100.51.198.in-addr.arpa"


@pytest.fixture(scope="module")
def server() -> Iterator[NameServer]:
    # At the only port that the C library asks.
    with NameServer(
        RECORDS, failing=["10.0.0.127.in-addr.arpa"], silent=[SILENT], host=NAME_SERVER, port=53
    ) as running:
        yield running


def resolving(stage: Stage) -> Stage:
    """Have the stage's Postfix, in its chroot, ask the private name server."""
    resolver = f"nameserver {NAME_SERVER}\noptions timeout:1 attempts:1\n"
    (stage.postfix.queue_directory / "etc/resolv.conf").write_text(resolver)
    return stage


def monitoring(text: str) -> str:
    return text.replace('mode = "enforce"', 'mode = "monitor"')


def asking(text: str) -> str:
    return monitoring(text) + f'\n[dns]\nnameservers = ["{NAME_SERVER}"]\nfcrdns = true\n'


@pytest.fixture(scope="module")
def hub(boot: Callable[..., Stage], server: NameServer) -> Stage:
    return resolving(boot("relay-hub", before=SERVER + LOOKED_UP, configuration=monitoring))


def row(stage: Stage, queue_id: str) -> Row:
    stage.postfix.wait_until_idle()
    (found,) = [row for row in rows(stage.state_directory) if row["queue_id"] == queue_id]
    return found


def names(stage: Stage, queue_id: str) -> tuple[object, ...]:
    return row(stage, queue_id).some("reverse_name", "fcrdns")


def sent(stage: Stage, source: str, xclient: str = "") -> str:
    """Send a message from the address *source* of this host; return its queue ID."""
    with smtplib.SMTP(*stage.postfix.smtp, source_address=(source, 0), timeout=60) as smtp:
        command(smtp, "EHLO app.contoso.com")
        if xclient:
            assert command(smtp, f"XCLIENT {xclient}").code == 220
            command(smtp, "EHLO app.contoso.com")
        return transact(smtp, "app@contoso.com", INSIDE).queue_id


@pytest.mark.parametrize(
    ("source", "recorded"),
    [
        ("127.0.0.2", ("good.contoso.com", "confirmed")),
        ("127.0.0.3", ("liar.contoso.com", "unconfirmed")),
        ("127.0.0.4", ("", "")),
        ("127.0.0.5", ("", "")),
        ("127.0.0.10", ("", "")),
    ],
    ids=["confirmed", "unconfirmed", "no name", "hostile name", "DNS fails"],
)
def test_name_that_postfix_found_is_recorded(hub: Stage, source: str, recorded: tuple[str, str]) -> None:
    assert names(hub, sent(hub, source)) == recorded


@pytest.mark.parametrize(
    ("attributes", "recorded"),
    [
        ("NAME=App.Contoso.com", ("app.contoso.com", "confirmed")),
        ("NAME=[UNAVAILABLE] REVERSE_NAME=rev.contoso.com", ("rev.contoso.com", "unconfirmed")),
        ("NAME=[TEMPUNAVAIL] REVERSE_NAME=rev.contoso.com", ("rev.contoso.com", "")),
        ("NAME=[UNAVAILABLE] REVERSE_NAME=[UNAVAILABLE]", ("", "")),
    ],
)
def test_name_that_a_proxy_gives_by_xclient_is_recorded(hub: Stage, attributes: str, recorded: tuple[str, str]) -> None:
    assert names(hub, sent(hub, "127.0.0.1", f"ADDR=192.0.2.5 {attributes}")) == recorded


def test_mail_of_sendmail_has_no_name(hub: Stage) -> None:
    hub.postfix.sendmail(["-f", "app@contoso.com", INSIDE], b"Subject: by sendmail(1)\n\nhello\n")
    hub.postfix.wait_until_idle()
    assert rows(hub.state_directory)[-1].some("client", "reverse_name", "fcrdns") == ("127.0.0.1", "", "")


def test_refusal_has_the_helo_name_in_its_line_and_no_helo_name_can_add_a_field(hub: Stage) -> None:
    start = len(hub.log())
    with hub.session(helo="x>, reason=none, y=<z") as smtp:
        assert transact(smtp, "app@vendor.example", OUTSIDE).accepted
    hub.wait_for_log(r"action=monitor, .*client=192\.0\.2\.5, helo=<x\?, reason=none, y=\?z>, org", start=start)


# Where gatepost asks


@pytest.fixture(scope="module")
def asker(boot: Callable[..., Stage], server: NameServer) -> Stage:
    return boot("relay-hub", before=SERVER, configuration=asking)


@pytest.fixture(scope="module")
def policy(boot: Callable[..., Stage], server: NameServer) -> Stage:
    return boot("policy-only", before=SERVER, configuration=asking, gatepost=["policyd"])


def once_known(stage: Stage, client: str) -> tuple[object, ...]:
    """Send mail from *client* until the ledger knows of its name; return that.

    No message waits for DNS, so it is a later one that has it.
    """
    for _ in range(50):
        found = names(stage, stage.send("app@contoso.com", INSIDE, client=client).queue_id)
        if found[1]:
            return found
    return ("", "")


@pytest.mark.parametrize("which", ["asker", "policy"])
@pytest.mark.parametrize(
    ("client", "recorded"),
    [
        ("192.0.2.5", ("crm.contoso.com", "confirmed")),
        ("192.0.2.6", ("liar.contoso.com", "unconfirmed")),
        ("192.0.2.7", ("", "none")),
        ("192.0.2.8", ("", "unconfirmed")),
    ],
    ids=["confirmed", "unconfirmed", "none", "hostile"],
)
def test_name_that_dns_gave_is_recorded_where_postfix_has_none(
    request: pytest.FixtureRequest, which: str, client: str, recorded: tuple[str, str]
) -> None:
    assert once_known(request.getfixturevalue(which), client) == recorded


@pytest.mark.parametrize("which", ["asker", "policy"])
def test_message_is_through_before_dns_has_answered(
    request: pytest.FixtureRequest, which: str, server: NameServer
) -> None:
    stage: Stage = request.getfixturevalue(which)
    client = {"asker": "192.0.2.10", "policy": "192.0.2.11"}[which]
    server.open.clear()
    try:
        before = len(server.questions)
        queue_id = stage.send("app@contoso.com", INSIDE, client=client).queue_id
        server.wait_for_questions(before + 1)  # it was asked, and answers nobody yet
        assert names(stage, queue_id) == ("", "")
    finally:
        server.open.set()
    assert once_known(stage, client) == ("", "none")


@pytest.mark.parametrize("which", ["asker", "policy"])
def test_dns_that_never_answers_keeps_no_mail_away(request: pytest.FixtureRequest, which: str) -> None:
    stage: Stage = request.getfixturevalue(which)
    sent = [stage.send("app@contoso.com", INSIDE, client=f"198.51.100.{number}") for number in range(40)]
    assert all(message.accepted for message in sent)
    stage.postfix.wait_until_idle()
    found = {row["client"]: row.some("reverse_name", "fcrdns") for row in rows(stage.state_directory)}
    assert {found[f"198.51.100.{number}"] for number in range(40)} == {("", "")}
