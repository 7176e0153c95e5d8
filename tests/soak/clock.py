# SPDX-License-Identifier: GPL-3.0-or-later
"""The clock of one host's gatepost, which can jump: for its processes only, see clock.c."""

from __future__ import annotations

import mmap
import struct
import subprocess
import time
from pathlib import Path

DAY_S = 86400
LAG_S = 0.5
"""A decision may rest on the time of so long ago."""


class Clock:
    """How far the clock that gatepost sees differs from the real one, and when it did. *folder* keeps its files."""

    def __init__(self, folder: Path) -> None:
        self._file = folder / "clock"
        self._library = folder / "clock.so"
        source = Path(__file__).with_name("clock.c")
        words = ["-O2", "-Wall", "-Wextra", "-shared", "-fPIC", "-o", str(self._library), str(source)]
        subprocess.run(["gcc", *words], check=True)
        self._file.write_bytes(bytes(mmap.PAGESIZE))
        with self._file.open("r+b") as file:
            self._map = mmap.mmap(file.fileno(), mmap.PAGESIZE)
        self.jumps: list[tuple[float, int]] = []
        self.jump(0)

    def jump(self, offset_s: int) -> None:
        """Set the clock to *offset_s* seconds from the real time."""
        self._map[:8] = struct.pack("=q", offset_s)
        self.jumps.append((time.time(), offset_s))

    @property
    def environment(self) -> dict[str, str]:
        """What a process needs in its environment to go by this clock."""
        return {"LD_PRELOAD": str(self._library), "SOAK_CLOCK": str(self._file)}

    def days(self, begin: float, end: float) -> set[int]:
        """Return the days since 1970-01-01 that the clock has shown between two moments of the real time."""
        found = set()
        for index, (since, offset_s) in enumerate(self.jumps):
            until = self.jumps[index + 1][0] + LAG_S if index + 1 < len(self.jumps) else end
            if since <= end and until >= begin:
                moments = (max(begin, since) + offset_s, min(end, until) + offset_s)
                found |= set(range(int(moments[0]) // DAY_S, int(moments[1]) // DAY_S + 1))
        return found
