# SPDX-License-Identifier: GPL-3.0-or-later
"""A small file system for tests, to be filled."""

from __future__ import annotations

import contextlib
import subprocess
from collections.abc import Iterator
from pathlib import Path

import pytest


@contextlib.contextmanager
def mounted(folder: Path, size: str = "1m") -> Iterator[Path]:
    """Mount a file system of *size* on *folder*, which is made; the test is skipped where that is not allowed."""
    folder.mkdir()
    done = subprocess.run(["mount", "-t", "tmpfs", "-o", f"size={size}", "gatepost", str(folder)], capture_output=True)
    if done.returncode:
        pytest.skip("mounting a file system is not allowed here")
    try:
        yield folder
    finally:
        subprocess.run(["umount", "--lazy", str(folder)], check=True)


def fill(folder: Path) -> None:
    """Write a file that leaves no room on the disk of *folder*."""
    with (folder / "ballast").open("wb", 0) as ballast, contextlib.suppress(OSError):
        while ballast.write(bytes(4096)):
            pass
