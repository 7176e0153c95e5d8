# SPDX-License-Identifier: GPL-3.0-or-later
"""Checks of domains and networks: whether Postfix and gatepost agree on what is inside, and on whose hosts relay."""

from __future__ import annotations

import ipaddress
from collections.abc import Iterator, Sequence
from typing import Optional, Union

from gatepost.admin.config_commands import toml
from gatepost.admin.doctor import postfix_entries as entries
from gatepost.admin.doctor.model import Check, Circumstances, Finding, command, error, info, ok, warning
from gatepost.admin.doctor.postfix import topology
from gatepost.admin.doctor.postfix_entries import REVERSE, postconf
from gatepost.admin.postfix.config import PostfixError, Service, split
from gatepost.admin.postfix.tables import DOMAIN_LISTS, Tables, contains, domain_list, listed_domains
from gatepost.admin.postfix.wiring import Topology
from gatepost.relay import normalize_domain
from gatepost.service.snapshot import mint_domain

Network = Union[ipaddress.IPv4Network, ipaddress.IPv6Network]
_ASKED = 200
"""For so many domains tables are asked, some milliseconds each."""
_WIDE = {4: 8, 6: 7}
"""No network of one's own is wider: 10.0.0.0/8, fc00::/7."""
_NAMED = 8
"""So many names are told; then, how many more there are."""


# Domains


def local_domains(circumstances: Circumstances) -> Iterator[Finding]:
    """Whether gatepost takes for inside all domains that Postfix delivers, or relays on its own account."""
    config, rules = circumstances.config, circumstances.snapshot.rules
    if not _rule_applies(circumstances):
        return
    tables = Tables(circumstances.postfix)
    missing: dict[str, str] = {}
    for name in DOMAIN_LISTS:
        for domain, listed in listed_domains(tables, name):
            if not listed:
                yield from _hidden(circumstances, name, domain)
                continue
            normal = normalize_domain(domain)
            if normal and not rules.inside(normal):
                missing.setdefault(normal, name)
    if missing:
        kind = error if circumstances.snapshot.enforces_at_all else warning
        wanted = (*config.relay.local_domains, *missing)
        yield kind(
            f"in Postfix, and not inside for gatepost: {_some([f'{key} ({name})' for key, name in missing.items()])}",
            "Mail to them is judged as mail to outside: from hosts that are no connector's it is refused, in mode "
            "enforce, and elsewhere its sender may be rewritten.",
            f"{config.path}: [relay] local_domains = {toml(wanted)}",
            "systemctl reload gatepost.target",
        )
    else:
        yield ok("every domain of Postfix is inside for gatepost")


def _rule_applies(circumstances: Circumstances) -> bool:
    """Tell whether anything here asks who relays for whom; canonical maps alone do not."""
    return bool(circumstances.config.organizations) and topology(circumstances) is not Topology.POSTSRSD_REPLACEMENT


def _hidden(circumstances: Circumstances, name: str, table: str) -> Iterator[Finding]:
    if any(entries.is_map(circumstances, item, REVERSE) for item in entries.lookups(table)):
        return
    yield info(
        f"{name} has {table}, which cannot be listed",
        "Each of its domains must be an accepted domain or in relay.local_domains, or mail to it is judged as mail to "
        "outside.",
        command(circumstances, "check --mail-from a@example.com --rcpt postmaster@DOMAIN"),
    )


def _some(names: Sequence[str]) -> str:
    more = f" and {len(names) - _NAMED} more" if len(names) > _NAMED else ""
    return ", ".join(names[:_NAMED]) + more


def srs_domains(circumstances: Circumstances) -> Iterator[Finding]:
    """Whether Postfix takes mail for the domains in which SRS addresses are made."""
    config, snapshot = circumstances.config, circumstances.snapshot
    if not topology(circumstances).has_milter:
        return
    tables = Tables(circumstances.postfix)
    minting = {mint_domain(config, item) for item in config.organizations.values()} | set(snapshot.srs_domains)
    refused = [domain for domain in sorted(minting) if domain_list(tables, domain) is None]
    for domain in refused:
        declared = domain in snapshot.srs_domains
        parameter = "virtual_alias_domains" if declared else "relay_domains"
        value = circumstances.postfix.expanded(parameter)
        if any(entries.is_map(circumstances, item, REVERSE) for item in entries.lookups(value)):
            value = ""
        yield warning(
            f"{domain}, in which SRS addresses are made, is in none of {', '.join(DOMAIN_LISTS)}",
            "Where its MX leads here, bounces from outside are refused: Relay access denied.",
            *postconf(circumstances, parameter, ", ".join([*split(value), domain])),
        )
    if minting and not refused:
        yield ok(f"Postfix takes bounces for {_some(sorted(minting))}")


