# SPDX-License-Identifier: GPL-3.0-or-later
"""The verdict, fact by fact (R1 to R11)."""

from __future__ import annotations

from collections.abc import Sequence
from ipaddress import ip_network
from typing import Optional

import pytest

from gatepost.relay import (
    AcceptedDomain,
    Condition,
    Connector,
    DomainType,
    Mail,
    Organization,
    Reason,
    Result,
    Rules,
    RuleSet,
    Verdict,
    attribute,
)

HEAD_OFFICE = Connector("head office", (ip_network("192.0.2.0/28"),))
CRM = Connector("crm", tls_sender_certificate_name="*.contoso.com")
OLD = Connector("old", (ip_network("192.0.2.64/28"),), "mail.old.example", enabled=False)
LAB = Connector("lab", (ip_network("192.0.2.32/28"),), associated_accepted_domains=("corp.contoso.com",))
HOSTER = Connector("hoster", (ip_network("198.51.100.7/32"),))
CONTOSO = Organization(
    "contoso",
    (
        AcceptedDomain("contoso.com", default=True),
        AcceptedDomain("corp.contoso.com", DomainType.INTERNAL_RELAY, match_subdomains=True),
        AcceptedDomain("partner.contoso.com", DomainType.EXTERNAL_RELAY),
    ),
    (HEAD_OFFICE, CRM, OLD, LAB, HOSTER),
)
FABRIKAM = Organization(
    "fabrikam",
    (AcceptedDomain("fabrikam.com"),),
    (Connector("relay", tls_sender_certificate_name="mail.fabrikam.com"), HOSTER),
)
RULES = Rules([CONTOSO, FABRIKAM], local_domains=["hub.example"])
STRICT_RULES = Rules([CONTOSO, FABRIKAM], subdomains_relay=False)

OURS, UNKNOWN, SHARED = "192.0.2.5", "203.0.113.9", "198.51.100.7"


def judge(
    ip: Optional[str],
    p1: str,
    p2: Sequence[str] = (),
    *,
    names: Sequence[str] = (),
    rcpt_domain: Optional[str] = "gmail.com",
    rule_set: RuleSet = RuleSet.CURRENT,
    rules: Rules = RULES,
    authenticated: bool = False,
    local: bool = False,
) -> Verdict:
    client = rules.client(ip, names, authenticated=authenticated, local=local)
    return attribute(client, Mail(p1, tuple(p2)), rcpt_domain, rules, rule_set)


def outcome(verdict: Verdict) -> tuple[str, str, Optional[str]]:
    organization = verdict.organization.name if verdict.organization else None
    return verdict.result.value, verdict.reason.value, organization


def held(verdict: Verdict) -> list[tuple[str, str, bool]]:
    return [(step.condition.value, step.looked_at, step.held) for step in verdict.trace]


# R1: both conditions


def test_r1_accepted_p1_from_a_connectors_address_is_relayed() -> None:
    verdict = judge(OURS, "bob@contoso.com")
    assert outcome(verdict) == ("relay", "p1-accepted", "contoso")
    assert (verdict.connector, verdict.accepted_domain) == (HEAD_OFFICE, CONTOSO.accepted_domains[0])


def test_r1_accepted_certificate_that_a_connector_names_is_relayed_whatever_p1_is() -> None:
    verdict = judge(UNKNOWN, "app@vendor.example", names=["mail.contoso.com"])
    assert outcome(verdict) == ("relay", "certificate-accepted", "contoso")
    assert verdict.connector is CRM


def test_r1_accepted_certificate_from_a_connectors_address_is_relayed() -> None:
    rules = Rules([Organization("contoso", (AcceptedDomain("contoso.com"),), (HEAD_OFFICE,))])
    verdict = judge(OURS, "app@vendor.example", names=["mail.contoso.com"], rules=rules)
    assert outcome(verdict) == ("relay", "certificate-accepted", "contoso")


