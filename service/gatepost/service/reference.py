# SPDX-License-Identifier: GPL-3.0-or-later
"""Random references that tie a reply to its line in the log."""

from __future__ import annotations

import base64
import os


def new_reference() -> str:
    """Return ten base32 characters, 50 random bits."""
    return base64.b32encode(os.urandom(10))[:10].decode("ascii")
