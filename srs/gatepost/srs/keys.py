# SPDX-License-Identifier: GPL-3.0-or-later
"""The secret keys of SRS, ready for use: one signs, any of them verifies."""

from __future__ import annotations

import hashlib
from collections.abc import Iterator, Sequence
from typing import Callable, NamedTuple, Union

_INNER = bytes(octet ^ 0x36 for octet in range(256))
_OUTER = bytes(octet ^ 0x5C for octet in range(256))


class Key(NamedTuple):
    """A secret and the first day on which it may sign, in days since 1970-01-01 UTC; it verifies before that, too."""

    secret: bytes
    signs_from: int = 0

    def __repr__(self) -> str:
        return f"<Key: signs from day {self.signs_from}>"


class Keys:
    """An immutable list of keys, the preferred one first; plain bytes are a key that may sign on any day.

    To rotate, put a new key in front that signs from tomorrow, so that every host knows it before an address is made
    with it, and keep the old one until its addresses have expired. digest: the hash function of the HMAC. macs: the
    function of each key, whether it may sign or not, that makes the HMAC of a message. Raises ValueError for no key at
    all and for an empty one.
    """

    __slots__ = ("_keys", "_signers", "macs")

    def __init__(self, keys: Sequence[Union[Key, bytes]], digest: str = "sha256") -> None:
        self._keys = tuple(Key(key) if isinstance(key, bytes) else key for key in keys)
        if not self._keys or not all(key.secret for key in self._keys):
            raise ValueError("SRS needs one secret at least, and no empty one")
        self.macs = tuple(_mac(key.secret, digest) for key in self._keys)
        self._signers = tuple((key.signs_from, mac) for key, mac in zip(self._keys, self.macs))

    def __len__(self) -> int:
        return len(self._keys)

    def signing_since(self, day: int) -> int:
        """Return the first day of the key that signs on *day*, 0 where it may sign on any day."""
        return next((key.signs_from for key in self._keys if key.signs_from <= day), self._keys[-1].signs_from)

    def using(self, digest: str) -> Keys:
        """Return the same keys for another hash function."""
        return Keys(self._keys, digest)

    def sign(self, message: bytes, day: int) -> bytes:
        """Return the HMAC of *message* under the first key that may sign on *day*; if none may, the last key."""
        for signs_from, mac in self._signers:
            if signs_from <= day:
                return mac(message)
        return self.macs[-1](message)

    def digests(self, message: bytes) -> Iterator[bytes]:
        """Yield the HMAC of *message* under each key, whether it may sign or not."""
        for mac in self.macs:
            yield mac(message)

    def __repr__(self) -> str:
        return f"<Keys: {len(self.macs)}>"


def _mac(secret: bytes, digest: str) -> Callable[[bytes], bytes]:
    """Return the function that makes the HMAC (RFC 2104) of a message under *secret*.

    The key is hashed once, and what it made of the two hashes is copied for each message: setting up a key costs more
    than hashing an address, and a copy of hmac.new() twice as much as these two.
    """
    block_size = hashlib.new(digest).block_size
    key = secret if len(secret) <= block_size else hashlib.new(digest, secret).digest()
    padded = key.ljust(block_size, b"\0")
    inner_keyed = hashlib.new(digest, padded.translate(_INNER)).copy
    outer_keyed = hashlib.new(digest, padded.translate(_OUTER)).copy

    def mac(message: bytes) -> bytes:
        inner, outer = inner_keyed(), outer_keyed()
        inner.update(message)
        outer.update(inner.digest())
        return outer.digest()

    return mac