def test_r1_accepted_p1_over_a_connectors_certificate_is_relayed() -> None:
    verdict = judge(UNKNOWN, "bob@contoso.com", names=["host.sub.contoso.com"])
    assert outcome(verdict) == ("relay", "p1-accepted", "contoso")
    assert verdict.connector is CRM


def test_r1_foreign_p1_from_a_connectors_address_is_refused() -> None:
    verdict = judge(OURS, "app@vendor.example")
    assert outcome(verdict) == ("refuse", "nothing-accepted", "contoso")
    assert verdict.connector is HEAD_OFFICE


def test_r1_accepted_p1_from_an_unknown_address_is_refused() -> None:
    assert outcome(judge(UNKNOWN, "bob@contoso.com")) == ("refuse", "no-connector", "contoso")


def test_r1_both_conditions_must_hold_in_the_same_organization() -> None:
    assert outcome(judge(OURS, "bob@fabrikam.com")) == ("refuse", "no-connector", "fabrikam")


def test_r1_p2_counts_under_legacy() -> None:
    verdict = judge(OURS, "app@vendor.example", ["sales@contoso.com"], rule_set=RuleSet.LEGACY)
    assert outcome(verdict) == ("relay", "p2-accepted", "contoso")


def test_r1_p2_does_not_count_since_2023_11_01() -> None:
    verdict = judge(OURS, "app@vendor.example", ["sales@contoso.com"])
    assert outcome(verdict) == ("refuse", "nothing-accepted", "contoso")


def test_r1_any_of_several_from_addresses_counts_under_legacy() -> None:
    p2 = ["a@vendor.example", "b@contoso.com"]
    assert judge(OURS, "app@vendor.example", p2, rule_set=RuleSet.LEGACY).reason is Reason.P2_ACCEPTED


def test_r1_legacy_without_header_from_is_refused_while_p2_may_still_help() -> None:
    assert judge(OURS, "app@vendor.example", rule_set=RuleSet.LEGACY).result is Result.REFUSE


def test_r1_accepted_p2_without_connector_is_refused_under_legacy() -> None:
    verdict = judge(UNKNOWN, "app@vendor.example", ["sales@contoso.com"], rule_set=RuleSet.LEGACY)
    assert outcome(verdict) == ("refuse", "no-connector", "contoso")


@pytest.mark.parametrize("p1", ["root", "root@localhost", "bob@[192.0.2.5]", "bob@contoso.com.evil.example", "@"])
def test_r1_p1_in_no_accepted_domain_is_refused(p1: str) -> None:
    assert judge(OURS, p1).reason is Reason.NOTHING_ACCEPTED


@pytest.mark.parametrize("p1", ["bob@CONTOSO.com", "bob@contoso.com.", '"a b"@contoso.com', "b@c@contoso.com"])
def test_r1_p1_domain_is_compared_in_normal_form(p1: str) -> None:
    assert judge(OURS, p1).reason is Reason.P1_ACCEPTED


def test_r1_internationalized_domain_is_accepted_in_either_form() -> None:
    rules = Rules([Organization("b", (AcceptedDomain("xn--bcher-kva.example"),), (HEAD_OFFICE,))])
    assert judge(OURS, "a@bücher.example", rules=rules).result is Result.RELAY
    assert judge(OURS, "a@XN--BCHER-KVA.example", rules=rules).result is Result.RELAY


# R2: recipients


def test_r2_mail_to_an_accepted_domain_is_inside_whoever_sends_it() -> None:
    verdict = judge(UNKNOWN, "app@vendor.example", rcpt_domain="contoso.com")
    assert outcome(verdict) == ("inside", "recipient-accepted", "contoso")
    assert verdict.accepted_domain == CONTOSO.accepted_domains[0]


@pytest.mark.parametrize("domain", ["contoso.com", "corp.contoso.com", "partner.contoso.com"])
def test_section_2_accepted_domains_of_all_types_count(domain: str) -> None:
    assert judge(UNKNOWN, "", rcpt_domain=domain).result is Result.INSIDE
    assert judge(OURS, f"bob@{domain}").result is Result.RELAY


