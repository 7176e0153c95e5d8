# SPDX-License-Identifier: GPL-3.0-or-later
"""Messages are rebuilt from the lines of Postfix and Sendmail.

The logs in data/replay are of Postfix 3.7 and Sendmail 8.17; what they show that the documentation does not say:
* At smtpd_tls_loglevel = 1 Postfix says that a certificate is trusted, and does not name it; `1,peercert` adds a line.
* Postfix behind smtpd_proxy_filter gives the message's ID in a line "proxy-accept" that does not begin with an ID.
* Sendmail writes recipients that the client named in <>, what its aliases make of them without.
"""

from __future__ import annotations

import time
from pathlib import Path
from typing import Optional

import pytest
from hypothesis import given
from hypothesis import strategies as st

from gatepost.admin.replay_log import Log
from gatepost.admin.replay_message import Message, Origin

DATA = Path(__file__).parent / "data/replay"
OFFICE = Origin("192.0.2.5", "app.contoso.com")


def read(*lines: str, log: Optional[Log] = None) -> list[Message]:
    """Return the messages in *lines*, which have no time and host yet, one fed at a time."""
    log = log or Log()
    found = []
    for line in lines:
        found += log.feed([b"Nov 22 07:15:17 mail " + line.encode("utf-8", "surrogateescape")])
    return [*found, *log.end()]


def read_file(name: str) -> dict[str, Message]:
    log = Log()
    found = [*log.feed((DATA / name).read_bytes().split(b"\n")), *log.end()]
    assert log.unread == 0
    return {message.queue_id: message for message in found if message.queue_id != "NOQUEUE"}


def message(queue_id: str, rcpt: str = "x@example.com", mail_from: str = "app@contoso.com") -> list[str]:
    """Return the lines of a message with one recipient."""
    return [
        f"postfix/smtpd[1]: {queue_id}: client=app.contoso.com[192.0.2.5]",
        f"postfix/cleanup[2]: {queue_id}: message-id=<1@app.contoso.com>",
        f"postfix/qmgr[3]: {queue_id}: from=<{mail_from}>, size=308, nrcpt=1 (queue active)",
        f"postfix/smtp[4]: {queue_id}: to=<{rcpt}>, relay=mx.example.com[198.51.100.1]:25, delay=0.1, "
        "delays=0/0/0/0.1, dsn=2.0.0, status=sent (250 2.0.0 Ok: queued as 4jXL7j5xj8zKSLv)",
        f"postfix/qmgr[3]: {queue_id}: removed",
    ]


def test_5_7_64_of_the_next_hop_and_its_ndr_are_known_in_a_log_of_sendmail() -> None:
    found = read(
        "sendmail[1]: 6AM7iZcu031990: from=<bob@fabrikam.com>, size=8, class=0, nrcpts=1, relay=[192.0.2.5]",
        "sendmail[1]: 6AM7iZcu031990: to=<x@example.com>, delay=00:00:00, mailer=esmtp, pri=60046, "
        "relay=mx [192.0.2.9], dsn=5.7.64, reply=550 5.7.64 TenantAttribution, stat=Service unavailable",
        "sendmail[1]: 6AM7iZcu031990: 6AM7iZcv031990: DSN: Service unavailable",
        "sendmail[1]: 6AM7iZcv031990: to=<bob@fabrikam.com>, delay=00:00:00, mailer=esmtp, pri=1, dsn=2.0.0, stat=Sent",
        "sendmail[1]: 6AM7iZcu031990: done; delay=00:00:00, ntries=1",
    )
    assert {item.queue_id: (item.denied, item.about_denied) for item in found} == {
        "6AM7iZcu031990": (True, False),
        "6AM7iZcv031990": (False, True),
    }


