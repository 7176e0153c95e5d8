# SPDX-License-Identifier: GPL-3.0-or-later
"""Reads exports of Exchange Online: Get-AcceptedDomain and Get-InboundConnector, as JSON or CSV.

Nothing is half taken: a file with a record that can't be understood is refused with every reason. What is understood
and does not count for the relay rule is left out, and the record says why.
"""

from __future__ import annotations

import unicodedata
from collections.abc import Iterable, Mapping, Sequence
from collections.abc import Set as AbstractSet
from dataclasses import dataclass, field, replace
from datetime import datetime
from typing import Optional, Union

from gatepost.relay.names import certificate_domain, normalize_domain
from gatepost.relay.organization import AcceptedDomain, Connector, DomainType, Network, network_of
from gatepost.relay.powershell import Record, UnreadableError, records

# .NET's enums, which ConvertTo-Json writes as numbers where the objects are live ones.
_DOMAIN_TYPES = {
    "0": DomainType.AUTHORITATIVE,
    "1": DomainType.EXTERNAL_RELAY,
    "2": DomainType.INTERNAL_RELAY,
    **{kind.value.lower(): kind for kind in DomainType},
}
_CONNECTOR_TYPES = {"1": "OnPremises", "2": "Partner", "onpremises": "OnPremises", "partner": "Partner"}

_DOMAIN_FIELDS = ("DomainType", "Default", "InitialDomain", "MatchSubDomains")
_CONNECTOR_FIELDS = ("SenderIPAddresses", "TlsSenderCertificateName", "SenderDomains")
_USED = frozenset(
    name.lower()
    for name in (
        *_DOMAIN_FIELDS,
        *_CONNECTOR_FIELDS,
        *("DomainName", "Name", "Identity", "PendingRemoval", "OutboundOnly", "WhenChangedUTC", "WhenChanged"),
        *("Enabled", "ConnectorType", "AssociatedAcceptedDomains", "IsValid"),
    )
)


class ExportError(Exception):
    """A file can't be used; *problems* holds one line for each reason, with file, record and field."""

    def __init__(self, problems: Sequence[str]) -> None:
        super().__init__("\n".join(problems))
        self.problems = tuple(problems)


@dataclass(frozen=True)
class Exported:
    """One record. *item* is what is taken of it, None where it is left out, and *why* says for what reason.

    name: the domain, or the connector's name. notes: what is worth knowing of what is taken. changed: when Exchange
    Online changed it last, as far as the file tells. aliases: how connectors may name the domain.
    A connector's associated_accepted_domains are as in the file until `limited` has looked them up.
    """

    file: str
    name: str
    item: Union[AcceptedDomain, Connector, None]
    why: str = ""
    notes: tuple[str, ...] = ()
    changed: Optional[datetime] = None
    aliases: tuple[str, ...] = ()
    is_connector: bool = False

    def __str__(self) -> str:
        return f'connector "{self.name}"' if self.is_connector else f"accepted domain {self.name}"


@dataclass(frozen=True)
class Export:
    """A file's records in its order. ignored: the fields that the relay rule doesn't look at."""

    file: str
    records: tuple[Exported, ...]
    ignored: tuple[str, ...] = ()


@dataclass
class _Reading:
    """What one record says, its problems and notes."""

    file: str
    record: Record
    label: str
    problems: list[str] = field(default_factory=list)
    notes: list[str] = field(default_factory=list)

    def problem(self, name: str, text: str) -> None:
        self.problems.append(f"{self.file}: {self.label}: {name}: {text}")

    def text(self, name: str) -> Optional[str]:
        try:
            return self.record.text(name)
        except UnreadableError as error:
            self.problem(name, str(error))
            return None

    def boolean(self, name: str) -> Optional[bool]:
        try:
            return self.record.boolean(name)
        except UnreadableError as error:
            self.problem(name, str(error))
            return None

    def texts(self, name: str) -> tuple[str, ...]:
        try:
            return self.record.texts(name)
        except UnreadableError as error:
            self.problem(name, str(error))
            return ()

    def taken_as(self, name: str, meaning: str) -> None:
        if not self.record.has(name):
            self.notes.append(f"{name} is not in the file: taken as {meaning}")