def test_r2_mail_to_a_local_domain_is_inside_and_nobodys() -> None:
    assert outcome(judge(UNKNOWN, "a@b.example", rcpt_domain="hub.example")) == ("inside", "recipient-local", None)


def test_r2_recipient_in_an_address_literal_is_outside() -> None:
    assert judge(UNKNOWN, "a@b.example", rcpt_domain=None).result is Result.REFUSE


def test_r2_authenticated_mail_to_an_accepted_domain_is_inside_not_exempt() -> None:
    assert judge(UNKNOWN, "a@b.example", rcpt_domain="contoso.com", authenticated=True).result is Result.INSIDE


# R3: priority among organisations


def test_r3_certificate_goes_before_p1() -> None:
    verdict = judge(SHARED, "bob@contoso.com", names=["mail.fabrikam.com"])
    assert outcome(verdict) == ("relay", "certificate-accepted", "fabrikam")


def test_r3_p1_goes_before_the_recipients_organization() -> None:
    assert outcome(judge(SHARED, "bob@fabrikam.com")) == ("relay", "p1-accepted", "fabrikam")


def test_r3_inside_recipient_names_the_organization_whatever_certificate_and_p1_say() -> None:
    verdict = judge(SHARED, "bob@contoso.com", names=["mail.contoso.com"], rcpt_domain="fabrikam.com")
    assert outcome(verdict) == ("inside", "recipient-accepted", "fabrikam")


def test_r3_certificate_names_are_tried_in_the_order_given() -> None:
    verdict = judge(UNKNOWN, "a@b.example", names=["mail.fabrikam.com", "mail.contoso.com"])
    assert outcome(verdict) == ("relay", "certificate-accepted", "fabrikam")


def test_r3_accepted_certificate_without_connector_leaves_it_to_p1() -> None:
    verdict = judge(OURS, "bob@contoso.com", names=["other.fabrikam.com"])
    assert outcome(verdict) == ("relay", "p1-accepted", "contoso")


def test_r3_certificate_name_that_is_no_accepted_domain_leaves_it_to_p1() -> None:
    verdict = judge(OURS, "bob@contoso.com", names=["mail.hoster.example"])
    assert outcome(verdict) == ("relay", "p1-accepted", "contoso")


def test_r3_shared_address_alone_means_no_organization() -> None:
    verdict = judge(SHARED, "app@vendor.example")
    assert outcome(verdict) == ("refuse", "nothing-accepted", None)
    assert verdict.meant


@pytest.mark.parametrize(("p1", "name"), [("a@contoso.com", "contoso"), ("a@fabrikam.com", "fabrikam")])
def test_r3_p1_tells_whose_mail_comes_from_a_shared_address(p1: str, name: str) -> None:
    assert outcome(judge(SHARED, p1)) == ("relay", "p1-accepted", name)


def test_r3_certificate_goes_before_p1_from_a_shared_address() -> None:
    verdict = judge(SHARED, "bob@contoso.com", names=["mail.fabrikam.com"])
    assert outcome(verdict) == ("relay", "certificate-accepted", "fabrikam")


def test_r3_null_sender_from_a_shared_address_is_refused_and_nobodys() -> None:
    verdict = judge(SHARED, "")
    assert outcome(verdict) == ("refuse", "null-sender-without-certificate", None)
    assert verdict.connector is None
    assert verdict.meant


def test_r3_null_sender_from_a_shared_address_is_its_certificates_organizations() -> None:
    assert outcome(judge(SHARED, "", names=["mail.fabrikam.com"])) == ("relay", "certificate-accepted", "fabrikam")


def test_r3_refusal_names_the_first_organization_that_met_condition_1() -> None:
    verdict = judge(UNKNOWN, "bob@contoso.com", names=["other.fabrikam.com"])
    assert outcome(verdict) == ("refuse", "no-connector", "fabrikam")


# R4: subdomains


def test_r4_undeclared_subdomain_is_not_accepted() -> None:
    assert judge(OURS, "bob@app.contoso.com").reason is Reason.NOTHING_ACCEPTED
    assert judge(UNKNOWN, "", rcpt_domain="app.contoso.com").result is Result.REFUSE


