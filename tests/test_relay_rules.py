# SPDX-License-Identifier: GPL-3.0-or-later
"""Which domains are accepted and inside, and what rules refuse to be built from."""

from __future__ import annotations

from dataclasses import replace
from ipaddress import ip_network
from typing import Optional

import pytest

from gatepost.relay import AcceptedDomain, Client, Connector, Organization, Rules, known_client
from gatepost.relay.verdict import Condition

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
        Organization("contoso", (CONTOSO_COM,), (Connector("crm", tls_sender_certificate_name="Mail.contoso.com"),)),
        Organization("contoso", (CONTOSO_COM,), (Connector("crm", tls_sender_certificate_name="*.Contoso.com"),)),
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


def test_rules_made_of_others_know_what_has_come_what_has_gone_and_what_has_stayed() -> None:
    office = Connector("office", (ip_network("192.0.2.0/28"),))
    off = Connector("off", (ip_network("192.0.2.0/28"),), enabled=False)
    kept = Organization("kept", (AcceptedDomain("kept.example", match_subdomains=True),), (office, off))
    gone = Organization("gone", (AcceptedDomain("gone.example", match_subdomains=True),))
    old = Organization("moved", (AcceptedDomain("old.example"), AcceptedDomain("same.example")))
    new = Organization("moved", (AcceptedDomain("new.example"), AcceptedDomain("same.example", match_subdomains=True)))
    before = Rules([kept, gone, old])
    after = Rules([kept, new], before=before)
    asked = ["kept.example", "gone.example", "a.gone.example", "old.example", "new.example", "same.example"]
    assert [domain for domain in asked if after.inside(domain)] == ["kept.example", "new.example", "same.example"]
    assert after.inside("a.same.example")
    assert after.inside("a.kept.example")
    client = after.client("192.0.2.5")
    assert [match.connectors for match in (*client.enabled, *client.disabled)] == [
        {"kept": (office,)},
        {"kept": (off,)},
    ]
    assert [domain for domain in asked if before.inside(domain)] == [*asked[:4], "same.example"]
    assert not before.inside("a.same.example")


def test_domain_that_moves_to_another_organization_is_no_duplicate() -> None:
    domain = AcceptedDomain("contoso.com")
    before = Rules([Organization("contoso", (domain,))])
    after = Rules([Organization("fabrikam", (domain,))], before=before)
    found = after.accepted("contoso.com")
    assert found is not None
    assert found.organization.name == "fabrikam"


def test_domain_that_stays_in_one_organization_and_comes_to_another_is_an_error() -> None:
    contoso = Organization("contoso", (CONTOSO_COM,))
    before = Rules([contoso])
    with pytest.raises(ValueError, match=r"^contoso.com is accepted twice: in contoso and in fabrikam$"):
        Rules([contoso, Organization("fabrikam", (CONTOSO_COM,))], before=before)


def test_connector_that_is_disabled_by_a_change_is_found_among_the_disabled_ones() -> None:
    enabled = Organization("contoso", (CONTOSO_COM,), (Connector("crm", tls_sender_certificate_name="*.contoso.com"),))
    disabled = Organization("contoso", (CONTOSO_COM,), (replace(enabled.connectors[0], enabled=False),))
    client = Rules([disabled], before=Rules([enabled])).client(None, ["mail.contoso.com"])
    assert client.enabled == ()
    assert [match.looked_at for match in client.disabled] == ["mail.contoso.com"]


def test_disabled_connectors_of_several_organizations_mean_none_of_them() -> None:
    crm = Connector("crm", tls_sender_certificate_name="mail.hoster.example", enabled=False)
    names = ("contoso", "fabrikam")
    rules = Rules([Organization(name, (AcceptedDomain(f"{name}.com"),), (crm,)) for name in names])
    steps = rules.client(None, ["mail.hoster.example"]).connector_steps
    assert [step.condition for step in steps] == [Condition.CONNECTOR_ANY]


def test_client_shows_what_came_in_and_nothing_that_follows_from_it() -> None:
    shown = "Client(ip='192.0.2.1', certificate_names=('mail.contoso.com',), authenticated=False, local=True)"
    assert repr(RULES.client("192.0.2.1", ["mail.contoso.com"], local=True)) == shown


