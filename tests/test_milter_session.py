# SPDX-License-Identifier: GPL-3.0-or-later
"""One SMTP connection as the milter decides on it, without pymilter: what each stage brings, what is answered."""

from __future__ import annotations

import re
from pathlib import Path
from typing import Optional

import pytest
from daemonprocess import CONTOSO
from milterstages import AT_EGRESS, EGRESS, ENFORCE, INSIDE, NOW, OUTSIDE, TRUSTED, Mta, lines, unhashed

from gatepost.milter.transaction import header_addresses
from gatepost.service.hops import Hop, organization_digest
from gatepost.service.metrics import DECISIONS, ERRORS, MESSAGES, SRS_REWRITES
from gatepost.service.replies import Reply
from gatepost.service.snapshot import bypass_file

RELAYED = "bounces+SRS=HASH=G3=vendor.example=app@contoso.com"
LONG = f"<{'a' * 64}@{'b' * 60}.{'c' * 60}.{'d' * 60}.example>"
MIXED = Reply(452, "4.5.3", "Inside and outside recipients need a message each, please try again")
FAULT = Reply(451, "4.3.0", "gatepost: internal error, please try again later")

FABRIKAM = """
[[organization]]
name = "fabrikam"
[[organization.accepted_domain]]
domain = "fabrikam.com"
[[organization.connector]]
name = "hub"
tls_sender_certificate_name = "mail.fabrikam.com"
"""
LEGACY = ENFORCE + 'requirements = "legacy"\n'
LONG_FORM = '[srs]\nform = "long"\n'


@pytest.fixture
def mta(tmp_path: Path) -> Mta:
    return Mta(tmp_path, ENFORCE + CONTOSO)


@pytest.fixture
def legacy(tmp_path: Path) -> Mta:
    return Mta(tmp_path, LEGACY + CONTOSO)


# The rule set 2023-11-01, at RCPT


def test_foreign_p1_from_a_connector_address_is_refused_at_rcpt_with_the_reference_that_is_logged(
    mta: Mta, capfd: pytest.CaptureFixture[str]
) -> None:
    session = mta.connected("192.0.2.5")
    session.mail("<app@vendor.example>")
    reply = session.rcpt(OUTSIDE, [])
    assert reply
    found = re.fullmatch(r"TenantAttribution; Relay Access Denied \[([A-Z2-7]{10})\]", reply.text)
    assert (reply.code, reply.status) == (550, "5.7.64")
    assert found
    assert lines(capfd) == [
        "NOQUEUE: action=reject, from=<app@vendor.example>, to=<x@gmail.example>, client=192.0.2.5, "
        f"organization=contoso, reason=nothing-accepted, reference={found[1]}"
    ]


def test_refusal_is_counted_by_organization_verdict_and_reason(mta: Mta) -> None:
    session = mta.connected("192.0.2.5")
    session.mail("<app@vendor.example>")
    session.rcpt(OUTSIDE, [])
    assert mta.count(DECISIONS, "contoso", "refuse", "nothing-accepted") == 1


def test_all_refusals_of_a_message_carry_the_same_reference(mta: Mta) -> None:
    session = mta.connected()
    session.mail("<app@vendor.example>")
    assert session.rcpt(OUTSIDE, []) == session.rcpt("<y@gmail.example>", [])


def test_refused_recipient_leaves_the_others_of_the_message_alone(mta: Mta) -> None:
    session = mta.connected()
    session.mail("<app@vendor.example>")
    replies = [session.rcpt(rcpt, []) for rcpt in (INSIDE, OUTSIDE, "<bea@contoso.com>")]
    assert [reply and reply.code for reply in replies] == [None, 550, None]
    assert mta.content(session, []) is None
    assert mta.senders == []


def test_accepted_p1_from_a_connector_address_passes_unchanged(mta: Mta, capfd: pytest.CaptureFixture[str]) -> None:
    session = mta.connected(macros={"i": "4CgSNs5Q9s"})
    assert mta.message(session, "<app@contoso.com>") is None
    assert mta.senders == []
    assert lines(capfd) == [
        "4CgSNs5Q9s: action=pass, from=<app@contoso.com>, nrcpt=1, client=192.0.2.1, "
        "organization=contoso, reason=p1-accepted"
    ]


def test_null_sender_to_outside_is_refused_without_certificate(mta: Mta) -> None:
    reply = mta.message(mta.connected(), "<>")
    assert reply
    assert reply.code == 550


def test_null_sender_to_outside_passes_unchanged_with_certificate(mta: Mta) -> None:
    assert mta.message(mta.connected("203.0.113.9", macros=TRUSTED), "<>") is None
    assert mta.senders == []


def test_client_whose_address_the_mta_does_not_know_matches_no_connector(mta: Mta) -> None:
    reply = mta.message(mta.connected(None, -1), "<app@contoso.com>")
    assert reply
    assert reply.code == 550


def test_mail_to_inside_passes_from_anybody(mta: Mta) -> None:
    assert mta.message(mta.connected("203.0.113.9"), "<bob@fabrikam.com>", [INSIDE]) is None
    assert mta.senders == []


