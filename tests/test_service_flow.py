# SPDX-License-Identifier: GPL-3.0-or-later
"""What becomes of a message: the decisions that the milter, the maps and policyd share."""

from __future__ import annotations

from pathlib import Path
from typing import Optional

import pytest
from hypothesis import example, given
from hypothesis import strategies as st

from gatepost.relay import Mail, Reason, Result
from gatepost.service import flow
from gatepost.service.config import parse
from gatepost.service.flow import Bounce, Egress, Reversal, Treatment
from gatepost.service.snapshot import Snapshot, build
from gatepost.srs import Address, AddressError, Keys

DAY = 20_000
NOW = DAY * 86400
KEYS = Keys([b"the first key"])
OFFICE = "192.0.2.5"
OUTSIDE = "x@example.com"
Raw = dict[str, object]


def organization(name: str, *domains: str, mode: str = "enforce", srs_domain: str = "") -> Raw:
    """Return an [[organization]]; "*.contoso.com" stands for contoso.com with its subdomains."""
    accepted = [
        {"domain": domain[2:], "type": "InternalRelay", "match_subdomains": True}
        if domain.startswith("*.")
        else {"domain": domain}
        for domain in domains
    ]
    accepted[0]["default"] = True
    raw: Raw = {
        "name": name,
        "mode": mode,
        "accepted_domain": accepted,
        "connector": [
            {"name": "office", "sender_ip_addresses": [f"{OFFICE}/32" if name == "contoso" else "203.0.113.0/24"]},
            {"name": "crm", "tls_sender_certificate_name": f"mail.{accepted[0]['domain']}"},
        ],
    }
    return {**raw, "srs_domain": srs_domain} if srs_domain else raw


def snapshot(*organizations: Raw, requirements: str = "2023-11-01", mode: str = "enforce") -> Snapshot:
    raw: Raw = {
        "organization": list(organizations),
        "relay": {"requirements": requirements, "mode": mode, "local_domains": ["mail.contoso.net"]},
        "egress": {},
    }
    return build(parse(raw, Path("gatepost.toml")), KEYS)


CONTOSO = snapshot(organization("contoso", "contoso.com"))
TWO = snapshot(
    organization("contoso", "contoso.com", "*.corp.contoso.com", srs_domain="srs.contoso.com"),
    organization("fabrikam", "fabrikam.example", mode="monitor"),
)

# The egress hop: map and milter

_LOCAL_PARTS = st.one_of(
    st.sampled_from(
        ["bob", "bob+tag", "a=b", "x+SRS=aaaaaaaa=AA=y.example=z", "a b", '"a b"', '"\\""', "bøb", "b" * 60]
    ),
    st.text(st.characters(codec="utf-8"), min_size=1, max_size=70),
)
_DOMAINS = st.one_of(
    st.sampled_from(
        [
            *("contoso.com", "CONTOSO.com", "sub.contoso.com", "srs.contoso.com", "corp.contoso.com"),
            *("a.b.corp.contoso.com", "fabrikam.example", "fabrikam.com", "bücher.example", "xn--bcher-kva.example"),
            *("[192.0.2.1]", "localhost", ".".join(["d" * 60] * 4), ".".join(["d" * 50] * 3)),
        ]
    ),
    st.text(st.characters(codec="utf-8"), max_size=70),
)
ADDRESSES = st.one_of(
    st.builds("{}@{}".format, _LOCAL_PARTS, _DOMAINS),
    st.binary(max_size=30).map(lambda octets: octets.decode("utf-8", "surrogateescape")),
    st.just(""),
)


@st.composite
def snapshots(draw: st.DrawFn) -> Snapshot:
    """Any configuration of up to two organisations."""
    modes = st.sampled_from(["enforce", "monitor"])
    organizations = []
    if draw(st.booleans()):
        domains = draw(st.sampled_from([["contoso.com"], ["contoso.com", "*.corp.contoso.com"], ["*.contoso.com"]]))
        srs_domain = draw(st.sampled_from(["", "srs.contoso.com"]))
        organizations.append(organization("contoso", *domains, mode=draw(modes), srs_domain=srs_domain))
    if draw(st.booleans()):
        domain = draw(st.sampled_from(["fabrikam.example", "fabrikam." + ".".join(["f" * 60] * 3)]))
        organizations.append(organization("fabrikam", domain, mode=draw(modes)))
    return snapshot(*organizations, mode=draw(modes))


