# SPDX-License-Identifier: GPL-3.0-or-later
"""The hop inherits main.cf: whatever a server has there, what leaves is rewritten once and nothing is lost."""

from __future__ import annotations

import re
import socket
from typing import TYPE_CHECKING

import pytest

from gatepost.admin.sandbox import free_port

if TYPE_CHECKING:
    from .conftest import Boot, Forwarder

JOHN = ("john.work+SRS=HASH=TT=fabrikam.com=bob@contoso.com", "john.home@example.com")
ALIAS = ("john.alias+SRS=HASH=TT=fabrikam.com=bob@contoso.com", "john.alias.home@example.com")
GAMES = ("games+SRS=HASH=TT=fabrikam.com=bob@contoso.com", "games.home@example.com")
FORWARDED = sorted([JOHN, ALIAS, GAMES])
BOB_AS_HE_IS = "bob@fabrikam.com"
HOP_CLOSED = "defer_transports = gatepost-egress\n"
SUBMISSION = "192.0.2.5"
"""A host that a connector covers."""

# Where the clients of these tests come from, for restrictions that would refuse loopback: the hop must not be refused.
CLIENTS = "inline:{{198.51.100.7=OK} {192.0.2.5=OK} {203.0.113.9=OK}}"

HARMLESS_IF_OVERRIDDEN = {
    "smtp_fallback_relay": "smtp_fallback_relay = [fallback.contoso.com]:25\n",
    "smtp_reply_filter": "smtp_reply_filter = regexp:{{/^250 (2.0.0 Ok: queued as.*)/ 550 5.0.0 filtered: $$1}}\n",
    "smtp_always_send_ehlo": "smtp_always_send_ehlo = no\nsmtpd_banner = mail.contoso.com\n",
    "smtp_never_send_ehlo": "smtp_never_send_ehlo = yes\n",
    "smtp_discard_ehlo_keywords": "smtp_discard_ehlo_keywords = dsn\n",
    "smtp_discard_ehlo_keyword_address_maps": "smtp_discard_ehlo_keyword_address_maps = static:dsn\n",
    "smtpd_discard_ehlo_keywords": "smtpd_discard_ehlo_keywords = silent-discard, dsn\n",
    "smtpd_discard_ehlo_keyword_address_maps": "smtpd_discard_ehlo_keyword_address_maps = static:dsn\n",
    "mynetworks empty": "mynetworks =\n",
    "recipient_delimiter empty": "recipient_delimiter =\n",
    "recipient_delimiter of several characters": "recipient_delimiter = +-\n",
    "client restrictions": f"smtpd_client_restrictions = check_client_access {CLIENTS}, reject\n",
    "sender restrictions": f"smtpd_sender_restrictions = check_client_access {CLIENTS}, reject_non_fqdn_sender,\n"
    "  reject_unknown_sender_domain, reject_unlisted_sender, reject\n",
    "helo restrictions": "smtpd_helo_required = yes\n"
    "smtpd_helo_restrictions = check_helo_access inline:{{mail.contoso.com=REJECT our own name}}\n",
    "end of data restrictions": "smtpd_end_of_data_restrictions = check_client_access inline:{{127.0.0.1=REJECT}}\n",
    "recipients listed": "smtpd_reject_unlisted_recipient = yes\nsmtpd_reject_unlisted_sender = yes\n"
    "local_recipient_maps = inline:{{john.work@contoso.com=x} {john.alias=x} {games=x} {list=x} {bob=x}}\n",
    "relay restrictions": "smtpd_relay_restrictions = reject_unauth_destination\n",
    "connection limits": "smtpd_client_event_limit_exceptions =\nsmtpd_client_connection_count_limit = 1\n"
    "smtpd_client_message_rate_limit = 9\nsmtpd_client_recipient_rate_limit = 9\n"
    "smtpd_client_connection_rate_limit = 9\n",
    "missing headers added": "always_add_missing_headers = yes\nlocal_header_rewrite_clients = static:all\n",
    "XCLIENT hosts": "smtpd_authorized_xforward_hosts = 127.0.0.0/8\nsmtp_send_xforward_command = yes\n",
    "small recipient limit": "default_destination_recipient_limit = 1\nsmtp_destination_recipient_limit = 1\n",
    "DNS and names": "smtp_host_lookup = native\nsmtp_helo_name = outside.contoso.com\n",
    "strict envelopes": "strict_rfc821_envelopes = yes\n",
    "7-bit only": "strict_7bit_headers = yes\nstrict_8bitmime_body = yes\n",
    "sender dependent relayhost": "sender_dependent_relayhost_maps = inline:{{bob@fabrikam.com=[127.0.0.1]:9}}\n",
    "no X-Original-To": "enable_original_recipient = no\n",
}


