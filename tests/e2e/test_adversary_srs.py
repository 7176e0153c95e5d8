# SPDX-License-Identifier: GPL-3.0-or-later
"""An attacker with SRS addresses, right and forged, against a relay for two organisations on a real Postfix.

Whatever he makes of them: only a bounce (null sender) to a right address leaves, to the sender that it stands for.
Nothing else leaves, and nothing signed for one organisation counts in a domain of the other.
"""

from __future__ import annotations

import time
from collections.abc import Iterator
from typing import Callable

import pytest
from stages import NDR

from gatepost.admin.stage import Stage, Transcript, command
from gatepost.service.secret import read_keys
from gatepost.srs import Address, Classic, Exchange

STRANGER = "198.51.100.7"
VICTIM = "victim@example.org"
HUB = """
mynetworks = 127.0.0.0/8, 192.0.2.0/24
relay_domains = contoso.com, fabrikam.com, srs.fabrikam.com
relay_transport = relay:[mailbox.contoso.com]:25
"""
# Postfix completes what has no domain with contoso.com, and a name without a dot with fabrikam.com.
COMPLETING = "myorigin = contoso.com\nmydomain = fabrikam.com\nappend_dot_mydomain = yes\n"
FABRIKAM = """
[[organization]]
name = "fabrikam"
srs_domain = "srs.fabrikam.com"
[[organization.accepted_domain]]
domain = "fabrikam.com"
default = true
[[organization.connector]]
name = "office"
sender_ip_addresses = ["203.0.113.0/24"]
[srs]
also_reverse = ["srs0"]
failures_per_hour = 0
"""
FORGED, EXPIRED, UNKNOWN = (
    "SRS address with a wrong hash",
    "SRS address that has expired",
    "SRS address that is not known",
)
ONLY_BOUNCES = "550 5.7.1 <DATA>: Data command rejected: This address takes only bounces (null sender)"
NOT_ASCII = "SMTPUTF8"


def two_organizations(text: str) -> str:
    return text.replace('mode = "monitor"', 'mode = "enforce"') + FABRIKAM


@pytest.fixture(scope="module")
def relay(boot: Callable[..., Stage]) -> Stage:
    return boot("relay-hub", before=HUB, after=COMPLETING, configuration=two_organizations)


@pytest.fixture(autouse=True)
def _forget(relay: Stage) -> Iterator[None]:
    yield
    relay.postfix.wait_until_idle()
    assert relay.postfix.queue() == []
    relay.internet.messages.clear()
    relay.inside.messages.clear()


def day(days_ago: int = 0) -> int:
    return int(time.time()) // 86400 - days_ago


def srs(
    stage: Stage, original: str = VICTIM, domain: str = "contoso.com", days_ago: int = 0, mailbox: str = "bounces"
) -> str:
    """Return the address that this host gave *original* so many days ago."""
    exchange = Exchange(read_keys(stage.state_directory / "srs.secret"), 8, 21)
    return str(exchange.forward(Address.parse(original), mailbox, domain, day(days_ago)))


def srs0(stage: Stage, original: str = VICTIM) -> str:
    classic = Classic(read_keys(stage.state_directory / "srs.secret"))
    return str(classic.forward(Address.parse(original), "contoso.com", day()))


def parts(address: str) -> tuple[str, str, str]:
    """Return local part, hash and stamp."""
    local = address.rpartition("@")[0]
    _, hash_, stamp, _ = local.split("=", 3)
    return local, hash_, stamp


def write(stage: Stage, rcpt: str, sender: str = "") -> Transcript:
    options = "" if (rcpt + sender).isascii() else NOT_ASCII
    return stage.send(sender, rcpt, NDR, client=STRANGER, mail_options=options)


def went(stage: Stage) -> list[tuple[str, str]]:
    """Return P1 and recipient of all that has left or gone inside, once the queue is at rest."""
    stage.postfix.wait_until_idle()
    return [(mail.mail_from, rcpt) for mail in stage.internet.messages + stage.inside.messages for rcpt in mail.rcpt_to]


# A right address, spelled in every way that Postfix reads as that address


def encoded(local: str) -> str:
    return local.replace("+", "%2B").replace("=", "%3D")


