# SPDX-License-Identifier: GPL-3.0-or-later
"""The table [upstream] of the configuration file, and what the rest of it must have beside that."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from dataclasses import replace
from typing import Optional

from gatepost.relay import Connector, Organization, Rules
from gatepost.service import fields, organizations, upstream
from gatepost.service.organizations import OrganizationConfig
from gatepost.service.srs_config import SrsConfig
from gatepost.service.tables import Notes, Table
from gatepost.service.upstream import Upstream, UpstreamConfig


def read(table: Optional[Table], declared: Mapping[str, Organization]) -> Optional[UpstreamConfig]:
    """Return [upstream], None where it is absent; *declared*: the organisations."""
    if table is None:
        return None
    only = next(iter(declared)) if len(declared) == 1 else None
    name = table.string("organization", only, allowed=list(declared))
    if name and not declared:
        table.problem("organization", f'"{name}" is none: there is no [[organization]]')
    organization = declared.get(name)
    given = table.optional_string("tls_sender_certificate_name")
    certificate_name = organizations.certificate_name(table, given) if given else None
    default = (certificate_name,) if certificate_name and not certificate_name.startswith("*.") else ()
    associated = fields.domains(table, "associated_accepted_domains")
    accepted = {item.domain for item in organization.accepted_domains} if organization else set(associated)
    for domain in associated:
        if domain not in accepted:
            table.problem("associated_accepted_domains", f'"{domain}" is no accepted domain of {name}')
    connector = Connector("upstream", tuple(organizations.networks(table)), certificate_name, True, associated)
    config = UpstreamConfig(
        organization=name,
        connector=connector,
        certificate_names=fields.patterns(table, "certificate_names") or default,
        refuse=table.boolean("refuse", default=False),
    )
    if certificate_name and not config.certificate_names:
        table.problem(
            "certificate_names", f'missing: "{certificate_name}" does not tell the names in this host\'s certificate'
        )
    if not connector.sender_ip_addresses and given is None:
        table.notes.problem(
            table.path, "needs sender_ip_addresses or tls_sender_certificate_name, as the connector there has them"
        )
    table.close()
    return config


def check(
    config: UpstreamConfig,
    declared: Mapping[str, Organization],
    settings: Mapping[str, OrganizationConfig],
    srs: SrsConfig,
    notes: Notes,
    *,
    subdomains_relay: bool,
    rewrites: bool,
) -> None:
    """Note what would make mail be refused there, or bounces go astray. The rest of the configuration is right.

    rewrites: something here gives foreign senders an SRS address for certain.
    """
    organization = declared[config.organization]
    made = upstream.build(config, organization, subdomains_relay=subdomains_relay)
    if not made.client.enabled:
        notes.problem(
            "upstream.certificate_names",
            f'none matches tls_sender_certificate_name "{config.connector.tls_sender_certificate_name}": '
            "Exchange Online would refuse everything",
        )
        return
    if config.certificate_names and not made.takes_all:
        notes.warn(
            "upstream.certificate_names",
            f"none is in an accepted domain of {organization.name}, or one label below: Exchange Online goes by P1 "
            "alone, and refuses null senders",
        )
    own = settings[organization.name]
    _check_connector(config.connector, organization, notes)
    _check_own(config.connector, organization, notes)
    exported = Organization(organization.name, organization.accepted_domains, tuple(own.exchange_export.connectors()))
    client = Rules([exported]).client(made.client.ip, config.certificate_names)
    if exported.connectors and not client.enabled:
        notes.warn("upstream", f"no enabled connector in exchange_export of {organization.name} is for this host")
    path = f"organization[{list(declared).index(organization.name)}]"
    if made.takes_all:
        if own.srs_domain is None:
            text = f"missing: where the MX of {organization.default_domain} leads to Exchange Online, bounces of what"
            notes.warn(f"{path}.srs_domain", f"{text} is rewritten here do not come back")
        return
    _check_srs_domains(made, own, path, notes)
    if not rewrites:
        notes.warn("upstream", "by address every foreign P1 must be rewritten, which policyd does not: use the milter")
    if srs.only_spf:
        notes.problem("srs.only_spf", "true goes not with [upstream] by address: no foreign P1 is taken there")
    for name in ("exclude", "include"):
        if getattr(srs, name) or getattr(srs, f"{name}_file"):
            notes.warn(f"srs.{name}", "has no effect: [upstream] by address takes accepted senders only, listed or not")


def _check_srs_domains(made: Upstream, own: OrganizationConfig, path: str, notes: Notes) -> None:
    """Note each srs_domain that is missing, not taken, or where Exchange Online makes SRS addresses of its own."""
    organization, default = made.organization, made.organization.default_domain
    if own.srs_domain is None:
        notes.problem(
            f"{path}.srs_domain",
            f'missing: [upstream] by address needs one (e.g. "srs.{default}"), an accepted domain with its MX at this '
            f"host; in {default} Exchange Online makes SRS addresses of its own",
        )
    (connector,) = organization.connectors
    limited = " in upstream.associated_accepted_domains" if connector.associated_accepted_domains else ""
    for name, domain in _srs_domains(own, organization, path):
        if not made.takes(domain):
            text = f'"{domain}" is no accepted domain of {organization.name}{limited}'
            notes.problem(name, f"{text}: Exchange Online would refuse what is rewritten")
        elif domain == default or domain.endswith(".onmicrosoft.com"):
            text = f'"{domain}" is where Exchange Online makes SRS addresses of its own'
            notes.problem(name, f'{text}, and where its MX leads to; take another one (e.g. "srs.{default}")')


def _srs_domains(own: OrganizationConfig, organization: Organization, path: str) -> Iterator[tuple[str, str]]:
    if own.srs_domain is not None:
        yield f"{path}.srs_domain", own.srs_domain
    for index, accepted in enumerate(organization.accepted_domains):
        if accepted.domain in own.srs_domains:
            yield f"{path}.accepted_domain[{index}].srs_domain", own.srs_domains[accepted.domain]


def _check_connector(connector: Connector, organization: Organization, notes: Notes) -> None:
    """Note where the organisation has the same connector, say from an export, limited to other domains (R11)."""
    for same in organization.connectors:
        differ = set(same.associated_accepted_domains) != set(connector.associated_accepted_domains)
        if differ and _alike(connector, same):
            text = f'connector "{same.name}" of {organization.name} has the same address or name, and other ones'
            notes.warn("upstream.associated_accepted_domains", text)


def _check_own(connector: Connector, organization: Organization, notes: Notes) -> None:
    """Note where the organisation has this host's own connector as if it were one for its clients."""
    enabled = [item for item in organization.connectors if item.enabled]
    own = own_connectors(connector, organization)
    for item in own:
        start = f'connector "{item.name}" of {organization.name} is this host\'s own, as [upstream] has it'
        if len(own) == len(enabled):
            text = f"{start}, and no other one is enabled: all your clients fail condition 2. Declare"
            notes.warn("upstream", f"{text} [[organization.connector]] with their addresses or certificate name")
        else:
            notes.warn("upstream", f"{start}: it lets none of your clients relay")


def own_connectors(connector: Connector, organization: Organization) -> list[Connector]:
    """Return the enabled connectors that match nobody but the host with *connector* at Exchange Online.

    A wildcard matches the certificates of other hosts, too.
    """
    addresses, name = set(connector.sender_ip_addresses), connector.tls_sender_certificate_name
    return [
        item
        for item in organization.connectors
        if item.enabled
        and addresses.issuperset(item.sender_ip_addresses)
        and item.tls_sender_certificate_name in (None, name)
        and not (item.tls_sender_certificate_name or "").startswith("*.")
    ]


def marked(config: UpstreamConfig, declared: Mapping[str, Organization]) -> dict[str, Organization]:
    """Return the organisations with this host's own connectors kept from remedies."""
    organization = declared[config.organization]
    own = own_connectors(config.connector, organization)
    connectors = tuple(replace(item, declared=item.declared and item not in own) for item in organization.connectors)
    return {**declared, organization.name: replace(organization, connectors=connectors)}


def _alike(one: Connector, other: Connector) -> bool:
    if one.tls_sender_certificate_name and one.tls_sender_certificate_name == other.tls_sender_certificate_name:
        return True
    return not set(one.sender_ip_addresses).isdisjoint(other.sender_ip_addresses)
