# SPDX-License-Identifier: GPL-3.0-or-later
"""Checks of the egress hop: that what must be rewritten takes it, that nothing gets past it or into it."""

from __future__ import annotations

import ipaddress
import re
import shlex
from collections.abc import Iterator
from typing import Optional

from gatepost.admin.doctor import postfix_entries as entries
from gatepost.admin.doctor.model import (
    Check,
    Circumstances,
    Edit,
    Finding,
    edit,
    error,
    info,
    instance,
    ok,
    reload_postfix,
    warning,
)
from gatepost.admin.doctor.postfix import hop, mended, once_wired, our_milter, setup, sockets, wire
from gatepost.admin.doctor.postfix_entries import EGRESS
from gatepost.admin.postfix.command_filter import filtered, leaves_orcpt_in
from gatepost.admin.postfix.config import PostfixConfig, PostfixError, Service, split
from gatepost.admin.postfix.filters import leads_outside
from gatepost.admin.postfix.hop import HopService, Override, hop_services
from gatepost.admin.postfix.tables import DOMAIN_LISTS, Tables, listed_domains
from gatepost.admin.setup.refusals import past_the_hop

_MAPS = "sender_dependent_default_transport_maps"
_PROBES = "address_verify_sender_dependent_default_transport_maps"
_RULE = re.compile(r"/(\S+?)/\w*[ \t]+([^\s{}]+)")
"""A rule of a regexp or pcre table: pattern and result."""


def egress_map(circumstances: Circumstances) -> Iterator[Finding]:
    """Whether Postfix asks gatepost which mail takes the hop, and asks the real next hop in its probes."""
    postfix = circumstances.postfix
    rewrite = postfix.service(postfix.expanded("rewrite_service_name"), "unix")  # which asks it
    where = f"{rewrite.key}: " if rewrite and _MAPS in rewrite.overrides else ""
    value = entries.seen(postfix, rewrite, _MAPS)
    asked = [entry for entry in split(value) if _is_egress(circumstances, entry)]
    if circumstances.config.egress is None:
        if asked:
            yield warning(
                f"{where}{_MAPS} has gatepost's map egress, and {circumstances.config.path} has no [egress]",
                "The map always says no: forwarded mail leaves with the sender that it came with.",
                edit(circumstances, "add [egress]"),
            )
        return
    first = asked[0] if asked else sockets(circumstances).map(EGRESS)
    remedy = mended(
        circumstances, _MAPS, entries.edited(postfix, _MAPS, dict.fromkeys(asked, ""), rewrite, first=first), rewrite
    )
    if not asked:
        is_what = f'is "{value}": gatepost\'s map egress is not in it' if value else "is empty"
        yield error(
            f"{where}{_MAPS} {is_what}",
            "Forwarded mail leaves with the sender that it came with, and fails SPF at the next hop.",
            *remedy,
        )
        return
    if asked[0] != split(value)[0]:
        yield error(
            f"{where}{_MAPS}: gatepost's map stands behind {split(value)[0]}",
            "A sender for which the table before it has an entry leaves past the hop, unrewritten.",
            *remedy,
        )
    else:
        yield ok(f"{_MAPS} asks gatepost first")
    probes = {entry: "" for entry in split(entries.seen(postfix, rewrite, _PROBES)) if _is_egress(circumstances, entry)}
    if probes:
        wanted = wire(circumstances, _PROBES)
        yield error(
            f"{_PROBES} is {postfix.value(_PROBES)}",
            wanted.why if wanted else "",
            *mended(circumstances, _PROBES, entries.edited(postfix, _PROBES, probes, rewrite), rewrite),
        )
    else:
        yield ok("address probes stay off the egress hop")


def _is_egress(circumstances: Circumstances, entry: str) -> bool:
    return any(entries.is_map(circumstances, item, EGRESS) for item in entries.lookups(entry))


# The services of the hop


def services(circumstances: Circumstances) -> Iterator[Finding]:
    """Whether both halves of the hop are in master.cf, find each other, and set what main.cf must not change."""
    if circumstances.config.egress is None:
        return
    there = hop(circumstances)
    sending, receiving, cleanup = hop_services(sockets(circumstances), there)
    wrong = 0
    for wanted, service in (
        (sending, circumstances.postfix.service(there.transport, "unix")),
        (receiving, _receiving(circumstances)),
    ):
        for finding in _half(circumstances, wanted, service):
            wrong += 1
            yield finding
    half = _receiving(circumstances)
    if half:
        name = circumstances.postfix.effective(half, "cleanup_service_name")
        for finding in _half(circumstances, cleanup, circumstances.postfix.service(name, "unix")):
            wrong += 1
            yield finding
        for finding in _leading_elsewhere(circumstances, half):
            wrong += 1
            yield finding
    if not wrong:
        yield ok(f"both halves of the egress hop are right: {there.transport}, {there.listen}")


