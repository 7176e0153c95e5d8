# SPDX-License-Identifier: GPL-3.0-or-later
"""The attributes of a policy request, as text."""

from __future__ import annotations

from collections.abc import Mapping

from gatepost.service.addresses import decode_xtext

Attributes = Mapping[bytes, bytes]


def text(request: Attributes, name: bytes) -> str:
    """Return an attribute, "" where it is missing; odd octets survive."""
    return request.get(name, b"").decode("utf-8", "surrogateescape")


def certificate_name(request: Attributes) -> str:
    """Return the CN of the client's certificate, "" for one that Postfix does not trust: it has no issuer (R10)."""
    return decode_xtext(text(request, b"ccert_subject")) if request.get(b"ccert_issuer") else ""
