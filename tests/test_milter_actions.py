# SPDX-License-Identifier: GPL-3.0-or-later
"""What is done with what the rule refuses: reject, tempfail, quarantine, tag; for whom, and for whom not."""

from __future__ import annotations

import re
from pathlib import Path
from typing import Optional

import pytest
from daemonprocess import CONTOSO
from milterstages import EGRESS, ENFORCE, INSIDE, OUTSIDE, Mta, lines, unhashed

from gatepost.service.ledger import Entry, record
from gatepost.service.metrics import MESSAGES
from gatepost.service.replies import Reply

MIXED = Reply(452, "4.5.3", "Inside and outside recipients need a message each, please try again")
FAULT = Reply(451, "4.3.0", "gatepost: internal error, please try again later")
OFFICE = "192.0.2.5"
QUEUE_ID = "4CgSNs5Q9s"
FOREIGN, OWN = "<app@vendor.example>", "<app@contoso.com>"
FABRIKAM = """
[[organization]]
name = "fabrikam"
action = "tempfail"
[[organization.accepted_domain]]
domain = "fabrikam.com"
"""


def acting(folder: Path, action: str, more: str = "", organization: str = CONTOSO) -> Mta:
    mta = Mta(folder, f'{ENFORCE}action = "{action}"\n{more}' + organization)
    mta.macros["i"] = QUEUE_ID
    return mta


def records(mta: Mta) -> list[tuple[str, str, str, bool]]:
    """Return recipient, verdict and action of what waits in the spool, and whether P1 was rewritten."""
    found = (record(line) for file in (mta.folder / "ledger").iterdir() for line in file.read_bytes().splitlines())
    entries = [item for item in found if isinstance(item, Entry)]
    return [(item.recipient, item.verdict_current, item.action, bool(item.rewritten)) for item in entries]


# tempfail


def test_tempfail_answers_451_with_the_reference_that_is_logged(
    tmp_path: Path, capfd: pytest.CaptureFixture[str]
) -> None:
    mta = acting(tmp_path, "tempfail")
    session = mta.connected(OFFICE, macros={"i": ""})
    session.mail(FOREIGN)
    reply = session.rcpt(OUTSIDE, [])
    assert reply
    found = re.fullmatch(r"TenantAttribution; Relay Access Denied \[([A-Z2-7]{10})\]", reply.text)
    assert (reply.code, reply.status) == (451, "4.7.64")
    assert found
    assert lines(capfd) == [
        "NOQUEUE: action=defer, from=<app@vendor.example>, to=<x@gmail.example>, client=192.0.2.5, "
        f"organization=contoso, reason=nothing-accepted, reference={found[1]}"
    ]
    assert records(mta) == [("x@gmail.example", "refuse", "defer", False)]


def test_tempfail_puts_off_the_outside_recipient_alone(tmp_path: Path) -> None:
    mta = acting(tmp_path, "tempfail")
    session = mta.connected(OFFICE)
    session.mail(FOREIGN)
    assert session.rcpt(INSIDE, []) is None
    assert session.rcpt(OUTSIDE, []) is not None
    assert session.data() is None
    assert mta.content(session, []) is None


def test_under_legacy_tempfail_falls_at_the_end_of_the_headers(tmp_path: Path) -> None:
    mta = acting(tmp_path, "tempfail", 'requirements = "legacy"\n')
    reply = mta.message(mta.connected(OFFICE), FOREIGN, [OUTSIDE, "<y@gmail.example>"])
    assert reply
    assert (reply.code, reply.status) == (451, "4.7.64")
    assert [item[2] for item in records(mta)] == ["defer", "defer"]


def test_mail_from_sendmail_that_tempfail_would_keep_in_maildrop_for_ever_is_refused_at_its_end(tmp_path: Path) -> None:
    mta = acting(tmp_path, "tempfail", "exempt = []\n")
    reply = mta.message(mta.connected("127.0.0.1", 0), FOREIGN)
    assert reply
    assert (reply.code, reply.status) == (550, "5.7.64")
    assert {item[2] for item in records(mta)} == {"reject"}


