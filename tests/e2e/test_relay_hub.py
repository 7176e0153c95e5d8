# SPDX-License-Identifier: GPL-3.0-or-later
"""The relay hub: who may relay, and with which envelope sender mail leaves.

The hub serves contoso.com. 192.0.2.5 is a host of head office (connector by IP address), crm.contoso.com one that
shows a certificate, fabrikam.com somebody else. example.com is outside.
"""

from __future__ import annotations

import base64
import re
from typing import Callable

import dkim
import pytest
from cryptography.hazmat.primitives import serialization
from cryptography.hazmat.primitives.asymmetric import rsa

from gatepost.admin.authority import Credentials
from gatepost.admin.nexthop import Received
from gatepost.admin.stage import Stage, transact

HUB = """
mynetworks = 127.0.0.0/8, 192.0.2.0/24
relay_domains = contoso.com
relay_transport = relay:[mailbox.contoso.com]:25
relay_recipient_maps = inline:{ {mary@contoso.com = x}, {app@contoso.com = x} }
local_header_rewrite_clients =
"""
REFUSED = r"550 5\.7\.64 TenantAttribution; Relay Access Denied \[\w{10}\]"
REWRITTEN = r"bounces\+SRS=[a-z2-7]{8}=[A-Z2-7]{2}=fabrikam\.com=bob@contoso\.com"
PLAIN = b"From: Bob <bob@fabrikam.com>\r\nSubject: x\r\n\r\nhello\r\n"
P2_ACCEPTED = b"From: App <app@contoso.com>\r\nSubject: x\r\n\r\nhello\r\n"


def enforcing(text: str) -> str:
    return text.replace('mode = "monitor"', 'mode = "enforce"')


def legacy(text: str) -> str:
    return enforcing(text).replace('requirements = "2023-11-01"', 'requirements = "legacy"\nexempt = []')


def admit_crm(stage: Stage) -> None:
    """Issue the CRM's certificate (tls/2.pem) and let Postfix admit it, as the README says."""
    crm = stage.authority.issue("crm.contoso.com")
    (stage.root / "mta/etc/relay_clientcerts").write_text(f"{crm.fingerprint} crm\n")


@pytest.fixture(scope="module")
def hub(boot: Callable[..., Stage]) -> Stage:
    return boot("relay-hub", before=HUB, configuration=enforcing, tls=True, prepare=admit_crm)


@pytest.fixture(scope="module")
def long_hub(boot: Callable[..., Stage]) -> Stage:
    """A hub whose SRS addresses all hold the original."""
    return boot(
        "relay-hub",
        before=HUB,
        configuration=lambda text: enforcing(text) + '\n[srs]\nform = "long"\n',
        tls=True,
        prepare=admit_crm,
    )


@pytest.fixture(scope="module")
def legacy_hub(boot: Callable[..., Stage]) -> Stage:
    return boot("relay-hub", before=HUB, configuration=legacy)


@pytest.fixture(scope="module")
def monitoring_hub(boot: Callable[..., Stage]) -> Stage:
    """The example as it stands in its folder."""
    return boot("relay-hub", before=HUB)


@pytest.fixture
def crm(hub: Stage) -> Credentials:
    return Credentials(hub.root / "tls/2.pem", hub.root / "tls/2.key", "")


def arrived(stage: Stage, *rcpt: str) -> Received:
    return stage.internet.wait(lambda mail: mail.rcpt_to == list(rcpt))


def without_received(content: bytes) -> bytes:
    """Return *content* less the one Received line that the hub puts on top."""
    line, _, rest = re.split(rb"(\r\n(?=[^ \t]))", content, maxsplit=1)
    assert line.startswith(b"Received: from app.contoso.com")
    return rest


# The relay rule, 2023-11-01


