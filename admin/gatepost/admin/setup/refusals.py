# SPDX-License-Identifier: GPL-3.0-or-later
"""What setup refuses to build on: an open relay, lists that others depend on, ways past the egress hop."""

from __future__ import annotations

import socket
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from ipaddress import ip_address

from gatepost.admin.postfix.command_filter import leaves_orcpt_in
from gatepost.admin.postfix.config import PostfixConfig, PostfixError, Service, split
from gatepost.admin.postfix.filters import leads_outside
from gatepost.admin.postfix.hop import hop_services
from gatepost.admin.postfix.relaying import GUARDS, RELAY_LISTS, everything_inside, restrictions, verdict, wide_networks
from gatepost.admin.postfix.tables import DOMAIN_LISTS, Tables, domain_list, outside
from gatepost.admin.postfix.wiring import OLDEST, Hop, Kind, Sockets, Topology, Wire, main_cf
from gatepost.admin.setup.combine import has_rules, has_rules_only, is_srs_map
from gatepost.admin.setup.plan import Role, hop_of, role
from gatepost.admin.setup.sockets import answers
from gatepost.service.config import Config
from gatepost.service.fields import Listen

_NOBODYS = "gatepost-setup.invalid"
_LISTS = ", ".join(DOMAIN_LISTS)
_TOML = "gatepost.toml"
_OTHER_PORT = f"Choose another port, in [egress] transport of {_TOML}, and restart gatepost."


@dataclass(frozen=True)
class Refusal:
    """what: the parameter or entry, as it is; why: what would become of mail; remedy: what to do first."""

    what: str
    why: str
    remedy: str


def refusals(config: PostfixConfig, gatepost: Config, topology: Topology) -> list[Refusal]:
    """Return why *topology* is not to be set up on that configuration."""
    found = [*_too_old(config), *_open_relay(config, hop_of(gatepost))]
    if topology is Topology.FORWARDER:
        found += _hop(config, gatepost)
    if topology is Topology.POLICY_ONLY:
        found += _without_relay_list(config, hop_of(gatepost))
    wires = main_cf(topology, Sockets(), Hop())
    found += [*_canonical_classes(config, wires), *_command_filter(config, hop_of(gatepost), topology, wires)]
    if gatepost.egress:
        found += _daemon_name(config, hop_of(gatepost))
    return found


def _too_old(config: PostfixConfig) -> Iterator[Refusal]:
    if config.version < OLDEST:
        have, oldest = (".".join(map(str, version)) for version in (config.version, OLDEST))
        yield Refusal(
            f"Postfix {have}", "It lacks what gatepost is wired with.", f"Postfix {oldest} or newer is needed."
        )


# Open relays


def _open_relay(config: PostfixConfig, hop: Hop) -> Iterator[Refusal]:
    yield from _networks(config, "mynetworks", config.entries("mynetworks"))
    for service in config.smtpds:
        if role(config, service, hop) is Role.INGRESS:
            if "mynetworks" in service.overrides:
                networks = config.effective_entries(service, "mynetworks")
                yield from _networks(config, f"{service.key}: mynetworks", networks)
            yield from _unguarded(config, service)
    for name, entry in everything_inside(config):
        yield Refusal(
            f"{name} has {entry}, which says yes to every domain",
            "Each recipient is taken for one of yours: the server relays for everybody, and no mail is outside.",
            f"List your own domains in {name}.",
        )


def _networks(config: PostfixConfig, what: str, networks: Sequence[str]) -> Iterator[Refusal]:
    for entry in wide_networks(config, networks):
        yield Refusal(
            f"{what} has {entry}",
            "Whoever connects from there may relay through this server: with that it is an open relay, and"
            " gatepost in mode monitor refuses nobody.",
            "Put only networks of your own into it.",
        )


def _where(service: Service) -> str:
    return f"{service.key} in master.cf" if set(RELAY_LISTS) & set(service.overrides) else "main.cf"


