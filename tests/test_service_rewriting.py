# SPDX-License-Identifier: GPL-3.0-or-later
"""Which envelope senders are rewritten, and to what; and that their bounces come back."""

from __future__ import annotations

from pathlib import Path

import pytest
from hypothesis import example, given
from hypothesis import strategies as st
from snapshots import (
    ADDRESSES,
    CONTOSO,
    DAY,
    DOMAINS,
    LOCAL_PARTS,
    NOW,
    OUTSIDE,
    SRS_SETTINGS,
    TWO,
    Shelf,
    nothing,
    organization,
    snapshot,
    snapshots,
)
from upstreamcases import cases

from gatepost.service import addresses, reversal, rewriting
from gatepost.service.reversal import Bounce, Reversal
from gatepost.service.rewriting import Egress, Rewritten
from gatepost.service.snapshot import Snapshot, mint_domain
from gatepost.srs import Address, AddressError, Keys, first_hop

# The egress hop: map and milter

ANY = snapshots() | cases().map(lambda case: case.snapshot)
"""Hubs in front of Exchange Online, too, where what leaves by the hop must be in the tenant's domains."""


@given(ANY, ADDRESSES, LOCAL_PARTS, DOMAINS)
def test_sender_that_the_map_sends_to_the_hop_leaves_it_as_one_that_the_map_lets_out(
    made: Snapshot, reverse_path: str, local: str, domain: str
) -> None:
    if rewriting.egress(made, reverse_path) is not Egress.REWRITE:
        return
    shelf = Shelf()
    organizations = (None, *made.config.organizations.values())
    senders = [rewriting.relayed(made, reverse_path, whose, NOW) for whose in organizations]
    mailbox = rewriting.forwarder(made, f"utf-8;{local}@{domain}", OUTSIDE)
    if mailbox:
        senders.append(rewriting.forwarded(made, reverse_path, mailbox, NOW))
    for sender in map(shelf.put, senders):
        assert rewriting.egress(made, sender) is Egress.OUT
        assert rewriting.leaving(made, sender) is Egress.OUT
        found = reversal.reverse(made, sender, NOW, shelf.get)
        assert found == Reversal(Bounce.ORIGINAL, whose_bounce(made, reverse_path))


def whose_bounce(made: Snapshot, reverse_path: str) -> str:
    """Return who gets the bounce: the first forwarder, unless the layer claims to be ours and is not."""
    sender = addresses.parse_address(reverse_path)
    first = first_hop(sender)
    return str(sender if reversal.ours(made, addresses.domain_of(str(first))) else first)


@given(ANY, ADDRESSES)
def test_sender_that_the_map_has_bounced_could_not_be_rewritten(made: Snapshot, reverse_path: str) -> None:
    if rewriting.egress(made, reverse_path) is not Egress.IMPOSSIBLE:
        return
    longest = max(made.config.organizations.values(), key=lambda item: len(mint_domain(made.config, item)))
    with pytest.raises(AddressError):
        rewriting.relayed(made, reverse_path, longest, NOW)


@given(snapshots(), ADDRESSES)
def test_sender_that_is_let_out_is_null_or_ours_or_listed_or_nobody_enforces(made: Snapshot, reverse_path: str) -> None:
    if not (reverse_path and made.enforcing) or rewriting.egress(made, reverse_path) is not Egress.OUT:
        return
    domain = addresses.domain_of(reverse_path)
    srs = made.config.srs
    assert reversal.ours(made, domain) or srs.include or (domain and made.exclude.match(domain))


@given(ANY, ADDRESSES, ADDRESSES, ADDRESSES)
def test_no_address_raises_anything(made: Snapshot, reverse_path: str, rcpt: str, orcpt: str) -> None:
    rewriting.egress(made, reverse_path)
    reversal.reverse(made, rcpt, NOW, nothing)
    reversal.token(made, rcpt)
    rewriting.forwarder(made, f"rfc822;{orcpt}", rcpt)