def test_matching_ip_and_accepted_p1_goes_out_untouched_r1(hub: Stage) -> None:
    assert hub.send("app@contoso.com", "r1@example.com", PLAIN).accepted
    mail = arrived(hub, "r1@example.com")
    assert mail.mail_from == "app@contoso.com"
    assert without_received(mail.content) == PLAIN


def test_foreign_p1_from_a_matching_ip_is_refused_with_a_reference_r1(hub: Stage) -> None:
    reply = hub.send("bob@fabrikam.com", "x@example.com", PLAIN).last
    assert re.fullmatch(REFUSED, str(reply))


def test_reference_of_a_refusal_is_in_the_log_beside_its_reason(hub: Stage) -> None:
    reply = hub.send("bob@fabrikam.com", "x@example.com", PLAIN).last
    reference = reply.text[-11:-1]
    hub.wait_for_log(
        r"NOQUEUE: action=reject, from=<bob@fabrikam\.com>, to=<x@example\.com>, client=192\.0\.2\.5, "
        rf"helo=<app\.contoso\.com>, organization=contoso, reason=nothing-accepted, reference={reference}$"
    )


def test_accepted_p1_from_an_unknown_ip_is_refused_r1(hub: Stage) -> None:
    # 192.0.2.77 is in mynetworks, and in no connector.
    reply = hub.send("app@contoso.com", "x@example.com", client="192.0.2.77").last
    assert re.fullmatch(REFUSED, str(reply))


def test_p1_in_an_undeclared_subdomain_is_foreign_r4(hub: Stage) -> None:
    reply = hub.send("app@sub.contoso.com", "x@example.com").last
    assert re.fullmatch(REFUSED, str(reply))


def test_foreign_p1_with_a_certificate_is_relayed_and_rewritten_s4(hub: Stage, crm: Credentials) -> None:
    assert hub.send("bob@fabrikam.com", "s4@example.com", PLAIN, client="203.0.113.9", certificate=crm).accepted
    mail = arrived(hub, "s4@example.com")
    assert re.fullmatch(REWRITTEN, mail.mail_from)
    assert without_received(mail.content) == PLAIN


def test_accepted_p1_with_a_certificate_goes_out_untouched_s2(hub: Stage, crm: Credentials) -> None:
    assert hub.send("app@contoso.com", "s2@example.com", client="203.0.113.9", certificate=crm).accepted
    assert arrived(hub, "s2@example.com").mail_from == "app@contoso.com"


def test_certificate_that_postfix_does_not_trust_is_as_good_as_none_r10(hub: Stage) -> None:
    forged = hub.authority.issue("crm.contoso.com", self_signed=True)
    reply = hub.send("bob@fabrikam.com", "x@example.com", certificate=forged).last
    assert re.fullmatch(REFUSED, str(reply))


def test_null_sender_to_outside_without_a_certificate_is_refused_r5(hub: Stage) -> None:
    reply = hub.send("", "x@example.com", PLAIN).last
    assert re.fullmatch(REFUSED, str(reply))


def test_null_sender_to_outside_with_a_certificate_goes_out_untouched_r5_s2(hub: Stage, crm: Credentials) -> None:
    assert hub.send("", "r5@example.com", PLAIN, client="203.0.113.9", certificate=crm).accepted
    mail = arrived(hub, "r5@example.com")
    assert mail.mail_from == ""
    assert without_received(mail.content) == PLAIN


def test_p2_alone_does_not_let_relay_since_2023_11_01_r1(hub: Stage) -> None:
    reply = hub.send("bob@fabrikam.com", "x@example.com", P2_ACCEPTED).last
    assert re.fullmatch(REFUSED, str(reply))


def test_inside_recipient_gets_anything_with_p1_untouched_r2(hub: Stage) -> None:
    assert hub.send("bob@fabrikam.com", "mary@contoso.com", PLAIN, client="198.51.100.7").accepted
    mail = hub.inside.wait(lambda mail: mail.rcpt_to == ["mary@contoso.com"] and mail.mail_from == "bob@fabrikam.com")
    assert without_received(mail.content) == PLAIN