def read(octets: bytes, file: str) -> Export:
    """Return what the export *file* holds. Raises ExportError."""
    try:
        found = records(octets)
    except UnreadableError as error:
        raise ExportError([f"{file}: {error}"]) from error
    problems: list[str] = []
    exported = []
    for number, record in enumerate(found, 1):
        reading = _Reading(file, record, f"record {number}")
        exported += [item for item in [_exported(reading)] if item]
        problems += reading.problems
    if problems:
        raise ExportError(problems)
    names = {name.lower(): name for record in found for name in record.names}
    return Export(file, tuple(exported), tuple(name for low, name in names.items() if low not in _USED))


def _exported(reading: _Reading) -> Optional[Exported]:
    """Return what a record, told by its fields, says; None where it has problems."""
    record = reading.record
    if any(map(record.has, _CONNECTOR_FIELDS)):
        found = _connector(reading)
    elif record.has("DomainName") and any(map(record.has, _DOMAIN_FIELDS)):
        found = _accepted_domain(reading)
    else:
        names = ", ".join(record.names[:3]) or "none"
        reading.problems.append(
            f"{reading.file}: {reading.label}: neither an accepted domain nor an inbound connector by its fields "
            f"({names}…); export Get-AcceptedDomain and Get-InboundConnector"
        )
        return None
    changed = record.moment("WhenChangedUTC") or record.moment("WhenChanged")
    return replace(found, notes=tuple(reading.notes), changed=changed)


def _accepted_domain(reading: _Reading) -> Exported:
    given = reading.text("DomainName") or ""
    wildcard = given.startswith("*.")  # on-premises Exchange writes MatchSubDomains so
    domain = normalize_domain(given[2:] if wildcard else given)
    reading.label += f" ({given})"
    if domain is None:
        reading.problem("DomainName", f'"{given}" is not a domain name')
    kind = reading.text("DomainType")
    if kind and kind.lower() not in _DOMAIN_TYPES:
        reading.notes.append(f'DomainType "{kind}" is not known: taken as Authoritative; all types count alike')
    subdomains = reading.boolean("MatchSubDomains")
    if not wildcard:
        reading.taken_as("MatchSubDomains", "false")
    taken_as = _DOMAIN_TYPES.get((kind or "").lower(), DomainType.AUTHORITATIVE)
    if (subdomains or wildcard) and taken_as is not DomainType.INTERNAL_RELAY:
        reading.notes.append("Exchange Online takes MatchSubDomains with DomainType InternalRelay only")
    if reading.boolean("OutboundOnly"):
        reading.notes.append("OutboundOnly: it sends, and that is what relaying is about, so it counts")
    item = AcceptedDomain(
        domain or "",
        taken_as,
        default=bool(reading.boolean("Default")),
        match_subdomains=bool(subdomains) or wildcard,
    )
    aliases = (given, reading.text("Name"), reading.text("Identity"))
    found = Exported(reading.file, domain or given, item, aliases=tuple(alias.lower() for alias in aliases if alias))
    if reading.boolean("PendingRemoval"):
        why = "Exchange Online is removing it (PendingRemoval): it soon counts no more"
        return replace(found, item=None, why=why)
    return found


def _connector(reading: _Reading) -> Exported:
    name = _with_plain_spaces(reading.text("Name") or reading.text("Identity") or "")
    reading.label += f" ({name})"
    if not name:
        reading.problem("Name", "missing")
    elif not name.isprintable():
        reading.problem("Name", "has a character in it that can't be printed")
    found = Exported(reading.file, name, None, is_connector=True)
    kind = reading.text("ConnectorType")
    if kind is None:
        return replace(found, why="ConnectorType is not in the file, and only connectors of type OnPremises count")
    known = _CONNECTOR_TYPES.get(kind.lower(), kind)
    if known != "OnPremises":
        return replace(found, why=f"its ConnectorType is {known}: only connectors of type OnPremises let mail relay")
    enabled = reading.boolean("Enabled")
    if enabled is None:
        return replace(found, why="Enabled is not in the file, and only enabled connectors count")
    item = Connector(
        name=name,
        sender_ip_addresses=_networks(reading),
        tls_sender_certificate_name=_certificate_name(reading),
        enabled=enabled,
        associated_accepted_domains=reading.texts("AssociatedAcceptedDomains"),
    )
    reading.taken_as("AssociatedAcceptedDomains", "none, so the connector counts for every accepted domain")
    if any(text.lower() not in ("smtp:*;1", "*") for text in reading.texts("SenderDomains")):
        reading.notes.append("SenderDomains: not looked at, as for every connector of type OnPremises")
    if reading.boolean("IsValid") is False:
        reading.notes.append("Exchange Online calls it invalid (IsValid): look at it there; taken as it stands")
    if not item.sender_ip_addresses and item.tls_sender_certificate_name is None:
        return replace(found, why="it has neither SenderIPAddresses nor TlsSenderCertificateName: it matches no client")
    return replace(found, item=item)


