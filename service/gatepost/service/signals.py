# SPDX-License-Identifier: GPL-3.0-or-later
"""Wait for signals that are blocked, without taking for one what is none."""

from __future__ import annotations

import signal
from collections.abc import Set as AbstractSet

_CODES = frozenset((0, -1, -6, 0x80, *range(1, 7)))
"""si_code (sigaction(2)): of kill, sigqueue, tkill, the kernel, and what becomes of a child."""


def wait_for_one(of: AbstractSet[signal.Signals], wait_s: float) -> int:
    """Return the number of a signal that came within *wait_s*, 0 for none.

    Python (3.9 to 3.13) returns what nobody has filled in where the wait was interrupted, as by SIGSTOP and SIGCONT,
    and its time was over by then.
    """
    caught = signal.sigtimedwait(of, wait_s)
    return caught.si_signo if caught and caught.si_signo in of and caught.si_code in _CODES else 0
