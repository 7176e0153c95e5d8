# SPDX-License-Identifier: GPL-3.0-or-later
"""The ledger's records: each comes back from its line, and two of one recipient come to the same in any order."""

from __future__ import annotations

import contextlib
import json

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from gatepost.service.ledger import TEXT_LIMIT, Bounced, Entry, Record, clipped, line, merged, record

TIMES = st.floats(0, 4e9)
SIZES = st.none() | st.integers(0, 10**15)
ACTIONS = st.sampled_from(["", "pass", "return", "defer", "reject", "rewrite", "tag", "quarantine"])
PLACES = st.sampled_from(["", "a@fabrikam.com", "b@fabrikam.com", "c@fabrikam.com"])
OTHERS = {name: st.text() for name in Entry._fields if name not in ("time", "sender_accepted", "size_bytes")}


def entries(texts: st.SearchStrategy[str], **fields: st.SearchStrategy[str]) -> st.SearchStrategy[Entry]:
    named = {name: fields.get(name, texts) for name in OTHERS}
    return st.builds(Entry, **named, time=TIMES, sender_accepted=st.integers(0, 1), size_bytes=SIZES)


# Entries of one recipient: every hop and daemon knows some things, and knows the same or little else.
OF_ONE = entries(
    st.sampled_from(["", "a", "b"]),
    reference=st.just("abcdef"),
    recipient=st.just("ann@contoso.com"),
    action=ACTIONS,
    forwarded_to=PLACES,
)
INGRESS = Entry(
    "abcdef",
    "bob@contoso.com",
    1_700_000_000.5,
    queue_id="4CgSNs5Q9s",
    client="192.0.2.5",
    helo="app.contoso.com",
    certificate_names="mail.contoso.com",
    reverse_path="ann@fabrikam.com",
    sender_domain="fabrikam.com",
    header_from="ann@fabrikam.com",
    organization="contoso",
    requirements="2023-11-01",
    verdict_current="inside",
    verdict_legacy="inside",
    reason="inside",
    action="pass",
    size_bytes=1000,
    message_id="<1@fabrikam.com>",
)
EGRESS = Entry(
    "abcdef",
    "bob@contoso.com",
    1_700_000_001.0,
    egress_queue_id="4CgSNt0001",
    reverse_path="ann@fabrikam.com",
    sender_domain="fabrikam.com",
    rewritten="bob+srs=abcdefgh=aa=fabrikam.com=ann@contoso.com",
    forwarded_to="bob@gmail.example",
    header_from="ann@fabrikam.com",
    organization="contoso",
    action="rewrite",
    size_bytes=1200,
    message_id="<1@fabrikam.com>",
)
BOTH = INGRESS._replace(
    egress_queue_id="4CgSNt0001",
    rewritten="bob+srs=abcdefgh=aa=fabrikam.com=ann@contoso.com",
    forwarded_to="bob@gmail.example",
    action="rewrite",
)


# Lines


@settings(deadline=None)
@given(entries(st.text(max_size=2000)))
def test_entry_comes_back_from_its_line_with_texts_that_a_database_takes(entry: Entry) -> None:
    expected = Entry._make(clipped(value) if isinstance(value, str) else value for value in entry)
    assert record(line(entry)) == expected


@settings(deadline=None)
@given(st.text(), TIMES)
def test_bounce_comes_back_from_its_line(address: str, time: float) -> None:
    assert record(line(Bounced(address, time))) == Bounced(clipped(address), time)


@settings(deadline=None)
@given(st.text(), TIMES)
def test_line_of_a_bounce_is_json(address: str, time: float) -> None:
    fields = json.dumps([2, "Bounced", address, time], separators=(",", ":"))
    assert line(Bounced(address, time)) == f"{fields}\n".encode()


