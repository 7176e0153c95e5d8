# SPDX-License-Identifier: GPL-3.0-or-later
"""The milter process over real sockets: what it asks of the MTA, what it answers, and what it survives."""

from __future__ import annotations

import contextlib
import random
import re
import signal
import socket
import struct
import threading
import time
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest
from daemonprocess import Gatepost, free_port, poll
from milterclient import (
    ADDRCPT,
    CHGFROM,
    DELRCPT,
    NOBODY,
    NODATA,
    NOEOH,
    NOHDRS,
    NOUNKNOWN,
    NR_CONN,
    NR_EOH,
    NR_HDR,
    NR_HELO,
    NR_MAIL,
    MilterClient,
    MilterError,
    Outcome,
)

from gatepost.service.secret import read_keys
from gatepost.srs import Address, Exchange

FAULT = "451 4.3.0 gatepost: internal error, please try again later"
TRUSTED = {"{cert_subject}": b"mail.contoso.com", "{cert_issuer}": b"Contoso CA"}
OUTSIDE, INSIDE = b"<x@gmail.example>", b"<ann@contoso.com>"
PASSED = Outcome(rcpt=["continue"], eoh="continue", eom="continue")
QUIET = NOBODY | NOUNKNOWN | NR_CONN | NR_HELO | NR_MAIL | NR_HDR


def started(factory: pytest.TempPathFactory, **options: str) -> Iterator[Gatepost]:
    with Gatepost(factory.mktemp("milter"), **options, workers=2, metrics=True) as gatepost:
        yield gatepost
        log = "\n".join(gatepost.log)
    assert "worker" not in log, log


@pytest.fixture(scope="module")
def current(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Gatepost]:
    yield from started(tmp_path_factory)


@pytest.fixture(scope="module")
def legacy(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Gatepost]:
    yield from started(tmp_path_factory, relay='mode = "enforce"\nrequirements = "legacy"')


@pytest.fixture(scope="module")
def egress(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Gatepost]:
    yield from started(tmp_path_factory, more='[egress]\ntransport = "gatepost-egress:[127.0.0.1]:10027"')


@pytest.fixture(scope="module")
def returning(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Gatepost]:
    yield from started(tmp_path_factory, more='[srs]\nreverse = "milter"')


@pytest.fixture(scope="module")
def tcp(tmp_path_factory: pytest.TempPathFactory) -> Iterator[tuple[str, int]]:
    port = free_port()
    for _ in started(tmp_path_factory, milter=f"inet:127.0.0.1:{port}"):
        yield "127.0.0.1", port


def refused(outcome: Outcome) -> bool:
    return [reply[:10] for reply in outcome.rcpt] == ["550 5.7.64"] and outcome.eom is None


def rewritten(outcome: Outcome) -> list[bytes]:
    """Return the senders that were set, without hash and stamp."""
    assert outcome.eom == "continue"
    return [re.sub(rb"SRS=[a-z2-7]{8}=[A-Z2-7]{2}=", b"SRS=HASH=TT=", sender) for sender in outcome.senders]


# What the MTA is asked for


def test_only_the_change_of_the_sender_is_asked_for(current: Gatepost) -> None:
    with MilterClient(current.socket) as client:
        assert client.actions == CHGFROM


def test_change_of_recipients_is_asked_for_where_the_milter_brings_bounces_back(returning: Gatepost) -> None:
    with MilterClient(returning.socket) as client:
        assert client.actions == CHGFROM | ADDRCPT | DELRCPT


def test_rule_set_2023_11_01_without_a_ledger_needs_no_headers(tmp_path: Path) -> None:
    with Gatepost(tmp_path, more="[ledger]\ndays = 0\n") as gatepost, MilterClient(gatepost.socket) as client:
        assert client.protocol == QUIET | NOHDRS | NOEOH | NODATA | NR_EOH


def test_ledger_needs_headers_and_their_end_but_answers_neither(current: Gatepost) -> None:
    with MilterClient(current.socket) as client:
        assert client.protocol == QUIET | NODATA | NR_EOH


def test_rule_set_legacy_needs_headers_and_their_end(legacy: Gatepost) -> None:
    with MilterClient(legacy.socket) as client:
        assert client.protocol == QUIET