@pytest.mark.parametrize(
    ("delivery", "denied"),
    [
        (
            "to=<x@example.com>, relay=mx[192.0.2.9]:25, delay=1, dsn=5.7.64, status=bounced (host said: 550 5.7.64)",
            True,
        ),
        ("to=<x@example.com>, relay=mx[192.0.2.9]:25, delay=1, dsn=5.7.1, status=bounced (, dsn=5.7.64, )", False),
        ("to=<x, dsn=5.7.64, @example.com>, relay=mx[192.0.2.9]:25, delay=1, dsn=5.7.1, status=bounced (no)", False),
        ("to=<x@example.com>, relay=mx[192.0.2.9]:25, delay=1, dsn=4.7.64, status=SOFTBOUNCE (550 5.7.64)", False),
    ],
)
def test_5_7_64_counts_in_the_status_of_the_next_hop_only(delivery: str, denied: bool) -> None:
    lines = message("4C0D51A2B3")
    lines[3] = f"postfix/smtp[4]: 4C0D51A2B3: {delivery}"
    assert [item.denied for item in read(*lines)] == [denied]


def shown(found: list[Message]) -> list[tuple[str, Optional[Origin], Optional[bytes], list[tuple[bytes, str]], bool]]:
    """Return what counts of each message."""
    return [
        (
            item.queue_id,
            item.origin,
            item.sender,
            [(rcpt, outcome) for rcpt, (outcome, _) in item.recipients().items()],
            item.whole,
        )
        for item in found
    ]


def test_message_has_client_p1_recipient_size_and_outcome() -> None:
    (found,) = read(*message("4jXL7j5cc5zKSLb"))
    assert shown([found]) == [("4jXL7j5cc5zKSLb", OFFICE, b"app@contoso.com", [(b"x@example.com", "sent")], True)]
    assert found.size_bytes == 308
    assert found.time == b"Nov 22 07:15:17 mail"


@pytest.mark.parametrize(
    "head",
    [
        "Nov  2 07:15:17 mail",
        "2026-11-22T07:15:17.123456+01:00 mail",
        "2026-11-22T07:15:17+0000 mail.contoso.com",
        "2026-11-22T07:15:17 mail",
        "Sun 2026-11-22 07:15:17 UTC mail",
    ],
)
def test_time_may_have_any_form(head: str) -> None:
    log = Log()
    lines = [f"{head} {line}".encode() for line in message("4jXL7j5cc5zKSLb")]
    (found,) = log.feed(lines)
    assert found.whole
    assert found.time.decode() == head


@pytest.mark.parametrize("tag", ["postfix/smtpd", "postfix-out/smtpd", "postfix/submission/smtpd", "mx/smtps/smtpd"])
def test_instances_and_services_of_postfix_are_known_by_the_program(tag: str) -> None:
    (found,) = read(*(line.replace("postfix/smtpd", tag) for line in message("4C0D51A2B3")))
    assert found.origin == OFFICE
    assert found.whole


@pytest.mark.parametrize("tag", ["dovecot", "postfix/anvil", "postfix/postscreen", "smtpd", "kernel: x"])
def test_other_programs_count_for_nothing(tag: str) -> None:
    assert read(f"{tag}[1]: 4jXL7j5cc5zKSLb: client=app.contoso.com[192.0.2.5]") == []


def test_soft_bounce_is_a_deferral() -> None:
    lines = [line.replace("status=sent", "status=SOFTBOUNCE") for line in message("4jXL7j5cc5zKSLb")]
    (found,) = read(*lines)
    assert found.outcomes == {b"x@example.com": "deferred"}


def test_client_port_is_left_out() -> None:
    (found,) = read("postfix/smtpd[1]: 4C0D51A2B3: client=app.contoso.com[2001:db8::5]:41234")
    assert found.origin == Origin("2001:db8::5", "app.contoso.com")


def test_last_outcome_of_a_recipient_counts() -> None:
    lines = message("4jXL7j5cc5zKSLb")
    (found,) = read(*lines[:3], lines[3].replace("status=sent", "status=deferred"), lines[2], *lines[3:])
    assert found.outcomes == {b"x@example.com": "sent"}