@settings(deadline=None)
@given(entries(st.text()) | st.builds(Bounced, st.text(), TIMES))
def test_line_ends_with_the_only_line_feed_in_it_and_is_ascii(made: Record) -> None:
    octets = line(made)
    assert octets.isascii()
    assert octets.splitlines(keepends=True) == [octets]
    assert octets.endswith(b"\n")


@pytest.mark.parametrize(
    ("text", "kept"),
    [
        ("bob\udcff@fabrikam.com", "bob?@fabrikam.com"),
        ("bob\0@fabrikam.com", "bob?@fabrikam.com"),
        ("x" * 1001, "x" * 1000),
        ("x" + "ö" * 500, "x" + "ö" * 499),
        ("用" * 1000, "用" * 333),
    ],
)
def test_text_is_cut_to_1000_octets_that_every_database_takes(text: str, kept: str) -> None:
    assert clipped(text) == kept


@settings(deadline=None)
@given(st.text(max_size=2000))
def test_clipped_text_is_short_and_stays_as_it_is(text: str) -> None:
    once = clipped(text)
    assert len(once.encode()) <= TEXT_LIMIT
    assert clipped(once) == once


def changed(field: str, value: str) -> bytes:
    """The line of an entry with *field* as JSON."""
    made = line(INGRESS._replace(**{field: "HERE"}))
    return made.replace(b'"HERE"', value.encode())


@pytest.mark.parametrize(
    "octets",
    [
        b"",
        b"junk",
        b"\0" * 100,
        b"\xff\xfe",
        b"1",
        b"{}",
        b"[]",
        b"[1]",
        b'["Entry"]',
        b'[1, "Entry"]',
        b'[1, ["Entry"], 2]',
        b'[1, "Other", "a@b", 1.0]',
        b'[1, "Bounced", "a@b"]',
        b'[1, "Bounced", "a@b", 1.0, 2]',
        b'[3, "Bounced", "a@b", 1.0]',
        b'[1, "Bounced", 7, 1.0]',
        b"[" * 300_000,
        line(INGRESS)[:-2],
        line(INGRESS)[1:],
        line(INGRESS)[:-1] + line(EGRESS),
        changed("time", '"1.0"'),
        changed("time", "NaN"),
        changed("time", "Infinity"),
        changed("time", "-1"),
        changed("time", "1" + "0" * 400),
        changed("time", "true"),
        changed("sender_accepted", "2"),
        changed("sender_accepted", "true"),
        changed("sender_accepted", "null"),
        changed("size_bytes", "9223372036854775808"),
        changed("size_bytes", "-1"),
        changed("size_bytes", "1.5"),
        changed("recipient", "null"),
        changed("recipient", '["a"]'),
    ],
    ids=lambda octets: repr(octets[:20] + octets[-20:]),
)
def test_damaged_line_is_an_error(octets: bytes) -> None:
    with pytest.raises((ValueError, TypeError)):
        record(octets)


@settings(deadline=None)
@given(st.binary() | st.text().map(str.encode))
def test_any_octets_are_a_record_or_an_error_that_the_loader_expects(octets: bytes) -> None:
    with contextlib.suppress(ValueError, TypeError):
        record(octets)


JSON = st.recursive(
    st.none() | st.booleans() | st.integers() | st.floats() | st.text(), lambda inner: st.lists(inner, max_size=3)
)


@settings(deadline=None)
@given(st.sampled_from(Entry._fields), JSON)
def test_any_value_in_a_field_is_a_record_or_an_error_that_the_loader_expects(field: str, value: object) -> None:
    try:
        made = record(line(INGRESS._replace(**{field: value})))  # type: ignore[arg-type]
    except (ValueError, TypeError):
        return
    assert isinstance(made, Entry)
    assert record(line(made)) == made


# Merging


@pytest.mark.parametrize(("first", "second"), [(INGRESS, EGRESS), (EGRESS, INGRESS)])
def test_egress_entry_and_ingress_entry_in_either_order_are_one_row_of_both(first: Entry, second: Entry) -> None:
    assert merged(first, second) == BOTH