def test_under_legacy_mail_from_sendmail_is_refused_and_not_put_off_either(tmp_path: Path) -> None:
    mta = acting(tmp_path, "tempfail", 'requirements = "legacy"\nexempt = []\n')
    reply = mta.message(mta.connected("127.0.0.1", 0), FOREIGN)
    assert reply
    assert (reply.code, reply.status) == (550, "5.7.64")
    assert {item[2] for item in records(mta)} == {"reject"}


# quarantine


def test_quarantine_holds_the_message_with_its_reason_and_rewrites_p1_as_of_relayed_mail(
    tmp_path: Path, capfd: pytest.CaptureFixture[str]
) -> None:
    mta = acting(tmp_path, "quarantine")
    assert mta.message(mta.connected(OFFICE), FOREIGN) is None
    assert len(mta.held) == 1
    found = re.fullmatch(r"gatepost: nothing-accepted \[([A-Z2-7]{10})\]", mta.held[0])
    assert found
    assert mta.unhashed == ["bounces+SRS=HASH=G3=vendor.example=app@contoso.com"]
    assert [unhashed(line) for line in lines(capfd)] == [
        "4CgSNs5Q9s: action=quarantine, from=<app@vendor.example>, "
        "rewritten=<bounces+SRS=HASH=G3=vendor.example=app@contoso.com>, nrcpt=1, client=192.0.2.5, "
        f"organization=contoso, reason=nothing-accepted, reference={found[1]}"
    ]
    assert mta.count(MESSAGES, "milter", "quarantine") == 1
    assert records(mta) == [("x@gmail.example", "refuse", "quarantine", True)]


def test_quarantined_mail_with_an_own_p1_keeps_it(tmp_path: Path) -> None:
    mta = acting(tmp_path, "quarantine")
    assert mta.message(mta.connected("203.0.113.9"), OWN) is None
    assert mta.held
    assert mta.senders == []


@pytest.mark.parametrize("more", ["", EGRESS], ids=["at once", "with an egress hop"])
@pytest.mark.parametrize("action", ["quarantine", "tag"])
@pytest.mark.parametrize("rcpts", [(INSIDE, OUTSIDE), (OUTSIDE, INSIDE)])
def test_an_action_on_the_message_never_shares_it_with_an_inside_recipient(
    tmp_path: Path, action: str, rcpts: tuple[str, str], more: str
) -> None:
    mta = acting(tmp_path, action, more)
    session = mta.connected(OFFICE)
    session.mail(FOREIGN)
    assert session.rcpt(rcpts[0], []) is None
    assert session.rcpt(rcpts[1], []) == MIXED
    assert mta.content(session, []) is None
    assert bool(mta.held or mta.headers) == (rcpts[0] == OUTSIDE)


@pytest.mark.parametrize("action", ["quarantine", "tag"])
def test_under_legacy_it_is_decided_at_the_end_of_the_headers(tmp_path: Path, action: str) -> None:
    mta = acting(tmp_path, action, 'requirements = "legacy"\n')
    session = mta.connected(OFFICE)
    session.mail(FOREIGN)
    assert session.rcpt(INSIDE, []) is None
    assert session.rcpt(OUTSIDE, []) == MIXED
    session.abort()
    assert mta.message(session, FOREIGN, headers=[("From", "app@contoso.com")]) is None
    assert not mta.held
    assert not mta.headers
    assert mta.message(session, FOREIGN) is None
    assert mta.held or mta.headers


@pytest.mark.parametrize("action", ["quarantine", "tag"])
def test_a_sender_that_cannot_be_rewritten_is_refused_and_not_held(tmp_path: Path, action: str) -> None:
    mta = acting(tmp_path, action, '[srs]\nform = "long"\n')
    long = f"<{'a' * 64}@{'b' * 60}.{'c' * 60}.{'d' * 60}.example>"
    session = mta.connected(OFFICE)
    session.mail(long)
    reply = session.rcpt(OUTSIDE, [])
    assert reply
    assert reply.code == 553


def test_mail_from_sendmail_that_is_not_exempt_is_held_whole(tmp_path: Path) -> None:
    mta = acting(tmp_path, "quarantine", "exempt = []\n")
    session = mta.connected("127.0.0.1", 0)
    assert mta.message(session, FOREIGN, [INSIDE, OUTSIDE]) is None
    assert len(mta.held) == 1
    assert [item[2] for item in records(mta)] == ["quarantine", "quarantine"]