def accepted_domains(circumstances: Circumstances) -> Iterator[Finding]:
    """Whether mail to accepted domains stays off the egress hop."""
    if circumstances.config.egress is None:
        return
    tables = Tables(circumstances.postfix)
    organizations = circumstances.config.organizations.values()
    domains = [accepted.domain for item in organizations for accepted in item.accepted_domains]
    unlisted = _not_listed(tables, domains)
    if len(unlisted) > _ASKED:
        yield info(f"only {_ASKED} of {len(unlisted)} accepted domains were looked at: tables cannot be listed")
    outside = [domain for domain in unlisted[:_ASKED] if not (domain_list(tables, domain) or _routed(tables, domain))]
    if outside:
        value = circumstances.postfix.expanded("relay_domains")
        yield error(
            f"accepted domains that Postfix reaches by default_transport or relayhost only: {_some(outside)}",
            "Mail to them takes the egress hop, as mail to outside does, and arrives with a rewritten sender.",
            *postconf(circumstances, "relay_domains", ", ".join([*split(value), *outside])),
        )
    elif domains:
        yield ok("accepted domains stay off the egress hop")


def _not_listed(tables: Tables, domains: Sequence[str]) -> list[str]:
    """Return those of *domains* that no list of Postfix's names outright; for the rest its tables must be asked."""
    listed = {domain for name in DOMAIN_LISTS for domain, shown in listed_domains(tables, name) if shown}
    return [domain for domain in domains if domain not in listed]


def _routed(tables: Tables, domain: str) -> bool:
    """Tell whether transport_maps has a way of its own for *domain*, which wins over the map egress."""
    return any(tables.query(table, domain) for table in tables.config.entries("transport_maps"))


# Networks


def networks(circumstances: Circumstances) -> Iterator[Finding]:
    """Whether Postfix and gatepost let the same hosts relay."""
    config = circumstances.config
    if not _rule_applies(circumstances):
        return
    permitted, hidden = _networks(circumstances.postfix.expanded("mynetworks"))
    connectors = [
        (connector.name, network)
        for item in config.organizations.values()
        for connector in item.connectors
        if connector.enabled
        for network in connector.sender_ip_addresses
    ]
    found = [
        *_unknown_to_postfix(circumstances, connectors, permitted, hidden),
        *_wider(circumstances, permitted, connectors),
    ]
    yield from found
    for entry in hidden:
        yield info(f"mynetworks has {entry}, whose networks are not compared with connectors")
    if not found:
        yield ok("mynetworks and the connectors' addresses agree")


def _unknown_to_postfix(
    circumstances: Circumstances,
    connectors: Sequence[tuple[str, Network]],
    permitted: Sequence[Network],
    hidden: Sequence[str],
) -> Iterator[Finding]:
    """Yield connectors whose hosts Postfix does not let relay, where policyd does not do that."""
    if circumstances.config.relay.enforced_by == "policyd" or hidden:
        return
    without = [(name, network) for name, network in connectors if not _covers(permitted, network)]
    if without:
        value = circumstances.postfix.expanded("mynetworks")
        added = ", ".join([*split(value), *(_written(network) for _, network in without)])
        yield warning(
            f"addresses of connectors that mynetworks lacks: {_some([f'{item} ({name})' for name, item in without])}",
            "Postfix refuses to relay for these hosts, whatever gatepost says, unless they authenticate or show a "
            "certificate.",
            *postconf(circumstances, "mynetworks", added),
        )


def _wider(
    circumstances: Circumstances, permitted: Sequence[Network], connectors: Sequence[tuple[str, Network]]
) -> Iterator[Finding]:
    """Yield networks of Postfix' own that are no connector's."""
    of_connectors = [network for _, network in connectors]
    wider = [network for network in permitted if not _covers(of_connectors, network)]
    why = (
        "What these hosts send to outside from an accepted domain is refused in mode enforce, for no connector is for "
        "them; from other domains Postfix relays it, and no SRS makes it pass SPF."
    )
    hosts = [network for network in wider if not network.is_loopback]
    if hosts:
        yield warning(
            f"networks in mynetworks that no connector covers entirely: {_some(list(map(str, hosts)))}",
            why,
            f"{circumstances.config.path}: "
            f"[[organization.connector]] sender_ip_addresses = {toml(tuple(map(str, hosts)))}",
        )
    elif wider and not any(network.is_loopback for network in of_connectors):
        yield info(
            f"no connector is for this host's own programs: {_some(list(map(str, wider)))} in mynetworks",
            "What they send to outside by SMTP to localhost is judged as any host's; sendmail(1) is not affected.",
            f'{circumstances.config.path}: [[organization.connector]] sender_ip_addresses = ["127.0.0.1", "::1"]',
        )