def test_recipients_of_an_alias_are_one_as_the_client_named_it() -> None:
    lines = message("4jXL7j5cc5zKSLb")
    one = lines[3].replace("to=<x@example.com>", "to=<a@example.com>, orig_to=<list@contoso.com>")
    two = lines[3].replace("to=<x@example.com>", "to=<b@example.com>, orig_to=<list@contoso.com>")
    (found,) = read(*lines[:3], one, two, lines[4])
    assert found.recipients() == {b"list@contoso.com": ("sent", b"a@example.com")}


def test_rejected_recipient_of_a_message_that_goes_on_stays_with_it() -> None:
    lines = message("4jXL7j5cc5zKSLb")
    reject = (
        "postfix/smtpd[1]: 4jXL7j5cc5zKSLb: reject: RCPT from app.contoso.com[192.0.2.5]: 550 5.1.1 <y@contoso.com>: "
        "Recipient address rejected; from=<app@contoso.com> to=<y@contoso.com> proto=ESMTP helo=<app>"
    )
    (found,) = read(lines[0], reject, *lines[1:])
    assert shown([found])[0][3] == [(b"x@example.com", "sent"), (b"y@contoso.com", "rejected")]


CONNECT = "postfix/smtpd[1]: connect from app.contoso.com[192.0.2.5]"
DISCONNECT = "postfix/smtpd[1]: disconnect from app.contoso.com[192.0.2.5] ehlo=1 mail=1 rcpt=1 rset=1 commands=4"


def test_message_whose_content_never_came_is_none() -> None:
    given_up, sent = message("4C0D51A2B1")[0], message("4C0D51A2B2")
    found = read(CONNECT, given_up, *sent[:2], DISCONNECT, *sent[2:], CONNECT, given_up, DISCONNECT)
    assert [(item.queue_id, item.whole) for item in found] == [("4C0D51A2B2", True)]


def test_recipient_rejected_in_a_message_whose_content_never_came_stays() -> None:
    reject = (
        "postfix/smtpd[1]: 4C0D51A2B1: reject: RCPT from app.contoso.com[192.0.2.5]: 554 5.7.1 <y@example.com>: Relay "
        "access denied; from=<app@contoso.com> to=<y@example.com> proto=ESMTP helo=<app>"
    )
    (found,) = read(CONNECT, message("4C0D51A2B1")[0], reject, DISCONNECT)
    assert found.recipients() == {b"y@example.com": ("rejected", b"y@example.com")}
    assert found.whole


def test_message_rejected_at_its_end_is_finished() -> None:
    lines = message("4C0D51A2B1")
    reject = (
        "postfix/cleanup[2]: 4C0D51A2B1: milter-reject: END-OF-MESSAGE from app.contoso.com[192.0.2.5]: 5.7.64 "
        "TenantAttribution; Relay Access Denied; from=<app@contoso.com> to=<x@example.com> proto=ESMTP helo=<app>"
    )
    log = Log()
    found = [item for line in [*lines[:2], reject] for item in log.feed([f"Nov 22 07:15:17 mail {line}".encode()])]
    assert [item.recipients() for item in found] == [{b"x@example.com": ("rejected", b"x@example.com")}]


def test_rejection_without_queue_id_is_a_message_of_its_own() -> None:
    found = read(
        "postfix/smtpd[1]: NOQUEUE: milter-reject: RCPT from app.contoso.com[192.0.2.5]: 550 5.7.64 TenantAttribution; "
        "Relay Access Denied [ABCDEFGHIJ]; from=<bob@fabrikam.com> to=<x@example.com> proto=ESMTP helo=<app>"
    )
    assert shown(found) == [("NOQUEUE", OFFICE, b"bob@fabrikam.com", [(b"x@example.com", "rejected")], True)]


def test_sasl_client_has_authenticated() -> None:
    (found,) = read(
        "postfix/submission/smtpd[1]: 4C0D51A2B3: client=app.contoso.com[192.0.2.5], sasl_method=PLAIN, "
        "sasl_username=mary"
    )
    assert found.origin == OFFICE._replace(authenticated=True)