# The rule set legacy, at the end of the headers


def test_legacy_foreign_p1_is_not_refused_before_the_headers(legacy: Mta) -> None:
    session = legacy.connected()
    session.mail("<app@vendor.example>")
    assert session.rcpt(OUTSIDE, []) is None


@pytest.mark.parametrize(
    "values",
    [
        ["app@contoso.com"],
        ["The App\n <app@contoso.com>"],
        ["app@vendor.example", "app@contoso.com"],
        ["app@vendor.example, app@contoso.com"],
        ["Apps: app@vendor.example, app@contoso.com;"],
        ['"Invoices, vendor" <app@CONTOSO.com>'],
    ],
    ids=["one", "folded", "two headers", "two addresses", "group", "quoted name"],
)
def test_legacy_accepted_header_from_relays_and_the_foreign_p1_is_rewritten(legacy: Mta, values: list[str]) -> None:
    headers = [("From", value) for value in values]
    assert legacy.message(legacy.connected(), "<app@vendor.example>", headers=headers) is None
    assert legacy.unhashed == [RELAYED]


@pytest.mark.parametrize(
    "values",
    [[], [""], ["app@vendor.example"], ["nobody:;"], ["app@contoso.com.example"], ["contoso.com"], ["\udcff@x"]],
    ids=["none", "empty", "foreign", "empty group", "look-alike", "no address", "not UTF-8"],
)
def test_legacy_without_accepted_header_from_is_refused_at_the_end_of_headers(legacy: Mta, values: list[str]) -> None:
    session = legacy.connected()
    session.mail("<app@vendor.example>")
    session.rcpt(OUTSIDE, [])
    session.header("Sender", "app@contoso.com")
    for value in values:
        session.header("From", value)
    reply = session.eoh()
    assert reply
    assert (reply.code, reply.status) == (550, "5.7.64")


def test_legacy_decision_is_counted_once(legacy: Mta) -> None:
    legacy.message(legacy.connected(), "<app@vendor.example>", headers=[("FROM", "app@contoso.com")])
    assert legacy.count(DECISIONS, "contoso", "relay", "p2-accepted") == 1
    assert legacy.count(DECISIONS, "contoso", "refuse", "nothing-accepted") == 0


def test_legacy_headers_of_one_message_do_not_count_for_the_next(legacy: Mta) -> None:
    session = legacy.connected()
    legacy.message(session, "<app@vendor.example>", headers=[("From", "app@contoso.com")])
    reply = legacy.message(session, "<app@vendor.example>", headers=[("From", "app@vendor.example")])
    assert reply
    assert reply.code == 550


def test_legacy_undecided_recipient_and_inside_one_are_taken_apart_even_with_an_egress_hop(tmp_path: Path) -> None:
    mta = Mta(tmp_path, LEGACY + EGRESS + CONTOSO)
    session = mta.connected()
    session.mail("<app@vendor.example>")
    assert [session.rcpt(OUTSIDE, []), session.rcpt(INSIDE, [])] == [None, MIXED]


def test_legacy_p1_too_long_for_the_long_form_is_refused_at_the_end_of_headers_and_logged(
    tmp_path: Path, capfd: pytest.CaptureFixture[str]
) -> None:
    legacy = Mta(tmp_path, LEGACY + LONG_FORM + CONTOSO)
    reply = legacy.message(legacy.connected(), LONG, headers=[("From", "app@contoso.com")])
    assert reply
    assert (reply.code, reply.status) == (553, "5.1.7")
    assert "action=reject" in lines(capfd)[0]


def test_legacy_in_monitor_mode_looks_at_the_header_from_before_it_calls_a_message_refused(
    tmp_path: Path, capfd: pytest.CaptureFixture[str]
) -> None:
    mta = Mta(tmp_path, '[relay]\nrequirements = "legacy"\n' + CONTOSO)
    mta.message(mta.connected(), "<app@vendor.example>", [OUTSIDE, INSIDE], headers=[("From", "app@contoso.com")])
    assert mta.count(DECISIONS, "contoso", "relay", "p2-accepted") == 1
    assert mta.count(DECISIONS, "contoso", "refuse", "nothing-accepted") == 0
    mta.message(mta.connected(), "<app@vendor.example>", headers=[("From", "app@vendor.example")])
    assert mta.count(DECISIONS, "contoso", "refuse", "nothing-accepted") == 1
    assert ["action=monitor" in line for line in lines(capfd)] == [False, True, False]
    assert mta.senders == []


def test_legacy_message_whose_end_of_headers_never_came_is_put_off(legacy: Mta) -> None:
    session = legacy.connected()
    session.mail("<app@vendor.example>")
    session.rcpt(OUTSIDE, [])
    assert session.eom(legacy) == FAULT


def test_groups_in_groups_without_end_hold_no_address() -> None:
    assert header_addresses(["a:" * 5000]) == ()


