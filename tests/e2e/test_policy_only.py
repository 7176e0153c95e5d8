# SPDX-License-Identifier: GPL-3.0-or-later
"""Policy only: no milter; policyd applies the relay rule at RCPT and redirects bounces at DATA.

192.0.2.5 is a host of head office (connector by IP address), crm.contoso.com one that shows a certificate. mynetworks
has 192.0.2.128/25 instead, so that what Postfix lets relay by itself and what policyd lets relay are told apart.
"""

from __future__ import annotations

import re
import socketserver
import threading
import time
from collections.abc import Iterator
from contextlib import ExitStack
from typing import Callable

import pytest

from gatepost.admin.authority import Credentials
from gatepost.admin.nexthop import Received
from gatepost.admin.stage import Stage, command, transact
from gatepost.service.secret import read_keys
from gatepost.srs import Address, Exchange

SERVER = """
mynetworks = 127.0.0.0/8, 192.0.2.128/25
relay_domains = contoso.com
relay_transport = relay:[mailbox.contoso.com]:25
relay_recipient_maps = inline:{ {mary@contoso.com = x}, {bounces@contoso.com = x} }
recipient_delimiter = +
local_header_rewrite_clients =
smtpd_sasl_auth_enable = yes
smtpd_sasl_type = dovecot
smtpd_sasl_path = sasl
"""
PLAIN = b"From: Bob <bob@fabrikam.com>\r\nSubject: x\r\n\r\nhello\r\n"
NDR = b"From: MAILER-DAEMON@example.com\r\nSubject: undelivered\r\n\r\nno such user\r\n"
HEAD_OFFICE, MYNETWORKS, ABROAD = "192.0.2.5", "192.0.2.200", "198.51.100.7"
POSTFIX_REFUSED = "554 5.7.1 <x@example.com>: Relay access denied"
REFUSED = (
    r"550 5\.7\.64 <x@example\.com>: Recipient address rejected: "
    r"TenantAttribution; Relay Access Denied \[\w{10}\]"
)


class Sasl(socketserver.StreamRequestHandler):
    """The authentication server that smtpd asks, in Dovecot's protocol: it knows everybody."""

    def handle(self) -> None:
        self.wfile.write(b"VERSION\t1\t1\nMECH\tPLAIN\tplaintext\nSPID\t1\nCUID\t1\nCOOKIE\t0\nDONE\n")
        for line in self.rfile:
            verb, number, *_ = line.split(b"\t")
            if verb == b"AUTH":
                self.wfile.write(b"OK\t" + number + b"\tuser=mary\n")


def enforcing(text: str) -> str:
    return text.replace('mode = "monitor"', 'mode = "enforce"')


@pytest.fixture(scope="module")
def boot_with_sasl(boot: Callable[..., Stage]) -> Iterator[Callable[..., Stage]]:
    with ExitStack() as stack:

        def listen(stage: Stage) -> None:
            path = stage.postfix.queue_directory / "sasl"
            path.parent.mkdir(parents=True)
            sasl = stack.enter_context(socketserver.ThreadingUnixStreamServer(str(path), Sasl))
            sasl.daemon_threads, sasl.block_on_close = True, False
            path.chmod(0o666)
            threading.Thread(target=sasl.serve_forever, kwargs={"poll_interval": 0.05}, daemon=True).start()
            stack.callback(sasl.shutdown)

        yield lambda **options: boot("policy-only", before=SERVER, prepare=listen, gatepost=["policyd"], **options)


@pytest.fixture(scope="module")
def server(boot_with_sasl: Callable[..., Stage]) -> Stage:
    return boot_with_sasl(configuration=enforcing, tls=True)


@pytest.fixture(scope="module")
def monitoring(boot_with_sasl: Callable[..., Stage]) -> Stage:
    """The example as it stands in its folder."""
    return boot_with_sasl()


@pytest.fixture(scope="module")
def crm(server: Stage) -> Credentials:
    return server.authority.issue("crm.contoso.com")


