# SPDX-License-Identifier: GPL-3.0-or-later
"""What a recipient is as an SRS address, and whose bounce comes with it."""

from __future__ import annotations

import pytest
from snapshots import CONTOSO, DAY, KEYS, NOW, TWO, Shelf, nothing, organization, snapshot

from gatepost.service import reversal, rewriting
from gatepost.service.reversal import Bounce, Reversal
from gatepost.service.snapshot import Snapshot
from gatepost.srs import Address, Classic, Exchange, Key, Keys


def srs(made: Snapshot, domain: str, day: int = DAY, mailbox: str = "bounces") -> str:
    return str(made.exchange.forward(Address("Bob", "Fabrikam.com"), mailbox, domain, day))


@pytest.mark.parametrize(
    ("now", "bounce"),
    [
        (NOW, Bounce.ORIGINAL),
        (NOW + 22 * 86400 - 1, Bounce.ORIGINAL),
        (NOW + 22 * 86400, Bounce.EXPIRED),
        (NOW + 23 * 86400 - 1, Bounce.EXPIRED),
        (NOW - 1, Bounce.ORIGINAL),
        (NOW - 300, Bounce.ORIGINAL),
        (NOW - 301, Bounce.EXPIRED),
        (NOW - 86400, Bounce.EXPIRED),
        (NOW + 1024 * 86400 - 301, Bounce.EXPIRED),
        (NOW + 1024 * 86400 - 300, Bounce.ORIGINAL),
    ],
    ids=[
        *("same day", "end of the 21st day", "22nd day", "end of the 22nd day"),
        *("clock a second behind", "clock 5 minutes behind", "clock further behind", "clock a day behind"),
        *("before a period is over", "a period later"),
    ],
)
def test_srs_address_is_reversed_for_21_days_and_by_clocks_5_minutes_behind(now: int, bounce: Bounce) -> None:
    found = reversal.reverse(CONTOSO, srs(CONTOSO, "contoso.com"), now, nothing)
    assert found == Reversal(bounce, "Bob@Fabrikam.com" if bounce is Bounce.ORIGINAL else "")


@pytest.mark.parametrize(("now", "day"), [(0, 0), (86399, 0), (86400, 1), (NOW - 1, DAY - 1), (NOW, DAY)])
def test_day_begins_at_midnight_utc(now: int, day: int) -> None:
    assert reversal.day(now) == day


def test_srs_address_in_the_spelling_of_a_receiver_is_reversed() -> None:
    address = srs(CONTOSO, "contoso.com")
    assert reversal.reverse(CONTOSO, address.lower(), NOW, nothing).original == "bob@fabrikam.com"
    assert (
        reversal.reverse(CONTOSO, address.replace("contoso.com", "CONTOSO.COM"), NOW, nothing).original
        == "Bob@Fabrikam.com"
    )


def test_srs_address_that_postfix_has_unquoted_is_reversed() -> None:
    quoted = rewriting.relayed(CONTOSO, '"a b"@fabrikam.com', None, NOW).address
    local, _, domain = quoted.rpartition("@")
    unquoted = f"{local[1:-1]}@{domain}"
    assert reversal.reverse(CONTOSO, quoted, NOW, nothing).original == '"a b"@fabrikam.com'
    assert reversal.reverse(CONTOSO, unquoted, NOW, nothing).original == '"a b"@fabrikam.com'


def test_changed_srs_address_is_forged_where_this_host_makes_them() -> None:
    assert (
        reversal.reverse(CONTOSO, srs(CONTOSO, "contoso.com").replace("Bob", "Eve"), NOW, nothing).bounce
        is Bounce.FORGED
    )
    assert (
        reversal.reverse(TWO, srs(TWO, "srs.contoso.com").replace("Bob", "Eve"), NOW, nothing).bounce is Bounce.FORGED
    )


