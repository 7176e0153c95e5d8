# SPDX-License-Identifier: GPL-3.0-or-later
"""The SRS secret and SRS addresses by hand: `gatepost srs init`, `forward`, `reverse` and `inspect`."""

from __future__ import annotations

import os
import time
from collections.abc import Iterator, Sequence
from datetime import date, datetime, timezone
from pathlib import Path
from typing import TYPE_CHECKING, Callable, Optional
from urllib.parse import unquote

import click

from gatepost.admin.configuration import (
    become_owner,
    complain,
    open_store,
    printable,
    problems_reported,
    resign_ownership,
    secret_missing,
    store_error,
)
from gatepost.relay import Organization, Patterns
from gatepost.service import rewriting
from gatepost.service.addresses import domain_of, parse_address
from gatepost.service.config import load
from gatepost.service.reversal import Bounce, day, ours
from gatepost.service.reversal import reverse as reverse_address
from gatepost.service.rewriting import BOUNCES, Egress
from gatepost.service.secret import ensure_secret
from gatepost.service.snapshot import Snapshot, load_snapshot, srs_domain_of
from gatepost.service.srs_config import COMPACT, Format
from gatepost.service.tables import ConfigError
from gatepost.srs import Address, AddressError, Inspection, NotSrs, SrsError
from gatepost.srs import inspect as inspect_address
from gatepost.srs.compact import TOKEN_LENGTH
from gatepost.srs.stamp import PERIOD_DAYS

if TYPE_CHECKING:
    from gatepost.service.store import Store

_OLDEST_DAYS = 1000
"""What srs.validity_days may be at most."""


class _Refused(Exception):  # noqa: N818
    """An address has no result; the text says why."""


def unix_time(at: Optional[datetime]) -> int:
    """Return the beginning of the day *at* (UTC), or the present time, in Unix seconds."""
    return int(at.replace(tzinfo=timezone.utc).timestamp() if at else time.time())


def bare(text: str) -> str:
    """Return an address without the angle brackets that a log or a transcript puts around it."""
    text = text.strip()
    return text[1:-1] if text.startswith("<") and text.endswith(">") else text


def init(path: Path) -> None:
    """Make the SRS secret (0640) unless there is one, for the owner of the state directory."""
    with problems_reported():
        config = load(path)
        file = config.srs.secret_file
        become_owner(config)
        try:
            made = ensure_secret(file, 0o640)
        finally:
            resign_ownership()
    if made:
        text = f"Made a new SRS secret in {file}. Keep a copy of it: bounces of rewritten mail need it."
    else:
        text = f"{file}: there is an SRS secret already, and it stays as it is."
    click.echo(printable(text))


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
    _note(snapshot, forwarder, organization)
    now = unix_time(at)
    store = open_store(snapshot.config)

    def rewritten(address: str) -> str:
        if not address:
            raise _Refused("the null sender is never rewritten")
        if "@" not in address:
            raise _Refused("has no domain")
        if rewriting.leaving(snapshot, address) is Egress.OUT:
            domain = domain_of(address)
            if ours(snapshot, domain):
                raise _Refused(f"is never rewritten: {domain} is a domain of this host's organizations")
            raise _Refused(f"is never rewritten: {left_out(snapshot, domain)}")
        if forwarder:
            made = rewriting.forwarded(snapshot, address, forwarder, now)
        else:
            made = rewriting.relayed(snapshot, address, organization, now)
        if made.token:
            store.stored(made.token, made.original, made.expires_day)
        return made.address

    return _each(addresses, rewritten)


def _note(snapshot: Snapshot, forwarder: Optional[Address], organization: Optional[Organization]) -> None:
    """Say on standard error where the daemons may leave a sender alone that is rewritten here."""
    accepted = snapshot.rules.accepted(forwarder.domain) if forwarder else None
    whose = accepted.organization if accepted else organization or snapshot.default_organization
    if not snapshot.enforces(whose):
        complain("note: in mode monitor the daemons rewrite nothing")
    if snapshot.config.srs.only_spf:
        complain(
            "note: with srs.only_spf the daemons rewrite only where the domain publishes an SPF record that does not"
            " cover srs.outgoing_addresses; no DNS is asked here"
        )


def left_out(snapshot: Snapshot, domain: Optional[str]) -> str:
    """Return why senders in *domain*, in normal form, are not rewritten: by which key of [srs], as a rule."""
    srs = snapshot.config.srs
    if domain and Patterns(srs.exclude[: srs.exclude_listed]).match(domain):
        return f"{domain} is in srs.exclude"
    if domain and snapshot.exclude.match(domain):
        return f"{domain} is in srs.exclude_file"
    if snapshot.include is None or (domain and snapshot.include.match(domain)):
        return "no SRS address can hold it, so Exchange Online is to rewrite it"
    given = {"srs.include": bool(srs.include_listed), "srs.include_file": srs.include_file is not None}
    return f"{domain or 'the domain'} is not in {' or '.join(key for key, is_given in given.items() if is_given)}"


