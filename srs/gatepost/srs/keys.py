# SPDX-License-Identifier: GPL-3.0-or-later
"""The secret keys of SRS, ready for use: one signs, any of them verifies."""

from __future__ import annotations

import hmac
from collections.abc import Iterator, Sequence
from typing import NamedTuple, Union


class Key(NamedTuple):
    """A secret and the first day on which it may sign, in days since 1970-01-01 UTC; it verifies before that, too."""

    secret: bytes
    signs_from: int = 0

    def __repr__(self) -> str:
        return f"<Key: signs from day {self.signs_from}>"


class Keys:
    """An immutable list of keys, the preferred one first; plain bytes are a key that may sign on any day.

    To rotate, put a new key in front that signs from tomorrow, so that every host knows it before an address is made
    with it, and keep the old one until its addresses have expired. digest: the hash function of the HMAC. Raises
    ValueError for no key at all and for an empty one.
    """

    __slots__ = ("_keys", "_macs")

    def __init__(self, keys: Sequence[Union[Key, bytes]], digest: str = "sha256") -> None:
        self._keys = tuple(Key(key) if isinstance(key, bytes) else key for key in keys)
        if not self._keys or not all(key.secret for key in self._keys):
            raise ValueError("SRS needs one secret at least, and no empty one")
        # Keyed once and copied for each use: setting up a key costs more than hashing an address.
        self._macs = tuple((key.signs_from, hmac.new(key.secret, digestmod=digest)) for key in self._keys)

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
        for signs_from, keyed in self._macs:
            if signs_from <= day:
                return _digest(keyed, message)
        return _digest(self._macs[-1][1], message)

    def digests(self, message: bytes) -> Iterator[bytes]:
        """Yield the HMAC of *message* under each key, whether it may sign or not."""
        for _, keyed in self._macs:
            yield _digest(keyed, message)

    def __repr__(self) -> str:
        return f"<Keys: {len(self._macs)}>"


def _digest(keyed: hmac.HMAC, message: bytes) -> bytes:
    mac = keyed.copy()
    mac.update(message)
    return mac.digest()