def test_null_sender_to_an_inside_recipient_passes_r2(hub: Stage) -> None:
    assert hub.send("", "app@contoso.com", client="198.51.100.7").accepted
    assert hub.inside.wait(lambda mail: mail.rcpt_to == ["app@contoso.com"]).mail_from == ""


def test_unknown_host_is_refused_by_postfix_itself_as_without_gatepost(hub: Stage) -> None:
    reply = hub.send("bob@fabrikam.com", "x@example.com", client="198.51.100.7").last
    assert str(reply) == "554 5.7.1 <x@example.com>: Relay access denied"


# The relay rule, legacy


def test_legacy_lets_p2_relay_and_rewrites_p1_r1_s4(legacy_hub: Stage) -> None:
    assert legacy_hub.send("bob@fabrikam.com", "p2@example.com", P2_ACCEPTED).accepted
    mail = arrived(legacy_hub, "p2@example.com")
    assert re.fullmatch(REWRITTEN, mail.mail_from)
    assert without_received(mail.content) == P2_ACCEPTED


def test_legacy_refuses_a_foreign_p2_at_the_end_of_the_message(legacy_hub: Stage) -> None:
    transcript = legacy_hub.send("bob@fabrikam.com", "x@example.com", PLAIN)
    assert [reply.code for reply in transcript.rcpt] == [250]
    assert re.fullmatch(REFUSED, str(transcript.end))


def test_legacy_refuses_a_message_without_from(legacy_hub: Stage) -> None:
    transcript = legacy_hub.send("bob@fabrikam.com", "x@example.com", b"Subject: x\r\n\r\nhello\r\n")
    assert re.fullmatch(REFUSED, str(transcript.end))


def test_legacy_keeps_the_next_message_apart_from_a_refused_one(legacy_hub: Stage) -> None:
    with legacy_hub.session() as smtp:
        accepted = transact(smtp, "bob@fabrikam.com", "one@example.com", P2_ACCEPTED)
        refused = transact(smtp, "bob@fabrikam.com", "x@example.com", PLAIN)
        again = transact(smtp, "bob@fabrikam.com", "two@example.com", P2_ACCEPTED)
    assert [accepted.accepted, refused.accepted, again.accepted] == [True, False, True]
    assert re.fullmatch(REWRITTEN, arrived(legacy_hub, "two@example.com").mail_from)


# Exempt clients


def test_sasl_client_is_exempt_and_rewritten(hub: Stage) -> None:
    assert hub.send("bob@fabrikam.com", "sasl@example.com", login="mary").accepted
    assert re.fullmatch(REWRITTEN, arrived(hub, "sasl@example.com").mail_from)


def test_sendmail_is_exempt_and_a_foreign_p1_is_rewritten(hub: Stage) -> None:
    hub.postfix.sendmail(["-f", "bob@fabrikam.com", "local@example.com"], b"From: bob@fabrikam.com\n\nhello\n")
    assert re.fullmatch(REWRITTEN, arrived(hub, "local@example.com").mail_from)


def test_sendmail_with_an_accepted_p1_is_untouched(hub: Stage) -> None:
    hub.postfix.sendmail(["-f", "app@contoso.com", "cron@example.com"], b"From: app@contoso.com\n\nhello\n")
    assert arrived(hub, "cron@example.com").mail_from == "app@contoso.com"


def test_sendmail_with_inside_and_outside_recipients_is_rewritten_for_all(hub: Stage) -> None:
    """Postfix cannot be told to split it: a 452 here would keep the mail in the maildrop queue for ever."""
    rcpt = ["mary@contoso.com", "l1@example.com"]
    hub.postfix.sendmail(["-f", "bob@fabrikam.com", *rcpt], b"From: bob@fabrikam.com\nSubject: l1\n\nhello\n")
    assert re.fullmatch(REWRITTEN, arrived(hub, "l1@example.com").mail_from)
    inside = hub.inside.wait(lambda mail: b"Subject: l1" in mail.content)
    assert re.fullmatch(REWRITTEN, inside.mail_from)


