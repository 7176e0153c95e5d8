# SPDX-License-Identifier: GPL-3.0-or-later
"""The secret keys of SRS, ready for use: the first one signs, any of them verifies."""

from __future__ import annotations

import hmac
from collections.abc import Iterator, Sequence


class Keys:
    """An immutable list of keys. To rotate, put a new one in front, and keep the
    old one until its addresses have expired.

    Raises ValueError for no key at all and for an empty one.
    """

    __slots__ = ("_macs",)

    def __init__(self, secrets: Sequence[bytes]) -> None:
        if not secrets or not all(secrets):
            raise ValueError("SRS needs one secret at least, and no empty one")
        # Keyed once and copied for each use: setting up a key costs more than hashing an address.
        self._macs = tuple(hmac.new(secret, digestmod="sha256") for secret in secrets)

    def sign(self, message: bytes) -> bytes:
        """Return the HMAC-SHA256 of *message* under the first key."""
        return next(self.digests(message))

    def digests(self, message: bytes) -> Iterator[bytes]:
        """Yield the HMAC-SHA256 of *message* under each key, the signing one first."""
        for keyed in self._macs:
            mac = keyed.copy()
            mac.update(message)
            yield mac.digest()

    def __repr__(self) -> str:
        return f"<Keys: {len(self._macs)}>"
