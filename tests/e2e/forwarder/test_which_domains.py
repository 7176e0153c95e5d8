# SPDX-License-Identifier: GPL-3.0-or-later
"""Which senders are rewritten, and to which domain: lists, SPF, an SRS domain for a hosted domain."""

from __future__ import annotations

from collections.abc import Iterator
from typing import TYPE_CHECKING

import pytest
from nameserver import NameServer

from .test_bounces import NDR, TO_BOB

if TYPE_CHECKING:
    from .conftest import Boot, Forwarder

HOME = "john.home@example.com"
BOB_REWRITTEN = ("john.work+SRS=HASH=TT=fabrikam.com=bob@contoso.com", HOME)


def test_senders_of_the_lists_leave_as_they_are_and_a_changed_list_is_loaded_by_itself(boot_forwarder: Boot) -> None:
    settings = '\n[srs]\nexclude = ["tailspin.example"]\nexclude_file = "exclude"\n'

    def configuration(text: str) -> str:
        return text + settings

    with boot_forwarder(configuration=lambda text: text) as forwarder:
        stage = forwarder.stage
        listed = stage.configuration.with_name("exclude")
        listed.write_text("# partners\n*.partner.example\n")
        stage.configuration.write_text(configuration(stage.configuration.read_text()))
        assert stage.reload() == "configuration reloaded"
        for sender in ("ann@tailspin.example", "a@mail.partner.example", "a@partner.example", "bob@fabrikam.com"):
            forwarder.bob_writes("john.work@contoso.com", sender=sender)
        assert forwarder.left() == [
            ("a@mail.partner.example", HOME),
            ("ann@tailspin.example", HOME),
            BOB_REWRITTEN,
            ("john.work+SRS=HASH=TT=partner.example=a@contoso.com", HOME),
        ]
        start = len(stage.log())
        stage.internet.messages.clear()
        listed.write_text("fabrikam.com\n")
        stage.wait_for_log(r"configuration reloaded$", start=start)
        forwarder.bob_writes("john.work@contoso.com")
        assert forwarder.left() == [("bob@fabrikam.com", HOME)]


@pytest.fixture(scope="module")
def with_spf(boot_forwarder: Boot) -> Iterator[Forwarder]:
    records = {
        "fabrikam.com": {"TXT": ['"v=spf1 ip4:198.51.100.7 -all"']},
        "partner.example": {"TXT": ['"v=spf1 ip4:192.0.2.10 -all"']},
        "nothing.example": {"A": ["192.0.2.99"]},
    }
    with NameServer(records, silent=["silent.example"]) as server:
        host, port = server.address
        settings = (
            '\n[srs]\nonly_spf = true\noutgoing_addresses = ["192.0.2.10"]\n'
            f'[dns]\nnameservers = ["{host}:{port}"]\n'
        )
        with boot_forwarder(configuration=lambda text: text + settings) as forwarder:
            yield forwarder


@pytest.mark.parametrize(
    ("sender", "left"),
    [
        ("bob@fabrikam.com", BOB_REWRITTEN[0]),
        ("a@partner.example", "a@partner.example"),
        ("a@nothing.example", "a@nothing.example"),
        ("a@silent.example", "john.work+SRS=HASH=TT=silent.example=a@contoso.com"),
    ],
    ids=["SPF without us", "SPF with us", "no SPF", "DNS silent"],
)
def test_only_a_sender_whose_spf_would_fail_is_rewritten(with_spf: Forwarder, sender: str, left: str) -> None:
    with_spf.bob_writes("john.work@contoso.com", sender=sender)
    assert with_spf.left() == [(left, HOME)]
    with_spf.forget()


def test_mailbox_of_a_hosted_domain_forwards_in_that_domains_srs_domain(boot_forwarder: Boot) -> None:
    hosted = '[[organization.accepted_domain]]\ndomain = "tailspin.example"\nsrs_domain = "srs.tailspin.example"\n'
    with boot_forwarder(
        after="virtual_alias_maps = socketmap:unix:gatepost/policyd.sock:reverse,"
        f" inline:{{ {{carla@tailspin.example = {HOME}}}, {{john.work@contoso.com = {HOME}}} }}\n"
        "virtual_alias_domains = tailspin.example, srs.tailspin.example\n",
        configuration=lambda text: text.replace("# Hosts that send mail of yours", hosted + "\n# Hosts", 1),
    ) as forwarder:
        forwarder.bob_writes("john.work@contoso.com")
        forwarder.bob_writes("carla@tailspin.example")
        assert forwarder.left() == [
            ("carla+SRS=HASH=TT=fabrikam.com=bob@srs.tailspin.example", HOME),
            BOB_REWRITTEN,
        ]
        p1 = next(mail.mail_from for mail in forwarder.stage.internet.messages if mail.mail_from.startswith("carla"))
        forwarder.stage.internet.messages.clear()
        forwarder.bob_writes(p1, sender="", message=NDR, client="203.0.113.9")
        assert forwarder.left() == [TO_BOB]