def _mailbox(snapshot: Snapshot, text: str) -> Address:
    """Return the mailbox that forwards, as `rewriting.forwarder` does for one that Postfix names."""
    try:
        address = Address.parse(bare(text))
    except AddressError as error:
        raise click.UsageError(f"--mailbox {text}: {error}") from error
    domain = domain_of(bare(text)) or ""
    if snapshot.rules.accepted(domain) is None:
        raise click.UsageError(f"--mailbox {text}: {address.domain} is no accepted domain, so it forwards nothing here")
    return Address(address.local.partition("+")[0] or address.local, domain)


def reverse(path: Path, addresses: Sequence[str], at: Optional[datetime]) -> int:
    """Print the original sender of each of *addresses*; return the exit status."""
    with problems_reported():
        snapshot = load_snapshot(path)
    now = unix_time(at)
    store = open_store(snapshot.config)

    def original(address: str) -> str:
        reversal = reverse_address(snapshot, address, now, store.found)
        if reversal.bounce is not Bounce.ORIGINAL:
            raise _Refused(verdict(snapshot, reversal.bounce, address, now))
        return reversal.original

    return _each(addresses, original)


def verdict(snapshot: Snapshot, bounce: Bounce, address: str, now: int) -> str:
    """Return in words what *address* is, which is not reversed."""
    domain = domain_of(address) or ""
    if bounce is Bounce.UNKNOWN:
        return (
            "no original: the store does not know its token; it is forged, mistyped, long expired, or of a host with"
            " another store"
        )
    if bounce is Bounce.FORGED:
        return _wrong_hash(snapshot, address, now)
    if bounce is Bounce.EXPIRED:
        return _expired(snapshot, address, now)
    if bounce is Bounce.NOT_SRS:
        return _not_reversed(snapshot, address, now)
    accepted = snapshot.rules.accepted(domain)
    if accepted is None:
        return f"somebody else's SRS address: {domain} is no accepted domain and no srs_domain here"
    srs_domain = srs_domain_of(snapshot.config, accepted.organization, accepted.accepted_domain.domain)
    if srs_domain is None:
        return "somebody else's SRS address, or forged: no key here made it (in mode monitor this host makes none)"
    return f"somebody else's SRS address: no key here made it, and this host makes its own in {srs_domain}"


def _wrong_hash(snapshot: Snapshot, address: str, now: int) -> str:
    shortest = snapshot.config.srs.srs0.hash_minimum
    try:
        found = _inspected(address, now)
    except SrsError:  # the mailbox in front of +SRS= looks like SRS0
        found = None
    if found and _format(found) == Format.SRS0.value and len(found.hash) < shortest:
        return f"wrong hash: the hash has {len(found.hash)} characters, srs.srs0.hash_minimum is {shortest}"
    return "wrong hash: no key here made it; it is forged, mistyped, or of another system such as Exchange Online"


def _expired(snapshot: Snapshot, address: str, now: int) -> str:
    try:
        age = _age(_inspected(address, now), day(now))
    except SrsError:  # as above
        return f"expired, or from the future: srs.validity_days is {snapshot.config.srs.validity_days}"
    if not 0 <= age <= _OLDEST_DAYS:
        ahead = -age % PERIOD_DAYS
        return f"from the future: its timestamp is {_days(ahead)} ahead (or {PERIOD_DAYS - ahead:,} days back)"
    return f"expired: it is {_days(age)} old, and srs.validity_days is {snapshot.config.srs.validity_days}"


def _not_reversed(snapshot: Snapshot, address: str, now: int) -> str:
    try:
        found = _inspected(address, now)
    except SrsError as error:
        return f"{error} (brought back here: {_forms(snapshot)})"
    form = _format(found)
    if form == COMPACT and len(found.hash) != TOKEN_LENGTH:
        return "compact form of another system: its original is in that system's store"
    if not snapshot.config.srs.reverses(form):
        return f'of the format {form}, which this host does not bring back; srs.also_reverse = ["{form}"] would'
    return f"no SRS address that can be reversed here ({_forms(snapshot)})"


def _format(found: Inspection) -> str:
    """Return the name that srs.also_reverse has for the form of an address."""
    return {"long": Format.EXCHANGE.value, "compact": COMPACT}.get(found.form, Format.SRS0.value)