@given(snapshots(), ADDRESSES, _LOCAL_PARTS, _DOMAINS)
def test_sender_that_the_map_sends_to_the_hop_leaves_it_as_one_that_the_map_lets_out(
    made: Snapshot, reverse_path: str, local: str, domain: str
) -> None:
    if flow.egress(made, reverse_path) is not Egress.REWRITE:
        return
    senders = [flow.relayed(made, reverse_path, whose, NOW) for whose in (None, *made.config.organizations.values())]
    mailbox = flow.forwarder(made, f"utf-8;{local}@{domain}", OUTSIDE)
    if mailbox:
        senders.append(flow.forwarded(made, reverse_path, mailbox, NOW))
    original = flow.parse_address(reverse_path)
    for sender in senders:
        assert flow.egress(made, sender) is Egress.OUT
        assert flow.leaving(made, sender) is Egress.OUT
        reversal = flow.reverse(made, sender, NOW)
        assert reversal == Reversal(Bounce.ORIGINAL, str(original))


@given(snapshots(), ADDRESSES)
def test_sender_that_the_map_has_bounced_could_not_be_rewritten(made: Snapshot, reverse_path: str) -> None:
    if flow.egress(made, reverse_path) is not Egress.IMPOSSIBLE:
        return
    longest = max(
        made.config.organizations.values(),
        key=lambda item: len(made.config.settings[item.name].srs_domain or item.default_domain),
    )
    with pytest.raises(AddressError):
        flow.relayed(made, reverse_path, longest, NOW)


@given(snapshots(), ADDRESSES)
def test_sender_that_is_let_out_is_null_or_ours_or_nobody_enforces(made: Snapshot, reverse_path: str) -> None:
    if flow.egress(made, reverse_path) is not Egress.OUT or not reverse_path or not made.enforcing:
        return
    domain = flow.domain_of(reverse_path)
    assert domain is not None
    assert made.rules.accepted(domain) or domain == "srs.contoso.com"


@given(snapshots(), ADDRESSES, ADDRESSES, ADDRESSES)
def test_no_address_raises_anything(made: Snapshot, reverse_path: str, rcpt: str, orcpt: str) -> None:
    flow.egress(made, reverse_path)
    flow.reverse(made, rcpt, NOW)
    flow.forwarder(made, f"rfc822;{orcpt}", rcpt)
    flow.judge(made, made.rules.client(OFFICE), Mail(reverse_path), rcpt)


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
        (f"bob@{'.'.join(['d' * 60] * 4)}", Egress.IMPOSSIBLE),
    ],
)
def test_what_must_happen_to_a_sender_that_leaves(reverse_path: str, expected: Egress) -> None:
    assert flow.egress(TWO, reverse_path) is expected


def test_nothing_takes_the_hop_where_every_organization_monitors() -> None:
    monitoring = snapshot(organization("contoso", "contoso.com", mode="monitor"))
    assert flow.egress(monitoring, "bob@fabrikam.com") is Egress.OUT
    assert flow.leaving(monitoring, "bob@fabrikam.com") is Egress.REWRITE


def test_nothing_takes_the_hop_without_an_organization() -> None:
    assert flow.egress(snapshot(), "bob@fabrikam.com") is Egress.OUT


def test_sender_that_fits_into_the_default_domain_only_is_impossible() -> None:
    # Which organisation the hop will name is not known to the map.
    long = snapshot(organization("contoso", "contoso.com"), organization("long", f"{'.'.join(['l' * 60] * 3)}.example"))
    sender = f"{'b' * 60}@fabrikam.com"
    assert flow.egress(CONTOSO, sender) is Egress.REWRITE
    assert flow.egress(long, sender) is Egress.IMPOSSIBLE