def test_changed_srs_address_is_foreign_in_monitor_mode_where_this_host_makes_none_yet() -> None:
    # An organization that looks on first may have its SRS addresses made by Exchange Online.
    assert (
        reversal.reverse(TWO, srs(TWO, "fabrikam.example").replace("Bob", "Eve"), NOW, nothing).bounce is Bounce.FOREIGN
    )


def test_changed_srs_address_is_foreign_in_an_accepted_domain_beside_an_srs_domain() -> None:
    # Exchange Online mints the same form there with a key of its own.
    assert reversal.reverse(TWO, srs(TWO, "contoso.com").replace("Bob", "Eve"), NOW, nothing).bounce is Bounce.FOREIGN
    assert (
        reversal.reverse(TWO, srs(TWO, "a.corp.contoso.com").replace("Bob", "Eve"), NOW, nothing).bounce
        is Bounce.FOREIGN
    )


def test_own_srs_address_from_before_an_srs_domain_was_declared_is_reversed() -> None:
    assert reversal.reverse(TWO, srs(TWO, "contoso.com"), NOW, nothing).original == "Bob@Fabrikam.com"


@pytest.mark.parametrize(
    ("rcpt", "bounce"),
    [
        ("bounces+SRS=abcdefgh=AA=x.example=bob@example.org", Bounce.FOREIGN),
        ("bounces+SRS=abcdefgh=AA=x.example=bob@sub.contoso.com", Bounce.FOREIGN),
        ("bounces+SRS=abcdefgh=AA=x.example=bob@[192.0.2.1]", Bounce.FOREIGN),
        ("john.work@contoso.com", Bounce.NOT_SRS),
        ("john+srs@contoso.com", Bounce.NOT_SRS),
        ("SRS0=abcd=AA=x.example=bob@contoso.com", Bounce.NOT_SRS),
        ("bounces+SRS=abcdefgh=AA@contoso.com", Bounce.NOT_SRS),
        ("bounces+SRS=abcdefgh=AA=x.example= bob@contoso.com", Bounce.FORGED),
        ("bounces+SRS=abcdefgh=99=x.example=bob@contoso.com", Bounce.NOT_SRS),
        ("+SRS=abcdefgh=AA=x.example=bob@contoso.com", Bounce.NOT_SRS),
        ("bounces+SRS=", Bounce.NOT_SRS),
        ("", Bounce.NOT_SRS),
    ],
)
def test_what_a_recipient_is(rcpt: str, bounce: Bounce) -> None:
    assert reversal.reverse(CONTOSO, rcpt, NOW, nothing) == Reversal(bounce)


# Several formats, several keys


HOST = organization("contoso", "contoso.com")
BOB = Address("bob", "fabrikam.com")


def exchange(keys: Keys = KEYS, day: int = DAY) -> str:
    return str(Exchange(keys).forward(BOB, "bounces", "contoso.com", day))


def classic(keys: Keys = KEYS, day: int = DAY) -> str:
    return str(Classic(keys).forward(BOB, "contoso.com", day))


@pytest.mark.parametrize("srs", [{"format": "srs0", "also_reverse": ["exchange"]}, {"also_reverse": ["srs0"]}])
def test_every_format_that_is_reversed_comes_back_while_one_signs(srs: dict[str, object]) -> None:
    made = snapshot(HOST, **srs)
    for address in (exchange(), classic(), classic().lower(), classic().replace("=", "%3D")):
        assert reversal.reverse(made, address, NOW, nothing) == Reversal(Bounce.ORIGINAL, "bob@fabrikam.com")


def test_format_that_is_not_reversed_is_none_of_our_business() -> None:
    assert reversal.reverse(snapshot(HOST), classic(), NOW, nothing).bounce is Bounce.NOT_SRS
    assert reversal.reverse(snapshot(HOST, format="srs0"), exchange(), NOW, nothing).bounce is Bounce.NOT_SRS


