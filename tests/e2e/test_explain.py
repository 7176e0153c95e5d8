# SPDX-License-Identifier: GPL-3.0-or-later
"""A real Postfix refuses or takes a message; what the client or the log has of it leads `gatepost explain` to it."""

from __future__ import annotations

import re
from typing import Callable

import pytest

from gatepost.admin.stage import Stage

MESSAGE = b"From: The Boss <ceo@contoso.com>\r\nMessage-Id: <77@app.contoso.com>\r\n\r\nhello\r\n"


def enforcing(text: str) -> str:
    return text.replace('mode = "monitor"', 'mode = "enforce"')


@pytest.fixture(scope="module")
def hub(boot: Callable[..., Stage]) -> Stage:
    server = "mydestination = mail.contoso.com, localhost\nmynetworks = 127.0.0.0/8, 192.0.2.0/28\n"
    relays = "relay_domains = contoso.com\nrelay_transport = relay:[mailbox.contoso.com]:25\n"
    return boot("relay-hub", before=server + relays, configuration=enforcing, tls=True)


@pytest.fixture(scope="module")
def policy_only(boot: Callable[..., Stage]) -> Stage:
    server = "relay_domains = contoso.com\nrelay_transport = relay:[mailbox.contoso.com]:25\nmynetworks = 127.0.0.0/8\n"
    return boot("policy-only", before=server, configuration=enforcing, gatepost=["policyd"])


def explained(stage: Stage, name: str) -> str:
    done = stage.gatepost("explain", name)
    assert (done.stderr, done.returncode) == ("", 0)
    return " ".join(done.stdout.split())


@pytest.mark.parametrize("example", ["hub", "policy_only"])
def test_client_asks_with_the_reply_that_it_got(request: pytest.FixtureRequest, example: str) -> None:
    stage: Stage = request.getfixturevalue(example)
    sent = stage.send("app@vendor.example", "x@example.com", MESSAGE)
    assert sent.rcpt[0].code == 550
    text = explained(stage, str(sent.rcpt[0]))
    reference = sent.rcpt[0].text.rpartition("[")[2].rstrip("]")
    assert f"Reference {reference} When " in text
    assert "Client 192.0.2.5 Certificate none that is trusted HELO app.contoso.com" in text
    assert "To x@example.com: refused Refused: x@example.com is outside, and neither certificate nor P1 is in" in text
    assert "app@vendor.example: vendor.example is" in text
    assert 'domain = "vendor.example" under organization[contoso]' in text
    assert text.endswith(f"was refused with 550 5.7.64 TenantAttribution; Relay Access Denied [{reference}].")


def test_queue_id_in_postfix_log_leads_to_what_was_rewritten(hub: Stage) -> None:
    start = len(hub.postfix.log())
    sent = hub.send("bob@fabrikam.com", "y@example.com", MESSAGE, login="ann")
    assert sent.accepted
    logged = hub.postfix.wait_for_log(r"smtpd\[\d+\]: (\w+): client=", 20, start=start)[1]
    mail = hub.internet.wait(lambda mail: mail.rcpt_to == ["y@example.com"])
    text = explained(hub, logged)
    assert f"Queue ID {logged} Message-ID <77@app.contoso.com> Client 192.0.2.5, authenticated (SASL)" in text
    assert "To y@example.com: relayed, exempt Relayed: the client has authenticated (SASL)" in text
    assert "ceo@contoso.com: contoso.com is" in text
    title = "Envelope afterwards (the ledger has it in lower case)"
    assert text.endswith(f"{title} MAIL FROM:<{mail.mail_from.lower()}> RCPT TO:<y@example.com>")


def test_certificate_is_explained_by_its_names(hub: Stage) -> None:
    certificate = hub.authority.issue("crm.contoso.com")
    sent = hub.send("", "z@example.com", MESSAGE, client="", certificate=certificate)
    assert sent.accepted, sent.last
    text = explained(hub, sent.queue_id)
    assert "Certificate crm.contoso.com" in text
    assert "Certificate name crm.contoso.com is one label below contoso.com, an accepted domain of contoso" in text


def test_todays_configuration_is_told_apart_from_what_was_decided(hub: Stage) -> None:
    sent = hub.send("app@other.example", "x@example.com", MESSAGE)
    reference = re.findall(r"\[(\w{10})\]", sent.rcpt[0].text)[0]
    before = hub.configuration.read_text()
    hub.configuration.write_text(before.replace('domain = "contoso.com"', 'domain = "other.example"', 1))
    try:
        text = explained(hub, reference)
    finally:
        hub.configuration.write_text(before)
    assert "Decided then: Refused: x@example.com is outside" in text
    assert "With today's configuration it would be let through. Relayed for contoso: P1 is accepted" in text
