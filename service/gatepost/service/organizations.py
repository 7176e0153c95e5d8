# SPDX-License-Identifier: GPL-3.0-or-later
"""[[organization]] of the configuration file: accepted domains, connectors, and what gatepost adds to them."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from collections.abc import Set as AbstractSet
from dataclasses import dataclass, field, replace
from datetime import datetime
from enum import Enum
from pathlib import Path
from typing import Optional

from gatepost.relay import AcceptedDomain, Connector, DomainType, Network, Organization, normalize_domain
from gatepost.relay.names import parent
from gatepost.relay.organization import network_of
from gatepost.service import exports, fields
from gatepost.service.addresses import plain
from gatepost.service.exports import ExchangeExport
from gatepost.service.tables import Table


class Mode(Enum):
    """What becomes of a refusal and of SRS: *MONITOR* logs and counts, the message stays untouched."""

    MONITOR = "monitor"
    ENFORCE = "enforce"


class RefusalAction(Enum):
    """What is done with what the rule refuses, in mode ENFORCE.

    QUARANTINE holds the message in the MTA's hold queue; TAG lets it pass with a header that says so. REWRITE relays
    what a connector's host sends with a foreign P1, and gives it an SRS address; it rejects the rest.
    """

    REJECT = "reject"
    TEMPFAIL = "tempfail"
    QUARANTINE = "quarantine"
    TAG = "tag"
    REWRITE = "rewrite"


_MODES = tuple(item.value for item in Mode)
_ACTIONS = tuple(item.value for item in RefusalAction)
_TYPES = tuple(item.value for item in DomainType)


@dataclass(frozen=True)
class OrganizationConfig:
    """What gatepost adds to an organisation: its own *mode*, and the domains that it mints SRS addresses in.

    enforce_from: see RelayConfig. notify_addresses: who hears of that beforehand (gatepost report notify). srs_domain:
    for all of it. srs_domains: for the mail of single accepted domains. action: what is done with what is refused.
    exchange_export: what comes from Exchange Online's exports.
    """

    mode: Mode
    enforce_from: Optional[datetime] = None
    action: RefusalAction = RefusalAction.REJECT
    notify_addresses: tuple[str, ...] = ()
    srs_domain: Optional[str] = None
    srs_domains: Mapping[str, str] = field(default_factory=dict)
    exchange_export: ExchangeExport = field(default_factory=ExchangeExport)


Kept = tuple[Organization, OrganizationConfig]
"""An organization as it was read before."""


def mode_of(table: Table, default: tuple[Mode, Optional[datetime]]) -> tuple[Mode, Optional[datetime]]:
    """Return mode and enforce_from. Where the table has either, nothing of *default* holds."""
    if table.is_absent("mode") and table.is_absent("enforce_from"):
        return default
    mode = Mode(table.string("mode", Mode.MONITOR.value, allowed=_MODES))
    enforce_from = table.instant("enforce_from")
    if enforce_from and mode is Mode.ENFORCE:
        table.problem("enforce_from", 'mode = "enforce" is in force at once; write mode = "monitor", or leave it out')
    return mode, enforce_from


def refusal_action(table: Table, default: RefusalAction) -> RefusalAction:
    return RefusalAction(table.string("action", default.value, allowed=_ACTIONS))


def organizations(
    top: Table,
    default: tuple[Mode, Optional[datetime]],
    action: RefusalAction,
    folder: Path,
    kept: Mapping[int, Kept],
) -> tuple[dict[str, Organization], dict[str, OrganizationConfig]]:
    """Return what [[organization]] declares.

    default: mode and enforce_from where an organisation has neither. action: that of one that has none. folder: the
    configuration file's, to which exchange_export is relative. kept: what needs no reading, by its index.
    """
    declared: dict[str, Organization] = {}
    settings: dict[str, OrganizationConfig] = {}
    owner: dict[str, str] = {}
    for index, table in enumerate(top.tables("organization")):
        name = kept[index][0].name if index in kept else table.string("name")
        if name in declared:
            table.problem("name", f'"{name}" is used by another organization')
        if index in kept:
            declared[name], settings[name] = kept[index]
            for item in declared[name].accepted_domains:
                if owner.setdefault(item.domain, table.path) != table.path:
                    _note_owner(table, item.domain, item.domain, owner)
            continue
        srs_domains: dict[str, str] = {}
        export = exports.exchange_export(table, folder)
        domains = _accepted_domains(table, name, owner, srs_domains, export)
        accepted = {domain.domain for domain in domains}
        export = exports.limited_to_accepted(export, accepted)
        for note in exports.notes(export.records):
            table.notes.warn(table.key("exchange_export"), note)
        organization = Organization(
            name=name, accepted_domains=domains, connectors=_connectors(table, accepted, export)
        )
        srs_domain = table.optional_string("srs_domain")
        mode, enforce_from = mode_of(table, default)
        settings[name] = OrganizationConfig(
            mode=mode,
            enforce_from=enforce_from,
            action=refusal_action(table, action),
            notify_addresses=_notify_addresses(table, organization),
            srs_domain=fields.domain(table, "srs_domain", srs_domain) if srs_domain else None,
            srs_domains=srs_domains,
            exchange_export=export,
        )
        declared[name] = organization
        table.close()
    return declared, settings


def _note_owner(entry: Table, text: str, domain: str, owner: dict[str, str]) -> None:
    """Note where *domain*, written *text*, is accepted, and where that is the second time."""
    if owner.setdefault(domain, entry.path) != entry.path:
        entry.problem("domain", f'"{text}" is an accepted domain at {owner[domain]} already')


def _notify_addresses(table: Table, organization: Organization) -> tuple[str, ...]:
    """Return who hears of what concerns the organisation; RFC 5321, 4.5.1, gives every domain a postmaster."""
    given = table.strings("notify_addresses")
    for index, text in enumerate(given):
        if not plain(text):
            table.problem(f"notify_addresses[{index}]", f'"{text}" is no address (e.g. "postmaster@contoso.com")')
    if given or not organization.accepted_domains:
        return given
    return (f"postmaster@{organization.default_domain}",)


def _accepted_domains(
    table: Table, name: str, owner: dict[str, str], srs_domains: dict[str, str], export: ExchangeExport
) -> tuple[AcceptedDomain, ...]:
    """Return those written by hand, which may add to an exported one or differ from it, then the other exported ones.

    A default = true written by hand takes the place of Exchange Online's.
    """
    exported = export.accepted_domains()
    written: dict[str, AcceptedDomain] = {}
    undecided = set()
    leaving = {item.name: item.why for item in export.records if item.item is None and not item.is_connector}
    for entry in table.tables("accepted_domain"):
        text = entry.string("domain")
        domain = fields.domain(entry, "domain", text) if text else ""
        if domain:
            _note_owner(entry, text, domain, owner)
        if entry.is_absent("default"):
            undecided.add(domain)
        if domain in leaving:
            entry.notes.warn(entry.key("domain"), f"counts here, being written by hand; {leaving[domain]}")
        elif domain and exported and not _covered(domain, exported):
            entry.notes.warn(
                entry.key("domain"),
                f'"{domain}" is in no export of {name}: Exchange Online refuses P1 in it until it is an accepted '
                "domain there; add it there and export anew",
            )
        written[domain or entry.path] = _accepted_domain(entry, domain, exported.get(domain))
        srs_domain = entry.optional_string("srs_domain")
        if srs_domain:
            srs_domains[domain] = fields.domain(entry, "srs_domain", srs_domain)
        entry.close()
    path = table.key("exchange_export")
    for domain in exported:
        if domain not in written and owner.setdefault(domain, path) != path:
            table.problem("exchange_export", f'"{domain}" is an accepted domain at {owner[domain]} already')
    if not any(domain.default for domain in written.values()):
        kept = {domain for domain, item in exported.items() if item.default and domain in undecided}
        written.update({domain: replace(written[domain], default=True) for domain in kept})
    else:
        exported = {domain: replace(item, default=False) for domain, item in exported.items()}
    domains = (*written.values(), *(item for domain, item in exported.items() if domain not in written))
    _check_domains(table, name, domains, export)
    return domains


def _covered(domain: str, exported: Mapping[str, AcceptedDomain]) -> bool:
    """Tell whether *domain* is exported, or below one that is with all its subdomains (R4)."""
    above = parent(domain)
    while above and not (above in exported and exported[above].match_subdomains):
        above = parent(above)
    return domain in exported or bool(above)


def _accepted_domain(entry: Table, domain: str, exported: Optional[AcceptedDomain]) -> AcceptedDomain:
    """Return one written by hand; what it leaves open is as *exported*."""
    other = exported or AcceptedDomain(domain)
    kind = DomainType(entry.string("type", other.type.value, allowed=_TYPES))
    subdomains = entry.boolean("match_subdomains", default=other.match_subdomains)
    if exported:
        if kind is not exported.type:
            entry.notes.warn(entry.key("type"), f"this counts, and not what exchange_export has: {exported.type.value}")
        if subdomains != exported.match_subdomains:
            theirs = str(exported.match_subdomains).lower()
            entry.notes.warn(
                entry.key("match_subdomains"),
                f"this counts, and not what exchange_export has: {theirs}; Exchange Online goes by that",
            )
    elif subdomains and kind is not DomainType.INTERNAL_RELAY:
        entry.notes.warn(entry.key("match_subdomains"), 'Exchange Online takes it with type = "InternalRelay" only')
    return AcceptedDomain(domain, kind, entry.boolean("default", default=False), subdomains)


def _check_domains(table: Table, name: str, domains: Sequence[AcceptedDomain], export: ExchangeExport) -> None:
    """Note what is wrong with all of them together, unless more would be there but for a problem noted before."""
    defaults = sum(domain.default for domain in domains)
    if not export.usable:
        return
    if not domains and table.is_empty("accepted_domain"):
        table.problem("accepted_domain", f'missing: organization "{name}" has no accepted domain')
    elif defaults != 1 and len(domains) > 1:
        table.problem("accepted_domain", f"{defaults or 'none'} of {len(domains)} have default = true, must be one")


def _connectors(table: Table, accepted: AbstractSet[str], export: ExchangeExport) -> tuple[Connector, ...]:
    connectors = []
    names: set[str] = set()
    for entry in table.tables("connector"):
        name = entry.string("name")
        if name in names:
            entry.problem("name", f'"{name}" is used by another connector of this organization')
        names.add(name)
        connectors.append(_connector(entry, name, accepted if export.usable else None))
    for connector in export.connectors():
        if connector.name in names:
            table.problem("exchange_export", f'it has a connector "{connector.name}", and there is one written by hand')
        connectors.append(replace(connector, declared=False))
    return tuple(connectors)


def _connector(entry: Table, name: str, accepted: Optional[AbstractSet[str]]) -> Connector:
    """Return one connector. accepted: what it may be limited to, None where that is not known."""
    associated = fields.domains(entry, "associated_accepted_domains")
    for domain in associated:
        if accepted is not None and domain not in accepted:
            entry.problem("associated_accepted_domains", f'"{domain}" is no accepted domain of this organization')
    certificate = entry.optional_string("tls_sender_certificate_name")
    connector = Connector(
        name=name,
        sender_ip_addresses=tuple(networks(entry)),
        tls_sender_certificate_name=certificate_name(entry, certificate) if certificate else None,
        enabled=entry.boolean("enabled", default=True),
        associated_accepted_domains=associated,
    )
    entry.close()
    if not connector.sender_ip_addresses and certificate is None:
        entry.notes.problem(entry.path, "needs sender_ip_addresses or tls_sender_certificate_name to match anything")
    return connector


def networks(entry: Table) -> list[Network]:
    """Return sender_ip_addresses (R7)."""
    found: list[Network] = []
    for index, text in enumerate(entry.strings("sender_ip_addresses")):
        path = f"sender_ip_addresses[{index}]"
        network = network_of(text)
        if network is None:
            entry.problem(path, f'"{text}" is no IP address or network (e.g. "192.0.2.1", "192.0.2.0/28")')
            continue
        if network.version == 6 or network.prefixlen < 24:
            entry.notes.warn(entry.key(path), f'Exchange Online does not take "{text}": IPv4, /24 to /32')
        found.append(network)
    return found


def certificate_name(entry: Table, text: str) -> str:
    """Return tls_sender_certificate_name, given as *text*, in normal form (R8)."""
    wildcard = "*." if text.startswith("*.") else ""
    domain = normalize_domain(text[len(wildcard) :])
    if domain is None or "." not in domain:
        entry.problem(
            "tls_sender_certificate_name",
            f'"{text}" is not a domain name (e.g. "mail.contoso.com", "*.contoso.com")',
        )
        return text
    return wildcard + domain