def _receiving(circumstances: Circumstances) -> Optional[Service]:
    """Return what listens at the port to which [egress] transport leads."""
    port = hop(circumstances).listen.rpartition(":")[2]
    smtpds = [item for item in circumstances.postfix.smtpds if item.type == "inet"]
    return next((item for item in smtpds if item.name.rpartition(":")[2] == port), None)


def _half(circumstances: Circumstances, wanted: HopService, service: Optional[Service]) -> Iterator[Finding]:
    if service is None:
        yield error(
            f"master.cf has no {wanted.command} {wanted.name}/{wanted.type}, to which [egress] transport leads",
            "Mail that must be rewritten waits in the queue, and bounces when it expires.",
            setup(circumstances),
        )
        return
    if service.command != wanted.command:
        yield error(
            f"{service.key}: the command is {service.command}, not {wanted.command}",
            "The egress hop speaks SMTP on both sides.",
            setup(circumstances),
        )
        return
    for override in wanted.overrides:
        if circumstances.postfix.is_known(override.name) and not _right(circumstances, service, override):
            value = circumstances.postfix.effective(service, override.name)
            option = instance(circumstances)
            yield error(
                f'{service.key}: {override.name} is "{value}"; it must be "{override.value}"',
                override.why,
                f"postconf{option} -P '{service.key}/{override.name}={override.value}'",
                reload_postfix(circumstances),
            )


def _right(circumstances: Circumstances, service: Service, override: Override) -> bool:
    postfix = circumstances.postfix
    value = postfix.effective(service, override.name)
    if override.name in ("syslog_name", "cleanup_service_name"):  # their own choice; the cleanup is looked at itself
        return True
    if override.name == "smtpd_milters":
        ours = our_milter(circumstances, service)
        action = ours.option("default_action") if ours else ""
        return ours is not None and len(entries.milters(value)) == 1 and action in ("", "tempfail", "shutdown")
    if override.name == "message_size_limit":
        return value == "0" or int(value) > int(postfix.expanded("message_size_limit")) > 0
    if override.name in ("mynetworks", "smtpd_client_event_limit_exceptions"):
        return _only_loopback(split(value)) and _has(split(value), _host(hop(circumstances).listen))
    if override.name == "receive_override_options":
        return set(split(value)) == set(split(override.value))
    return split(value) == split(override.value)


def _only_loopback(networks: list[str]) -> bool:
    try:
        found = [ipaddress.ip_network(item.replace("[", "").replace("]", "")) for item in networks]
    except ValueError:
        return False
    return bool(found) and all(network.is_loopback for network in found)


def _has(networks: list[str], host: str) -> bool:
    """Tell whether *networks*, which are loopback's, have the address *host*."""
    try:
        address = ipaddress.ip_address(host)
    except ValueError:
        return True  # localhost
    found = [ipaddress.ip_network(item.replace("[", "").replace("]", ""), strict=False) for item in networks]
    return any(network.version == address.version and address in network for network in found)


def _host(listen: str) -> str:
    """Return the host of `127.0.0.1:10027`, "" where there is only a port."""
    return listen.rpartition(":")[0].strip("[]")


def _leading_elsewhere(circumstances: Circumstances, service: Service) -> Iterator[Finding]:
    """Yield where the receiving half listens for others than this host, or where others call themselves the hop."""
    wanted, host = _host(hop(circumstances).listen), _host(service.name)
    if "localhost" not in (host, wanted) and not _only_loopback([host or "0.0.0.0/0"]):
        yield error(
            f"{service.key}: the egress hop listens on other addresses than loopback",
            "What enters there is rewritten in an organization's name, and no rule is applied.",
            Edit(f"in master.cf write {hop(circumstances).listen} in place of {service.name}"),
        )
    elif "localhost" not in (host, wanted) and host != wanted:
        yield error(
            f"{service.key}: [egress] transport leads to {hop(circumstances).listen}",
            "Nobody listens there: mail that must be rewritten waits in the queue, and bounces when it expires.",
            Edit(f"in master.cf write {hop(circumstances).listen} in place of {service.name}"),
        )
    for other in circumstances.postfix.smtpds:
        if other != service and entries.is_hop(circumstances, other):
            option = instance(circumstances)
            name = hop(circumstances).daemon_name
            yield error(
                f"{other.key}: milter_macro_daemon_name is {name}, as the egress hop's",
                "To the milter what comes in there is on its way out: it is rewritten and not judged.",
                f"postconf{option} -PX '{other.key}/milter_macro_daemon_name'",
                reload_postfix(circumstances),
            )


# What leaks past the hop, and what gets in


