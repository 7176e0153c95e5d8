# SPDX-License-Identifier: GPL-3.0-or-later
"""The Exchange Online form of SRS for any address: it comes back exactly, and nothing else comes back."""

from __future__ import annotations

import base64
import string

import pytest
from hypothesis import assume, example, given, settings
from hypothesis import strategies as st

from gatepost.srs import Address, AddressTooLong, Exchange, HashMismatch, Keys, SrsError
from gatepost.srs.exchange import _message as message_of
from gatepost.srs.exchange import base32

EXCHANGE = Exchange(Keys([b"new secret", b"old secret"]))

ATEXT = string.ascii_letters + string.digits + "!#$%&'*+-/=?^_`{|}~" + "éßİſ\u212aж用😀"
SPECIAL = ' "\\(),.:;<>@[]'

atoms = st.text(st.sampled_from(ATEXT), min_size=1, max_size=12)
dot_strings = st.lists(atoms, min_size=1, max_size=3).map(".".join)
quoted = st.text(st.sampled_from(ATEXT + SPECIAL), min_size=1, max_size=20)
letters = st.characters(blacklist_categories=("Cc", "Cs", "Zl", "Zp"))
nested = st.tuples(quoted, quoted).map("+SRS=44ldt=IX=a.example=".join)
local_parts = dot_strings | quoted | nested | st.text(letters, min_size=1, max_size=12)

labels = st.text(st.sampled_from(string.ascii_letters + string.digits + "-_éß用"), min_size=1, max_size=10)
names = st.lists(labels, min_size=1, max_size=4).map(".".join)
domains = names | st.sampled_from(["[192.0.2.1]", "[IPv6:2001:db8::1]", "bücher.example"])

addresses = st.builds(Address, local_parts, domains)
mailboxes = local_parts.filter(lambda text: "+" not in text and " " not in text)
days = st.integers(20000, 24000)


def forward(original: Address, mailbox: str, srs_domain: str, day: int) -> Address:
    """Rewrite, with the few examples left out that are too long."""
    try:
        return EXCHANGE.forward(original, mailbox, srs_domain, day)
    except AddressTooLong:
        assume(False)
        raise


def ascii_lower(address: Address) -> tuple[bytes, bytes]:
    return address.local.encode().lower(), address.domain.encode().lower()


rewritten = st.builds(lambda *given: (given[0], forward(*given), given[3]), addresses, mailboxes, names, days)


@given(rewritten, st.integers(0, 21))
@settings(deadline=None, max_examples=500)
def test_what_is_rewritten_comes_back_exactly(made: tuple[Address, Address, int], age: int) -> None:
    original, srs, day = made
    assert EXCHANGE.reverse(srs, day + age) == original


@given(rewritten)
@settings(deadline=None, max_examples=500)
def test_what_is_rewritten_comes_back_exactly_through_its_text(made: tuple[Address, Address, int]) -> None:
    original, srs, day = made
    assert len(str(srs).encode()) <= 254
    assert EXCHANGE.reverse(Address.parse(str(srs)), day) == original


@given(rewritten)
@settings(deadline=None, max_examples=500)
def test_local_part_lower_cased_by_a_receiver_comes_back_lower_cased(
    made: tuple[Address, Address, int],
) -> None:  # S8
    original, srs, day = made
    lowered = Address(srs.local.encode().lower().decode(), srs.domain)
    found = EXCHANGE.reverse(lowered, day)
    assert (found.local.encode(), found.domain.encode()) == ascii_lower(original)


@given(rewritten, st.data())
@settings(deadline=None, max_examples=300)
def test_case_of_any_letter_does_not_count(made: tuple[Address, Address, int], data: st.DataObject) -> None:
    original, srs, day = made
    flips = data.draw(st.lists(st.booleans(), min_size=len(srs.local), max_size=len(srs.local)))
    pairs = zip(srs.local, flips)
    mixed = "".join(char.swapcase() if flip and char.isascii() else char for char, flip in pairs)
    assert ascii_lower(EXCHANGE.reverse(Address(mixed, srs.domain), day)) == ascii_lower(original)


@st.composite
def edits(draw: st.DrawFn, text: str) -> str:
    """*text* with one character changed, inserted, removed, moved or swapped with another."""
    i = draw(st.integers(0, len(text) - 1))
    j = draw(st.integers(0, len(text) - 1))
    char = draw(st.sampled_from(ATEXT + SPECIAL) | st.characters())
    kind = draw(st.sampled_from(["change", "insert", "append", "remove", "move", "swap"]))
    if kind == "change":
        return text[:i] + char + text[i + 1 :]
    if kind == "insert":
        return text[:i] + char + text[i:]
    if kind == "append":
        return text + char
    rest = text[:i] + text[i + 1 :]
    if kind == "remove":
        return rest
    if kind == "move":
        return rest[:j] + text[i] + rest[j:]
    chars = list(text)
    chars[i], chars[j] = chars[j], chars[i]
    return "".join(chars)


