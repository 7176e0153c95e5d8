# SPDX-License-Identifier: GPL-3.0-or-later
"""The configuration file: TOML in, frozen dataclasses out, or every error of it at once."""

from __future__ import annotations

import ipaddress
import os
import sys
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, field, replace
from datetime import datetime
from enum import Enum
from pathlib import Path
from typing import Optional, Union

from gatepost.relay import (
    AcceptedDomain,
    Connector,
    DomainType,
    Organization,
    RuleSet,
    normalize_domain,
)
from gatepost.service import fields, srs_config
from gatepost.service.addresses import plain
from gatepost.service.fields import Listen
from gatepost.service.paths import DEFAULT_STATE_DIRECTORY
from gatepost.service.srs_config import SrsConfig
from gatepost.service.tables import ConfigError, Notes, Table

if sys.version_info >= (3, 11):
    import tomllib
else:
    import tomli as tomllib

_SOCKETS = "/var/spool/postfix/gatepost"
_MILTER_SOCKET = Listen(path=f"{_SOCKETS}/milter.sock")
Network = Union[ipaddress.IPv4Network, ipaddress.IPv6Network]


class Mode(Enum):
    """What becomes of a refusal and of SRS: *MONITOR* logs and counts, the message stays untouched."""

    MONITOR = "monitor"
    ENFORCE = "enforce"


@dataclass(frozen=True)
class RelayConfig:
    """[relay]: *exempt* names the clients that the rule leaves alone; *enforced_by* the daemon that applies it.

    enforce_from: until then mode is MONITOR, from then on ENFORCE.
    """

    requirements: RuleSet = RuleSet.CURRENT
    mode: Mode = Mode.MONITOR
    enforce_from: Optional[datetime] = None
    enforced_by: str = "milter"
    local_domains: tuple[str, ...] = ()
    subdomains_relay: bool = True
    exempt: tuple[str, ...] = ("authenticated", "local")


@dataclass(frozen=True)
class MilterConfig:
    listen: Listen = _MILTER_SOCKET
    workers: int = 2


@dataclass(frozen=True)
class PolicydConfig:
    """[policyd]: policy service and socketmaps at each of *listen*, tcp_table(5) at the others."""

    listen: tuple[Listen, ...] = (Listen(path=f"{_SOCKETS}/policyd.sock"),)
    workers: int = 2
    tcp_table_forward: tuple[Listen, ...] = ()
    tcp_table_reverse: tuple[Listen, ...] = ()


@dataclass(frozen=True)
class EgressConfig:
    """[egress]: *transport* is what the map answers, *daemon_name* how the milter knows the hop's smtpd."""

    transport: str
    daemon_name: str = "gatepost-egress"


@dataclass(frozen=True)
class LedgerConfig:
    """[ledger]: what is kept, for how many *days* (0: nothing is recorded) and in how many *rows* at most.

    required: mail whose record can't be written is put off. spool_bytes: how much may wait while the store is away.
    """

    days: int = 90
    rows: int = 5_000_000
    subjects: bool = False
    required: bool = False
    spool_bytes: int = 1 << 30


@dataclass(frozen=True)
class OrganizationConfig:
    """What gatepost adds to an organisation: its own *mode*, and the domains that it mints SRS addresses in.

    enforce_from: see RelayConfig. notify_addresses: who hears of that beforehand (gatepost report notify). srs_domain:
    for all of it. srs_domains: for the mail of single accepted domains.
    """

    mode: Mode
    enforce_from: Optional[datetime] = None
    notify_addresses: tuple[str, ...] = ()
    srs_domain: Optional[str] = None
    srs_domains: Mapping[str, str] = field(default_factory=dict)


@dataclass(frozen=True)
class Config:
    """A whole valid configuration. *organizations* and *settings* have the same keys, in the file's order."""

    path: Path
    state_directory: Path
    organizations: Mapping[str, Organization]
    settings: Mapping[str, OrganizationConfig]
    relay: RelayConfig
    srs: SrsConfig
    milter: MilterConfig
    policyd: PolicydConfig
    egress: Optional[EgressConfig]
    metrics: Optional[Listen]
    ledger: LedgerConfig = LedgerConfig()
    store_url: str = ""
    nameservers: tuple[Listen, ...] = ()
    warnings: tuple[str, ...] = field(default=(), compare=False)

    @property
    def ledger_folder(self) -> Path:
        """The folder in which records wait for the store."""
        return self.state_directory / "ledger"


