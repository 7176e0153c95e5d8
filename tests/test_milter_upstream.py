# SPDX-License-Identifier: GPL-3.0-or-later
"""The milter of a hub in front of Exchange Online: early refusal, and what log, metric and ledger say of the rest."""

from __future__ import annotations

import re
from pathlib import Path

import pytest
from milterstages import AT_EGRESS, EGRESS, ENFORCE, INSIDE, OUTSIDE, TRUSTED, Mta, lines
from test_milter_recording import recorded

from gatepost.service.metrics import DECISIONS, UPSTREAM_DECISIONS

CONTOSO = """
[[organization]]
name = "contoso"
srs_domain = "srs.contoso.com"
[[organization.accepted_domain]]
domain = "contoso.com"
default = true
[[organization.accepted_domain]]
domain = "srs.contoso.com"
[[organization.connector]]
name = "office"
sender_ip_addresses = ["192.0.2.0/28"]
[[organization.connector]]
name = "crm"
tls_sender_certificate_name = "mail.contoso.com"
"""
UPSTREAM = '[upstream]\nsender_ip_addresses = ["203.0.113.5"]\n'
REFUSE = UPSTREAM + "refuse = true\n"
MONITOR = '[relay]\nmode = "monitor"\n'
NULL = "null-sender-without-certificate"


def test_null_sender_to_outside_is_refused_early_with_a_reference_and_its_own_reason(
    tmp_path: Path, capfd: pytest.CaptureFixture[str]
) -> None:
    mta = Mta(tmp_path, ENFORCE + CONTOSO + REFUSE)
    reply = mta.message(mta.connected(macros=TRUSTED), "<>")
    assert reply
    found = re.fullmatch(r"550 5\.7\.64 TenantAttribution; Relay Access Denied \[(\w{10})\]", str(reply))
    assert found
    assert lines(capfd) == [
        "NOQUEUE: action=reject, from=<>, to=<x@gmail.example>, client=192.0.2.1, organization=contoso, "
        f"reason=upstream-null-sender, upstream=refuse, upstream_reason={NULL}, reference={found[1]}"
    ]
    assert mta.count(UPSTREAM_DECISIONS, "refuse", NULL) == 1
    assert mta.count(DECISIONS, "contoso", "relay", "certificate-accepted") == 1
    (entry,) = recorded(mta)
    assert (entry.action, entry.reason, entry.upstream) == ("reject", "upstream-null-sender", NULL)
    assert (entry.verdict_current, entry.reference) == ("relay", found[1])


def test_refused_recipient_outside_leaves_the_inside_one_alone(tmp_path: Path) -> None:
    mta = Mta(tmp_path, ENFORCE + CONTOSO + REFUSE)
    session = mta.connected(macros=TRUSTED)
    session.mail("<>")
    replies = [session.rcpt(rcpt, []) for rcpt in (INSIDE, OUTSIDE)]
    assert [reply and reply.code for reply in replies] == [None, 550]
    assert mta.content(session, []) is None


@pytest.mark.parametrize("text", [ENFORCE + CONTOSO + UPSTREAM, MONITOR + CONTOSO + REFUSE], ids=["refuse", "monitor"])
def test_null_sender_passes_and_is_named_where_it_is_not_to_be_refused(
    tmp_path: Path, text: str, capfd: pytest.CaptureFixture[str]
) -> None:
    mta = Mta(tmp_path, text)
    assert mta.message(mta.connected(macros={**TRUSTED, "i": "4CgSNs5Q9s"}), "<>") is None
    assert lines(capfd) == [
        "4CgSNs5Q9s: action=pass, from=<>, nrcpt=1, client=192.0.2.1, organization=contoso, "
        f"reason=certificate-accepted, upstream=refuse, upstream_reason={NULL}"
    ]
    assert [(entry.action, entry.upstream) for entry in recorded(mta)] == [("pass", NULL)]


