# SPDX-License-Identifier: GPL-3.0-or-later
"""Clients with certificates: real TLS sessions to a real Postfix, which asks policyd first and then the milter.

See tlsclients.py for who is who. Both daemons have two workers.
"""

from __future__ import annotations

import re
from pathlib import Path
from typing import Callable

import pytest
from daemonprocess import free_ports
from tlsclients import FOREIGN, HUB, OUTSIDE, Clients, enforcing, refused, send, session

from gatepost.admin.sandbox import free_port
from gatepost.admin.stage import Stage, transact

# Behind policyd, so that it has reported on a RCPT that never reaches the milter.
LATE_REFUSAL = """
smtpd_recipient_restrictions = check_policy_service unix:gatepost/policyd.sock
    check_recipient_access inline:{ {late@example.com = 550 5.1.1 refused late} }
"""
MASTER = """
127.0.0.1:{smtpd} inet n - y - - smtpd
    -o smtpd_upstream_proxy_protocol=haproxy
127.0.0.1:{unasked} inet n - y - - smtpd
    -o smtpd_recipient_restrictions=permit
127.0.0.1:{postscreen} inet n - y - 1 postscreen
    -o postscreen_upstream_proxy_protocol=haproxy
    -o postscreen_access_list=static:permit
smtpd pass - - y - - smtpd
dnsblog unix - - y - 0 dnsblog
tlsproxy unix - - y - 0 tlsproxy
"""


@pytest.fixture(scope="module")
def clients() -> dict[str, Clients]:
    """The certificates of each stage's clients, by its fixture."""
    return {}


@pytest.fixture(scope="module")
def ports() -> dict[str, int]:
    """Where the services are that expect the PROXY protocol, and the one that asks no policyd."""
    return dict(zip(("smtpd", "postscreen", "unasked"), free_ports(3)))


@pytest.fixture(scope="module")
def hub(boot: Callable[..., Stage], clients: dict[str, Clients], ports: dict[str, int]) -> Stage:
    def prepare(stage: Stage) -> None:
        clients["hub"] = Clients(stage)

    return boot(
        "relay-hub",
        before=HUB,
        after=LATE_REFUSAL,
        master_before=MASTER.format(**ports),
        configuration=enforcing,
        tls=True,
        prepare=prepare,
    )


@pytest.fixture
def its(hub: Stage, clients: dict[str, Clients]) -> Clients:
    return clients["hub"]


# Which names count (R8, R9)


def test_cn_that_a_connector_names_relays_r8(hub: Stage, its: Clients) -> None:
    assert send(hub, its.cn).accepted


def test_name_in_the_san_of_a_certificate_with_another_cn_relays_r8(hub: Stage, its: Clients) -> None:
    assert send(hub, its.system).accepted


def test_name_in_the_san_of_a_certificate_without_cn_relays_r8(hub: Stage, its: Clients) -> None:
    assert send(hub, its.san_only).accepted


def test_null_sender_with_a_certificate_without_cn_relays_r5(hub: Stage, its: Clients) -> None:
    assert send(hub, its.san_only, "").accepted


def test_quoted_addresses_are_joined_as_policyd_has_them(hub: Stage, its: Clients) -> None:
    assert send(hub, its.san_only, '"a b"@vendor.example', '"x y"@example.com').accepted


def test_source_route_is_joined_as_policyd_has_it(hub: Stage, its: Clients) -> None:
    assert send(hub, its.san_only, rcpt="@relay.example:x@example.com").accepted


def test_wildcard_connector_covers_a_host_below_it_r8_r9(hub: Stage, its: Clients) -> None:
    assert send(hub, its.one_up).accepted


def test_wildcard_certificate_counts_as_its_domain_r9(hub: Stage, its: Clients) -> None:
    assert send(hub, its.wildcard).accepted


def test_accepted_domain_two_labels_up_is_not_enough_r9(hub: Stage, its: Clients) -> None:
    assert refused(send(hub, its.two_up).last)


@pytest.mark.parametrize("name", ["odd", "odd_san_only"])
def test_odd_characters_in_cn_and_issuer_do_not_keep_the_daemons_apart(hub: Stage, its: Clients, name: str) -> None:
    assert send(hub, getattr(its, name)).accepted


def test_of_two_certificates_with_one_cn_each_has_its_own_names(hub: Stage, its: Clients) -> None:
    assert send(hub, its.twin).accepted
    assert refused(send(hub, its.other_twin).last)


# Which certificates count (R10)


def test_without_certificate_nothing_relays(hub: Stage) -> None:
    assert refused(send(hub, None).last)


@pytest.mark.parametrize("name", ["self_signed", "of_other_authority", "expired"])
def test_certificate_that_postfix_does_not_trust_is_as_good_as_none_though_its_file_is_there_r10(
    hub: Stage, its: Clients, name: str
) -> None:
    assert refused(send(hub, getattr(its, name)).last)


