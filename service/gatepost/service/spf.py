# SPDX-License-Identifier: GPL-3.0-or-later
"""Tells whether mail from a domain may leave this host without SRS, as far as the domain's SPF record goes.

Decisions are kept in a table that every worker maps. Only a clear answer spares a domain the rewriting: no record, or
pass (RFC 7208, 2.6) for every address that this host sends from. All else, a DNS failure too, means rewrite.
"""

from __future__ import annotations

import threading
import time
from collections.abc import Sequence
from concurrent.futures import Future, ThreadPoolExecutor, wait
from ipaddress import ip_address
from pathlib import Path
from typing import Callable, Optional, Union

import dns.exception
import dns.name
import dns.resolver
import spf
from dns.rdtypes.txtbase import TXTBase

from gatepost.relay import normalize_domain
from gatepost.service.resolver import resolver
from gatepost.service.slots import Slots

SLOTS = 1 << 16
MAX_AGE_S = 86400
REFRESH_AGE_S = 3600
FAILURE_AGE_S = 60
THREADS = 4
_RECORD_OCTETS = 4096
"""Longest TXT that is read; RFC 7208, 3.4, advises 450 octets. pyspf takes 10 s of CPU for 50,000 octets of macros."""

Answer = Union[str, tuple[int, str], list[bytes]]
"""What pyspf takes for a record: A, AAAA, PTR; MX; TXT."""


class Spf:
    """Decisions for mail that leaves from *outgoing_addresses*, kept in *path*; no path: in this process alone.

    nameservers: addresses and ports, the system's where none is given; the ports of one address must not differ.
    timeout_s: for one decision, all its look-ups together, and for the wait before them. count: is told "hit",
    "decided" or "failed", on any thread. Raises OSError for *path*.
    """

    def __init__(
        self,
        outgoing_addresses: Sequence[str],
        path: Optional[Path],
        nameservers: Sequence[tuple[str, int]] = (),
        timeout_s: float = 2.0,
        count: Callable[[str], None] = lambda word: None,
    ) -> None:
        self._addresses = sorted(str(ip_address(address)) for address in outgoing_addresses)
        self._slots = Slots(path, SLOTS, payload_octets=1)
        self._resolver = resolver(nameservers, timeout_s)
        self._timeout_s = timeout_s
        self._count = count
        self._pool = ThreadPoolExecutor(THREADS, "spf")
        self._lock = threading.Lock()
        self._flights: dict[str, Future[bool]] = {}

    def known(self, domain: str, now: int) -> Optional[bool]:
        """Return what `spares` would without DNS, None where it is not known. Never waits."""
        name = _domain(domain)
        if name is None:
            return False
        spared = self._cached(name, now)
        if spared is not None:
            self._count("hit")
        return spared

    def spares(self, domain: str, now: int) -> bool:
        """Tell whether mail from *domain* may leave with its own sender; *now* in Unix seconds.

        Waits for DNS where it is not known, no longer than timeout_s. What is no full domain name is not spared.
        """
        spared = self.known(domain, now)
        flight = self._flight(domain, now)
        if spared is not None:
            return spared
        if flight is None:  # decided since
            return self.known(domain, now) or False
        wait([flight], self._timeout_s)
        return flight.done() and flight.result()

    def refresh(self, domain: str, now: int) -> None:
        """Begin to decide on *domain* unless that is known and fresh. Never waits."""
        self._flight(domain, now)

    def _flight(self, domain: str, now: int) -> Optional[Future[bool]]:
        """Return the decision that is under way, begun here where it is due; None where it is not due."""
        name = _domain(domain)
        if name is None or not self._due(name, now):
            return None
        with self._lock:
            flight = self._flights.get(name)
            if flight is None and self._due(name, now):
                deadline = time.monotonic() + self._timeout_s
                flight = self._flights[name] = self._pool.submit(self._decide, name, now, deadline)
            return flight

    def _decide(self, name: str, now: int, deadline: float) -> bool:
        try:
            spared = _spared(name, self._addresses, Lookups(self._resolver, deadline))
        except Exception:  # noqa: BLE001 - pyspf raises what it likes on odd records
            spared = None
        if spared is None:
            self._slots.put(self._failure_key(name), b"\0", now)
        else:
            self._slots.put(self._key(name), bytes([spared]), now)
        with self._lock:
            del self._flights[name]
        self._count("failed" if spared is None else "decided")
        return spared or False

    def _cached(self, name: str, now: int) -> Optional[bool]:
        found = self._slots.get(self._key(name))
        if found is not None and _younger(found[1], MAX_AGE_S, now):
            return found[0] == b"\1"
        return False if self._failed(name, now) else None

    def _due(self, name: str, now: int) -> bool:
        found = self._slots.get(self._key(name))
        return not (found is not None and _younger(found[1], REFRESH_AGE_S, now)) and not self._failed(name, now)

    def _failed(self, name: str, now: int) -> bool:
        found = self._slots.get(self._failure_key(name))
        return found is not None and _younger(found[1], FAILURE_AGE_S, now)

    def _key(self, name: str) -> str:
        """Return the key of a decision: one for other addresses is another one."""
        return " ".join([name, *self._addresses])

    def _failure_key(self, name: str) -> str:
        """Return the key of a failure, which leaves the older decision in force."""
        return "failed " + self._key(name)