def arrived(stage: Stage, *rcpt: str) -> Received:
    return stage.internet.wait(lambda mail: mail.rcpt_to == list(rcpt))


def srs_address(stage: Stage, original: str, days_ago: int = 0) -> str:
    """Return the address that a host with the same secret gave *original* so many days ago."""
    exchange = Exchange(read_keys(stage.state_directory / "srs.secret"), 8, 21)
    day = int(time.time()) // 86400 - days_ago
    return str(exchange.forward(Address.parse(original), "bounces", "contoso.com", day))


# OK: what a connector covers is relayed


def test_matching_ip_and_accepted_p1_is_relayed_though_not_in_mynetworks_r1(server: Stage) -> None:
    assert server.send("app@contoso.com", "r1@example.com", client=HEAD_OFFICE).accepted
    assert arrived(server, "r1@example.com").mail_from == "app@contoso.com"


def test_certificate_is_relayed_with_any_p1_and_nothing_is_rewritten_r1(server: Stage, crm: Credentials) -> None:
    assert server.send("bob@fabrikam.com", "r1c@example.com", PLAIN, client=ABROAD, certificate=crm).accepted
    assert arrived(server, "r1c@example.com").mail_from == "bob@fabrikam.com"


def test_null_sender_with_a_certificate_is_relayed_r5(server: Stage, crm: Credentials) -> None:
    assert server.send("", "r5@example.com", PLAIN, client=ABROAD, certificate=crm).accepted
    assert arrived(server, "r5@example.com").mail_from == ""


# 550: an organisation is meant, and its rule is not met


def test_foreign_p1_from_a_matching_ip_is_refused_with_a_reference_r1(server: Stage) -> None:
    reply = server.send("bob@fabrikam.com", "x@example.com", client=HEAD_OFFICE).last
    assert re.fullmatch(REFUSED, str(reply))
    reference = reply.text[-11:-1]
    server.wait_for_log(rf"NOQUEUE: action=reject, from=<bob@fabrikam\.com>.*reference={reference}")


def test_accepted_p1_from_an_unknown_host_is_refused_r1(server: Stage) -> None:
    assert re.fullmatch(REFUSED, str(server.send("app@contoso.com", "x@example.com", client=ABROAD).last))


def test_accepted_p1_from_mynetworks_without_a_connector_is_refused_r1(server: Stage) -> None:
    """The rule comes before permit_mynetworks."""
    assert re.fullmatch(REFUSED, str(server.send("app@contoso.com", "x@example.com", client=MYNETWORKS).last))


def test_null_sender_from_a_matching_ip_is_refused_r5(server: Stage) -> None:
    assert re.fullmatch(REFUSED, str(server.send("", "x@example.com", client=HEAD_OFFICE).last))


def test_untrusted_certificate_is_as_good_as_none_r10(server: Stage) -> None:
    forged = server.authority.issue("crm.contoso.com", self_signed=True)
    reply = server.send("bob@fabrikam.com", "x@example.com", client=ABROAD, certificate=forged).last
    assert str(reply) == POSTFIX_REFUSED


# DUNNO: Postfix decides as it did before


def test_stranger_is_refused_by_postfix_itself(server: Stage) -> None:
    assert str(server.send("bob@fabrikam.com", "x@example.com", client=ABROAD).last) == POSTFIX_REFUSED


def test_null_sender_of_a_stranger_is_refused_by_postfix_itself(server: Stage) -> None:
    assert str(server.send("", "x@example.com", client=ABROAD).last) == POSTFIX_REFUSED


def test_mail_of_mynetworks_that_means_no_organisation_is_relayed_as_before(server: Stage) -> None:
    assert server.send("bob@fabrikam.com", "own@example.com", client=MYNETWORKS).accepted
    assert arrived(server, "own@example.com").mail_from == "bob@fabrikam.com"


def test_sasl_client_is_relayed_by_postfix_whatever_its_sender(server: Stage) -> None:
    for sender in ("bob@fabrikam.com", "mary@contoso.com"):
        with server.session(client=ABROAD) as smtp:
            smtp.login("mary", "secret")
            assert transact(smtp, sender, "sasl@example.com").accepted