def forwarded_once_and_bounced_back(forwarder: Forwarder) -> None:
    """The test of tests: one message to three forwarding mailboxes and one inside, and its bounce."""
    forwarder.bob_writes("john.work@contoso.com", "john.alias@contoso.com", "games@contoso.com", "list@contoso.com")
    assert forwarder.left() == FORWARDED
    assert forwarder.inside("list") == [BOB_AS_HE_IS]
    p1 = next(mail.mail_from for mail in forwarder.stage.internet.messages if "john.work" in mail.mail_from)
    forwarder.stage.internet.messages.clear()
    forwarder.bob_writes(p1, sender="", client="203.0.113.9")
    assert forwarder.left() == [("", BOB_AS_HE_IS)]
    assert forwarder.stage.postfix.queue() == []
    assert forwarder.stage.inside.messages == []


@pytest.mark.parametrize("before", list(HARMLESS_IF_OVERRIDDEN.values()), ids=list(HARMLESS_IF_OVERRIDDEN))
def test_mail_is_forwarded_once_and_bounced_back_in_spite_of(boot_forwarder: Boot, before: str) -> None:
    with boot_forwarder(before=before) as forwarder:
        forwarded_once_and_bounced_back(forwarder)


@pytest.mark.parametrize("stage", ["recipient", "data"])
def test_restrictions_behind_the_policy_service_do_not_hold_on_the_hop(boot_forwarder: Boot, stage: str) -> None:
    check = f"check_policy_service unix:gatepost/policyd.sock, check_client_access {CLIENTS}, reject"
    with boot_forwarder(after=f"smtpd_{stage}_restrictions = {check}\n") as forwarder:
        forwarded_once_and_bounced_back(forwarder)


def test_local_sender_that_does_not_exist_passes_the_hop(boot_forwarder: Boot) -> None:
    with boot_forwarder(before="smtpd_reject_unlisted_sender = yes\n") as forwarder:
        sender = ["-f", "nosuch@mail.contoso.com"]
        forwarder.stage.postfix.sendmail([*sender, "john.work@contoso.com"], b"Subject: x\n\nx\n")
        assert forwarder.left() == [("john.work+SRS=HASH=TT=mail.contoso.com=nosuch@contoso.com", JOHN[1])]


def test_what_suits_the_first_smtpd_only_does_not_hold_on_the_hop(boot_forwarder: Boot) -> None:
    # Behind a proxy that sends its own header, and with SASL, of which there is none here: smtpd(8) dies of it.
    before = "smtpd_upstream_proxy_protocol = haproxy\nsmtpd_sasl_auth_enable = yes\nsmtpd_sasl_type = dovecot\n"
    first = "smtp inet n - y - - smtpd\n  -o smtpd_upstream_proxy_protocol=\n  -o smtpd_sasl_auth_enable=no\n"
    with boot_forwarder(before=before, master_before=first) as forwarder:
        forwarded_once_and_bounced_back(forwarder)


def test_tls_that_clients_must_use_is_not_asked_on_the_hop(boot_forwarder: Boot) -> None:
    with boot_forwarder(before="smtpd_tls_security_level = encrypt\n", tls=True) as forwarder:
        assert forwarder.attempt("john.work@contoso.com").last.code == 530
        certificate = forwarder.stage.authority.issue("mail.fabrikam.com")
        forwarder.stage.send(BOB_AS_HE_IS, "john.work@contoso.com", client="198.51.100.7", certificate=certificate)
        assert forwarder.left() == [JOHN]


def test_milters_switched_off_for_loopback_are_on_for_the_hop(boot_forwarder: Boot) -> None:
    with boot_forwarder(before="smtpd_milter_maps = cidr:{{127.0.0.0/8 DISABLE}}\n") as forwarder:
        forwarded_once_and_bounced_back(forwarder)


