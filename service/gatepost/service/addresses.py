# SPDX-License-Identifier: GPL-3.0-or-later
"""Addresses as MTAs hand them over: in SMTP's quotes or without, with parameters in xtext, routed elsewhere."""

from __future__ import annotations

import re
from typing import Optional

from gatepost.relay import normalize_domain
from gatepost.srs import Address, AddressError


def parse_address(text: str) -> Address:
    """Return the address *text*, quoted as in SMTP, or bare as in Postfix' policy protocol. Raises AddressError."""
    try:
        return Address.parse(text)
    except AddressError:
        if text.startswith(("@", '"')):  # a source route, a broken quoted string
            raise
        local, _, domain = text.rpartition("@")
        return Address(local, domain[:-1] if domain.endswith(".") else domain)  # Postfix, too, drops the final dot


def unquoted(text: str) -> str:
    """Return an address without SMTP's quotes, as in Postfix' policy protocol; what is none as it is."""
    if not text.startswith('"'):
        return text
    try:
        address = Address.parse(text)
    except AddressError:
        return text
    return f"{address.local}@{address.domain}"


def domain_of(address: str) -> Optional[str]:
    """Return the domain of *address* as an A-label in lower case; None where there is none."""
    return normalize_domain(address.rpartition("@")[2]) if "@" in address else None


def plain(address: str) -> bool:
    """Tell whether *address* is a local part without quotes and a domain, and can be read in one way only.

    `<a@fabrikam.example(@contoso.com>` is a@fabrikam.example to Postfix, which takes ( for the begin of a comment.
    """
    return _PLAIN.fullmatch(address) is not None


_PLAIN = re.compile(r"""[^\s@"(),:;<>\\\[\]]+@[^\s@"(),:;<>\\]+""")


def routed(address: str) -> bool:
    """Tell whether *address* may lead elsewhere than its domain says: user%domain@here, host!user@here (RFC 1123)."""
    local, at, _ = address.rpartition("@")
    return _ROUTING.search(local if at else address) is not None


_ROUTING = re.compile(r"[@%!]")


def decode_xtext(text: str) -> str:
    """Decode the xtext of ESMTP parameters, in which `+XX` stands for an octet (RFC 3461, 4), here one of UTF-8."""
    octets = _XTEXT.sub(lambda found: bytes([int(found[1], 16)]), text.encode("utf-8", "surrogateescape"))
    return octets.decode("utf-8", "surrogateescape")


_XTEXT = re.compile(rb"\+([0-9A-F]{2})")