def test_r4_match_subdomains_makes_subdomains_count() -> None:
    assert judge(OURS, "bob@a.b.corp.contoso.com").reason is Reason.P1_ACCEPTED
    assert judge(UNKNOWN, "", rcpt_domain="a.corp.contoso.com").result is Result.INSIDE


def test_r4_subdomain_is_inside_but_does_not_relay_where_so_set() -> None:
    verdict = judge(OURS, "bob@a.corp.contoso.com", rules=STRICT_RULES)
    assert outcome(verdict) == ("refuse", "nothing-accepted", "contoso")
    assert judge(UNKNOWN, "", rcpt_domain="a.corp.contoso.com", rules=STRICT_RULES).result is Result.INSIDE


def test_r4_declared_domain_relays_where_subdomains_do_not() -> None:
    assert judge(OURS, "bob@corp.contoso.com", rules=STRICT_RULES).result is Result.RELAY


def test_r4_certificate_two_labels_below_match_subdomains_counts_unless_set_otherwise() -> None:
    names = ["a.b.corp.contoso.com"]
    assert judge(UNKNOWN, "", names=names).reason is Reason.CERTIFICATE_ACCEPTED
    assert judge(UNKNOWN, "", names=names, rules=STRICT_RULES).reason is Reason.NULL_SENDER


def test_r4_covered_subdomain_means_its_organization_even_where_it_does_not_count() -> None:
    verdict = judge(UNKNOWN, "bob@a.corp.contoso.com", rules=STRICT_RULES)
    assert outcome(verdict) == ("refuse", "nothing-accepted", "contoso")
    assert verdict.meant


# R5: the null reverse-path


def test_r5_null_sender_without_certificate_is_refused() -> None:
    assert outcome(judge(OURS, "")) == ("refuse", "null-sender-without-certificate", "contoso")


def test_r5_null_sender_with_certificate_is_relayed() -> None:
    assert outcome(judge(UNKNOWN, "", names=["mail.contoso.com"])) == ("relay", "certificate-accepted", "contoso")


def test_r5_null_sender_with_accepted_certificate_and_no_connector_fails_condition_2() -> None:
    assert outcome(judge(UNKNOWN, "", names=["other.fabrikam.com"])) == ("refuse", "no-connector", "fabrikam")


def test_r5_null_sender_could_relay_by_p2_under_legacy() -> None:
    verdict = judge(OURS, "", ["postmaster@contoso.com"], rule_set=RuleSet.LEGACY)
    assert verdict.reason is Reason.P2_ACCEPTED


# R6: enabled connectors


def test_r6_disabled_connector_does_not_match_by_address() -> None:
    verdict = judge("192.0.2.65", "bob@contoso.com")
    assert outcome(verdict) == ("refuse", "no-connector", "contoso")
    assert verdict.trace[-1][:5] == (Condition.CONNECTOR_ENABLED, "192.0.2.65", CONTOSO, OLD, None)


def test_r6_disabled_connector_does_not_match_by_certificate() -> None:
    verdict = judge(UNKNOWN, "bob@contoso.com", names=["mail.old.example"])
    assert verdict.reason is Reason.NO_CONNECTOR
    assert held(verdict)[-1] == ("connector-enabled", "mail.old.example", False)


def test_r6_disabled_connector_shows_no_organization_that_is_meant() -> None:
    verdict = judge("192.0.2.65", "app@vendor.example")
    assert outcome(verdict) == ("refuse", "nothing-accepted", None)
    assert not verdict.meant


# R8 and R9: certificate names


def test_r8_any_name_of_the_certificate_may_match_the_connector() -> None:
    verdict = judge(UNKNOWN, "bob@contoso.com", names=["mail.hoster.example", "mx.contoso.com"])
    assert verdict.result is Result.RELAY


