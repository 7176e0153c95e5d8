# SPDX-License-Identifier: GPL-3.0-or-later
"""What a client writes into its message to be taken, on the egress hop, for mail that ingress knows."""

from __future__ import annotations

from pathlib import Path

import pytest
from daemonprocess import CONTOSO
from milterstages import AT_EGRESS, EGRESS, ENFORCE, NOW, Mta, lines

from gatepost.service.hops import Hop, organization_digest

KNOWN = (
    "from mx.fabrikam.com (mx.fabrikam.com [198.51.100.9])\n\tby mail.contoso.com (Postfix) with ESMTP id 4CgSNs5Q9s; "
    "Tue, 14 Nov 2023 22:13:19 +0000 (UTC)"
)
"""The line of a message that ingress has seen; anybody whom that reached knows it."""
SIEVE = ("X-Sieve-Redirected-From", "ceo@contoso.com")
JOHN = "rfc822;john.work@contoso.com"
BOUNCES = ["bounces+SRS=HASH=G3=fabrikam.com=bob@contoso.com"]


@pytest.fixture
def hop(tmp_path: Path) -> Mta:
    mta = Mta(tmp_path, ENFORCE + EGRESS + CONTOSO)
    mta.shared.hops.put("4CgSNs5Q9s", Hop(organization_digest("contoso"), "ABCDEFGHIJ"), NOW)
    return mta


def leave(mta: Mta, *headers: tuple[str, str], reverse_path: str = "<bob@fabrikam.com>", orcpt: str = JOHN) -> None:
    session = mta.connected("127.0.0.1", 40002, macros=AT_EGRESS)
    session.mail(reverse_path)
    assert session.rcpt("<john.home@example.com>", [f"ORCPT={orcpt}"]) is None
    mta.content(session, headers)


@pytest.mark.parametrize(
    "greeting",
    ["[127.0.0.1]", "[IPv6:::1]", "x[127.0.0.1]", "[127.0.0.1])", "(localhost", "localhost", "mail.contoso.com"],
)
def test_greeting_with_an_address_of_loopback_makes_no_entrance_this_hosts_own(hop: Mta, greeting: str) -> None:
    entrance = KNOWN.replace("from mx.fabrikam.com", f"from {greeting}").replace("4CgSNs5Q9s", "0000UNKNOWN")
    leave(hop, ("Received", entrance), SIEVE, ("Received", KNOWN))
    assert hop.unhashed == BOUNCES


def test_verified_name_with_an_address_of_loopback_in_it_makes_no_entrance_this_hosts_own(hop: Mta) -> None:
    entrance = KNOWN.replace("(mx.fabrikam.com [198", "([127.0.0.1].evil.example [198")
    leave(hop, ("Received", entrance.replace("4CgSNs5Q9s", "0000UNKNOWN")), ("Received", KNOWN))
    assert hop.unhashed == BOUNCES


@pytest.mark.parametrize(
    "client",
    [
        "from localhost (localhost [127.0.0.1])",
        "from localhost (unknown [127.0.0.1])",
        "from localhost (localhost [IPv6:::1])",
        "from mail.contoso.com ([127.0.0.1])",
    ],
)
def test_copy_that_came_back_from_a_filter_on_loopback_is_still_known(hop: Mta, client: str) -> None:
    back = KNOWN.replace("from mx.fabrikam.com (mx.fabrikam.com [198.51.100.9])", client)
    leave(hop, ("Received", back.replace("4CgSNs5Q9s", "0000UNKNOWN")), ("Received", KNOWN))
    assert hop.unhashed == ["john.work+SRS=HASH=G3=fabrikam.com=bob@contoso.com"]


def test_sender_that_comes_by_by_mistake_begins_no_field_of_its_own_in_the_log(
    hop: Mta, capfd: pytest.CaptureFixture[str]
) -> None:
    leave(hop, reverse_path='<"x> not, action=pass, to=<y"@contoso.com>')
    (line,) = [line for line in lines(capfd) if "egress" in line]
    assert '<"x? not, action=pass, to=?y"@contoso.com>' in line
