# SPDX-License-Identifier: GPL-3.0-or-later
"""Which connectors match a client by address and by certificate name (R7, R8)."""

from __future__ import annotations

from ipaddress import ip_network
from typing import Optional

import pytest

from gatepost.relay import Connector, Organization
from gatepost.relay.index import ConnectorIndex, parse_address

CONTOSO = Organization("contoso", ())


def matching(connectors: list[Connector], ip: Optional[str] = None, *domains: str) -> list[str]:
    index = ConnectorIndex((CONTOSO, connector) for connector in connectors)
    matches = index.matches(parse_address(ip), ip or "", domains)
    return [connector.name for match in matches for connector in match.connectors["contoso"]]


def by_network(*networks: str) -> list[Connector]:
    return [Connector(network, (ip_network(network, strict=False),)) for network in networks]


def by_name(*names: str) -> list[Connector]:
    return [Connector(name, tls_sender_certificate_name=name) for name in names]


@pytest.mark.parametrize(
    ("network", "ip", "held"),
    [
        ("192.0.2.1", "192.0.2.1", True),
        ("192.0.2.1", "192.0.2.2", False),
        ("192.0.2.128/25", "192.0.2.128", True),
        ("192.0.2.128/25", "192.0.2.255", True),
        ("192.0.2.128/25", "192.0.2.127", False),
        ("192.168.0.1/25", "192.168.0.127", True),  # R7: host bits
        ("10.0.0.0/8", "10.255.0.1", True),  # R7: wider than Exchange Online takes
        ("0.0.0.0/0", "203.0.113.1", True),
        ("0.0.0.0/0", "2001:db8::1", False),
        ("2001:db8::/32", "2001:db8:ffff::1", True),
        ("2001:db8::/32", "2001:db9::1", False),
        ("::/0", "192.0.2.1", False),
        ("192.0.2.0/24", "::ffff:192.0.2.1", True),
        ("::ffff:192.0.2.0/120", "192.0.2.1", True),
        ("::ffff:192.0.2.0/120", "::ffff:192.0.3.1", False),
        ("::ffff:0.0.0.0/96", "203.0.113.1", True),
        ("::ffff:0.0.0.0/96", "2001:db8::1", False),
        ("::ffff:0.0.0.0/95", "203.0.113.1", False),
        ("2001:db8::1:0/112", "2001:db8::1:1", True),
        ("2001:db8::1:0/112", "2001:db8::2:1", False),
    ],
)
def test_r7_address_matches_the_networks_that_hold_it(network: str, ip: str, held: bool) -> None:
    assert matching(by_network(network), ip) == ([network] if held else [])


@pytest.mark.parametrize("ip", [None, "", "unknown", "192.0.2", "192.0.2.1/32", "localhost"])
def test_what_is_no_ip_address_matches_nothing(ip: Optional[str]) -> None:
    assert matching(by_network("0.0.0.0/0", "::/0"), ip) == []


def test_longest_prefix_comes_first() -> None:
    networks = ("192.0.0.0/16", "192.0.2.1/32", "192.0.2.0/24")
    assert matching(by_network(*networks), "192.0.2.1") == ["192.0.2.1/32", "192.0.2.0/24", "192.0.0.0/16"]


@pytest.mark.parametrize(
    ("name", "domain", "held"),
    [
        ("mail.contoso.com", "mail.contoso.com", True),
        ("mail.contoso.com", "contoso.com", False),
        ("mail.contoso.com", "a.mail.contoso.com", False),
        ("*.contoso.com", "contoso.com", True),
        ("*.contoso.com", "mail.contoso.com", True),
        ("*.contoso.com", "a.b.c.contoso.com", True),
        ("*.contoso.com", "notcontoso.com", False),
        ("*.contoso.com", "com", False),
    ],
)
def test_r8_connector_name_covers_itself_or_with_wildcard_all_below(name: str, domain: str, held: bool) -> None:
    assert matching(by_name(name), None, domain) == ([name] if held else [])


def test_connector_that_two_certificate_names_match_is_found_once() -> None:
    assert matching(by_name("*.contoso.com"), None, "a.contoso.com", "b.contoso.com") == ["*.contoso.com"]


