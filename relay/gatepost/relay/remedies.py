# SPDX-License-Identifier: GPL-3.0-or-later
"""Says what to change so that refused mail is relayed, naming the configuration key."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Optional

from gatepost.relay.index import parse_address
from gatepost.relay.names import certificate_domain, domain_of, parent
from gatepost.relay.organization import Connector, Organization
from gatepost.relay.rules import Accepted, Client, Rules
from gatepost.relay.verdict import Condition, Mail, Reason, Verdict

_AS_NONE = "(self-signed, expired, or not for client authentication is as good as none)"
"""What MTAs and Exchange Online do not trust, R10."""
_IN_FOLDER = "If the name is not the CN, put the certificate into relay.certificate_folder."


def remedies(verdict: Verdict, client: Client, mail: Mail) -> Iterator[str]:
    """Yield a sentence for each change that helps, the likeliest first. None where nothing has to change."""
    organization, connector, accepted_domain = verdict.organization, verdict.connector, verdict.accepted_domain
    if verdict.reason in (Reason.NOTHING_ACCEPTED, Reason.NULL_SENDER, Reason.P2_ACCEPTED):
        yield from _for_condition_1(verdict, client, mail)
        if not client.enabled:
            yield from _enable(verdict)
            yield f"The client needs a connector as well: {_declare_connector(client, organization)}."
        elif organization is None:
            yield (
                "Connectors of several organizations match the client: where an address is shared, give each "
                "organization a certificate of its own, and its connector that tls_sender_certificate_name."
            )
    elif verdict.reason is Reason.NO_CONNECTOR and organization:
        yield from _for_connector(verdict, client, organization)
    elif verdict.reason is Reason.CONNECTOR_FOR_OTHER_DOMAINS and organization and connector and accepted_domain:
        key = f"{_key(organization, connector)}.associated_accepted_domains"
        yield f'Add "{accepted_domain.domain}" to {key}, or leave that list empty.'


def _for_condition_1(verdict: Verdict, client: Client, mail: Mail) -> Iterator[str]:
    organization = verdict.organization
    if verdict.reason is Reason.NULL_SENDER:
        yield _certificate_for_null_sender(organization)
        yield from _for_certificate_names(client, organization)
        return
    yield from _for_p1(client.rules, mail, organization)
    yield from _for_certificate_names(client, organization)
    yield _certificate(client, organization)
    if organization is not None:
        yield (
            "Where the application cannot change its P1, let SRS on the host before this one rewrite it "
            f"into an address in {organization.default_domain}."
        )


def _key(organization: Organization, connector: Connector) -> str:
    return f"organization[{organization.name}].connector[{connector.name}]"


def _owner(organization: Optional[Organization]) -> str:
    return f"organization[{organization.name}]" if organization else "your organization"


def _declare(domain: str, organization: Optional[Organization]) -> str:
    return f'[[organization.accepted_domain]] domain = "{domain}" under {_owner(organization)}'


def _for_p1(rules: Rules, mail: Mail, organization: Optional[Organization]) -> Iterator[str]:
    domain = domain_of(mail.reverse_path)
    example = f", such as one in {organization.default_domain}" if organization else ""
    if domain is None or "." not in domain:
        yield (
            f"Let the application use an accepted P1{example}: {mail.reverse_path} is the kind of sender that cron "
            "jobs and devices use until they are told one (where they send by a Postfix of their own: myorigin)."
        )
        return
    above = _accepted_above(rules, domain)
    covered = rules.accepted(domain)
    if covered is not None:
        yield (
            f"Declare {_declare(domain, covered.organization)}, or set relay.subdomains_relay = true, so "
            f"that subdomains of {covered.accepted_domain.domain} count."
        )
    elif above is not None:
        yield (
            f"Declare {_declare(domain, above.organization)}, or set match_subdomains = true (with type = "
            f'"InternalRelay") for {above.accepted_domain.domain}: a subdomain is not accepted by itself.'
        )
    else:
        yield f"If {domain} is your own, declare it: {_declare(domain, organization)}."
    yield (
        f"Let the application use an accepted P1{example}. P1 is what it says in MAIL FROM; services call it return "
        "path or bounce address."
    )


def _accepted_above(rules: Rules, domain: str) -> Optional[Accepted]:
    above = parent(domain)
    while above:
        accepted = rules.accepted(above)
        if accepted is not None:
            return accepted
        above = parent(above)
    return None


def _for_certificate_names(client: Client, organization: Optional[Organization]) -> Iterator[str]:
    """Yield what to declare for the names that the client's certificate has."""
    for domain in dict.fromkeys(map(certificate_domain, client.certificate_names)):
        if domain is None:
            continue
        above = _accepted_above(client.rules, parent(domain))
        if above is not None:
            yield (
                f"Declare {_declare(parent(domain), above.organization)}: certificate name {domain} reaches "
                f"one label up only, not to {above.accepted_domain.domain}."
            )
            return
    for condition, name, _ in client.enabled:
        if condition is Condition.CONNECTOR_CERTIFICATE:
            yield (
                f"If {name} is your own, declare it: {_declare(name, organization)}. "
                "A connector knows that certificate name, but it is in no accepted domain."
            )
            return


