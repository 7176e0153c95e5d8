# SPDX-License-Identifier: GPL-3.0-or-later
"""All targets by name; each is made in a folder of its own."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from pathlib import Path

from . import addresses, files, logs, requests, session
from .engine import Target

TARGETS: Mapping[str, Callable[[Path], Target]] = {
    **addresses.TARGETS,
    **requests.TARGETS,
    **files.TARGETS,
    **logs.TARGETS,
    **session.TARGETS,
}