# Rewriting


def test_relayed_mail_is_rewritten_in_the_default_domain_of_its_organization() -> None:
    fabrikam = TWO.config.organizations["fabrikam"]
    assert flow.relayed(TWO, "bob@x.example", fabrikam, NOW).endswith("=RA=x.example=bob@fabrikam.example")


def test_relayed_mail_of_nobody_is_rewritten_in_the_first_organization() -> None:
    assert flow.relayed(TWO, "bob@x.example", None, NOW).endswith("=x.example=bob@srs.contoso.com")


def test_relayed_mail_cannot_be_rewritten_without_an_organization() -> None:
    with pytest.raises(AddressError, match="no organization is configured"):
        flow.relayed(snapshot(), "bob@x.example", None, NOW)


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
    sender = flow.forwarded(TWO, "bob@x.example", mailbox, NOW)
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
    assert str(flow.forwarder(TWO, orcpt, OUTSIDE)) == mailbox


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
    assert flow.forwarder(TWO, orcpt, OUTSIDE) is None


@pytest.mark.parametrize("rcpt", ["john@contoso.com", "John@CONTOSO.com", '"john"@contoso.com'])
def test_orcpt_that_is_the_recipient_itself_names_nobody(rcpt: str) -> None:
    assert flow.forwarder(TWO, "rfc822;john@contoso.com", rcpt) is None


@given(st.binary(max_size=60), st.binary(max_size=20))
@example(b"rfc822;+C3@contoso.com", b"\xff")
def test_malformed_orcpt_raises_nothing(orcpt: bytes, rcpt: bytes) -> None:
    as_the_milter_reads = (octets.decode("utf-8", "surrogateescape") for octets in (orcpt, rcpt))
    flow.forwarder(TWO, *as_the_milter_reads)


@given(st.text(st.characters(codec="utf-8"), max_size=30))
def test_xtext_decodes_to_what_was_encoded(text: str) -> None:
    encoded = "".join(f"+{octet:02X}" for octet in text.encode())
    assert flow.decode_xtext(encoded) == text


# Bounces


def srs(made: Snapshot, domain: str, day: int = DAY, mailbox: str = "bounces") -> str:
    return str(made.exchange.forward(Address("Bob", "Fabrikam.com"), mailbox, domain, day))


@pytest.mark.parametrize(
    ("now", "bounce"),
    [
        (NOW, Bounce.ORIGINAL),
        (NOW + 22 * 86400 - 1, Bounce.ORIGINAL),
        (NOW + 22 * 86400, Bounce.EXPIRED),
        (NOW - 1, Bounce.EXPIRED),
        (NOW + 1023 * 86400, Bounce.EXPIRED),
        (NOW + 1024 * 86400, Bounce.ORIGINAL),
    ],
    ids=["same day", "end of the 21st day", "22nd day", "second before", "day before a period", "a period later"],
)
def test_srs_address_is_reversed_for_21_days(now: int, bounce: Bounce) -> None:
    reversal = flow.reverse(CONTOSO, srs(CONTOSO, "contoso.com"), now)
    assert reversal == Reversal(bounce, "Bob@Fabrikam.com" if bounce is Bounce.ORIGINAL else "")


@pytest.mark.parametrize(("now", "day"), [(0, 0), (86399, 0), (86400, 1), (NOW - 1, DAY - 1), (NOW, DAY)])
def test_day_begins_at_midnight_utc(now: int, day: int) -> None:
    assert flow.day(now) == day


def test_srs_address_in_the_spelling_of_a_receiver_is_reversed() -> None:
    address = srs(CONTOSO, "contoso.com")
    assert flow.reverse(CONTOSO, address.lower(), NOW).original == "bob@fabrikam.com"
    assert flow.reverse(CONTOSO, address.replace("contoso.com", "CONTOSO.COM"), NOW).original == "Bob@Fabrikam.com"


