# SPDX-License-Identifier: GPL-3.0-or-later
"""What the ingress milter knew of a message, for the egress milter, by queue ID.

A table that every worker maps. Unknown is safe: the egress hop then names no mailbox.
"""

from __future__ import annotations

from pathlib import Path
from typing import NamedTuple, Optional

from gatepost.service.slots import Slots, octets_for

SLOTS = 1 << 18
MAX_AGE_S = 7 * 86400
NOTE_SLOTS = 1 << 14
NOTE_AGE_S = 60
_ORGANIZATION_OCTETS = 8
_REFERENCE_OCTETS = 16


class Hop(NamedTuple):
    """*organization*: what `organization_digest` returns for its name, empty octets for none."""

    organization: bytes
    reference: str


class Hops:
    """The table in *path*, made where it does not exist; no path: of this process alone. Raises OSError."""

    def __init__(self, path: Optional[Path], slots: int = SLOTS) -> None:
        self._slots = Slots(path, slots, _ORGANIZATION_OCTETS + _REFERENCE_OCTETS)

    def put(self, queue_id: str, hop: Hop, now: int) -> None:
        """Remember *hop* for *queue_id*; *now* in Unix seconds."""
        payload = hop.organization.ljust(_ORGANIZATION_OCTETS, b"\0") + hop.reference.encode("ascii")
        self._slots.put(queue_id, payload, now)

    def get(self, queue_id: str, now: int, max_age_s: int = MAX_AGE_S) -> Optional[Hop]:
        """Return what is remembered for *queue_id*; queue IDs come again, so not what is older than a week."""
        found = self._slots.get(queue_id)
        if found is None or now - found[1] >= max_age_s:
            return None
        organization, reference = found[0][:_ORGANIZATION_OCTETS], found[0][_ORGANIZATION_OCTETS:]
        # A digest may end with a zero octet: only all zeros are none.
        return Hop(organization if any(organization) else b"", reference.rstrip(b"\0").decode("ascii"))


def policyd_key(ip: str, port: str, reverse_path: str, rcpt: str) -> str:
    """Return what policyd and milter both know of a recipient before there is a queue ID.

    policyd is asked first, each time, so what it noted NOTE_AGE_S ago at most is of this very RCPT.
    Postfix tells milters some addresses in lower case.
    """
    return f"{ip} {port} {reverse_path} {rcpt}".lower()


def organization_digest(name: str) -> bytes:
    """Return eight octets that stand for an organisation's name."""
    return octets_for(name, _ORGANIZATION_OCTETS)
