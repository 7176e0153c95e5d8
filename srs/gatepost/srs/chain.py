# SPDX-License-Identifier: GPL-3.0-or-later
"""Chains of forwarders: what to rewrite where the sender is an SRS address of another host already."""

from __future__ import annotations

from typing import Optional

from . import classic, exchange
from .address import Address
from .errors import NotSrs
from .stamp import age

_MOST_LAYERS = 50
"""No message passes more hosts (Postfix' hopcount_limit), and no address of 254 octets holds so many layers."""


def first_hop(address: Address) -> Address:
    """Return *address* with at most one layer of SRS: the one that the first forwarder put on.

    An SRS address that wraps an SRS address is replaced by what it wraps, in all forms and again and again; SRS1
    counts as a wrapped SRS0 at its first host. Any other address is returned as it is. Rewrite the result in place of
    the sender: then chains of forwarders and loops of two do not grow with each hop, as with SRS1 but in all forms.

    Nothing is verified, and nothing need be: a bounce skips the hosts in between and goes to the host that made the
    layer that is left, which verifies its own hash. Whoever forges layers could have sent with what is inside as
    well. Raises nothing.
    """
    if "=" not in address.local:  # as most: no form does without
        return address
    inner = _wrapped(address)
    for _ in range(_MOST_LAYERS):
        if inner is None or not is_srs(inner.local):
            break
        address, inner = inner, _wrapped(inner)
    return address


def is_srs(local: str) -> bool:
    """Return whether a local part has the form of an SRS address: long, compact, SRS0 or SRS1. Raises nothing."""
    if classic.is_tagged(local):
        return True
    try:
        age(exchange.split(local).stamp, 0)
    except NotSrs:
        return False
    return True


def _wrapped(address: Address) -> Optional[Address]:
    # The tag decides: behind it a +SRS= belongs to the user.
    try:
        if classic.is_tagged(address.local):
            return classic.wrapped(classic.split(address.local))
        parts = exchange.split(address.local)
        age(parts.stamp, 0)
    except NotSrs:
        return None
    return parts.original