RIGHT = {
    "as it was made": lambda local, domain: f"{local}@{domain}",
    "in upper case": lambda local, domain: f"{local}@{domain}".upper(),
    "in lower case": lambda local, domain: f"{local}@{domain}".lower(),
    "final dot": lambda local, domain: f"{local}@{domain}.",
    "quoted": lambda local, domain: f'"{local}"@{domain}',
    "percent-encoded": lambda local, domain: f"{encoded(local)}@{domain}",
    "source route": lambda local, domain: f"@example.com:{local}@{domain}",
    "two source routes": lambda local, domain: f"@example.com:@example.net:{local}@{domain}",
    "source route behind a comma": lambda local, domain: f",@example.com:{local}@{domain}",
    "source route behind nothing": lambda local, domain: f'""@example.com:{local}@{domain}',
    "source route without domain": lambda local, domain: f";@example.com:{local}",
    "source route to a bang path": lambda local, domain: f";@example.com:{domain}!{local}",
    "source route, percent-encoded": lambda local, domain: f";@example.com:{encoded(local)}@{domain}",
    "bang path, percent-encoded": lambda local, domain: f"{domain}!{encoded(local)}",
    "comment": lambda local, domain: f"{local}(x)@{domain}",
    "second at sign at the end": lambda local, domain: f"{local}@{domain}@",
    "bang path": lambda local, domain: f"{domain}!{local}",
    "percent hack without domain": lambda local, domain: f"{local}%{domain}",
}
COMPLETED = [
    *("no domain", "no dot", "no dot, percent-encoded"),
    *("bang path without dot", "percent without dot", "quoted without domain"),
]


@pytest.mark.parametrize("spelling", RIGHT)
@pytest.mark.parametrize("sender", ["eve@evil.example", "app@contoso.com", "eve@fabrikam.com"])
def test_right_address_in_any_spelling_takes_no_mail_with_a_sender(relay: Stage, spelling: str, sender: str) -> None:
    local, _, domain = srs(relay).partition("@")
    transcript = write(relay, RIGHT[spelling](local, domain), sender)
    assert not transcript.accepted
    assert went(relay) == []


@pytest.mark.parametrize("spelling", RIGHT)
def test_bounce_to_a_right_address_in_any_spelling_reaches_its_sender_or_nobody(relay: Stage, spelling: str) -> None:
    local, _, domain = srs(relay).partition("@")
    transcript = write(relay, RIGHT[spelling](local, domain))
    found = [(p1, rcpt.lower()) for p1, rcpt in went(relay)]
    assert found == ([("", VICTIM)] if transcript.accepted else [])


@pytest.mark.parametrize("sender", ["", "eve@evil.example"])
@pytest.mark.parametrize("spelling", COMPLETED)
def test_right_address_that_postfix_would_complete_with_our_domain_is_refused(
    relay: Stage, spelling: str, sender: str
) -> None:
    local, ours = parts(srs(relay))[0], parts(srs(relay, domain="srs.fabrikam.com"))[0]
    rcpt = {
        "no domain": local,
        "no dot": f"{ours}@srs",
        "no dot, percent-encoded": f"{encoded(ours)}@srs",
        "bang path without dot": f"srs!{ours}",
        "percent without dot": f"{ours}%srs",
        "quoted without domain": f'"{local}"',
    }[spelling]
    assert write(relay, rcpt, sender).last.code == 550
    assert went(relay) == []


def test_right_address_goes_on_working_beside_them(relay: Stage) -> None:
    assert write(relay, srs(relay, domain="srs.fabrikam.com")).accepted
    assert went(relay) == [("", VICTIM)]


def test_address_replayed_many_times_reaches_its_sender_alone(relay: Stage) -> None:
    address = srs(relay)
    assert all(write(relay, rcpt).accepted for rcpt in (address, address, address))
    assert set(went(relay)) == {("", VICTIM)}


def test_several_right_addresses_in_one_message_take_none_with_a_sender(relay: Stage) -> None:
    transcript = relay.send("eve@evil.example", [srs(relay), srs(relay), srs(relay, "b@c.example")], client=STRANGER)
    assert str(transcript.data) == ONLY_BOUNCES
    assert went(relay) == []


def test_right_address_takes_no_mail_with_a_sender_by_bdat_either(relay: Stage) -> None:
    with relay.session(client=STRANGER) as smtp:
        command(smtp, "MAIL FROM:<eve@evil.example>")
        assert command(smtp, f"RCPT TO:<{srs(relay)}>").code == 250
        assert str(command(smtp, f"BDAT {len(NDR)} LAST\r\n".encode() + NDR[:-2])) == ONLY_BOUNCES
    assert went(relay) == []


