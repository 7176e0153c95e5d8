# SPDX-License-Identifier: GPL-3.0-or-later
"""What would have to change in main.cf and master.cf: the difference between the table and what is there."""

from __future__ import annotations

import re
from collections.abc import Iterator, Mapping
from dataclasses import dataclass, replace
from enum import Enum
from pathlib import Path
from typing import Optional

from gatepost.admin.postfix.config import PostfixConfig, PostfixError, Service, split
from gatepost.admin.postfix.filters import FILTERS, filter_actions
from gatepost.admin.postfix.hop import BEHIND_FILTER, HopService, hop_services
from gatepost.admin.postfix.relaying import RELAY_LISTS, closed, hosts_only, sasl_only
from gatepost.admin.postfix.tables import DOMAIN_LISTS, Tables, contains
from gatepost.admin.postfix.wiring import Hop, Kind, Sockets, Topology, Wire, filter_files, main_cf
from gatepost.admin.setup.combine import LIST_KINDS, MAPS, Combining
from gatepost.service.config import Config
from gatepost.service.srs_config import Format

_LOOPBACK = re.compile(r"^(127\.\d+\.\d+\.\d+|localhost|\[::1\]):")


class Role(Enum):
    """What an smtpd service is for. FROM_FILTER: a content filter gives mail back to it."""

    INGRESS = "ingress"
    FROM_FILTER = "from filter"
    HOP = "hop"


@dataclass(frozen=True)
class Change:
    """One parameter that is to be another one. service: `name/type` of master.cf, "" for main.cf.

    old: as it is written, None where it is not set.
    """

    service: str
    parameter: str
    old: Optional[str]
    new: str
    why: str


@dataclass(frozen=True)
class NewService:
    """A service that master.cf lacks."""

    service: HopService
    chroot: str


@dataclass(frozen=True)
class NewFile:
    """A file of gatepost's own beside main.cf."""

    path: Path
    text: str
    why: str


@dataclass(frozen=True)
class Plan:
    """Everything that is to be changed."""

    topology: Topology
    changes: tuple[Change, ...]
    services: tuple[NewService, ...]
    files: tuple[NewFile, ...]

    @property
    def is_empty(self) -> bool:
        return not (self.changes or self.services or self.files)


def derived_topology(gatepost: Config, given: Mapping[str, object]) -> Topology:
    """Return the topology that gatepost.toml is for, relay-hub by default. given: its tables as they are written."""
    if gatepost.egress:
        return Topology.FORWARDER
    if gatepost.upstream:
        return Topology.EXCHANGE_ONLINE
    if gatepost.relay.enforced_by == "policyd":
        return Topology.POLICY_ONLY
    if gatepost.policyd.tcp_table_forward or (gatepost.srs.format is Format.SRS0 and "milter" not in given):
        return Topology.POSTSRSD_REPLACEMENT
    return Topology.RELAY_HUB


def hop_of(gatepost: Config) -> Hop:
    """Return where [egress] says that the hop is."""
    return Hop.of(gatepost.egress.transport, gatepost.egress.daemon_name) if gatepost.egress else Hop()


def has_certificate_names(gatepost: Config) -> bool:
    """Say whether a connector tells clients by the name of their certificate."""
    organizations = gatepost.organizations.values()
    return any(item.enabled and item.tls_sender_certificate_name for org in organizations for item in org.connectors)


def srs_domains(gatepost: Config) -> list[str]:
    """Return the domains that SRS addresses are made in besides accepted ones."""
    found = []
    for settings in gatepost.settings.values():
        found += [settings.srs_domain, *settings.srs_domains.values()]
    return sorted({domain for domain in found if domain})


def role(config: PostfixConfig, service: Service, hop: Hop) -> Role:
    """Return what an smtpd service is for.

    Where a filter gives mail back, it has no filter itself, though there is one, by a parameter or by FILTER in a
    table; it trusts the filter's host alone; and nobody authenticates there.
    """
    if config.effective(service, "milter_macro_daemon_name") == hop.daemon_name:
        return Role.HOP
    if any(config.effective(service, name) for name in FILTERS):
        return Role.INGRESS
    if not _trusts_hosts(config, service):
        return Role.INGRESS
    others = any(config.effective(other, name) for other in (*config.smtpds, *_pickups(config)) for name in FILTERS)
    given_back = others or any(name in service.overrides for name in FILTERS) or any(filter_actions(config))
    return Role.FROM_FILTER if given_back else Role.INGRESS


def _trusts_hosts(config: PostfixConfig, service: Service) -> bool:
    """Say whether an smtpd is for this host, or for single hosts, and not for users."""
    if authenticates(service):
        return False
    if service.overrides.get("smtpd_authorized_xforward_hosts"):
        return True
    if "mynetworks" in service.overrides:
        return hosts_only(config.effective_entries(service, "mynetworks"))
    lists = (*RELAY_LISTS, "smtpd_client_restrictions")
    unfiltered = any(name in service.overrides for name in FILTERS)
    return is_on_loopback(service) and (unfiltered or any(closed(config, service, name) for name in lists))


