# SPDX-License-Identifier: GPL-3.0-or-later
"""SRS0 and SRS1 beside Debian's Mail::SRS and postsrsd, the same secret and the same day on both sides."""

from __future__ import annotations

import itertools
from collections.abc import Iterator, Sequence
from contextlib import ExitStack
from typing import Optional, Union

import peers
import pytest

from gatepost.srs import Address, SrsError
from gatepost.srs.classic import Classic
from gatepost.srs.keys import Keys

SECRET = "tops3cr3t"
SRS_DOMAIN = "relay.example"
LAST_DAY = 20479
"""2026-01-26, whose stamp is 77; that of the next day is AA."""

ADDRESSES = [
    "bob@fabrikam.com",
    "Bob.Smith@Fabrikam.COM",
    "BOB@FABRIKAM.COM",
    "b@fabrikam.com",
    "bob@f",
    "bob@mail.sub.fabrikam.com",
    "bob@sub.relay.example",
    # plus and VERP
    "bob+lunch@fabrikam.com",
    "bob+@fabrikam.com",
    "+bob@fabrikam.com",
    "list-bounces+john=contoso.com@lists.fabrikam.com",
    "bounces-12345-john.doe=contoso.com@bounces.fabrikam.com",
    "prvs=1234abcdef=bob@fabrikam.com",
    "msprvs1=18000abcdef=bounces-12345@bounces.fabrikam.com",
    "bounce-md_3000_5f.v1-0a@mailer.fabrikam.com",
    "0100018abc-0def-4000-000000@ses.fabrikam.com",
    "bounces+SRS=44ldt=IX=example.net=alice@fabrikam.com",
    # the separators
    "bob=@fabrikam.com",
    "=bob@fabrikam.com",
    "bob==x@fabrikam.com",
    "a=b=c=d@fabrikam.com",
    "-bob@fabrikam.com",
    "bob-@fabrikam.com",
    # specials
    "bob/x@fabrikam.com",
    "bob%example.com@fabrikam.com",
    "example.com!bob@fabrikam.com",
    "o'brien@fabrikam.com",
    "!#$%&*+-/=?^_`{|}~@fabrikam.com",
    # no ASCII
    "bob@xn--mnchen-3ya.example",
    "jörg@fabrikam.com",
    "Ärger@fabrikam.com",
    "jörg@münchen.example",
    "用户@例子.example",
    # long
    f"{'x' * 64}@fabrikam.com",
    f"{'x' * 64}@{'y' * 60}.{'z' * 60}.example",
    # nearly SRS
    "srs@fabrikam.com",
    "srs.user@fabrikam.com",
    "SRS2=a=b@fabrikam.com",
    "SRS0x=a@fabrikam.com",
    "SRS00=a@fabrikam.com",
]

FOREIGN = {
    "SRS0=vmyz=2W=example.net=alice@fabrikam.com": "SRS0=vmyz=2W=example.net=alice@fabrikam.com",
    "SRS0+vmyz=2W=example.net=alice@fabrikam.com": "SRS0+vmyz=2W=example.net=alice@fabrikam.com",
    "SRS0-vmyz=2W=example.net=alice@fabrikam.com": "SRS0-vmyz=2W=example.net=alice@fabrikam.com",
    "srs0=vmyz=2w=example.net=Alice@fabrikam.com": "SRS0=vmyz=2w=example.net=Alice@fabrikam.com",
    "SRS0=vmyz7BxQ=2W=example.net=a=b=c@fabrikam.com": "SRS0=vmyz7BxQ=2W=example.net=a=b=c@fabrikam.com",
    "SRS0=opaque@fabrikam.com": "SRS0=opaque@fabrikam.com",
    "SRS1=abcd=first.example==vmyz=2W=example.net=alice@fabrikam.com": "SRS0=vmyz=2W=example.net=alice@first.example",
    "SRS1+abcd=first.example=+vmyz=2W=example.net=alice@fabrikam.com": "SRS0+vmyz=2W=example.net=alice@first.example",
    "srs1-abcd=first.example=-vmyz=2W=example.net=alice@fabrikam.com": "SRS0-vmyz=2W=example.net=alice@first.example",
}
"""SRS senders of other hosts, and where the bounce of what is made of them goes: to the first host, by its SRS0."""

QUOTED = {
    "bob@[192.0.2.1]": "bob@[192.0.2.1]",
    '"john doe"@fabrikam.com': '"john doe"@fabrikam.com',
    '"a\\"b"@fabrikam.com': '"a\\"b"@fabrikam.com',
    '"(bob)"@fabrikam.com': '"(bob)"@fabrikam.com',
    "bob.@fabrikam.com": '"bob."@fabrikam.com',
    "bob..x@fabrikam.com": '"bob..x"@fabrikam.com',
}
"""Senders that need quotes, or whose SRS address does, and how we spell the original. See the tests below."""