def test_header_addresses_are_the_addr_specs_as_they_stand() -> None:
    assert header_addresses(["Bob <Bob@Fabrikam.com>", "a@b.example, <c@d.example>"]) == (
        "Bob@Fabrikam.com",
        "a@b.example",
        "c@d.example",
    )


# Rewriting, and recipients inside and outside of one message


def test_foreign_p1_is_rewritten_where_all_recipients_are_outside(mta: Mta, capfd: pytest.CaptureFixture[str]) -> None:
    session = mta.connected("203.0.113.9", macros={"i": "4CgSNs5Q9s", **TRUSTED})
    assert mta.message(session, "<app@vendor.example>", [OUTSIDE, "<y@gmail.example>"]) is None
    assert mta.unhashed == [RELAYED]
    assert unhashed(lines(capfd)[0]) == (
        f"4CgSNs5Q9s: action=rewrite, from=<app@vendor.example>, rewritten=<{RELAYED}>, nrcpt=2, "
        "client=203.0.113.9, organization=contoso, reason=certificate-accepted"
    )
    assert mta.count(SRS_REWRITES, "bounces") == 1
    assert mta.count(MESSAGES, "milter", "rewrite") == 1


@pytest.mark.parametrize("rcpts", [[INSIDE, OUTSIDE], [OUTSIDE, INSIDE]], ids=["inside first", "outside first"])
def test_inside_and_outside_recipient_are_taken_apart_without_an_egress_hop(mta: Mta, rcpts: list[str]) -> None:
    session = mta.connected(macros=TRUSTED)
    session.mail("<app@vendor.example>")
    assert [session.rcpt(rcpt, []) for rcpt in rcpts] == [None, MIXED]
    assert mta.content(session, []) is None
    assert mta.unhashed == ([RELAYED] if rcpts[0] == OUTSIDE else [])


@pytest.mark.parametrize("rcpts", [[INSIDE, OUTSIDE], [OUTSIDE, INSIDE]], ids=["inside first", "outside first"])
def test_inside_and_outside_recipient_stay_together_with_an_egress_hop_and_p1_stays(
    tmp_path: Path, rcpts: list[str]
) -> None:
    mta = Mta(tmp_path, ENFORCE + EGRESS + CONTOSO)
    assert mta.message(mta.connected(macros=TRUSTED), "<app@vendor.example>", rcpts) is None
    assert mta.senders == []


def test_inside_and_outside_recipient_stay_together_where_p1_is_accepted(mta: Mta) -> None:
    assert mta.message(mta.connected(), "<app@contoso.com>", [INSIDE, OUTSIDE]) is None


def test_refused_recipient_does_not_count_as_one_to_be_taken_apart(mta: Mta) -> None:
    session = mta.connected()
    session.mail("<app@vendor.example>")
    replies = [session.rcpt(rcpt, []) for rcpt in (OUTSIDE, INSIDE)]
    assert [reply and reply.code for reply in replies] == [550, None]


def test_p1_too_long_for_the_long_form_is_refused_at_rcpt(tmp_path: Path) -> None:
    mta = Mta(tmp_path, ENFORCE + LONG_FORM + CONTOSO)
    session = mta.connected(macros=TRUSTED)
    session.mail(LONG)
    assert session.rcpt(OUTSIDE, []) == Reply(
        553, "5.1.7", "Sender address is too long or malformed, so it can't be rewritten for relaying"
    )


def test_p1_too_long_for_the_long_form_gets_the_compact_one_that_the_store_knows(mta: Mta) -> None:
    assert mta.message(mta.connected(macros=TRUSTED), LONG) is None
    assert mta.unhashed == ["bounces+SRS=HASH=G3@contoso.com"]
    token = mta.senders[0][12:28]
    assert mta.shared.store.found(token) == LONG.strip("<>")
    assert mta.count(SRS_REWRITES, "compact") == 1


def test_p1_too_long_for_the_long_form_reaches_an_inside_recipient(tmp_path: Path) -> None:
    mta = Mta(tmp_path, ENFORCE + LONG_FORM + CONTOSO)
    assert mta.message(mta.connected(macros=TRUSTED), LONG, [INSIDE]) is None


def test_monitor_mode_keeps_the_message_logs_the_refusal_and_counts_it(
    tmp_path: Path, capfd: pytest.CaptureFixture[str]
) -> None:
    mta = Mta(tmp_path, CONTOSO)
    assert mta.message(mta.connected(), "<app@vendor.example>", [OUTSIDE, INSIDE]) is None
    assert mta.senders == []
    assert re.sub(r"[A-Z2-7]{10}$", "REFERENCE", lines(capfd)[0]) == (
        "NOQUEUE: action=monitor, from=<app@vendor.example>, to=<x@gmail.example>, client=192.0.2.1, "
        "organization=contoso, reason=nothing-accepted, reference=REFERENCE"
    )
    assert mta.count(DECISIONS, "contoso", "refuse", "nothing-accepted") == 1


