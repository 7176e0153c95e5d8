# SPDX-License-Identifier: GPL-3.0-or-later
"""Says what to change so that refused mail is relayed, naming the configuration key."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Optional

from gatepost.relay.circumstances import Circumstances, accepted_above, allows, circumstances
from gatepost.relay.index import parse_address
from gatepost.relay.names import certificate_domain, domain_of, nameless, parent
from gatepost.relay.organization import Connector
from gatepost.relay.rules import Client
from gatepost.relay.verdict import Condition, Mail, Reason, Verdict

_AS_NONE = "(self-signed, expired, or not for client authentication is as good as none)"
"""What MTAs and Exchange Online do not trust, R10."""
_IN_FOLDER = "If the name is not the CN, put the certificate into relay.certificate_folder."
_P1_IS = "P1 is what it says in MAIL FROM; services call it return path or bounce address."
_CONDITION_1 = (Reason.NOTHING_ACCEPTED, Reason.NULL_SENDER, Reason.P2_ACCEPTED)


def remedies(verdict: Verdict, client: Client, mail: Mail) -> Iterator[str]:
    """Yield a sentence for each change that helps, the likeliest first. None where nothing has to change.

    Where both conditions failed, it helps together with one of `connectors_needed`.
    """
    case, accepted_domain = circumstances(verdict, client, mail), verdict.accepted_domain
    if verdict.reason in _CONDITION_1:
        yield from _name_certificate(client)
        yield from _for_condition_1(verdict, case, mail)
    elif verdict.reason is Reason.NO_CONNECTOR and accepted_domain:
        yield from _name_certificate(client)
        yield from _for_connector(verdict, case, accepted_domain.domain)
    elif verdict.reason is Reason.CONNECTOR_FOR_OTHER_DOMAINS and verdict.connector and accepted_domain:
        if not verdict.connector.declared:
            yield f"If the client is a host of {case.whose}: {_declare_connector(case, accepted_domain.domain)}."
            return
        key = f"{case.key(verdict.connector)}.associated_accepted_domains"
        yield f'Add "{accepted_domain.domain}" to {key}, or leave that list empty.'


def connectors_needed(verdict: Verdict, client: Client, mail: Mail) -> Iterator[str]:
    """Yield each way to a connector for a client without one, where condition 1 failed, too."""
    case = circumstances(verdict, client, mail)
    if verdict.reason in _CONDITION_1 and not case.connectors:
        yield from _enable(verdict, case, None)
        unless = ", unless one has a name of its certificate" if _nameless(client) else ""
        yield f"The client needs a connector as well{unless}: {_declare_connector(case, None)}."


def _name_certificate(client: Client) -> Iterator[str]:
    """Yield how gatepost gets to know the names in a certificate that the MTA trusts."""
    fingerprints = _nameless(client)
    if any(fingerprints):
        yield (
            f"Put the client's certificate, without its key, into relay.certificate_folder ({max(fingerprints)}): "
            "gatepost does not know the names in it."
        )
    elif fingerprints:
        yield (
            "Put the client's certificate, without its key, into relay.certificate_folder, and let the MTA report its "
            "fingerprint (Postfix: have policyd asked at RCPT): gatepost does not know the names in it."
        )


def _nameless(client: Client) -> list[str]:
    return [found for found in map(nameless, client.certificate_names) if found is not None]


def _for_condition_1(verdict: Verdict, case: Circumstances, mail: Mail) -> Iterator[str]:
    domain = case.example(case.connectors)
    if verdict.reason is Reason.NULL_SENDER:
        yield _certificate_for_null_sender(case)
        yield from _for_certificate_names(case)
    else:
        yield from _for_p1(case, mail, f", such as one in {domain}" if domain else "")
        yield from _for_certificate_names(case)
        yield _certificate(case)
        if domain is not None:
            yield (
                "Where the application cannot change its P1, let SRS on the host before this one rewrite it "
                f"into an address in {domain}."
            )
    if case.client.enabled and case.client.own is None:
        yield (
            "Connectors of several organizations match the client: where an address is shared, give each "
            "organization a certificate of its own, and its connector that tls_sender_certificate_name."
        )


def _for_p1(case: Circumstances, mail: Mail, example: str) -> Iterator[str]:
    domain = domain_of(mail.reverse_path)
    if "[" not in mail.reverse_path and (domain is None or "." not in domain):
        yield (
            f"Let the application use an accepted P1{example}: {mail.reverse_path} is the kind of sender that cron "
            "jobs and devices use until they are told one (where they send by a Postfix of their own: myorigin)."
        )
        return
    if domain is not None:
        yield from _declare_p1(case, domain)
    yield f"Let the application use an accepted P1{example}. {_P1_IS}"


def _declare_p1(case: Circumstances, domain: str) -> Iterator[str]:
    rules = case.client.rules
    covered, above = rules.accepted(domain), accepted_above(rules, domain)
    if covered is not None and rules.counts(covered):
        return  # for P2_ACCEPTED only: no connector is for it
    if above is None:
        yield f"If {domain} is your own, declare it: {_declare(domain, case)}."
    elif not case.is_meant(above.organization):
        return
    elif covered is not None:
        setting = ", or set relay.subdomains_relay = true" if case.takes(covered.accepted_domain.domain) else ""
        so_that = f", so that subdomains of {covered.accepted_domain.domain} count" if setting else ""
        yield f"Declare {_declare(domain, case)}{setting}{so_that}."
    else:
        parent_domain = above.accepted_domain.domain
        counts = rules.subdomains_relay and case.takes(parent_domain)
        setting = f', or set match_subdomains = true (with type = "InternalRelay") for {parent_domain}'
        yield f"Declare {_declare(domain, case)}{setting if counts else ''}: a subdomain is not accepted by itself."


def _declare(domain: str, case: Circumstances) -> str:
    """Return the declaration, with what becomes necessary by it."""
    text = f'[[organization.accepted_domain]] domain = "{domain}" under {case.owner}'
    if case.without_default:
        text += f", and set default = true for {case.organization.default_domain if case.organization else 'one'}"
    if case.takes(domain):
        return text
    changeable = [connector for connector in case.connectors if connector.declared]
    if not changeable:
        return f"{text}, and {_declare_connector(case, domain)}"
    connector = case.key(changeable[0]) if case.organization else "your connector"
    return f'{text}, and add "{domain}" to {connector}.associated_accepted_domains'


def _for_certificate_names(case: Circumstances) -> Iterator[str]:
    """Yield what to declare for the names that the client's certificate has."""
    for domain in dict.fromkeys(map(certificate_domain, case.client.certificate_names)):
        declared = case.client.rules.accepted(parent(domain)) if domain else None
        above = accepted_above(case.client.rules, parent(domain)) if domain else None
        if declared is not None and declared.exact:
            continue
        if domain and above is not None and case.is_meant(above.organization):
            yield (
                f"Declare {_declare(parent(domain), case)}: certificate name {domain} reaches "
                f"one label up only, not to {above.accepted_domain.domain}."
            )
            return
    for condition, name, connectors in case.client.enabled:
        meant = case.organization is None or case.organization.name in connectors
        if condition is Condition.CONNECTOR_CERTIFICATE and meant and case.client.rules.accepted(name) is None:
            yield (
                f"If {name} is your own, declare it: {_declare(name, case)}. "
                "A connector knows that certificate name, but it is in no accepted domain."
            )
            return