def test_certificate_of_a_session_is_of_its_messages_until_it_ends() -> None:
    client = "app.contoso.com[192.0.2.5]"
    found = read(
        f"postfix/smtpd[1]: {client}: subject_CN=crm.contoso.com, issuer=CA, fingerprint=AA:BB, pkey_fingerprint=CC",
        f"postfix/smtpd[1]: Trusted TLS connection established from {client}: TLSv1.3 with cipher X (256/256 bits)",
        f"postfix/smtpd[2]: 4C0D51A2B1: client={client}",
        f"postfix/smtpd[1]: 4C0D51A2B2: client={client}",
        "postfix/cleanup[3]: 4C0D51A2B2: message-id=<>",
        f"postfix/smtpd[1]: disconnect from {client} ehlo=1 quit=1 commands=2",
        f"postfix/smtpd[1]: 4C0D51A2B3: client={client}",
    )
    named = OFFICE._replace(trusted=True, common_name="crm.contoso.com", issuer="CA", fingerprint="AA:BB")
    assert [item.origin for item in found] == [OFFICE, named, OFFICE]


def test_untrusted_certificate_is_as_good_as_none_r10() -> None:
    client = "app.contoso.com[192.0.2.5]"
    (found,) = read(
        f"postfix/smtpd[1]: {client}: subject_CN=crm.contoso.com, issuer=x, fingerprint=AA:BB, pkey_fingerprint=CC",
        f"postfix/smtpd[1]: Untrusted TLS connection established from {client}: TLSv1.3 with cipher X (256/256 bits)",
        f"postfix/smtpd[1]: 4C0D51A2B1: client={client}",
    )
    assert found.origin == OFFICE


def test_queue_id_that_comes_again_is_another_message() -> None:
    again = message("4C0D51A2B3", "y@example.com", "bob@fabrikam.com")
    found = read(*message("4C0D51A2B3")[:4], *again)
    assert [(item.sender, list(item.recipients()), item.whole) for item in found] == [
        (b"app@contoso.com", [b"x@example.com"], True),
        (b"bob@fabrikam.com", [b"y@example.com"], True),
    ]


def test_same_queue_id_on_two_hosts_is_two_messages() -> None:
    log = Log()
    for line in message("4C0D51A2B3")[:2]:
        log.feed([f"Nov 22 07:15:17 {host} {line}".encode() for host in ("mx1", "mx2")])
    assert len(log.end()) == 2


def test_message_without_a_client_is_made_here() -> None:
    (found,) = read(*message("4C0D51A2B3")[1:])
    assert found.made_here
    assert found.whole


def test_message_whose_begin_is_not_in_the_log_is_not_whole() -> None:
    (found,) = read(*message("4C0D51A2B3")[2:])
    assert not found.made_here
    assert not found.whole


def test_message_that_waits_in_the_queue_is_whole_once_each_recipient_was_tried() -> None:
    lines = message("4C0D51A2B3")
    assert [item.whole for item in read(*lines[:4])] == [True]
    assert [item.whole for item in read(*lines[:3])] == [False]


def test_mail_that_comes_back_from_a_filter_on_loopback_is_a_hop() -> None:
    back = [line.replace("app.contoso.com[192.0.2.5]", "localhost[127.0.0.1]") for line in message("4C0D51A2B9")]
    first = message("4C0D51A2B1")
    first[3] = first[3].replace("mx.example.com[198.51.100.1]:25", "127.0.0.1[127.0.0.1]:10024")
    first[3] = first[3].replace("4jXL7j5xj8zKSLv", "4C0D51A2B9")
    found = read(*first[:3], *back, *first[3:])
    assert {item.queue_id: item.hop for item in found} == {"4C0D51A2B1": False, "4C0D51A2B9": True}


def test_next_hop_elsewhere_cannot_make_a_message_of_loopback_a_hop() -> None:
    local = [line.replace("app.contoso.com[192.0.2.5]", "localhost[127.0.0.1]") for line in message("4C0D51A2B9")]
    lines = [line.replace("4jXL7j5xj8zKSLv", "4C0D51A2B9") for line in message("4C0D51A2B1")]
    assert [item.hop for item in read(*local, *lines)] == [False, False]


