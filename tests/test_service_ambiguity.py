# SPDX-License-Identifier: GPL-3.0-or-later
"""What `gatepost config check` says of configurations in which it is not clear whose mail is whose (R3)."""

from __future__ import annotations

import time
from ipaddress import ip_network
from itertools import combinations, product
from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st

from gatepost.relay import AcceptedDomain, Connector, Organization, Rules
from gatepost.service.ambiguity import findings
from gatepost.service.config import load
from gatepost.service.exports import ExchangeExport
from gatepost.service.organizations import Mode, OrganizationConfig

EXAMPLES = sorted((Path(__file__).parent.parent / "examples").rglob("gatepost.toml"))


def connector(*addresses: str, certificate: str = "", name: str = "relay", enabled: bool = True) -> Connector:
    return Connector(name, tuple(map(ip_network, addresses)), certificate or None, enabled)


def organization(name: str, *connectors: Connector, domains: tuple[str, ...] = ()) -> Organization:
    """Return an organisation with NAME.example, or *domains*; "*.contoso.com": with match_subdomains."""
    given = domains or (f"{name}.example",)
    accepted = tuple(AcceptedDomain(item.replace("*.", ""), match_subdomains=item.startswith("*.")) for item in given)
    return Organization(name, accepted, connectors)


def found(*organizations: Organization, exports: bool = False) -> list[str]:
    """Return what is found, each up to its colon or comma, without the words that say what to do."""
    paths = (Path("connectors.json"),) if exports else ()
    settings = OrganizationConfig(Mode.MONITOR, exchange_export=ExchangeExport(paths))
    named = {item.name: item for item in organizations}
    return [line.split(": ")[0] for line in findings(named, dict.fromkeys(named, settings))]


# Addresses


def test_address_of_two_organizations_is_named_with_both_connectors() -> None:
    assert found(
        organization("a", connector("192.0.2.5", name="one")), organization("b", connector("192.0.2.5", name="two"))
    ) == ['192.0.2.5 is in connector "one" of a and connector "two" of b']


def test_network_within_that_of_another_organization_is_named() -> None:
    assert found(organization("a", connector("192.0.2.0/24")), organization("b", connector("192.0.2.64/28"))) == [
        '192.0.2.64/28 in connector "relay" of b is within 192.0.2.0/24 in connector "relay" of a'
    ]


def test_network_within_its_own_organizations_is_compared_with_the_next_one_around() -> None:
    assert found(
        organization("a", connector("198.51.0.0/16")),
        organization("b", connector("198.51.100.0/24", "198.51.100.7")),
    ) == [
        '198.51.100.0/24 in connector "relay" of b is within 198.51.0.0/16 in connector "relay" of a',
        '198.51.100.7 in connector "relay" of b is within 198.51.0.0/16 in connector "relay" of a',
    ]


@pytest.mark.parametrize(
    ("mine", "theirs"), [("192.0.2.0/25", "192.0.2.128/25"), ("192.0.2.5", "192.0.2.6"), ("::/96", "0.0.0.0/0")]
)
def test_networks_side_by_side_are_no_finding(mine: str, theirs: str) -> None:
    assert found(organization("a", connector(mine)), organization("b", connector(theirs))) == []


def test_one_organization_may_have_an_address_in_two_connectors() -> None:
    assert found(organization("a", connector("192.0.2.5"), connector("192.0.2.0/28", name="all"))) == []


def test_disabled_connector_shares_nothing() -> None:
    second = organization("b", connector("192.0.2.5", enabled=False), connector("192.0.2.6", name="other"))
    assert found(organization("a", connector("192.0.2.5")), second) == []


def test_words_say_what_happens_and_what_to_do() -> None:
    first, second = organization("a", connector("192.0.2.5")), organization("b", connector("192.0.2.5"))
    (line,) = findings({"a": first, "b": second}, {})
    assert line == (
        '192.0.2.5 is in connector "relay" of a and connector "relay" of b: without a certificate P1 alone tells whose '
        "mail comes from there, and mail with a null sender or a foreign P1 is refused as nobody's (relay.mode and "
        "relay.action). Give each organization a certificate of its own (tls_sender_certificate_name)"
    )


