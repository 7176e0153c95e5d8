# SPDX-License-Identifier: GPL-3.0-or-later
"""What the ingress milter knew of a message, for the egress milter, by queue ID.

A file in the state folder that every worker maps: a fixed number of slots, each with a checksum, so that a slot that is
half written reads as unknown. The oldest of a few neighbours gives way. Unknown is safe: the egress hop then names no
mailbox.
"""

from __future__ import annotations

import hashlib
import mmap
import os
import struct
import zlib
from pathlib import Path
from typing import NamedTuple, Optional

SLOTS = 1 << 18
MAX_AGE_S = 7 * 86400
_SLOT = struct.Struct("<16s8s16sd4xI")
"""digest of the queue ID, digest of the organisation's name, reference, Unix seconds, CRC-32 of all before it"""
_NEIGHBOURS = 8
_CHECKED = _SLOT.size - 4


class Hop(NamedTuple):
    """*organization*: what `organization_digest` returns for its name, empty octets for none."""

    organization: bytes
    reference: str


class Hops:
    """The table in *path*, made where it does not exist. Raises OSError."""

    def __init__(self, path: Path) -> None:
        descriptor = os.open(path, os.O_RDWR | os.O_CREAT | os.O_NOFOLLOW | os.O_CLOEXEC, 0o600)
        try:
            os.posix_fallocate(descriptor, 0, SLOTS * _SLOT.size)  # a write to a hole of a full disk is a SIGBUS
            self._map = mmap.mmap(descriptor, SLOTS * _SLOT.size)
        finally:
            os.close(descriptor)

    @classmethod
    def unshared(cls) -> Hops:
        """Return a table of this process alone, for where the file can't be had."""
        hops = cls.__new__(cls)
        hops._map = mmap.mmap(-1, SLOTS * _SLOT.size)
        return hops

    def put(self, queue_id: str, hop: Hop, now: int) -> None:
        """Remember *hop* for *queue_id*; *now* in Unix seconds."""
        key = _digest(queue_id, 16)
        oldest, oldest_at = 0, float("inf")
        for offset in _offsets(key):
            slot = self._read(offset)
            if slot is None or slot[0] == key:
                oldest = offset
                break
            if slot[3] < oldest_at:
                oldest, oldest_at = offset, slot[3]
        octets = _SLOT.pack(key, hop.organization, hop.reference.encode("ascii"), now, 0)[:_CHECKED]
        self._map[oldest : oldest + _SLOT.size] = octets + zlib.crc32(octets).to_bytes(4, "little")

    def get(self, queue_id: str, now: int) -> Optional[Hop]:
        """Return what is remembered for *queue_id*; queue IDs come again, so not what is older than a week."""
        key = _digest(queue_id, 16)
        for offset in _offsets(key):
            slot = self._read(offset)
            if slot is not None and slot[0] == key and now - slot[3] < MAX_AGE_S:
                organization = slot[1] if any(slot[1]) else b""  # a digest may end with a zero octet
                return Hop(organization, slot[2].rstrip(b"\0").decode("ascii"))
        return None

    def _read(self, offset: int) -> Optional[tuple[bytes, bytes, bytes, float]]:
        octets = self._map[offset : offset + _SLOT.size]
        key, organization, reference, at, checksum = _SLOT.unpack(octets)
        return (key, organization, reference, at) if checksum == zlib.crc32(octets[:_CHECKED]) else None


def organization_digest(name: str) -> bytes:
    """Return eight octets that stand for an organisation's name."""
    return _digest(name, 8)


def _digest(text: str, size: int) -> bytes:
    return hashlib.blake2b(text.encode("utf-8", "surrogateescape"), digest_size=size).digest()


def _offsets(key: bytes) -> list[int]:
    first = int.from_bytes(key[:8], "little")
    return [(first + step) % SLOTS * _SLOT.size for step in range(_NEIGHBOURS)]