@pytest.mark.parametrize(
    ("reverse_path", "expected"),
    [
        ("", Egress.OUT),
        ("ann@contoso.com", Egress.OUT),
        ("ann@CONTOSO.com", Egress.OUT),
        ("ann@corp.contoso.com", Egress.OUT),
        ("ann@a.b.corp.contoso.com", Egress.OUT),
        ("bounces+SRS=x=AA=y=z@srs.contoso.com", Egress.OUT),
        ("ann@fabrikam.example", Egress.OUT),
        ("ann@sub.contoso.com", Egress.REWRITE),
        ("ann@contoso.com.example", Egress.REWRITE),
        ("root@mail.contoso.net", Egress.REWRITE),
        ("bob@[192.0.2.1]", Egress.REWRITE),
        ('"a b"@fabrikam.com', Egress.REWRITE),
        ("bøb@fabrikam.com", Egress.REWRITE),
        ("root", Egress.IMPOSSIBLE),
        ("bob@", Egress.IMPOSSIBLE),
        ("@route:bob@fabrikam.com", Egress.IMPOSSIBLE),
        (f"bob@{'.'.join(['d' * 60] * 4)}", Egress.REWRITE),
    ],
)
def test_what_must_happen_to_a_sender_that_leaves(reverse_path: str, expected: Egress) -> None:
    assert rewriting.egress(TWO, reverse_path) is expected


def test_nothing_takes_the_hop_where_every_organization_monitors() -> None:
    monitoring = snapshot(organization("contoso", "contoso.com", mode="monitor"))
    assert rewriting.egress(monitoring, "bob@fabrikam.com") is Egress.OUT
    assert rewriting.leaving(monitoring, "bob@fabrikam.com") is Egress.REWRITE


def test_nothing_takes_the_hop_without_an_organization() -> None:
    assert rewriting.egress(snapshot(), "bob@fabrikam.com") is Egress.OUT


def test_sender_that_fits_into_the_default_domain_only_is_impossible() -> None:
    # Which organisation the hop will name is not known to the map.
    contoso = organization("contoso", "contoso.com")
    long = snapshot(contoso, organization("long", f"{'.'.join(['l' * 60] * 3)}.example"), form="long")
    sender = f"{'b' * 60}@fabrikam.com"
    assert rewriting.egress(snapshot(contoso, form="long"), sender) is Egress.REWRITE
    assert rewriting.egress(long, sender) is Egress.IMPOSSIBLE


# Rewriting


def test_relayed_mail_is_rewritten_in_the_default_domain_of_its_organization() -> None:
    fabrikam = TWO.config.organizations["fabrikam"]
    assert rewriting.relayed(TWO, "bob@x.example", fabrikam, NOW).address.endswith("=RA=x.example=bob@fabrikam.example")


def test_relayed_mail_of_nobody_is_rewritten_in_the_first_organization() -> None:
    assert rewriting.relayed(TWO, "bob@x.example", None, NOW).address.endswith("=x.example=bob@srs.contoso.com")


def test_relayed_mail_cannot_be_rewritten_without_an_organization() -> None:
    with pytest.raises(AddressError, match="no organization is configured"):
        rewriting.relayed(snapshot(), "bob@x.example", None, NOW)


@pytest.mark.parametrize(
    ("mailbox", "start", "end"),
    [
        (Address("ann", "fabrikam.example"), "ann+SRS=", "@fabrikam.example"),
        (Address("ann", "contoso.com"), "ann+SRS=", "@srs.contoso.com"),
        (Address("ann", "a.corp.contoso.com"), "ann+SRS=", "@srs.contoso.com"),
        (Address("a b", "fabrikam.example"), "bounces+SRS=", "@fabrikam.example"),
        (Address("a" * 240, "fabrikam.example"), "bounces+SRS=", "@fabrikam.example"),
    ],
    ids=["own domain", "srs_domain", "subdomain", "mailbox with a blank", "mailbox too long"],
)
def test_forwarded_mail_is_rewritten_in_the_name_of(mailbox: Address, start: str, end: str) -> None:
    sender = rewriting.forwarded(TWO, "bob@x.example", mailbox, NOW).address
    assert sender.startswith(start)
    assert sender.endswith(end)


# Who forwarded


@pytest.mark.parametrize(
    ("orcpt", "mailbox"),
    [
        ("rfc822;john.work@contoso.com", "john.work@contoso.com"),
        ("RFC822;john.work@contoso.com", "john.work@contoso.com"),
        ("rfc822;John.Work@Contoso.COM", "John.Work@contoso.com"),
        ("rfc822;john.work+40contoso.com", "john.work@contoso.com"),
        ("rfc822;john+2Btag@contoso.com", "john@contoso.com"),
        ("rfc822;john+2Btag+2Bmore@contoso.com", "john@contoso.com"),
        ("rfc822;john@corp.contoso.com", "john@corp.contoso.com"),
        ("rfc822;john@a.corp.contoso.com", "john@a.corp.contoso.com"),
        ("rfc822;john+3Dx@contoso.com", "john=x@contoso.com"),
        ("rfc822;j+C3+B6rg@contoso.com", "jörg@contoso.com"),
        ("utf-8;jörg@contoso.com", "jörg@contoso.com"),
        ('rfc822;"a+20b"@contoso.com', '"a b"@contoso.com'),
    ],
)
def test_orcpt_in_an_accepted_domain_names_the_forwarding_mailbox(orcpt: str, mailbox: str) -> None:
    assert str(rewriting.forwarder(TWO, orcpt, OUTSIDE)) == mailbox


