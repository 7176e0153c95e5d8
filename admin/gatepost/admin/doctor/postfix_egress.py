# SPDX-License-Identifier: GPL-3.0-or-later
"""Checks of the egress hop: that what must be rewritten takes it, that nothing gets past it or into it."""

from __future__ import annotations

import ipaddress
from collections.abc import Iterator
from typing import Optional

from gatepost.admin.doctor import postfix_entries as entries
from gatepost.admin.doctor.model import Check, Circumstances, Finding, command, error, info, ok, warning
from gatepost.admin.doctor.postfix import SETUP, hop, once_wired, our_milter, sockets, wire
from gatepost.admin.doctor.postfix_addresses import WITH_ORCPT, filtered
from gatepost.admin.doctor.postfix_entries import EGRESS, postconf
from gatepost.admin.postfix.config import PostfixConfig, PostfixError, Service, split
from gatepost.admin.postfix.hop import HopService, Override, hop_services
from gatepost.admin.postfix.tables import Tables
from gatepost.admin.setup.refusals import is_inside

_MAPS = "sender_dependent_default_transport_maps"
_PROBES = "address_verify_sender_dependent_default_transport_maps"
_OUTSIDE = "gatepost.invalid"


def egress_map(circumstances: Circumstances) -> Iterator[Finding]:
    """Whether Postfix asks gatepost which mail takes the hop, and asks the real next hop in its probes."""
    postfix = circumstances.postfix
    value = postfix.expanded(_MAPS)
    asked = [_is_egress(circumstances, entry) for entry in split(value)]
    if circumstances.config.egress is None:
        if any(asked):
            yield warning(
                f"{_MAPS} has gatepost's map egress, and {circumstances.config.path} has no [egress]",
                "The map always says no: forwarded mail leaves with the sender that it came with.",
                f"{circumstances.config.path}: add [egress]",
            )
        return
    wanted = wire(circumstances, _MAPS)
    table = wanted.value if wanted else sockets(circumstances).map(EGRESS)
    if not any(asked):
        yield error(
            f'{_MAPS} is "{value}": gatepost\'s map egress is not in it' if value else f"{_MAPS} is empty",
            "Forwarded mail leaves with the sender that it came with, and fails SPF at the next hop.",
            *postconf(circumstances, _MAPS, entries.in_front(table, value)),
        )
        return
    if not asked[0]:
        yield error(
            f"{_MAPS}: gatepost's map stands behind {split(value)[0]}",
            "A sender for which the table before it has an entry leaves past the hop, unrewritten.",
            *postconf(circumstances, _MAPS, entries.in_front(split(value)[asked.index(True)], value)),
        )
    else:
        yield ok(f"{_MAPS} asks gatepost first")
    probes = [entry for entry in postfix.entries(_PROBES) if _is_egress(circumstances, entry)]
    if probes:
        wanted = wire(circumstances, _PROBES)
        kept = ", ".join(entry for entry in postfix.entries(_PROBES) if entry not in probes)
        yield error(
            f"{_PROBES} is {postfix.value(_PROBES)}",
            wanted.why if wanted else "",
            *postconf(circumstances, _PROBES, kept),
        )
    else:
        yield ok("address probes stay off the egress hop")


def _is_egress(circumstances: Circumstances, entry: str) -> bool:
    return any(entries.is_map(circumstances, item, EGRESS) for item in entries.lookups(entry))


def recipient_limit(circumstances: Circumstances) -> Iterator[Finding]:
    """Whether the hop takes one recipient a message."""
    name = f"{hop(circumstances).transport}_destination_recipient_limit"
    wanted = wire(circumstances, name)
    if wanted is None:
        return
    value = circumstances.postfix.expanded(name)
    if value == wanted.value:
        yield ok(f"{name} = {value}")
    else:
        yield error(f"{name} = {value or 'unset'}", wanted.why, *postconf(circumstances, name, wanted.value))


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
            command(circumstances, SETUP),
        )
        return
    if service.command != wanted.command:
        yield error(
            f"{service.key}: the command is {service.command}, not {wanted.command}",
            "The egress hop speaks SMTP on both sides.",
            command(circumstances, SETUP),
        )
        return
    for override in wanted.overrides:
        if circumstances.postfix.is_known(override.name) and not _right(circumstances, service, override):
            value = circumstances.postfix.effective(service, override.name)
            option = entries.directory(circumstances)
            yield error(
                f'{service.key}: {override.name} is "{value}"; it must be "{override.value}"',
                override.why,
                f"postconf{option} -P '{service.key}/{override.name}={override.value}'",
                f"postfix{option} reload",
            )


def _right(circumstances: Circumstances, service: Service, override: Override) -> bool:
    postfix = circumstances.postfix
    value = postfix.effective(service, override.name)
    if override.name in ("syslog_name", "cleanup_service_name"):  # their own choice; the cleanup is looked at itself
        return True
    if override.name == "smtpd_milters":
        return our_milter(circumstances, service) is not None and len(entries.milters(value)) == 1
    if override.name == "message_size_limit":
        return value == "0" or int(value) > int(postfix.expanded("message_size_limit")) > 0
    if override.name in ("mynetworks", "smtpd_client_event_limit_exceptions"):
        return _only_loopback(split(value))
    if override.name == "receive_override_options":
        return set(split(value)) == set(split(override.value))
    return split(value) == split(override.value)