def authenticates(service: Service) -> bool:
    """Say whether it is for users, by an override of its own."""
    return service.overrides.get("smtpd_sasl_auth_enable") == "yes"


def is_on_loopback(service: Service) -> bool:
    """Say whether it listens on loopback alone, by its name in master.cf."""
    return _LOOPBACK.match(service.name) is not None


def _pickups(config: PostfixConfig) -> list[Service]:
    return [service for service in config.services if service.command in ("pickup", "qmqpd")]


@dataclass(frozen=True)
class Planner:
    """Compares one instance's configuration with what *topology* needs."""

    config: PostfixConfig
    gatepost: Config
    topology: Topology
    sockets: Sockets

    @property
    def hop(self) -> Hop:
        return hop_of(self.gatepost)

    @property
    def combining(self) -> Combining:
        wires = main_cf(self.topology, self.sockets, self.hop)
        if not has_certificate_names(self.gatepost):
            wires = tuple(wire for wire in wires if not wire.for_certificates)
        return Combining(self.config, self.topology, self.sockets, wires)

    def plan(self) -> Plan:
        combining = self.combining
        changes = list(self._main_cf(combining))
        combining = replace(combining, planned={change.parameter: change.new for change in changes})
        changes += self._services(combining)
        hop = hop_services(self.sockets, self.hop) if self.topology is Topology.FORWARDER else ()
        missing = [item for item in hop if self.config.service(item.name, item.type) is None]
        changes += [change for item in hop if item not in missing for change in self._hop_service(item)]
        files = [item for item in self._files() if _text(item.path) != item.text]
        if not any(change.parameter == "smtpd_command_filter" for change in changes) and _inline(self.config):
            files = []  # the rules stand in main.cf itself
        chroot = next((service.chroot for service in self.config.smtpds), "-")
        return Plan(
            self.topology,
            tuple(changes),
            tuple(NewService(item, chroot) for item in missing),
            tuple(files),
        )

    # main.cf

    def _main_cf(self, combining: Combining) -> Iterator[Change]:
        planned: dict[str, str] = {}
        for wire in combining.wires:
            new = replace(combining, planned=planned).in_main_cf(wire)
            if wire.parameter == "virtual_alias_maps":
                new = self._with_bounces(combining, wire, new)
            elif wire.kind is Kind.ALIAS_DOMAINS:
                new = self._with_srs_domains(combining, wire, new)
            if new is not None:
                planned[wire.parameter] = new
                yield self._change(combining, wire, new)

    def _change(self, combining: Combining, wire: Wire, new: str) -> Change:
        old = self.config.value(wire.parameter) if self.config.is_set(wire.parameter) else None
        gone = combining.replaced(wire, combining.written(wire.parameter))
        place = f" It takes the place of postsrsd's {', '.join(gone)}." if gone else ""
        return Change("", wire.parameter, old, new, f"{wire.why}{place}")

    def _new_srs_domains(self) -> list[str]:
        """Return the SRS domains that no list names; as a subdomain in relay_domains one would be sent on."""
        entries = [entry for name in DOMAIN_LISTS for entry in self.config.entries(name)]
        return [
            domain for domain in srs_domains(self.gatepost) if not any(self._names(item, domain) for item in entries)
        ]

    def _names(self, entry: str, domain: str) -> bool:
        try:
            return contains(Tables(self.config), [entry], domain)
        except PostfixError:
            return False

    def _with_srs_domains(self, combining: Combining, wire: Wire, new: Optional[str]) -> Optional[str]:
        """Add the SRS domains that Postfix does not know: what is no SRS address in them is refused."""
        missing = self._new_srs_domains()
        if not missing:
            return new
        return ", ".join([*missing, *combining.alias_domains(wire)])

    def _with_bounces(self, combining: Combining, wire: Wire, new: Optional[str]) -> Optional[str]:
        """Add the mailbox bounces of SRS domains that have none of their own."""
        missing = self._new_srs_domains()
        if not missing or not self.gatepost.organizations:
            return new
        default = next(iter(self.gatepost.organizations.values())).default_domain
        pairs = " ".join(f"{{bounces@{domain} = postmaster@{default}}}" for domain in missing)
        value = new if new is not None else combining.written(wire.parameter)
        return ", ".join(filter(None, [value, f"inline:{{ {pairs} }}"]))

    def _files(self) -> Iterator[NewFile]:
        for name, rules in filter_files(self.topology).items():
            text = "# Written by gatepost setup postfix, for smtpd_command_filter; regexp_table(5).\n"
            text += "".join(f"{rule}\n" for rule in rules)
            yield NewFile(self.config.config_directory / name, text, "The table for smtpd_command_filter.")

    # master.cf

    def _services(self, combining: Combining) -> Iterator[Change]:
        for service in self.config.services:
            if service.is_smtpd:
                what = role(self.config, service, self.hop)
                if what is Role.INGRESS:
                    yield from self._ingress(combining, service)
                elif what is Role.FROM_FILTER:
                    yield from self._from_filter(combining, service)
            elif service.command == "cleanup":
                yield from self._cleanup(combining, service)

    def _ingress(self, combining: Combining, service: Service) -> Iterator[Change]:
        """Yield what an smtpd needs whose own lists take the place of main.cf's."""
        for wire in combining.wires:
            raw = service.overrides.get(wire.parameter)
            if raw is None or wire.kind not in LIST_KINDS:
                continue
            if wire.kind in MAPS and not raw:
                continue  # switched off on purpose; it is no list that protects anything
            exempt = "authenticated" in self.gatepost.relay.exempt
            if wire.kind is Kind.RELAY and exempt and sasl_only(self.config, service, wire.parameter):
                continue  # an OK for a connector would open it to clients that have not authenticated
            new = combining.in_service(wire, service)
            if new is not None:
                yield Change(service.key, wire.parameter, raw, new, f"This service has a list of its own. {wire.why}")

    def _cleanup(self, combining: Combining, service: Service) -> Iterator[Change]:
        """Yield what a cleanup needs that has tables of its own; one without any leaves aliases to another."""
        if service.name == self.hop.cleanup:
            return
        for wire in combining.wires:
            raw = service.overrides.get(wire.parameter)
            if raw and wire.kind in MAPS:
                new = combining.in_service(wire, service)
                if new is not None:
                    yield Change(
                        service.key, wire.parameter, raw, new, f"This service has tables of its own. {wire.why}"
                    )

    def _from_filter(self, combining: Combining, service: Service) -> Iterator[Change]:
        """Yield what keeps gatepost away from mail that it has seen; other milters and checks stay as they are."""
        whys = {item.name: item.why for item in BEHIND_FILTER}
        no_milters = "no_milters" in self.config.effective_entries(service, "receive_override_options")
        for wire in combining.wires:
            name = wire.parameter
            filtered = wire.parameter == "smtpd_command_filter" and self.topology is Topology.FORWARDER
            if not (wire.kind in (Kind.POLICY, Kind.RELAY) or (name == "smtpd_milters" and not no_milters) or filtered):
                continue
            raw = service.overrides.get(name)
            inherited = combining.written(name) if raw is None else raw
            new = "" if filtered and raw is None else combining.without_ours(wire, inherited)
            if raw is None or new != raw:
                why = whys.get(
                    name, "It takes mail back from your content filter, and policyd has been asked about it."
                )
                yield Change(service.key, name, raw, new, why)

    def _hop_service(self, wanted: HopService) -> Iterator[Change]:
        """Yield what is wrong with a service of the egress hop that is there."""
        service = self.config.service(wanted.name, wanted.type)
        if service is None:
            return
        for item in wanted.overrides:
            if service.overrides.get(item.name) != item.value:
                yield Change(service.key, item.name, service.overrides.get(item.name), item.value, item.why)