def load(path: Path) -> Config:
    """Return the configuration in *path*. Raises ConfigError with every problem found."""
    return parse(read(path), path)


def read(path: Path) -> dict[str, object]:
    """Return the TOML document in *path*, its keys unchecked. Raises ConfigError."""
    try:
        return tomllib.loads(path.read_text(encoding="utf-8"))
    except OSError as error:
        raise ConfigError([f"{path}: cannot be read: {error.strerror}"]) from error
    except UnicodeDecodeError as error:
        raise ConfigError([f"{path}: is not UTF-8 (octet {error.start})"]) from error
    except tomllib.TOMLDecodeError as error:
        raise ConfigError([f"{path}: is not TOML: {error}"]) from error
    except RecursionError as error:
        raise ConfigError([f"{path}: is nested too deeply"]) from error


def parse(raw: Mapping[str, object], path: Path) -> Config:
    """Return the configuration for a parsed document; *path* stands in messages, and relative files are beside it."""
    notes = Notes(path.name)
    top = Table(raw, "", notes)
    state = Path(top.string("state_directory", os.environ.get("STATE_DIRECTORY", DEFAULT_STATE_DIRECTORY)))
    if not state.is_absolute():
        top.problem("state_directory", f'"{state}" is not an absolute path')
    relay = _relay(top.table("relay"))
    organizations, settings = _organizations(top, relay)
    config = Config(
        path=path,
        state_directory=state,
        organizations=organizations,
        settings=settings,
        relay=relay,
        srs=srs_config.srs(top.table("srs"), state, path.parent),
        milter=_milter(top.table("milter")),
        policyd=_policyd(top.table("policyd")),
        egress=_egress(top.optional_table("egress")),
        metrics=_metrics(top.table("metrics")),
        ledger=_ledger(top.table("ledger")),
        store_url=srs_config.store_url(top.table("store"), state),
        nameservers=srs_config.nameservers(top.table("dns")),
    )
    top.close()
    _check_together(config, notes)
    if notes.problems:
        raise ConfigError(notes.problems)
    return replace(config, warnings=tuple(notes.warnings))


def _relay(table: Table) -> RelayConfig:
    default = RelayConfig()
    mode, enforce_from = _mode(table, (default.mode, None))
    config = RelayConfig(
        requirements=RuleSet(
            table.string("requirements", default.requirements.value, allowed=[rules.value for rules in RuleSet])
        ),
        mode=mode,
        enforce_from=enforce_from,
        enforced_by=table.string("enforced_by", default.enforced_by, allowed=["milter", "policyd"]),
        local_domains=fields.domains(table, "local_domains"),
        subdomains_relay=table.boolean("subdomains_relay", default=default.subdomains_relay),
        exempt=table.strings("exempt", default.exempt, allowed=["authenticated", "local"]),
    )
    table.close()
    return config


def _mode(table: Table, default: tuple[Mode, Optional[datetime]]) -> tuple[Mode, Optional[datetime]]:
    """Return mode and enforce_from. Where the table has either, nothing of *default* holds."""
    if table.is_absent("mode") and table.is_absent("enforce_from"):
        return default
    mode = Mode(table.string("mode", Mode.MONITOR.value, allowed=[mode.value for mode in Mode]))
    enforce_from = table.instant("enforce_from")
    if enforce_from and mode is Mode.ENFORCE:
        table.problem("enforce_from", 'mode = "enforce" is in force at once; write mode = "monitor", or leave it out')
    return mode, enforce_from