def test_compact_form_is_reversed_where_it_is_made_or_also_reversed_only() -> None:
    shelf = Shelf()
    address = shelf.put(rewriting.relayed(snapshot(HOST, form="compact"), "bob@fabrikam.com", None, NOW))
    for srs, bounce in (
        ({"form": "auto"}, Bounce.ORIGINAL),
        ({"form": "long"}, Bounce.NOT_SRS),
        ({"form": "long", "also_reverse": ["compact"]}, Bounce.ORIGINAL),
        ({"format": "srs0", "form": "auto"}, Bounce.ORIGINAL),
    ):
        assert reversal.reverse(snapshot(HOST, **srs), address, NOW, shelf.get).bounce is bounce


def test_wrong_hash_of_one_format_does_not_hide_the_right_one_of_another() -> None:
    made = snapshot(HOST, also_reverse=["srs0"])
    sender = Address("SRS0=abcd=RA=x.example=ann", "fabrikam.com")
    both = str(made.exchange.forward(sender, "SRS0=aaaa=RA=x.example=john", "contoso.com", DAY))
    assert reversal.reverse(made, both, NOW, nothing).original == str(sender)


def test_classic_address_with_a_wrong_hash_is_forged_where_it_is_reversed() -> None:
    made = snapshot(HOST, format="srs0")
    assert reversal.reverse(made, classic().replace("bob", "eve"), NOW, nothing).bounce is Bounce.FORGED
    assert reversal.reverse(made, classic(day=DAY - 22), NOW, nothing).bounce is Bounce.EXPIRED


@pytest.mark.parametrize(
    ("rcpt", "bounce"),
    [
        ("SRS0=abcd=RA=x.example=bob@example.org", Bounce.FOREIGN),
        ("SRS1=abcd=y.example==abcd=RA=x.example=bob@example.org", Bounce.FOREIGN),
        ("john+SRS=AbCdE=RA=x.example=bob@example.org", Bounce.FOREIGN),
        ("bounces+SRS=AbCdE=RA@example.org", Bounce.FOREIGN),
        ("bounces+SRS=AbCdE=RA@contoso.com", Bounce.NOT_SRS),
        ("SRS0@contoso.com", Bounce.NOT_SRS),
        ("SRS0=a@contoso.com", Bounce.NOT_SRS),
        ("srs.team@contoso.com", Bounce.NOT_SRS),
        ("bounces%2BSRS%3Dabcdefgh%3DRA%3Dx.example%3Dbo%00b@contoso.com", Bounce.NOT_SRS),
    ],
)
def test_what_a_recipient_is_where_all_formats_are_reversed(rcpt: str, bounce: Bounce) -> None:
    made = snapshot(HOST, also_reverse=["exchange", "srs0", "compact"])
    assert reversal.reverse(made, rcpt, NOW, nothing).bounce is bounce


def test_address_of_an_old_key_is_good_and_the_new_one_signs_from_its_day() -> None:
    rotated = Keys([Key(b"the new key", DAY + 1), b"the first key"])
    made = snapshot(HOST, keys=rotated, also_reverse=["srs0"], form="long")
    old = Keys([b"the first key"])
    assert rewriting.relayed(made, str(BOB), None, NOW + 86399).address == exchange(old)
    assert rewriting.relayed(made, str(BOB), None, NOW + 86400).address == exchange(Keys([b"the new key"]), DAY + 1)
    for address in (exchange(old), classic(old), exchange(Keys([b"the new key"]))):
        assert reversal.reverse(made, address, NOW + 86400, nothing).original == "bob@fabrikam.com"


def test_compact_address_of_an_old_key_is_good_after_a_rotation() -> None:
    shelf = Shelf()
    address = shelf.put(rewriting.relayed(snapshot(HOST, form="compact"), "bob@fabrikam.com", None, NOW))
    made = snapshot(HOST, keys=Keys([b"the new key", b"the first key"]))
    assert reversal.reverse(made, address, NOW + 86400, shelf.get).original == "bob@fabrikam.com"


# Tokens