def test_status_filter_that_gives_up_at_once_leaves_mail_on_the_hop_waiting(boot_forwarder: Boot) -> None:
    before = HOP_CLOSED + "smtp_delivery_status_filter = regexp:{{/^4(.*)/ 5$$1}}\n"
    with boot_forwarder(before=before) as forwarder:
        forwarder.bob_writes("john.work@contoso.com")
        forwarder.wait_until_deferred()
        with forwarder.without_milter():
            start = len(forwarder.stage.postfix.log())
            forwarder.change("defer_transports=")
            forwarder.stage.postfix.wait_for_log(r"status=deferred", start=start)
            forwarder.wait_until_deferred()
        forwarder.stage.postfix.flush()
        forwarder.stage.internet.wait(lambda mail: True)
        assert forwarder.left() == [JOHN]


def test_fallback_relay_gets_nothing_while_the_hop_is_down(boot_forwarder: Boot) -> None:
    with boot_forwarder(before=HOP_CLOSED + "smtp_fallback_relay = [fallback.contoso.com]:25\n") as forwarder:
        forwarder.bob_writes("john.work@contoso.com")
        forwarder.wait_until_deferred()
        with forwarder.without_milter():
            start = len(forwarder.stage.postfix.log())
            forwarder.change("defer_transports=")
            forwarder.stage.postfix.wait_for_log(r"status=deferred", start=start)
            forwarder.wait_until_deferred()
        assert forwarder.stage.inside.messages == []
        forwarder.stage.postfix.flush()
        forwarder.stage.internet.wait(lambda mail: True)
        assert forwarder.left() == [JOHN]
        assert forwarder.stage.inside.messages == []


TLS = "smtp_tls_security_level = encrypt\n"
NO_TLS = "smtp_tls_security_level=none"


@pytest.mark.parametrize(
    ("required", "relaxed"),
    [
        (TLS, [NO_TLS]),
        ("smtp_tls_policy_maps = static:encrypt\n", ["smtp_tls_policy_maps="]),
        (TLS + "smtp_tls_wrappermode = yes\n", ["smtp_tls_wrappermode=no", NO_TLS]),
        ("smtp_bind_address = 192.0.2.1\nsmtp_bind_address_enforce = yes\n", ["smtp_bind_address="]),
    ],
    ids=["TLS required", "TLS required by policy", "TLS from the start", "bind address"],
)
def test_mail_passes_the_hop_although_the_next_hop_cannot_be_reached_under(
    boot_forwarder: Boot, required: str, relaxed: list[str]
) -> None:
    with boot_forwarder(before=required) as forwarder:
        forwarder.bob_writes("john.work@contoso.com")
        (waiting,) = forwarder.wait_until_deferred()
        assert str(waiting["sender"]).startswith("john.work+SRS=")
        forwarder.change(*relaxed)
        forwarder.stage.internet.wait(lambda mail: True)
        assert forwarder.left() == [JOHN]


def test_single_address_in_inet_interfaces_is_not_where_the_hop_comes_from(boot_forwarder: Boot) -> None:
    with socket.socket(socket.AF_INET, socket.SOCK_DGRAM) as probe:
        try:
            probe.connect(("192.0.2.1", 9))  # sends nothing: it asks which of this host's addresses would be used
        except OSError:
            pytest.skip("this host has loopback only")
        address = probe.getsockname()[0]
    with boot_forwarder(before=f"inet_interfaces = {address}\n") as forwarder:
        forwarded_once_and_bounced_back(forwarder)


