# SPDX-License-Identifier: GPL-3.0-or-later
"""The SRS0 and SRS1 form of Mail::SRS, libsrs2, pysrs and postsrsd, both ways, given the same secret.

``SRS0=hash=stamp=domain=user@srs_domain`` for a sender, and where the sender is such an address of another host
already, ``SRS1=hash=first_host==hash=stamp=domain=user@srs_domain``, which goes back to that first host at once.
"""

from __future__ import annotations

import hmac
import re
from binascii import b2a_base64
from dataclasses import dataclass, field
from typing import NamedTuple, Union

from .address import Address
from .errors import AddressError, Expired, HashMismatch, NotSrs
from .exchange import checked_length, checked_validity
from .keys import Keys
from .stamp import age, stamp

SEPARATORS = "=+-"
WHOLE_HASH = 27
"""Characters of a SHA-1 in base64 without its padding."""

# Not re.IGNORECASE, which would take the long s (U+017F) for an s.
_TAG = re.compile(r"[Ss][Rr][Ss][01][=+-]").match
_TAG_LENGTH = 4

# Hashes are compared without case, which receivers change (S8), and with both alphabets of base64 as one.
_FOLD = bytes.maketrans(b"ABCDEFGHIJKLMNOPQRSTUVWXYZ-_", b"abcdefghijklmnopqrstuvwxyz+/")


class Srs0(NamedTuple):
    """The fields of an SRS0 local part as written, unverified."""

    hash: str
    stamp: str
    domain: str
    user: str


class Srs1(NamedTuple):
    """The fields of an SRS1 local part as written, unverified; *rest* follows ``SRS0`` at the first host."""

    hash: str
    first_host: str
    rest: str


def is_tagged(local: str) -> bool:
    """Return whether a local part begins with SRS0 or SRS1 in any case and any of the three separators."""
    return _TAG(local) is not None


def split(local: str) -> Union[Srs0, Srs1]:
    """Split a local part that begins with SRS0 or SRS1; the last field may hold ``=``. Raises NotSrs."""
    fields = _fields(local)
    return Srs1(*fields) if len(fields) == 3 else Srs0(*fields)


def _fields(local: str) -> list[str]:
    """Return the four fields of an SRS0 local part, the three of an SRS1. Raises NotSrs."""
    if _TAG(local) is None:
        raise NotSrs("the local part does not begin with SRS0 or SRS1 and a separator")
    if local[3] == "1":
        return _fields_of_srs1(local)
    fields = local[_TAG_LENGTH + 1 :].split("=", 3)
    if len(fields) != 4 or "" in fields:
        raise NotSrs("the fields behind SRS0 are not hash, timestamp, domain and user")
    return fields


def _fields_of_srs1(local: str) -> list[str]:
    fields = local[_TAG_LENGTH + 1 :].split("=", 2)
    if len(fields) != 3 or "" in fields:
        raise NotSrs("the fields behind SRS1 are not hash, first host and the rest of its SRS0")
    return fields


def wrapped(parts: Union[Srs0, Srs1]) -> Address:
    """Return the address that the fields stand for: the original, or for SRS1 the first host's SRS0. Raises NotSrs."""
    if isinstance(parts, Srs1):
        return _address("SRS0" + parts.rest, parts.first_host)
    return _address(parts.user, parts.domain)


def _address(written: str, domain: str) -> Address:
    """Return the address with a local part in its written form; one that lacks its quotes is taken, too."""
    try:
        return Address.parse(f"{written}@{domain}") if written.startswith('"') else Address(written, domain)
    except AddressError as error:
        raise NotSrs(f"the SRS address stands for no address: {error}") from None


def _written(address: Address) -> str:
    """Return the local part as SMTP has it, with its quotes where it needs them."""
    return str(address)[: -len(address.domain) - 1]


