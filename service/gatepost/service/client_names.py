# SPDX-License-Identifier: GPL-3.0-or-later
"""A client's name in DNS, as an MTA reports it or as DNS says itself. It is information, and decides nothing. Pure."""

from __future__ import annotations

import re

from gatepost.service.ledger import CONFIRMED, UNCONFIRMED

NAME_OCTETS = 255
_host_name = re.compile(r"[a-z0-9_-]{1,63}(\.[a-z0-9_-]{1,63})*\Z").match

Name = tuple[str, str]
"""Reverse name and what became of it: CONFIRMED, UNCONFIRMED or NO_NAME; "" where that is not known."""
UNKNOWN: Name = ("", "")


def tidy(name: str) -> str:
    """Return a name as it is recorded; "" for what no host can be called, and for Postfix's unknown."""
    lower = name.lower().rstrip(".")
    return lower if len(lower) <= NAME_OCTETS and _host_name(lower) and lower != "unknown" else ""


def reported(verified: str, reverse: str) -> Name:
    """Return what an MTA knows: the *verified* name leads back to the client, the *reverse* name may not.

    "No name" can mean there that nobody asked, so it stays open.
    """
    name = tidy(verified)
    if name:
        return name, CONFIRMED
    name = tidy(reverse)
    return (name, UNCONFIRMED) if name else UNKNOWN