@pytest.mark.parametrize(
    "orcpt",
    [
        "",
        "rfc822;",
        "rfc822;@contoso.com",
        "rfc822;john.work",
        "john.work@contoso.com",
        "x400;john.work@contoso.com",
        "rfc822;ceo@example.org",
        "rfc822;ceo@sub.contoso.com",
        "rfc822;ceo@srs.contoso.com",
        "rfc822;root@mail.contoso.net",
        "rfc822;+2Btag@contoso.com",
        "rfc822;a+0D+0Ab@contoso.com",
        "rfc822;a+00@contoso.com",
        "rfc822;a+FF@contoso.com",
        "rfc822;a b@contoso.com",
        "rfc822;@route:ceo@contoso.com",
        "rfc822;<ceo@contoso.com>",
    ],
)
def test_orcpt_names_nobody_where_it_is_no_address_in_an_accepted_domain(orcpt: str) -> None:
    assert rewriting.forwarder(TWO, orcpt, OUTSIDE) is None


@pytest.mark.parametrize("rcpt", ["john@contoso.com", "John@CONTOSO.com", '"john"@contoso.com'])
def test_orcpt_that_is_the_recipient_itself_names_nobody(rcpt: str) -> None:
    assert rewriting.forwarder(TWO, "rfc822;john@contoso.com", rcpt) is None


@given(st.binary(max_size=60), st.binary(max_size=20))
@example(b"rfc822;+C3@contoso.com", b"\xff")
def test_malformed_orcpt_raises_nothing(orcpt: bytes, rcpt: bytes) -> None:
    as_the_milter_reads = (octets.decode("utf-8", "surrogateescape") for octets in (orcpt, rcpt))
    rewriting.forwarder(TWO, *as_the_milter_reads)


@given(st.text(st.characters(codec="utf-8"), max_size=30))
def test_xtext_decodes_to_what_was_encoded(text: str) -> None:
    encoded = "".join(f"+{octet:02X}" for octet in text.encode())
    assert addresses.decode_xtext(encoded) == text


# The sender comes back


def mangled(address: str) -> list[str]:
    """Return the spellings of an SRS address that receivers make of it (S8)."""
    local, _, domain = address.rpartition("@")
    bare = local.strip('"')
    encoded = bare.replace("+", "%2B").replace("=", "%3D")
    return [address, f'"{bare}"@{domain}', f"{bare}@{domain}", f"{encoded}@{domain}", f"{encoded.lower()}@{domain}"]


SENDERS = st.builds(
    "{}@{}".format,
    st.from_regex(r"[A-Za-z0-9!#$&'*/=?^_`{|}~+-]{1,80}", fullmatch=True),
    st.from_regex(r"[a-z]([a-z0-9-]{0,40}[a-z0-9])?\.(example|com|co\.uk)", fullmatch=True),
).filter(lambda text: first_hop(Address.parse(text)) == Address.parse(text) and "srs" not in text.lower())


@given(SENDERS, SRS_SETTINGS, st.sampled_from(["john.work", "a b", ""]))
def test_whatever_is_made_comes_back_to_the_very_sender_in_every_spelling(
    sender: str, srs: dict[str, object], mailbox: str
) -> None:
    made, shelf = snapshot(organization("contoso", "contoso.com"), **srs), Shelf()
    if rewriting.leaving(made, sender) is not Egress.REWRITE:
        return
    if mailbox:
        new = rewriting.forwarded(made, sender, Address(mailbox, "contoso.com"), NOW)
    else:
        new = rewriting.relayed(made, sender, None, NOW)
    address = shelf.put(new)
    assert rewriting.leaving(made, address) is Egress.OUT
    for spelling in mangled(address):
        assert reversal.reverse(made, spelling, NOW, shelf.get).original.lower() == sender.lower(), spelling
    assert reversal.reverse(made, address, NOW, shelf.get).original == sender
    assert reversal.reverse(made, address.lower(), NOW, shelf.get).original.lower() == sender.lower()


