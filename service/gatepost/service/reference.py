# SPDX-License-Identifier: GPL-3.0-or-later
"""References that tie a reply to its line in the log and a message to its rows in the ledger."""

from __future__ import annotations

import itertools
import os
import random

_RANDOM_BITS = 14
_PAIRS = ["".join(pair) for pair in itertools.product("ABCDEFGHIJKLMNOPQRSTUVWXYZ234567", repeat=2)]
_count = itertools.count()


def new_reference() -> str:
    """Return ten base32 characters, 50 bits: a count that starts anywhere, and random bits against misreading.

    Those of one process stand near each other in the ledger's index, so that a row costs no page of its own there.
    """
    bits = next(_count) << _RANDOM_BITS | random.getrandbits(_RANDOM_BITS)
    return "".join([_PAIRS[bits >> shift & 1023] for shift in (40, 30, 20, 10, 0)])


def _start() -> None:
    global _count
    _count = itertools.count(int.from_bytes(os.urandom(5), "big"))


_start()
os.register_at_fork(after_in_child=_start)