@settings(deadline=None)
@given(OF_ONE, OF_ONE)
def test_order_of_two_entries_does_not_matter(one: Entry, other: Entry) -> None:
    assert merged(one, other) == merged(other, one)


@settings(deadline=None)
@given(OF_ONE, OF_ONE, OF_ONE)
def test_grouping_of_three_entries_does_not_matter(one: Entry, two: Entry, three: Entry) -> None:
    assert merged(merged(one, two), three) == merged(one, merged(two, three))


@settings(deadline=None)
@given(OF_ONE, OF_ONE)
def test_entry_that_comes_again_changes_nothing(one: Entry, other: Entry) -> None:
    assert merged(one, one) == one
    both = merged(one, other)
    assert merged(both, one) == merged(both, other) == merged(both, both) == both


@settings(deadline=None)
@given(OF_ONE, OF_ONE)
def test_what_one_entry_alone_knows_is_kept(one: Entry, other: Entry) -> None:
    for mine, theirs, both in zip(one, other, merged(one, other)):
        assert both in (mine, theirs) or both == f"{min(mine, theirs)}, {max(mine, theirs)}"
        assert mine in ("", None) or both not in ("", None)


@pytest.mark.parametrize(
    ("one", "other", "action"),
    [
        ("pass", "defer", "defer"),
        ("pass", "quarantine", "quarantine"),
        ("defer", "reject", "reject"),
        ("reject", "rewrite", "rewrite"),
        ("tag", "rewrite", "tag"),
        ("quarantine", "rewrite", "quarantine"),
    ],
)
def test_what_was_tagged_or_held_remains_so_where_its_copy_is_rewritten_later(
    one: str, other: str, action: str
) -> None:
    first, second = INGRESS._replace(action=one), EGRESS._replace(action=other)
    assert (merged(first, second).action, merged(second, first).action) == (action, action)
    assert merged(first, second).rewritten == EGRESS.rewritten


def test_line_that_the_release_before_left_in_the_spool_is_read() -> None:
    before = (
        b'[1, "Entry", "abcdef", "bob@contoso.com", 1700000000.5, "4CgSNs5Q9s", "", "192.0.2.5", "app.contoso.com", '
        b'"mail.contoso.com", "ann@fabrikam.com", "fabrikam.com", 0, "", "", "ann@fabrikam.com", "contoso", "", '
        b'"2023-11-01", "inside", "inside", "inside", "pass", 1000, "<1@fabrikam.com>", ""]\n'
    )
    assert record(before) == INGRESS
    assert record(b'[1, "Bounced", "bob@contoso.com", 1.0]\n') == Bounced("bob@contoso.com", 1.0)


@pytest.mark.parametrize(
    "octets",
    [
        line(INGRESS).replace(b"[2,", b"[1,"),
        line(INGRESS).replace(b',""]', b"]"),
        line(INGRESS).replace(b"[2,", b"[3,"),
        b'[2, "Entry", "abcdef", "bob@contoso.com", 1700000000.5]',
    ],
    ids=["fields of the next format", "a field short", "another format", "only a few fields"],
)
def test_line_with_another_number_of_fields_than_its_format_has_is_refused(octets: bytes) -> None:
    with pytest.raises(ValueError, match=r"format|fields"):
        record(octets)


def test_unknown_action_of_a_damaged_line_counts_least() -> None:
    assert merged(INGRESS._replace(action="junk"), INGRESS) == INGRESS


@settings(deadline=None)
@given(st.permutations([f"{name}@{'x' * 90}.example" for name in "abcdefghijklmno"]))
def test_places_that_have_no_room_are_the_same_in_any_order(places: list[str]) -> None:
    row = INGRESS
    for place in places:
        row = merged(row, INGRESS._replace(forwarded_to=place))
    assert row.forwarded_to == ", ".join(f"{name}@{'x' * 90}.example" for name in "abcdefghi")
