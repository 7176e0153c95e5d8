# SPDX-License-Identifier: GPL-3.0-or-later
"""What an administrator reads about a verdict: section 5 of the facts, in literal sentences."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace
from ipaddress import ip_network
from typing import Optional

from gatepost.relay import (
    AcceptedDomain,
    Connector,
    DomainType,
    Explanation,
    Mail,
    Organization,
    Rules,
    RuleSet,
    attribute,
    domain_of,
    explain,
)

HOSTER = Connector("hoster", (ip_network("198.51.100.7/32"),))
CONTOSO = Organization(
    "contoso",
    (
        AcceptedDomain("contoso.com", default=True),
        AcceptedDomain("corp.contoso.com", DomainType.INTERNAL_RELAY, match_subdomains=True),
    ),
    (
        Connector("head office", (ip_network("192.0.2.0/28"),)),
        Connector("crm", tls_sender_certificate_name="*.contoso.com"),
        Connector("old", (ip_network("192.0.2.64/28"),), enabled=False),
        Connector("lab", (ip_network("192.0.2.32/28"),), associated_accepted_domains=("corp.contoso.com",)),
    ),
)
FABRIKAM = Organization("fabrikam", (AcceptedDomain("fabrikam.com"),), (HOSTER,))
TAILSPIN = Organization("tailspin", (AcceptedDomain("tailspin.com"),), (HOSTER,))
RULES = Rules([CONTOSO, FABRIKAM, TAILSPIN], local_domains=["hub.example"])
STRICT_RULES = Rules([CONTOSO], subdomains_relay=False)

BOTH = (AcceptedDomain("contoso.com", default=True), AcceptedDomain("corp.contoso.com"))
NET = (ip_network("192.0.2.0/28"),)
LIMITED = Connector("lab", NET, associated_accepted_domains=("corp.contoso.com",))
TAILSPINS = (AcceptedDomain("tailspin.com", default=True),)
OF_MTA = Connector("upstream", NET, associated_accepted_domains=("corp.contoso.com",), declared=False)
SAAS = Connector("saas", tls_sender_certificate_name="mail.vendor.example")
P1_IS = "P1 is what it says in MAIL FROM; services call it return path or bounce address."
AS_NONE = "(self-signed, expired, or not for client authentication is as good as none)"
IN_FOLDER = "If the name is not the CN, put the certificate into relay.certificate_folder."
OUTSIDE = "Recipient domain gmail.com is no accepted domain and none of relay.local_domains: this is relay."


def words(
    ip: Optional[str],
    p1: str,
    p2: Sequence[str] = (),
    *,
    names: Sequence[str] = (),
    rcpt: str = "ann@gmail.com",
    rule_set: RuleSet = RuleSet.CURRENT,
    rules: Rules = RULES,
    authenticated: bool = False,
    local: bool = False,
) -> Explanation:
    client, mail = rules.client(ip, names, authenticated=authenticated, local=local), Mail(p1, tuple(p2))
    verdict = attribute(client, mail, domain_of(rcpt), rules, rule_set)
    return explain(verdict, client, mail, rcpt, rule_set)


def contoso(*connectors: Connector, accepted: tuple[AcceptedDomain, ...] = BOTH, counts: bool = True) -> Rules:
    return Rules([Organization("contoso", accepted, connectors)], subdomains_relay=counts)


def test_relayed_by_p1_and_address() -> None:
    assert words("192.0.2.5", "bob@contoso.com", ["bob@contoso.com"]) == Explanation(
        decision='Relayed for contoso: P1 is accepted and connector "head office" matches the client.',
        p1="bob@contoso.com: contoso.com is an accepted domain of contoso",
        p2="bob@contoso.com: contoso.com is an accepted domain of contoso (P2 does not count since 2023-11-01)",
        steps=(
            OUTSIDE,
            "P1 domain contoso.com is an accepted domain of contoso: condition 1 holds.",
            'Address 192.0.2.5 matches connector "head office" of contoso by sender_ip_addresses 192.0.2.0/28: '
            "condition 2 holds.",
        ),
        failed="",
        remedies=(),
    )


def test_foreign_p1_with_an_accepted_p2_was_let_through_before_2023_11_01() -> None:
    assert words("192.0.2.5", "app@vendor.example", ["sales@contoso.com"]) == Explanation(
        decision="Refused: ann@gmail.com is outside, and neither certificate nor P1 is in an accepted domain.",
        p1="app@vendor.example: vendor.example is no accepted domain",
        p2="sales@contoso.com: contoso.com is an accepted domain of contoso "
        "(P2 let this message through before 2023-11-01; it does not count any more)",
        steps=(
            OUTSIDE,
            "P1 domain vendor.example is no accepted domain: condition 1 fails.",
            'Address 192.0.2.5 matches connector "head office" of contoso by sender_ip_addresses 192.0.2.0/28: '
            "condition 2 holds.",
        ),
        failed="Condition 1 failed: the P1 domain vendor.example is not accepted, and the client presented no "
        'trusted certificate. Condition 2 holds: connector "head office" of contoso matches the client. '
        "An IP address is enough only where P1 or the recipient is in an accepted domain. "
        "Before 2023-11-01 its P2 alone would have let it through.",
        remedies=(
            'If vendor.example is your own, declare it: [[organization.accepted_domain]] domain = "vendor.example" '
            "under organization[contoso].",
            f"Let the application use an accepted P1, such as one in contoso.com. {P1_IS}",
            "Or let the client present a trusted certificate with a name in an accepted domain, such as "
            f"mail.contoso.com {AS_NONE}. {IN_FOLDER}",
            "Where the application cannot change its P1, let SRS on the host before this one rewrite it into an "
            "address in contoso.com.",
        ),
    )


def test_null_sender_without_certificate_is_told_that_only_a_certificate_helps() -> None:
    explanation = words("192.0.2.5", "")
    assert explanation.decision == (
        "Refused: ann@gmail.com is outside, and mail with a null sender needs a certificate in an accepted domain."
    )
    assert explanation.p1 == "<>: the null sender, which is in no accepted domain"
    assert explanation.p2 == "none seen"
    assert explanation.steps[1] == "P1 is the null sender <>, which is in no accepted domain: condition 1 fails."
    assert explanation.failed == (
        "Condition 1 failed: a null sender never counts as P1, and the client presented no trusted certificate. "
        'Condition 2 holds: connector "head office" of contoso matches the client. '
        "An IP address is enough only where P1 or the recipient is in an accepted domain."
    )
    assert explanation.remedies == (
        "Send null-sender mail (NDRs, automatic replies) to outside over a connection with a trusted certificate "
        "whose name is in an accepted domain, such as mail.contoso.com: no P1 or IP address can make up for it.",
    )


def test_null_sender_with_certificate_is_relayed() -> None:
    explanation = words("203.0.113.9", "", names=["mail.contoso.com"])
    assert explanation.decision == (
        'Relayed for contoso: its certificate name is accepted and connector "crm" matches the client.'
    )
    assert explanation.steps[1:] == (
        "Certificate name mail.contoso.com is one label below contoso.com, an accepted domain of contoso: "
        "condition 1 holds.",
        'Certificate name mail.contoso.com matches connector "crm" of contoso by tls_sender_certificate_name '
        "*.contoso.com: condition 2 holds.",
    )


def test_accepted_p1_from_an_unknown_address_is_told_which_connectors_were_compared() -> None:
    explanation = words("192.0.2.99", "bob@contoso.com")
    assert explanation.decision == (
        "Refused: ann@gmail.com is outside, and no enabled connector of contoso matches the client."
    )
    assert explanation.steps[-1] == (
        "No enabled connector of contoso matches address 192.0.2.99 (no trusted certificate) (compared with "
        '"head office": 192.0.2.0/28, "crm": *.contoso.com, "lab": 192.0.2.32/28): condition 2 fails.'
    )
    assert explanation.failed == (
        "Condition 2 failed: no enabled connector of contoso matches address 192.0.2.99 (no trusted certificate)."
    )
    assert explanation.remedies == (
        'If the client is a host of contoso: add "192.0.2.99" to '
        "organization[contoso].connector[head office].sender_ip_addresses.",
        "Or let the client present a trusted certificate that "
        "organization[contoso].connector[crm].tls_sender_certificate_name matches, *.contoso.com "
        f"{AS_NONE}.",
    )


def test_certificate_that_no_connector_names_is_told_the_key_to_change() -> None:
    assert words("203.0.113.9", "bob@contoso.com", names=["Contoso", "mail.new.example"]).remedies == (
        'If the client is a host of contoso: add "203.0.113.9" to '
        "organization[contoso].connector[head office].sender_ip_addresses.",
        "Or, if the client got a new certificate, set "
        'organization[contoso].connector[crm].tls_sender_certificate_name = "mail.new.example".',
    )


def test_certificate_where_no_connector_has_a_name_is_told_to_declare_one() -> None:
    assert words("203.0.113.9", "bob@fabrikam.com", names=["mail.fabrikam.com"]).remedies[1] == (
        'Or declare [[organization.connector]] name = "…", tls_sender_certificate_name = "mail.fabrikam.com" '
        "under organization[fabrikam]."
    )


def test_certificate_name_that_is_no_domain_name_is_said_to_be_none() -> None:
    assert words("192.0.2.5", "bob@contoso.com", names=["Contoso CRM"]).steps[1] == (
        'Certificate name "Contoso CRM" is no domain name: condition 1 fails.'
    )


def test_certificate_two_labels_below_is_told_to_declare_the_domain_between() -> None:
    explanation = words("203.0.113.9", "", names=["host.sub.contoso.com"])
    assert explanation.steps[1] == (
        "Certificate name host.sub.contoso.com is no accepted domain, nor is sub.contoso.com, one label up: "
        "condition 1 fails."
    )
    assert explanation.remedies[1] == (
        'Declare [[organization.accepted_domain]] domain = "sub.contoso.com" under organization[contoso]: '
        "certificate name host.sub.contoso.com reaches one label up only, not to contoso.com."
    )


def test_certificate_that_only_a_connector_knows_is_told_to_be_of_an_accepted_domain_r3() -> None:
    connector = Connector("saas", tls_sender_certificate_name="mail.vendor.example")
    rules = Rules([Organization("contoso", (AcceptedDomain("contoso.com"),), (connector,))])
    explanation = words("203.0.113.9", "app@vendor.example", names=["mail.vendor.example"], rules=rules)
    assert explanation.failed.endswith(
        'Condition 2 holds: connector "saas" of contoso matches the client. '
        "A certificate is enough only where one of its names is in an accepted domain, not in a connector alone."
    )
    assert (
        "If mail.vendor.example is your own, declare it: [[organization.accepted_domain]] "
        'domain = "mail.vendor.example" under organization[contoso], and set default = true for contoso.com. '
        "A connector knows that certificate name, but it is in no accepted domain."
    ) in explanation.remedies


def test_disabled_connector_is_told_to_be_enabled() -> None:
    explanation = words("192.0.2.65", "bob@contoso.com")
    assert explanation.steps[-1] == (
        'Connector "old" of contoso covers 192.0.2.65, but is disabled: it does not count.'
    )
    assert explanation.remedies[0] == ("Set organization[contoso].connector[old].enabled = true: it covers the client.")


def test_connector_limited_to_other_domains_is_told_its_key() -> None:
    explanation = words("192.0.2.33", "bob@contoso.com")
    assert explanation.decision == (
        "Refused: ann@gmail.com is outside, and the matching connector is for other accepted domains."
    )
    assert explanation.steps[2:] == (
        'Address 192.0.2.33 matches connector "lab" of contoso by sender_ip_addresses 192.0.2.32/28.',
        'Connector "lab" is limited to corp.contoso.com (associated_accepted_domains), and contoso.com is not among '
        "them: condition 2 fails.",
    )
    assert explanation.failed == (
        'Condition 2 failed: connector "lab" of contoso matches the client, but is limited to corp.contoso.com; '
        "contoso.com is not among them."
    )
    assert explanation.remedies == (
        'Add "contoso.com" to organization[contoso].connector[lab].associated_accepted_domains, or leave that list '
        "empty.",
    )


def test_undeclared_subdomain_is_told_that_subdomains_do_not_pass_by_themselves() -> None:
    assert words("192.0.2.5", "app@web.contoso.com").remedies[0] == (
        'Declare [[organization.accepted_domain]] domain = "web.contoso.com" under organization[contoso], or set '
        'match_subdomains = true (with type = "InternalRelay") for contoso.com: a subdomain is not accepted by itself.'
    )


def test_subdomain_that_is_set_not_to_count_is_told_the_setting() -> None:
    explanation = words("192.0.2.5", "app@web.corp.contoso.com", rules=STRICT_RULES)
    assert explanation.p1 == (
        "app@web.corp.contoso.com: web.corp.contoso.com is a subdomain of corp.contoso.com, accepted by contoso, "
        "which does not count for relay"
    )
    assert explanation.steps[1] == (
        "P1 domain web.corp.contoso.com is a subdomain of corp.contoso.com, which contoso accepts with "
        "match_subdomains, but relay.subdomains_relay = false keeps it from counting: condition 1 fails."
    )
    assert explanation.remedies[0] == (
        'Declare [[organization.accepted_domain]] domain = "web.corp.contoso.com" under organization[contoso], or set '
        "relay.subdomains_relay = true, so that subdomains of corp.contoso.com count."
    )


def test_root_at_localhost_is_told_to_get_an_accepted_p1() -> None:
    assert words("192.0.2.5", "root@localhost").remedies[0] == (
        "Let the application use an accepted P1, such as one in contoso.com: root@localhost is the kind of sender "
        "that cron jobs and devices use until they are told one (where they send by a Postfix of their own: myorigin)."
    )


def test_p1_without_domain_is_said_to_have_none() -> None:
    explanation = words("192.0.2.5", "root")
    assert explanation.p1 == "root: has no domain name"
    assert explanation.steps[1] == "P1 <root> has no domain name: condition 1 fails."


def test_shared_address_is_told_to_use_a_certificate_for_each_organization() -> None:
    explanation = words("198.51.100.7", "app@vendor.example")
    assert explanation.steps[-1] == (
        "Address 198.51.100.7 matches connectors of several organizations, so it names none of them."
    )
    assert explanation.remedies[-1] == (
        "Connectors of several organizations match the client: where an address is shared, give each organization "
        "a certificate of its own, and its connector that tls_sender_certificate_name."
    )


def test_null_sender_from_a_shared_address_is_told_that_a_certificate_of_its_own_helps() -> None:
    explanation = words("198.51.100.7", "")
    assert "Condition 2 holds for several organizations, so the client alone names none of them." in explanation.failed
    assert explanation.remedies[-1].startswith(
        "Connectors of several organizations match the client: where an address is shared, give each organization a "
        "certificate of its own"
    )


def test_stranger_is_told_to_declare_domain_and_connector() -> None:
    explanation = words("203.0.113.9", "app@vendor.example")
    assert explanation.steps[-1] == (
        "No enabled connector of any organization matches address 203.0.113.9 (no trusted certificate): "
        "condition 2 fails."
    )
    assert explanation.remedies == (
        'If vendor.example is your own, declare it: [[organization.accepted_domain]] domain = "vendor.example" '
        "under your organization, and set default = true for one.",
        f"Let the application use an accepted P1. {P1_IS}",
        f"Or let the client present a trusted certificate with a name in an accepted domain {AS_NONE}. {IN_FOLDER}",
    )
    assert explanation.also == (
        'The client needs a connector as well: declare [[organization.connector]] name = "…", sender_ip_addresses = '
        '["203.0.113.9"] under your organization.',
    )


def test_of_a_single_organization_the_only_one_is_meant() -> None:
    explanation = words("203.0.113.9", "app@vendor.example", rules=STRICT_RULES)
    assert explanation.remedies[1].startswith("Let the application use an accepted P1, such as one in contoso.com.")
    assert explanation.also == (
        'The client needs a connector as well: add "203.0.113.9" to '
        "organization[contoso].connector[head office].sender_ip_addresses.",
    )


def test_certificate_of_unknown_names_is_told_to_be_put_into_the_folder() -> None:
    explanation = words("203.0.113.9", "app@vendor.example", names=["no name known: fingerprint 46:06:AA"])
    assert explanation.steps[1] == (
        "The certificate with fingerprint 46:06:AA is not in relay.certificate_folder, so its names are not known: "
        "condition 1 fails."
    )
    assert explanation.failed == (
        "Condition 1 failed: the P1 domain vendor.example is not accepted, and gatepost does not know the names in "
        "the client's certificate (fingerprint 46:06:AA). Condition 2 failed too: no enabled connector matches "
        "address 203.0.113.9 (its certificate's names are not known)."
    )
    assert explanation.remedies[0] == (
        "Put the client's certificate, without its key, into relay.certificate_folder (fingerprint 46:06:AA): "
        "gatepost does not know the names in it."
    )


def test_certificate_of_unknown_names_and_fingerprint_is_told_how_the_mta_reports_one() -> None:
    explanation = words("203.0.113.9", "bob@contoso.com", names=["no name known"])
    assert explanation.steps[1] == (
        "The client's certificate is not in relay.certificate_folder, so its names are not known: condition 1 fails."
    )
    assert explanation.remedies[0] == (
        "Put the client's certificate, without its key, into relay.certificate_folder, and let the MTA report its "
        "fingerprint (Postfix: have policyd asked at RCPT): gatepost does not know the names in it."
    )


def test_certificate_name_of_one_label_is_not_said_to_have_a_parent() -> None:
    assert words("192.0.2.5", "app@vendor.example", names=["crm"]).steps[1] == (
        "Certificate name crm is no accepted domain: condition 1 fails."
    )


def test_p1_with_an_address_literal_is_not_said_to_be_that_of_a_cron_job() -> None:
    assert words("192.0.2.5", "a@[1.2.3.4]").remedies[0] == (
        f"Let the application use an accepted P1, such as one in contoso.com. {P1_IS}"
    )


def test_examples_are_of_a_domain_that_a_limited_connector_is_for_r11() -> None:
    explanation = words("192.0.2.33", "app@vendor.example")
    assert explanation.remedies[0] == (
        'If vendor.example is your own, declare it: [[organization.accepted_domain]] domain = "vendor.example" under '
        'organization[contoso], and add "vendor.example" to '
        "organization[contoso].connector[lab].associated_accepted_domains."
    )
    assert (
        explanation.remedies[1] == f"Let the application use an accepted P1, such as one in corp.contoso.com. {P1_IS}"
    )
    assert "such as mail.corp.contoso.com (" in explanation.remedies[2]


def test_client_known_by_its_certificate_is_told_that_the_connector_must_know_the_new_one() -> None:
    connector = Connector("saas", tls_sender_certificate_name="mail.vendor.example")
    rules = Rules([Organization("contoso", (AcceptedDomain("contoso.com", default=True),), (connector,))])
    explanation = words("203.0.113.9", "", names=["mail.vendor.example"], rules=rules)
    assert explanation.remedies[0] == (
        "Send null-sender mail (NDRs, automatic replies) to outside over a connection with a trusted certificate "
        "whose name is in an accepted domain, such as mail.contoso.com, and set "
        "organization[contoso].connector[saas].tls_sender_certificate_name to it: no P1 or IP address can make up for "
        "it."
    )


def test_legacy_relay_by_p2_is_said_to_be_legacy_only() -> None:
    explanation = words("192.0.2.5", "app@vendor.example", ["sales@contoso.com"], rule_set=RuleSet.LEGACY)
    assert explanation.decision == (
        "Relayed for contoso: P2 alone, which counts under the rule set legacy only, is accepted and connector "
        '"head office" matches the client.'
    )
    assert explanation.p2 == (
        "sales@contoso.com: contoso.com is an accepted domain of contoso (P2 counts under the rule set legacy only)"
    )
    assert explanation.remedies[1].startswith("Let the application use an accepted P1, such as one in contoso.com.")


def test_legacy_refusal_names_p2_too() -> None:
    explanation = words("192.0.2.5", "a@vendor.example", ["b@vendor.example"], rule_set=RuleSet.LEGACY)
    assert explanation.decision == (
        "Refused: ann@gmail.com is outside, and neither certificate nor P1 nor P2 is in an accepted domain."
    )
    assert explanation.steps[2] == "P2 domain vendor.example is no accepted domain: condition 1 fails."


def test_mail_to_an_accepted_domain_is_no_relay() -> None:
    explanation = words("203.0.113.9", "app@vendor.example", rcpt="bob@contoso.com")
    assert explanation.decision == (
        "No relay: bob@contoso.com is a recipient of contoso, so P1 and P2 may be anything."
    )
    assert explanation.steps == ("Recipient domain contoso.com is an accepted domain of contoso: no relay.",)


def test_mail_to_a_local_domain_is_no_relay() -> None:
    explanation = words("203.0.113.9", "app@vendor.example", rcpt="bob@hub.example")
    assert explanation.decision == (
        "No relay: the domain of bob@hub.example is one of this host's own (relay.local_domains)."
    )
    assert explanation.steps == ("Recipient domain hub.example is one of relay.local_domains: no relay.",)


def test_authenticated_client_is_said_to_be_exempt() -> None:
    explanation = words("203.0.113.9", "app@vendor.example", authenticated=True)
    assert explanation.decision == (
        "Relayed: the client has authenticated (SASL), which exempts it from the relay rule."
    )
    assert explanation.steps[1] == "The client has authenticated (SASL): it is exempt from the relay rule."
    assert (explanation.failed, explanation.remedies) == ("", ())


def test_local_submission_is_said_to_be_exempt() -> None:
    explanation = words(None, "root@localhost", local=True)
    assert explanation.decision == (
        "Relayed: the message was submitted on this host, which exempts it from the relay rule."
    )
    assert explanation.steps[1] == "The client submits on this host: it is exempt from the relay rule."


def test_control_characters_of_an_address_do_not_reach_a_terminal() -> None:
    explanation = words("192.0.2.5", "\x1b[31m\r\n@vendor.example", names=["\udcff"])
    assert explanation.p1 == "?[31m??@vendor.example: vendor.example is no accepted domain"
    assert explanation.steps[1] == 'Certificate name "?" is no domain name: condition 1 fails.'


def test_long_lists_are_cut_at_five() -> None:
    names = [f"n{number}.example" for number in range(7)]
    assert "(n0.example, n1.example, n2.example, n3.example, n4.example and 2 more)" in (
        words("192.0.2.5", "", names=names).failed
    )


def test_recipient_in_an_address_literal_is_said_to_be_outside() -> None:
    assert words("192.0.2.5", "bob@contoso.com", rcpt="ann@[192.0.2.9]").steps[0] == (
        "The recipient has no domain name, so it is outside: this is relay."
    )


def test_connector_limited_to_the_domain_is_said_to_hold_r11() -> None:
    assert words("192.0.2.33", "bob@corp.contoso.com").steps[-1] == (
        'Connector "lab" is limited to corp.contoso.com (associated_accepted_domains), and corp.contoso.com is among '
        "them: condition 2 holds."
    )


def test_connector_of_this_host_that_is_for_other_domains_is_not_told_to_be_changed_r11() -> None:
    hub = Connector(
        "upstream", (ip_network("192.0.2.1/32"),), associated_accepted_domains=("corp.contoso.com",), declared=False
    )
    explanation = words("192.0.2.1", "bob@contoso.com", rules=Rules([Organization("contoso", BOTH, (hub,))]))
    assert explanation.remedies == (
        'If the client is a host of contoso: declare [[organization.connector]] name = "…", sender_ip_addresses = '
        '["192.0.2.1"] under organization[contoso].',
    )


def test_p2_alone_with_a_p1_that_counts_is_not_told_to_declare_that_p1() -> None:
    limited = Connector(
        "lab", (ip_network("192.0.2.1/32"),), associated_accepted_domains=("corp.contoso.com",), declared=False
    )
    explanation = words(
        "192.0.2.1",
        "bob@contoso.com",
        ["ann@corp.contoso.com"],
        rules=Rules([Organization("contoso", BOTH, (limited,))]),
        rule_set=RuleSet.LEGACY,
    )
    assert explanation.remedies[0] == (
        f"Let the application use an accepted P1, such as one in corp.contoso.com. {P1_IS}"
    )


def test_subdomain_of_another_organizations_domain_is_not_told_to_be_declared() -> None:
    explanation = words("192.0.2.5", "app@crm.fabrikam.com")
    assert explanation.remedies[0] == f"Let the application use an accepted P1, such as one in contoso.com. {P1_IS}"


def test_certificate_name_of_another_organizations_connector_is_not_told_to_be_declared() -> None:
    explanation = words("192.0.2.5", "app@vendor.example", names=["a.b.fabrikam.com"])
    assert not any("a.b.fabrikam.com" in remedy for remedy in explanation.remedies)


def test_p2_alone_with_a_certificate_that_counts_is_not_told_to_declare_its_domain() -> None:
    limited = Connector(
        "lab", (ip_network("192.0.2.1/32"),), associated_accepted_domains=("corp.contoso.com",), declared=False
    )
    explanation = words(
        "192.0.2.1",
        "app@vendor.example",
        ["ann@corp.contoso.com"],
        names=["mail.contoso.com"],
        rules=Rules([Organization("contoso", BOTH, (limited,))]),
        rule_set=RuleSet.LEGACY,
    )
    assert not any("contoso.com under" in remedy or "mail.contoso.com is" in remedy for remedy in explanation.remedies)


def test_connector_with_a_wildcard_is_not_told_to_take_another_name() -> None:
    connector = Connector("saas", tls_sender_certificate_name="*.vendor.example")
    rules = Rules([Organization("contoso", (AcceptedDomain("contoso.com", default=True),), (connector,))])
    explanation = words(None, "", names=["mail.vendor.example"], rules=rules)
    assert explanation.remedies[0] == (
        "Send null-sender mail (NDRs, automatic replies) to outside over a connection with a trusted certificate "
        "whose name is in an accepted domain, such as mail.contoso.com, and declare [[organization.connector]] "
        'name = "…", tls_sender_certificate_name = that name under organization[contoso]: no P1 or IP address can make '
        "up for it."
    )


def presented(connector: Connector) -> str:
    """Return the certificate name that a client of unknown address is told to present, and what for."""
    rules = Rules([Organization("contoso", BOTH, (connector,)), Organization("fabrikam", FABRIKAM.accepted_domains)])
    remedy = words(None, "app@q.contoso.com", rules=rules).remedies[-2]
    return remedy.partition("accepted domain")[2].partition(" (")[0].partition(". If")[0]


def test_certificate_to_present_is_one_that_a_connector_matches_and_an_accepted_domain_has() -> None:
    matching = ", and matching organization[contoso].connector[crm].tls_sender_certificate_name"
    for pattern, name in (
        ("*.contoso.com", "mail.contoso.com"),
        ("*.a.contoso.com", "a.contoso.com"),
        ("hub.contoso.com", "hub.contoso.com"),
    ):
        assert presented(Connector("crm", tls_sender_certificate_name=pattern)) == f", such as {name}{matching}"


def test_certificate_to_present_is_of_no_other_organization_and_for_the_connectors_domains_only() -> None:
    limited = Connector("crm", (), "hub.contoso.com", associated_accepted_domains=("corp.contoso.com",))
    for connector in (Connector("crm", tls_sender_certificate_name="mail.fabrikam.com"), limited):
        assert presented(connector).startswith(", such as mail.contoso.com, and declare [[organization.connector]]")


def test_stranger_with_a_subdomain_of_an_accepted_domain_is_taken_for_that_organizations() -> None:
    for domain in ("q.contoso.com", "a.q.contoso.com"):
        assert (
            words("203.0.113.9", f"app@{domain}")
            .remedies[0]
            .startswith(f'Declare [[organization.accepted_domain]] domain = "{domain}" under organization[contoso]')
        )


def test_null_sender_from_a_disabled_connectors_address_is_taken_for_its_organizations() -> None:
    explanation = words("192.0.2.65", "")
    assert explanation.also[0] == ("Set organization[contoso].connector[old].enabled = true: it covers the client.")


def test_address_is_added_to_the_first_connector_that_is_enabled_and_declared() -> None:
    connectors = (
        Connector("off", (ip_network("192.0.2.0/28"),), enabled=False),
        Connector("upstream", (ip_network("192.0.2.16/28"),), declared=False),
        Connector("office", (ip_network("192.0.2.32/28"),)),
    )
    explanation = words("203.0.113.9", "app@vendor.example", rules=Rules([Organization("contoso", BOTH, connectors)]))
    assert explanation.also == (
        'The client needs a connector as well: add "203.0.113.9" to '
        "organization[contoso].connector[office].sender_ip_addresses.",
    )


def test_certificate_to_present_is_of_no_subdomain_that_is_set_not_to_count_r4() -> None:
    connector = Connector("crm", tls_sender_certificate_name="a.b.contoso.com")
    organization = Organization("contoso", (AcceptedDomain("contoso.com", match_subdomains=True),), (connector,))
    for subdomains_relay, name in ((True, "a.b.contoso.com, and matching"), (False, "mail.contoso.com, and declare")):
        explanation = words(None, "", rules=Rules([organization], subdomains_relay=subdomains_relay))
        assert f"in an accepted domain, such as {name}" in explanation.remedies[0]


def test_p1_in_a_subdomain_that_counts_is_said_to_be_accepted() -> None:
    assert words("192.0.2.5", "app@web.corp.contoso.com").p1 == (
        "app@web.corp.contoso.com: web.corp.contoso.com is a subdomain of corp.contoso.com, accepted by contoso"
    )


def test_every_address_of_p2_is_shown() -> None:
    assert words("192.0.2.5", "bob@contoso.com", ["a@contoso.com", "b@vendor.example"]).p2 == (
        "a@contoso.com: contoso.com is an accepted domain of contoso; b@vendor.example: vendor.example is no accepted "
        "domain (P2 does not count since 2023-11-01)"
    )


def test_p2_that_counts_no_more_than_p1_is_said_to_have_failed_under_legacy() -> None:
    assert words("192.0.2.5", "a@vendor.example", ["b@vendor.example"], rule_set=RuleSet.LEGACY).failed == (
        "Condition 1 failed: the P1 domain vendor.example is not accepted (nor that of P2), and the client presented "
        'no trusted certificate. Condition 2 holds: connector "head office" of contoso matches the client. An IP '
        "address is enough only where P1 or the recipient is in an accepted domain."
    )


def test_p1_without_domain_is_said_to_have_failed_for_it() -> None:
    assert words("192.0.2.5", "root").failed.startswith(
        "Condition 1 failed: P1 <root>, which has no domain name, is not accepted, and the client presented no trusted "
    )


def test_certificate_two_labels_below_a_domain_that_matches_subdomains_is_said_to_be_a_subdomain() -> None:
    assert words("203.0.113.9", "", names=["a.b.corp.contoso.com"]).steps[1] == (
        "Certificate name a.b.corp.contoso.com is a subdomain of corp.contoso.com, which contoso accepts with "
        "match_subdomains: condition 1 holds."
    )


def test_network_that_covers_the_client_is_named_of_several() -> None:
    connector = Connector("office", (ip_network("192.0.2.0/28"), ip_network("192.0.2.0/27"), ip_network("2001:db8::1")))
    explanation = words("192.0.2.5", "bob@contoso.com", rules=Rules([Organization("contoso", BOTH, (connector,))]))
    assert explanation.steps[-1] == (
        'Address 192.0.2.5 matches connector "office" of contoso by sender_ip_addresses 192.0.2.0/28: '
        "condition 2 holds."
    )


def test_organization_without_an_enabled_connector_is_said_to_have_none() -> None:
    connector = Connector("old", (ip_network("192.0.2.64/28"),), enabled=False)
    explanation = words("192.0.2.5", "bob@contoso.com", rules=Rules([Organization("contoso", BOTH, (connector,))]))
    assert explanation.steps[-1] == (
        "No enabled connector of contoso matches address 192.0.2.5 (no trusted certificate) (it has none): "
        "condition 2 fails."
    )


def test_what_no_connector_matches_is_address_and_certificate() -> None:
    for ip, names, what in (
        ("203.0.113.9", ["mail.vendor.example"], "address 203.0.113.9 or certificate mail.vendor.example"),
        ("203.0.113.9", ["no name known"], "address 203.0.113.9 (its certificate's names are not known)"),
        (None, [], "a client of unknown address (no trusted certificate)"),
    ):
        assert words(ip, "bob@contoso.com", names=names).failed == (
            f"Condition 2 failed: no enabled connector of contoso matches {what}."
        )


def test_certificate_of_unknown_names_and_fingerprint_is_said_to_have_failed_for_them() -> None:
    assert words("192.0.2.5", "a@vendor.example", names=["no name known"]).failed.startswith(
        "Condition 1 failed: the P1 domain vendor.example is not accepted, and gatepost does not know the names in the "
        "client's certificate. Condition 2 holds"
    )


def test_list_of_five_is_shown_whole() -> None:
    names = [f"n{number}.example" for number in range(5)]
    assert "(n0.example, n1.example, n2.example, n3.example, n4.example)" in words("192.0.2.5", "", names=names).failed


def test_stranger_with_a_certificate_of_unknown_names_may_have_a_connector_for_one() -> None:
    assert words("203.0.113.9", "app@vendor.example", names=["no name known"]).also == (
        "The client needs a connector as well, unless one has a name of its certificate: declare "
        '[[organization.connector]] name = "…", sender_ip_addresses = ["203.0.113.9"] under your organization.',
    )


def test_subdomain_that_would_count_but_for_its_connector_is_told_to_be_declared_for_it_r11() -> None:
    matching = (AcceptedDomain("contoso.com", DomainType.INTERNAL_RELAY, match_subdomains=True, default=True), BOTH[1])
    remedy = words("192.0.2.5", "app@web.contoso.com", rules=contoso(LIMITED, accepted=matching, counts=False)).remedies
    assert remedy[0] == (
        'Declare [[organization.accepted_domain]] domain = "web.contoso.com" under organization[contoso], and add '
        '"web.contoso.com" to organization[contoso].connector[lab].associated_accepted_domains.'
    )


def test_match_subdomains_is_not_proposed_where_it_would_not_help() -> None:
    declare = 'Declare [[organization.accepted_domain]] domain = "web.contoso.com" under organization[contoso]'
    by_itself = ": a subdomain is not accepted by itself."
    assert words("192.0.2.5", "app@web.contoso.com", rules=STRICT_RULES).remedies[0] == f"{declare}{by_itself}"
    assert words("192.0.2.33", "app@web.contoso.com").remedies[0] == (
        f'{declare}, and add "web.contoso.com" to organization[contoso].connector[lab].associated_accepted_domains'
        f"{by_itself}"
    )


def test_domain_to_declare_is_added_to_the_connector_that_is_declared_or_gets_one_r11() -> None:
    declare = (
        'If vendor.example is your own, declare it: [[organization.accepted_domain]] domain = "vendor.example" under'
    )
    for rules, change in (
        (
            contoso(OF_MTA, LIMITED),
            'organization[contoso], and add "vendor.example" to '
            "organization[contoso].connector[lab].associated_accepted_domains.",
        ),
        (
            contoso(OF_MTA),
            'organization[contoso], and declare [[organization.connector]] name = "…", sender_ip_addresses = '
            '["192.0.2.5"] under organization[contoso].',
        ),
        (
            Rules([Organization("contoso", BOTH, (LIMITED,)), Organization("tailspin", TAILSPINS, (LIMITED,))]),
            'your organization, and add "vendor.example" to your connector.associated_accepted_domains.',
        ),
    ):
        assert words("192.0.2.5", "app@vendor.example", rules=rules).remedies[0] == f"{declare} {change}"


def test_p2_alone_with_a_certificate_one_label_below_is_not_told_to_declare_the_domain_above() -> None:
    limited = replace(LIMITED, associated_accepted_domains=("contoso.com",))
    explanation = words(
        "192.0.2.5",
        "app@vendor.example",
        ["ann@contoso.com"],
        names=["x.corp.contoso.com"],
        rules=contoso(limited),
        rule_set=RuleSet.LEGACY,
    )
    assert not any('domain = "corp.contoso.com"' in remedy for remedy in explanation.remedies)


def test_certificate_name_that_the_connector_of_another_organization_has_is_not_told_to_be_declared() -> None:
    other = Organization("fabrikam", FABRIKAM.accepted_domains, (SAAS,))
    rules = Rules([Organization("contoso", BOTH, (Connector("office", NET),)), other])
    explanation = words("192.0.2.5", "app@q.contoso.com", names=["mail.vendor.example"], rules=rules)
    assert not any("mail.vendor.example" in remedy for remedy in explanation.remedies)


def test_certificate_name_that_is_accepted_is_not_told_to_be_declared() -> None:
    accepted = (BOTH[0], AcceptedDomain("vendor.example"))
    explanation = words(
        None,
        "app@x.example",
        ["ann@contoso.com"],
        names=["vendor.example"],
        rules=contoso(Connector("crm", (), "vendor.example", True, ("contoso.com",)), accepted=accepted),
        rule_set=RuleSet.LEGACY,
    )
    assert not any("If vendor.example is your own" in remedy for remedy in explanation.remedies)


def test_null_sender_is_told_which_certificate_to_present_and_what_its_connector_needs() -> None:
    shared = Rules([Organization("contoso", BOTH, (SAAS,)), Organization("tailspin", TAILSPINS, (SAAS,))])
    of_mta = replace(SAAS, name="upstream", declared=False)
    declare = 'and declare [[organization.connector]] name = "…", tls_sender_certificate_name = that name under'
    for ip, name, rules, present in (
        ("203.0.113.9", "", RULES, ""),
        ("198.51.100.7", "", RULES, ""),
        ("203.0.113.9", "mail.vendor.example", shared, f", {declare} your organization"),
        (
            "203.0.113.9",
            "mail.vendor.example",
            contoso(of_mta),
            f", such as mail.contoso.com, {declare} organization[contoso]",
        ),
        (
            "203.0.113.9",
            "mail.vendor.example",
            contoso(of_mta, SAAS),
            ", such as mail.contoso.com, and set organization[contoso].connector[saas].tls_sender_certificate_name "
            "to it",
        ),
        (
            "203.0.113.9",
            "mail.vendor.example",
            contoso(replace(SAAS, enabled=False)),
            f", such as mail.contoso.com, {declare} organization[contoso]",
        ),
        ("192.0.2.5", "", contoso(Connector("old", NET, enabled=False)), ", such as mail.contoso.com"),
    ):
        assert words(ip, "", names=[name] if name else [], rules=rules).remedies[0] == (
            "Send null-sender mail (NDRs, automatic replies) to outside over a connection with a trusted certificate "
            f"whose name is in an accepted domain{present}: no P1 or IP address can make up for it."
        )


def test_disabled_connectors_to_enable_are_the_organizations_own_that_would_do() -> None:
    limited, of_mta = replace(LIMITED, enabled=False), replace(OF_MTA, enabled=False)
    off = Connector("off", NET, enabled=False)
    other = Organization("fabrikam", FABRIKAM.accepted_domains, (replace(off, name="theirs"),))
    rules = Rules([Organization("contoso", BOTH, (off, of_mta, limited)), other])
    for p1, names in (("bob@contoso.com", ["off"]), ("bob@corp.contoso.com", ["off", "lab"])):
        assert words("192.0.2.5", p1, rules=rules).remedies == (
            *(f"Set organization[contoso].connector[{name}].enabled = true: it covers the client." for name in names),
            'If the client is a host of contoso: declare [[organization.connector]] name = "…", sender_ip_addresses = '
            '["192.0.2.5"] under organization[contoso].',
        )
    first = words("192.0.2.5", "bob@contoso.com", names=["mail.fabrikam.com"], rules=rules).remedies[:2]
    assert first[0] == "Set organization[fabrikam].connector[theirs].enabled = true: it covers the client."
    assert "enabled" not in first[1]
    assert words("192.0.2.5", "bob@x.example", rules=contoso(off, of_mta, limited)).also == (
        "Set organization[contoso].connector[off].enabled = true: it covers the client.",
        'The client needs a connector as well: declare [[organization.connector]] name = "…", sender_ip_addresses = '
        '["192.0.2.5"] under organization[contoso].',
    )


def test_client_of_unknown_address_is_told_a_connector_by_certificate_name() -> None:
    assert words(None, "bob@contoso.com", names=["mail.new.example"]).remedies == (
        "Or, if the client got a new certificate, set "
        'organization[contoso].connector[crm].tls_sender_certificate_name = "mail.new.example".',
    )
    assert words(None, "bob@fabrikam.com", names=["mail.fabrikam.com"]).remedies == (
        'Declare [[organization.connector]] name = "…", tls_sender_certificate_name = "mail.fabrikam.com" under '
        "organization[fabrikam].",
    )
    assert words(None, "bob@contoso.com").remedies[0] == (
        "If the client is a host of contoso: declare an [[organization.connector]] under organization[contoso] that "
        "matches it."
    )
    assert words(None, "app@vendor.example", names=["mail.vendor.example"]).also == (
        'The client needs a connector as well: declare [[organization.connector]] name = "…", '
        'tls_sender_certificate_name = "mail.vendor.example" under your organization.',
    )


def test_address_is_added_to_the_first_connector_that_has_addresses_and_counts_for_the_domain_r11() -> None:
    limited = replace(LIMITED, name="limited")
    rules = contoso(SAAS, limited, Connector("office", NET))
    for p1 in ("bob@contoso.com", "app@vendor.example"):
        explanation = words("203.0.113.9", p1, rules=rules)
        added = next(text for text in (*explanation.also, *explanation.remedies) if "203.0.113.9" in text)
        assert added.endswith('add "203.0.113.9" to organization[contoso].connector[office].sender_ip_addresses.')