def _unguarded(config: PostfixConfig, service: Service) -> Iterator[Refusal]:
    found = {name: verdict(config, service, name) for name in RELAY_LISTS}
    if any(restriction and restriction.name in GUARDS for restriction in found.values()):
        return
    for name, restriction in found.items():
        behind = restrictions(config, service, name)
        if restriction and any(item.name in GUARDS for item in behind):
            yield Refusal(
                f"{_where(service)}: {name} has {restriction} before reject_unauth_destination",
                "Everybody is let relay before that is asked.",
                f"Take {restriction} out of {name}, or put it at the end.",
            )
            return
    yield Refusal(
        f"{_where(service)}: neither {RELAY_LISTS[0]} nor {RELAY_LISTS[1]} has reject_unauth_destination",
        "Nothing would keep strangers from relaying.",
        "postconf -e 'smtpd_relay_restrictions = permit_mynetworks, permit_sasl_authenticated,"
        " reject_unauth_destination'",
    )


# Lists of which others depend on what they are


def _without_relay_list(config: PostfixConfig, hop: Hop) -> Iterator[Refusal]:
    """Yield where policyd would let relay in a list of its own what the other one refuses."""
    relay, recipient = RELAY_LISTS
    for service in config.smtpds:
        if role(config, service, hop) is not Role.INGRESS or config.effective_entries(service, relay):
            continue
        guard = verdict(config, service, recipient)
        if guard is None or guard.name not in GUARDS:
            continue
        before = restrictions(config, service, recipient)
        moved = ", ".join(str(item) for item in before[: before.index(guard) + 1])
        setting = f"{relay} = {moved}"
        yield Refusal(
            f"{_where(service)}: {relay} is empty, and {recipient} has {guard}",
            f"policyd lets connectors relay in {relay}, and mail has to pass both lists: it would be refused in the"
            " other one all the same.",
            f"Have one list for relaying, postconf -e '{setting}', and take {guard} out of {recipient}.",
        )
        return


def _canonical_classes(config: PostfixConfig, wires: Sequence[Wire]) -> Iterator[Refusal]:
    """Yield where other tables depend on the classes of a canonical map that would become others."""
    for wire in wires:
        if not wire.parameter.endswith("_canonical_classes"):
            continue
        maps = wire.parameter.replace("_classes", "_maps")
        others = [entry for entry in config.entries(maps) if not is_srs_map(entry)]
        classes = config.entries(wire.parameter)
        wanted = split(wire.value)
        if others and set(classes) != set(wanted):
            lost = ", ".join(item for item in classes if item not in wanted)
            yield Refusal(
                f"{wire.parameter} is {', '.join(classes)}, and {maps} has {', '.join(others)}",
                f"With gatepost it has to be {wire.value}, and that table would rewrite other addresses than today.",
                f"postconf -e '{wire.parameter} = {wire.value}'; and, as it does {lost} today, name the table in"
                f" canonical_maps, too, with canonical_classes = {lost}."
                if lost
                else f"Move the table to canonical_maps, with canonical_classes = {', '.join(classes)}.",
            )


def _command_filter(config: PostfixConfig, hop: Hop, topology: Topology, wires: Sequence[Wire]) -> Iterator[Refusal]:
    """Yield tables of smtpd_command_filter that are not gatepost's: it takes one, and no list."""
    if not any(wire.kind is Kind.TABLE for wire in wires):
        return
    name = "smtpd_command_filter"
    given = {"main.cf": config.expanded(name)} if config.is_set(name) else {}
    for service in config.smtpds:
        if name in service.overrides and role(config, service, hop) is Role.INGRESS:
            given[f"{service.key} in master.cf"] = config.effective(service, name)
    for where, table in given.items():
        if table and not (has_rules(config, table, topology) or has_rules_only(config, table)):
            yield Refusal(
                f"{where}: {name} is {table}",
                "Postfix takes one table there, no list, and gatepost has rules for it, too.",
                "Take it out; or write the other lines by hand: then bounces to percent-encoded addresses are refused."
                if topology is Topology.POSTSRSD_REPLACEMENT
                else "Take it out; or add gatepost's rules to it, those in"
                f" examples/postfix/{topology.value}/main.cf: of a regexp or pcre table the first rule that matches"
                " counts.",
            )
    if topology is Topology.FORWARDER:
        yield from _without_command_filter(config, hop, name)