# Certificate names


def test_certificate_name_of_two_organizations_is_named() -> None:
    mine = organization("a", connector(certificate="mail.a.example"))
    assert found(mine, organization("b", connector(certificate="mail.a.example"))) == [
        'certificate name mail.a.example is in connector "relay" of a and connector "relay" of b',
        'connector "relay" of b',
    ]


@pytest.mark.parametrize("theirs", ["mail.a.example", "a.example", "*.mail.a.example", "x.y.a.example"])
def test_certificate_name_under_another_organizations_wildcard_is_named(theirs: str) -> None:
    mine = organization("a", connector(certificate="*.a.example"))
    other = organization("b", connector(certificate=theirs), domains=("b.example", "mail.a.example", "y.a.example"))
    assert found(mine, other)[0] == (
        f'certificate name {theirs} in connector "relay" of b is covered by *.a.example in connector "relay" of a'
    )


def test_one_organization_may_have_name_and_wildcard() -> None:
    connectors = (connector(certificate="*.a.example"), connector(certificate="mail.a.example", name="mail"))
    assert found(organization("a", *connectors)) == []


@pytest.mark.parametrize(
    ("certificate", "domains"),
    [
        ("contoso.com", ("contoso.com",)),
        ("mail.contoso.com", ("contoso.com",)),  # one label up (R9)
        ("*.contoso.com", ("contoso.com",)),
        ("*.corp.contoso.com", ("contoso.com",)),  # a certificate *.corp.contoso.com counts as corp.contoso.com
        ("*.contoso.com", ("corp.contoso.com",)),
        ("a.b.contoso.com", ("*.contoso.com",)),
    ],
)
def test_certificate_name_in_an_accepted_domain_is_no_finding(certificate: str, domains: tuple[str, ...]) -> None:
    assert found(organization("a", connector(certificate=certificate), domains=domains)) == []


@pytest.mark.parametrize("certificate", ["mail.vendor.example", "*.vendor.example", "a.b.contoso.com"])
def test_certificate_name_in_no_accepted_domain_is_named(certificate: str) -> None:
    assert found(organization("a", connector(certificate=certificate), domains=("contoso.com",))) == [
        'connector "relay" of a'
    ]


def test_words_for_a_certificate_name_say_both_domains_that_would_do() -> None:
    mine = organization("a", connector(certificate="a.b.contoso.com"), domains=("contoso.com",))
    (line,) = findings({"a": mine}, {})
    assert line == (
        'connector "relay" of a: no accepted domain of a is a.b.contoso.com, nor b.contoso.com, one label up: its '
        "certificate meets condition 2 only, so that mail needs an accepted P1, and null senders are refused. Declare "
        "the domain, or use a certificate name in an accepted domain, such as mail.contoso.com"
    )


# Accepted domains


def test_domain_under_another_organizations_match_subdomains_is_named() -> None:
    first = organization("a", connector("192.0.2.5"), domains=("*.contoso.com",))
    second = organization("b", connector("192.0.2.6"), domains=("lab.contoso.com",))
    (line,) = findings({"a": first, "b": second}, {})
    assert line == (
        "lab.contoso.com of b is below contoso.com, which a accepts with match_subdomains: lab.contoso.com itself "
        "counts for b, its subdomains for a. If that is not meant, declare the subdomains of contoso.com one by one"
    )


@pytest.mark.parametrize("domains", [("*.contoso.com", "lab.contoso.com"), ("contoso.com",)])
def test_domain_below_its_own_organizations_or_without_match_subdomains_is_no_finding(domains: tuple[str, ...]) -> None:
    first = organization("a", connector("192.0.2.5"), domains=domains)
    assert found(first, organization("b", connector("192.0.2.6"), domains=("x.fabrikam.com",))) == []