class Ours:
    """The classic format as the peers of peers.py show theirs: lists of addresses, None for what is refused."""

    def __init__(self, secret: str, srs_domain: str, day: int, separator: str = "=", hash_length: int = 4) -> None:
        keys = Keys([secret.encode()])
        self._classic = Classic(keys, separator=separator, hash_length=hash_length, hash_minimum=hash_length)
        self._srs_domain = srs_domain
        self._day = day

    def __enter__(self) -> Ours:
        return self

    def __exit__(self, *_: object) -> None:
        pass

    def forward(self, addresses: Sequence[str]) -> list[Optional[str]]:
        return [self._forward(address) for address in addresses]

    def reverse(self, addresses: Sequence[str]) -> list[Optional[str]]:
        return [self._reverse(address) for address in addresses]

    def _forward(self, address: str) -> Optional[str]:
        try:
            return str(self._classic.forward(Address.parse(address), self._srs_domain, self._day))
        except SrsError:
            return None

    def _reverse(self, address: str) -> Optional[str]:
        try:
            return str(self._classic.reverse(Address.parse(address), self._day))
        except SrsError:
            return None


Host = Union[Ours, peers.MailSrs, peers.Postsrsd]
PEERS = [peers.MailSrs, peers.Postsrsd]
SETTINGS = list(itertools.product("=+-", (4, 8), (LAST_DAY, LAST_DAY + 1)))


def refuse_none(answers: Sequence[Optional[str]]) -> list[str]:
    """Return *answers*, of which none may be missing."""
    assert None not in answers, answers
    return [answer for answer in answers if answer is not None]


@pytest.fixture(scope="module", params=itertools.product(PEERS, SETTINGS), ids=str)
def pair(request: pytest.FixtureRequest) -> Iterator[tuple[Ours, Host]]:
    kind, (separator, hash_length, day) = request.param
    with kind(SECRET, SRS_DOMAIN, day, separator, hash_length) as peer:
        yield Ours(SECRET, SRS_DOMAIN, day, separator, hash_length), peer


def test_every_plain_address_is_rewritten_as_the_peer_rewrites_it(pair: tuple[Ours, Host]) -> None:
    ours, peer = pair
    assert ours.forward(ADDRESSES) == peer.forward(ADDRESSES)


def test_peer_brings_back_what_we_have_rewritten(pair: tuple[Ours, Host]) -> None:
    ours, peer = pair
    assert peer.reverse(refuse_none(ours.forward(ADDRESSES))) == ADDRESSES


def test_we_bring_back_what_the_peer_has_rewritten(pair: tuple[Ours, Host]) -> None:
    ours, peer = pair
    assert ours.reverse(refuse_none(peer.forward(ADDRESSES))) == ADDRESSES


def test_foreign_srs_senders_become_the_peers_srs1_and_go_back_to_the_first_host(pair: tuple[Ours, Host]) -> None:
    ours, peer = pair
    rewritten = refuse_none(ours.forward(list(FOREIGN)))
    assert rewritten == peer.forward(list(FOREIGN))
    assert all(address.startswith("SRS1") for address in rewritten)
    assert ours.reverse(rewritten) == peer.reverse(rewritten) == list(FOREIGN.values())


def test_sender_in_the_srs_domain_is_left_alone_by_both(pair: tuple[Ours, Host]) -> None:
    ours, peer = pair
    assert ours.forward(["bob@relay.example"]) == peer.forward(["bob@relay.example"]) == ["bob@relay.example"]


def test_changed_address_is_refused_by_both(pair: tuple[Ours, Host]) -> None:
    ours, peer = pair
    (made,) = refuse_none(ours.forward(["bob@fabrikam.com"]))
    forged = [made.replace("bob", "eve"), made.replace("fabrikam.com", "fabrikam.net"), made[:5] + made[6:]]
    assert ours.reverse(forged) == peer.reverse(forged) == [None, None, None]


# Differences: what the peers do and we don't.


def test_address_that_needs_quotes_is_quoted_as_a_whole_and_not_in_its_middle(pair: tuple[Ours, Host]) -> None:
    ours, peer = pair
    for theirs in refuse_none(peer.forward(list(QUOTED)[:4])):
        with pytest.raises(SrsError):  # SRS0=hash=stamp=fabrikam.com="john doe"@relay.example: no address (RFC 5321)
            Address.parse(theirs)
    for made in refuse_none(ours.forward(list(QUOTED))):
        assert made.startswith('"SRS0')
        assert made.endswith('"@relay.example')


