# SPDX-License-Identifier: GPL-3.0-or-later
"""Reads files that the configuration names, and nothing else that may stand in their place.

A pipe would stop the supervisor until somebody writes into it, a device might never end.
"""

from __future__ import annotations

import errno
import os
import stat
from pathlib import Path
from typing import BinaryIO

MAX_OCTETS = 64 << 20


def open_regular(path: Path, *, follow: bool = True) -> BinaryIO:
    """Open a regular file for reading; *follow*: also where *path* is a link to one. Raises OSError."""
    flags = os.O_RDONLY | os.O_NONBLOCK | os.O_CLOEXEC | (0 if follow else os.O_NOFOLLOW)
    file = open(os.open(path, flags), "rb")  # noqa: SIM115  the caller closes it
    if stat.S_ISREG(os.fstat(file.fileno()).st_mode):
        return file
    file.close()
    raise OSError(errno.EINVAL, "is no regular file", str(path))


def read_regular(path: Path) -> bytes:
    """Return what a regular file of at most 64 MiB holds. Raises OSError."""
    with open_regular(path) as file:
        octets = file.read(MAX_OCTETS + 1)
    if len(octets) > MAX_OCTETS:
        raise OSError(errno.EFBIG, "is larger than 64 MiB", str(path))
    return octets