def test_r8_one_name_may_be_accepted_and_another_match_the_connector() -> None:
    verdict = judge(UNKNOWN, "", names=["other.fabrikam.com", "x.mail.fabrikam.com", "mail.fabrikam.com"])
    assert outcome(verdict) == ("relay", "certificate-accepted", "fabrikam")
    assert verdict.trace[1].looked_at == "other.fabrikam.com"


@pytest.mark.parametrize(
    ("name", "reason"),
    [
        ("contoso.com", Reason.CERTIFICATE_ACCEPTED),
        ("mail.contoso.com", Reason.CERTIFICATE_ACCEPTED),
        ("MAIL.Contoso.com", Reason.CERTIFICATE_ACCEPTED),
        ("host.sub.contoso.com", Reason.NULL_SENDER),
        ("host.partner.contoso.com", Reason.CERTIFICATE_ACCEPTED),
        ("*.contoso.com", Reason.CERTIFICATE_ACCEPTED),
        ("*.sub.contoso.com", Reason.CERTIFICATE_ACCEPTED),
        ("*.host.sub.contoso.com", Reason.NULL_SENDER),
        ("Contoso CRM", Reason.NULL_SENDER),
    ],
)
def test_r9_accepted_domain_test_of_a_certificate_reaches_one_label_up(name: str, reason: Reason) -> None:
    assert judge(UNKNOWN, "", names=[name]).reason is reason


def test_r9_p1_does_not_reach_one_label_up() -> None:
    assert judge(OURS, "bob@mail.contoso.com").reason is Reason.NOTHING_ACCEPTED


# R10 is the caller's: names of an untrusted certificate are not given


def test_r10_no_certificate_names_leave_the_address_alone_to_match() -> None:
    assert outcome(judge(UNKNOWN, "bob@contoso.com", names=[])) == ("refuse", "no-connector", "contoso")


# R11: associated accepted domains


def test_r11_connector_counts_for_its_associated_domains_only() -> None:
    verdict = judge("192.0.2.33", "bob@contoso.com")
    assert outcome(verdict) == ("refuse", "connector-for-other-domains", "contoso")
    assert (verdict.connector, verdict.meant) == (LAB, True)


def test_r11_associated_domain_is_relayed() -> None:
    verdict = judge("192.0.2.33", "bob@corp.contoso.com")
    assert (verdict.result, verdict.connector) == (Result.RELAY, LAB)


def test_r11_subdomain_counts_as_the_accepted_domain_that_covers_it() -> None:
    assert judge("192.0.2.33", "bob@a.corp.contoso.com").result is Result.RELAY


def test_r11_another_connector_without_limit_relays() -> None:
    verdict = judge("192.0.2.33", "bob@contoso.com", names=["host.sub.contoso.com"])
    assert (verdict.result, verdict.connector) == (Result.RELAY, CRM)


def test_r11_limited_connector_still_shows_which_organization_is_meant() -> None:
    assert outcome(judge("192.0.2.33", "app@vendor.example")) == ("refuse", "nothing-accepted", "contoso")


# Exemptions


def test_authenticated_client_is_exempt_and_attributed_by_p1() -> None:
    verdict = judge(UNKNOWN, "bob@contoso.com", authenticated=True)
    assert outcome(verdict) == ("exempt", "authenticated", "contoso")


def test_local_submission_is_exempt_and_attributed_to_nobody_where_p1_is_foreign() -> None:
    assert outcome(judge(None, "root@localhost", local=True)) == ("exempt", "local-submission", None)


def test_exempt_client_is_attributed_by_certificate_before_p1() -> None:
    verdict = judge(SHARED, "bob@contoso.com", names=["mail.fabrikam.com"], authenticated=True)
    assert outcome(verdict) == ("exempt", "authenticated", "fabrikam")


def test_exempt_client_is_not_attributed_by_p2() -> None:
    verdict = judge(UNKNOWN, "a@b.example", ["a@contoso.com"], rule_set=RuleSet.LEGACY, authenticated=True)
    assert outcome(verdict) == ("exempt", "authenticated", None)


# Meant


