# SPDX-License-Identifier: GPL-3.0-or-later
"""The last errors that the daemons of one state folder have logged, kept in a small file for `gatepost status`.

A fixed number of slots: Unix time, then the line in UTF-8, filled up with NUL. The oldest gives way, before it what is
damaged or of the future, from a clock that ran ahead. Two processes that take the same slot at the same moment lose one
of the lines; the log has both.
"""

from __future__ import annotations

import contextlib
import errno
import os
import stat
import struct
from collections.abc import Iterator
from pathlib import Path

FILE = "last-errors"
SLOTS = 16
AHEAD_S = 60.0
"""A line that is later than the present by more than this was logged by a clock that ran ahead."""
_SLOT = struct.Struct("<d504s")
_END = 1e11
"""No line is of a time as late as this, in the year 5138."""


def keep(path: Path, line: str, now: float) -> None:
    """Put *line* in place of the oldest one in *path*; *now* in Unix seconds.

    Where the file can't be written nothing happens: that must not stop mail, and the log has the line.
    """
    with contextlib.suppress(OSError):
        descriptor = os.open(path, os.O_RDWR | os.O_CREAT | os.O_NOFOLLOW | os.O_CLOEXEC, 0o640)
        try:
            slots = _slots(os.pread(descriptor, SLOTS * _SLOT.size, 0))
            times = [at if 0 <= at <= now + AHEAD_S else -1.0 for at, _ in slots]
            oldest = len(times) if len(times) < SLOTS else times.index(min(times))
            text = line.encode("utf-8", "backslashreplace")
            os.pwrite(descriptor, _SLOT.pack(now, text), oldest * _SLOT.size)
        finally:
            os.close(descriptor)


def read(path: Path) -> list[tuple[float, str]]:
    """Return the lines in *path* and when each was logged (Unix seconds), the newest first. Raises OSError.

    What is damaged is left out.
    """
    try:
        descriptor = os.open(path, os.O_RDONLY | os.O_NONBLOCK | os.O_NOFOLLOW | os.O_CLOEXEC)
    except FileNotFoundError:
        return []
    try:
        if not stat.S_ISREG(os.fstat(descriptor).st_mode):
            raise OSError(errno.EINVAL, "is no file", str(path))
        octets = os.pread(descriptor, SLOTS * _SLOT.size, 0)
    finally:
        os.close(descriptor)
    return sorted((slot for slot in _slots(octets) if 0 <= slot[0] < _END), reverse=True)


def _slots(octets: bytes) -> Iterator[tuple[float, str]]:
    for at, text in _SLOT.iter_unpack(octets[: len(octets) // _SLOT.size * _SLOT.size]):
        yield at, text.rstrip(b"\0").decode("utf-8", "replace")