def test_what_policyd_holds_is_rewritten_here_and_not_held_again(tmp_path: Path) -> None:
    mta = acting(tmp_path, "quarantine", 'enforced_by = "policyd"\n')
    assert mta.message(mta.connected(OFFICE), FOREIGN) is None
    assert mta.unhashed == ["bounces+SRS=HASH=G3=vendor.example=app@contoso.com"]
    assert mta.held == []


def test_what_policyd_leaves_to_postfix_stays(tmp_path: Path) -> None:
    mta = acting(tmp_path, "quarantine", 'enforced_by = "policyd"\n')
    assert mta.message(mta.connected("203.0.113.9"), FOREIGN) is None
    assert mta.senders == []


# tag


def test_tag_lets_the_message_pass_with_a_header_that_says_why(tmp_path: Path) -> None:
    mta = acting(tmp_path, "tag")
    assert mta.message(mta.connected(OFFICE), FOREIGN) is None
    assert len(mta.headers) == 1
    assert re.fullmatch(r"X-Gatepost-Relay: refused; reason=nothing-accepted; reference=[A-Z2-7]{10}", mta.headers[0])
    assert mta.unhashed == ["bounces+SRS=HASH=G3=vendor.example=app@contoso.com"]
    assert mta.count(MESSAGES, "milter", "tag") == 1
    assert records(mta)[0][1:3] == ("refuse", "tag")


FORGED = [("X-Gatepost-Relay", "relay"), ("From", "app@contoso.com"), ("x-GATEPOST-relay", "relay; really")]


@pytest.mark.parametrize(("reverse_path", "rcpt"), [(OWN, OUTSIDE), (FOREIGN, INSIDE), ("<>", INSIDE)])
def test_such_headers_from_a_client_are_removed_the_last_one_first(
    tmp_path: Path, reverse_path: str, rcpt: str
) -> None:
    mta = acting(tmp_path, "tag")
    assert mta.message(mta.connected("192.0.2.5"), reverse_path, [rcpt], FORGED) is None
    assert mta.headers == ["no X-Gatepost-Relay 2", "no X-Gatepost-Relay 1"]


def test_a_forged_header_goes_before_ours_comes(tmp_path: Path) -> None:
    mta = acting(tmp_path, "tag")
    assert mta.message(mta.connected(OFFICE), FOREIGN, headers=FORGED[:1]) is None
    assert [item.partition(":")[0] for item in mta.headers] == ["no X-Gatepost-Relay 1", "X-Gatepost-Relay"]


def test_headers_of_the_message_before_are_not_counted(tmp_path: Path) -> None:
    mta = acting(tmp_path, "tag")
    session = mta.connected(OFFICE)
    mta.message(session, OWN, headers=FORGED)
    mta.headers.clear()
    mta.message(session, OWN)
    assert mta.headers == []


@pytest.mark.parametrize("action", ["reject", "quarantine"])
def test_where_nobody_tags_headers_stay_as_they_are(tmp_path: Path, action: str) -> None:
    mta = acting(tmp_path, action)
    assert mta.message(mta.connected(OFFICE), OWN, headers=FORGED) is None
    assert mta.headers == []


def test_on_the_egress_hop_our_own_header_stays(tmp_path: Path) -> None:
    mta = acting(tmp_path, "tag", EGRESS)
    session = mta.connected("127.0.0.1", macros={"{daemon_name}": "gatepost-egress"})
    assert mta.message(session, FOREIGN, headers=FORGED[:1]) is None
    assert mta.headers == []


@pytest.mark.parametrize(("count", "refused"), [(20, False), (21, True)])
def test_message_with_too_many_such_headers_to_remove_is_refused(
    tmp_path: Path, capfd: pytest.CaptureFixture[str], count: int, *, refused: bool
) -> None:
    mta = acting(tmp_path, "tag")
    reply = mta.message(mta.connected(OFFICE), OWN, [OUTSIDE, INSIDE], FORGED[:1] * count)
    assert reply == (Reply(550, "5.6.0", "Too many X-Gatepost-Relay headers") if refused else None)
    assert len(mta.headers) == (0 if refused else count)
    assert {item[2] for item in records(mta)} == {"reject" if refused else "pass"}
    if refused:
        assert lines(capfd) == [
            "4CgSNs5Q9s: action=reject, from=<app@contoso.com>, nrcpt=2, client=192.0.2.5, organization=contoso, "
            "reason=too-many-tags"
        ]
        assert mta.count(MESSAGES, "milter", "reject") == 1


