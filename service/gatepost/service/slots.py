# SPDX-License-Identifier: GPL-3.0-or-later
"""A table of short facts that every worker process maps: a key's digest, a payload of fixed length, a time.

A file of a fixed number of slots, each with a checksum, so that one that is half written reads as unknown. The oldest
of a few neighbours gives way. Whoever uses it must be able to do without an entry.
"""

from __future__ import annotations

import hashlib
import mmap
import os
import struct
import zlib
from pathlib import Path
from typing import Optional

_NEIGHBOURS = 8
_KEY_OCTETS = 16


class Slots:
    """The table in *path* with *count* slots, made where it does not exist; no path: of this process alone.

    payload_octets: the length of every payload. The file of another count or length is written over. Raises OSError.
    """

    def __init__(self, path: Optional[Path], count: int, payload_octets: int) -> None:
        # digest of the key, payload, Unix seconds, CRC-32 of all before it
        self._slot = struct.Struct(f"<{_KEY_OCTETS}s{payload_octets}sd4xI")
        self._count = count
        self._near_octets = _NEIGHBOURS * self._slot.size
        size = count * self._slot.size
        if path is None:
            self._map = mmap.mmap(-1, size)
            return
        descriptor = os.open(path, os.O_RDWR | os.O_CREAT | os.O_NOFOLLOW | os.O_CLOEXEC, 0o600)
        try:
            os.posix_fallocate(descriptor, 0, size)  # a write to a hole of a full disk is a SIGBUS
            self._map = mmap.mmap(descriptor, size)
        finally:
            os.close(descriptor)

    def put(self, key: str, payload: bytes, now: float) -> None:
        """Remember *payload* for *key*; *now* in Unix seconds."""
        digest = octets_for(key, _KEY_OCTETS)
        first, near = self._near(digest)
        at = self._found(digest, near)
        if at is None:  # an empty slot's time is 0; checksums would cost more than all the rest
            times = [slot[2] for slot in self._slot.iter_unpack(near)]
            at = times.index(min(times)) * self._slot.size
        offset = (first + at) % len(self._map)
        octets = self._slot.pack(digest, payload, now, 0)[:-4]
        self._map[offset : offset + self._slot.size] = octets + zlib.crc32(octets).to_bytes(4, "little")

    def get(self, key: str) -> Optional[tuple[bytes, float]]:
        """Return the payload for *key* and when it was put."""
        digest = octets_for(key, _KEY_OCTETS)
        near = self._near(digest)[1]
        at = self._found(digest, near)
        if at is None:
            return None
        octets = near[at : at + self._slot.size]
        _, payload, put_at, checksum = self._slot.unpack(octets)
        return (payload, put_at) if checksum == zlib.crc32(octets[:-4]) else None

    def _near(self, digest: bytes) -> tuple[int, bytes]:
        """Return where the slots for *digest* begin, and what is in them."""
        first = int.from_bytes(digest[:8], "little") % self._count * self._slot.size
        octets = self._map[first : first + self._near_octets]
        return first, octets + self._map[: self._near_octets - len(octets)]

    def _found(self, digest: bytes, near: bytes) -> Optional[int]:
        """Return where in *near* the slot of *digest* begins."""
        at = near.find(digest)
        while at >= 0 and at % self._slot.size:
            at = near.find(digest, at + 1)
        return at if at >= 0 else None


def octets_for(text: str, size: int) -> bytes:
    """Return a digest of *text* of *size* octets."""
    return hashlib.blake2b(text.encode("utf-8", "surrogateescape"), digest_size=size).digest()
