# SPDX-License-Identifier: GPL-3.0-or-later
"""The attributes of a policy request, as text."""

from __future__ import annotations

from collections.abc import Mapping

from gatepost.service.addresses import decode_xtext
from gatepost.service.certificates import NO_CERTIFICATE, Shown

Attributes = Mapping[bytes, bytes]


def text(request: Attributes, name: bytes) -> str:
    """Return an attribute, "" where it is missing; odd octets survive."""
    return request.get(name, b"").decode("utf-8", "surrogateescape")


def certificate(request: Attributes) -> Shown:
    """Return what Postfix tells of the client's certificate. One that it does not trust has no issuer (R10)."""
    if not request.get(b"ccert_issuer"):
        return NO_CERTIFICATE
    cn, issuer = (decode_xtext(text(request, name)) for name in (b"ccert_subject", b"ccert_issuer"))
    return Shown(cn, issuer, text(request, b"ccert_fingerprint"))