# Where the end of a message never comes (smtpd_proxy_filter), which has no queue ID then


@pytest.mark.parametrize("action", ["quarantine", "tag"])
def test_message_without_a_queue_id_is_refused_at_data(
    tmp_path: Path, capfd: pytest.CaptureFixture[str], action: str
) -> None:
    mta = acting(tmp_path, action)
    session = mta.connected(OFFICE, macros={"i": ""})
    session.mail(FOREIGN)
    assert [session.rcpt(OUTSIDE, []), session.rcpt("<y@gmail.example>", [])] == [None, None]
    reply = session.data()
    assert reply
    found = re.fullmatch(r"TenantAttribution; Relay Access Denied \[([A-Z2-7]{10})\]", reply.text)
    assert (reply.code, reply.status) == (550, "5.7.64")
    assert found
    assert lines(capfd)[0] == (
        "NOQUEUE: action=reject, from=<app@vendor.example>, to=<x@gmail.example>, client=192.0.2.5, "
        f"organization=contoso, reason=nothing-accepted, reference={found[1]}"
    )
    assert [item[:3] for item in records(mta)] == [
        ("x@gmail.example", "refuse", "reject"),
        ("y@gmail.example", "refuse", "reject"),
    ]


def test_message_that_only_its_end_would_mend_is_refused_at_data_without_a_queue_id(tmp_path: Path) -> None:
    mta = acting(tmp_path, "rewrite")
    reply = mta.message(mta.connected(OFFICE, macros={"i": ""}), FOREIGN)
    assert reply
    assert (reply.code, reply.status) == (550, "5.7.64")


def test_message_that_the_egress_hop_mends_needs_no_queue_id(tmp_path: Path) -> None:
    mta = acting(tmp_path, "rewrite", EGRESS)
    assert mta.message(mta.connected(OFFICE, macros={"i": ""}), FOREIGN) is None


@pytest.mark.parametrize(("reverse_path", "rcpt"), [(OWN, OUTSIDE), (FOREIGN, INSIDE)])
def test_what_the_rule_lets_pass_needs_no_queue_id(tmp_path: Path, reverse_path: str, rcpt: str) -> None:
    mta = acting(tmp_path, "quarantine")
    assert mta.message(mta.connected(OFFICE, macros={"i": ""}), reverse_path, [rcpt]) is None


def test_under_legacy_what_the_header_from_must_decide_is_put_off_without_a_queue_id(
    tmp_path: Path, capfd: pytest.CaptureFixture[str]
) -> None:
    mta = acting(tmp_path, "reject", 'requirements = "legacy"\n')
    session = mta.connected(OFFICE, macros={"i": ""})
    session.mail(FOREIGN)
    assert session.rcpt(OUTSIDE, []) is None
    assert session.data() == FAULT
    assert lines(capfd) == [
        'error: a message of <app@vendor.example> is put off: requirements = "legacy" needs its headers, and behind '
        "smtpd_proxy_filter milters get none"
    ]


# Whose action


@pytest.mark.parametrize("action", ["tempfail", "quarantine", "tag"])
def test_in_mode_monitor_nothing_is_done(tmp_path: Path, action: str) -> None:
    mta = Mta(tmp_path, f'[relay]\naction = "{action}"\n' + CONTOSO)
    assert mta.message(mta.connected(OFFICE), FOREIGN, headers=FORGED) is None
    assert (mta.held, mta.headers, mta.senders) == ([], [], [])


def test_each_organization_has_its_own_action(tmp_path: Path) -> None:
    mta = acting(tmp_path, "quarantine", organization=CONTOSO + FABRIKAM)
    session = mta.connected("203.0.113.9")
    session.mail("<bob@fabrikam.com>")
    reply: Optional[Reply] = session.rcpt(OUTSIDE, [])
    assert reply
    assert reply.code == 451
    assert mta.message(session, OWN) is None
    assert len(mta.held) == 1


