# SPDX-License-Identifier: GPL-3.0-or-later
"""Mail that others have rewritten already, or we have: forwarded once more, its bounce finds the first sender."""

from __future__ import annotations

from collections.abc import Iterator
from typing import TYPE_CHECKING

import pytest
from stages import shape

from .test_bounces import NDR

if TYPE_CHECKING:
    from .conftest import Boot, Forwarder


@pytest.fixture(scope="module", params=["auto", "long"])
def form(request: pytest.FixtureRequest) -> str:
    return f'\n[srs]\nform = "{request.param}"\n'


@pytest.fixture(scope="module")
def contoso(boot_forwarder: Boot, form: str) -> Iterator[Forwarder]:
    with boot_forwarder(configuration=lambda text: text + form) as forwarder:
        yield forwarder


@pytest.fixture(scope="module")
def tailspin(boot_forwarder: Boot, form: str) -> Iterator[Forwarder]:
    """A second server, with gatepost and keys of its own."""
    with boot_forwarder(
        after="myhostname = mail.tailspin.example\nmydestination = mail.tailspin.example, localhost, tailspin.example\n"
        "virtual_alias_maps = socketmap:unix:gatepost/policyd.sock:reverse,"
        " inline:{ {carla@tailspin.example = john.work@contoso.com} }\nvirtual_alias_domains =\n",
        configuration=lambda text: text.replace("contoso.com", "tailspin.example") + form,
    ) as forwarder:
        yield forwarder


@pytest.fixture(autouse=True)
def _forget(contoso: Forwarder) -> Iterator[None]:
    yield
    contoso.forget()


def take(forwarder: Forwarder) -> str:
    """Return the P1 of the one message that has left, and forget it."""
    p1: str = forwarder.only_mail().mail_from
    forwarder.stage.internet.messages.clear()
    return p1


def returned_to(forwarder: Forwarder, p1: str) -> str:
    """Send an NDR to *p1*; return the recipient that it leaves for."""
    forwarder.bob_writes(p1, sender="", message=NDR, client="203.0.113.9")
    (rcpt,) = forwarder.only_mail().rcpt_to
    forwarder.stage.internet.messages.clear()
    return rcpt


def test_own_rewritten_mail_that_comes_back_is_not_rewritten_again(contoso: Forwarder) -> None:
    contoso.bob_writes("john.work@contoso.com")
    p1 = take(contoso)
    contoso.bob_writes("carla@contoso.com", sender=p1)
    assert take(contoso) == p1
    assert returned_to(contoso, p1) == "bob@fabrikam.com"


def test_two_gateposts_that_forward_to_each_other_make_no_growing_address(
    contoso: Forwarder, tailspin: Forwarder
) -> None:
    p1, rounds = "bob@fabrikam.com", 4
    for _ in range(rounds):
        contoso.bob_writes("john.work@contoso.com", sender=p1)
        p1 = take(contoso)
        tailspin.bob_writes("carla@tailspin.example", sender=p1)
        p1 = take(tailspin)
        assert len(p1) <= 130
    for _ in range(2 * rounds):
        if p1 != "bob@fabrikam.com":
            p1 = returned_to(contoso if p1.endswith("@contoso.com") else tailspin, p1)
    assert p1 == "bob@fabrikam.com"


@pytest.mark.parametrize(
    "foreign",
    [
        "bounces+SRS=44ldt=IX@tailspin.example",
        "ann+SRS=HnE87=C7=fabrikam.com=bob@tailspin.example",
        "SRS0=vmyz=2W=fabrikam.com=bob@tailspin.example",
        "SRS1=xs1E=first.example==TGjY=2W=orig.example=al@t.example",
    ],
    ids=["Office 365, compact", "Office 365, long", "SRS0", "SRS1"],
)
def test_bounce_of_mail_that_another_system_rewrote_goes_back_to_that_system(contoso: Forwarder, foreign: str) -> None:
    contoso.bob_writes("john.work@contoso.com", sender=foreign)
    p1 = take(contoso)
    assert p1.startswith(("john.work+SRS=", "bounces+SRS="))
    first_hop = "SRS0=TGjY=2W=orig.example=al@first.example" if foreign.startswith("SRS1") else foreign
    assert returned_to(contoso, p1) == first_hop


def test_chain_that_office_365_prolonged_is_rewritten_from_its_first_sender(contoso: Forwarder) -> None:
    contoso.bob_writes("john.work@contoso.com")
    own = take(contoso)
    local, _, domain = own.partition("@")
    contoso.bob_writes("carla@contoso.com", sender=f"ann+SRS=HnE87=C7={domain}={local}@tailspin.example")
    p1 = take(contoso)
    assert shape(p1) == "carla+SRS=HASH=TT=fabrikam.com=bob@contoso.com"
    assert returned_to(contoso, p1) == "bob@fabrikam.com"


def test_wrapped_address_of_ours_that_we_never_made_names_no_mailbox_of_ours(contoso: Forwarder) -> None:
    forged = "x+SRS=aaaaa=JL=contoso.com=ceo+SRS=aaaaaaaa=JL=d.example=u@evil.example"
    contoso.bob_writes("john.work@contoso.com", sender=forged)
    assert not take(contoso).startswith("ceo+")
