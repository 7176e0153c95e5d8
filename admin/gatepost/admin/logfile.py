# SPDX-License-Identifier: GPL-3.0-or-later
"""The log of a process that the demo or a test has started: read it, wait for a line."""

from __future__ import annotations

import re
import time
from collections.abc import Callable
from pathlib import Path

POLL_S = 0.02
_TAIL_LINES = 30


class SandboxError(Exception):
    """Postfix or gatepost did not do what it had to; the text says what, and ends with the tail of its log."""


class LogFile:
    """The log of *whose* in *path*. *ended* tells whether the process has ended, so that waiting is in vain."""

    def __init__(self, path: Path, whose: str, ended: Callable[[], bool]) -> None:
        self.path = path
        self._whose = whose
        self._ended = ended

    def text(self) -> str:
        """Return the whole log, "" before it is there."""
        return self.path.read_text(errors="surrogateescape") if self.path.exists() else ""

    def tail(self) -> str:
        """Return its end, with a heading, as the end of an error's text."""
        return "\n".join(["", f"--- tail of {self.path}", *self.text().splitlines()[-_TAIL_LINES:]])

    def wait_for(self, pattern: str, timeout_s: float, start: int) -> re.Match[str]:
        """Return the first match of *pattern* (`^` and `$` are a line's) after *start* characters of the log.

        start: len(text()) from before the event, where the pattern may have matched earlier.
        Raises SandboxError with the log's tail if the process ends or *timeout_s* passes.
        """
        regex = re.compile(pattern, re.MULTILINE)
        deadline = time.monotonic() + timeout_s
        while True:
            ended = self._ended()
            match = regex.search(self.text(), start)
            if match:
                return match
            if ended:
                raise SandboxError(f"{self._whose} ended while waiting for {pattern!r}{self.tail()}")
            if time.monotonic() > deadline:
                raise SandboxError(f"{pattern!r} did not appear within {timeout_s} s{self.tail()}")
            time.sleep(POLL_S)