def test_egress_hop_needs_headers_and_so_their_end(egress: Gatepost) -> None:
    # With headers but no end of them libmilter drops the end of a message that has no header.
    with MilterClient(egress.socket) as client:
        assert client.protocol == QUIET | NODATA | NR_EOH


def test_message_without_any_header_is_answered_at_the_egress_hop(egress: Gatepost) -> None:
    with MilterClient(egress.socket, macros={"{daemon_name}": b"gatepost-egress"}) as client:
        outcome = client.open("127.0.0.1").send(b"<bob@fabrikam.com>", [OUTSIDE], [])
        assert rewritten(outcome) == [b"<bounces+SRS=HASH=TT=fabrikam.com=bob@contoso.com>"]
        client.quit()


def test_only_the_macros_that_decide_or_are_recorded_are_asked_for(current: Gatepost) -> None:
    with MilterClient(current.socket) as client:
        assert client.asked == {
            "connect": "j {daemon_name} {daemon_addr} {daemon_port} {client_resolve} {client_ptr}",
            "helo": "",
            "mail": "i {auth_authen} {mail_addr} "  # the first two of these for Postfix, all for Sendmail
            "{cert_issuer} {cert_subject} {verify} {cn_subject} {cn_issuer} {cert_fp} {cert_md5}",
            "rcpt": "i {rcpt_addr}",
            "data": "i",
            "eoh": "",
            "eom": "i",
        }


def test_mta_that_waits_for_an_answer_at_every_stage_gets_one(legacy: Gatepost) -> None:
    with MilterClient(legacy.socket, protocol=0x7F) as client:
        assert client.protocol == NOBODY
        assert [client.connect(), client.helo()] == ["continue", "continue"]
        assert client.send(b"<app@vendor.example>", [OUTSIDE], [(b"From", b"app@contoso.com")]).eom == "continue"
        client.quit()


# What comes back


def test_foreign_p1_is_refused_at_rcpt_with_the_reference_that_is_logged(current: Gatepost) -> None:
    with MilterClient(current.socket) as client:
        outcome = client.open("192.0.2.5").send(b"<one@vendor.example>", [OUTSIDE])
        client.quit()
    found = re.fullmatch(r"550 5\.7\.64 TenantAttribution; Relay Access Denied \[([A-Z2-7]{10})\]", outcome.rcpt[0])
    assert found
    current.wait_for_log(rf"action=reject, from=<one@vendor\.example>.* reference={found[1]}$")


def test_changed_sender_arrives_before_the_end_of_the_message_is_answered(current: Gatepost) -> None:
    with MilterClient(current.socket, macros=TRUSTED) as client:
        outcome = client.open("203.0.113.9").send(b"<app@vendor.example>", [OUTSIDE])
        assert rewritten(outcome) == [b"<bounces+SRS=HASH=TT=vendor.example=app@contoso.com>"]
        client.quit()


def test_legacy_header_from_decides_at_the_end_of_the_headers(legacy: Gatepost) -> None:
    with MilterClient(legacy.socket) as client:
        client.open()
        passed = client.send(b"<app@vendor.example>", [OUTSIDE], [(b"From", b"The App\n\t<app@contoso.com>")])
        assert rewritten(passed) == [b"<bounces+SRS=HASH=TT=vendor.example=app@contoso.com>"]
        refusal = client.send(b"<app@vendor.example>", [OUTSIDE], [(b"From", b"app@vendor.example")])
        assert refusal.rcpt == ["continue"]
        assert refusal.eoh
        assert refusal.eoh.startswith("550 5.7.64 TenantAttribution; Relay Access Denied [")
        client.quit()


def test_forwarded_message_leaves_by_the_egress_hop_in_the_name_of_its_mailbox(egress: Gatepost) -> None:
    with MilterClient(egress.socket, macros={"i": b"4CgSNs5Q9s"}) as ingress:
        ingress.open("203.0.113.9")
        assert ingress.send(b"<bob@fabrikam.com>", [b"<john.work@contoso.com>", INSIDE]).senders == []
        ingress.quit()
    received = b"from mx.fabrikam.com (unknown [203.0.113.9])\n\tby mail.contoso.com (Postfix) with ESMTP id 4CgSNs5Q9s"
    with MilterClient(egress.socket, macros={"{daemon_name}": b"gatepost-egress"}) as hop:
        hop.open("127.0.0.1")
        rcpt = (b"<john.home@example.com>", b"NOTIFY=FAILURE", b"ORCPT=rfc822;john.work@contoso.com")
        outcome = hop.send(b"<bob@fabrikam.com>", [rcpt], [(b"Received", received), (b"From", b"bob@fabrikam.com")])
        assert rewritten(outcome) == [b"<john.work+SRS=HASH=TT=fabrikam.com=bob@contoso.com>"]
        hop.quit()