def _organizations(top: Table, relay: RelayConfig) -> tuple[dict[str, Organization], dict[str, OrganizationConfig]]:
    organizations: dict[str, Organization] = {}
    settings: dict[str, OrganizationConfig] = {}
    owner: dict[str, str] = {}
    for table in top.tables("organization"):
        name = table.string("name")
        if name in organizations:
            table.problem("name", f'"{name}" is used by another organization')
        srs_domains: dict[str, str] = {}
        domains = _accepted_domains(table, name, owner, srs_domains)
        organization = Organization(name=name, accepted_domains=domains, connectors=_connectors(table, domains))
        srs_domain = table.optional_string("srs_domain")
        mode, enforce_from = _mode(table, (relay.mode, relay.enforce_from))
        settings[name] = OrganizationConfig(
            mode=mode,
            enforce_from=enforce_from,
            notify_addresses=_notify_addresses(table, organization),
            srs_domain=fields.domain(table, "srs_domain", srs_domain) if srs_domain else None,
            srs_domains=srs_domains,
        )
        organizations[name] = organization
        table.close()
    return organizations, settings


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
    table: Table, name: str, owner: dict[str, str], srs_domains: dict[str, str]
) -> tuple[AcceptedDomain, ...]:
    entries = table.tables("accepted_domain")
    domains = []
    for entry in entries:
        text = entry.string("domain")
        domain = fields.domain(entry, "domain", text) if text else ""
        if domain and owner.setdefault(domain, entry.path) != entry.path:
            entry.problem("domain", f'"{text}" is an accepted domain at {owner[domain]} already')
        kind = DomainType(entry.string("type", "Authoritative", allowed=[kind.value for kind in DomainType]))
        subdomains = entry.boolean("match_subdomains", default=False)
        if subdomains and kind is not DomainType.INTERNAL_RELAY:
            entry.notes.warn(entry.key("match_subdomains"), 'Exchange Online takes it with type = "InternalRelay" only')
        domains.append(AcceptedDomain(domain, kind, entry.boolean("default", default=False), subdomains))
        srs_domain = entry.optional_string("srs_domain")
        if srs_domain:
            srs_domains[domain] = fields.domain(entry, "srs_domain", srs_domain)
        entry.close()
    defaults = sum(domain.default for domain in domains)
    if table.is_empty("accepted_domain"):
        table.problem("accepted_domain", f'missing: organization "{name}" has no accepted domain')
    elif defaults != 1 and len(domains) > 1:
        table.problem("accepted_domain", f"{defaults or 'none'} of {len(domains)} have default = true, must be one")
    return tuple(domains)


def _connectors(table: Table, domains: Sequence[AcceptedDomain]) -> tuple[Connector, ...]:
    accepted = {domain.domain for domain in domains}
    connectors = []
    names: set[str] = set()
    for entry in table.tables("connector"):
        name = entry.string("name")
        if name in names:
            entry.problem("name", f'"{name}" is used by another connector of this organization')
        names.add(name)
        associated = fields.domains(entry, "associated_accepted_domains")
        for domain in associated:
            if domain not in accepted:
                entry.problem("associated_accepted_domains", f'"{domain}" is no accepted domain of this organization')
        certificate = entry.optional_string("tls_sender_certificate_name")
        connector = Connector(
            name=name,
            sender_ip_addresses=tuple(_networks(entry)),
            tls_sender_certificate_name=_certificate_name(entry, certificate) if certificate else None,
            enabled=entry.boolean("enabled", default=True),
            associated_accepted_domains=associated,
        )
        entry.close()
        if not connector.sender_ip_addresses and certificate is None:
            entry.notes.problem(
                entry.path, "needs sender_ip_addresses or tls_sender_certificate_name to match anything"
            )
        connectors.append(connector)
    return tuple(connectors)


def _networks(entry: Table) -> list[Network]:
    networks: list[Network] = []
    for index, text in enumerate(entry.strings("sender_ip_addresses")):
        path = f"sender_ip_addresses[{index}]"
        try:
            network = ipaddress.ip_network(text, strict=False)
        except ValueError:
            entry.problem(path, f'"{text}" is no IP address or network (e.g. "192.0.2.1", "192.0.2.0/28")')
            continue
        if network.version == 6 or network.prefixlen < 24:
            entry.notes.warn(entry.key(path), f'Exchange Online does not take "{text}": IPv4, /24 to /32')
        networks.append(network)
    return networks


def _certificate_name(entry: Table, text: str) -> str:
    wildcard = "*." if text.startswith("*.") else ""
    domain = normalize_domain(text[len(wildcard) :])
    if domain is None or "." not in domain:
        entry.problem(
            "tls_sender_certificate_name",
            f'"{text}" is not a domain name (e.g. "mail.contoso.com", "*.contoso.com")',
        )
        return text
    return wildcard + domain


def _milter(table: Table) -> MilterConfig:
    default = MilterConfig()
    config = MilterConfig(
        listen=fields.listen(table, "listen", table.string("listen", str(default.listen))),
        workers=table.integer("workers", default.workers, lowest=1, highest=64),
    )
    table.close()
    return config