def test_clients_of_equal_rules_are_equal() -> None:
    organization = Organization("contoso", (CONTOSO_COM,))
    assert Rules([organization]).client("192.0.2.1") == Rules([organization]).client("192.0.2.1")


@pytest.mark.parametrize(("ip", "looked_at"), [("203.0.113.9", "203.0.113.9"), (None, "")])
def test_steps_of_a_certificate_without_connector_name_the_address(ip: Optional[str], looked_at: str) -> None:
    steps = RULES.client(ip, ["mail.contoso.com"]).certificate_steps
    assert [(step.condition, step.looked_at) for step in steps] == [
        (Condition.CERTIFICATE_ACCEPTED, "mail.contoso.com"),
        (Condition.CONNECTOR_ANY, looked_at),
    ]


def test_certificate_name_that_is_no_domain_matches_no_connector_and_is_shown() -> None:
    client = RULES.client(None, ["no domain"])
    assert (client.enabled, client.disabled) == ((), ())
    assert [step.looked_at for step in client.certificate_steps] == ["no domain"]


def test_match_subdomains_counts_for_relay_unless_set_otherwise() -> None:
    organization = Organization("contoso", (AcceptedDomain("contoso.com", match_subdomains=True),))
    for rules, counts in ((Rules([organization]), True), (Rules([organization], subdomains_relay=False), False)):
        found = rules.accepted("a.contoso.com")
        assert found is not None
        assert rules.counts(found) is counts


HOSTER = Connector("hoster", (ip_network("198.51.100.7/32"),))
OLD = Connector("old", (ip_network("192.0.2.64/28"),), enabled=False)
CRM = Connector("crm", tls_sender_certificate_name="*.contoso.com")
BOTH = Rules(
    [
        Organization("contoso", (AcceptedDomain("contoso.com"),), (HOSTER, OLD, CRM)),
        Organization("fabrikam", (AcceptedDomain("fabrikam.com"),), (HOSTER,)),
    ]
)


def steps_of(client: Client) -> list[tuple[str, str, bool]]:
    return [(step.condition.value, step.looked_at, step.held) for step in client.connector_steps]


def test_disabled_connector_of_one_organization_is_among_the_steps_r6() -> None:
    client = BOTH.client("192.0.2.65")
    assert client.own is None
    assert steps_of(client) == [("connector-any", "192.0.2.65", False), ("connector-enabled", "192.0.2.65", False)]


def test_shared_address_is_a_step_that_held_and_nobodys() -> None:
    client = BOTH.client("198.51.100.7")
    assert client.own is None
    assert steps_of(client) == [("connector-address", "198.51.100.7", True)]
    assert client.connector_steps[0].organization is None


def test_certificate_of_one_organization_at_an_address_of_several_is_nobodys() -> None:
    assert BOTH.client("198.51.100.7", ["mail.contoso.com"]).own is None


def test_connector_of_one_organization_is_its_own_and_a_step_that_held() -> None:
    client = BOTH.client("203.0.113.9", ["mail.contoso.com"])
    assert client.own == (BOTH.organizations["contoso"], CRM)
    assert steps_of(client) == [("connector-certificate", "mail.contoso.com", True)]


def test_certificate_name_whose_organization_has_no_connector_leaves_it_to_the_next_name_r3() -> None:
    candidate = BOTH.client("203.0.113.9", ["mail.fabrikam.com", "mail.contoso.com"]).candidate
    assert candidate is not None
    assert (candidate.accepted.organization.name, candidate.connector) == ("contoso", CRM)


def test_first_certificate_name_without_connector_is_the_candidate_where_no_other_has_one_r3() -> None:
    candidate = BOTH.client("203.0.113.9", ["mail.fabrikam.com", "fabrikam.com", "x.example"]).candidate
    assert candidate is not None
    assert (candidate.accepted.organization.name, candidate.connector) == ("fabrikam", None)


def test_names_behind_the_one_that_relays_are_not_tried_r3() -> None:
    steps = BOTH.client("203.0.113.9", ["*.contoso.com", "mail.fabrikam.com"]).certificate_steps
    assert [(step.condition.value, step.looked_at) for step in steps] == [
        ("certificate-accepted", "contoso.com"),
        ("connector-certificate", "contoso.com"),
    ]