# What the administrator finds in the log


def test_refusal_names_the_fingerprint_of_a_certificate_without_cn_that_is_in_no_file(hub: Stage, its: Clients) -> None:
    start = len(hub.log())
    assert refused(send(hub, its.san_only_unlisted).last)
    found = its.san_only_unlisted.fingerprint
    hub.wait_for_log(rf"action=reject, .* certificate=unknown, fingerprint={found}, reference=", start=start)
    hub.wait_for_log(
        r"warning: the certificate of 127\.0\.0\.1, issued by Sandbox CA, has no CN and is in no file of "
        rf"\S+/certificates, so no name of it is known and it counts as none: fingerprint={found}"
    )


def test_refusal_names_cn_and_fingerprint_of_a_certificate_that_is_in_no_file(hub: Stage, its: Clients) -> None:
    start = len(hub.log())
    assert refused(send(hub, its.system_unlisted).last)
    found = its.system_unlisted.fingerprint
    hub.wait_for_log(rf"action=reject, .* certificate=<CRM System 2>, fingerprint={found}, reference=", start=start)


# Several recipients, several messages


def test_each_recipient_of_a_message_counts(hub: Stage, its: Clients) -> None:
    with session(hub, its.san_only) as smtp:
        transcript = transact(smtp, FOREIGN, [f"r{number}@example.com" for number in range(5)])
    assert [reply.code for reply in transcript.rcpt] == [250] * 5


def test_same_recipient_twice_counts_twice(hub: Stage, its: Clients) -> None:
    with session(hub, its.san_only) as smtp:
        transcript = transact(smtp, FOREIGN, [OUTSIDE, OUTSIDE])
    assert [reply.code for reply in transcript.rcpt] == [250, 250]


def test_each_message_of_a_session_counts(hub: Stage, its: Clients) -> None:
    with session(hub, its.san_only) as smtp:
        assert [transact(smtp, FOREIGN, OUTSIDE).accepted for _ in range(4)] == [True] * 4


def test_pipelined_recipients_count(hub: Stage, its: Clients) -> None:
    with session(hub, its.san_only) as smtp:
        rcpts = "".join(f"RCPT TO:<p{number}@example.com>\r\n" for number in range(4))
        smtp.send(f"MAIL FROM:<{FOREIGN}>\r\n{rcpts}DATA\r\n")
        assert [smtp.getreply()[0] for _ in range(6)] == [250] * 5 + [354]
        smtp.send("Subject: x\r\n\r\nhello\r\n.\r\n")
        assert smtp.getreply()[0] == 250


def test_recipient_that_postfix_refuses_leaves_the_others_alone(hub: Stage, its: Clients) -> None:
    with session(hub, its.san_only) as smtp:
        transcript = transact(smtp, FOREIGN, ["late@example.com", OUTSIDE, "late@example.com", "y@example.com"])
    assert [reply.code for reply in transcript.rcpt] == [550, 250, 550, 250]


# A neighbour gets the source port


@pytest.mark.parametrize("rcpt", [OUTSIDE, "late@example.com"], ids=["taken", "left behind"])
def test_neighbour_on_the_same_port_has_nothing_of_the_certificate_before(hub: Stage, its: Clients, rcpt: str) -> None:
    """`late` is refused behind policyd, whose report then stays in the table."""
    source = ("127.0.0.1", free_port())
    for certificate, relays in (
        (its.san_only, True),
        (None, False),
        (its.san_only, True),
        (its.other_san_only, False),
        (its.san_only_unlisted, False),
        (its.self_signed, False),
        (its.san_only, True),
    ):
        with session(hub, certificate, source=source) as smtp:
            transact(smtp, FOREIGN, rcpt)
            reply = transact(smtp, FOREIGN, OUTSIDE).last
        assert (reply.code == 250) is relays
        assert relays or refused(reply)


def test_neighbour_at_another_smtpd_that_asks_no_policyd_has_nothing_of_the_certificate_before(
    hub: Stage, its: Clients, ports: dict[str, int]
) -> None:
    source = ("127.0.0.1", free_port())
    with session(hub, its.san_only, source=source) as smtp:
        assert str(transact(smtp, FOREIGN, "late@example.com").last).startswith("550 5.1.1 ")
    with session(hub, its.other_san_only, source=source, port=ports["unasked"]) as smtp:
        assert refused(transact(smtp, FOREIGN, "late@example.com").last)


# Where the client's address is not the connection's


def test_xclient_with_port_is_joined(hub: Stage, its: Clients) -> None:
    with session(hub, its.san_only, xclient="ADDR=203.0.113.9 PORT=40001 NAME=[UNAVAILABLE]") as smtp:
        assert transact(smtp, FOREIGN, OUTSIDE).accepted


def test_xclient_without_port_keeps_the_real_one_and_is_joined(hub: Stage, its: Clients) -> None:
    with session(hub, its.san_only, xclient="ADDR=203.0.113.9 NAME=[UNAVAILABLE]") as smtp:
        assert transact(smtp, FOREIGN, OUTSIDE).accepted