def test_srs_address_that_postfix_has_unquoted_is_reversed() -> None:
    quoted = flow.relayed(CONTOSO, '"a b"@fabrikam.com', None, NOW)
    local, _, domain = quoted.rpartition("@")
    unquoted = f"{local[1:-1]}@{domain}"
    assert flow.reverse(CONTOSO, quoted, NOW).original == '"a b"@fabrikam.com'
    assert flow.reverse(CONTOSO, unquoted, NOW).original == '"a b"@fabrikam.com'


def test_changed_srs_address_is_forged_where_this_host_makes_them() -> None:
    assert flow.reverse(CONTOSO, srs(CONTOSO, "contoso.com").replace("Bob", "Eve"), NOW).bounce is Bounce.FORGED
    assert flow.reverse(TWO, srs(TWO, "srs.contoso.com").replace("Bob", "Eve"), NOW).bounce is Bounce.FORGED


def test_changed_srs_address_is_foreign_in_monitor_mode_where_this_host_makes_none_yet() -> None:
    # An organization that looks on first may have its SRS addresses made by Exchange Online.
    assert flow.reverse(TWO, srs(TWO, "fabrikam.example").replace("Bob", "Eve"), NOW).bounce is Bounce.FOREIGN


def test_changed_srs_address_is_foreign_in_an_accepted_domain_beside_an_srs_domain() -> None:
    # Exchange Online mints the same form there with a key of its own.
    assert flow.reverse(TWO, srs(TWO, "contoso.com").replace("Bob", "Eve"), NOW).bounce is Bounce.FOREIGN
    assert flow.reverse(TWO, srs(TWO, "a.corp.contoso.com").replace("Bob", "Eve"), NOW).bounce is Bounce.FOREIGN


def test_own_srs_address_from_before_an_srs_domain_was_declared_is_reversed() -> None:
    assert flow.reverse(TWO, srs(TWO, "contoso.com"), NOW).original == "Bob@Fabrikam.com"


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
    assert flow.reverse(CONTOSO, rcpt, NOW) == Reversal(bounce)


# The verdict and what follows from it


def treatment(
    made: Snapshot,
    reverse_path: str,
    rcpt: str,
    ip: str = OFFICE,
    certificate: str = "",
    header_from: Optional[str] = None,
    **client: bool,
) -> tuple[Result, bool, Treatment]:
    judgement = flow.judge(
        made,
        made.rules.client(ip, [certificate] if certificate else [], **client),
        Mail(reverse_path, (header_from,) if header_from else ()),
        rcpt,
        headers_seen=header_from is not None,
    )
    return judgement.verdict.result, judgement.enforce, judgement.treatment


CRM = {"ip": "198.51.100.7", "certificate": "mail.contoso.com"}


def test_inside_recipient_keeps_any_sender() -> None:
    expected = (Result.INSIDE, True, Treatment.KEEP)
    assert treatment(CONTOSO, "bob@fabrikam.com", "ann@contoso.com", ip="198.51.100.7") == expected


def test_accepted_sender_of_a_known_host_is_relayed_as_it_is() -> None:
    assert treatment(CONTOSO, "ann@contoso.com", OUTSIDE) == (Result.RELAY, True, Treatment.KEEP)


def test_foreign_sender_of_a_known_certificate_is_relayed_and_rewritten() -> None:
    assert treatment(CONTOSO, "bob@fabrikam.com", OUTSIDE, **CRM) == (Result.RELAY, True, Treatment.REWRITE)


def test_null_sender_of_a_known_certificate_is_relayed_as_it_is() -> None:
    assert treatment(CONTOSO, "", OUTSIDE, **CRM) == (Result.RELAY, True, Treatment.KEEP)


def test_foreign_sender_that_is_too_long_is_unrewritable() -> None:
    sender = f"bob@{'.'.join(['d' * 60] * 4)}"
    assert treatment(CONTOSO, sender, OUTSIDE, **CRM) == (Result.RELAY, True, Treatment.UNREWRITABLE)