# The form


def test_compact_form_is_made_where_the_local_part_would_have_65_octets() -> None:
    def made(length: int) -> Rewritten:
        return rewriting.relayed(CONTOSO, f"{'b' * length}@fabrikam.com", None, NOW)

    # bounces+SRS=12345678=RA=fabrikam.com= is 37 octets.
    assert (made(27).form, len(made(27).address)) == ("bounces", len("@contoso.com") + 64)
    compact = made(28)
    assert (compact.form, compact.original) == ("compact", f"{'b' * 28}@fabrikam.com")
    assert compact.address == f"bounces+SRS={compact.token}=RA@contoso.com"
    assert compact.otherwise.endswith(f"=RA=fabrikam.com={'b' * 28}@contoso.com")


def test_quotes_count_where_64_octets_are_the_limit() -> None:
    sender = f'"{"b" * 24} b"@fabrikam.com'
    assert rewriting.relayed(CONTOSO, sender, None, NOW).form == "compact"
    assert rewriting.relayed(CONTOSO, f"{'b' * 26}@fabrikam.com", None, NOW).form == "bounces"


@pytest.mark.parametrize("format_", ["exchange", "srs0"])
@pytest.mark.parametrize("sender", ["a%b@fabrikam.com", "x!ann@fabrikam.com", '"a@b"@fabrikam.com'])
def test_sender_that_postfix_would_route_elsewhere_is_made_compact_and_long_only_where_it_must(
    format_: str, sender: str
) -> None:
    auto, long = (
        snapshot(organization("contoso", "contoso.com"), format=format_, form=form) for form in ("auto", "long")
    )
    compact = rewriting.relayed(auto, sender, None, NOW)
    assert (compact.form, compact.original) == ("compact", sender)
    written = rewriting.relayed(long, sender, None, NOW)
    assert written == Rewritten(compact.otherwise, "bounces")
    assert reversal.reverse(auto, written.address, NOW, nothing) == Reversal(Bounce.ORIGINAL, sender)


def test_mailbox_that_postfix_would_route_elsewhere_is_not_named() -> None:
    new = rewriting.forwarded(CONTOSO, "bob@x.example", Address("a%b", "contoso.com"), NOW)
    assert (new.form, new.address.partition("+")[0]) == ("compact", "bounces")


def test_form_long_is_made_beyond_64_octets_up_to_254() -> None:
    made = snapshot(organization("contoso", "contoso.com"), form="long")
    fixed = len("bounces+SRS=12345678=RA=fabrikam.com=@contoso.com")
    assert len(rewriting.relayed(made, f"{'b' * (254 - fixed)}@fabrikam.com", None, NOW).address) == 254
    too_long = f"{'b' * (255 - fixed)}@fabrikam.com"
    assert rewriting.leaving(made, too_long) is Egress.IMPOSSIBLE
    with pytest.raises(AddressError):
        rewriting.relayed(made, too_long, None, NOW)


def test_form_compact_is_made_of_short_senders_too() -> None:
    made = snapshot(organization("contoso", "contoso.com"), form="compact")
    assert rewriting.relayed(made, "bob@fabrikam.com", None, NOW).form == "compact"


def test_same_sender_has_the_same_token_all_day_and_another_one_the_next_day() -> None:
    made = snapshot(organization("contoso", "contoso.com"), form="compact")

    def token(sender: str, now: int) -> str:
        return rewriting.relayed(made, sender, None, now).token

    assert token("bob@fabrikam.com", NOW) == token("bob@fabrikam.com", NOW + 86399)
    assert len({token(sender, now) for sender in ("bob@x.example", "ann@x.example") for now in (NOW, NOW + 86400)}) == 4


def test_token_expires_a_day_after_its_address() -> None:
    made = snapshot(organization("contoso", "contoso.com"), form="compact", validity_days=7)
    assert rewriting.relayed(made, "bob@fabrikam.com", None, NOW).expires_day == DAY + 8


def test_compact_address_of_a_forwarding_mailbox_is_its_organizations() -> None:
    made = snapshot(organization("contoso", "contoso.com", "contoso.net", contoso="s.contoso.com"), form="compact")
    new = rewriting.forwarded(made, "bob@x.example", Address("john", "contoso.net"), NOW)
    assert (new.form, new.address.rpartition("@")[2]) == ("compact", "s.contoso.com")


