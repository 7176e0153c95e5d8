# SPDX-License-Identifier: GPL-3.0-or-later
"""Asks DNS for a client's name and whether that leads back to its address: information, which decides nothing.

Asked when a client comes, in the background, and read when its mail is recorded: nobody ever waits for it. What is
found is kept in a table that every worker maps.
"""

from __future__ import annotations

import threading
import time
from collections.abc import Sequence
from concurrent.futures import ThreadPoolExecutor
from ipaddress import ip_address
from pathlib import Path
from typing import Any, Optional

import dns.exception
import dns.name
import dns.resolver
import dns.reversename

from gatepost.relay.index import Address, parse_address
from gatepost.service.client_names import NAME_OCTETS, UNKNOWN, Name, tidy
from gatepost.service.ledger import CONFIRMED, NO_NAME, UNCONFIRMED
from gatepost.service.resolver import resolver
from gatepost.service.slots import Slots

SLOTS = 1 << 15
MAX_AGE_S = 21600
FAILURE_AGE_S = 60
THREADS = 4
WAITING = 256
"""How many clients may be under way: more are not asked for, so that a flood of them fills neither memory nor time."""
_NAMES = 5
"""How many names of one address are followed."""
_FOUND = (CONFIRMED, UNCONFIRMED, NO_NAME, "")
"""As the first octet of a slot; the last one stands for a failure. The name follows."""


class Fcrdns:
    """Names of clients, kept in *path*; no path: in this process alone.

    nameservers: addresses and ports, the system's where none is given. timeout_s: for one client, all its look-ups and
    the wait before them. Raises OSError for *path*.
    """

    def __init__(
        self, path: Optional[Path], nameservers: Sequence[tuple[str, int]] = (), timeout_s: float = 5.0
    ) -> None:
        self._slots = Slots(path, SLOTS, payload_octets=1 + NAME_OCTETS)
        self._resolver = resolver(nameservers, timeout_s)
        self._timeout_s = timeout_s
        self._pool = ThreadPoolExecutor(THREADS, "fcrdns")
        self._lock = threading.Lock()
        self._under_way: set[str] = set()

    def known(self, ip: str, now: int) -> Name:
        """Return what is known of the client; *now* in Unix seconds. Never waits."""
        address = _address(ip)
        found = self._slots.get(str(address)) if address else None
        if found is None or abs(now - found[1]) >= MAX_AGE_S:
            return UNKNOWN
        return found[0][1:].rstrip(b"\0").decode("ascii", "replace"), _FOUND[found[0][0]]

    def refresh(self, ip: str, now: int) -> None:
        """Begin to ask for a client unless what is known is fresh. Never waits."""
        address = _address(ip)
        if address is None or not self._due(str(address), now):
            return
        with self._lock:
            if str(address) in self._under_way or len(self._under_way) >= WAITING:
                return
            self._under_way.add(str(address))
        self._pool.submit(self._ask, address, now, time.monotonic() + self._timeout_s)

    def _due(self, key: str, now: int) -> bool:
        found = self._slots.get(key)
        if found is None:
            return True
        return abs(now - found[1]) >= (MAX_AGE_S if _FOUND[found[0][0]] else FAILURE_AGE_S)

    def _ask(self, address: Address, now: int, deadline: float) -> None:
        try:
            name, found = self._name(address, deadline)
        except Exception:  # noqa: BLE001 - whatever a stranger's DNS makes of dnspython, mail goes on
            name, found = UNKNOWN
        payload = bytes([_FOUND.index(found)]) + name.encode("ascii", "replace")
        self._slots.put(str(address), payload, now)
        with self._lock:
            self._under_way.discard(str(address))

    def _name(self, address: Address, deadline: float) -> Name:
        """Raises DNSException where DNS does not tell."""
        pointers = self._records(dns.reversename.from_address(str(address)), "PTR", deadline)
        names = [name for name in sorted(tidy(str(pointer.target)) for pointer in pointers) if name][:_NAMES]
        for name in names:
            absolute = dns.name.from_text(name)
            records = self._records(absolute, "A" if address.version == 4 else "AAAA", deadline)
            if any(ip_address(record.address) == address for record in records):
                return name, CONFIRMED
        if names:
            return names[0], UNCONFIRMED
        return "", UNCONFIRMED if pointers else NO_NAME

    def _records(self, name: dns.name.Name, kind: str, deadline: float) -> list[Any]:
        left_s = deadline - time.monotonic()
        if left_s <= 0:
            raise dns.exception.Timeout
        try:
            answer = self._resolver.resolve(name, kind, raise_on_no_answer=False, lifetime=left_s, search=False)
        except dns.resolver.NXDOMAIN:
            return []
        return list(answer.rrset or ())


def _address(ip: str) -> Optional[Address]:
    """Return the address to ask for; None for none, and for those that mean this host or link."""
    address = parse_address(ip)
    if address is None or address.is_loopback or address.is_link_local or address.is_unspecified:
        return None
    return address
