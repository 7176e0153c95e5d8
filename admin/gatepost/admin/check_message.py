# SPDX-License-Identifier: GPL-3.0-or-later
"""Reads from a message what `gatepost check` is not told by options, and says what it took from where."""

from __future__ import annotations

import ipaddress
import itertools
import re
import sys
from collections.abc import Sequence
from email.message import Message
from email.parser import BytesHeaderParser
from pathlib import Path
from typing import BinaryIO, NamedTuple, Optional

import click

from gatepost.admin.check_model import Question
from gatepost.admin.configuration import unreadable
from gatepost.admin.srs_commands import bare
from gatepost.milter.transaction import header_addresses

_RECIPIENT_HEADERS = ("X-Original-To", "Delivered-To")
_ADDRESS = re.compile(r"(?<!helo=)[\[(](?:IPv6:)?([0-9A-Fa-f.:]+)[\])]")
_FROM = re.compile(r"\s*from\s+(\S+)", re.IGNORECASE)
_VERIFIED = re.compile(r"\(([\w.-]+) \[")
_HELO = re.compile(r"\bhelo=([^\s)]+)", re.IGNORECASE)
_BY = re.compile(r"\bby\s+([\w.-]+)", re.IGNORECASE)
_LOCAL = re.compile(r"\(Postfix, from userid \d+\)")
_AUTHENTICATED = re.compile(r"\bwith\s+(?:UTF8)?E?SMTPS?A\b")
_CERTIFICATE = re.compile(r'\(Client CN "([^"]+)", Issuer "[^"]*" \(verified OK\)\)')


class Hop(NamedTuple):
    """What a Received header tells.

    number: its place from the top, from 1. by: who wrote it. certificate: a CN. itself: the client is that host, by the
    name of its address, not by HELO, which may say anything.
    """

    number: int
    by: str
    ip: str
    helo: str
    authenticated: bool
    certificate: str
    itself: bool


def completed(question: Question, file: str, here: Sequence[str], *, mail_from_given: bool) -> Question:
    """Return *question* with what it lacks from the message in *file*, "-" for standard input.

    here: the names of this host. Raises click.UsageError where the message lacks it too.
    """
    message = _read(file)
    question = _with_client(question, message, here)
    if not question.header_from:
        values = tuple(map(str, message.get_all("From", ())))
        shown = ", ".join(header_addresses(values)) or "none"
        question = _taking(question, f"P2 {shown}, from the header From", header_from=values)
    if not mail_from_given:
        reverse_path = message.get("Return-Path")
        if reverse_path is None:
            raise click.UsageError(f"{file}: there is no header Return-Path, so P1 is not known; give --mail-from")
        p1 = bare(str(reverse_path))
        question = _taking(question, f"P1 {p1 or '<>'}, from the header Return-Path", mail_from=p1)
    if not question.recipients:
        names, recipients = _recipients(message)
        if not recipients:
            raise click.UsageError(f"{file}: no header names a recipient; give --rcpt")
        question = _taking(question, f"recipients from the header {names}", recipients=recipients)
    return question


def _read(file: str) -> Message:
    try:
        if file == "-":
            message = read_headers(sys.stdin.buffer)
        else:
            with Path(file).open("rb") as stream:
                message = read_headers(stream)
    except OSError as error:
        unreadable(file, error)
    if not message.keys():
        raise click.UsageError(f"{file}: is no message: it begins with no header")
    return message


def read_headers(stream: BinaryIO) -> Message:
    """Read to the blank line only: a message may be large."""
    lines = itertools.takewhile(lambda line: line.strip(b"\r\n"), stream)
    return BytesHeaderParser().parsebytes(b"".join(lines))


def _taking(question: Question, what: str, **fields: object) -> Question:
    return question._replace(taken=(*question.taken, f"{what}."), **fields)  # type: ignore[arg-type]


def _recipients(message: Message) -> tuple[str, tuple[str, ...]]:
    """Return the recipients and by which header: what a delivering host notes before what the author wrote."""
    for name in _RECIPIENT_HEADERS:
        values = tuple(dict.fromkeys(bare(str(value)) for value in message.get_all(name, ())))
        if values:
            return name, values
    found = [(name, header_addresses(list(map(str, message.get_all(name, ()))))) for name in ("To", "Cc")]
    addresses = dict.fromkeys(address for _, addresses in found for address in addresses if "@" in address)
    return " and ".join(name for name, addresses in found if addresses), tuple(addresses)


def _with_client(question: Question, message: Message, here: Sequence[str]) -> Question:
    """Take the client from the Received header in which the host *here* noted who handed it the message."""
    if question.ip is not None:
        return question
    received = list(map(str, message.get_all("Received", ())))
    hops = _hops(received)
    hop = next((hop for hop in hops if _is_host(hop.by, here)), hops[0] if hops else None)
    if hop is None and received and _LOCAL.search(received[-1]):
        return _taking(question, f"client sendmail(1) on this host, from Received header {len(received)}", local=True)
    if hop is None:
        return _taking(question, "no client: no header Received names an address but loopback; --ip gives one")
    what = [f"client {hop.ip}"]
    fields: dict[str, object] = {"ip": hop.ip}
    if hop.helo and question.helo is None:
        what.append(f"HELO {hop.helo}")
        fields["helo"] = hop.helo
    if hop.certificate and not question.certificate_names:
        what.append(f"certificate {hop.certificate}")
        fields["certificate_names"] = (hop.certificate,)
    if hop.authenticated:
        what.append("authenticated")
        fields["authenticated"] = True
    text = f"{', '.join(what)}, from Received header {hop.number}, written by {hop.by or 'a host without name'}"
    if not _is_host(hop.by, here):
        text += f" (none is by this host, {here[0]}; if that is not the host that you ask about, give --ip)"
    return _taking(question, text, **fields)


def _is_host(name: str, here: Sequence[str]) -> bool:
    return any(name.lower() == host.lower() or name.lower().startswith(f"{host.lower()}.") for host in here)


def _hops(received: Sequence[str]) -> list[Hop]:
    """Return what the Received headers tell, the last hop first, without those by which a host got it from itself."""
    hops = [_hop(number, " ".join(value.split())) for number, value in enumerate(received, start=1)]
    return [hop for hop in hops if hop is not None and not hop.itself]


def _hop(number: int, value: str) -> Optional[Hop]:
    """Read a Received header (RFC 5321, 4.4) of Postfix, Sendmail, Exim or Exchange; None: no client is in it."""
    origin, _, rest = value.partition(" by ")
    # The last one: Postfix writes the HELO name, which may look like an address, before the address.
    ip = next(filter(None, map(_client_address, reversed(_ADDRESS.findall(origin)))), None)
    if ip is None:
        return None
    by = _found(_BY, f"by {rest}")
    return Hop(
        number=number,
        by=by,
        ip=ip,
        helo=_found(_HELO, origin) or _found(_FROM, origin).strip("[]"),
        authenticated=_AUTHENTICATED.search(rest) is not None,
        certificate=_found(_CERTIFICATE, value),
        itself=by.lower() in map(str.lower, _VERIFIED.findall(origin)[-1:]),
    )


def _found(pattern: re.Pattern[str], text: str) -> str:
    found = pattern.search(text)
    return found[1] if found else ""


def _client_address(text: str) -> Optional[str]:
    try:
        address = ipaddress.ip_address(text)
    except ValueError:
        return None
    return None if address.is_loopback else str(address)