def test_without_the_store_the_long_form_is_left_up_to_254_octets() -> None:
    new = rewriting.relayed(CONTOSO, f"{'b' * 64}@fabrikam.com", None, NOW)
    assert rewriting.without_store(new) == Rewritten(new.otherwise, "long")
    assert reversal.reverse(CONTOSO, new.otherwise, NOW, nothing).original == f"{'b' * 64}@fabrikam.com"
    endless = rewriting.relayed(CONTOSO, f"{'b' * 240}@fabrikam.com", None, NOW)
    assert (endless.form, rewriting.without_store(endless)) == ("compact", None)


def test_compact_form_that_would_pass_254_octets_itself_is_impossible() -> None:
    made = snapshot(organization("long", ".".join(["l" * 55] * 4)), form="compact")
    assert rewriting.leaving(made, "bob@fabrikam.com") is Egress.IMPOSSIBLE


@pytest.mark.parametrize(("form", "sender"), [("compact", "b@x.example"), ("auto", "a%b@x.example")])
def test_compact_form_that_would_pass_254_octets_is_impossible_though_the_long_one_would_not(
    form: str, sender: str
) -> None:
    made = snapshot(organization("long", ".".join(["l" * 55] * 4)), format="srs0", form=form)
    assert rewriting.leaving(made, sender) is Egress.IMPOSSIBLE
    with pytest.raises(AddressError):
        rewriting.relayed(made, sender, None, NOW)


def test_classic_format_is_made_with_its_settings() -> None:
    made = snapshot(
        organization("contoso", "contoso.com"),
        format="srs0",
        srs0={"separator": "+", "hash_length": 12, "hash_minimum": 8},
    )
    new = rewriting.forwarded(made, "bob@fabrikam.com", Address("john", "contoso.com"), NOW)
    tag, hash_, rest = new.address[:5], new.address[5:17], new.address[17:]
    assert (tag, rest) == ("SRS0+", "=RA=fabrikam.com=bob@contoso.com")
    assert "=" not in hash_


def test_each_accepted_domain_may_have_an_srs_domain_of_its_own() -> None:
    made = snapshot(
        organization(
            "contoso",
            "contoso.com",
            "fabrikam.com",
            "contoso.net",
            srs_domain="srs.contoso.com",
            fabrikam="srs.fabrikam.com",
        )
    )

    def domain(mailbox_domain: str) -> str:
        return rewriting.forwarded(made, "bob@x.example", Address("j", mailbox_domain), NOW).address.rpartition("@")[2]

    assert domain("fabrikam.com") == "srs.fabrikam.com"
    assert domain("contoso.com") == domain("contoso.net") == "srs.contoso.com"
    assert rewriting.leaving(made, "a@srs.fabrikam.com") is Egress.OUT


# Which senders


@pytest.mark.parametrize(
    ("lists", "sender", "expected"),
    [
        ({"exclude": ["fabrikam.com"]}, "bob@fabrikam.com", Egress.OUT),
        ({"exclude": ["fabrikam.com"]}, "bob@FABRIKAM.com", Egress.OUT),
        ({"exclude": ["fabrikam.com"]}, "bob@mail.fabrikam.com", Egress.REWRITE),
        ({"exclude": ["*.fabrikam.com"]}, "bob@fabrikam.com", Egress.REWRITE),
        ({"exclude": ["*.fabrikam.com"]}, "bob@a.b.fabrikam.com", Egress.OUT),
        ({"exclude": ["*.fabrikam.com"]}, "bob@[192.0.2.1]", Egress.REWRITE),
        ({"include": ["fabrikam.com"]}, "bob@fabrikam.com", Egress.REWRITE),
        ({"include": ["fabrikam.com"]}, "bob@x.example", Egress.OUT),
        ({"include": ["fabrikam.com"]}, "bob@[192.0.2.1]", Egress.OUT),
        ({"include": ["fabrikam.com"]}, "root", Egress.OUT),
        ({"include": ["*.com"], "exclude": ["fabrikam.com"]}, "bob@fabrikam.com", Egress.OUT),
    ],
)
def test_lists_say_whose_senders_are_rewritten(lists: dict[str, object], sender: str, expected: Egress) -> None:
    assert rewriting.leaving(snapshot(organization("contoso", "contoso.com"), **lists), sender) is expected