def srs_path(gatepost: Gatepost, original: str) -> bytes:
    """Return the path of the SRS address that *original* gets."""
    exchange = Exchange(read_keys(gatepost.state / "srs.secret"))
    day = int(time.time()) // 86400
    return f"<{exchange.forward(Address.parse(original), 'bounces', 'contoso.com', day)}>".encode()


def test_originals_are_added_and_srs_recipients_deleted_as_given(returning: Gatepost) -> None:
    bob, ann = (srs_path(returning, f"{name}@fabrikam.com") for name in ("Bob", "ann"))
    with MilterClient(returning.socket) as client:
        outcome = client.open("203.0.113.9").send(b"<>", [bob, INSIDE, ann.lower(), bob])
        client.quit()
    assert (outcome.rcpt, outcome.eom) == (["continue"] * 4, "continue")
    assert outcome.added == [b"<Bob@fabrikam.com>", b"<ann@fabrikam.com>"]
    assert outcome.deleted == [bob, ann.lower(), bob]


def test_utf8_original_is_added_as_it_is(returning: Gatepost) -> None:
    with MilterClient(returning.socket) as client:
        outcome = client.open("203.0.113.9").send(b"<>", [srs_path(returning, "café@fabrikam.com")])
        client.quit()
    assert outcome.added == ["<café@fabrikam.com>".encode()]


def test_forged_srs_recipient_is_refused_and_the_others_are_brought_back(returning: Gatepost) -> None:
    bob = srs_path(returning, "bob@fabrikam.com")
    with MilterClient(returning.socket) as client:
        outcome = client.open("203.0.113.9").send(b"<>", [bob.replace(b"=bob@", b"=eve@"), bob])
        client.quit()
    assert outcome.rcpt == ["550 5.1.1 SRS address with a wrong hash", "continue"]
    assert (outcome.added, outcome.deleted) == ([b"<bob@fabrikam.com>"], [bob])


def test_mail_with_a_sender_to_an_srs_recipient_is_refused_at_data_and_the_next_message_is_not(
    returning: Gatepost,
) -> None:
    bob = srs_path(returning, "bob@fabrikam.com")
    with MilterClient(returning.socket) as client:
        client.open("203.0.113.9")
        refusal = client.send(b"<eve@example.com>", [bob])
        assert (refusal.rcpt, refusal.data) == (
            ["continue"],
            "550 5.7.1 This address takes only bounces (null sender)",
        )
        assert client.send(b"<>", [bob]).added == [b"<bob@fabrikam.com>"]
        client.quit()


def test_bounce_is_put_off_where_the_mta_does_not_let_recipients_be_changed(returning: Gatepost) -> None:
    with MilterClient(returning.socket, actions=CHGFROM) as client:
        outcome = client.open("203.0.113.9").send(b"<>", [srs_path(returning, "bob@fabrikam.com")])
    assert outcome.eom == FAULT


def test_compact_address_that_one_worker_made_is_brought_back_by_any(returning: Gatepost) -> None:
    sender = b"<" + b"b" * 60 + b"@fabrikam.com>"
    with MilterClient(returning.socket, macros=TRUSTED) as client:
        (rewritten_sender,) = client.open().send(sender, [OUTSIDE]).senders
        client.quit()
    assert re.fullmatch(rb"<bounces\+SRS=[a-z2-7]{16}=[A-Z2-7]{2}@contoso\.com>", rewritten_sender)
    for _ in range(6):
        with MilterClient(returning.socket) as client:
            outcome = client.open("203.0.113.9").send(b"<>", [rewritten_sender])
            client.quit()
        assert (outcome.added, outcome.deleted) == ([sender], [rewritten_sender])