def test_message_as_large_as_the_limit_passes_the_hop(boot_forwarder: Boot) -> None:
    with boot_forwarder(before="message_size_limit = 20000\n") as forwarder:
        head = b"From: bob@fabrikam.com\r\nDate: x\r\nMessage-Id: <1@x>\r\n\r\n"
        largest = 0
        for size in range(19_000, 20_200, 100):
            message = head + (b"x" * 98 + b"\r\n") * ((size - len(head)) // 100)
            transcript = forwarder.attempt("john.work@contoso.com", "games@contoso.com", message=message)
            if not transcript.accepted:
                assert transcript.last.code == 552
                break
            largest += 1
        assert 0 < largest < 12
        assert forwarder.left() == sorted([JOHN, GAMES] * largest)
        assert forwarder.stage.postfix.queue() == []


def test_always_bcc_to_a_mailbox_gets_one_copy_of_a_forwarded_message(boot_forwarder: Boot) -> None:
    with boot_forwarder(before="always_bcc = list@contoso.com\n") as forwarder:
        forwarder.bob_writes("john.work@contoso.com")
        assert forwarder.left() == [JOHN]
        assert forwarder.inside("list") == [BOB_AS_HE_IS]


def test_always_bcc_to_an_archive_outside_gets_one_rewritten_copy(boot_forwarder: Boot) -> None:
    with boot_forwarder(before="always_bcc = archive@example.org\n") as forwarder:
        forwarder.bob_writes("john.work@contoso.com", "list@contoso.com")
        archived = ("bounces+SRS=HASH=TT=fabrikam.com=bob@contoso.com", "archive@example.org")
        assert forwarder.left() == [archived, JOHN]


def test_filter_that_takes_extensions_from_clients_leaves_the_hop_its_own(boot_forwarder: Boot) -> None:
    with boot_forwarder(after="smtpd_command_filter = regexp:{{/^EHLO (.*)$$/ HELO $$1}}\n") as forwarder:
        forwarded_once_and_bounced_back(forwarder)


def test_checks_change_a_forwarded_message_once_on_each_side(boot_forwarder: Boot) -> None:
    before = ""
    for kind in ("header", "mime_header", "nested_header", "body"):
        for side in ("", "smtp_"):
            before += f"{side}{kind}_checks = regexp:{{{{/^({kind}.*)/ REPLACE $$1 {side}seen}}}}\n"
    message = (
        b"Header: x\r\nMIME-Version: 1.0\r\nContent-Type: multipart/mixed; boundary=b\r\n\r\n"
        b"--b\r\nMime_Header: x\r\n\r\nbody x\r\n"
        b"--b\r\nContent-Type: message/rfc822\r\n\r\nNested_Header: x\r\n\r\nbody x\r\n--b--\r\n"
    )
    with boot_forwarder(before=before) as forwarder:
        forwarder.bob_writes("john.work@contoso.com", message=message)
        changed = re.findall(rb"(?m)^.* seen.*$", forwarder.only_mail().content)
        assert [line.rstrip() for line in changed] == [
            b"Header: x seen smtp_seen",
            b"Mime_Header: x seen smtp_seen",
            b"body x seen smtp_seen",
            b"Nested_Header: x seen smtp_seen",
            b"body x seen smtp_seen",
        ]


def test_authentication_at_the_next_hop_is_not_asked_of_the_hop(boot_forwarder: Boot) -> None:
    # Here smtp(8) dies of it for want of a password table.
    relax_next_hop = "smtp unix - - y - - smtp\n  -o smtp_sasl_auth_enable=no\n"
    with boot_forwarder(before="smtp_sasl_auth_enable = yes\n", master_before=relax_next_hop) as forwarder:
        forwarded_once_and_bounced_back(forwarder)


def test_generic_maps_do_not_change_p1_on_the_hop(boot_forwarder: Boot) -> None:
    with boot_forwarder(before="smtp_generic_maps = inline:{{bob@fabrikam.com=generic@example.org}}\n") as forwarder:
        forwarder.bob_writes("john.work@contoso.com")
        assert forwarder.left() == [JOHN]


def test_header_check_that_refuses_mail_from_loopback_lets_the_hop_pass(boot_forwarder: Boot) -> None:
    before = "header_checks = regexp:{{/^Received: from mail.contoso.com .*127.0.0.1/ REJECT}}\n"
    with boot_forwarder(before=before) as forwarder:
        forwarded_once_and_bounced_back(forwarder)


def filter_server(port: int) -> str:
    """Return the master.cf of a server whose mail passes a filter, one that changes nothing, and returns on *port*."""
    return f"""
scan unix - - y - 10 smtp
127.0.0.1:{port} inet n - y - - smtpd
  -o content_filter=
  -o smtpd_proxy_filter=
  -o smtpd_milters=
  -o smtpd_command_filter=
  -o receive_override_options=no_unknown_recipient_checks,no_header_body_checks,no_milters
  -o smtpd_recipient_restrictions=permit_mynetworks,reject
  -o smtpd_data_restrictions=
  -o mynetworks=127.0.0.0/8
"""


@pytest.mark.parametrize("overrides", ["", "no_address_mappings"], ids=["expanded twice", "expanded behind it"])
def test_content_filter_is_passed_once_and_forwarded_mail_is_rewritten(boot_forwarder: Boot, overrides: str) -> None:
    port = free_port()
    before = f"content_filter = scan:[127.0.0.1]:{port}\nreceive_override_options = {overrides}\n"
    with boot_forwarder(before=before, master_before=filter_server(port)) as forwarder:
        forwarder.bob_writes("john.work@contoso.com", "john.alias@contoso.com", "games@contoso.com", "list@contoso.com")
        assert forwarder.left() == FORWARDED
        assert forwarder.inside("list") == [BOB_AS_HE_IS]
        log = forwarder.stage.postfix.log()
        assert len(re.findall(rf"relay=127.0.0.1\[127.0.0.1\]:{port}, .* status=sent", log)) == 4, log


def test_proxy_filter_is_not_passed_again_and_forwarded_mail_is_rewritten(boot_forwarder: Boot) -> None:
    port = free_port()
    before = f"smtpd_proxy_filter = [127.0.0.1]:{port}\n"
    with boot_forwarder(before=before, master_before=filter_server(port)) as forwarder:
        forwarder.bob_writes("john.work@contoso.com", "john.alias@contoso.com", "games@contoso.com", "list@contoso.com")
        # Behind a proxy filter Postfix shows the milter no message, so ingress can't vouch for the mailbox.
        bounces = "bounces+SRS=HASH=TT=fabrikam.com=bob@contoso.com"
        assert forwarder.left() == [(bounces, rcpt) for _, rcpt in sorted(FORWARDED, key=lambda mail: mail[1])]
        assert forwarder.inside("list") == [BOB_AS_HE_IS]
        p1 = forwarder.stage.internet.messages[0].mail_from
        forwarder.stage.internet.messages.clear()
        forwarder.bob_writes(p1, sender="", client="203.0.113.9")
        assert forwarder.left() == [("", BOB_AS_HE_IS)]


def test_probes_of_reject_unverified_recipient_ask_the_real_next_hop(boot_forwarder: Boot) -> None:
    before = "address_verify_poll_delay = 1s\nunverified_recipient_reject_code = 550\n"
    after = "smtpd_recipient_restrictions =\n"
    after += "  check_policy_service unix:gatepost/policyd.sock, reject_unverified_recipient\n"
    with boot_forwarder(before=before, after=after) as forwarder:
        forwarder.stage.internet.refuse["gone@example.com"] = "550 5.1.1 No such user"
        options = {"sender": "ann@contoso.com", "client": SUBMISSION}
        assert forwarder.attempt("gone@example.com", **options).last.code == 550
        assert forwarder.attempt("there@example.com", **options).accepted
        assert forwarder.left() == [("ann@contoso.com", "there@example.com")]


def test_milter_default_action_accept_does_not_hold_on_the_hop(boot_forwarder: Boot) -> None:
    with boot_forwarder(after="milter_default_action = accept\n") as forwarder:
        with forwarder.without_milter():
            forwarder.bob_writes("john.work@contoso.com")
            forwarder.wait_until_deferred()
            assert forwarder.left() == []
        forwarder.stage.postfix.flush()
        forwarder.stage.internet.wait(lambda mail: True)
        assert forwarder.left() == [("bounces+SRS=HASH=TT=fabrikam.com=bob@contoso.com", JOHN[1])]


@pytest.mark.parametrize("kind", ["virtual_alias_domains", "relay_domains"])
def test_accepted_domain_of_another_address_class_gets_its_bounces(boot_forwarder: Boot, kind: str) -> None:
    before = "mydestination = mail.contoso.com, localhost\n"
    with boot_forwarder(before=before, after=f"{kind} = contoso.com\n") as forwarder:
        forwarder.bob_writes("john.work@contoso.com")
        assert forwarder.left() == [JOHN]
        p1 = forwarder.only_mail().mail_from
        forwarder.stage.internet.messages.clear()
        forwarder.bob_writes(p1, sender="", client="203.0.113.9")
        assert forwarder.left() == [("", BOB_AS_HE_IS)]


def test_transport_maps_entry_for_an_outside_domain_goes_past_the_hop(boot_forwarder: Boot) -> None:
    # The limit that the example's README names.
    with boot_forwarder(before="transport_maps = inline:{{example.com=smtp:[gateway.contoso.com]:25}}\n") as forwarder:
        forwarder.bob_writes("john.work@contoso.com")
        assert forwarder.left() == []
        (mail,) = forwarder.stage.inside.messages
        assert mail.mail_from == BOB_AS_HE_IS