def _younger(at: float, age_s: int, now: int) -> bool:
    return abs(now - at) < age_s  # from a clock that was set back: neither for ever


def _domain(text: str) -> Optional[str]:
    name = normalize_domain(text)
    return name if name is not None and "." in name else None


def _spared(domain: str, addresses: Sequence[str], lookups: Lookups) -> Optional[bool]:
    """Tell whether SPF is in the way of none of *addresses*; None where DNS failed."""
    for address in addresses:
        result, _ = check_host(address, domain, lookups)
        if result == "temperror":
            return None
        if result not in ("none", "pass"):
            return False
    return bool(addresses)


def check_host(address: str, domain: str, lookups: Lookups) -> tuple[str, str]:
    """Return SPF's result (RFC 7208, 2.6) for mail from *domain* that *address* sends, and pyspf's words for it.

    Raises what pyspf likes on odd records.
    """
    result, _, words = _Query(address, domain, lookups).check()
    return result, words


class Lookups:
    """The answers of DNS for one decision, all of them until *deadline* (time.monotonic)."""

    def __init__(self, resolver: dns.resolver.Resolver, deadline: float) -> None:
        self._resolver = resolver
        self._deadline = deadline
        self._answers: dict[tuple[str, str], list[Answer]] = {}

    def ask(self, name: str, rdata_type: str) -> list[Answer]:
        """Return the records, none for a name that can't be. Raises spf.TempError and spf.PermError."""
        question = (name.lower(), rdata_type)
        if question not in self._answers:
            self._answers[question] = self._resolve(name, rdata_type)
        return self._answers[question]

    def _resolve(self, name: str, rdata_type: str) -> list[Answer]:
        left_s = self._deadline - time.monotonic()
        if left_s <= 0:
            raise spf.TempError("DNS took too long")
        try:
            absolute = dns.name.from_text(name)
        except dns.exception.DNSException:
            return []
        try:
            answer = self._resolver.resolve(
                absolute, rdata_type, raise_on_no_answer=False, lifetime=left_s, search=False
            )
        except dns.resolver.NXDOMAIN:
            return []
        except dns.exception.DNSException as error:
            raise spf.TempError(str(error)) from error
        return [_READ[rdata_type](rdata) for rdata in answer.rrset or ()]


def _strings(rdata: TXTBase) -> list[bytes]:
    if sum(map(len, rdata.strings)) > _RECORD_OCTETS:
        raise spf.PermError("record too long")
    return list(rdata.strings)


_READ: dict[str, Callable[..., Answer]] = {
    "A": lambda rdata: str(rdata.address),
    "AAAA": lambda rdata: str(rdata.address),
    "MX": lambda rdata: (int(rdata.preference), str(rdata.exchange)),
    "PTR": lambda rdata: rdata.target.to_text(omit_final_dot=True),
    "TXT": _strings,
}


class _Query(spf.query):  # type: ignore[misc]
    """pyspf's check_host() (RFC 7208, 4) for postmaster@*domain*, which asks *lookups* instead of pyspf's globals."""

    def __init__(self, address: str, domain: str, lookups: Lookups) -> None:
        super().__init__(i=address, s=f"postmaster@{domain}", h=domain)
        self._lookups = lookups

    def dns(self, name: str, qtype: str, cnames: object = None, ignore_void: bool = False) -> list[Answer]:
        answers = self._lookups.ask(name, qtype)
        if not answers and not ignore_void:
            self.void_lookups += 1
            if self.void_lookups > spf.MAX_VOID_LOOKUPS:
                raise spf.PermError("more void look-ups than RFC 7208, 4.6.4 allows")
        return answers

    def get_explanation(self, spec: str) -> None:
        """Ask for none: nobody reads it."""
