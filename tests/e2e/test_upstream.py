# SPDX-License-Identifier: GPL-3.0-or-later
"""A hub in front of Exchange Online, which a stand-in plays as the relayhost: it takes all that is let out.

192.0.2.5 is a host of head office (connector by IP address), crm.contoso.com one that shows a certificate. The hub is
known upstream by the address from which it sends, 127.0.0.5, or by its certificate, hub.contoso.com.
"""

from __future__ import annotations

import random
import re
import ssl
from collections.abc import Iterator
from contextlib import ExitStack
from typing import Callable

import pytest
from exchangeonline import TAKEN, InboundConnector, Tenant, answer
from exchangeonlineserver import ExchangeOnline
from stages import NDR, logs_reported

from gatepost.admin.authority import Credentials
from gatepost.admin.sandbox import temporary_root
from gatepost.admin.stage import Stage, transact

SERVER = """
mynetworks = 127.0.0.0/8, 192.0.2.0/24
local_header_rewrite_clients =
"""
HUB = "127.0.0.5"
BY_ADDRESS = InboundConnector([HUB])
BY_CERTIFICATE = InboundConnector(certificate_name="hub.contoso.com")
ACCEPTED = {"contoso.com": False, "srs.contoso.com": False}
DENIED = re.compile(r"550 5\.7\.64 TenantAttribution; Relay Access Denied \[\w{10}\]")
PLAIN = b"From: App <app@contoso.com>\r\nSubject: x\r\n\r\nhello\r\n"
FABRIKAM = """
[[organization]]
name = "fabrikam"
[[organization.accepted_domain]]
domain = "fabrikam.example"
"""
SRS_DOMAIN = '[[organization.accepted_domain]]\ndomain = "srs.contoso.com"\n'
SENDERS = [
    *("app@contoso.com", "App+x@CONTOSO.com", "bob@fabrikam.com", "bob@fabrikam.example", "app@sub.contoso.com"),
    *("", f"{'b' * 60}@fabrikam.com", '"a b"@fabrikam.com', "root@hub.contoso.com", "a=b+c@vendor.example"),
    "x+SRS=aaaaa=RA=y.example=z@vendor.example",
]


class Hub:
    """The booted stage, what Exchange Online is to it, and the CRM's certificate."""

    def __init__(self, stage: Stage, upstream: ExchangeOnline, crm: Credentials) -> None:
        self.stage = stage
        self.upstream = upstream
        self.crm = crm

    def settle(self) -> None:
        """Wait until all that was sent has left, and the bounces of it, too."""
        self.stage.postfix.wait_until_idle()

    def outcome(self) -> tuple[set[str], set[str]]:
        """Return the recipients that were taken upstream and those that were refused."""
        self.settle()
        return {item.rcpt for item in self.upstream.taken}, {item.rcpt for item in self.upstream.refused}


Boot = Callable[..., Hub]


@pytest.fixture(scope="module")
def boot_hub(boot: Callable[..., Stage]) -> Iterator[Boot]:
    """Return a function that boots an example behind the stand-in, by address or by certificate."""
    with ExitStack() as stack:
        folder = stack.enter_context(temporary_root())

        def start(
            example: str = "exchange-online",
            *,
            certificate: bool = False,
            mode: str = "enforce",
            before: str = "",
            after: str = "",
        ) -> Hub:
            tenant = Tenant(ACCEPTED, [BY_CERTIFICATE if certificate else BY_ADDRESS])
            context = ssl.create_default_context(ssl.Purpose.CLIENT_AUTH) if certificate else None
            upstream = ExchangeOnline(tenant, context)
            crm: list[Credentials] = []

            def prepare(stage: Stage) -> None:
                crm.append(stage.authority.issue("crm.contoso.com"))
                fingerprints = stage.root / "mta/etc/relay_clientcerts"
                fingerprints.write_text(f"{crm[0].fingerprint} crm\n")
                if context:
                    server, hub = (stage.authority.issue(name) for name in ("tenant.example", "hub.contoso.com"))
                    context.load_cert_chain(server.certificate, server.key)
                    context.load_verify_locations(stage.authority.file)
                    context.verify_mode = ssl.CERT_OPTIONAL
                    (folder / "hub.pem").write_bytes(hub.certificate.read_bytes())
                    (folder / "hub.key").touch(mode=0o600)
                    (folder / "hub.key").write_bytes(hub.key.read_bytes())

            presented = (
                f"smtp_tls_security_level = encrypt\nsmtp_tls_cert_file = {folder}/hub.pem\n"
                f"smtp_tls_key_file = {folder}/hub.key\n"
            )
            stage = boot(
                example,
                before=SERVER + before,
                after=f"relayhost = [127.0.0.1]:{upstream.port}\nsmtp_bind_address = {HUB}\n"
                + (presented if certificate else "")
                + after,
                configuration=lambda text: configured(text, certificate=certificate, mode=mode),
                tls=True,
                prepare=prepare,
            )
            stack.enter_context(upstream)
            return Hub(stage, upstream, crm[0])

        yield start