def test_monitor_mode_of_one_organization_leaves_the_others_enforcing(tmp_path: Path) -> None:
    monitored = CONTOSO.replace('name = "contoso"\n', 'name = "contoso"\nmode = "monitor"\n')
    mta = Mta(tmp_path, ENFORCE + monitored + FABRIKAM)
    assert mta.message(mta.connected(), "<app@vendor.example>") is None
    fabrikam = {"{cert_subject}": "mail.fabrikam.com", "{cert_issuer}": "CA"}
    assert mta.message(mta.connected(macros=fabrikam), "<app@vendor.example>") is None
    assert mta.unhashed == ["bounces+SRS=HASH=G3=vendor.example=app@fabrikam.com"]


def test_bypass_lets_everything_through_from_the_next_message_on(mta: Mta) -> None:
    session = mta.connected()
    assert mta.message(session, "<app@vendor.example>") is not None
    bypass_file(mta.snapshot.config).touch()
    assert mta.message(session, "<app@vendor.example>", [OUTSIDE, INSIDE]) is None
    assert mta.message(session, "<a\rb@vendor.example>") is None
    bypass_file(mta.snapshot.config).unlink()
    assert mta.message(session, "<app@vendor.example>") is not None
    assert mta.count(MESSAGES, "milter", "bypass") == 2


def test_rule_that_policyd_enforces_is_left_to_it_and_what_it_lets_relay_is_still_rewritten(tmp_path: Path) -> None:
    mta = Mta(tmp_path, ENFORCE + 'enforced_by = "policyd"\n' + CONTOSO)
    assert mta.message(mta.connected(), "<app@vendor.example>") is None
    assert mta.senders == []
    assert mta.message(mta.connected(macros=TRUSTED), "<app@vendor.example>") is None
    assert mta.unhashed == [RELAYED]
    assert mta.count(DECISIONS, "contoso", "refuse", "nothing-accepted") == 0


def test_p1_that_can_be_read_in_two_ways_is_read_as_the_mta_reads_it(mta: Mta) -> None:
    session = mta.connected(macros={"{mail_addr}": "evil@vendor.example"})
    reply = mta.message(session, "<evil@vendor.example(@contoso.com>")
    assert reply
    assert reply.code == 550


def test_quoted_address_cannot_begin_a_field_of_its_own_in_the_log(mta: Mta, capfd: pytest.CaptureFixture[str]) -> None:
    mta.message(mta.connected(), '<"x>, action=pass, to=<y"@vendor.example>')
    assert '<"x?, action=pass, to=?y"@vendor.example>' in lines(capfd)[0]


def test_recipient_of_sendmail_with_a_control_character_bounces_the_message_at_its_end(mta: Mta) -> None:
    session = mta.connected("127.0.0.1", 0)
    session.mail("<app@contoso.com>")
    assert [session.rcpt(OUTSIDE, []), session.rcpt("<a\x01b@gmail.example>", [])] == [None, None]
    reply = session.eom(mta)
    assert reply
    assert (reply.code, reply.status) == (553, "5.1.3")


# Who the client is


def test_second_client_on_one_milter_connection_is_judged_by_its_own_address(mta: Mta) -> None:
    session = mta.connected("192.0.2.5")
    assert mta.message(session, "<app@contoso.com>") is None
    session.connect("203.0.113.77", 40002)
    reply = mta.message(session, "<app@contoso.com>")
    assert reply
    assert reply.code == 550


def test_authenticated_client_is_exempt_and_rewritten_in_the_default_organization(tmp_path: Path) -> None:
    mta = Mta(tmp_path, ENFORCE + FABRIKAM + CONTOSO)
    session = mta.connected("203.0.113.9", macros={"{auth_authen}": "app"})
    assert mta.message(session, "<app@vendor.example>") is None
    assert mta.unhashed == ["bounces+SRS=HASH=G3=vendor.example=app@fabrikam.com"]
    assert mta.count(DECISIONS, "", "exempt", "authenticated") == 1


@pytest.mark.parametrize("ip", ["127.0.0.1", "::1"])
def test_mail_by_sendmail_command_is_exempt_and_rewritten_in_the_default_organization(mta: Mta, ip: str) -> None:
    assert mta.message(mta.connected(ip, 0), "<app@vendor.example>") is None
    assert mta.unhashed == [RELAYED]


def test_mail_by_sendmail_command_is_refused_at_its_end_where_it_is_not_exempt(tmp_path: Path) -> None:
    # Postfix can't refuse a recipient there: it would try the message again for ever.
    mta = Mta(tmp_path, ENFORCE + "exempt = []\n" + CONTOSO)
    session = mta.connected("127.0.0.1", 0)
    session.mail("<app@vendor.example>")
    assert [session.rcpt(rcpt, []) for rcpt in (OUTSIDE, INSIDE)] == [None, None]
    reply = mta.content(session, [])
    assert reply
    assert (reply.code, reply.status) == (550, "5.7.64")
    assert mta.senders == []