@dataclass(frozen=True)
class Classic:
    """SRS0 and SRS1 with these keys; the text layer takes and gives what the other implementations do.

    Weaker than the Exchange Online form, as compatibility demands: the HMAC is of SHA-1 and the hash usually short. Its
    input is the fields joined without separators, so that the hash for ``otherdomain.com=test`` is good for
    ``otherdomain.co=mtest``, too, and for an SRS1 of the same letters. Neither case nor the SRS domain is covered.

    separator: ``=``, ``+`` or ``-``, written behind the tag; all three are read. hash_length: 4 to 27 characters of 6
    bits. hash_minimum: 4 to hash_length; a hash of that length up to 27 is taken if all of it is right, so that
    addresses from before a change of hash_length come back. validity_days: 1 to 1000, as for Exchange; SRS1 has no
    timestamp of its own. base64url: write ``-`` and ``_`` for ``+`` and ``/``, which some receivers refuse; both are
    read. Raises ValueError.
    """

    keys: Keys
    separator: str = "="
    hash_length: int = 4
    hash_minimum: int = 4
    validity_days: int = 21
    base64url: bool = False
    _sha1: Keys = field(init=False, repr=False, compare=False)

    def __post_init__(self) -> None:
        if self.separator not in tuple(SEPARATORS):
            raise ValueError(f'separator "{self.separator}" is not =, + or -')
        if not 4 <= self.hash_length <= WHOLE_HASH:
            raise ValueError(f"hash_length {self.hash_length} is not 4 to {WHOLE_HASH}")
        if not 4 <= self.hash_minimum <= self.hash_length:
            raise ValueError(f"hash_minimum {self.hash_minimum} is not 4 to hash_length, {self.hash_length}")
        checked_validity(self.validity_days)
        object.__setattr__(self, "_sha1", self.keys.using("sha1"))

    def forward(self, original: Address, srs_domain: str, day: int) -> Address:
        """Return the SRS address in *srs_domain* for *original*, which is a reverse-path and not null (S2).

        An address in *srs_domain* is returned as it is. The local part is signed in its written form, quotes and all,
        and quoted once more as a whole by str(); but one whose value begins with SRS0 or SRS1 becomes SRS1, however it
        was quoted. day: days since 1970-01-01 UTC. Raises AddressTooLong where the whole passes 254 octets;
        AddressError for an SRS1 without first host or user, and for a *srs_domain* that is none.
        """
        if _same(original.domain, srs_domain):
            return original
        if not is_tagged(original.local):
            return checked_length(Address(self._srs0(_written(original), original.domain, day), srs_domain))
        result = Address(self._srs1(original.local, original.domain, day), srs_domain)
        try:
            wrapped(split(result.local))
        except NotSrs as error:
            raise AddressError(str(error)) from None
        return checked_length(result)

    def reverse(self, address: Address, day: int) -> Address:
        """Return what an SRS address stands for: the original, or for SRS1 the SRS0 address at its first host.

        Where the user lacks quotes that it needs, the hash is tried with them, too: MTAs drop them from addresses that
        the other implementations have not quoted as a whole. Raises NotSrs, HashMismatch or Expired.
        """
        try:
            written, domain = self.reverse_text(address.local, day)
        except HashMismatch:
            parts = split(address.local)
            if isinstance(parts, Srs1):
                raise
            quoted = _written(wrapped(parts))
            if quoted == parts.user:
                raise
            written, domain = self.reverse_text(address.local[: -len(parts.user)] + quoted, day)
        return _address(written, domain)

    def forward_text(self, local: str, domain: str, srs_domain: str, day: int) -> str:
        """Return the local part of the SRS address in *srs_domain* for a written local part, quotes and all.

        That of an address in *srs_domain* is returned as it is. Nothing is checked that the others don't: the result
        need not be an address. Raises AddressError for no domain and for an SRS1 without first host or user.
        """
        if not domain:
            raise AddressError("the address has no domain")
        if _same(domain, srs_domain):
            return local
        return self._srs1(local, domain, day) if is_tagged(local) else self._srs0(local, domain, day)

    def reverse_text(self, local: str, day: int) -> tuple[str, str]:
        """Return the written local part and the domain that an SRS local part stands for.

        day: days since 1970-01-01 UTC. Raises NotSrs; then HashMismatch; then Expired.
        """
        fields = _fields(local)
        if len(fields) == 3:
            given, first_host, rest = fields
            self._verify(given, first_host + rest)
            return "SRS0" + rest, first_host
        given, made, domain, user = fields
        age_days = age(made, day)
        self._verify(given, made + domain + user)
        if age_days > self.validity_days:
            raise Expired(f"the timestamp is older than {self.validity_days} days, or in the future")
        return user, domain

    def _srs0(self, local: str, domain: str, day: int) -> str:
        made = stamp(day)
        return f"SRS0{self.separator}{self._sign(made + domain + local, day)}={made}={domain}={local}"

    def _srs1(self, local: str, domain: str, day: int) -> str:
        first_host, rest = domain, local[_TAG_LENGTH:]
        if local[3] == "1":
            try:
                _, first_host, rest = _fields_of_srs1(local)
            except NotSrs as error:
                raise AddressError(str(error)) from None
        return f"SRS1{self.separator}{self._sign(first_host + rest, day)}={first_host}={rest}"

    def _sign(self, text: str, day: int) -> str:
        made = b2a_base64(self._sha1.sign(_message(text), day), newline=False)[: self.hash_length].decode()
        return made.replace("+", "-").replace("/", "_") if self.base64url else made

    def _verify(self, given: str, text: str) -> None:
        if not self.hash_minimum <= len(given) <= WHOLE_HASH:
            raise HashMismatch("the hash is too short or too long")
        folded, message = _octets(given).translate(_FOLD), _message(text)
        for mac in self._sha1.macs:
            if hmac.compare_digest(folded, b2a_base64(mac(message))[: len(given)].translate(_FOLD)):
                return
        raise HashMismatch("no key made this hash")


def _octets(text: str) -> bytes:
    # Lone surrogates may pass: Address refuses them.
    return text.encode("utf-8", "surrogatepass")


def _message(text: str) -> bytes:
    return text.encode("utf-8", "surrogatepass").lower()  # bytes.lower() changes A to Z only, as the others do


def _same(domain: str, other: str) -> bool:
    return len(domain) == len(other) and (domain == other or _octets(domain).lower() == _octets(other).lower())