def _inline(config: PostfixConfig) -> bool:
    return "gatepost_command_filter" not in config.expanded("smtpd_command_filter")


def _text(path: Path) -> Optional[str]:
    try:
        return path.read_text()
    except OSError:
        return None


def entry_line(service: Service, changes: list[Change]) -> str:
    """Return the service's line for postconf -M, with *changes* of its overrides made."""
    wanted = {change.parameter: change.new for change in changes}
    arguments = _arguments(service.arguments)
    kept = [text for text, parameter in arguments if parameter not in wanted]
    options = [*kept, *(_option(name, value) for name, value in wanted.items())]
    columns = (service.name, service.type, service.private, service.unprivileged, service.chroot, service.wakeup)
    return " ".join([*columns, service.process_limit, service.command, *options])


def hop_line(new: NewService) -> str:
    """Return the line for postconf -M of a service of the egress hop."""
    item = new.service
    options = [_option(override.name, override.value) for override in item.overrides]
    return " ".join(
        [item.name, item.type, item.private, "-", new.chroot, "-", item.process_limit, item.command, *options]
    )


def _option(name: str, value: str) -> str:
    return f"-o {{ {name} = {value} }}" if re.search(r"\s", value) else f"-o {name}={value}"


def _arguments(text: str) -> list[tuple[str, str]]:
    """Return the arguments of a service: each with the parameter that it sets, "" where it is another option."""
    found: list[tuple[str, str]] = []
    tokens = split(text, " \t")
    while tokens:
        token = tokens.pop(0)
        if token == "-o" and tokens:
            value = tokens.pop(0)
            found.append((f"-o {value}", value.strip("{} \t").partition("=")[0].strip()))
        else:
            found.append((token, ""))
    return found