def test_client_that_guesses_is_put_off_by_all_workers(tmp_path: Path) -> None:
    wrong = b"<bounces+SRS=aaaaaaaa=%s=fabrikam.com=bob@contoso.com>"
    with Gatepost(tmp_path, workers=2, more='[srs]\nreverse = "milter"\nfailures_per_hour = 3') as gatepost:
        stamp_now = srs_path(gatepost, "bob@fabrikam.com").split(b"=")[2]
        replies = []
        for _ in range(10):
            with MilterClient(gatepost.socket) as client:
                replies += client.open("203.0.113.9").send(b"<>", [wrong % stamp_now]).rcpt
                client.quit()
        assert [reply[:9] for reply in replies] == ["550 5.1.1"] * 3 + ["450 4.7.1"] * 7


def test_tcp_socket_is_served_like_a_unix_one_but_for_data_being_asked(tcp: tuple[str, int]) -> None:
    with MilterClient(tcp, macros=TRUSTED) as client:
        assert client.protocol == QUIET | NR_EOH  # Nagle's algorithm in Postfix stalls 40 ms else
        outcome = client.open().send(b"<app@vendor.example>", [OUTSIDE])
        assert rewritten(outcome) == [b"<bounces+SRS=HASH=TT=vendor.example=app@contoso.com>"]
        assert client.send(b"<app@contoso.com>", [OUTSIDE, INSIDE]).eom == "continue"
        client.quit()


@pytest.mark.parametrize("ip", ["2001:db8::5", "IPv6:2001:db8::5"])
def test_ipv6_client_matches_its_connector(tmp_path: Path, ip: str) -> None:
    gatepost = Gatepost(tmp_path)
    gatepost.configuration.write_text(gatepost.configuration.read_text().replace("192.0.2.0/28", "2001:db8::/64"))
    with gatepost, MilterClient(gatepost.socket) as client:
        assert client.open(ip).send(b"<app@contoso.com>", [OUTSIDE]) == PASSED
        client.quit()


def test_client_of_unknown_address_matches_no_connector(current: Gatepost) -> None:
    with MilterClient(current.socket) as client:
        client.connect_unknown()
        client.helo()
        assert refused(client.send(b"<app@contoso.com>", [OUTSIDE]))
        client.quit()


def test_identity_after_starttls_counts_from_the_next_message_on(current: Gatepost) -> None:
    with MilterClient(current.socket) as client:
        client.open("203.0.113.9")
        assert refused(client.send(b"<app@vendor.example>", [OUTSIDE]))
        client.macros.update(TRUSTED)
        client.helo()
        assert len(client.send(b"<app@vendor.example>", [OUTSIDE]).senders) == 1
        del client.macros["{cert_subject}"], client.macros["{cert_issuer}"]
        assert refused(client.send(b"<app@vendor.example>", [OUTSIDE]))
        client.quit()


# Octets that nobody expects


@pytest.mark.parametrize("name", [b"\xff\xfe", b"caf\xe9.example", b"", b"x" * 1000])
def test_odd_greeting_changes_nothing(legacy: Gatepost, name: bytes) -> None:
    with MilterClient(legacy.socket) as client:
        client.connect()
        client.helo(name)
        assert client.send(b"<app@contoso.com>", [OUTSIDE]) == PASSED
        client.quit()


@pytest.mark.parametrize(
    "header",
    [(b"X-caf\xe9", b"1"), (b"Subject", b"caf\xe9"), (b"Fr\xf6m", b"app@vendor.example"), (b"X", b"a" * 60000)],
    ids=["name", "value", "almost From", "long"],
)
def test_odd_header_changes_nothing(legacy: Gatepost, header: tuple[bytes, bytes]) -> None:
    with MilterClient(legacy.socket) as client:
        client.open()
        headers = [header, (b"From", b"Caf\xe9 <app@contoso.com>")]
        assert client.send(b"<app@vendor.example>", [OUTSIDE], headers).eom == "continue"
        assert client.send(b"<app@vendor.example>", [OUTSIDE], [header]).eoh != "continue"
        client.quit()


def test_what_pymilter_cannot_decode_is_logged(legacy: Gatepost) -> None:
    before = legacy.mark()
    with MilterClient(legacy.socket) as client:
        client.connect()
        client.helo(b"\xff")
        client.send(b"<app@contoso.com>", [OUTSIDE])
        client.quit()
    legacy.wait_for_log(r"warning: skipped what pymilter can't decode: 'utf-8' codec", after=before)