def test_sendmail_with_a_sender_too_long_to_rewrite_bounces_at_once(long_hub: Stage) -> None:
    sender = "c" * 210 + "@fabrikam.com"
    long_hub.postfix.sendmail(["-f", sender, "x@example.com"], b"Subject: x\n\nhello\n")
    bounce = arrived(long_hub, sender)
    assert bounce.mail_from == ""
    assert b"Sender address is too long or malformed" in bounce.content


def test_sendmail_that_is_not_exempt_bounces_what_the_rule_refuses(legacy_hub: Stage) -> None:
    """The configuration of this hub has `exempt = []`."""
    legacy_hub.postfix.sendmail(["-f", "bob@fabrikam.com", "x@example.com"], b"From: bob@fabrikam.com\n\nhello\n")
    report = arrived(legacy_hub, "bob@fabrikam.com").content
    assert b"\r\nStatus: 5.7.64\r\n" in report
    assert b"TenantAttribution; Relay Access Denied" in report


# Several recipients


def test_outside_recipient_beside_an_inside_one_is_put_off_and_each_gets_one_right_copy(
    hub: Stage, crm: Credentials
) -> None:
    """One message has one sender: with it rewritten the inside copy would be wrong, with it kept the outside one."""
    waiting = ["mary@contoso.com", "mix1@example.com", "mix2@example.com"]
    message = PLAIN.replace(b"Subject: x", b"Subject: mixed")
    rounds = []
    with hub.session(client="203.0.113.9", certificate=crm) as smtp:
        while waiting:
            transcript = transact(smtp, "bob@fabrikam.com", waiting, message)
            assert transcript.accepted
            rounds.append([str(reply) for reply in transcript.rcpt])
            waiting = [rcpt for rcpt, reply in zip(waiting, transcript.rcpt) if reply.code == 452]
    split = "452 4.5.3 Inside and outside recipients need a message each, please try again"
    assert rounds == [["250 2.1.5 Ok", split, split], ["250 2.1.5 Ok", "250 2.1.5 Ok"]]
    arrived(hub, "mix1@example.com", "mix2@example.com")
    hub.postfix.wait_until_idle()
    copies = [
        (mail.rcpt_to, mail.mail_from.partition("=")[0])
        for mail in hub.inside.messages + hub.internet.messages
        if b"Subject: mixed" in mail.content
    ]
    assert copies == [
        (["mary@contoso.com"], "bob@fabrikam.com"),
        (["mix1@example.com", "mix2@example.com"], "bounces+SRS"),
    ]


def test_accepted_p1_may_have_inside_and_outside_recipients_at_once(hub: Stage) -> None:
    transcript = hub.send("app@contoso.com", ["mary@contoso.com", "both@example.com"])
    assert [reply.code for reply in transcript.rcpt] == [250, 250]
    assert arrived(hub, "both@example.com").mail_from == "app@contoso.com"


def test_refused_outside_recipient_does_not_keep_the_mail_from_the_inside_one_r2(hub: Stage) -> None:
    transcript = hub.send("bob@fabrikam.com", ["x@example.com", "mary@contoso.com"])
    assert [reply.code for reply in transcript.rcpt] == [550, 250]
    assert transcript.accepted


def test_thousand_recipients_get_one_rewritten_copy_each(hub: Stage, crm: Credentials) -> None:
    rcpt = [f"r{number}@many.example" for number in range(1000)]
    assert hub.send("bob@fabrikam.com", rcpt, PLAIN, client="203.0.113.9", certificate=crm).accepted
    hub.postfix.wait_until_idle()
    copies = [mail for mail in hub.internet.messages if mail.rcpt_to[0].endswith("@many.example")]
    assert sorted(name for mail in copies for name in mail.rcpt_to) == sorted(rcpt)
    assert len({mail.mail_from for mail in copies}) == 1
    assert re.fullmatch(REWRITTEN, copies[0].mail_from)


