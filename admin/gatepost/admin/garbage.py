# SPDX-License-Identifier: GPL-3.0-or-later
"""When Python looks for garbage: hardly ever in a short command, as always in a daemon.

What a command loads is never garbage: to look for some again and again, and once more at the end, would take a tenth
of the time of a short one.
"""

from __future__ import annotations

import atexit
import gc

_usual = gc.get_threshold()


def look_seldom() -> None:
    gc.set_threshold(100_000)
    atexit.register(gc.freeze)


def look_as_usual() -> None:
    gc.set_threshold(*_usual)
    atexit.unregister(gc.freeze)