def _certificate(case: Circumstances) -> str:
    name, connector_part = _certificate_to_present(case)
    example = f", such as {name}" if name else ""
    sentence = f"Or let the client present a trusted certificate with a name in an accepted domain{example}"
    return f"{sentence}{connector_part or f' {_AS_NONE}'}. {_IN_FOLDER}"


def _certificate_for_null_sender(case: Circumstances) -> str:
    name, connector_part = _certificate_to_present(case)
    example = f", such as {name}" if name else ""
    return (
        "Send null-sender mail (NDRs, automatic replies) to outside over a connection with a trusted "
        f"certificate whose name is in an accepted domain{example}{connector_part}: no P1 or IP address can make up "
        "for it."
    )


def _certificate_to_present(case: Circumstances) -> tuple[Optional[str], str]:
    """Return a name that lets the client through, and what the connector needs for it, "" for nothing."""
    domain = case.example(case.by_address)
    name = f"mail.{domain}" if domain else None
    if case.by_address and (name or case.organization is None):  # the connector stays, whatever the certificate
        return name, ""
    if not case.connectors and _known_by_address(case.client):  # see connectors_needed
        return name, ""
    for connector in (*case.by_name, *case.enabled()):
        fitting = case.fitting_name(connector)
        if fitting:
            return fitting, f", and matching {case.key(connector)}.tls_sender_certificate_name"
    for connector in case.by_name:
        domain = case.example((connector,))
        wildcard = (connector.tls_sender_certificate_name or "").startswith("*.")
        if domain and connector.declared and not wildcard:
            return f"mail.{domain}", f", and set {case.key(connector)}.tls_sender_certificate_name to it"
    domain = case.organization.default_domain if case.organization else None
    return f"mail.{domain}" if domain else None, f", and declare {_declare_name('that name', case)}"


