# SPDX-License-Identifier: GPL-3.0-or-later
"""Sender rewriting: a mail address to an SRS address and back, given keys and a day number.

Pure functions and values: no clock, no I/O, no state. SrsError is the root of all that is raised about an
address.
"""

from __future__ import annotations

from .address import Address
from .chain import first_hop, is_srs
from .classic import Classic
from .compact import Compact
from .errors import AddressError, AddressTooLong, Expired, HashMismatch, NotSrs, SrsError
from .exchange import MAX_ADDRESS_OCTETS, Exchange
from .inspection import Inspection, inspect
from .keys import Key, Keys
from .stamp import age, stamp

__all__ = [
    "MAX_ADDRESS_OCTETS",
    "Address",
    "AddressError",
    "AddressTooLong",
    "Classic",
    "Compact",
    "Exchange",
    "Expired",
    "HashMismatch",
    "Inspection",
    "Key",
    "Keys",
    "NotSrs",
    "SrsError",
    "age",
    "first_hop",
    "inspect",
    "is_srs",
    "stamp",
]
