# SPDX-License-Identifier: GPL-3.0-or-later
"""A message as a mail log tells of it."""

from __future__ import annotations

from collections.abc import Callable
from typing import NamedTuple, Optional

from gatepost.relay.names import MAX_DOMAIN

RECIPIENTS = 10_000
"""How many recipients of one message are kept."""
ALIAS = b""
"""Stands for an address of this host that the log does not name."""
_ADDED = 100
_RECIPIENT_BYTES = 150

Handler = Callable[[bytes, bytes, bytes], None]
"""Takes the text of a line, its time and host, and its tag with the process's number."""


class Origin(NamedTuple):
    """How a message came in, as the MTA has it.

    trusted: the client showed a certificate that the MTA trusts (R10); common_name, issuer, fingerprint: as far as the
    log says. local: by sendmail(1).
    """

    ip: str
    name: str
    trusted: bool = False
    common_name: str = ""
    issuer: str = ""
    fingerprint: str = ""
    authenticated: bool = False
    local: bool = False

    @property
    def unnamed(self) -> bool:
        """Tell whether the client showed a trusted certificate that the log says no more of."""
        return self.trusted and not self.common_name and not self.fingerprint


class Certificate(NamedTuple):
    """What a session's lines tell of the client's certificate."""

    trusted: bool = False
    common_name: str = ""
    issuer: str = ""
    fingerprint: str = ""


class Message:
    """A message with what is known of it. Times and addresses are the log's octets.

    origin: None where no line says who sent it; made_here: for none did, the MTA made it (a bounce, a forwarded copy).
    sender: P1, None unknown. outcomes: by address as it was delivered to; given: what the client named, where that
    differs. kept: recipients, as the client named them, that got nothing: the MTA did not take them ("rejected"), lost
    the message ("discarded"), or has it in its hold queue ("held"). added: recipients that the MTA's own tables add
    (BCC). received: its content has come. hop: it came back from a filter, or goes on as another message. whole: no
    line of it is missing. denied: the next hop refused a recipient with 5.7.64; about_denied: it is the NDR about that.
    """

    __slots__ = (
        "about_denied",
        "added",
        "denied",
        "given",
        "hop",
        "kept",
        "made_here",
        "origin",
        "outcomes",
        "queue_id",
        "received",
        "sender",
        "size_bytes",
        "taken",
        "time",
        "weight",
        "whole",
    )

    def __init__(self, queue_id: str, time: bytes, origin: Optional[Origin] = None) -> None:
        self.queue_id = queue_id
        self.time = time
        self.origin = origin
        self.made_here = False
        self.sender: Optional[bytes] = None
        self.size_bytes = 0
        self.taken = 0  # recipients, as the queue counts them
        self.outcomes: dict[bytes, str] = {}
        self.given: Optional[dict[bytes, bytes]] = None
        self.kept: dict[bytes, str] = {}
        self.added: tuple[bytes, ...] = ()
        self.received = False
        self.hop = self.denied = self.about_denied = False
        self.whole = False
        self.weight = 0  # bytes, roughly

    def outcome(self, address: bytes, given: Optional[bytes], outcome: str) -> int:
        """Take note of a delivery; return by how much the message has grown, in bytes."""
        if address in self.outcomes:
            self.outcomes[address] = outcome
            return 0
        if len(self.outcomes) >= RECIPIENTS:
            return 0
        self.outcomes[address] = outcome
        grown = _RECIPIENT_BYTES + len(address)
        if given is not None and given != address:
            if self.given is None:
                self.given = {}
            self.given[address] = given
            grown += _RECIPIENT_BYTES + len(given)
        return grown

    def keep(self, address: bytes, outcome: str) -> int:
        """Take note of a recipient that got nothing; return by how much the message has grown, in bytes."""
        if address in self.kept or len(self.kept) >= RECIPIENTS:
            return 0
        self.kept[address] = outcome
        return _RECIPIENT_BYTES + len(address)

    def add(self, address: bytes) -> int:
        """Take note of a recipient that no client named; return by how much the message has grown, in bytes."""
        if len(self.added) >= _ADDED:
            return 0
        self.added += (address,)
        return _RECIPIENT_BYTES + len(address)

    def recipients(self) -> dict[bytes, tuple[str, bytes]]:
        """Return the recipients as the client named them, each with its outcome and an address that it became."""
        if self.given is None:
            found = {address: (outcome, address) for address, outcome in self.outcomes.items()}
        else:
            found = {}
            for address, outcome in self.outcomes.items():
                found.setdefault(self.given.get(address, address), (outcome, address))
        for address in self.added:
            found.pop(address, None)
        for address, outcome in self.kept.items():
            found.setdefault(address, (outcome, address))
        return found


def text(octets: bytes) -> str:
    """Decode what a log says; odd bytes survive."""
    return octets.decode("utf-8", "surrogateescape")


def name_text(octets: bytes) -> str:
    """Decode a name of a client, which has to be remembered: no longer than a domain name may be."""
    return text(octets[:MAX_DOMAIN])


def loopback(ip: str) -> bool:
    """Tell whether *ip* is this host's own."""
    return ip.startswith("127.") or ip == "::1"


def known(message: Message) -> bool:
    """Tell whether a message's beginning is in the log."""
    return (message.origin is not None or message.made_here) and message.sender is not None