def _known_by_address(client: Client) -> bool:
    """Tell whether the connector that a client needs will know it by address, not by the certificate that it has."""
    by_name = any(match.condition is Condition.CONNECTOR_CERTIFICATE for match in client.disabled)
    return parse_address(client.ip) is not None and not by_name


def _declare_name(name: str, case: Circumstances) -> str:
    return f'[[organization.connector]] name = "…", tls_sender_certificate_name = {name} under {case.owner}'


def _enable(verdict: Verdict, case: Circumstances, domain: Optional[str]) -> Iterator[str]:
    """Yield each disabled connector that would do for *domain*, None: for any."""
    for step in verdict.trace:
        if step.condition is Condition.CONNECTOR_ENABLED and step.organization is case.organization:
            connector = step.connector
            if connector and connector.declared and _suits(connector, domain):
                yield f"Set {case.key(connector)}.enabled = true: it covers the client."


def _suits(connector: Connector, domain: Optional[str]) -> bool:
    return allows(connector, domain) if domain else not connector.associated_accepted_domains


def _for_connector(verdict: Verdict, case: Circumstances, domain: str) -> Iterator[str]:
    yield from _enable(verdict, case, domain)
    name = _certificate_name(case.client)
    address = parse_address(case.client.ip)
    if address is not None or name is None:
        yield f"If the client is a host of {case.whose}: {_declare_connector(case, domain)}."
    expected = _with_certificate_name(case, domain)
    if name and expected:
        key = f"{case.key(expected)}.tls_sender_certificate_name"
        yield f'Or, if the client got a new certificate, set {key} = "{name}".'
    elif name:
        declaration = _declare_name(f'"{name}"', case)
        yield f"{'Or declare' if address else 'Declare'} {declaration}."
    elif expected:
        yield (
            "Or let the client present a trusted certificate that "
            f"{case.key(expected)}.tls_sender_certificate_name matches, "
            f"{expected.tls_sender_certificate_name} {_AS_NONE}."
        )


def _certificate_name(client: Client) -> Optional[str]:
    """Return a name of the client's certificate that a connector can have."""
    names = map(certificate_domain, client.certificate_names)
    return next((name for name in names if name and "." in name), None)


def _with_certificate_name(case: Circumstances, domain: str) -> Optional[Connector]:
    for connector in case.enabled():
        if connector.tls_sender_certificate_name and allows(connector, domain):
            return connector
    return None


def _declare_connector(case: Circumstances, domain: Optional[str]) -> str:
    """Return how the client gets a connector that counts for *domain*, None: for any."""
    address, name = parse_address(case.client.ip), _certificate_name(case.client)
    if address is None and name is not None:
        declaration = _declare_name(f'"{name}"', case)
        return f"declare {declaration}"
    if address is None:
        return f"declare an [[organization.connector]] under {case.owner} that matches it"
    for connector in case.enabled():
        if connector.sender_ip_addresses and _suits(connector, domain):
            return f'add "{address}" to {case.key(connector)}.sender_ip_addresses'
    return f'declare [[organization.connector]] name = "…", sender_ip_addresses = ["{address}"] under {case.owner}'