def test_certificate_matches_come_before_address_matches() -> None:
    connectors = by_network("192.0.2.1/32") + by_name("mail.contoso.com")
    assert matching(connectors, "192.0.2.1", "mail.contoso.com") == ["mail.contoso.com", "192.0.2.1/32"]


def test_connectors_of_several_organizations_stand_side_by_side() -> None:
    shared = by_network("192.0.2.1/32")[0]
    fabrikam = Organization("fabrikam", ())
    index = ConnectorIndex([(CONTOSO, shared), (fabrikam, shared)])
    (match,) = index.matches(parse_address("192.0.2.1"), "192.0.2.1", ())
    assert match.connectors == {"contoso": (shared,), "fabrikam": (shared,)}


FABRIKAM = Organization("fabrikam", (), (Connector("hoster", (ip_network("192.0.2.0/24"),)),))
TAILSPIN = Organization(
    "tailspin",
    (),
    (
        Connector("hoster", (ip_network("192.0.2.0/24"),)),
        Connector("office", (ip_network("198.51.100.7/32"),), "mail.tailspin.com"),
    ),
)


def indexed(*organizations: Organization) -> ConnectorIndex:
    return ConnectorIndex((organization, item) for organization in organizations for item in organization.connectors)


def found(index: ConnectorIndex, ip: str, *domains: str) -> list[list[str]]:
    return [sorted(match.connectors) for match in index.matches(parse_address(ip), ip, domains)]


def test_two_connectors_of_an_organization_with_one_network_both_match() -> None:
    connectors = [Connector(name, (ip_network("192.0.2.0/24"),)) for name in ("first", "second")]
    assert matching(connectors, "192.0.2.1") == ["first", "second"]


def test_network_written_twice_in_a_connector_matches_once() -> None:
    twice = Connector("twice", (ip_network("192.0.2.0/24"),) * 2)
    once = Connector("once", (ip_network("192.0.2.0/24"),))
    assert matching([once, twice], "192.0.2.1") == ["once", "twice"]


def test_index_made_of_another_has_its_connectors_and_the_new_ones() -> None:
    index = ConnectorIndex([(TAILSPIN, item) for item in TAILSPIN.connectors], indexed(FABRIKAM))
    assert found(index, "192.0.2.1") == [["fabrikam", "tailspin"]]
    assert found(index, "198.51.100.7", "mail.tailspin.com") == [["tailspin"], ["tailspin"]]


def test_index_made_of_another_keeps_its_names_and_wildcards() -> None:
    crm = Organization("crm", (), (Connector("crm", tls_sender_certificate_name="*.crm.example"),))
    index = ConnectorIndex([], indexed(TAILSPIN, crm))
    assert found(index, "203.0.113.9", "mail.tailspin.com") == [["tailspin"]]
    assert found(index, "203.0.113.9", "a.crm.example") == [["crm"]]


def test_index_made_of_another_is_without_the_organization_that_is_gone() -> None:
    index = ConnectorIndex([], indexed(FABRIKAM, TAILSPIN), [TAILSPIN])
    assert found(index, "192.0.2.1") == [["fabrikam"]]
    assert found(index, "198.51.100.7", "mail.tailspin.com") == []


def test_index_that_another_is_made_of_stays_as_it_is() -> None:
    before = indexed(FABRIKAM, TAILSPIN)
    ConnectorIndex([], before, [TAILSPIN])
    after = ConnectorIndex([(CONTOSO, FABRIKAM.connectors[0])], before, [FABRIKAM])
    assert found(after, "192.0.2.1") == [["contoso", "tailspin"]]
    assert found(before, "192.0.2.1") == [["fabrikam", "tailspin"]]
    assert found(before, "198.51.100.7", "mail.tailspin.com") == [["tailspin"], ["tailspin"]]


def test_organization_that_is_gone_and_was_never_there_changes_nothing() -> None:
    assert found(ConnectorIndex([], indexed(FABRIKAM), [TAILSPIN]), "192.0.2.1") == [["fabrikam"]]