def test_client_whose_port_is_not_known_is_known_by_what_the_macros_tell(hub: Stage, its: Clients) -> None:
    unknown = "ADDR=203.0.113.9 PORT=[UNAVAILABLE] NAME=[UNAVAILABLE]"
    with session(hub, its.san_only, xclient=unknown) as smtp:
        assert refused(transact(smtp, FOREIGN, OUTSIDE).last)
    with session(hub, its.system, xclient=unknown) as smtp:
        assert transact(smtp, FOREIGN, OUTSIDE).accepted


@pytest.mark.skipif(not Path("/proc/net/if_inet6").exists(), reason="no IPv6")
def test_ipv6_client_by_xclient_is_joined(hub: Stage, its: Clients) -> None:
    with session(hub, its.san_only, xclient="ADDR=IPV6:2001:db8::9 PORT=40001 NAME=[UNAVAILABLE]") as smtp:
        assert transact(smtp, FOREIGN, OUTSIDE).accepted


@pytest.mark.parametrize("service", ["smtpd", "postscreen"])
def test_client_behind_proxy_is_joined(hub: Stage, its: Clients, ports: dict[str, int], service: str) -> None:
    port = ports[service]
    line = f"PROXY TCP4 203.0.113.9 127.0.0.1 40002 {port}"
    start = len(hub.log())
    with session(hub, its.san_only, port=port, proxy=line) as smtp:
        assert transact(smtp, FOREIGN, OUTSIDE).accepted
    hub.wait_for_log(r"action=rewrite, .*client=203\.0\.113\.9, ", start=start)
    with session(hub, None, port=port, proxy=line) as smtp:
        assert refused(transact(smtp, FOREIGN, OUTSIDE).last)


def test_postfix_has_nothing_to_say_of_the_macros_that_it_does_not_know(hub: Stage, its: Clients) -> None:
    assert send(hub, its.cn).accepted
    assert not re.search(r"(?i)(?:warning|error).*(?:milter|macro)", hub.postfix.log())


# Without policyd in smtpd's restrictions


@pytest.fixture(scope="module")
def alone(boot: Callable[..., Stage], clients: dict[str, Clients]) -> Stage:
    def prepare(stage: Stage) -> None:
        clients["alone"] = Clients(stage)

    without = "smtpd_recipient_restrictions =\nsmtpd_data_restrictions =\n"
    return boot("relay-hub", before=HUB, after=without, configuration=enforcing, tls=True, prepare=prepare)


@pytest.mark.parametrize(
    ("name", "relays"),
    [
        ("cn", True),
        ("system", True),
        ("odd", True),
        ("one_up", True),
        ("system_unlisted", False),
        ("san_only", False),
        ("twin", False),
        ("of_other_authority", False),
    ],
)
def test_without_policyd_a_certificate_has_its_cn_and_the_names_that_the_folder_has_for_that(
    alone: Stage, clients: dict[str, Clients], name: str, *, relays: bool
) -> None:
    reply = send(alone, getattr(clients["alone"], name)).last
    assert (reply.code == 250) is relays
    assert relays or refused(reply)


def test_without_policyd_a_certificate_without_cn_is_unknown_in_the_log(
    alone: Stage, clients: dict[str, Clients]
) -> None:
    start = len(alone.log())
    assert refused(send(alone, clients["alone"].san_only).last)
    alone.wait_for_log("action=reject, .* reason=nothing-accepted, certificate=unknown, reference=", start=start)


# policyd alone


@pytest.fixture(scope="module")
def policy_only(boot: Callable[..., Stage], clients: dict[str, Clients]) -> Stage:
    def prepare(stage: Stage) -> None:
        clients["policy_only"] = Clients(stage)

    return boot(
        "policy-only",
        before=HUB,
        after="mynetworks = 192.0.2.99",
        configuration=enforcing,
        tls=True,
        prepare=prepare,
        gatepost=("policyd",),
    )


@pytest.mark.parametrize("name", ["cn", "system", "san_only", "odd_san_only", "twin", "wildcard", "one_up"])
def test_policyd_alone_lets_a_client_relay_by_each_name_of_its_certificate(
    policy_only: Stage, clients: dict[str, Clients], name: str
) -> None:
    assert send(policy_only, getattr(clients["policy_only"], name)).accepted


@pytest.mark.parametrize(
    "name", ["san_only_unlisted", "other_san_only", "of_other_authority", "self_signed", "expired"]
)
def test_policyd_alone_leaves_to_postfix_whom_no_certificate_identifies(
    policy_only: Stage, clients: dict[str, Clients], name: str
) -> None:
    reply = send(policy_only, getattr(clients["policy_only"], name)).last
    assert str(reply) == "554 5.7.1 <x@example.com>: Relay access denied"
