# SPDX-License-Identifier: GPL-3.0-or-later
"""What can be wrong with an address: every exception that this package raises about one.

Wrong settings (no key, a hash length out of range) are a ValueError instead.
"""

from __future__ import annotations


class SrsError(Exception):
    """The root; the text names the fault in words and repeats no part of the address."""


class AddressError(SrsError):
    """The text is no mail address, or one that cannot take part in SRS."""


class AddressTooLong(AddressError):  # noqa: N818
    """The SRS address would pass 254 octets (RFC 5321, 4.5.3.1.3: a path has 256 with its angle brackets)."""


class NotSrs(SrsError):  # noqa: N818
    """The address does not have the form of an SRS address: somebody else's business."""


class HashMismatch(SrsError):  # noqa: N818
    """The address has the form, but none of the keys made its hash."""


class Expired(SrsError):  # noqa: N818
    """The hash is right, but the timestamp is too old, or in the future."""
