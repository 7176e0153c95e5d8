# SPDX-License-Identifier: GPL-3.0-or-later
"""Chains of forwarders: SRS addresses of SRS addresses neither grow nor lose their way back."""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import Union

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from test_srs_exchange_properties import addresses

from gatepost.srs import Address, Classic, Compact, Exchange, Keys, first_hop, is_srs

TODAY = 20500
LONG = "john+SRS=44ldt=IX=fabrikam.com=bob"
COMPACT = "bounces+SRS=HnE87=C7"
SRS0 = "SRS0=vmyz=2W=fabrikam.com=bob"


def hop(text: str) -> str:
    return str(first_hop(Address.parse(text)))


@pytest.mark.parametrize(
    "text",
    [
        "bob@fabrikam.com",
        '"bob smith"@fabrikam.com',
        f"{LONG}@a.example",
        f"{COMPACT}@a.example",
        f"{SRS0}@a.example",
        "list+SRS=44ldt=I1=fabrikam.com=bob@a.example",
        "SRS0=x@a.example",
        "SRS1=x@a.example",
        '"SRS1=hash=a..b==x"@a.example',
        "x+SRS=44ldt=IX=fabrikam.com=list+SRS=foo@b.example",
        f"mary+SRS=abcdefgh=I1=a.example={LONG}@b.example",
    ],
)
def test_address_that_wraps_no_srs_address_is_left_as_it_is(text: str) -> None:
    assert hop(text) == text


@pytest.mark.parametrize("inner", [LONG, COMPACT, SRS0])
@pytest.mark.parametrize("outer", ["mary+SRS=abcdefgh=IX=a.example={}", "SRS0=abcd=2W=a.example={}"])
def test_outer_layer_is_taken_off_an_srs_address_of_any_form(outer: str, inner: str) -> None:
    assert hop(f"{outer.format(inner)}@b.example") == f"{inner}@a.example"


def test_layers_beyond_what_any_mail_can_have_are_left_on() -> None:
    layer, innermost = "a+SRS=abcdefgh=IX=a.example=", f"{SRS0}@a.example"
    assert hop(layer * 50 + innermost) == innermost
    assert hop(layer * 51 + innermost) == layer + innermost


def test_srs1_is_the_srs0_address_of_its_first_host() -> None:
    assert hop("SRS1=abcd=a.example==vmyz=2W=fabrikam.com=bob@b.example") == f"{SRS0}@a.example"
    assert hop("SRS1=abcd=a.example=-vmyz=2W=fabrikam.com=bob@b.example") == f"{SRS0.replace('=', '-', 1)}@a.example"


def test_srs1_of_an_srs0_that_cannot_be_read_is_still_that_of_its_first_host() -> None:
    assert hop("SRS1=abcd=a.example==opaque@b.example") == "SRS0=opaque@a.example"


def test_srs1_of_something_that_is_not_srs0_is_left_as_it_is() -> None:
    assert hop("SRS1=abcd=a.example=nosep@b.example") == "SRS1=abcd=a.example=nosep@b.example"


def test_all_layers_but_the_first_are_taken_off_whatever_their_forms() -> None:
    text = f"SRS1=abcd=b.example==efgh=2W=a.example={LONG}@c.example"
    assert hop(text) == f"{LONG}@a.example"
    assert hop(f"mary+SRS=abcdefgh=IX=c.example={text.rpartition('@')[0]}@d.example") == f"{LONG}@a.example"


def test_quoted_sender_comes_out_of_the_layers_as_it_was() -> None:
    first = r'"SRS0=knnY=2W=fabrikam.com=\"john doe\""@a.example'
    exchange = Exchange(Keys([b"k"]))
    assert str(first_hop(exchange.forward(Address.parse(first), "bounces", "b.example", TODAY))) == first


def test_is_srs_knows_all_forms_by_their_local_part() -> None:
    for local in (LONG, LONG.lower(), COMPACT, SRS0, "srs1-x", "SRS0+"):
        assert is_srs(local) is True
    for local in ("bob", "SRS0", "SRS2=x", "xSRS0=x", "a+SRS=x", "a+SRS=x=I1", "a+SRS=x=IX=fabrikam.com"):
        assert is_srs(local) is False


@given(st.lists(st.sampled_from(["SRS0=", "SRS1=h=", "h=AA=", "a+SRS=", "a.b=", '"', "\\", "x", "@", " "]), min_size=1))
@settings(deadline=None, max_examples=1000)
def test_first_hop_of_any_address_is_an_address_that_it_leaves_as_it_is(parts: list[str]) -> None:
    found = first_hop(Address("".join(parts), "example.com"))
    assert first_hop(found) == found


@given(addresses)
@settings(deadline=None, max_examples=300)
def test_first_hop_of_an_ordinary_address_is_itself(address: Address) -> None:
    if not is_srs(address.local):
        assert first_hop(address) == address


Form = Union[Exchange, Classic, Compact]


@dataclass
class Host:
    """A forwarder that writes one form and brings it back."""

    domain: str
    form: Form
    store: dict[str, Address] = field(default_factory=dict)

    def forward(self, sender: Address) -> Address:
        first = first_hop(sender)
        if isinstance(self.form, Exchange):
            return self.form.forward(first, "bounces", self.domain, TODAY)
        made = self.form.forward(first, self.domain, TODAY)
        if isinstance(self.form, Compact):
            self.store[self.form.token(made)] = first
        return made

    def reverse(self, address: Address) -> Address:
        if not isinstance(self.form, Compact):
            return self.form.reverse(address, TODAY)
        original = self.store[self.form.token(address)]
        self.form.verify(address, original, TODAY)
        return original


def form(name: str, secret: bytes) -> Form:
    keys = Keys([secret])
    if name == "compact":
        return Compact(keys)
    return Exchange(keys) if name == "exchange" else Classic(keys, separator=name[-1])


formats = st.lists(st.sampled_from(["exchange", "srs0=", "srs0-", "compact"]), min_size=2, max_size=4)
senders = st.sampled_from(
    ["bob@fabrikam.com", '"john \\"doe"@fabrikam.com', '"a@b"@[192.0.2.1]', f"{LONG}@o365.example"]
)


@given(formats, senders)
@settings(deadline=None, max_examples=60)
def test_fifty_hops_among_hosts_do_not_grow_and_every_address_finds_the_first_sender(
    names: list[str], sender: str
) -> None:
    hosts = {f"{i}.example": Host(f"{i}.example", form(name, b"key %d" % i)) for i, name in enumerate(names)}
    ring = list(hosts.values())
    address = Address.parse(sender)
    for i in range(50):
        address = Address.parse(str(ring[i % len(ring)].forward(address)))
        assert len(str(address)) <= len(sender) + 2 * 45
        back, steps = address, 0
        while back.domain in hosts:
            back, steps = hosts[back.domain].reverse(back), steps + 1
        assert str(back) == sender
        assert steps <= 2 or "compact" in names  # what a compact address stands for, its maker alone can see


@pytest.mark.parametrize("name", ["exchange", "srs0="])
def test_two_hosts_in_a_loop_come_to_addresses_that_repeat(name: str) -> None:
    a, b = Host("a.example", form(name, b"a")), Host("b.example", form(name, b"b"))
    address, seen = Address("bob", "fabrikam.com"), []
    for _ in range(4):
        address = a.forward(address)
        address = b.forward(address)
        seen.append(address)
    assert len(set(seen[1:])) == 1