def _only_loopback(networks: list[str]) -> bool:
    try:
        found = [ipaddress.ip_network(item.replace("[", "").replace("]", "")) for item in networks]
    except ValueError:
        return False
    return bool(found) and all(network.is_loopback for network in found)


def _leading_elsewhere(circumstances: Circumstances, service: Service) -> Iterator[Finding]:
    """Yield where the receiving half listens for others than this host, or where others call themselves the hop."""
    host = service.name.rpartition(":")[0].strip("[]")
    if host != "localhost" and not _only_loopback([host or "0.0.0.0/0"]):
        yield error(
            f"{service.key}: the egress hop listens on other addresses than loopback",
            "What enters there is rewritten in an organization's name, and no rule is applied.",
            f"# in master.cf write {hop(circumstances).listen} in place of {service.name}",
        )
    for other in circumstances.postfix.smtpds:
        if other != service and entries.is_hop(circumstances, other):
            option = entries.directory(circumstances)
            name = hop(circumstances).daemon_name
            yield error(
                f"{other.key}: milter_macro_daemon_name is {name}, as the egress hop's",
                "To the milter what comes in there is on its way out: it is rewritten and not judged.",
                f"postconf{option} -PX '{other.key}/milter_macro_daemon_name'",
                f"postfix{option} reload",
            )


# What leaks past the hop, and what gets in


def orcpt(circumstances: Circumstances) -> Iterator[Finding]:
    """Whether a client's ORCPT is taken out where mail comes in: the filter itself is asked."""
    wanted = wire(circumstances, "smtpd_command_filter")
    if circumstances.config.egress is None or wanted is None:
        return
    postfix = circumstances.postfix
    taking = [service for service in entries.ingress(circumstances) if not _takes_orcpt_out(postfix, service)]
    if taking:
        yield error(
            f"{entries.named(taking)}: smtpd_command_filter leaves a client's ORCPT in",
            "The hop learns the forwarding mailbox from ORCPT: a stranger chooses in whose name his mail goes on.",
            command(circumstances, SETUP),
        )
    else:
        yield ok("a client's ORCPT is taken out")


def _takes_orcpt_out(postfix: PostfixConfig, service: Service) -> bool:
    if "DSN" in (word.upper() for word in postfix.effective_entries(service, "smtpd_discard_ehlo_keywords")):
        return True
    try:
        left = filtered(postfix, postfix.effective(service, "smtpd_command_filter"), WITH_ORCPT)
    except PostfixError:
        return True  # the check of the filter says so
    return "ORCPT" not in left


def transport_maps(circumstances: Circumstances) -> Iterator[Finding]:
    """Whether transport_maps sends mail for outside past the hop."""
    if circumstances.config.egress is None:
        return
    tables = Tables(circumstances.postfix)
    past: list[str] = []
    for table in circumstances.postfix.entries("transport_maps"):
        try:
            pairs = tables.entries(table)
        except PostfixError:
            try:
                found = tables.query(table, _OUTSIDE)
            except PostfixError as failure:
                yield warning(
                    f"transport_maps: {table} does not answer: {failure}", "Mail waits while Postfix cannot ask it."
                )
                continue
            pairs = [(_OUTSIDE, found)] if found is not None else []
            if not pairs:
                yield info(
                    f"transport_maps has {table}, which cannot be listed",
                    "An entry of it for a domain outside takes forwarded mail past the hop, unrewritten.",
                )
        past += [f"{key} {value} ({table})" for key, value in pairs if _past(circumstances, tables, key, value)]
    if past:
        yield error(
            f"transport_maps sends mail for outside past the egress hop: {', '.join(past[:8])}",
            "transport_maps wins over the map egress: forwarded mail to these domains leaves unrewritten.",
            "# take the entries out; a next hop for all mail belongs in relayhost, domains of yours in relay_domains",
        )
    else:
        yield ok("transport_maps sends nothing past the egress hop")


def _past(circumstances: Circumstances, tables: Tables, key: str, value: str) -> bool:
    """Tell whether an entry of transport(5) takes mail for outside to an SMTP server directly."""
    name, _, nexthop = value.partition(":")
    if not name and not nexthop:  # as if there were no entry
        return False
    service = tables.config.service(name, "unix")
    if name and (name == hop(circumstances).transport or service is None or service.command != "smtp"):
        return False
    domain = key.rpartition("@")[2].lstrip(".").lower()
    if domain == "*":
        return True
    return not is_inside(tables, circumstances.config, domain)


CHECKS = (
    Check("egress-map", "Egress hop", once_wired(egress_map)),
    Check("egress-recipient-limit", "Egress hop", once_wired(recipient_limit)),
    Check("egress-hop", "Egress hop", once_wired(services)),
    Check("egress-orcpt", "Egress hop", once_wired(orcpt)),
    Check("egress-transport-maps", "Egress hop", transport_maps),
)