# Changed in one place

CHANGED: dict[str, tuple[str, Callable[[Stage], str]]] = {
    "mailbox": (FORGED, lambda s: srs(s).replace("bounces+", "ceo+")),
    "mailbox with a detail": (FORGED, lambda s: srs(s).replace("bounces+", "bounces+x+")),
    "mailbox with a long s": (FORGED, lambda s: srs(s).replace("bounces+", "bounce\u017f+")),
    "hash": (FORGED, lambda s: srs(s).replace(parts(srs(s))[1], "aaaaaaaa")),
    "hash one shorter": (FORGED, lambda s: srs(s).replace(parts(srs(s))[1], parts(srs(s))[1][:-1])),
    "hash of five": (FORGED, lambda s: srs(s).replace(parts(srs(s))[1], parts(srs(s))[1][:5])),
    "hash one longer": (FORGED, lambda s: srs(s).replace(parts(srs(s))[1], parts(srs(s))[1] + "a")),
    "stamp": (FORGED, lambda s: srs(s).replace(f"={parts(srs(s))[2]}=", "=AA=")),
    "user one shorter": (FORGED, lambda s: srs(s).replace("=victim@", "=victi@")),
    "user with a look-alike": (FORGED, lambda s: srs(s).replace("=victim@", "=vi\u0441tim@")),
    "user with a zero-width space": (FORGED, lambda s: srs(s).replace("=victim@", "=vic\u200btim@")),
    "domain": (FORGED, lambda s: srs(s).replace("=example.org=", "=example.com=")),
    "domain and user moved": (FORGED, lambda s: srs(s).replace("=example.org=victim@", "=example.or=gvictim@")),
    "a forged address around it": (FORGED, lambda s: f"x+SRS=aaaaaaaa=AA=contoso.com={srs(s)}"),
    "a second mark in front": (FORGED, lambda s: srs(s).replace("+SRS=", "+SRS=aaaaaaaa=AA=x.example=u+SRS=")),
    "22 days old": (EXPIRED, lambda s: srs(s, days_ago=22)),
    "of the day after tomorrow": (EXPIRED, lambda s: srs(s, days_ago=-2)),
    "of the stamp's last time": (EXPIRED, lambda s: srs(s, days_ago=1023)),
    "token that nobody made": (UNKNOWN, lambda s: f"bounces+SRS=aaaaaaaaaaaaaaaa={parts(srs(s))[2]}@contoso.com"),
    "SRS0 with its hash": (FORGED, lambda s: "SRS0={1}={2}=example.org=victim@contoso.com".format(*parts(srs(s)))),
    "SRS0 hash of three": (FORGED, lambda s: srs0(s).replace(parts(srs0(s))[1], parts(srs0(s))[1][:3])),
    "SRS0 user": (FORGED, lambda s: srs0(s).replace("=victim@", "=victin@")),
    "SRS1 of an SRS0": (FORGED, lambda s: f"SRS1={parts(srs0(s))[1]}=evil.example={srs0(s)[4:]}"),
    "signed for the other's domain": (FORGED, lambda s: parts(srs(s, domain="srs.fabrikam.com"))[0] + "@contoso.com"),
    "signed for ours, at the other's": (FORGED, lambda s: parts(srs(s))[0] + "@srs.fabrikam.com"),
}


@pytest.mark.parametrize("changed", CHANGED)
def test_changed_address_is_refused_whoever_writes_to_it(relay: Stage, changed: str) -> None:
    words, made = CHANGED[changed]
    for sender in ("", "eve@evil.example"):
        reply = str(write(relay, made(relay), sender).last)
        assert reply.startswith("550 5.1.1 ")
        assert words in reply
    assert went(relay) == []


@pytest.mark.parametrize("spelling", ["bang path", "percent hack without domain", "second at sign at the end"])
def test_forged_address_that_postfix_must_rewrite_first_is_refused(relay: Stage, spelling: str) -> None:
    local, _, domain = srs(relay).replace("=victim@", "=other@").partition("@")
    assert FORGED in str(write(relay, RIGHT[spelling](local, domain)).last)
    assert went(relay) == []


# What is no address of ours is nobody's way out