def _certificate(client: Client, organization: Optional[Organization]) -> str:
    example = f", such as mail.{organization.default_domain}" if organization else ""
    sentence = f"Or let the client present a trusted certificate with a name in an accepted domain{example}"
    expected = _certificate_connector(organization)
    if client.enabled:
        return f"{sentence} {_AS_NONE}. {_IN_FOLDER}"
    if organization and expected:
        return f"{sentence}, and matching {_key(organization, expected)}.tls_sender_certificate_name. {_IN_FOLDER}"
    return f"{sentence}, and declare {_declare_name('that name', organization)}. {_IN_FOLDER}"


def _certificate_connector(organization: Optional[Organization]) -> Optional[Connector]:
    for connector in organization.connectors if organization else ():
        if connector.enabled and connector.tls_sender_certificate_name:
            return connector
    return None


def _declare_name(name: str, organization: Optional[Organization]) -> str:
    return f"[[organization.connector]] tls_sender_certificate_name = {name} under {_owner(organization)}"


def _certificate_for_null_sender(organization: Optional[Organization]) -> str:
    example = f", such as mail.{organization.default_domain}" if organization else ""
    return (
        "Send null-sender mail (NDRs, automatic replies) to outside over a connection with a trusted "
        f"certificate whose name is in an accepted domain{example}: no P1 or IP address can make up for it."
    )


def _enable(verdict: Verdict) -> Iterator[str]:
    for step in verdict.trace:
        if step.condition is Condition.CONNECTOR_ENABLED and step.organization and step.connector:
            yield f"Set {_key(step.organization, step.connector)}.enabled = true: it covers the client."


def _for_connector(verdict: Verdict, client: Client, organization: Organization) -> Iterator[str]:
    yield from _enable(verdict)
    yield f"If the client is a host of {organization.name}: {_declare_connector(client, organization)}."
    expected = _certificate_connector(organization)
    names = map(certificate_domain, client.certificate_names)
    name = next((name for name in names if name and "." in name), None)
    if name and expected:
        key = f"{_key(organization, expected)}.tls_sender_certificate_name"
        yield f'Or, if the client got a new certificate, set {key} = "{name}".'
    elif name:
        declaration = _declare_name(f'"{name}"', organization)
        yield f"Or declare {declaration}."
    elif expected:
        yield (
            "Or let the client present a trusted certificate that "
            f"{_key(organization, expected)}.tls_sender_certificate_name matches, "
            f"{expected.tls_sender_certificate_name} {_AS_NONE}."
        )


def _declare_connector(client: Client, organization: Optional[Organization]) -> str:
    if parse_address(client.ip) is None:
        return f"declare an [[organization.connector]] under {_owner(organization)} that matches it"
    for connector in organization.connectors if organization else ():
        if organization and connector.enabled and connector.sender_ip_addresses:
            return f'add "{client.ip}" to {_key(organization, connector)}.sender_ip_addresses'
    return f'declare [[organization.connector]] sender_ip_addresses = ["{client.ip}"] under {_owner(organization)}'