def _policyd(table: Table) -> PolicydConfig:
    default = PolicydConfig()
    config = PolicydConfig(
        listen=fields.listens(table, "listen", default.listen),
        workers=table.integer("workers", default.workers, lowest=1, highest=64),
        tcp_table_forward=fields.listens(table, "tcp_table_forward"),
        tcp_table_reverse=fields.listens(table, "tcp_table_reverse"),
    )
    if not config.listen:
        table.problem("listen", "[] names no address to listen on")
    for name in ("tcp_table_forward", "tcp_table_reverse"):
        for index, item in enumerate(getattr(config, name)):
            if item.path:
                table.notes.warn(
                    table.key(f"{name}[{index}]"), 'Postfix asks a tcp_table by TCP only (e.g. "inet:127.0.0.1:10001")'
                )
    table.close()
    return config


def _egress(table: Optional[Table]) -> Optional[EgressConfig]:
    if table is None:
        return None
    config = EgressConfig(
        transport=table.string("transport", "gatepost-egress:[127.0.0.1]:10027"),
        daemon_name=table.string("daemon_name", "gatepost-egress"),
    )
    if ":" not in config.transport or any(character.isspace() for character in config.transport):
        table.problem("transport", f'"{config.transport}" is not a Postfix transport:nexthop')
    table.close()
    return config


def _metrics(table: Table) -> Optional[Listen]:
    text = table.string("listen", "127.0.0.1:9797", may_be_empty=True)
    table.close()
    if not text:
        return None
    listen = fields.host_and_port(text)
    if listen is None:
        table.problem("listen", f'"{text}" is no address and port (e.g. "127.0.0.1:9797", "[::1]:9797", "" for none)')
    return listen


def _ledger(table: Table) -> LedgerConfig:
    default = LedgerConfig()
    mebibyte = 1 << 20
    config = LedgerConfig(
        days=table.integer("days", default.days, lowest=0, highest=3650),
        rows=table.integer("rows", default.rows, lowest=1000, highest=1_000_000_000),
        subjects=table.boolean("subjects", default=default.subjects),
        required=table.boolean("required", default=default.required),
        spool_bytes=mebibyte
        * table.integer("spool_megabytes", default.spool_bytes // mebibyte, lowest=8, highest=1_000_000),
    )
    table.close()
    return config


def _check_together(config: Config, notes: Notes) -> None:
    """Note what is right by itself and wrong beside the rest."""
    if config.relay.enforced_by == "policyd" and config.relay.requirements is RuleSet.LEGACY:
        notes.problem(
            "relay.requirements",
            '"legacy" needs the header From, which the policy protocol does not carry; '
            'use enforced_by = "milter" or requirements = "2023-11-01"',
        )
    modes = {(item.mode, item.enforce_from) for item in config.settings.values()}
    if config.egress and len(modes) > 1:
        notes.warn(
            "egress",
            "the hop can't tell organizations apart: what leaves through one in mode monitor is rewritten, too",
        )
    if config.policyd.tcp_table_forward and modes == {(Mode.MONITOR, None)}:
        notes.warn("policyd.tcp_table_forward", "the mode is monitor, in which the map forward rewrites nothing")
    _check_listens(config, notes)
    accepted = {domain.domain: name for name, item in config.organizations.items() for domain in item.accepted_domains}
    taken: dict[str, str] = {}
    for index, (name, settings) in enumerate(config.settings.items()):
        for path, domain in _srs_domains(settings, config.organizations[name]):
            if taken.setdefault(domain, accepted.get(domain, name)) != name:
                notes.problem(f"organization[{index}].{path}", f'"{domain}" belongs to organization "{taken[domain]}"')


def _check_listens(config: Config, notes: Notes) -> None:
    """Note each address that is to be listened on twice."""
    policyd = config.policyd
    listens = [("milter.listen", config.milter.listen)]
    for name in ("listen", "tcp_table_forward", "tcp_table_reverse"):
        listens += [(f"policyd.{name}[{index}]", item) for index, item in enumerate(getattr(policyd, name))]
    if config.metrics:
        listens.append(("metrics.listen", config.metrics))
    taken: dict[Listen, str] = {}
    for path, item in listens:
        if item != Listen() and taken.setdefault(item, path) != path:
            notes.problem(path, f'"{item}" is {taken[item]}, too')


def _srs_domains(settings: OrganizationConfig, organization: Organization) -> Iterator[tuple[str, str]]:
    """Yield each srs_domain of an organisation with its key path."""
    if settings.srs_domain:
        yield "srs_domain", settings.srs_domain
    for index, accepted in enumerate(organization.accepted_domains):
        if accepted.domain in settings.srs_domains:
            yield f"accepted_domain[{index}].srs_domain", settings.srs_domains[accepted.domain]
