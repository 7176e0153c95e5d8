# SPDX-License-Identifier: GPL-3.0-or-later
"""Domain names in the one form that everything is compared in: A-labels, lower case, no trailing dot."""

from __future__ import annotations

import re
from functools import lru_cache
from typing import Optional

MAX_DOMAIN = 253
"""Longest domain name in characters (RFC 1035, 2.3.4, without the root label)."""

NO_NAME = "no name known"
"""What stands in the place of the names of a trusted certificate where these are not known, for explanations."""
_FINGERPRINT = f"{NO_NAME}: "

_LABEL = r"[a-z0-9_](?:[a-z0-9_-]{0,61}[a-z0-9_])?"
_is_domain = re.compile(rf"{_LABEL}(?:\.{_LABEL})*").fullmatch


@lru_cache(1024)  # mail of one host names few domains, and each of them several times
def normalize_domain(text: str) -> Optional[str]:
    """Return *text* as a domain name in normal form; None where it is none.

    U-labels become A-labels (IDNA 2003); one that this changes beyond its case is refused, for IDNA 2008 may differ.
    Underscores pass, for real hosts have them. An address literal, a
    bare IP address, white space around a name and an empty label make it no domain name.
    """
    if len(text) > MAX_DOMAIN + 1:  # before the idna codec, which is slow on long text
        return None
    if not text.isascii():
        try:
            encoded = text.encode("idna")
            # What IDNA 2003 maps to something else, such as ß to ss, the MTA may take for another domain.
            if encoded.decode("idna") != text.lower():
                return None
            text = encoded.decode("ascii")
        except UnicodeError:
            return None
    domain = text.lower()
    if domain.endswith("."):
        domain = domain[:-1]
    return domain if is_normal(domain) else None


def is_normal(domain: str) -> bool:
    """Tell whether *domain* is a domain name in normal form."""
    return len(domain) <= MAX_DOMAIN and bool(_is_domain(domain)) and not domain.rpartition(".")[2].isdigit()


def domain_of(address: str) -> Optional[str]:
    """Return the domain of the addr-spec *address* in normal form; None where it has none."""
    _, at, domain = address.rpartition("@")
    return normalize_domain(domain) if at else None


def certificate_domain(name: str) -> Optional[str]:
    """Return the domain that the certificate name *name* stands for: `*.contoso.com` is contoso.com (R9)."""
    return normalize_domain(name[2:] if name.startswith("*.") else name)


def nameless(name: str) -> Optional[str]:
    """Return `fingerprint …` of a certificate whose names are not known, "" where that is not known; None of others."""
    if name == NO_NAME:
        return ""
    return name[len(_FINGERPRINT) :] if name.startswith(_FINGERPRINT) else None


def parent(domain: str) -> str:
    """Return the domain one label up, "" above a top-level domain."""
    return domain.partition(".")[2]