def configured(text: str, *, certificate: bool, mode: str) -> str:
    known_by = 'tls_sender_certificate_name = "hub.contoso.com"' if certificate else f'sender_ip_addresses = ["{HUB}"]'
    text = text.replace('sender_ip_addresses = ["203.0.113.5"]', f'organization = "contoso"\n{known_by}')
    if "[upstream]" not in text:  # the forwarder
        text = text.replace('name = "contoso"\n', 'name = "contoso"\nsrs_domain = "srs.contoso.com"\n')
        text = text.replace("default = true\n", f"default = true\n{SRS_DOMAIN}")
        text += f'[upstream]\norganization = "contoso"\n{known_by}\n'
    return re.sub(r'mode = "\w+"', f'mode = "{mode}"', text) + FABRIKAM


@pytest.fixture(scope="module")
def hub(boot_hub: Boot) -> Hub:
    return boot_hub()


@pytest.fixture(scope="module")
def certified(boot_hub: Boot) -> Hub:
    return boot_hub(certificate=True)


@pytest.fixture(scope="module")
def monitoring(boot_hub: Boot) -> Hub:
    return boot_hub(mode="monitor")


def traffic(hub: Hub, count: int, seed: int) -> tuple[set[str], dict[str, str]]:
    """Send messages of all kinds, each with one to three recipients, of which no two are the same.

    Return the recipients that were taken and, for those that were refused for good, P1. Those that are to come apart
    are sent again, as a client would.
    """
    pick = random.Random(seed)
    taken: set[str] = set()
    refused: dict[str, str] = {}
    with hub.stage.session(client="192.0.2.5") as office, hub.stage.session(certificate=hub.crm, client="") as crm:
        for number in range(count):
            smtp, mail_from = pick.choice([office, crm]), pick.choice(SENDERS)
            domains = pick.choices(["example.com", "example.net", "contoso.com"], k=pick.randint(1, 3))
            waiting = [f"r{seed}.{number}.{index}@{domain}" for index, domain in enumerate(domains)]
            while waiting:
                transcript = transact(smtp, mail_from, waiting, PLAIN)
                assert transcript.mail.code == 250, transcript
                replies = dict(zip(waiting, transcript.rcpt))
                waiting = [rcpt for rcpt, reply in replies.items() if reply.code == 452]
                taken |= {rcpt for rcpt, reply in replies.items() if reply.code == 250}
                refused.update({rcpt: mail_from for rcpt, reply in replies.items() if reply.code >= 500})
                assert transcript.accepted or all(reply.code >= 500 for reply in replies.values()), transcript
    return taken, refused


# Any message