# What the MTA does with a message beside delivering it; the lines are those of Postfix 3.7

CLIENT = "app.contoso.com[192.0.2.5]"
ENVELOPE = "from=<app@vendor.example> to=<x@example.com> proto=ESMTP helo=<app>"
HELD = ("app@vendor.example", {"x@example.com": "held"}, True)


def outcomes(*lines: str) -> list[tuple[str, dict[str, str], bool]]:
    """Return sender, recipients with their outcomes, and whether it is whole, for each message."""
    return [
        (
            (item.sender or b"").decode(),
            {rcpt.decode(): outcome for rcpt, (outcome, _) in item.recipients().items()},
            item.whole,
        )
        for item in read(*lines)
    ]


@pytest.mark.parametrize(
    "line",
    [
        f"postfix/cleanup[2]: 4C0D51A2B3: hold: header Subject: hold from {CLIENT}; {ENVELOPE}: x",
        f'postfix/cleanup[2]: 4C0D51A2B3: hold: header Subject: a"; b from {CLIENT}; {ENVELOPE}',
        f"postfix/cleanup[2]: 4C0D51A2B3: hold: body hold from {CLIENT}; {ENVELOPE}: because",
        f"postfix/cleanup[2]: 4C0D51A2B3: milter-hold: END-OF-MESSAGE from {CLIENT}: milter HOLD action; {ENVELOPE}",
        f"postfix/smtpd[1]: 4C0D51A2B3: hold: RCPT from {CLIENT}: <x@example.com>: Recipient why; so; {ENVELOPE}",
    ],
)
def test_message_on_hold_has_sender_and_recipient_from_the_line_that_says_so(line: str) -> None:
    lines = message("4C0D51A2B3")
    assert outcomes(CONNECT, lines[0], line, lines[1], DISCONNECT) == [HELD]


def test_hold_and_copy_that_come_before_the_queue_id_are_of_the_message_that_gets_it() -> None:
    lines = message("4C0D51A2B3")
    hold = f"postfix/smtpd[1]: NOQUEUE: hold: RCPT from {CLIENT}: <x@example.com>: Recipient triggers HOLD; {ENVELOPE}"
    assert outcomes(CONNECT, hold, *lines[:2], DISCONNECT) == [HELD]
    assert outcomes(CONNECT, hold, DISCONNECT, CONNECT, *lines[:2], DISCONNECT)[0][1] == {}
    copy = hold.replace("hold: RCPT", "bcc: RCPT").replace("HOLD", "BCC boss@outside.example")
    added = lines[3].replace("x@example.com", "boss@outside.example")
    (found,) = outcomes(CONNECT, copy, *lines[:4], added, DISCONNECT, lines[4])
    assert found == ("app@contoso.com", {"x@example.com": "sent"}, True)


def test_message_that_is_held_and_never_sent_is_none() -> None:
    line = f"postfix/smtpd[1]: 4C0D51A2B3: hold: RCPT from {CLIENT}: <x@example.com>: Recipient HOLD; {ENVELOPE}"
    assert outcomes(CONNECT, message("4C0D51A2B3")[0], line, DISCONNECT) == []


def test_outcome_of_a_message_released_from_hold_is_that_of_its_delivery() -> None:
    lines = message("4C0D51A2B3")
    hold = f"postfix/cleanup[2]: 4C0D51A2B3: hold: header Subject: x from {CLIENT}; {ENVELOPE}: x"
    assert outcomes(lines[0], hold, *lines[1:]) == [("app@vendor.example", {"x@example.com": "sent"}, True)]


def test_recipient_that_header_checks_add_is_no_client_s() -> None:
    lines = message("4C0D51A2B3")
    line = f"postfix/cleanup[2]: 4C0D51A2B3: bcc: header Subject: bcc from {CLIENT}; {ENVELOPE}: copy@outside.example"
    copy = lines[3].replace("x@example.com", "copy@outside.example")
    (found,) = outcomes(lines[0], line, *lines[1:3], copy, *lines[3:])
    assert found[1] == {"x@example.com": "sent"}