@pytest.mark.parametrize("sender", ["bob@fabrikam.com", "", "ann@sub.contoso.com"])
def test_sender_that_is_not_accepted_is_refused_to_a_host_known_by_address(sender: str) -> None:
    assert treatment(CONTOSO, sender, OUTSIDE) == (Result.REFUSE, True, Treatment.REFUSE)


@pytest.mark.parametrize("kind", ["authenticated", "local"])
def test_exempt_client_has_its_foreign_sender_rewritten(kind: str) -> None:
    expected = (Result.EXEMPT, True, Treatment.REWRITE)
    assert treatment(CONTOSO, "bob@fabrikam.com", OUTSIDE, ip="198.51.100.7", **{kind: True}) == expected


def test_monitor_mode_of_the_organization_keeps_what_it_would_refuse_or_rewrite() -> None:
    made = snapshot(organization("contoso", "contoso.com", mode="monitor"))
    assert treatment(made, "bob@fabrikam.com", OUTSIDE) == (Result.REFUSE, False, Treatment.KEEP)
    assert treatment(made, "bob@fabrikam.com", OUTSIDE, **CRM) == (Result.RELAY, False, Treatment.KEEP)


def test_mode_is_that_of_the_organization_that_the_mail_is_attributed_to() -> None:
    stranger = {"ip": "203.0.113.7"}
    assert treatment(TWO, "bob@x.example", OUTSIDE, **stranger) == (Result.REFUSE, False, Treatment.KEEP)
    assert treatment(TWO, "bob@x.example", OUTSIDE) == (Result.REFUSE, True, Treatment.REFUSE)


@pytest.mark.parametrize(
    ("mode", "expected"),
    [("enforce", (Result.REFUSE, True, Treatment.REFUSE)), ("monitor", (Result.REFUSE, False, Treatment.KEEP))],
)
def test_mail_of_nobody_follows_the_mode_of_relay(mode: str, expected: tuple[Result, bool, Treatment]) -> None:
    made = snapshot(organization("contoso", "contoso.com", mode="enforce"), mode=mode)
    assert treatment(made, "bob@fabrikam.com", OUTSIDE, ip="198.51.100.7") == expected


def test_exempt_mail_of_nobody_follows_the_mode_of_the_first_organization() -> None:
    made = snapshot(organization("contoso", "contoso.com", mode="monitor"), mode="enforce")
    local = treatment(made, "bob@fabrikam.com", OUTSIDE, ip="127.0.0.1", local=True)
    assert local == (Result.EXEMPT, False, Treatment.KEEP)


def test_nothing_is_enforced_without_an_organization() -> None:
    assert treatment(snapshot(), "bob@fabrikam.com", OUTSIDE) == (Result.REFUSE, False, Treatment.KEEP)


def test_refusal_waits_for_the_header_from_under_legacy_rules() -> None:
    made = snapshot(organization("contoso", "contoso.com"), requirements="legacy")
    assert treatment(made, "bob@fabrikam.com", OUTSIDE) == (Result.REFUSE, True, Treatment.UNDECIDED)


def test_header_from_decides_under_legacy_rules() -> None:
    made = snapshot(organization("contoso", "contoso.com"), requirements="legacy")
    relayed = treatment(made, "bob@fabrikam.com", OUTSIDE, header_from="app@contoso.com")
    assert relayed == (Result.RELAY, True, Treatment.REWRITE)
    refused = treatment(made, "bob@fabrikam.com", OUTSIDE, header_from="bob@fabrikam.com")
    assert refused == (Result.REFUSE, True, Treatment.REFUSE)


def test_null_sender_is_named_as_the_reason() -> None:
    verdict = flow.judge(CONTOSO, CONTOSO.rules.client(OFFICE), Mail(""), OUTSIDE).verdict
    assert verdict.reason is Reason.NULL_SENDER


@pytest.mark.parametrize(
    ("address", "domain"),
    [("a@B.example", "b.example"), ("a@bücher.example", "xn--bcher-kva.example"), ("a@[192.0.2.1]", None), ("a", None)],
)
def test_domain_of_an_address_is_in_normal_form(address: str, domain: Optional[str]) -> None:
    assert flow.domain_of(address) == domain