@pytest.mark.parametrize("rcpts", [[INSIDE, OUTSIDE], [OUTSIDE, INSIDE]], ids=["inside first", "outside first"])
def test_mail_by_sendmail_command_to_inside_and_outside_is_rewritten_for_all_without_an_egress_hop(
    mta: Mta, rcpts: list[str]
) -> None:
    assert mta.message(mta.connected("127.0.0.1", 0), "<app@vendor.example>", rcpts) is None
    assert mta.unhashed == [RELAYED]


def test_mail_by_sendmail_command_to_inside_and_outside_is_left_to_the_egress_hop(tmp_path: Path) -> None:
    mta = Mta(tmp_path, ENFORCE + EGRESS + CONTOSO)
    assert mta.message(mta.connected("127.0.0.1", 0), "<app@vendor.example>", [INSIDE, OUTSIDE]) is None
    assert mta.senders == []


def test_smtp_client_on_loopback_is_not_exempt(mta: Mta) -> None:
    assert mta.message(mta.connected("127.0.0.1", 40001), "<app@vendor.example>") is not None


def test_client_on_port_0_elsewhere_is_not_exempt(mta: Mta) -> None:
    assert mta.message(mta.connected("203.0.113.9", 0), "<app@vendor.example>") is not None


def test_exemptions_can_be_switched_off(tmp_path: Path) -> None:
    mta = Mta(tmp_path, ENFORCE + "exempt = []\n" + CONTOSO)
    assert (
        mta.message(mta.connected("203.0.113.9", macros={"{auth_authen}": "app"}), "<app@vendor.example>") is not None
    )
    assert mta.message(mta.connected("127.0.0.1", 0), "<app@vendor.example>") is not None


def test_untrusted_certificate_is_as_good_as_none(mta: Mta) -> None:
    untrusted = {"{cert_subject}": "mail.contoso.com"}
    assert mta.message(mta.connected("203.0.113.9", macros=untrusted), "<app@vendor.example>") is not None


def test_trusted_certificate_without_common_name_is_as_good_as_none(mta: Mta) -> None:
    nameless = {"{cert_subject}": "", "{cert_issuer}": "CA"}
    assert mta.message(mta.connected("203.0.113.9", macros=nameless), "<app@vendor.example>") is not None


def test_identity_that_changes_between_messages_counts_for_the_message_it_came_with(mta: Mta) -> None:
    session = mta.connected("203.0.113.9")
    assert mta.message(session, "<app@vendor.example>") is not None
    mta.macros.update(TRUSTED)
    assert mta.message(session, "<app@vendor.example>") is None
    del mta.macros["{cert_subject}"], mta.macros["{cert_issuer}"]
    assert mta.message(session, "<app@vendor.example>") is not None


# Addresses as they come


@pytest.mark.parametrize("path", ["<app>", "app", "<@relay.example:app@contoso.com>"])
def test_p1_without_domain_or_with_a_source_route_is_what_the_mta_makes_of_it(mta: Mta, path: str) -> None:
    assert mta.message(mta.connected(macros={"{mail_addr}": "app@contoso.com"}), path) is None


def test_p1_without_angle_brackets_is_taken(mta: Mta) -> None:
    assert mta.message(mta.connected(), "app@contoso.com") is None


@pytest.mark.parametrize("path", ["<ann>", "<ann%contoso.com@gmail.example>", "<@relay.example:ann@gmail.example>"])
def test_recipient_whose_domain_the_mta_finds_is_judged_by_that(mta: Mta, path: str) -> None:
    session = mta.connected("203.0.113.9", macros={"{rcpt_addr}": "ann@contoso.com"})
    assert mta.message(session, "<bob@fabrikam.com>", [path]) is None


@pytest.mark.parametrize("path", ["<postmaster>", '<"a b"@contoso.com>', "<root%contoso.com@contoso.com>"])
def test_recipient_of_which_sendmail_tells_no_domain_is_inside_where_its_host_is(tmp_path: Path, path: str) -> None:
    text = ENFORCE + 'local_domains = ["mail.contoso.com"]\n' + CONTOSO
    mta = Mta(tmp_path, text)
    user = path.strip("<>").partition("@")[0].partition("%")[0]
    session = mta.connected("203.0.113.9", macros={"j": "mail.contoso.com", "{rcpt_addr}": user})
    assert mta.message(session, "<bob@fabrikam.com>", [path]) is None


def test_recipient_of_which_the_mta_tells_nothing_but_a_route_is_refused(mta: Mta) -> None:
    session = mta.connected("203.0.113.9", macros={"j": "contoso.com", "{rcpt_addr}": ""})
    assert mta.message(session, "<bob@fabrikam.com>", ["<x%gmail.example>"]) is not None


def test_recipient_that_the_mta_routes_outside_through_our_domain_is_refused(mta: Mta) -> None:
    session = mta.connected("203.0.113.9", macros={"{rcpt_addr}": "x@gmail.example"})
    assert mta.message(session, "<bob@fabrikam.com>", ["<x%gmail.example@contoso.com>"]) is not None


