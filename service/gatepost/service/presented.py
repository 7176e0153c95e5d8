# SPDX-License-Identifier: GPL-3.0-or-later
"""What policyd tells the milter, of each RCPT: the fingerprint of the certificate that its client came with.

A table that every worker maps, one place for each client's address and port. Postfix asks policyd about a RCPT before
it passes that to milters. A report counts for that MAIL, RCPT, CN, issuer and server only, once, for a minute; each
replaces the one before it, "no certificate" too, for a source port can come again with another client behind it. What
is lost costs the names in a certificate's SAN, never more than that. Where policyd has reported on a client, but not on
this RCPT as the milter has it, the CN alone counts: to write an address so that both read it differently must not make
one certificate pass for another with its CN.
"""

from __future__ import annotations

from pathlib import Path
from typing import Optional

from gatepost.service.certificates import UNKNOWN, Shown
from gatepost.service.slots import Slots, octets_for

SLOTS = 1 << 14
MAX_AGE_S = 60
_MATTER_OCTETS = 16
_FINGERPRINT_OCTETS = 64
_LAST = ""
"""The key under which the table has when a certificate was reported last, of whomever."""


class Presented:
    """The table in *path*, made where it does not exist; no path: of this process alone. Raises OSError."""

    def __init__(self, path: Optional[Path]) -> None:
        self._slots = Slots(path, SLOTS, _MATTER_OCTETS + 1 + _FINGERPRINT_OCTETS)
        self._none = bytes(_MATTER_OCTETS + 1 + _FINGERPRINT_OCTETS)
        if self._slots.get(_LAST) is None:  # in an empty table it gets, and keeps, the place that is looked at first
            self._slots.put(_LAST, self._none, 0.0)

    def report(self, client: str, matter: str, fingerprint: str, now: float) -> None:
        """Note what *client* came with; *fingerprint* in hexadecimal. See `client`, `matter`."""
        try:
            octets = bytes.fromhex(fingerprint.replace(":", ""))[:_FINGERPRINT_OCTETS]
        except ValueError:
            octets = b""
        about = octets_for(matter, _MATTER_OCTETS)
        self._slots.put(_LAST, self._none, now)
        self._slots.put(client, about + bytes([len(octets)]) + octets.ljust(_FINGERPRINT_OCTETS, b"\0"), now)

    def report_none(self, client: str, now: float) -> None:
        """Note that *client* came without a certificate. Cheap where nobody has come with one for a while."""
        last = self._slots.get(_LAST)
        if last is not None and abs(now - last[1]) <= MAX_AGE_S:
            self._slots.put(client, self._none, now)

    def take(self, client: str, matter: str, now: float) -> str:
        """Return the fingerprint that was reported for *matter* and forget it.

        "" where the MTA did not tell it, or nothing was reported of *client*; UNKNOWN where only something else was.
        """
        found = self._slots.get(client)
        if found is None or abs(now - found[1]) > MAX_AGE_S:
            return ""
        about, length = found[0][:_MATTER_OCTETS], found[0][_MATTER_OCTETS]
        if about != octets_for(matter, _MATTER_OCTETS):
            return UNKNOWN
        self._slots.put(client, self._none, now)
        return found[0][_MATTER_OCTETS + 1 :][:length].hex(":").upper()


def client(ip: str, port: str) -> str:
    """Return the key of a client."""
    return f"{ip} {port}"


def server(ip: str, port: str) -> str:
    """Return where the client is connected to, as Postfix tells it since 3.2; both are "" before."""
    return f"{ip} {port}"


def matter(reverse_path: str, rcpt: str, shown: Shown, at: str) -> str:
    """Return what a report is about; addresses as `hops.policyd_key` has them. at: the `server`.

    Another smtpd may not ask policyd, and the same client address and port can be connected to it.
    """
    return "\0".join((reverse_path.lower(), rcpt.lower(), shown.cn, shown.issuer, at))
