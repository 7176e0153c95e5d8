# SPDX-License-Identifier: GPL-3.0-or-later
"""What setup refuses to build on: an open relay, and whatever would lead mail past the egress hop."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from collections.abc import Set as AbstractSet
from dataclasses import dataclass
from ipaddress import ip_network

from gatepost.admin.postfix.config import PostfixConfig, PostfixError, Service, split
from gatepost.admin.postfix.tables import DOMAIN_LISTS, Tables, contains, domain_list
from gatepost.admin.postfix.wiring import OLDEST, Hop, Topology
from gatepost.admin.setup.plan import Role, hop_of, role
from gatepost.admin.setup.sockets import answers
from gatepost.service.config import Config
from gatepost.service.fields import Listen

_GUARDS = {"reject_unauth_destination", "defer_unauth_destination", "reject", "defer", "defer_if_permit"}
_WIDE = {4: 8, 6: 7}
"""No network of one's own is wider: 10.0.0.0/8, fc00::/7."""
_NOBODYS = "gatepost-setup.invalid"
_RELAY_LISTS = ("smtpd_relay_restrictions", "smtpd_recipient_restrictions")
_LISTS = ", ".join(DOMAIN_LISTS)
_OTHER_PORT = "Choose another port, in [egress] transport of gatepost.toml, and restart gatepost."
_STAYS = ("error", "retry", "discard", "local", "virtual", "lmtp")
"""Transports that lead nowhere outside."""


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
    return found


def _too_old(config: PostfixConfig) -> Iterator[Refusal]:
    if config.version < OLDEST:
        have, oldest = (".".join(map(str, version)) for version in (config.version, OLDEST))
        yield Refusal(
            f"Postfix {have}", "It lacks what gatepost is wired with.", f"Postfix {oldest} or newer is needed."
        )


# Open relays


def _open_relay(config: PostfixConfig, hop: Hop) -> Iterator[Refusal]:
    yield from _networks("mynetworks", config.entries("mynetworks"))
    for service in config.smtpds:
        if role(config, service, hop) is Role.INGRESS:
            if "mynetworks" in service.overrides:
                yield from _networks(f"{service.key}: mynetworks", config.effective_entries(service, "mynetworks"))
            yield from _unguarded(config, service)
    yield from _everything_inside(config)


def _networks(what: str, entries: Sequence[str]) -> Iterator[Refusal]:
    for entry in entries:
        try:
            network = ip_network(entry.replace("[", "").replace("]", ""), strict=False)
        except ValueError:
            continue
        if network.prefixlen < _WIDE[network.version]:
            yield Refusal(
                f"{what} has {entry}",
                "Whoever connects from there may relay through this server: with that it is an open relay, and"
                " gatepost in mode monitor refuses nobody.",
                "Put only networks of your own into it.",
            )


def _unguarded(config: PostfixConfig, service: Service) -> Iterator[Refusal]:
    classes = set(config.entries("smtpd_restriction_classes"))
    lists = {name: list(_opened(config, classes, config.effective_entries(service, name))) for name in _RELAY_LISTS}
    guarded = [name for name in _RELAY_LISTS if _GUARDS & set(lists[name])]
    where = f"{service.key} in master.cf" if set(_RELAY_LISTS) & set(service.overrides) else "main.cf"
    if not guarded:
        yield Refusal(
            f"{where}: neither {_RELAY_LISTS[0]} nor {_RELAY_LISTS[1]} has reject_unauth_destination",
            "Nothing would keep strangers from relaying.",
            "postconf -e 'smtpd_relay_restrictions = permit_mynetworks, permit_sasl_authenticated,"
            " reject_unauth_destination'",
        )
        return
    open_lists = [name for name in guarded if _permits_all(lists[name])]
    if len(open_lists) == len(guarded):
        yield Refusal(
            f"{where}: {open_lists[0]} has permit before reject_unauth_destination",
            "Everybody is let relay before that is asked.",
            f"Take permit out of {open_lists[0]}, or put it at the end.",
        )


def _opened(config: PostfixConfig, classes: AbstractSet[str], entries: Sequence[str]) -> Iterator[str]:
    """Yield the entries of a list, those of restriction classes in their place."""
    for entry in entries:
        if entry in classes:
            yield from _opened(config, classes - {entry}, config.entries(entry))
        else:
            yield entry


def _permits_all(entries: Sequence[str]) -> bool:
    guard = min(index for index, entry in enumerate(entries) if entry in _GUARDS)
    return "permit" in entries[:guard] or "static:OK" in entries[:guard]