@pytest.mark.parametrize("octet", ["\0", "\t", "\n", "\r", "\x1f", "\x7f"])
def test_control_character_in_p1_is_refused(mta: Mta, octet: str) -> None:
    reply = mta.message(mta.connected(macros=TRUSTED), f"<app{octet}@contoso.com>")
    assert reply == Reply(553, "5.1.7", "Sender address has a control character in it")


@pytest.mark.parametrize("octet", ["\0", "\n", "\r"])
def test_control_character_in_a_recipient_is_refused(mta: Mta, octet: str) -> None:
    reply = mta.message(mta.connected(), "<app@contoso.com>", [f"<x{octet}@gmail.example>"])
    assert reply == Reply(553, "5.1.3", "Recipient address has a control character in it")


def test_p1_that_is_not_utf8_is_refused_where_it_had_to_be_rewritten(mta: Mta) -> None:
    reply = mta.message(mta.connected(macros=TRUSTED), "<caf\udce9@vendor.example>")
    assert reply
    assert reply.code == 553


def test_utf8_p1_is_rewritten(mta: Mta) -> None:
    mta.message(mta.connected(macros=TRUSTED), "<café@vendor.example>")
    assert mta.unhashed == ["bounces+SRS=HASH=G3=vendor.example=café@contoso.com"]


# The life of a message


def test_rcpt_without_mail_is_put_off(mta: Mta) -> None:
    assert mta.connected().rcpt(OUTSIDE, []) == FAULT


def test_end_of_message_without_mail_is_put_off(mta: Mta) -> None:
    assert mta.content(mta.connected(), []) == FAULT


def test_abort_ends_the_message(mta: Mta) -> None:
    session = mta.connected()
    session.mail("<app@contoso.com>")
    session.rcpt(OUTSIDE, [])
    session.abort()
    assert session.rcpt(OUTSIDE, []) == FAULT


def test_end_of_message_ends_the_message(mta: Mta) -> None:
    session = mta.connected()
    mta.message(session, "<app@contoso.com>")
    assert session.eom(mta) == FAULT


def test_recipients_of_an_aborted_message_do_not_count_for_the_next(mta: Mta) -> None:
    session = mta.connected(macros=TRUSTED)
    session.mail("<app@vendor.example>")
    session.rcpt(INSIDE, [])
    session.abort()
    assert mta.message(session, "<app@vendor.example>", [OUTSIDE]) is None
    assert mta.unhashed == [RELAYED]


def test_everything_after_a_fault_is_put_off_on_that_connection(mta: Mta) -> None:
    session = mta.connected()
    session.mail("<app@contoso.com>")
    session.fail()
    assert session.rcpt(OUTSIDE, []) == FAULT
    assert session.eoh() == FAULT
    assert session.eom(mta) == FAULT
    assert mta.message(session, "<app@contoso.com>", [INSIDE]) == FAULT


def test_session_that_was_never_connected_puts_everything_off(mta: Mta) -> None:
    assert mta.message(mta.session(), "<app@contoso.com>", [INSIDE]) == FAULT


# The egress hop

FROM_CLIENT = (
    "from mx.fabrikam.com (unknown [203.0.113.9])\n\tby mail.contoso.com (Postfix) with ESMTPS id 4CgSNs5Q9s\n"
    "\tfor <john.work@contoso.com>; Tue, 14 Nov 2023 22:13:20 +0000 (UTC)"
)
BY_FORWARD_FILE = "by mail.contoso.com (Postfix)\n\tid 4CgSNt1Zzz; Tue, 14 Nov 2023 22:13:20 +0000 (UTC)"
FOREIGN = (
    "from bob.fabrikam.com (unknown [10.0.0.1])\n\tby mx.fabrikam.com (Postfix) with ESMTP id 4CgSNs5Q9s; "
    "Tue, 14 Nov 2023 22:13:19 +0000 (UTC)"
)
ORCPT = "ORCPT=rfc822;john.work@contoso.com"
FORWARDED = "john.work+SRS=HASH=G3=fabrikam.com=bob@contoso.com"
BOUNCES = "bounces+SRS=HASH=G3=fabrikam.com=bob@contoso.com"


class Hop2(Mta):
    """The egress hop of contoso, with fabrikam's organisation (not that of Bob) beside it."""

    def __init__(self, folder: Path, more: str = "") -> None:
        fabrikam = FABRIKAM.replace("fabrikam.com", "litware.example")
        super().__init__(folder, ENFORCE + EGRESS + more + CONTOSO + fabrikam)

    def leave(
        self,
        *received: str,
        reverse_path: str = "<bob@fabrikam.com>",
        rcpt: str = "<john.home@example.com>",
        orcpt: str = ORCPT,
    ) -> Optional[Reply]:
        session = self.connected("127.0.0.1", 40002, macros=AT_EGRESS)
        session.mail(reverse_path)
        reply = session.rcpt(rcpt, [orcpt] if orcpt else [])
        return reply or self.content(session, [("Received", value) for value in received])

    def remember(self, queue_id: str, organization: str = "contoso") -> None:
        self.shared.hops.put(queue_id, Hop(organization_digest(organization), "ABCDEFGHIJ"), NOW)