def test_log_of_a_message_names_what_is_refused_there_of_any_recipient(
    tmp_path: Path, capfd: pytest.CaptureFixture[str]
) -> None:
    mta = Mta(tmp_path, ENFORCE + CONTOSO + UPSTREAM)
    mta.message(mta.connected(macros=TRUSTED), "<>", [INSIDE, OUTSIDE])
    assert f"upstream=refuse, upstream_reason={NULL}" in lines(capfd)[0]
    assert sorted(entry.upstream for entry in recorded(mta)) == ["inside", NULL]


def test_foreign_sender_is_rewritten_and_taken(tmp_path: Path, capfd: pytest.CaptureFixture[str]) -> None:
    mta = Mta(tmp_path, ENFORCE + CONTOSO + REFUSE)
    assert mta.message(mta.connected(macros=TRUSTED), "<app@vendor.example>") is None
    assert mta.senders[0].endswith("=vendor.example=app@srs.contoso.com")
    assert "upstream" not in lines(capfd)[0]
    assert mta.count(UPSTREAM_DECISIONS, "relay", "p1-accepted") == 1
    assert [entry.upstream for entry in recorded(mta)] == ["relay"]


def test_sendmail_s_null_sender_is_refused_at_the_end(tmp_path: Path) -> None:
    mta = Mta(tmp_path, ENFORCE + CONTOSO + REFUSE)
    session = mta.connected("127.0.0.1", 0)
    session.mail("<>")
    assert session.rcpt(OUTSIDE, []) is None
    reply = mta.content(session, [])
    assert reply
    assert (reply.code, reply.status) == (550, "5.7.64")


def test_message_that_the_rule_set_legacy_lets_pass_by_p2_is_rewritten_and_taken(tmp_path: Path) -> None:
    mta = Mta(tmp_path, ENFORCE + 'requirements = "legacy"\n' + CONTOSO + REFUSE)
    assert mta.message(mta.connected(), "<app@vendor.example>", headers=[("From", "app@contoso.com")]) is None
    assert mta.senders[0].endswith("@srs.contoso.com")
    assert [entry.upstream for entry in recorded(mta)] == ["relay"]


def test_null_sender_that_the_rule_set_legacy_lets_pass_by_p2_is_refused_at_the_end_of_headers(tmp_path: Path) -> None:
    mta = Mta(tmp_path, ENFORCE + 'requirements = "legacy"\n' + CONTOSO + REFUSE)
    reply = mta.message(mta.connected(), "<>", headers=[("From", "app@contoso.com")])
    assert reply
    assert reply.code == 550
    assert [(entry.reason, entry.upstream) for entry in recorded(mta)] == [("upstream-null-sender", NULL)]


def test_forwarded_copy_is_recorded_as_taken(tmp_path: Path) -> None:
    mta = Mta(tmp_path, ENFORCE + CONTOSO + REFUSE + EGRESS)
    session = mta.connected("127.0.0.1", macros=AT_EGRESS)
    session.mail("<bob@fabrikam.com>")
    session.rcpt("<john@example.com>", ["ORCPT=rfc822;john@contoso.com"])
    assert mta.content(session, [("From", "bob@fabrikam.com")]) is None
    assert mta.senders[0].endswith("@srs.contoso.com")
    assert [entry.upstream for entry in recorded(mta)] == ["relay"]


def test_bounce_that_the_milter_returns_to_outside_is_recorded_as_refused_there(tmp_path: Path) -> None:
    mta = Mta(tmp_path, ENFORCE + CONTOSO + REFUSE + '[srs]\nreverse = "milter"\n')
    assert mta.message(mta.connected(macros=TRUSTED), "<app@vendor.example>") is None
    bounce = mta.message(mta.connected("203.0.113.9"), "<>", [f"<{mta.senders[0].strip('<>')}>"])
    assert bounce is None
    assert [(entry.action, entry.upstream) for entry in recorded(mta)] == [("rewrite", "relay"), ("return", NULL)]


def test_without_upstream_nothing_is_said(tmp_path: Path, capfd: pytest.CaptureFixture[str]) -> None:
    mta = Mta(tmp_path, ENFORCE + CONTOSO)
    mta.message(mta.connected(macros=TRUSTED), "<>")
    assert "upstream" not in lines(capfd)[0]
    assert [entry.upstream for entry in recorded(mta)] == [""]
