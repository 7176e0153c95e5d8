# SPDX-License-Identifier: GPL-3.0-or-later
"""Counts the wrong SRS recipients of each client, so that nobody guesses hashes at leisure."""

from __future__ import annotations

import ipaddress
import struct
from functools import lru_cache
from pathlib import Path
from typing import Optional

from gatepost.service.slots import Slots

WINDOW_S = 3600
_SLOTS = 1 << 14
_PAYLOAD = struct.Struct("<Id")
"""How many, and when the first of them came, in Unix seconds."""


class Guesses:
    """A table that all workers share; no path: of this process alone. limit: of an hour, 0 for none. Raises OSError.

    Two failures at the same instant may count as one.
    """

    def __init__(self, path: Optional[Path], limit: int) -> None:
        self._slots = Slots(path, _SLOTS, _PAYLOAD.size)
        self._limit = limit

    def too_many(self, client: str, now: int) -> bool:
        """Tell whether *client*, an IP address, has named too many wrong SRS recipients within the hour."""
        return self._limit > 0 and self._count(client, now)[0] >= self._limit

    def failed(self, client: str, now: int) -> None:
        """Count one wrong SRS recipient of *client*."""
        count, since = self._count(client, now)
        self._slots.put(_network(client), _PAYLOAD.pack(min(count + 1, 0xFFFFFFFF), since), now)

    def _count(self, client: str, now: int) -> tuple[int, float]:
        found = self._slots.get(_network(client))
        if found is None:
            return 0, now
        count, since = _PAYLOAD.unpack(found[0])
        return (count, since) if 0 <= now - since < WINDOW_S else (0, now)


@lru_cache(1024)
def _network(client: str) -> str:
    """Return what stands for *client*: of IPv6 the /56, which one site may fill with addresses."""
    try:
        address = ipaddress.ip_address(client)
    except ValueError:
        return client
    if isinstance(address, ipaddress.IPv4Address):
        return client
    if address.ipv4_mapped:  # its /56 is all of IPv4
        return str(address.ipv4_mapped)
    return str(ipaddress.IPv6Network((int(address), 56), strict=False))
