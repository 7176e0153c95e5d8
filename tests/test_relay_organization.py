# SPDX-License-Identifier: GPL-3.0-or-later
"""Organisations as values."""

from __future__ import annotations

from gatepost.relay import AcceptedDomain, Connector, DomainType, Organization


def test_default_domain_is_the_one_marked_default() -> None:
    domains = (AcceptedDomain("contoso.onmicrosoft.com"), AcceptedDomain("contoso.com", default=True))
    assert Organization("contoso", domains).default_domain == "contoso.com"


def test_default_domain_is_the_first_where_none_is_marked() -> None:
    domains = (AcceptedDomain("contoso.com"), AcceptedDomain("contoso.example"))
    assert Organization("contoso", domains).default_domain == "contoso.com"


def test_what_is_not_said_is_what_exchange_online_assumes() -> None:
    domain, connector = AcceptedDomain("contoso.com"), Connector("office")
    assert (domain.type.value, domain.match_subdomains, domain.default) == ("Authoritative", False, False)
    assert (connector.enabled, connector.declared) == (True, True)
    assert [kind.value for kind in DomainType] == ["Authoritative", "InternalRelay", "ExternalRelay"]


def test_connector_is_the_same_whoever_declared_it() -> None:
    assert Connector("office", declared=False) == Connector("office")