@given(rewritten, st.data())
@settings(deadline=None, max_examples=1500)
def test_any_edit_of_the_local_part_or_the_srs_domain_is_refused(
    made: tuple[Address, Address, int], data: st.DataObject
) -> None:
    _, srs, day = made
    if data.draw(st.booleans()):
        local, domain = data.draw(edits(srs.local)), srs.domain
    else:
        local, domain = srs.local, data.draw(edits(srs.domain))
    same = (local + "@" + domain).encode("utf-8", "surrogatepass").lower() == b"@".join(ascii_lower(srs))
    assume(not same)
    with pytest.raises(SrsError):
        EXCHANGE.reverse(Address(local, domain), day)


@given(rewritten, st.data())
@settings(deadline=None, max_examples=1500)
def test_any_edit_of_the_text_is_refused_or_changes_nothing(
    made: tuple[Address, Address, int], data: st.DataObject
) -> None:
    original, srs, day = made
    try:
        found = EXCHANGE.reverse(Address.parse(data.draw(edits(str(srs)))), day)
    except SrsError:
        return
    assert ascii_lower(found) == ascii_lower(original)


def test_every_single_edit_of_one_address_is_refused() -> None:
    srs = EXCHANGE.forward(Address("bob", "fabrikam.com"), "john.work", "contoso.com", 20500)
    text = srs.local + "\0" + srs.domain
    tried = set()
    for i in range(len(text) + 1):
        rest = text[:i] + text[i + 1 :]
        tried.add(rest)
        tried |= {rest[:j] + text[i : i + 1] + rest[j:] for j in range(len(text))}
        for char in string.printable + "éſK\0":
            tried |= {text[:i] + char + text[i:], text[:i] + char + text[i + 1 :]}
    for edited in tried:
        local, _, domain = edited.partition("\0")
        if edited.encode().lower() != text.encode().lower():
            with pytest.raises(SrsError):
                EXCHANGE.reverse(Address(local, domain), 20500)


@given(addresses, mailboxes, names, days)
@settings(deadline=None)
def test_hash_of_another_key_is_refused(original: Address, mailbox: str, srs_domain: str, day: int) -> None:
    srs = forward(original, mailbox, srs_domain, day)
    with pytest.raises(HashMismatch):
        Exchange(Keys([b"another secret"])).reverse(srs, day)


@given(st.text() | st.binary().map(lambda octets: octets.decode("utf-8", "surrogateescape")), days)
@settings(deadline=None, max_examples=500)
def test_any_text_is_reversed_or_an_srs_error(text: str, day: int) -> None:
    for address in (text, f"{text}@contoso.com", f"a+SRS={text}@contoso.com", f'"a+SRS={text}"@contoso.com'):
        with pytest.raises(SrsError):
            EXCHANGE.reverse(Address.parse(address), day)


@given(st.text(), st.text(), st.text(st.characters()), days)
@settings(deadline=None, max_examples=500)
def test_any_mailbox_and_srs_domain_are_rewritten_reversibly_or_an_srs_error(
    user: str, mailbox: str, srs_domain: str, day: int
) -> None:
    try:
        original = Address(user, "fabrikam.com")
        srs = EXCHANGE.forward(original, mailbox, srs_domain, day)
    except SrsError:
        return
    assert EXCHANGE.reverse(Address.parse(str(srs)), day) == original


@given(st.binary(min_size=32, max_size=32), st.integers(5, 52))
@settings(deadline=None)
def test_the_hash_is_the_start_of_the_digest_in_base32(digest: bytes, length: int) -> None:
    assert base32(digest, length) == base64.b32encode(digest)[:length].decode().lower()


@given(mailboxes, addresses, names)
@example("a" * 65, Address("b" * 90, "c" * 70), "D" * 64)
@example("A" * 64, Address("B" * 65, "\u212a.example"), "K" * 65)
@settings(deadline=None, max_examples=500)
def test_the_signed_message_is_its_lower_case_fields_with_their_lengths(
    mailbox: str, original: Address, srs_domain: str
) -> None:
    fields = [mailbox, "CB", original.domain, original.local, srs_domain]
    octets = [field.encode().lower() for field in fields]
    expected = b"".join(len(field).to_bytes(4, "big") + field for field in octets)
    assert message_of(mailbox, "CB", original, srs_domain) == expected
