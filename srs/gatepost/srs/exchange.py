# SPDX-License-Identifier: GPL-3.0-or-later
"""The SRS form of Exchange Online, both ways: ``mailbox+SRS=hash=stamp=domain=user@srs_domain`` (S3, S4).

The hash is the start of an HMAC-SHA256 over mailbox, stamp, original domain, original user and SRS domain, in
base32. Each field is prefixed with its length, so that nothing can move from one to the next, and
ASCII-lower-cased, because receivers lower-case local parts (S8).
"""

from __future__ import annotations

import hmac
import re
from base64 import b32encode
from collections.abc import Iterable
from dataclasses import dataclass
from typing import NamedTuple, Optional

from .address import Address
from .errors import AddressError, AddressTooLong, Expired, HashMismatch, NotSrs
from .keys import Keys
from .stamp import PAIRS, age, stamp

MAX_ADDRESS_OCTETS = 254

# Not re.IGNORECASE, which would take the long s (U+017F) for an s.
_MARK = re.compile(r"\+[Ss][Rr][Ss]=").search

_LOWER_PAIRS = [pair.lower() for pair in PAIRS]
# The prefixes of fields of up to 64 octets, which their encoding and bytes.lower() leave as they are: no A to Z.
_PREFIXES = ["\0\0\0" + chr(octets) for octets in range(65)]


class Parts(NamedTuple):
    """The fields of an address that has the form, unverified; the compact form (S5) has no original."""

    mailbox: str
    hash: str
    stamp: str
    original: Optional[Address]


def split(local: str) -> Parts:
    """Split a local part at its first ``+SRS=``, whatever its case.

    The user is all that follows the domain, and may hold ``=``, ``+`` and ``+SRS=`` itself. Raises NotSrs,
    also for a space outside the user (S10). The characters of hash and stamp are for the caller to judge.
    """
    mark = _MARK(local)
    if mark is None:
        raise NotSrs("there is no +SRS= in the local part")
    start, end = mark.span()
    mailbox, fields = local[:start], local[end:].split("=", 3)
    if len(fields) not in (2, 4):
        raise NotSrs("the fields behind +SRS= are not hash, timestamp, domain and user")
    hash_, made = fields[:2]
    if not mailbox or not hash_ or " " in mailbox or " " in hash_:
        raise NotSrs("the mailbox or the hash is empty or holds a space")
    if len(fields) == 2:
        return Parts(mailbox, hash_, made, None)
    try:
        return Parts(mailbox, hash_, made, Address(fields[3], fields[2]))
    except AddressError as error:
        raise NotSrs(f"the original is no address: {error}") from None


@dataclass(frozen=True)
class Exchange:
    """The long form with these keys: it holds the original address, so that no stored state is needed.

    hash_length: 5 to 52 characters of 5 bits; addresses with another length are refused, also one's own from
    before a change. validity_days: 1 to 1000; a stamp of that age is good, an older one has expired. Stamps
    come again after 1,024 days: at 1000, those of the next 23 days are still told from old ones and refused.
    Raises ValueError.
    """

    keys: Keys
    hash_length: int = 8
    validity_days: int = 21

    def __post_init__(self) -> None:
        if not 5 <= self.hash_length <= 52:
            raise ValueError(f"hash_length {self.hash_length} is not 5 to 52")
        checked_validity(self.validity_days)

    def forward(self, original: Address, mailbox: str, srs_domain: str, day: int) -> Address:
        """Return the SRS address in *srs_domain* for *original*, which is a reverse-path and not null (S2).

        mailbox: who forwarded the mail, cut at its first delimiter, or ``bounces``. day: days since
        1970-01-01 UTC. The local part may pass 64 octets (RFC 5321, 4.5.3.1.1): the compact form that avoids
        it needs stored state (S5). Raises AddressTooLong where the whole passes 254 octets, quotes included;
        AddressError for a *srs_domain* that is none and a *mailbox* that is empty or holds ``+`` or a space.
        """
        if not mailbox or "+" in mailbox or " " in mailbox:
            raise AddressError("the forwarding mailbox is empty or holds a + or a space")
        made = stamp(day)
        hash_ = base32(self.keys.sign(_message(mailbox, made, original, srs_domain), day), self.hash_length)
        return checked_length(Address(f"{mailbox}+SRS={hash_}={made}={original.domain}={original.local}", srs_domain))

    def reverse(self, address: Address, day: int) -> Address:
        """Return the original of an SRS address, spelled as it stands in it.

        day: days since 1970-01-01 UTC. Raises NotSrs, also for the compact form; then HashMismatch; then
        Expired: whoever has no valid hash learns nothing about dates.
        """
        mailbox, hash_, made, original = split(address.local)
        if original is None:
            raise NotSrs("the compact form holds no original address")
        age_days = age(made, day)
        given, message = hash_.encode().lower(), _message(mailbox, made, original, address.domain)
        for mac in self.keys.macs:
            if hmac.compare_digest(given, base32(mac(message), self.hash_length).encode()):
                break
        else:
            raise HashMismatch("no key made this hash")
        if age_days > self.validity_days:
            raise Expired(f"the timestamp is older than {self.validity_days} days, or in the future")
        return original


def base32(digest: bytes, length: int) -> str:
    """Return the first *length* characters of *digest* in base32, in lower case."""
    if length > 8:
        return b32encode(digest)[:length].decode().lower()
    bits = int.from_bytes(digest[:5], "big")  # the usual 40: 300 ns where b32encode takes 800
    first, second = _LOWER_PAIRS[bits >> 30], _LOWER_PAIRS[bits >> 20 & 1023]
    return (first + second + _LOWER_PAIRS[bits >> 10 & 1023] + _LOWER_PAIRS[bits & 1023])[:length]


def checked_length(address: Address) -> Address:
    """Return *address*, made here. Raises AddressTooLong where it passes 254 octets, quotes included."""
    text = str(address)
    octets = len(text) if text.isascii() else len(text.encode())
    if octets > MAX_ADDRESS_OCTETS:
        raise AddressTooLong(f"the SRS address has {octets} octets, more than {MAX_ADDRESS_OCTETS}")
    return address


def checked_validity(days: int) -> None:
    """Raise ValueError for a validity that the two characters of a stamp cannot tell."""
    if not 1 <= days <= 1000:
        raise ValueError(f"validity_days {days} is not 1 to 1000")


def length_prefixed(fields: Iterable[bytes]) -> bytes:
    """Return the fields joined so that nothing can move from one to the next."""
    parts: list[bytes] = []
    for octets in fields:
        parts += (len(octets).to_bytes(4, "big"), octets)
    return b"".join(parts)


def _message(mailbox: str, made: str, original: Address, srs_domain: str) -> bytes:
    # bytes.lower() changes A to Z only.
    domain, local = original.domain, original.local
    try:
        joined = (
            f"{_PREFIXES[len(mailbox)]}{mailbox}{_PREFIXES[len(made)]}{made}{_PREFIXES[len(domain)]}{domain}"
            f"{_PREFIXES[len(local)]}{local}{_PREFIXES[len(srs_domain)]}{srs_domain}"
        )
        return joined.encode("ascii").lower()
    except (IndexError, UnicodeEncodeError):  # a long field, or one that is not ASCII; lone surrogates may pass:
        fields = (mailbox, made, domain, local, srs_domain)  # Address refuses them afterwards
        return length_prefixed([field.encode("utf-8", "surrogatepass").lower() for field in fields])