# Organisations that nobody can use


def test_r6_organization_whose_connectors_are_all_disabled_is_named() -> None:
    assert found(organization("a", connector("192.0.2.5", enabled=False))) == ["a"]


def test_organization_whose_exports_have_no_connector_is_named() -> None:
    assert found(organization("a"), exports=True) == ["a"]


def test_organization_without_connectors_by_hand_is_no_finding() -> None:
    # A forwarder, or postsrsd's place: SRS alone.
    assert found(organization("a")) == []


# Against every pair

ADDRESSES = st.builds(
    lambda octet, length: str(ip_network(f"192.0.2.{octet}/{length}", strict=False)),
    st.integers(0, 255),
    st.sampled_from([24, 26, 28, 31, 32]),
)
LABELS = st.lists(st.sampled_from("ab"), min_size=1, max_size=3).map(lambda labels: ".".join([*labels, "example"]))
CERTIFICATES = st.tuples(st.booleans(), LABELS).map(lambda pair: f"*.{pair[1]}" if pair[0] else pair[1])


@given(st.lists(st.lists(ADDRESSES, max_size=3), min_size=2, max_size=4))
def test_addresses_are_shared_where_any_pair_overlaps(lists: list[list[str]]) -> None:
    named = {f"o{number}": organization(f"o{number}", connector(*items)) for number, items in enumerate(lists)}
    overlapping = any(
        ip_network(one).overlaps(ip_network(other))
        for first, second in combinations(lists, 2)
        for one, other in product(first, second)
    )
    assert any(" is in " in line or " is within " in line for line in findings(named, {})) == overlapping


@given(st.lists(CERTIFICATES, min_size=2, max_size=4))
def test_certificate_names_are_shared_where_one_client_matches_any_pair(names: list[str]) -> None:
    named = {f"o{number}": organization(f"o{number}", connector(certificate=name)) for number, name in enumerate(names)}
    clients = [".".join([*labels, "example"]) for size in range(5) for labels in product("ab", repeat=size)]
    rules = Rules(named.values())
    matched = (
        {name for match in rules.client(None, [client]).enabled for name in match.connectors} for client in clients
    )
    shared = any(len(organizations) > 1 for organizations in matched)
    assert any(line.startswith("certificate name ") for line in findings(named, {})) == shared


# All together


@pytest.mark.parametrize("example", EXAMPLES, ids=lambda path: path.parent.name)
def test_no_example_has_a_finding(example: Path) -> None:
    config = load(example)
    assert findings(config.organizations, config.settings) == []


def test_there_are_examples() -> None:
    assert EXAMPLES


def test_of_many_findings_a_few_of_each_kind_are_told() -> None:
    organizations = {
        f"o{number}": organization(
            f"o{number}",
            connector(f"192.0.2.{number}", name="ip"),
            connector("192.0.2.0/24", certificate="*.a.example", name="all"),
        )
        for number in range(30)
    }
    lines = findings(organizations, {})
    assert [line.split(" in ")[0].split(": ")[0] for line in lines] == [
        "192.0.2.0/24 is",
        "192.0.2.0",
        "192.0.2.1",
        "and 28 more shared addresses",
        "certificate name *.a.example is",
        'connector "all" of o0',
        'connector "all" of o1',
        'connector "all" of o2',
        "and 27 more certificate names",
    ]


def test_ten_thousand_organizations_take_seconds() -> None:
    organizations = {
        f"o{number}": organization(
            f"o{number}",
            connector(f"10.{number >> 8}.{number & 255}.0/24", "192.0.2.5"),
            connector(certificate="*.shared.example", name="certificate"),
        )
        for number in range(10_000)
    }
    start = time.perf_counter()
    lines = findings(organizations, {})
    assert time.perf_counter() - start < 10
    assert len(lines) <= 20