@pytest.mark.parametrize(
    ("line", "outcome"),
    [
        (f"postfix/cleanup[2]: 4C0D51A2B3: reject: header Subject: x from {CLIENT}; {ENVELOPE}: 5.7.1 no", "rejected"),
        (f"postfix/cleanup[2]: 4C0D51A2B3: discard: header Subject: x from {CLIENT}; {ENVELOPE}: x", "discarded"),
        (
            f"postfix/smtpd[1]: 4C0D51A2B3: discard: RCPT from {CLIENT}: <x@example.com>: Recipient x; {ENVELOPE}",
            "discarded",
        ),
        (
            f"postfix/smtpd[1]: NOQUEUE: discard: RCPT from {CLIENT}: <x@example.com>: Recipient x; {ENVELOPE}",
            "discarded",
        ),
    ],
)
def test_message_that_is_rejected_or_discarded_by_its_content_does_not_vanish(line: str, outcome: str) -> None:
    found = outcomes(CONNECT, message("4C0D51A2B3")[0], line, DISCONNECT)
    assert found == [("app@vendor.example", {"x@example.com": outcome}, True)]


# What strangers put into the log


@pytest.mark.parametrize(
    "line",
    [
        "postfix/smtpd[1]: A1: client=a[192.0.2.5], sasl_method=PLAIN, sasl_username=" + ", sasl_sender=" * 500,
        "postfix/smtpd[1]: NOQUEUE: reject: RCPT from a[192.0.2.5]: 554 " + "; from=<a" * 900,
        "postfix/smtpd[1]: a[192.0.2.5]: subject_CN=" + ", issuer=a" * 750 + ", fingerprint=AA",
        "postfix/cleanup[1]: A1: hold: header " + " from a[192.0.2.5]; from=<a" * 300,
        "sendmail[1]: A1: from=<a>, size=1, class=0, nrcpts=1," + ", relay=" * 1000 + "\n",
        "sendmail[1]: A1: to=" + ", ctladdr=a, delay=0, dsn=2.0, reply=a" * 200,
        "sendmail[1]: A1: to=" + ", delay=0, " * 700,
        "sendmail[1]: A1: to=" + '<\\"' * 2600 + ", delay=0, xdelay=1, dsn=2.0.0, stat=Sent",
    ],
)
def test_hostile_line_takes_no_longer_than_others(line: str) -> None:
    began = time.process_time()
    read(line)
    assert time.process_time() - began < 0.05


@pytest.mark.parametrize(
    "line",
    [
        "postfix/smtpd[1]: improper command pipelining after DATA from x[203.0.113.1]: 4C0D51A2B3: client=a[192.0.2.5]",
        "postfix/smtpd[1]: warning: 4C0D51A2B3: client=a[192.0.2.5]",
        "postfix/smtpd[1]: warning: client=a[192.0.2.5]",
        "postfix/cleanup[1]: 4C0D51A2B3: warning: header Subject: client=a[192.0.2.5]; from=<x> to=<y> proto=ESMTP",
        "postfix/smtpd[1]: 4C0D51A2B3: client=a[192.0.2.5] forged",
        "postfix/smtpd[1]: 4C0D51A2B3: client=",
        "postfix/smtpd[1]: ",
        "postfix/smtpd[1]: : client=a[192.0.2.5]",
        "postfix/smtpd[]: 4C0D51A2B3: client=a[192.0.2.5]",
    ],
)
def test_text_that_looks_like_a_client_is_none(line: str) -> None:
    assert read(line) == []


def test_address_that_looks_like_the_rest_of_the_line_is_read_whole() -> None:
    rcpt = '">, orig_to=<ceo@contoso.com>, relay=none"@example.com'
    sender = '">, size=1, nrcpt=9 (queue active)"@fabrikam.com'
    (found,) = read(*message("4C0D51A2B3", rcpt, sender))
    assert found.sender == sender.encode()
    assert list(found.recipients()) == [rcpt.encode()]
    assert found.size_bytes == 308