def test_everything_that_is_let_out_is_taken_by_address(hub: Hub) -> None:
    hub.upstream.taken.clear()
    hub.upstream.refused.clear()
    taken, refused = traffic(hub, 600, seed=1)
    assert hub.outcome() == (taken, set())
    assert len(taken) > 300
    tenant = Tenant(ACCEPTED, [BY_ADDRESS])
    # SRS mends all else (action = "rewrite"); fabrikam has no connector for anybody.
    assert set(refused.values()) == {"", "bob@fabrikam.example"}
    assert [rcpt for rcpt, mail_from in refused.items() if answer(tenant, HUB, (), mail_from, rcpt) == TAKEN] == []
    senders = {item.mail_from.rpartition("@")[2].lower() for item in hub.upstream.taken if "@example" in item.rcpt}
    assert senders == {"contoso.com", "srs.contoso.com"}


def test_everything_that_is_let_out_is_taken_by_certificate(certified: Hub) -> None:
    taken, refused = traffic(certified, 300, seed=2)
    assert certified.outcome() == (taken, set())
    assert refused  # by the rule here
    assert "upstream" not in certified.stage.log()


def test_in_monitor_mode_the_log_names_each_message_that_is_refused_and_no_other(monitoring: Hub) -> None:
    start = monitoring.stage.metric("gatepost_upstream_decisions_total", verdict="refuse")
    taken, refused = traffic(monitoring, 300, seed=3)
    monitoring.settle()
    mine = {item.rcpt for item in monitoring.upstream.refused if item.rcpt.startswith("r3.")}
    assert not refused
    assert mine
    assert mine | {item.rcpt for item in monitoring.upstream.taken if item.rcpt in taken} == taken
    named = monitoring.stage.metric("gatepost_upstream_decisions_total", verdict="refuse") - start
    assert named == len(mine)


# One by one


def test_foreign_sender_of_a_host_that_is_known_by_address_is_mended_and_taken(hub: Hub) -> None:
    assert hub.stage.send("noreply@vendor.example", "mended@example.com", PLAIN, client="192.0.2.5").accepted
    hub.settle()
    (mail,) = [item for item in hub.upstream.taken if item.rcpt == "mended@example.com"]
    assert re.fullmatch(r"bounces\+SRS=\w{8}=\w\w=vendor\.example=noreply@srs\.contoso\.com", mail.mail_from)


def test_host_that_no_connector_knows_is_refused(hub: Hub) -> None:
    assert DENIED.fullmatch(str(hub.stage.send("noreply@vendor.example", "x@example.com", client="192.0.2.77").last))


def test_foreign_sender_is_taken_with_an_address_in_the_srs_domain(hub: Hub) -> None:
    assert hub.stage.send("bob@fabrikam.com", "s4@example.com", PLAIN, client="", certificate=hub.crm).accepted
    hub.settle()
    (mail,) = [item for item in hub.upstream.taken if item.rcpt == "s4@example.com"]
    assert re.fullmatch(r"bounces\+SRS=\w{8}=\w\w=fabrikam\.com=bob@srs\.contoso\.com", mail.mail_from)
    assert mail.content.endswith(PLAIN)


def test_null_sender_to_outside_is_refused_early_and_its_reason_is_logged_counted_and_recorded(hub: Hub) -> None:
    before = hub.stage.metric("gatepost_upstream_decisions_total", verdict="refuse")
    reply = hub.stage.send("", "null@example.com", PLAIN, client="", certificate=hub.crm).last
    assert DENIED.fullmatch(str(reply))
    reference = reply.text[-11:-1]
    hub.stage.wait_for_log(
        r"NOQUEUE: action=reject, from=<>, to=<null@example\.com>, .*reason=upstream-null-sender, upstream=refuse, "
        rf"upstream_reason=null-sender-without-certificate, .*reference={reference}$"
    )
    assert hub.stage.metric("gatepost_upstream_decisions_total", verdict="refuse") == before + 1


def test_null_sender_to_the_tenant_is_taken_r2(hub: Hub) -> None:
    assert hub.stage.send("", "ann@contoso.com", PLAIN, client="192.0.2.5").accepted
    assert "ann@contoso.com" in hub.outcome()[0]


def test_null_sender_to_outside_is_taken_by_certificate_r5(certified: Hub) -> None:
    assert certified.stage.send("", "null@example.com", PLAIN, client="", certificate=certified.crm).accepted
    assert "null@example.com" in certified.outcome()[0]