def test_peer_refuses_an_address_that_is_quoted_as_a_whole_and_we_bring_it_back(pair: tuple[Ours, Host]) -> None:
    ours, peer = pair
    made = refuse_none(ours.forward(list(QUOTED)))
    assert peer.reverse(made) == [None] * len(QUOTED)
    assert ours.reverse(made) == list(QUOTED.values())


def test_we_bring_back_what_an_mta_makes_of_the_peers_quotes_and_the_peer_does_not(pair: tuple[Ours, Host]) -> None:
    ours, peer = pair
    (theirs,) = refuse_none(peer.forward(['"john doe"@fabrikam.com']))
    mended = f'"{theirs.replace(chr(34), "").replace("@", chr(34) + "@")}'
    assert ours.reverse([mended]) == ['"john doe"@fabrikam.com']
    assert peer.reverse([mended]) == [None]


def test_srs1_that_names_no_first_host_is_refused_where_mail_srs_makes_garbage_of_it() -> None:
    settings = (SECRET, SRS_DOMAIN, LAST_DAY)
    (garbage,) = refuse_none(peers.MailSrs(*settings).forward(["SRS1=a=b@fabrikam.com"]))
    assert garbage.endswith("=b=@relay.example")
    assert Ours(*settings).forward(["SRS1=a=b@fabrikam.com"]) == [None]


def test_mailbox_named_srs0_is_an_ordinary_one_where_postsrsd_makes_an_srs1_that_stands_for_nothing() -> None:
    settings = (SECRET, SRS_DOMAIN, LAST_DAY)
    (made,) = Ours(*settings).forward(["SRS0@fabrikam.com"])
    assert made == "SRS0=GZlD=77=fabrikam.com=SRS0@relay.example"
    assert peers.MailSrs(*settings).forward(["SRS0@fabrikam.com"]) == [made]
    with peers.Postsrsd(*settings) as postsrsd:
        assert postsrsd.forward(["SRS0@fabrikam.com"]) == ["SRS1=0p4F=fabrikam.com=@relay.example"]
        assert postsrsd.reverse([made]) == ["SRS0@fabrikam.com"]


# Days


@pytest.mark.parametrize("kind", PEERS)
@pytest.mark.parametrize("today", [LAST_DAY, LAST_DAY + 1, LAST_DAY + 10, LAST_DAY + 500])
@pytest.mark.parametrize(
    ("age_days", "good"), [(0, True), (1, True), (21, True), (22, False), (500, False), (-1, False)]
)
def test_stamp_is_good_for_21_days_to_both(kind: type[Host], today: int, age_days: int, good: bool) -> None:
    bob = "bob@fabrikam.com"
    (made,) = refuse_none(Ours(SECRET, SRS_DOMAIN, today - age_days).forward([bob]))
    expected = [bob] if good else [None]
    assert Ours(SECRET, SRS_DOMAIN, today).reverse([made]) == expected
    with kind(SECRET, SRS_DOMAIN, today) as peer:
        assert peer.reverse([made]) == expected


# Chains


@pytest.mark.parametrize("separators", ["===", "+-=", "-+-"])
@pytest.mark.parametrize(
    "kinds",
    [
        (Ours, peers.MailSrs, peers.Postsrsd),
        (peers.Postsrsd, Ours, peers.MailSrs),
        (peers.MailSrs, peers.Postsrsd, Ours),
        (Ours, peers.Postsrsd, Ours),
    ],
)
@pytest.mark.parametrize("sender", ["bob@fabrikam.com", "Bob+a=b@fabrikam.com", "jörg@fabrikam.com"])
def test_bounce_of_a_chain_of_three_goes_to_the_first_host_and_from_there_to_the_sender(
    kinds: Sequence[type[Host]], separators: str, sender: str
) -> None:
    domains = ["one.example", "two.example", "three.example"]
    with ExitStack() as stack:
        hosts: list[Host] = []
        for kind, secret, domain, separator in zip(kinds, ("one", "two", "three"), domains, separators):
            host: Host = kind(secret, domain, LAST_DAY, separator)
            stack.enter_context(host)
            hosts.append(host)
        first, second, third = hosts
        at_first = refuse_none(first.forward([sender]))
        at_third = refuse_none(third.forward(refuse_none(second.forward(at_first))))
        assert at_third[0].count("SRS") == 1
        assert at_third[0].endswith("@three.example")
        assert third.reverse(at_third) == at_first
        assert first.reverse(at_first) == [sender]