def test_helo_that_looks_like_an_envelope_is_not_the_envelope() -> None:
    (found,) = read(
        "postfix/smtpd[1]: NOQUEUE: reject: RCPT from x[203.0.113.1]: 554 5.7.1 "
        '<"; from=<a@x.example> to=<b@x.example> proto="@example.com>: Relay access denied; from=<real@x.example> '
        'to=<"; from=<a@x.example> to=<b@x.example> proto="@example.com> proto=ESMTP helo=<y; from=<c@x> to=<d@x> '
        "proto=ESMTP>"
    )
    assert found.sender == b"real@x.example"
    assert list(found.kept) == [b'"; from=<a@x.example> to=<b@x.example> proto="@example.com']


def test_octets_that_are_no_utf8_survive() -> None:
    (found,) = read(*message("4C0D51A2B3", "b\udcf8b@example.com"))
    assert list(found.recipients()) == [b"b\xf8b@example.com"]


def test_line_that_cannot_be_read_is_counted() -> None:
    log = Log()
    read("postfix/smtp[4]: 4C0D51A2B3: to=<x@example.com>, nonsense", log=log)
    assert log.unread == 1


def test_line_of_the_queue_manager_that_cannot_be_read_is_counted() -> None:
    log = Log()
    read("postfix/qmgr[3]: 4C0D51A2B3: from=<app@contoso.com>, size=308, nrcpt=1 (queue active) x", log=log)
    assert log.unread == 1
    read("postfix/qmgr[3]: 4C0D51A2B3: from=<app@contoso.com>, status=expired, returned to sender", log=log)
    assert log.unread == 1


def test_oldest_messages_are_given_up_where_too_many_are_open() -> None:
    log = Log(memory_bytes=10_000)
    found = []
    for number in range(100):
        found += log.feed([f"Nov 22 07:15:17 mail {line}".encode() for line in message(f"4C0D5{number:05}")[:3]])
    assert len(found) > 80
    assert log.evicted == len(found)
    assert found[0].queue_id == "4C0D500000"
    assert not found[0].whole


def test_recipients_of_one_message_are_bounded() -> None:
    log = Log()
    lines = message("4C0D51A2B3")
    many = [lines[3].replace("to=<x@", f"to=<x{number}@") for number in range(10_005)]
    (found,) = read(*lines[:3], *many, lines[4], log=log)
    assert len(found.recipients()) == 10_000


# Real logs


def test_log_of_postfix_with_long_ids() -> None:
    found = read_file("long-ids.log")
    assert found["4jXL7j5dt1zKSLc"].recipients() == {
        b"list@forward.example": ("sent", b"a@example.com"),
        b"john@contoso.com": ("sent", b"john.home@example.com"),
    }
    assert found["4jXL7j5xj8zKSLv"].made_here  # a bounce
    assert found["4jXL7j6rwGzKSLw"].made_here  # forwarded by local(8)
    assert found["4jXL7j6nbnzKSLw"].origin == Origin("127.0.0.1", "sendmail(1)", local=True)
    assert found["4jXL7j6WHbzKSLw"].origin == OFFICE._replace(authenticated=True)
    crm = found["4jXL7j5zJ7zKSLw"].origin
    assert crm
    assert crm.unnamed
    assert found["4jXL7j5cc5zKSLb"].outcomes == {
        b"later@example.com": "deferred",
        b"nouser@example.com": "bounced",
        b"x@example.com": "sent",
    }
    assert [item.queue_id for item in found.values() if not item.whole] == []
    assert found["4jXL7j5kFgzKSLj"].recipients() == {b"hold@example.com": ("held", b"hold@example.com")}


def test_log_of_postfix_that_names_certificates() -> None:
    origins = [item.origin for item in read_file("certificates.log").values() if item.origin]
    assert [origin.common_name for origin in origins if origin.trusted] == ["crm.contoso.com", "", "crm.contoso.com"]
    assert all(origin.fingerprint for origin in origins if origin.trusted)


