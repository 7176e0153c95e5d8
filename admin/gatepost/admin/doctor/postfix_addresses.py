# SPDX-License-Identifier: GPL-3.0-or-later
"""Checks of what Postfix itself does to SRS addresses: maps, command filters, time in the queue."""

from __future__ import annotations

import re
from collections.abc import Iterator, Sequence
from typing import Optional

from gatepost.admin.doctor import postfix_entries as entries
from gatepost.admin.doctor.model import Check, Circumstances, Edit, Finding, edit, error, ok, unknown, warning
from gatepost.admin.doctor.postfix import hop, once_wired, setup, wire
from gatepost.admin.doctor.postfix_entries import FORWARD, REVERSE, postconf
from gatepost.admin.postfix.command_filter import DECODED, ENCODED, filtered
from gatepost.admin.postfix.config import PostfixConfig, PostfixError, Service, split
from gatepost.admin.postfix.tables import Tables
from gatepost.service import rewriting
from gatepost.srs import AddressError

_SECONDS = {"s": 1, "m": 60, "h": 3600, "d": 86400, "w": 604800}
_DAY_S = 86400
_STRANGER = "doctor@gatepost.invalid"


def sender(circumstances: Circumstances) -> Iterator[Finding]:
    """Whether a map of Postfix changes the SRS address that the milter has set as sender."""
    address = _srs_address(circumstances)
    if address is None:
        return
    changes = [
        *_changed(circumstances, "sender_canonical_maps", "sender_canonical_classes", "envelope_sender", address),
        *_changed(circumstances, "canonical_maps", "canonical_classes", "envelope_sender", address),
        *_masqueraded(circumstances, address),
        *_changed(circumstances, "smtp_generic_maps", "", "", address),
    ]
    yield from changes
    if not changes:
        yield ok("no map of Postfix changes SRS senders")


def recipient(circumstances: Circumstances) -> Iterator[Finding]:
    """Whether a map of Postfix changes an SRS recipient before gatepost sees it."""
    address = _srs_address(circumstances)
    if address is None:
        return
    changes = [
        *_changed(
            circumstances, "recipient_canonical_maps", "recipient_canonical_classes", "envelope_recipient", address
        ),
        *_changed(circumstances, "canonical_maps", "canonical_classes", "envelope_recipient", address),
    ]
    yield from changes
    if not changes:
        yield ok("no map of Postfix changes SRS recipients")


def _srs_address(circumstances: Circumstances) -> Optional[str]:
    """Return an address as gatepost makes them, None where it makes none."""
    if not rewriting.rewrites(circumstances.snapshot):
        return None
    try:
        return rewriting.relayed(circumstances.snapshot, _STRANGER, None, int(circumstances.now)).address
    except AddressError:
        return None


def _changed(
    circumstances: Circumstances, parameter: str, classes: str, wanted: str, address: str
) -> Iterator[Finding]:
    """Yield a finding where one of a parameter's tables, gatepost's own apart, has something for *address*."""
    for service in _reading(circumstances, parameter, classes):
        if not classes or wanted in split(entries.seen(circumstances.postfix, service, classes)):
            yield from _changed_by(circumstances, parameter, address, service)


def _reading(circumstances: Circumstances, parameter: str, classes: str) -> list[Optional[Service]]:
    """Return the services that read a parameter and set it, or its classes, themselves; None for main.cf."""
    postfix = circumstances.postfix
    if classes:
        readers = [service for service in postfix.services if service.command == "cleanup"]
    else:
        names = [postfix.expanded(name).partition(":")[0] for name in ("default_transport", "relay_transport")]
        names = [name for name in names if name != hop(circumstances).transport]
        readers = [item for item in postfix.services if item.type == "unix" and item.name in names]
    return entries.unique(item if {parameter, classes} & set(item.overrides) else None for item in readers)


def _changed_by(
    circumstances: Circumstances, parameter: str, address: str, service: Optional[Service]
) -> Iterator[Finding]:
    postfix = circumstances.postfix
    tables = Tables(postfix)
    where = f"{service.key}: " if service and parameter in service.overrides else ""
    for table in split(entries.seen(postfix, service, parameter)):
        if any(
            entries.is_map(circumstances, item, name) for item in entries.lookups(table) for name in (FORWARD, REVERSE)
        ):
            continue
        try:
            changed = _first(tables, table, _keys(postfix, address))
        except PostfixError as failure:
            yield unknown(f"{where}{parameter}: {table} does not answer: {failure}")
            continue
        if changed is not None:
            yield error(
                f"{where}{parameter}: {table} changes the SRS address {address} to {changed}",
                "Bounces of rewritten mail do not reach the original senders, and SPF may fail at the next hop.",
                Edit(f"take the entry out of {table}, or the table out of the list:"),
                *postconf(circumstances, parameter, entries.edited(postfix, parameter, {table: ""}, service), service),
            )