@pytest.mark.parametrize(
    ("ip", "p1", "names", "meant"),
    [
        (UNKNOWN, "app@vendor.example", [], False),
        (UNKNOWN, "", [], False),
        (UNKNOWN, "bob@contoso.com", [], True),
        (UNKNOWN, "app@vendor.example", ["other.fabrikam.com"], True),
        (OURS, "app@vendor.example", [], True),
    ],
)
def test_an_organization_is_meant_by_connector_certificate_or_p1(
    ip: str, p1: str, names: list[str], meant: bool
) -> None:
    assert judge(ip, p1, names=names).meant is meant


# Addresses


def test_ipv4_mapped_address_counts_as_ipv4() -> None:
    assert judge("::ffff:192.0.2.5", "bob@contoso.com").result is Result.RELAY


@pytest.mark.parametrize("ip", [None, "", "unknown"])
def test_client_without_address_matches_no_connector(ip: Optional[str]) -> None:
    assert judge(ip, "bob@contoso.com").reason is Reason.NO_CONNECTOR


def test_rules_without_organizations_refuse_and_mean_nobody() -> None:
    verdict = judge(OURS, "bob@contoso.com", rules=Rules([]))
    assert outcome(verdict) == ("refuse", "nothing-accepted", None)
    assert not verdict.meant


# The trace


def test_trace_of_a_relayed_message_ends_with_the_connector_that_matched() -> None:
    assert held(judge(OURS, "bob@contoso.com", names=["mail.hoster.example"])) == [
        ("recipient-inside", "gmail.com", False),
        ("certificate-accepted", "mail.hoster.example", False),
        ("p1-accepted", "contoso.com", True),
        ("connector-address", "192.0.2.5", True),
    ]


def test_trace_of_a_refused_message_shows_every_condition_tried() -> None:
    verdict = judge("192.0.2.33", "", ["bob@contoso.com", "root"], rule_set=RuleSet.LEGACY)
    assert held(verdict) == [
        ("recipient-inside", "gmail.com", False),
        ("p1-accepted", "<>", False),
        ("p2-accepted", "contoso.com", True),
        ("connector-address", "192.0.2.33", True),
        ("connector-domains", "contoso.com", False),
        ("p2-accepted", "<root>", False),
    ]


def test_trace_of_an_exempt_client_says_what_exempts_it() -> None:
    assert ("authenticated", "", True) in held(judge(UNKNOWN, "bob@contoso.com", authenticated=True))
    assert ("local-submission", "", True) in held(judge(None, "root@localhost", local=True))


@pytest.mark.parametrize("domain", ["contoso.com", "hub.example"])
def test_trace_of_mail_to_the_inside_ends_with_its_recipient(domain: str) -> None:
    verdict = judge(OURS, "bob@contoso.com", rcpt_domain=domain)
    assert held(verdict) == [("recipient-inside", domain, True)]
    assert not verdict.meant


def test_r1_p1_that_relays_is_the_reason_whatever_p2_is_under_legacy() -> None:
    verdict = judge(OURS, "bob@contoso.com", ["ann@corp.contoso.com"], rule_set=RuleSet.LEGACY)
    assert verdict.reason is Reason.P1_ACCEPTED
    assert held(verdict)[-1] == ("connector-address", "192.0.2.5", True)


@pytest.mark.parametrize(("ip", "looked_at"), [(UNKNOWN, UNKNOWN), (None, "")])
def test_trace_of_a_client_without_connector_names_its_address(ip: Optional[str], looked_at: str) -> None:
    assert held(judge(ip, "bob@contoso.com"))[-1] == ("connector-any", looked_at, False)
    assert held(judge(ip, "", names=["mail.fabrikam.com"]))[-1] == ("connector-certificate", "mail.fabrikam.com", True)
    assert ("connector-any", looked_at, False) in held(judge(ip, "", names=["partner.contoso.com.fabrikam.com"]))


def test_rule_sets_are_called_as_in_the_configuration() -> None:
    assert [rule_set.value for rule_set in RuleSet] == ["2023-11-01", "legacy"]