def test_log_of_postfix_with_filters() -> None:
    found = read_file("filters.log")
    clients = {queue_id: item.origin for queue_id, item in found.items() if not item.hop}
    crm = [queue_id for queue_id, origin in clients.items() if origin and origin.common_name == "crm.contoso.com"]
    # Each pair: without and with a certificate; content_filter, smtpd_proxy_filter, content_filter with XFORWARD.
    pairs = [["C737122AD5C", "CB51022AD5E"], ["D40BD22AD62", "D738F22AD5C"], ["DC91922AD5E", "DF52822AD61"]]
    assert sorted(clients) == sorted([*(name for pair in pairs for name in pair), "E062422AD63"])
    assert crm == [pair[1] for pair in pairs]
    assert [item.queue_id for item in found.values() if not item.whole] == []


def test_log_of_sendmail() -> None:
    found = read_file("sendmail.log")
    assert found["6AM7iZct031990"].recipients() == {
        b"y@example.com": ("sent", b"y@example.com"),
        b"x@example.com": ("sent", b"x@example.com"),
        b"bad@example.com": ("rejected", b"bad@example.com"),
    }
    assert found["6AM7iZct031990"].origin == OFFICE
    named = OFFICE._replace(trusted=True, common_name="crm.contoso.com", issuer="Sandbox CA")
    assert found["6AM7iZxL031993"].origin == named
    assert found["6AM7iZEa031996"].origin == OFFICE  # self-signed
    assert found["6AM7iaAm031999"].origin == Origin("127.0.0.1", "sendmail(1)", local=True)
    assert list(found["6AM7iZcx031990"].recipients()) == [b""]  # aliases only
    assert found["6AM7iZcv031990"].made_here


def test_mail_that_sendmail_s_submission_program_hands_on_counts_once() -> None:
    found = read(
        "sendmail[7]: 6AM7h7kI030250: from=root, size=11, class=0, nrcpts=1, msgid=<1@x>, relay=root@localhost",
        "sm-mta[8]: 6AM7h7kJ030251: from=<root@mail.contoso.com>, size=300, class=0, nrcpts=1, msgid=<1@x>, "
        "proto=ESMTP, daemon=MTA-v4, relay=localhost [127.0.0.1]",
        "sendmail[7]: 6AM7h7kI030250: to=x@example.com, ctladdr=root (0/0), delay=00:00:00, xdelay=00:00:00, "
        "mailer=relay, pri=30011, relay=[127.0.0.1] [127.0.0.1], dsn=2.0.0, stat=Sent (6AM7h7kJ030251 Message accepted "
        "for delivery)",
        "sm-mta[9]: 6AM7h7kJ030251: to=<x@example.com>, ctladdr=<root@mail.contoso.com> (0/0), delay=00:00:01, "
        "xdelay=00:00:01, mailer=esmtp, pri=120300, relay=mx.example.com. [198.51.100.1], dsn=2.0.0, stat=Sent (Ok)",
    )
    assert {item.queue_id: (item.hop, item.whole) for item in found} == {
        "6AM7h7kI030250": (True, True),
        "6AM7h7kJ030251": (False, True),
    }


@given(st.data())
def test_no_line_of_any_kind_is_a_fault(data: st.DataObject) -> None:
    """Lines of real logs, cut, spliced and with octets of any kind between, in any order."""
    log = Log(memory_bytes=20_000)
    pieces = st.one_of(
        st.sampled_from(REAL_LINES),
        st.builds(lambda line, at: line[:at], st.sampled_from(REAL_LINES), st.integers(0, 200)),
        st.builds(
            lambda one, two, at, between: one[:at] + between + two[at:],
            *(st.sampled_from(REAL_LINES), st.sampled_from(REAL_LINES), st.integers(0, 200), st.binary(max_size=20)),
        ),
        st.binary(max_size=100),
    )
    found = [*log.feed(data.draw(st.lists(pieces, max_size=30))), *log.end()]
    assert all(item.recipients() is not None for item in found)


REAL_LINES = [line for path in sorted(DATA.iterdir()) for line in path.read_bytes().split(b"\n")]
