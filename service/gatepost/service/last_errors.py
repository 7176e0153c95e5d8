# SPDX-License-Identifier: GPL-3.0-or-later
"""The last errors that the daemons of one state folder have logged, kept in a small file for `gatepost status`.

A fixed number of slots: Unix time, then the line in UTF-8, filled up with NUL. The oldest gives way. Two processes that
take the same slot at the same moment lose one of the lines; the log has both.
"""

from __future__ import annotations

import contextlib
import os
import struct
from collections.abc import Iterator
from pathlib import Path

FILE = "last-errors"
SLOTS = 16
_SLOT = struct.Struct("<d504s")


def keep(path: Path, line: str, now: float) -> None:
    """Put *line* in place of the oldest one in *path*; *now* in Unix seconds.

    Where the file can't be written nothing happens: that must not stop mail, and the log has the line.
    """
    with contextlib.suppress(OSError):
        descriptor = os.open(path, os.O_RDWR | os.O_CREAT | os.O_NOFOLLOW | os.O_CLOEXEC, 0o640)
        try:
            times = [at for at, _ in _slots(os.pread(descriptor, SLOTS * _SLOT.size, 0))]
            oldest = len(times) if len(times) < SLOTS else times.index(min(times))
            text = line.encode("utf-8", "backslashreplace")
            os.pwrite(descriptor, _SLOT.pack(now, text), oldest * _SLOT.size)
        finally:
            os.close(descriptor)


def read(path: Path) -> list[tuple[float, str]]:
    """Return the lines in *path* and when each was logged (Unix seconds), the newest first. Raises OSError."""
    try:
        octets = path.read_bytes()
    except FileNotFoundError:
        return []
    return sorted(_slots(octets), reverse=True)


def _slots(octets: bytes) -> Iterator[tuple[float, str]]:
    for at, text in _SLOT.iter_unpack(octets[: len(octets) // _SLOT.size * _SLOT.size]):
        yield at, text.rstrip(b"\0").decode("utf-8", "replace")