@pytest.mark.parametrize(
    "rcpt",
    [
        "bounces+SRS=abcdefghijklmnop=RA@contoso.com",
        "bounces+SRS=abcdefghijklmnop=AA@contoso.com",
        "bounces%2Bsrs%3Dabcdefghijklmnop%3Dra@contoso.com",
    ],
    ids=["good stamp", "old stamp", "encoded"],
)
def test_token_that_the_store_does_not_know_is_unknown(rcpt: str) -> None:
    assert reversal.reverse(CONTOSO, rcpt, NOW, nothing) == Reversal(Bounce.UNKNOWN)


@pytest.mark.parametrize("domain", ["contoso.com", "a.corp.contoso.com", "fabrikam.example", "example.org"])
def test_token_that_the_store_does_not_know_is_foreign_where_this_host_makes_none(domain: str) -> None:
    # Beside an srs_domain, in monitor mode, outside.
    assert reversal.reverse(TWO, f"bounces+SRS=abcdefghijklmnop=RA@{domain}", NOW, nothing).bounce is Bounce.FOREIGN
    assert (
        reversal.reverse(TWO, "bounces+SRS=abcdefghijklmnop=RA@srs.contoso.com", NOW, nothing).bounce is Bounce.UNKNOWN
    )


def test_token_whose_row_belongs_to_another_address_is_forged() -> None:
    address = rewriting.relayed(snapshot(HOST, form="compact"), "bob@fabrikam.com", None, NOW).address
    assert reversal.reverse(CONTOSO, address, NOW, lambda token: "eve@fabrikam.com").bounce is Bounce.FORGED


def test_compact_address_expires() -> None:
    shelf = Shelf()
    address = shelf.put(rewriting.relayed(snapshot(HOST, form="compact"), "bob@fabrikam.com", None, NOW))
    assert reversal.reverse(CONTOSO, address, NOW + 22 * 86400 - 1, shelf.get).bounce is Bounce.ORIGINAL
    assert reversal.reverse(CONTOSO, address, NOW + 22 * 86400, shelf.get).bounce is Bounce.EXPIRED


@pytest.mark.parametrize("srs", [{"form": "long"}, {"form": "compact"}, {"format": "srs0", "form": "long"}])
def test_address_made_at_midnight_is_good_on_a_host_whose_clock_is_5_minutes_behind(srs: dict[str, object]) -> None:
    made, shelf = snapshot(HOST, **srs), Shelf()
    address = shelf.put(rewriting.relayed(made, "bob@fabrikam.com", None, NOW))
    bounces = [reversal.reverse(made, address, NOW - behind, shelf.get).bounce for behind in (300, 301)]
    assert bounces == [Bounce.ORIGINAL, Bounce.EXPIRED]


def test_forged_address_of_tomorrow_is_forged() -> None:
    address = srs(CONTOSO, "contoso.com").replace("Bob", "Eve")
    assert reversal.reverse(CONTOSO, address, NOW - 1, nothing).bounce is Bounce.FORGED


@pytest.mark.parametrize(
    "rcpt",
    [
        "bounces+SRS=abcdefghijklmnop=RA@contoso.com",
        "BOUNCES+srs=ABCDEFGHIJKLMNOP=ra@CONTOSO.COM",
        "bounces%2BSRS%3Dabcdefghijklmnop%3DRA@contoso.com",
        '"bounces+SRS=abcdefghijklmnop=RA"@contoso.com',
    ],
)
def test_token_of_a_recipient_in_any_spelling(rcpt: str) -> None:
    assert reversal.token(CONTOSO, rcpt) == "abcdefghijklmnop"


@pytest.mark.parametrize(
    "rcpt",
    [
        "",
        "john@contoso.com",
        "bounces+SRS=abcdefghijklmnop=RA@example.org",
        "john+SRS=abcdefghijklmnop=RA@contoso.com",
        "bounces+SRS=abcdefghijklmno=RA@contoso.com",
        "bounces+SRS=abcdefghijklmnop=RA=x.example=bob@contoso.com",
    ],
)
def test_recipient_without_a_token_of_ours_asks_nothing_of_the_store(rcpt: str) -> None:
    assert reversal.token(CONTOSO, rcpt) is None
