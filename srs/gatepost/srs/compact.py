# SPDX-License-Identifier: GPL-3.0-or-later
"""The compact form of SRS addresses, ``bounces+SRS=token=stamp@srs_domain`` (S5): their maker keeps the originals.

The token is the start of an HMAC-SHA256 over stamp, original address and SRS domain, so that the same sender has the
same address all day, and no row of the store is believed that does not belong to the address.
"""

from __future__ import annotations

import hmac
import re
from base64 import b32encode
from dataclasses import dataclass

from .address import Address
from .errors import Expired, HashMismatch, NotSrs
from .exchange import checked_length, checked_validity, length_prefixed, split
from .keys import Keys
from .stamp import age, stamp

MAILBOX = "bounces"
TOKEN_LENGTH = 16
_TOKEN_OCTETS = TOKEN_LENGTH * 5 // 8
_TOKEN = re.compile(f"[A-Za-z2-7]{{{TOKEN_LENGTH}}}")
# No message of the long form begins so: there, the length of the mailbox comes first.
_VERSION = b"compact"


@dataclass(frozen=True)
class Compact:
    """The compact form with these keys. validity_days: 1 to 1000, as for Exchange. Raises ValueError."""

    keys: Keys
    validity_days: int = 21

    def __post_init__(self) -> None:
        checked_validity(self.validity_days)

    def forward(self, original: Address, srs_domain: str, day: int) -> Address:
        """Return the SRS address in *srs_domain* that stands for *original*, a reverse-path and not null (S2).

        It is good for nothing until `token` of it leads to *original* in the store, for validity_days. day: days since
        1970-01-01 UTC. Raises AddressError for a *srs_domain* that is none; AddressTooLong where it is very long.
        """
        made = stamp(day)
        token = _token(self.keys.sign(_message(made, original, srs_domain), day)).decode()
        return checked_length(Address(f"{MAILBOX}+SRS={token}={made}", srs_domain))

    def token(self, address: Address) -> str:
        """Return the token of a compact address in lower case; nothing is verified.

        Raises NotSrs for everything else, also for Exchange Online's own compact addresses, with 5 characters of hash.
        """
        return self._split(address)[0]

    def verify(self, address: Address, original: Address, day: int) -> None:
        """Check that a compact address was made here for *original*, which the store gave for its token.

        day: days since 1970-01-01 UTC. Raises NotSrs; then HashMismatch; then Expired.
        """
        token, made = self._split(address)
        given = token.encode()
        message = _message(made, original, address.domain)
        if not any(hmac.compare_digest(given, _token(digest)) for digest in self.keys.digests(message)):
            raise HashMismatch("no key made this token for this original")
        if age(made, day) > self.validity_days:
            raise Expired(f"the timestamp is older than {self.validity_days} days, or in the future")

    def _split(self, address: Address) -> tuple[str, str]:
        parts = split(address.local)
        if parts.original is not None or parts.mailbox.lower() != MAILBOX or not _TOKEN.fullmatch(parts.hash):
            raise NotSrs(f"not the compact form: {MAILBOX}+SRS=, {TOKEN_LENGTH} characters of A-Z and 2-7, timestamp")
        age(parts.stamp, 0)  # raises NotSrs for no stamp
        return parts.hash.lower(), parts.stamp.upper()


def _token(digest: bytes) -> bytes:
    return b32encode(digest[:_TOKEN_OCTETS]).lower()


def _message(made: str, original: Address, srs_domain: str) -> bytes:
    fields = (made, original.domain, original.local)
    octets = [field.encode("utf-8", "surrogatepass") for field in fields]
    # The original in its exact case, which the store keeps; the SRS domain as any receiver may write it.
    return _VERSION + length_prefixed([*octets, srs_domain.encode("utf-8", "surrogatepass").lower()])