def _without_command_filter(config: PostfixConfig, hop: Hop, name: str) -> Iterator[Refusal]:
    for service in config.smtpds:
        if role(config, service, hop) is not Role.INGRESS or service.overrides.get(name) != "":
            continue
        if leaves_orcpt_in(config, service):
            yield Refusal(
                f"{service.key} in master.cf: {name} is empty",
                "ORCPT of a client would get to the egress hop: a stranger could choose in whose name his mail is"
                " forwarded.",
                f"postconf -PX {service.key}/{name}",
            )


# The egress hop


def _daemon_name(config: PostfixConfig, hop: Hop) -> Iterator[Refusal]:
    for service in config.smtpds:
        if role(config, service, hop) is Role.HOP and service.key not in _names_of(hop):
            yield Refusal(
                f"{service.key} has milter_macro_daemon_name = {hop.daemon_name}, as the egress hop",
                "To the milter what comes in there is on its way out: it is rewritten, and judged by no rule.",
                f"Choose another name, in [egress] daemon_name of {_TOML}, and restart gatepost. If it is the hop at"
                f" its former port: postconf -MX {service.key}",
            )


def _names_of(hop: Hop) -> tuple[str, str]:
    return f"{hop.listen}/inet", f"localhost:{hop.listen.rpartition(':')[2]}/inet"


def _hop(config: PostfixConfig, gatepost: Config) -> Iterator[Refusal]:
    if gatepost.egress is None:
        yield Refusal(
            f"{gatepost.path.name} has no [egress]",
            "The map egress would answer no to everything, and forwarded mail would leave as it came.",
            f'Add to {gatepost.path}, and restart gatepost:\n[egress]\ntransport = "gatepost-egress:[127.0.0.1]:10027"',
        )
        return
    hop = hop_of(gatepost)
    if _is_on_loopback(hop):
        yield from _port(config, hop)
    else:
        yield Refusal(
            f"[egress] transport is {gatepost.egress.transport}",
            "The hop takes mail at an address of this host's loopback alone, and localhost may be two of them.",
            f'In {gatepost.path}: transport = "{hop.transport}:[127.0.0.1]:10027"; and restart gatepost.',
        )
    yield from _transport_maps(config, gatepost, hop)
    yield from _unknown_domains(config, gatepost)


def _is_on_loopback(hop: Hop) -> bool:
    host, _, port = hop.listen.rpartition(":")
    try:
        return ip_address(host.strip("[]")).is_loopback and port.isdigit()
    except ValueError:
        return False


def _port(config: PostfixConfig, hop: Hop) -> Iterator[Refusal]:
    host, _, port = hop.listen.rpartition(":")
    listening = [item for item in config.services if item.type == "inet" and _listens(item.name, host, int(port))]
    for there in listening:
        if role(config, there, hop) is not Role.HOP:
            yield Refusal(
                f"{there.key} in master.cf is a service of your own ({there.command})",
                "The receiving half of the egress hop listens there.",
                _OTHER_PORT,
            )
    for wanted in hop_services(Sockets(), hop):
        own = config.service(wanted.name, wanted.type) if wanted.type == "unix" else None
        if own and len(set(own.overrides) & {item.name for item in wanted.overrides}) < len(wanted.overrides) / 2:
            yield Refusal(
                f"{own.key} in master.cf is a service of your own ({own.command})",
                "A part of the egress hop has that name, and what goes by your service would be treated as the hop's.",
                f"Choose another name, in [egress] transport of {_TOML}, and restart gatepost.",
            )
    protocol, other = ("ipv6", "127.0.0.1") if ":" in host else ("ipv4", "::1")
    if not {"all", protocol} & set(config.entries("inet_protocols")):
        yield Refusal(
            f"inet_protocols is {config.expanded('inet_protocols')}, and the egress hop listens at {hop.listen}",
            "Postfix could not listen there, and stops as a whole.",
            f'In [egress] of gatepost.toml, transport = "{hop.transport}:[{other}]:{port}", and restart gatepost.',
        )
    if not listening and answers(Listen(host=host.strip("[]"), port=int(port))):
        yield Refusal(
            f"something listens at {hop.listen} already",
            "The egress hop's receiving half could not start.",
            _OTHER_PORT,
        )