def _everything_inside(config: PostfixConfig) -> Iterator[Refusal]:
    tables = Tables(config)
    for name in DOMAIN_LISTS:
        for entry in config.entries(name):
            try:
                everything = contains(tables, [entry], _NOBODYS)
            except PostfixError:
                continue
            if everything:
                yield Refusal(
                    f"{name} has {entry}, which says yes to every domain",
                    "Each recipient is taken for one of yours: the server relays for everybody, and no mail is"
                    " outside.",
                    f"List your own domains in {name}.",
                )


# The egress hop


def _hop(config: PostfixConfig, gatepost: Config) -> Iterator[Refusal]:
    if gatepost.egress is None:
        yield Refusal(
            f"{gatepost.path.name} has no [egress]",
            "The map egress would answer no to everything, and forwarded mail would leave as it came.",
            f'Add to {gatepost.path}, and restart gatepost:\n[egress]\ntransport = "gatepost-egress:[127.0.0.1]:10027"',
        )
        return
    hop = hop_of(gatepost)
    yield from _port(config, hop)
    yield from _transport_maps(config, gatepost, hop)
    yield from _unknown_domains(config, gatepost)


def _port(config: PostfixConfig, hop: Hop) -> Iterator[Refusal]:
    there = config.service(hop.listen, "inet") or config.service(f"localhost:{hop.listen.rpartition(':')[2]}", "inet")
    if there and role(config, there, hop) is not Role.HOP:
        yield Refusal(
            f"{there.key} in master.cf is a service of your own ({there.command})",
            "The receiving half of the egress hop listens there.",
            _OTHER_PORT,
        )
    host, _, port = hop.listen.rpartition(":")
    if there is None and answers(Listen(host=host.strip("[]"), port=int(port))):
        yield Refusal(
            f"something listens at {hop.listen} already",
            "The egress hop's receiving half could not start.",
            _OTHER_PORT,
        )


def _transport_maps(config: PostfixConfig, gatepost: Config, hop: Hop) -> Iterator[Refusal]:
    tables = Tables(config)
    for table in config.entries("transport_maps"):
        for key, value in _outside(tables, gatepost, table):
            to_hop = value.partition(":")[0] == hop.transport
            yield Refusal(
                f"transport_maps: {table} has {key} {value}",
                "Mail for the hop would come in there that gatepost did not send to it."
                if to_hop
                else f"Mail {_to(key)} would leave past the egress hop, unrewritten: transport_maps win over"
                " sender_dependent_default_transport_maps.",
                "Take the entry out. What goes out by way of another host: relayhost, which holds behind the hop.",
            )


def _to(key: str) -> str:
    return "to everywhere" if key == "*" else f"to {key}"


def _outside(tables: Tables, gatepost: Config, table: str) -> Iterator[tuple[str, str]]:
    """Yield the entries of a table of transport_maps that lead mail for other sites somewhere."""
    try:
        entries = tables.entries(table)
    except PostfixError:
        try:
            value = tables.query(table, f"somebody@{_NOBODYS}") or tables.query(table, _NOBODYS)
        except PostfixError:
            return
        entries = [("every domain", value)] if value else []
    for key, value in entries:
        transport, _, nexthop = value.partition(":")
        domain = key.rpartition("@")[2].lstrip(".").lower()
        if transport in _STAYS or not (transport or nexthop) or is_inside(tables, gatepost, domain):
            continue
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
    tables = Tables(config)
    routed = _routed(tables)
    for organization in gatepost.organizations.values():
        for item in organization.accepted_domains:
            try:
                known = domain_list(tables, item.domain)
            except PostfixError:
                continue
            if not known and item.domain not in routed:
                yield Refusal(
                    f"{item.domain} is an accepted domain of {organization.name}, and in none of {_LISTS}",
                    "Postfix reaches it by relayhost or default_transport, as it does the world outside: its mail would"
                    " pass the egress hop and be rewritten.",
                    f"postconf -e 'relay_domains = {_more(config, item.domain)}'",
                )


def _routed(tables: Tables) -> set[str]:
    found = set()
    for table in tables.config.entries("transport_maps"):
        try:
            found |= {key.lower() for key, _ in tables.entries(table)}
        except PostfixError:
            continue
    return found


def _more(config: PostfixConfig, domain: str) -> str:
    return ", ".join([*split(config.value("relay_domains")), domain])