def test_inside_recipient_gets_anything_from_anywhere_r2(server: Stage) -> None:
    assert server.send("bob@fabrikam.com", "mary@contoso.com", PLAIN, client=ABROAD).accepted
    mail = server.inside.wait(lambda mail: mail.rcpt_to == ["mary@contoso.com"])
    assert mail.mail_from == "bob@fabrikam.com"


def test_unknown_inside_recipient_is_still_refused_by_postfix(server: Stage) -> None:
    reply = server.send("bob@fabrikam.com", "nobody@contoso.com", client=ABROAD).last
    assert (reply.code, reply.text[:6]) == (550, "5.1.1 ")


@pytest.mark.parametrize("rcpt", ["x%example.com@contoso.com", "@contoso.com:x@example.com", "x%example.com"])
def test_routed_recipient_gets_no_stranger_through(server: Stage, rcpt: str) -> None:
    for sender in ("bob@fabrikam.com", "app@contoso.com", ""):
        assert server.send(sender, rcpt, client=ABROAD).last.code in (550, 554)


@pytest.mark.parametrize("rcpt", ["x%example.com@mail.contoso.com", "example.com!x@mail.contoso.com", "x%example.com"])
def test_recipient_that_postfix_would_route_outside_is_under_the_rule(server: Stage, rcpt: str) -> None:
    """mail.contoso.com is this Postfix: it sends such mail of mynetworks on to example.com."""
    reply = server.send("app@contoso.com", rcpt, client=MYNETWORKS).last
    assert str(reply).startswith("550 5.7.64 ")


def test_inside_and_outside_recipients_are_decided_each_by_itself_r2(server: Stage) -> None:
    transcript = server.send("bob@fabrikam.com", ["x@example.com", "mary@contoso.com"], client=HEAD_OFFICE)
    assert [reply.code for reply in transcript.rcpt] == [550, 250]
    assert transcript.accepted


def test_sendmail_is_nothing_to_policyd(server: Stage) -> None:
    server.postfix.sendmail(["-f", "bob@fabrikam.com", "local@example.com"], b"Subject: x\n\nhello\n")
    assert arrived(server, "local@example.com").mail_from == "bob@fabrikam.com"


# Monitor mode


def test_monitor_mode_changes_nothing_and_logs_what_would_be_refused(monitoring: Stage) -> None:
    assert monitoring.send("app@contoso.com", "m@example.com", client=MYNETWORKS).accepted
    monitoring.wait_for_log(r"action=monitor, from=<app@contoso\.com>, to=<m@example\.com>.*reason=no-connector")


def test_monitor_mode_lets_no_connector_relay_that_postfix_would_not(monitoring: Stage) -> None:
    assert str(monitoring.send("app@contoso.com", "x@example.com", client=HEAD_OFFICE).last) == POSTFIX_REFUSED


# Bounces, by REDIRECT


def test_bounce_to_an_srs_address_is_redirected_to_the_original_sender_s9(server: Stage) -> None:
    assert server.send("", srs_address(server, "bob@fabrikam.com"), NDR, client=ABROAD).accepted
    mail = arrived(server, "bob@fabrikam.com")
    assert mail.mail_from == ""
    assert mail.content.endswith(NDR)


def test_bounce_to_a_lower_cased_srs_address_is_redirected_s8(server: Stage) -> None:
    assert server.send("", srs_address(server, "bob2@fabrikam.com").lower(), NDR, client=ABROAD).accepted
    assert arrived(server, "bob2@fabrikam.com").mail_from == ""