# One connection, several messages


def test_messages_of_one_connection_are_judged_each_by_itself(hub: Stage, crm: Credentials) -> None:
    with hub.session(client="203.0.113.9", certificate=crm) as smtp:
        assert transact(smtp, "bob@fabrikam.com", "a1@example.com", PLAIN).accepted
        assert transact(smtp, "app@contoso.com", "a2@example.com", PLAIN).accepted
        smtp.docmd("MAIL FROM:<eve@fabrikam.com>")
        smtp.docmd("RCPT TO:<a3@example.com>")
        smtp.docmd("RSET")
        assert transact(smtp, "bob@fabrikam.com", "a4@example.com", PLAIN).accepted
    assert re.fullmatch(REWRITTEN, arrived(hub, "a1@example.com").mail_from)
    assert arrived(hub, "a2@example.com").mail_from == "app@contoso.com"
    assert re.fullmatch(REWRITTEN, arrived(hub, "a4@example.com").mail_from)
    assert not [mail for mail in hub.internet.messages if "a3@example.com" in mail.rcpt_to]


def test_connection_cut_within_data_delivers_nothing_and_harms_no_later_message(hub: Stage) -> None:
    start = len(hub.postfix.log())
    with hub.session() as smtp:
        smtp.docmd("MAIL FROM:<app@contoso.com>")
        smtp.docmd("RCPT TO:<cut@example.com>")
        smtp.docmd("DATA")
        smtp.send(b"Subject: cut\r\n\r\nhalf a mess")
        smtp.close()
    hub.postfix.wait_for_log(r"lost connection after DATA", start=start)
    assert hub.send("app@contoso.com", "clean@example.com", PLAIN).accepted
    assert without_received(arrived(hub, "clean@example.com").content) == PLAIN
    assert not [mail for mail in hub.internet.messages if "cut@example.com" in mail.rcpt_to]


# Addresses


def test_smtputf8_sender_is_rewritten_and_stays_utf8(hub: Stage, crm: Credentials) -> None:
    transcript = hub.send(
        "jürgen@fabrikam.com", "u8@example.com", PLAIN, client="203.0.113.9", certificate=crm, mail_options="SMTPUTF8"
    )
    assert transcript.accepted
    mail = arrived(hub, "u8@example.com")
    assert re.fullmatch(r"bounces\+SRS=\w{8}=\w\w=fabrikam\.com=jürgen@contoso\.com", mail.mail_from)
    assert "SMTPUTF8" in mail.mail_options


def test_sender_whose_srs_address_would_pass_254_octets_gets_a_compact_one_s5(hub: Stage, crm: Credentials) -> None:
    sender = "b" * 210 + "@fabrikam.com"
    assert hub.send(sender, "long@example.com", PLAIN, client="203.0.113.9", certificate=crm).accepted
    mail = arrived(hub, "long@example.com")
    assert re.fullmatch(r"bounces\+SRS=[a-z2-7]{16}=\w\w@contoso\.com", mail.mail_from)
    assert hub.gatepost("srs", "reverse", mail.mail_from).stdout == f"{sender}\n"


def test_sender_whose_srs_address_would_pass_254_octets_is_refused_without_the_compact_form(long_hub: Stage) -> None:
    crm = Credentials(long_hub.root / "tls/2.pem", long_hub.root / "tls/2.key", "")
    sender = "b" * 210 + "@fabrikam.com"
    reply = long_hub.send(sender, "x@example.com", PLAIN, client="203.0.113.9", certificate=crm).last
    expected = "553 5.1.7 Sender address is too long or malformed, so it can't be rewritten for relaying"
    assert str(reply) == expected


