# SPDX-License-Identifier: GPL-3.0-or-later
"""SRS addresses by hand: `gatepost srs forward`, `reverse` and `inspect`."""

from __future__ import annotations

import os
import time
from collections.abc import Iterator, Sequence
from datetime import date, datetime, timezone
from pathlib import Path
from typing import Callable, Optional

import click

from gatepost.admin.configuration import complain, printable, problems_reported, secret_missing
from gatepost.service import flow
from gatepost.service.flow import Bounce, Egress
from gatepost.service.snapshot import Snapshot, load_snapshot
from gatepost.service.tables import ConfigError
from gatepost.srs import Address, AddressError, Inspection, SrsError
from gatepost.srs import inspect as inspect_address


class _Refused(Exception):  # noqa: N818
    """An address has no result; the text says why."""


def unix_time(at: Optional[datetime]) -> int:
    """Return the beginning of the day *at* (UTC), or the present time, in Unix seconds."""
    return int(at.replace(tzinfo=timezone.utc).timestamp() if at else time.time())


def bare(text: str) -> str:
    """Return an address without the angle brackets that a log or a transcript puts around it."""
    text = text.strip()
    return text[1:-1] if text.startswith("<") and text.endswith(">") else text


def forward(
    path: Path,
    addresses: Sequence[str],
    mailbox: Optional[str],
    organization_name: Optional[str],
    at: Optional[datetime],
) -> int:
    """Print the SRS address of each of *addresses*, envelope senders; return the exit status."""
    with problems_reported():
        snapshot = load_snapshot(path)
    if not snapshot.config.organizations:
        complain(f"{path}: no organization is declared, so there is no domain for SRS addresses")
        return os.EX_CONFIG
    organizations = snapshot.config.organizations
    if organization_name is not None and organization_name not in organizations:
        raise click.UsageError(f'"{organization_name}" is no organization; there are: {", ".join(organizations)}')
    organization = organizations[organization_name] if organization_name else None
    forwarder = _mailbox(snapshot, mailbox) if mailbox else None
    now = unix_time(at)

    def rewritten(address: str) -> str:
        if not address:
            raise _Refused("the null sender is never rewritten")
        if "@" not in address:
            raise _Refused("has no domain")
        if flow.leaving(snapshot, address) is Egress.OUT:
            raise _Refused(f"is never rewritten: {flow.domain_of(address)} is a domain of this host's organizations")
        if forwarder:
            return flow.forwarded(snapshot, address, forwarder, now)
        return flow.relayed(snapshot, address, organization, now)

    return _each(addresses, rewritten)


def _mailbox(snapshot: Snapshot, text: str) -> Address:
    """Return the mailbox that forwards, as `flow.forwarder` does for one that Postfix names."""
    try:
        address = Address.parse(bare(text))
    except AddressError as error:
        raise click.UsageError(f"--mailbox {text}: {error}") from error
    domain = flow.domain_of(bare(text)) or ""
    if snapshot.rules.accepted(domain) is None:
        raise click.UsageError(f"--mailbox {text}: {address.domain} is no accepted domain, so it forwards nothing here")
    return Address(address.local.partition("+")[0] or address.local, domain)


def reverse(path: Path, addresses: Sequence[str], at: Optional[datetime]) -> int:
    """Print the original sender of each of *addresses*; return the exit status."""
    with problems_reported():
        snapshot = load_snapshot(path)
    now = unix_time(at)

    def original(address: str) -> str:
        reversal = flow.reverse(snapshot, address, now)
        if reversal.bounce is not Bounce.ORIGINAL:
            raise _Refused(verdict(snapshot, reversal.bounce, flow.domain_of(address) or ""))
        return reversal.original

    return _each(addresses, original)