def _inspected(text: str, now: int) -> Inspection:
    """Take an address apart, with %2B and %3D for + and = as well (`reversal.reverse`). Raises SrsError."""
    if not text:
        raise NotSrs("the null sender, no SRS address")
    if "@" not in text:
        raise NotSrs('"@domain" is missing')
    address = parse_address(text)
    for local in (address.local, unquote(address.local)):
        try:
            return inspect_address(Address(local, address.domain), day(now))
        except NotSrs as error:
            why = error
    raise NotSrs(f"no SRS address: {why}")


def _forms(snapshot: Snapshot) -> str:
    """Return what an address that is reversed here looks like."""
    srs = snapshot.config.srs
    shapes = {
        Format.EXCHANGE.value: "mailbox+SRS=hash=timestamp=domain=user@domain",
        Format.SRS0.value: "SRS0=hash=timestamp=domain=user@domain",
        COMPACT: "bounces+SRS=token=timestamp@domain",
    }
    return ", ".join(shape for form, shape in shapes.items() if srs.reverses(form))


def inspect(path: Path, addresses: Sequence[str], at: Optional[datetime]) -> int:
    """Print each of *addresses* field by field; return the exit status."""
    with problems_reported():
        snapshot, unchecked = _snapshot_if_any(path)
    now = unix_time(at)
    store = open_store(snapshot.config) if snapshot else None

    def fields(text: str) -> str:
        found = _inspected(text, now)
        state = _state(snapshot, store, text, now) if snapshot and store else f"not checked: {unchecked}"
        return _block(text, found, state, day(now))

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


def _state(snapshot: Snapshot, store: Store, text: str, now: int) -> str:
    try:
        reversal = reverse_address(snapshot, text, now, store.found)
    except store_error() as error:
        return f"not checked: the store cannot be asked: {error}"
    if reversal.bounce is Bounce.ORIGINAL:
        return f"made here, the hash is right and it has not expired: bounces to it go to {reversal.original}"
    if reversal.bounce is Bounce.EXPIRED:
        return "made here, the hash is right, but " + verdict(snapshot, reversal.bounce, text, now)
    return verdict(snapshot, reversal.bounce, text, now)


_FORMS = {
    "long": "exchange, long (original in the address)",
    "compact": "compact (original kept in a store)",
    "SRS0": "SRS0, the classic form (original in the address)",
    "SRS1": "SRS1, the classic form of a second forwarder (leads to the SRS0 address of the first)",
}


def _block(text: str, found: Inspection, state: str, today: int) -> str:
    rows = [("form", _FORMS[found.form])]
    if found.mailbox:
        whose = ", of relayed mail" if found.mailbox.lower() == BOUNCES else ", which forwarded the mail"
        rows.append(("mailbox", found.mailbox + whose))
    rows.append(("hash", f"{found.hash} ({len(found.hash)} characters)"))
    if found.first_host:
        rows.append(("first host", f"{found.first_host}, to which bounces go on"))
    if found.stamp:
        when = f"{found.date}, {_ago(found, today)} (or 1,024 days before, and so on)"
        rows.append(("timestamp", f"{found.stamp} = {when}"))
    original = "not in the address"
    if found.original_domain is not None:
        original = str(Address(found.original_user or "", found.original_domain))
    rows += [("original", original), ("SRS domain", found.srs_domain), ("state", state)]
    return "\n".join([text, *(f"  {name:<11} {value}" for name, value in rows)])


def _ago(found: Inspection, today: int) -> str:
    age = _age(found, today)
    return {-1: "tomorrow", 0: "today", 1: "yesterday"}.get(age, f"{age} days ago")


def _age(found: Inspection, today: int) -> int:
    return today - (date.fromisoformat(found.date) - date(1970, 1, 1)).days


def _days(number: int) -> str:
    return f"{number} day{'' if number == 1 else 's'}"


def _each(addresses: Sequence[str], function: Callable[[str], str], between: str = "") -> int:
    """Print what *function* makes of each address, and to standard error what it can't; return the exit status.

    For a line of standard input that has no result a line is left empty, so that the results stand beside their lines;
    not so where the results have several lines, with *between* them.
    """
    status, first = os.EX_OK, True
    for address, is_line in _lines(addresses):
        try:
            result = function(bare(address)) if address or not is_line else ""
        except (_Refused, SrsError, store_error()) as error:
            complain(f"{address or '<>'}: {error}")
            status, result = os.EX_DATAERR, ""
        if result or (is_line and not between):
            click.echo(("" if first else between) + printable_lines(result))
            first = False
    return status


def printable_lines(text: str) -> str:
    return "\n".join(map(printable, text.split("\n")))


def _lines(addresses: Sequence[str]) -> Iterator[tuple[str, bool]]:
    """Yield each address, and whether it is a line of standard input."""
    for address in addresses:
        if address != "-":
            yield address, False
            continue
        with click.open_file("-", encoding="utf-8", errors="surrogateescape") as lines:
            yield from ((line.strip(), True) for line in lines)
