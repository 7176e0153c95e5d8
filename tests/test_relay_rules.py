# SPDX-License-Identifier: GPL-3.0-or-later
"""Which domains are accepted and inside, and what rules refuse to be built from."""

from __future__ import annotations

from typing import Optional

import pytest

from gatepost.relay import AcceptedDomain, Connector, Organization, Rules, known_client

CONTOSO_COM = AcceptedDomain("contoso.com")
RULES = Rules(
    [
        Organization(
            "contoso",
            (
                AcceptedDomain("contoso.com"),
                AcceptedDomain("corp.contoso.com", match_subdomains=True),
                AcceptedDomain("eu.corp.contoso.com", match_subdomains=True),
            ),
        ),
        Organization("fabrikam", (AcceptedDomain("lab.corp.contoso.com"),)),
    ],
    local_domains=["hub.example"],
)


@pytest.mark.parametrize(
    ("domain", "accepted_domain", "exact"),
    [
        ("contoso.com", "contoso.com", True),
        ("app.contoso.com", None, False),  # R4: undeclared
        ("corp.contoso.com", "corp.contoso.com", True),
        ("app.corp.contoso.com", "corp.contoso.com", False),
        ("a.b.corp.contoso.com", "corp.contoso.com", False),
        ("a.eu.corp.contoso.com", "eu.corp.contoso.com", False),
        ("lab.corp.contoso.com", "lab.corp.contoso.com", True),
        ("x.lab.corp.contoso.com", "corp.contoso.com", False),
        ("com", None, False),
        ("hub.example", None, False),
    ],
)
def test_r4_domain_is_accepted_as_declared_or_by_the_nearest_match_subdomains(
    domain: str, accepted_domain: Optional[str], exact: bool
) -> None:
    found = RULES.accepted(domain)
    assert (found and found.accepted_domain.domain) == accepted_domain
    assert found is None or found.exact is exact


@pytest.mark.parametrize(
    ("domain", "inside"),
    [("contoso.com", True), ("a.corp.contoso.com", True), ("hub.example", True), ("a.hub.example", False)],
)
def test_r2_inside_is_what_is_accepted_or_local(domain: str, inside: bool) -> None:
    assert RULES.inside(domain) is inside


@pytest.mark.parametrize(
    ("domain", "reached"),
    [
        ("contoso.com", ["contoso.com"]),
        ("mail.contoso.com", ["contoso.com"]),
        ("host.sub.contoso.com", []),
        ("corp.contoso.com", ["corp.contoso.com", "contoso.com"]),
        ("x.lab.corp.contoso.com", ["lab.corp.contoso.com", "corp.contoso.com"]),
        ("a.corp.contoso.com", ["corp.contoso.com"]),
        ("a.b.corp.contoso.com", ["corp.contoso.com"]),
    ],
)
def test_r9_certificate_reaches_its_domain_one_label_up_and_match_subdomains(domain: str, reached: list[str]) -> None:
    assert [found.accepted_domain.domain for found in RULES.certificate_reaches(domain)] == reached


def test_organizations_are_found_by_name() -> None:
    assert list(RULES.organizations) == ["contoso", "fabrikam"]


def test_known_client_is_remembered_for_its_rules_and_its_login() -> None:
    first = known_client(RULES, "192.0.2.1", ("mail.contoso.com",), authenticated=True)
    assert first == RULES.client("192.0.2.1", ["mail.contoso.com"], authenticated=True)
    assert known_client(RULES, "192.0.2.1", ("mail.contoso.com",), authenticated=True) is first
    assert known_client(RULES, "192.0.2.1", ("mail.contoso.com",)) == RULES.client("192.0.2.1", ["mail.contoso.com"])
    others = Rules([])
    assert known_client(others, "192.0.2.1", ("mail.contoso.com",), authenticated=True).rules is others


def test_domain_accepted_in_two_organizations_is_an_error() -> None:
    domain = AcceptedDomain("contoso.com")
    with pytest.raises(ValueError, match=r"^contoso.com is accepted twice: in contoso and in fabrikam$"):
        Rules([Organization("contoso", (domain,)), Organization("fabrikam", (domain,))])


def test_two_organizations_of_one_name_are_an_error() -> None:
    first, second = AcceptedDomain("contoso.com"), AcceptedDomain("fabrikam.com")
    with pytest.raises(ValueError, match=r"^organization contoso is there twice$"):
        Rules([Organization("contoso", (first,)), Organization("contoso", (second,))])


@pytest.mark.parametrize(
    "organization",
    [
        Organization("contoso", (AcceptedDomain("Contoso.com"),)),
        Organization("contoso", (CONTOSO_COM,), (Connector("crm", tls_sender_certificate_name="Contoso CRM"),)),
        Organization("contoso", (CONTOSO_COM,), (Connector("crm", associated_accepted_domains=("contoso.com.",)),)),
    ],
)
def test_name_in_no_normal_form_is_an_error(organization: Organization) -> None:
    with pytest.raises(ValueError, match="is not a domain name in lower case, as A-label"):
        Rules([organization])


def test_organization_without_accepted_domain_is_an_error() -> None:
    with pytest.raises(ValueError, match=r"^organization contoso has no accepted domain$"):
        Rules([Organization("contoso", ())])


def test_local_domain_in_no_normal_form_is_an_error() -> None:
    with pytest.raises(ValueError, match="is not a domain name"):
        Rules([], local_domains=["[192.0.2.1]"])