def test_mail_of_no_organization_has_the_general_one(tmp_path: Path) -> None:
    mta = acting(
        tmp_path,
        "quarantine",
        organization=CONTOSO.replace('name = "contoso"', 'name = "contoso"\naction = "reject"', 1),
    )
    assert mta.message(mta.connected("203.0.113.9"), FOREIGN) is None
    assert len(mta.held) == 1
    session = mta.connected(OFFICE)
    session.mail(FOREIGN)
    reply = session.rcpt(OUTSIDE, [])
    assert reply
    assert reply.code == 550


# rewrite


def test_rewrite_relays_a_foreign_p1_of_a_connectors_host_with_an_srs_sender(tmp_path: Path) -> None:
    mta = acting(tmp_path, "rewrite")
    assert mta.message(mta.connected(OFFICE), FOREIGN) is None
    assert mta.unhashed == ["bounces+SRS=HASH=G3=vendor.example=app@contoso.com"]
    assert records(mta) == [("x@gmail.example", "refuse", "mend", True)]


@pytest.mark.parametrize(("client", "reverse_path"), [("203.0.113.9", FOREIGN), ("203.0.113.9", OWN), (OFFICE, "<>")])
def test_rewrite_rejects_what_no_sender_would_help(tmp_path: Path, client: str, reverse_path: str) -> None:
    mta = acting(tmp_path, "rewrite")
    reply = mta.message(mta.connected(client), reverse_path)
    assert reply
    assert reply.code == 550


def test_rewrite_rejects_a_sender_that_the_lists_keep_from_being_rewritten(tmp_path: Path) -> None:
    mta = acting(tmp_path, "rewrite", '[srs]\nexclude = ["vendor.example"]\n')
    reply = mta.message(mta.connected(OFFICE), FOREIGN)
    assert reply
    assert reply.code == 550


def test_rewrite_rejects_from_a_connector_that_is_for_other_domains_r11(tmp_path: Path) -> None:
    limited = """
[[organization]]
name = "contoso"
accepted_domain = [{domain = "contoso.com", default = true}, {domain = "contoso.net"}]
[[organization.connector]]
name = "office"
sender_ip_addresses = ["192.0.2.0/28"]
associated_accepted_domains = ["contoso.net"]
"""
    mta = acting(tmp_path, "rewrite", organization=limited)
    reply = mta.message(mta.connected(OFFICE), FOREIGN)
    assert reply
    assert reply.code == 550


def test_rewrite_keeps_the_inside_recipients_copy_untouched(tmp_path: Path) -> None:
    mta = acting(tmp_path, "rewrite")
    session = mta.connected(OFFICE)
    session.mail(FOREIGN)
    assert session.rcpt(INSIDE, []) is None
    assert session.rcpt(OUTSIDE, []) == MIXED


def test_rewrite_leaves_mixed_recipients_to_the_egress_hop(tmp_path: Path) -> None:
    mta = acting(tmp_path, "rewrite", EGRESS)
    assert mta.message(mta.connected(OFFICE), FOREIGN, [INSIDE, OUTSIDE]) is None
    assert mta.senders == []
    assert records(mta) == [("ann@contoso.com", "inside", "pass", False), ("x@gmail.example", "refuse", "mend", False)]


def test_rewrite_waits_for_mode_enforce(tmp_path: Path) -> None:
    mta = Mta(tmp_path, '[relay]\naction = "rewrite"\n' + CONTOSO)
    assert mta.message(mta.connected(OFFICE), FOREIGN) is None
    assert mta.senders == []


@pytest.mark.parametrize("requirements", ["2023-11-01", "legacy"])
@pytest.mark.parametrize("action", ["quarantine", "tag", "reject"])
def test_mail_of_no_organization_never_shares_a_message_with_an_inside_recipient_where_all_others_are_in_mode_monitor(
    tmp_path: Path, action: str, requirements: str
) -> None:
    organization = CONTOSO.replace('name = "contoso"', 'name = "contoso"\nmode = "monitor"', 1)
    mta = acting(tmp_path, action, f'requirements = "{requirements}"\n', organization)
    session = mta.connected("198.51.100.9")
    session.mail(FOREIGN)
    assert session.rcpt(INSIDE, []) is None
    reply = session.rcpt(OUTSIDE, [])
    assert reply
    assert reply == MIXED or (reply.code == 550 and action == "reject" and requirements == "2023-11-01")
    assert mta.content(session, []) is None
    assert (mta.held, mta.headers) == ([], [])