def test_second_recipient_beside_an_srs_address_is_put_off_and_gets_its_copy_later(server: Stage) -> None:
    """REDIRECT replaces all recipients of a message."""
    srs, message = srs_address(server, "bob3@fabrikam.com"), NDR.replace(b"undelivered", b"second")
    first = server.send("", [srs, "mary@contoso.com"], message, client=ABROAD)
    assert [str(reply)[:9] for reply in first.rcpt] == ["250 2.1.5", "452 4.5.3"]
    assert first.accepted
    assert server.send("", "mary@contoso.com", message, client=ABROAD).accepted
    server.postfix.wait_until_idle()
    copies = [mail.rcpt_to for mail in server.internet.messages + server.inside.messages if b"second" in mail.content]
    assert sorted(copies) == [["bob3@fabrikam.com"], ["mary@contoso.com"]]


def test_srs_address_beside_an_earlier_recipient_is_put_off(server: Stage) -> None:
    transcript = server.send("", ["mary@contoso.com", srs_address(server, "bob@fabrikam.com")], client=ABROAD)
    assert [reply.code for reply in transcript.rcpt] == [250, 452]


def test_same_srs_address_twice_is_redirected_once(server: Stage) -> None:
    srs = srs_address(server, "bob4@fabrikam.com")
    assert server.send("", [srs, srs], NDR, client=ABROAD).accepted
    assert arrived(server, "bob4@fabrikam.com").mail_from == ""


def test_forged_and_expired_srs_addresses_are_refused_with_5_1_1(server: Stage) -> None:
    forged = srs_address(server, "bob@fabrikam.com").replace("=bob@", "=eve@")
    expired = srs_address(server, "bob@fabrikam.com", days_ago=22)
    replies = [server.send("", rcpt, client=ABROAD).last for rcpt in (forged, expired)]
    assert [str(reply) for reply in replies] == [
        f"550 5.1.1 <{forged}>: Recipient address rejected: SRS address with a wrong hash",
        f"550 5.1.1 <{expired}>: Recipient address rejected: SRS address that has expired",
    ]


def test_mail_with_a_sender_to_an_srs_address_is_refused_at_data(server: Stage) -> None:
    transcript = server.send("eve@example.com", srs_address(server, "bob@fabrikam.com"), client=ABROAD)
    assert str(transcript.data)[:9] == "550 5.7.1"


def test_bounces_on_one_connection_are_redirected_each_to_its_own_sender(server: Stage) -> None:
    with server.session(client=ABROAD) as smtp:
        for user in ("carol", "dave"):
            assert transact(smtp, "", srs_address(server, f"{user}@fabrikam.com"), NDR).accepted
        command(smtp, "MAIL FROM:<>")
        command(smtp, f"RCPT TO:<{srs_address(server, 'erin@fabrikam.com')}>")
        command(smtp, "RSET")
        assert transact(smtp, "", "mary@contoso.com", NDR).accepted
    for user in ("carol", "dave"):
        assert arrived(server, f"{user}@fabrikam.com").mail_from == ""
    assert not [mail for mail in server.internet.messages if "erin@fabrikam.com" in mail.rcpt_to]


# Failure, metrics


def test_metrics_count_decisions_and_reversals(server: Stage) -> None:
    labels = {"organization": "contoso", "verdict": "refuse", "reason": "nothing-accepted"}
    before = server.metric("gatepost_relay_decisions_total", **labels)
    server.send("bob@fabrikam.com", "x@example.com", client=HEAD_OFFICE)
    assert server.metric("gatepost_relay_decisions_total", **labels) == before + 1
    assert server.metric("gatepost_srs_reversals_total", result="original") > 0
    assert server.http("/healthz") == (200, "ok\n")


def test_while_policyd_is_down_everything_is_put_off_and_nothing_becomes_relayable(server: Stage) -> None:
    server.stop_gatepost()
    for sender, rcpt, client in (
        ("app@contoso.com", "x@example.com", HEAD_OFFICE),
        ("bob@fabrikam.com", "x@example.com", MYNETWORKS),
        ("bob@fabrikam.com", "mary@contoso.com", ABROAD),
    ):
        assert str(server.send(sender, rcpt, client=client).last).startswith("451 4.3.0 ")
    server.start_gatepost()
    assert server.send("app@contoso.com", "again@example.com", client=HEAD_OFFICE).accepted