def _with_plain_spaces(name: str) -> str:
    """Return a name with a space for each character that is not printed and controls nothing, such as U+00A0."""
    plain = (item if item.isprintable() or unicodedata.category(item) in ("Cc", "Cs") else " " for item in name)
    return "".join(plain).strip(" ")


def _networks(reading: _Reading) -> tuple[Network, ...]:
    networks: list[Network] = []
    for text in reading.texts("SenderIPAddresses"):
        network = network_of(text)
        if network is None:
            reading.problem("SenderIPAddresses", f'"{text}" is no IP address or network')
            continue
        if network.version == 6 or network.prefixlen < 24:
            reading.notes.append(f'Exchange Online does not take "{text}": IPv4, /24 to /32')
        networks.append(network)
    reading.taken_as("SenderIPAddresses", "none")
    return tuple(networks)


def _certificate_name(reading: _Reading) -> Optional[str]:
    reading.taken_as("TlsSenderCertificateName", "none")
    text = reading.text("TlsSenderCertificateName")
    if text is None:
        return None
    domain = certificate_domain(text)
    if domain is None or "." not in domain:
        reading.problem("TlsSenderCertificateName", f'"{text}" is not a domain name')
        return None
    return f"*.{domain}" if text.startswith("*.") else domain


def together(exports: Iterable[Export]) -> tuple[Exported, ...]:
    """Return the records of an organisation's files, what stands there twice alike once. Raises ExportError."""
    found: dict[tuple[bool, str], Exported] = {}
    problems = []
    for record in (record for export in exports for record in export.records):
        first = found.setdefault((record.is_connector, record.name.lower()), record)
        if first.item != record.item:
            where = "" if first.file == record.file else f", first in {first.file}"
            problems.append(f"{record.file}: {record} is there twice{where}, with other values")
    if problems:
        raise ExportError(problems)
    return tuple(found.values())


def limited(records: Sequence[Exported], accepted: Iterable[str]) -> tuple[Exported, ...]:
    """Return *records* with what connectors are limited to as accepted domains in normal form (R11).

    accepted: all the accepted domains that the organisation has. Exchange may name one by its Name or Identity. A
    connector must not count for more than it is limited to, so one without any that is known is left out.
    """
    domains = frozenset(accepted)
    aliases: dict[str, str] = {}
    for record in records:
        if record.name in domains and not record.is_connector:
            aliases.update(dict.fromkeys(record.aliases, record.name))
    return tuple(_limited(record, domains, aliases) for record in records)


def _limited(record: Exported, domains: AbstractSet[str], aliases: Mapping[str, str]) -> Exported:
    if not isinstance(record.item, Connector) or not record.item.associated_accepted_domains:
        return record
    given = record.item.associated_accepted_domains
    normal = [normalize_domain(text) for text in given]
    found = [domain if domain in domains else aliases.get(text.lower()) for text, domain in zip(given, normal)]
    known = tuple(dict.fromkeys(domain for domain in found if domain))
    unknown = ", ".join(text for text, domain in zip(given, found) if not domain)
    if not known:
        why = f"it is limited to {unknown} (AssociatedAcceptedDomains), no accepted domain of those taken"
        return replace(record, item=None, why=why)
    note = f"AssociatedAcceptedDomains: {unknown}: no accepted domain of those taken"
    return replace(
        record,
        item=replace(record.item, associated_accepted_domains=known),
        notes=(*record.notes, note) if unknown else record.notes,
    )