def _listens(name: str, host: str, port: int) -> bool:
    """Say whether a service of master.cf listens at *host* and *port*, maybe at all addresses."""
    own_host, _, own_port = name.rpartition(":")
    try:
        number = int(own_port) if own_port.isdigit() else socket.getservbyname(own_port, "tcp")
    except OSError:
        return False
    return number == port and own_host in (host, "", "0.0.0.0", "[::]", "localhost")


def _transport_maps(config: PostfixConfig, gatepost: Config, hop: Hop) -> Iterator[Refusal]:
    tables = Tables(config)
    for table in config.entries("transport_maps"):
        for key, value in past_the_hop(tables, gatepost, table, hop):
            to_hop = value.partition(":")[0] == hop.transport
            yield Refusal(
                f"transport_maps: {table} has {key} {value}",
                "Mail for the hop would come in there that gatepost did not send to it."
                if to_hop
                else f"Mail {_to(key)} would leave past the egress hop, unrewritten: transport_maps win over"
                " sender_dependent_default_transport_maps.",
                "Take the entry out; what goes out by way of another host: relayhost, which holds behind the hop. If"
                " the domain is one of yours: add it to relay_domains.",
            )


def _to(key: str) -> str:
    return "to everywhere" if key == "*" else f"to {key}"


def past_the_hop(tables: Tables, gatepost: Config, table: str, hop: Hop) -> Iterator[tuple[str, str]]:
    """Yield the entries of a table of transport_maps that lead mail for other sites past the hop, or into it.

    One that cannot be listed is asked; what it says to every domain counts as an entry, whose key is "every domain".
    """
    try:
        entries = tables.entries(table)
    except PostfixError:
        try:
            value = tables.query(table, f"somebody@{_NOBODYS}") or tables.query(table, _NOBODYS)
        except PostfixError:
            return
        entries = [("every domain", value)] if value else []
    for key, value in entries:
        name = key.rpartition("@")[2].lower()
        domain = f"gatepost{name}" if name.startswith(".") else name  # .contoso.com is not contoso.com
        if (value.partition(":")[0] == hop.transport or leads_outside(tables.config, value)) and not is_inside(
            tables, gatepost, domain
        ):
            yield key, value


def is_inside(tables: Tables, gatepost: Config, domain: str) -> bool:
    """Say whether a domain is an accepted one, one of relay.local_domains, or one that Postfix keeps or relays for."""
    if domain in gatepost.relay.local_domains:
        return True
    for organization in gatepost.organizations.values():
        for item in organization.accepted_domains:
            if domain == item.domain or (item.match_subdomains and domain.endswith(f".{item.domain}")):
                return True
    try:
        return domain_list(tables, domain) is not None
    except PostfixError:
        return False


def _unknown_domains(config: PostfixConfig, gatepost: Config) -> Iterator[Refusal]:
    accepted = {
        item.domain: organization.name
        for organization in gatepost.organizations.values()
        for item in organization.accepted_domains
    }
    for domain in outside(Tables(config), accepted):
        yield Refusal(
            f"{domain} is an accepted domain of {accepted[domain]}, and in none of {_LISTS}",
            "Postfix reaches it by relayhost or default_transport, as it does the world outside: its mail would"
            " pass the egress hop and be rewritten.",
            f"postconf -e 'relay_domains = {_more(config, domain)}'",
        )


def _more(config: PostfixConfig, domain: str) -> str:
    return ", ".join([*split(config.value("relay_domains")), domain])