@pytest.fixture
def hop(tmp_path: Path) -> Hop2:
    return Hop2(tmp_path)


def test_forwarded_mail_leaves_in_the_name_of_the_mailbox_that_orcpt_names(
    hop: Hop2, capfd: pytest.CaptureFixture[str]
) -> None:
    hop.remember("4CgSNs5Q9s")
    hop.macros["i"] = "4CgSNu2Abc"
    assert hop.leave(FROM_CLIENT) is None
    assert hop.unhashed == [FORWARDED]
    assert unhashed(lines(capfd)[0]) == (
        f"4CgSNu2Abc: action=rewrite, from=<bob@fabrikam.com>, rewritten=<{FORWARDED}>, to=<john.home@example.com>, "
        "hop=egress, client=127.0.0.1, organization=contoso, reference=ABCDEFGHIJ"
    )
    assert hop.count(SRS_REWRITES, "forward") == 1


def test_received_line_that_a_forward_file_adds_is_walked_over(hop: Hop2) -> None:
    hop.remember("4CgSNs5Q9s")
    assert hop.leave(BY_FORWARD_FILE, FROM_CLIENT) is None
    assert hop.unhashed == [FORWARDED]


def test_walk_over_received_lines_stops_at_a_foreign_one(hop: Hop2) -> None:
    hop.remember("4CgSNs5Q9s")
    assert hop.leave(BY_FORWARD_FILE, FOREIGN, FROM_CLIENT) is None
    assert hop.unhashed == [BOUNCES]


def test_queue_id_of_another_mta_is_not_looked_up(hop: Hop2) -> None:
    hop.remember("4CgSNs5Q9s")
    hop.leave(BY_FORWARD_FILE, FOREIGN)
    assert hop.unhashed == [BOUNCES]


def test_received_line_that_the_client_forged_below_a_foreign_one_does_not_count(hop: Hop2) -> None:
    hop.remember("4CgSNs5Q9s")
    hop.leave(BY_FORWARD_FILE, FOREIGN.replace("mx.fabrikam.com", "evil.example"), BY_FORWARD_FILE, FROM_CLIENT)
    assert hop.unhashed == [BOUNCES]


def test_greeting_that_looks_like_our_received_line_does_not_count(hop: Hop2) -> None:
    hop.remember("4CgSNs5Q9s")
    forged = FOREIGN.replace("from bob", "from by mail.contoso.com (Postfix) id 4CgSNs5Q9s")
    hop.leave(BY_FORWARD_FILE, forged, orcpt=ORCPT)
    assert hop.unhashed == [BOUNCES]


def test_unknown_queue_id_leaves_as_bounces_whatever_orcpt_says(hop: Hop2) -> None:
    assert hop.leave(FROM_CLIENT) is None
    assert hop.unhashed == [BOUNCES]


def test_mail_without_received_line_leaves_as_bounces(hop: Hop2) -> None:
    hop.remember("4CgSNs5Q9s")
    assert hop.leave() is None
    assert hop.unhashed == [BOUNCES]


@pytest.mark.parametrize(
    "orcpt",
    [
        "",
        "ORCPT=rfc822;john.work@fabrikam.com",
        "ORCPT=rfc822;john.home@example.com",
        "ORCPT=x400;john.work@contoso.com",
    ],
    ids=["none", "not accepted", "the recipient", "not rfc822"],
)
def test_orcpt_that_names_no_mailbox_of_ours_leaves_as_bounces(hop: Hop2, orcpt: str) -> None:
    hop.remember("4CgSNs5Q9s")
    assert hop.leave(FROM_CLIENT, orcpt=orcpt) is None
    assert hop.unhashed == [BOUNCES]


def test_relayed_mail_leaves_in_the_organization_that_ingress_attributed_it_to(hop: Hop2) -> None:
    hop.remember("4CgSNs5Q9s", "fabrikam")
    hop.leave(FROM_CLIENT, orcpt="")
    assert hop.unhashed == ["bounces+SRS=HASH=G3=fabrikam.com=bob@litware.example"]


def test_unknown_mail_leaves_in_the_organization_of_orcpt(hop: Hop2) -> None:
    hop.leave(FROM_CLIENT, orcpt="ORCPT=rfc822;sue@litware.example")
    assert hop.unhashed == ["bounces+SRS=HASH=G3=fabrikam.com=bob@litware.example"]


def test_second_recipient_is_put_off_and_the_first_one_stays(hop: Hop2) -> None:
    session = hop.connected("127.0.0.1", macros=AT_EGRESS)
    session.mail("<bob@fabrikam.com>")
    assert session.rcpt("<john.home@example.com>", []) is None
    assert session.rcpt("<x@gmail.example>", []) == Reply(
        452, "4.5.3", "One recipient a message on this hop, please try again"
    )
    assert hop.content(session, []) is None
    assert hop.unhashed == [BOUNCES]