ELSEWHERE: dict[str, Callable[[Stage], str]] = {
    "outside": lambda s: parts(srs(s))[0] + "@example.com",
    "below our domain": lambda s: parts(srs(s))[0] + "@a.contoso.com",
    "look-alike domain": lambda s: parts(srs(s))[0] + "@contos\u043e.com",
    "full-width domain": lambda s: parts(srs(s))[0] + "@\uff43ontoso.com",
    "this Postfix": lambda s: parts(srs(s))[0] + "@mail.contoso.com",
    "address literal": lambda s: parts(srs(s))[0] + "@[127.0.0.1]",
    "percent hack": lambda s: srs(s).replace("@", "%") + "@fabrikam.com",
    "original that is a route": lambda s: srs(s, "victim%evil.example@example.org"),
    "original that is a bang path": lambda s: srs(s, "evil.example!victim@example.org"),
    "original with a second at sign": lambda s: srs(s, '"v@evil.example"@example.org'),
}


@pytest.mark.parametrize("where", ELSEWHERE)
def test_right_local_part_elsewhere_leads_nowhere(relay: Stage, where: str) -> None:
    for sender in ("", "eve@evil.example"):
        assert not write(relay, ELSEWHERE[where](relay), sender).accepted
    assert went(relay) == []


@pytest.mark.parametrize("routed", ["{local}%contoso.com@mail.contoso.com", "contoso.com!{local}@mail.contoso.com"])
def test_right_address_routed_by_way_of_this_postfix_stays_inside(relay: Stage, routed: str) -> None:
    address = srs(relay)
    assert write(relay, routed.format(local=parts(address)[0]), "eve@evil.example").accepted
    assert went(relay) == [("eve@evil.example", address)]


NOT_SRS: dict[str, Callable[[Stage], str]] = {
    "no hash": lambda s: srs(s).replace(parts(srs(s))[1], ""),
    "no user": lambda s: srs(s).replace("=victim@", "=@"),
    "no user field": lambda s: srs(s).replace("=victim@", "@"),
    "long s in the mark": lambda s: srs(s).replace("+SRS=", "+\u017fRS="),
    "full-width plus": lambda s: srs(s).replace("+SRS=", "\uff0bSRS="),
    "a domain where none are made": lambda s: parts(srs(s))[0] + "@fabrikam.com",
}


@pytest.mark.parametrize("name", NOT_SRS)
def test_what_is_no_srs_address_of_ours_is_an_inside_recipient_as_written(relay: Stage, name: str) -> None:
    rcpt = NOT_SRS[name](relay)
    assert write(relay, rcpt, "eve@evil.example").accepted
    assert went(relay) == [("eve@evil.example", rcpt)]


# An original that is dangerous in itself


def test_original_that_is_an_srs_address_of_ours_is_undone_to_the_end(relay: Stage) -> None:
    nested = srs(relay, srs(relay, srs(relay)))
    assert write(relay, nested).accepted
    assert went(relay) == [("", VICTIM)]


def test_original_in_the_other_organization_that_is_forged_there_stays_inside(relay: Stage) -> None:
    forged = parts(srs(relay))[0] + "@fabrikam.com"
    assert write(relay, srs(relay, forged)).accepted
    assert went(relay) == [("", forged)]


@pytest.mark.parametrize("local", ["a,b", "a, root", "a;b", 'a"b', "(a", "a:b;", ":include:x"])
def test_original_that_looks_like_several_recipients_is_one(relay: Stage, local: str) -> None:
    original = str(Address(local, "example.org"))
    assert write(relay, srs(relay, original)).accepted
    assert went(relay) == [("", original)]


@pytest.mark.parametrize("mark", ["|touch ", "", ":include:"])
def test_original_that_looks_like_a_command_or_a_file_is_none(relay: Stage, mark: str) -> None:
    path = relay.postfix.mailboxes / "made"
    write(relay, srs(relay, str(Address(f"{mark}{path}", "mail.contoso.com"))))
    assert went(relay) == []
    assert not path.exists()


def test_bounce_of_a_bounce_is_not_made(relay: Stage) -> None:
    relay.internet.refuse[VICTIM] = "550 5.1.1 No such user"
    try:
        assert write(relay, srs(relay)).accepted
        assert went(relay) == []
    finally:
        relay.internet.refuse.clear()