def test_client_name_that_is_not_utf8_is_put_off_and_never_relayed(current: Gatepost) -> None:
    # pymilter does not hand on such a connect; Postfix writes `unknown` instead of such a name.
    with MilterClient(current.socket) as client:
        client.connect(name=b"caf\xe9.example")
        client.helo()
        assert client.send(b"<app@contoso.com>", [OUTSIDE]).rcpt == [FAULT]
        client.quit()


def test_p1_that_is_not_utf8_and_needs_no_rewriting_passes(current: Gatepost) -> None:
    with MilterClient(current.socket) as client:
        assert client.open().send(b"<caf\xe9@contoso.com>", [OUTSIDE]) == PASSED
        client.quit()


def test_p1_that_is_not_utf8_and_had_to_be_rewritten_is_refused(current: Gatepost) -> None:
    with MilterClient(current.socket, macros=TRUSTED) as client:
        outcome = client.open().send(b"<caf\xe9@vendor.example>", [OUTSIDE])
        assert outcome.rcpt[0].startswith("553 5.1.7 ")
        client.quit()


def test_recipient_that_is_not_utf8_is_judged_by_its_domain(current: Gatepost) -> None:
    with MilterClient(current.socket) as client:
        client.open("203.0.113.9")
        assert client.send(b"<bob@fabrikam.com>", [b"<caf\xe9@contoso.com>"]) == PASSED
        assert refused(client.send(b"<bob@fabrikam.com>", [b"<caf\xe9@gmail.example>"]))
        client.quit()


def test_utf8_p1_is_rewritten_as_it_is(current: Gatepost) -> None:
    with MilterClient(current.socket, macros=TRUSTED) as client:
        outcome = client.open().send("<café@vendor.example>".encode(), [OUTSIDE])
        assert rewritten(outcome) == ["<bounces+SRS=HASH=TT=vendor.example=café@contoso.com>".encode()]
        client.quit()


def test_login_name_that_is_not_utf8_is_a_login_all_the_same(current: Gatepost) -> None:
    with MilterClient(current.socket, macros={"{auth_authen}": b"\xe9ric"}) as client:
        assert client.open("203.0.113.9").send(b"<app@contoso.com>", [OUTSIDE]) == PASSED
        client.quit()


def test_certificate_name_that_is_not_utf8_matches_nothing(current: Gatepost) -> None:
    macros = {"{cert_subject}": b"mail.contoso.com\xff", "{cert_issuer}": b"CA"}
    with MilterClient(current.socket, macros=macros) as client:
        assert refused(client.open("203.0.113.9").send(b"<app@vendor.example>", [OUTSIDE]))
        client.quit()


def test_certificate_issuer_that_is_not_utf8_is_a_trusted_one_all_the_same(current: Gatepost) -> None:
    macros = {"{cert_subject}": b"mail.contoso.com", "{cert_issuer}": b"Autorit\xe9"}
    with MilterClient(current.socket, macros=macros) as client:
        assert len(client.open("203.0.113.9").send(b"<app@vendor.example>", [OUTSIDE]).senders) == 1
        client.quit()


@pytest.mark.parametrize("octet", [b"\r", b"\n"])
def test_line_break_in_an_address_is_refused(current: Gatepost, octet: bytes) -> None:
    with MilterClient(current.socket, macros=TRUSTED) as client:
        client.open()
        sender = client.send(b"<app" + octet + b"RCPT TO:<y@z>@contoso.com>", [OUTSIDE])
        assert sender.rcpt == ["553 5.1.7 Sender address has a control character in it"]
        rcpt = client.send(b"<app@contoso.com>", [b"<x" + octet + b"y@gmail.example>"])
        assert rcpt.rcpt == ["553 5.1.3 Recipient address has a control character in it"]
        client.quit()


def test_address_cut_short_by_a_nul_gets_nothing_relayed(current: Gatepost) -> None:
    with MilterClient(current.socket, macros={"{mail_addr}": b"app"}) as client:
        client.open()
        client.mail(b"<app\0@contoso.com>")
        assert client.rcpt(OUTSIDE).startswith("550 5.7.64 ")
        assert client.rcpt(b"<x\0@contoso.com>").startswith("550 5.7.64 ")
        client.abort()
        client.quit()


# Many of everything