def test_empty_include_file_lets_nobody_be_rewritten(tmp_path: Path) -> None:
    listed = tmp_path / "include"
    listed.write_text("# none yet\n")
    made = snapshot(organization("contoso", "contoso.com"), include_file=str(listed))
    for sender in ("bob@fabrikam.com", "bob@[192.0.2.1]", "root"):
        assert rewriting.leaving(made, sender) is Egress.OUT
    assert made.include is not None


@pytest.mark.parametrize("lists", [{}, {"include": []}], ids=["none", "empty list"])
def test_without_an_include_list_everybody_is_rewritten(lists: dict[str, object]) -> None:
    made = snapshot(organization("contoso", "contoso.com"), **lists)
    assert made.include is None
    assert rewriting.leaving(made, "bob@fabrikam.com") is Egress.REWRITE


def test_include_list_and_file_count_together(tmp_path: Path) -> None:
    listed = tmp_path / "include"
    listed.write_text("vendor.example\n")
    made = snapshot(organization("contoso", "contoso.com"), include=["fabrikam.com"], include_file=str(listed))
    leaving = [rewriting.leaving(made, f"bob@{domain}") for domain in ("fabrikam.com", "vendor.example", "x.example")]
    assert leaving == [Egress.REWRITE, Egress.REWRITE, Egress.OUT]


# Chains


HOST_A = organization("contoso", "contoso.com")
HOST_B = organization("northwind", "northwind.example")


@pytest.mark.parametrize("form", ["auto", "long", "compact"])
@pytest.mark.parametrize("format_b", ["exchange", "srs0"])
@pytest.mark.parametrize("format_a", ["exchange", "srs0"])
@pytest.mark.parametrize(
    "sender", ["bob@fabrikam.com", f"{'b' * 60}@fabrikam.com", "SRS0=abcd=AA=x.example=bob@fabrikam.com"]
)
def test_chain_of_two_hosts_stays_short_and_its_bounce_comes_back(
    format_a: str, format_b: str, form: str, sender: str
) -> None:
    hosts = {
        "contoso.com": (snapshot(HOST_A, format=format_a, form=form), Shelf()),
        "northwind.example": (snapshot(HOST_B, keys=Keys([b"another"]), format=format_b, form=form), Shelf()),
    }
    lengths = []
    address = sender
    for hop in range(12):
        made, shelf = list(hosts.values())[hop % 2]
        assert rewriting.leaving(made, address) is Egress.REWRITE
        address = shelf.put(rewriting.relayed(made, address, None, NOW + hop))
        lengths.append(len(address))
    assert max(lengths[4:]) <= max(lengths[:4]) < 170
    for _ in range(20):
        made, shelf = hosts[address.rpartition("@")[2]]
        found = reversal.reverse(made, address, NOW + 86400, shelf.get)
        assert found.bounce is Bounce.ORIGINAL
        address = found.original
        if address.rpartition("@")[2] not in hosts:
            break
    assert address == sender


@pytest.mark.parametrize("srs", [{"format": "exchange"}, {"format": "srs0"}, {"form": "compact"}, {"form": "long"}])
@pytest.mark.parametrize(
    "forged",
    [
        "x+SRS=aaaaaaaa=RA=contoso.com=ceo+SRS=bbbbbbbb=RA=v.example=z@fabrikam.com",
        "SRS0=aaaa=RA=contoso.com=ceo+SRS=bbbbbbbb=RA=v.example=z@fabrikam.com",
        "x+SRS=aaaaaaaa=RA=contoso.com=SRS0=bbbb=RA=v.example=z@fabrikam.com",
    ],
)
def test_layer_with_a_wrong_hash_of_ours_is_wrapped_and_not_sent_on(srs: dict[str, object], forged: str) -> None:
    made, shelf = snapshot(HOST_A, also_reverse=["srs0"], **srs), Shelf()
    address = shelf.put(rewriting.relayed(made, forged, None, NOW))
    assert address.startswith(("bounces+SRS=", "SRS0=", "SRS1="))
    assert not address.startswith("SRS0=bbbb")
    assert reversal.reverse(made, address, NOW, shelf.get).original == forged


def test_own_layer_that_has_expired_stays_wrapped() -> None:
    old = rewriting.relayed(CONTOSO, "bob@x.example", None, NOW - 22 * 86400).address
    wrapped = f"x+SRS=aaaaaaaa=RA=contoso.com={old.rpartition('@')[0]}@fabrikam.com"
    new = rewriting.relayed(CONTOSO, wrapped, None, NOW)
    assert new.original == wrapped