# Bounces


def returned(hub: Hub, rcpt: str) -> str:
    """Have Bob's rewritten message to *rcpt* bounce elsewhere; return the SRS address that the bounce went to."""
    assert hub.stage.send("bob@fabrikam.com", rcpt, PLAIN, client="", certificate=hub.crm).accepted
    hub.settle()
    (mail,) = [item for item in hub.upstream.taken if item.rcpt == rcpt]
    assert hub.stage.send("", mail.mail_from, NDR, client="198.51.100.7").accepted
    hub.settle()
    return mail.mail_from


def test_bounce_that_goes_back_to_outside_is_refused_upstream_by_address_r5(hub: Hub) -> None:
    returned(hub, "gone@example.com")
    assert [item.rcpt for item in hub.upstream.refused if item.mail_from == ""][-1] == "bob@fabrikam.com"
    hub.stage.postfix.wait_for_log(r"to=<bob@fabrikam\.com>.* dsn=5\.7\.64, status=bounced")  # as the manual has it


def test_bounce_that_goes_back_to_outside_is_taken_by_certificate(certified: Hub) -> None:
    returned(certified, "gone@example.com")
    assert ("", "bob@fabrikam.com") in [(item.mail_from, item.rcpt) for item in certified.upstream.taken]


def test_null_senders_go_past_exchange_online_where_main_cf_says_so(boot_hub: Boot) -> None:
    hub = boot_hub()
    internet, port = hub.stage.internet, hub.upstream.port
    for setting in (
        "relayhost=",
        f"default_transport=smtp:[127.0.0.1]:{port}",
        f"relay_transport=relay:[127.0.0.1]:{port}",
        # `smtp:` on a real server, where the recipient's own MX can be looked up
        f"sender_dependent_default_transport_maps=inline:{{ {{<> = smtp:[127.0.0.1]:{internet.address[1]}}} }}",
    ):
        hub.stage.postfix.postconf("-e", setting)
    hub.stage.postfix.reload()
    returned(hub, "gone@example.com")
    assert internet.wait(lambda mail: mail.rcpt_to == ["bob@fabrikam.com"]).mail_from == ""
    assert hub.upstream.refused == []


def test_srs_domain_takes_srs_addresses_and_the_mailbox_bounces_only(hub: Hub) -> None:
    assert hub.stage.send("ann@example.com", "bounces@srs.contoso.com", PLAIN, client="198.51.100.7").accepted
    assert "postmaster@contoso.com" in hub.outcome()[0]
    reply = hub.stage.send("ann@example.com", "ann@srs.contoso.com", PLAIN, client="198.51.100.7").last
    assert reply.code == 550


# Forwarding


def test_forwarded_copies_of_any_message_are_taken_in_a_mailbox_of_the_tenant(boot_hub: Boot) -> None:
    aliases = (
        "virtual_alias_maps = socketmap:unix:gatepost/policyd.sock:reverse, inline:{\n"
        " {john@contoso.com = john.home@example.com}\n {eve@fabrikam.example = eve.home@example.com}\n"
        " {both@contoso.com = list@contoso.com, both.home@example.com} }\n"
        "virtual_alias_domains = contoso.com, fabrikam.example, srs.contoso.com\n"
    )
    hub = boot_hub("forwarder", before="mydestination = hub.contoso.com, localhost\n", after=aliases)
    pick = random.Random(4)
    with hub.stage.session(client="198.51.100.7") as smtp, logs_reported(hub.stage):
        for _ in range(100):
            mail_from = pick.choice([sender for sender in SENDERS if sender])
            rcpt = pick.choice(["john@contoso.com", "eve@fabrikam.example"])
            assert transact(smtp, mail_from, rcpt, PLAIN).accepted
    taken, refused = hub.outcome()
    assert (taken, refused) == ({"john.home@example.com", "eve.home@example.com"}, set())
    names = {
        item.mail_from.partition("+SRS=")[0] for item in hub.upstream.taken if "fabrikam.com=bob@" in item.mail_from
    }
    assert names == {"john", "bounces"}