def test_thousand_recipients_are_each_judged(current: Gatepost) -> None:
    rcpts = [b"<user%d@%s>" % (number, b"contoso.com" if number % 2 else b"gmail.example") for number in range(1000)]
    with MilterClient(current.socket) as client:
        client.open()
        outcome = client.send(b"<app@contoso.com>", rcpts)
        assert outcome.rcpt == ["continue"] * 1000
        assert outcome.eom == "continue"
        mixed = client.send(b"<app@vendor.example>", rcpts)
        assert [reply[:3] for reply in mixed.rcpt] == ["550", "con"] * 500
        assert (mixed.eom, mixed.senders) == ("continue", [])
        client.quit()


def test_messages_of_a_connection_do_not_know_of_each_other(current: Gatepost) -> None:
    with MilterClient(current.socket, macros=TRUSTED) as client:
        client.open()
        for _ in range(20):
            assert len(client.send(b"<app@vendor.example>", [OUTSIDE]).senders) == 1
            assert client.send(b"<app@vendor.example>", [INSIDE]).senders == []
            assert client.send(b"<app@contoso.com>", [OUTSIDE, INSIDE]).senders == []
            assert client.send(b"<>", [OUTSIDE]).senders == []
        client.quit()


@pytest.mark.parametrize("stage", ["mail", "rcpt", "data", "header", "eoh"])
def test_message_aborted_at_any_stage_leaves_no_trace_in_the_next(legacy: Gatepost, stage: str) -> None:
    with MilterClient(legacy.socket, macros=TRUSTED) as client:
        client.open()
        for name, step in steps(client):
            step()
            if name == stage:
                break
        client.abort()
        outcome = client.send(b"<app@vendor.example>", [OUTSIDE])
        assert rewritten(outcome) == [b"<bounces+SRS=HASH=TT=vendor.example=app@contoso.com>"]
        client.quit()


def steps(client: MilterClient) -> list[tuple[str, Callable[[], object]]]:
    """Return the stages of a message to an inside recipient up to the end of its headers."""
    return [
        ("mail", lambda: client.mail(b"<bob@fabrikam.com>")),
        ("rcpt", lambda: client.rcpt(INSIDE)),
        ("data", client.data),
        ("header", lambda: client.header(b"From", b"app@contoso.com")),
        ("eoh", client.end_of_headers),
    ]


def test_connection_cut_at_any_stage_harms_no_other(legacy: Gatepost) -> None:
    socket_only = socket.socket(socket.AF_UNIX)
    socket_only.connect(legacy.socket)
    socket_only.close()
    for last in range(8):
        client = MilterClient(legacy.socket)
        before: list[Callable[[], object]] = [client.connect, client.helo]
        for step in [*before, *(step for _, step in steps(client))][:last]:
            step()
        client.socket.sendall(struct.pack(">I", 100) + b"L")  # cut in the middle of a packet
        client.socket.close()
    with MilterClient(legacy.socket) as client:
        assert client.open().send(b"<app@contoso.com>", [OUTSIDE]) == PASSED
        client.quit()