@pytest.mark.parametrize("reverse_path", ["<ann@contoso.com>", "<ann@litware.example>", "<>"])
def test_sender_that_needs_no_rewriting_is_put_off_for_on_the_hop_it_would_go_round(
    hop: Hop2, reverse_path: str
) -> None:
    assert hop.leave(FROM_CLIENT, reverse_path=reverse_path) == FAULT
    assert hop.senders == []


def test_ingress_smtpd_with_a_host_name_of_its_own_is_known_by_the_topmost_line(hop: Hop2) -> None:
    hop.remember("4CgSNs5Q9s")
    hop.leave(FROM_CLIENT.replace("by mail.contoso.com (Postfix)", "by mx1.contoso.com (Postfix (Debian))"))
    assert hop.unhashed == [FORWARDED]


@pytest.mark.parametrize("reverse_path", [LONG, "<bob>", "<@fabrikam.com>", "<b\udcff@fabrikam.com>"])
def test_sender_that_cannot_be_rewritten_is_put_off_logged_and_counted(
    tmp_path: Path, reverse_path: str, capfd: pytest.CaptureFixture[str]
) -> None:
    hop = Hop2(tmp_path, LONG_FORM)
    assert hop.leave(FROM_CLIENT, reverse_path=reverse_path) == FAULT
    assert hop.senders == []
    assert lines(capfd)[0].startswith("error: NOQUEUE: egress: <")
    assert hop.count(ERRORS, "milter", "egress") == 1


def test_egress_hop_refuses_nobody_for_the_relay_rule(hop: Hop2) -> None:
    assert hop.leave(FROM_CLIENT, reverse_path="<app@vendor.example>", orcpt="") is None
    assert hop.count(DECISIONS, "contoso", "refuse", "nothing-accepted") == 0


def test_what_ingress_lets_in_for_a_mailbox_is_known_at_egress(hop: Hop2) -> None:
    session = hop.connected("203.0.113.9", macros={"i": "4CgSNs5Q9s"})
    assert hop.message(session, "<bob@fabrikam.com>", ["<john.work@contoso.com>"]) is None
    assert hop.leave(FROM_CLIENT) is None
    assert hop.unhashed == [FORWARDED]


def test_reference_of_ingress_stands_in_the_line_of_egress(hop: Hop2, capfd: pytest.CaptureFixture[str]) -> None:
    hop.message(
        hop.connected("203.0.113.9", macros={"i": "4CgSNs5Q9s"}), "<bob@fabrikam.com>", ["<john.work@contoso.com>"]
    )
    hop.leave(FROM_CLIENT)
    ingress, egress = [line.rpartition("reference=")[2] for line in lines(capfd)]
    assert ingress == egress


def test_mixed_message_is_remembered_with_the_organization_that_it_is_relayed_for(hop: Hop2) -> None:
    session = hop.connected("203.0.113.9", macros={"i": "4CgSNs5Q9s", **TRUSTED})
    assert hop.message(session, "<bob@fabrikam.com>", ["<sue@litware.example>", OUTSIDE]) is None
    hop.leave(FROM_CLIENT, orcpt="")
    assert hop.unhashed == [BOUNCES]


def test_mail_that_egress_will_not_rewrite_is_not_remembered(hop: Hop2) -> None:
    hop.message(hop.connected(macros={"i": "4CgSNs5Q9s"}), "<ann@contoso.com>", [OUTSIDE])
    assert hop.shared.hops.get("4CgSNs5Q9s", NOW) is None


def test_other_smtpd_is_not_taken_for_the_egress_hop(hop: Hop2) -> None:
    session = hop.connected("192.0.2.1", macros={"{daemon_name}": "mail.contoso.com"})
    assert hop.message(session, "<bob@fabrikam.com>") is not None


def test_daemon_name_of_the_egress_hop_means_nothing_without_egress_configured(mta: Mta) -> None:
    assert mta.message(mta.connected(macros=AT_EGRESS), "<bob@fabrikam.com>") is not None


def test_line_of_a_refusal_has_the_helo_name_which_adds_no_field_and_is_cut(
    tmp_path: Path, capfd: pytest.CaptureFixture[str]
) -> None:
    session = Mta(tmp_path, ENFORCE + CONTOSO).connected("192.0.2.5")
    session.helo("a>, reason=relay\n" + "x" * 1000)
    session.mail("<app@vendor.example>")
    session.rcpt("<x@gmail.example>", [])
    (line,) = lines(capfd)
    assert f", client=192.0.2.5, helo=<a?, reason=relay?{'x' * 238}>, organization=contoso, " in line


def test_line_of_a_message_that_passes_has_no_helo_name(tmp_path: Path, capfd: pytest.CaptureFixture[str]) -> None:
    mta = Mta(tmp_path, ENFORCE + CONTOSO)
    session = mta.connected()
    session.helo("crm.contoso.com")
    mta.message(session, "<app@contoso.com>")
    assert "helo" not in "".join(lines(capfd))