def verdict(snapshot: Snapshot, bounce: Bounce, domain: str) -> str:
    """Return in words what an address in *domain* is that is not reversed."""
    if bounce is Bounce.FORGED:
        return "wrong hash: no key here made it; it is forged, mistyped, or of another system such as Exchange Online"
    if bounce is Bounce.EXPIRED:
        return f"expired: older than {snapshot.config.srs.validity_days} days (srs.validity_days), or from the future"
    if bounce is Bounce.NOT_SRS:
        return "no SRS address that can be reversed here (mailbox+SRS=hash=timestamp=domain=user@domain)"
    accepted = snapshot.rules.accepted(domain)
    if accepted is None:
        return f"somebody else's SRS address: {domain} is no accepted domain and no srs_domain here"
    srs_domain = snapshot.config.settings[accepted.organization.name].srs_domain
    if srs_domain is None:
        return "somebody else's SRS address, or forged: no key here made it (in mode monitor this host makes none)"
    return f"somebody else's SRS address: no key here made it, and this host makes its own in {srs_domain}"


def inspect(path: Path, addresses: Sequence[str], at: Optional[datetime]) -> int:
    """Print each of *addresses* field by field; return the exit status."""
    with problems_reported():
        snapshot, unchecked = _snapshot_if_any(path)
    now = unix_time(at)

    def fields(text: str) -> str:
        found = inspect_address(Address.parse(text), flow.day(now))
        state = _state(snapshot, text, found, now) if snapshot else f"not checked: {unchecked}"
        return _block(text, found, state, flow.day(now))

    return _each(addresses, fields, between="\n")


def _snapshot_if_any(path: Path) -> tuple[Optional[Snapshot], str]:
    """Return the snapshot, or None and why there is none. Raises ConfigError for a configuration with errors."""
    if not path.exists():
        return None, f"there is no configuration file {path}"
    try:
        return load_snapshot(path), ""
    except ConfigError as error:
        if not secret_missing(error):
            raise
        return None, "this host has no SRS secret yet"


def _state(snapshot: Snapshot, text: str, found: Inspection, now: int) -> str:
    reversal = flow.reverse(snapshot, text, now)
    if reversal.bounce is Bounce.ORIGINAL:
        return "made here, the hash is right and it has not expired: bounces to it are reversed"
    if reversal.bounce is Bounce.EXPIRED:
        return "made here, the hash is right, but " + verdict(snapshot, reversal.bounce, "")
    if found.original_domain is None:
        return "compact form: its original is in the store of the system that made it, and that is not this host"
    return verdict(snapshot, reversal.bounce, flow.domain_of(text) or "")


def _block(text: str, found: Inspection, state: str, today: int) -> str:
    age = today - (date.fromisoformat(found.date) - date(1970, 1, 1)).days
    ago = {-1: "tomorrow", 0: "today", 1: "yesterday"}.get(age, f"{age} days ago")
    compact = found.original_domain is None
    original = None if compact else str(Address(found.original_user or "", found.original_domain or ""))
    whose = ", of relayed mail" if found.mailbox.lower() == flow.BOUNCES else ", which forwarded the mail"
    rows = [
        ("form", "compact (original kept in a store)" if compact else "long (original in the address)"),
        ("mailbox", found.mailbox + whose),
        ("hash", f"{found.hash} ({len(found.hash)} characters)"),
        ("timestamp", f"{found.stamp} = {found.date}, {ago} (or 1,024 days before, and so on)"),
        ("original", original or "not in the address"),
        ("SRS domain", found.srs_domain),
        ("state", state),
    ]
    return "\n".join([text, *(f"  {name:<11} {value}" for name, value in rows)])


def _each(addresses: Sequence[str], function: Callable[[str], str], between: str = "") -> int:
    """Print what *function* makes of each address, and to standard error what it can't; return the exit status."""
    status, first = os.EX_OK, True
    for address in _lines(addresses):
        try:
            result = function(bare(address))
        except (_Refused, SrsError) as error:
            complain(f"{address or '<>'}: {error}")
            status = os.EX_DATAERR
            continue
        click.echo(("" if first else between) + printable_lines(result))
        first = False
    return status


def printable_lines(text: str) -> str:
    return "\n".join(map(printable, text.split("\n")))


def _lines(addresses: Sequence[str]) -> Iterator[str]:
    for address in addresses:
        if address != "-":
            yield address
            continue
        with click.open_file("-", encoding="utf-8", errors="surrogateescape") as lines:
            yield from filter(None, map(str.strip, lines))