def orcpt(circumstances: Circumstances) -> Iterator[Finding]:
    """Whether a client's ORCPT is taken out where mail comes in: the filter itself is asked."""
    wanted = wire(circumstances, "smtpd_command_filter")
    if circumstances.config.egress is None or wanted is None:
        return
    postfix = circumstances.postfix
    taking = [service for service in entries.ingress(circumstances) if _leaves_orcpt_in(postfix, service)]
    if taking:
        yield error(
            f"{entries.named(taking)}: smtpd_command_filter leaves a client's ORCPT in",
            "The hop learns the forwarding mailbox from ORCPT: a stranger chooses in whose name his mail goes on.",
            setup(circumstances),
        )
    else:
        yield ok("a client's ORCPT is taken out")


def _leaves_orcpt_in(postfix: PostfixConfig, service: Service) -> bool:
    """Tell whether a client's ORCPT gets in, however it is spelled. Without DSN, or by a filter that fails, none."""
    if leaves_orcpt_in(postfix, service):
        return True
    try:
        value = postfix.effective(service, "smtpd_command_filter")
        left = [filtered(postfix, value, command) for command in _SPELLED]
    except PostfixError:
        return False
    dsn = "DSN" not in (word.upper() for word in postfix.effective_entries(service, "smtpd_discard_ehlo_keywords"))
    return dsn and any("ORCPT" in command.upper() for command in left)


_SPELLED = (
    "rcpt to:<bob@contoso.com> orcpt=utf-8;ceo@contoso.com",
    "RCPT TO:<bob@contoso.com> ORCPT=rfc822;bob@contoso.com ORCPT=rfc822;ceo@contoso.com",
)


def transport_maps(circumstances: Circumstances) -> Iterator[Finding]:
    """Whether transport_maps sends mail for outside past the hop."""
    if circumstances.config.egress is None:
        return
    tables, there = entries.tables(circumstances), hop(circumstances)
    past: list[str] = []
    into: list[str] = []
    for table in circumstances.postfix.entries("transport_maps"):
        try:
            tables.query(table, "gatepost.invalid")
        except PostfixError as failure:
            yield warning(
                f"transport_maps: {table} does not answer: {failure}", "Mail waits while Postfix cannot ask it."
            )
            continue
        found = [*past_the_hop(tables, circumstances.config, table, there)]
        for key, value in found:
            (into if value.partition(":")[0] == there.transport else past).append(f"{key} {value} ({table})")
        if not found:
            yield from _unlisted(circumstances, tables, table)
    if past:
        yield error(
            f"transport_maps sends mail for outside past the egress hop: {', '.join(past[:8])}",
            "transport_maps wins over the map egress: forwarded mail to these domains leaves unrewritten.",
            Edit(
                "take the entries out; a next hop for all mail belongs in relayhost, domains of yours in relay_domains"
            ),
        )
    if into:
        yield error(
            f"transport_maps sends mail for outside into the egress hop: {', '.join(into[:8])}",
            "Only what the map egress sends there can be rewritten: the hop puts all other mail off until it expires.",
            Edit("take the entries out"),
        )
    if not (past or into):
        yield ok("transport_maps sends nothing past the egress hop")


def _unlisted(circumstances: Circumstances, tables: Tables, table: str) -> Iterator[Finding]:
    """Yield what may lead past the hop in a table that cannot be listed; the rules of patterns can be read."""
    why = "An entry of it for a domain outside takes forwarded mail past the hop, unrewritten."
    option = instance(circumstances)
    ask = f"postmap{option} -q somebody@gmail.com {shlex.quote(table)}   # nothing is right"
    try:
        tables.entries(table)
        return
    except PostfixError:
        rules = [item for item in _RULE.findall(tables.text(table)) if leads_outside(circumstances.postfix, item[1])]
    if not table.partition("proxy:")[2].startswith(("regexp:", "pcre:")) and not table.startswith(("regexp:", "pcre:")):
        yield info(f"transport_maps has {table}, which cannot be listed", why, ask)
        return
    inside = _inside(circumstances, tables)
    for pattern, value in rules:
        plain = re.sub(r"\\(.)|\[(.)\]", r"\1\2", pattern).lower()
        if not any(domain in plain for domain in inside):
            yield warning(f"transport_maps: {table} has /{pattern}/ {value}", why, ask)


def _inside(circumstances: Circumstances, tables: Tables) -> list[str]:
    """Return the domains that are inside, as far as they can be listed."""
    organizations = circumstances.config.organizations.values()
    found = [item.domain for organization in organizations for item in organization.accepted_domains]
    found += circumstances.config.relay.local_domains
    return found + [domain for name in DOMAIN_LISTS for domain, listed in listed_domains(tables, name) if listed]


CHECKS = (
    Check("egress-map", "Egress hop", once_wired(egress_map)),
    Check("egress-hop", "Egress hop", once_wired(services)),
    Check("egress-orcpt", "Egress hop", once_wired(orcpt)),
    Check("egress-transport-maps", "Egress hop", transport_maps),
)