def _keys(postfix: PostfixConfig, address: str) -> list[str]:
    """Return what canonical(5) looks up for an address, in its order."""
    local, _, domain = address.rpartition("@")
    delimiters = postfix.expanded("recipient_delimiter")
    base = re.split(f"[{re.escape(delimiters)}]", local)[0] if delimiters else local
    keys = [address]
    if base != local:
        keys.append(f"{base}@{domain}")
    if domain in (postfix.expanded("myorigin"), *postfix.entries("mydestination")):
        keys += [local, base]
    return [*dict.fromkeys(keys), f"@{domain}"]


def _first(tables: Tables, table: str, keys: Sequence[str]) -> Optional[str]:
    for key in keys:
        found = tables.query(table, key)
        if found is not None:
            return found
    return None


def _masqueraded(circumstances: Circumstances, address: str) -> Iterator[Finding]:
    """Yield a finding where masquerade_domains cuts the SRS domain's first label off."""
    postfix = circumstances.postfix
    if "envelope_sender" not in postfix.entries("masquerade_classes"):
        return
    local, _, domain = address.rpartition("@")
    if local.lower() in postfix.entries("masquerade_exceptions"):
        return
    for entry in postfix.entries("masquerade_domains"):
        name = entry.lstrip("!").lower()
        if domain == name or domain.endswith(f".{name}"):
            if domain == name or entry.startswith("!"):
                return
            kept = entries.edited(postfix, "masquerade_domains", {}, first=f"!{domain}")
            yield error(
                f"masquerade_domains has {name}: it changes the SRS domain {domain} to {name}",
                "Bounces of rewritten mail go to an address with a wrong hash, and do not reach the original senders.",
                *postconf(circumstances, "masquerade_domains", kept),
            )
            return


# Time in the queue


def queue_lifetime(circumstances: Circumstances) -> Iterator[Finding]:
    """Whether an SRS address is good for as long as mail, and a bounce of it, may wait."""
    if not circumstances.config.organizations:
        return
    postfix = circumstances.postfix
    names = ("maximal_queue_lifetime", "bounce_queue_lifetime")
    lifetimes = [_seconds(postfix.expanded(name)) for name in names]
    validity = circumstances.config.srs.validity_days
    days = -(-sum(lifetimes) // _DAY_S)
    told = ", ".join(f"{name} = {postfix.expanded(name)}" for name in names)
    if days < validity:
        yield ok(f"SRS addresses are good for {validity} days; {told}")
    else:
        yield warning(
            f"srs.validity_days is {validity}; {told}",
            "Mail may wait in the queue, and so may its bounce, until the SRS address has expired: it is refused then.",
            edit(circumstances, f"[srs] validity_days = {days + 7}"),
        )


def _seconds(value: str) -> int:
    """Return a time of Postfix in seconds; without a unit it is in days, as these parameters have it."""
    found = re.fullmatch(r"(\d+)([smhdw]?)", value.strip())
    return int(found[1]) * _SECONDS[found[2] or "d"] if found else 0


# Commands


def command_filter(circumstances: Circumstances) -> Iterator[Finding]:
    """Whether SRS recipients that a client writes with percent signs are understood: the filter itself is asked."""
    wanted = wire(circumstances, "smtpd_command_filter")
    if wanted is None:
        return
    lacking = []
    services = entries.ingress(circumstances)
    for service in services:
        value = circumstances.postfix.effective(service, "smtpd_command_filter")
        try:
            if filtered(circumstances.postfix, value, ENCODED) != DECODED:
                lacking.append(service)
        except PostfixError as failure:
            yield error(
                f"{service.key}: smtpd_command_filter does not answer: {failure}",
                "A command filter that fails makes smtpd put off every command.",
                setup(circumstances),
            )
            return
    if lacking:
        yield warning(
            f"{entries.named(lacking)}: smtpd_command_filter does not decode SRS addresses",
            f"{wanted.why} Without it bounces from such sites are refused.",
            setup(circumstances),
        )
    elif services:
        yield ok("smtpd_command_filter decodes SRS addresses")


CHECKS = (
    Check("srs-senders-unchanged", "Postfix", sender),
    Check("srs-recipients-unchanged", "Postfix", recipient),
    Check("queue-lifetime", "Postfix", queue_lifetime),
    Check("command-filter", "Postfix", once_wired(command_filter)),
)