def test_fifty_sessions_at_once_all_get_their_answers(current: Gatepost) -> None:
    together = threading.Barrier(50)
    right: list[int] = []

    def session(number: int) -> None:
        with MilterClient(current.socket, macros=TRUSTED if number % 2 else {}) as client:
            client.open()
            together.wait()
            for _ in range(5):
                outcome = client.send(b"<app%d@vendor.example>" % number, [OUTSIDE])
                expected = [b"<bounces+SRS=HASH=TT=vendor.example=app%d@contoso.com>" % number]
                assert rewritten(outcome) == expected if number % 2 else refused(outcome)
            client.quit()
        right.append(number)

    threads = [threading.Thread(target=session, args=(number,)) for number in range(50)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert sorted(right) == list(range(50))


# Broken peers and broken surroundings


def test_garbage_packets_cost_nothing_but_their_connection_and_do_not_hold_up_the_end(tmp_path: Path) -> None:
    generator = random.Random(20231101)
    with Gatepost(tmp_path, relay='mode = "enforce"\nrequirements = "legacy"') as gatepost:
        for _ in range(200):
            client = MilterClient(gatepost.socket)
            with contextlib.suppress(OSError, MilterError):
                client.open()
                for _ in range(20):
                    octets = bytes(generator.randrange(256) for _ in range(generator.randrange(40)))
                    client.packet(bytes([generator.choice(b"ABCDEHKLMNOQRTU\0\xff")]), octets)
            client.socket.close()
        with MilterClient(gatepost.socket) as client:
            assert client.open().send(b"<app@contoso.com>", [OUTSIDE]) == PASSED
            client.quit()
        assert not any(line.startswith("error") for line in gatepost.log)
        began = time.monotonic()
        gatepost.signal(signal.SIGTERM)
        assert gatepost.wait() == 0
        assert time.monotonic() - began < 10  # a drain of open sessions takes 20 s


@pytest.mark.parametrize("length", [0, 70_000, 0x7FFFFFFF, 0xFFFFFFFF])
def test_packet_length_out_of_range_ends_the_connection_at_once(current: Gatepost, length: int) -> None:
    with MilterClient(current.socket) as client:
        client.open()
        client.socket.sendall(struct.pack(">I", length) + b"M")
        assert client.rest() == b""
    with MilterClient(current.socket) as client:
        assert client.open().send(b"<app@contoso.com>", [OUTSIDE]) == PASSED
        client.quit()


def test_fault_inside_puts_the_connection_off_is_logged_and_counted(current: Gatepost) -> None:
    sample = 'gatepost_errors_total{daemon="milter",kind="internal"}'
    before = current.metric(sample)
    # An MTA that does not let the sender be changed: what must be rewritten can't be.
    with MilterClient(current.socket, actions=0x1F, macros=TRUSTED) as client:
        client.open()
        assert client.send(b"<app@contoso.com>", [OUTSIDE]) == PASSED
        assert client.send(b"<app@vendor.example>", [OUTSIDE]).eom == FAULT
        assert client.send(b"<app@contoso.com>", [OUTSIDE]).rcpt == [FAULT]
        client.quit()
    assert current.metric(sample) == before + 1
    current.wait_for_log(r"error: milter: eom: internal error, the message is put off$")
    with MilterClient(current.socket) as client:
        assert client.open().send(b"<app@contoso.com>", [OUTSIDE]) == PASSED
        client.quit()


def test_message_before_any_connect_is_put_off(current: Gatepost) -> None:
    with MilterClient(current.socket) as client:
        client.mail(b"<app@contoso.com>")
        assert client.rcpt(OUTSIDE) == FAULT


def test_decisions_of_all_workers_are_counted_together(tmp_path: Path) -> None:
    with Gatepost(tmp_path, workers=2, metrics=True) as gatepost:
        for _ in range(12):
            with MilterClient(gatepost.socket) as client:
                client.open().send(b"<app@vendor.example>", [OUTSIDE])
                client.quit()
        sample = 'gatepost_relay_decisions_total{organization="contoso",reason="nothing-accepted",verdict="refuse"}'
        assert gatepost.metric(sample) == 12


def test_session_under_way_is_finished_when_the_milter_is_told_to_stop(tmp_path: Path) -> None:
    with Gatepost(tmp_path) as gatepost, MilterClient(gatepost.socket, macros=TRUSTED) as client:
        client.open()
        client.mail(b"<app@vendor.example>")
        client.rcpt(OUTSIDE)
        gatepost.signal(signal.SIGTERM)
        gatepost.wait_for_log("milter draining")
        assert client.data() == "continue"
        assert client.end_of_headers() == "continue"
        outcome = Outcome()
        assert client.end_of_message(outcome) == "continue"
        assert len(outcome.senders) == 1
        client.quit()
        assert gatepost.wait() == 0


def test_milter_that_drains_takes_no_new_session(tmp_path: Path) -> None:
    with Gatepost(tmp_path) as gatepost, MilterClient(gatepost.socket) as client:
        client.open()
        client.mail(b"<app@contoso.com>")  # a client between two messages is waited for 2 s only
        gatepost.signal(signal.SIGTERM)
        poll(lambda: not serves(gatepost.socket), "the end of new sessions")
        assert client.rcpt(OUTSIDE) == "continue"
        client.data()
        client.end_of_headers()
        assert client.end_of_message() == "continue"
        client.quit()
        assert gatepost.wait() == 0


def serves(path: str) -> bool:
    try:
        with MilterClient(path) as client:
            client.quit()
    except (OSError, MilterError):
        return False
    return True