def test_quoted_local_part_is_rewritten(hub: Stage, crm: Credentials) -> None:
    assert hub.send('"bob b"@fabrikam.com', "q@example.com", PLAIN, client="203.0.113.9", certificate=crm).accepted
    mail = arrived(hub, "q@example.com")
    assert re.fullmatch(r'"bounces\+SRS=\w{8}=\w\w=fabrikam\.com=bob b"@contoso\.com', mail.mail_from)


# Headers and body


def test_message_survives_rewriting_byte_for_byte_and_its_dkim_signature_verifies_s6(
    hub: Stage, crm: Credentials
) -> None:
    """No Date, a bare From, lines of 998 octets, 8-bit text: only Received is added."""
    key = rsa.generate_private_key(public_exponent=65537, key_size=2048)
    private = key.private_bytes(
        serialization.Encoding.PEM, serialization.PrivateFormat.TraditionalOpenSSL, serialization.NoEncryption()
    )
    public = key.public_key().public_bytes(serialization.Encoding.DER, serialization.PublicFormat.SubjectPublicKeyInfo)
    body = b"From: bob\r\nX-Odd:   spaced \t out \r\n\r\n" + b"x" * 998 + b"\r\n.dot\r\n\xc3\xa4\xff\r\n\r\n"
    signed = dkim.sign(body, b"s", b"fabrikam.com", private, include_headers=[b"from"]) + body
    with hub.session(client="203.0.113.9", certificate=crm) as smtp:
        assert transact(smtp, "bob@fabrikam.com", "s6@example.com", signed, mail_options="BODY=8BITMIME").accepted
    mail = arrived(hub, "s6@example.com")
    assert re.fullmatch(REWRITTEN, mail.mail_from)
    assert without_received(mail.content) == signed
    record = b"v=DKIM1; p=" + base64.b64encode(public)
    assert dkim.verify(mail.content, dnsfunc=lambda name, timeout=5: record)


# Monitor mode and bypass


def test_monitor_mode_relays_untouched_and_logs_what_would_be_refused(monitoring_hub: Stage) -> None:
    assert monitoring_hub.send("bob@fabrikam.com", "m@example.com", PLAIN).accepted
    mail = arrived(monitoring_hub, "m@example.com")
    assert mail.mail_from == "bob@fabrikam.com"
    assert without_received(mail.content) == PLAIN
    monitoring_hub.wait_for_log(r"action=monitor, from=<bob@fabrikam\.com>, to=<m@example\.com>.*nothing-accepted")


def test_monitor_mode_counts_the_refusal_it_did_not_make(monitoring_hub: Stage) -> None:
    labels = {"organization": "contoso", "verdict": "refuse", "reason": "nothing-accepted"}
    before = monitoring_hub.metric("gatepost_relay_decisions_total", **labels)
    assert monitoring_hub.send("bob@fabrikam.com", "m2@example.com", PLAIN).accepted
    assert monitoring_hub.metric("gatepost_relay_decisions_total", **labels) == before + 1


# Metrics


def test_metrics_count_decisions_and_rewrites_of_all_workers(hub: Stage, crm: Credentials) -> None:
    relayed = {"organization": "contoso", "verdict": "relay", "reason": "certificate-accepted"}
    refused = {"organization": "contoso", "verdict": "refuse", "reason": "nothing-accepted"}

    def counts() -> tuple[float, float, float]:
        return (
            hub.metric("gatepost_relay_decisions_total", **relayed),
            hub.metric("gatepost_relay_decisions_total", **refused),
            hub.metric("gatepost_srs_rewrites_total", form="bounces"),
        )

    before = counts()
    for number in range(3):
        assert hub.send("bob@fabrikam.com", f"c{number}@example.com", certificate=crm).accepted
    hub.send("bob@fabrikam.com", "x@example.com")
    assert counts() == (before[0] + 3, before[1] + 1, before[2] + 3)


def test_healthz_says_ok(hub: Stage) -> None:
    assert hub.http("/healthz") == (200, "ok\n")