def _networks(value: str) -> tuple[list[Network], list[str]]:
    """Return the networks in mynetworks, and its entries that are tables, files or exceptions."""
    found: list[Network] = []
    hidden = []
    for entry in split(value):
        try:
            found.append(ipaddress.ip_network(entry.replace("[", "").replace("]", ""), strict=False))
        except ValueError:
            hidden.append(entry)
    return found, hidden


def _covers(networks: Sequence[Network], inner: Network) -> bool:
    return any(_within(inner, outer) for outer in networks)


def _within(inner: Network, outer: Network) -> bool:
    if isinstance(inner, ipaddress.IPv4Network) and isinstance(outer, ipaddress.IPv4Network):
        return inner.subnet_of(outer)
    if isinstance(inner, ipaddress.IPv6Network) and isinstance(outer, ipaddress.IPv6Network):
        return inner.subnet_of(outer)
    return False


def _written(network: Network) -> str:
    return f"[{network.network_address}]/{network.prefixlen}" if network.version == 6 else str(network)


# Open relays


def open_relay(circumstances: Circumstances) -> Iterator[Finding]:
    """Whether Postfix relays for strangers."""
    found = [*_everybody(circumstances), *_everything_inside(circumstances), *_unguarded(circumstances)]
    yield from found
    if not found:
        yield ok("Postfix does not relay for strangers")


def _everybody(circumstances: Circumstances) -> Iterator[Finding]:
    permitted, _ = _networks(circumstances.postfix.expanded("mynetworks"))
    wide = [network for network in permitted if network.prefixlen < _WIDE[network.version]]
    if wide:
        kept = [_written(network) for network in permitted if network not in wide]
        yield error(
            f"mynetworks has {', '.join(map(str, wide))}",
            "Postfix relays for strangers. gatepost leaves alone what no connector and no accepted sender "
            "domain is meant by, so it does not stop that.",
            *postconf(circumstances, "mynetworks", ", ".join(kept)),
        )


def _everything_inside(circumstances: Circumstances) -> Iterator[Finding]:
    tables = Tables(circumstances.postfix)
    for name in DOMAIN_LISTS:
        for entry in circumstances.postfix.entries(name):
            try:
                everything = contains(tables, [entry], "gatepost.invalid")
            except PostfixError:
                continue
            if everything:
                yield error(
                    f"{name} has {entry}, which says yes to every domain",
                    "Each recipient is taken for one of yours: Postfix relays for everybody, and no mail is outside.",
                    f"# list your own domains in {name}",
                )


def _unguarded(circumstances: Circumstances) -> Iterator[Finding]:
    for service in entries.ingress(circumstances):
        if _guarded(circumstances, service):
            continue
        value = circumstances.postfix.effective(service, "smtpd_relay_restrictions")
        kept = [str(item) for item in entries.restrictions(circumstances.postfix, service, "smtpd_relay_restrictions")]
        kept = [item for item in kept if item != "permit"]
        yield error(
            f'{service.key}: smtpd_relay_restrictions = "{value}" and smtpd_recipient_restrictions let everybody relay',
            "Nothing refuses mail to outside from strangers: an open relay, which is abused within hours.",
            *postconf(
                circumstances, "smtpd_relay_restrictions", ", ".join([*kept, "reject_unauth_destination"]), service
            ),
        )


_GUARDS = ("reject_unauth_destination", "defer_unauth_destination", "reject", "defer", "defer_if_permit")


def _guarded(circumstances: Circumstances, service: Service) -> bool:
    """Tell whether one of the lists that all must pass refuses strangers."""
    names = ("smtpd_relay_restrictions", "smtpd_recipient_restrictions", "smtpd_client_restrictions")
    return any(_first_word(circumstances, service, name) in _GUARDS for name in names)


def _first_word(circumstances: Circumstances, service: Service, name: str) -> Optional[str]:
    """Return what a list says to everybody whom it names nowhere."""
    items = entries.restrictions(circumstances.postfix, service, name)
    return next((item.name for item in items if item.name in (*_GUARDS, "permit")), None)


CHECKS = (
    Check("local-domains", "Postfix", local_domains),
    Check("srs-domains-in-postfix", "Postfix", srs_domains),
    Check("accepted-domains-in-postfix", "Postfix", accepted_domains),
    Check("networks", "Postfix", networks),
    Check("open-relay", "Postfix", open_relay),
)
