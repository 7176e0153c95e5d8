# SPDX-License-Identifier: GPL-3.0-or-later
"""Log lines on standard error: one write(2) each, safe against what mail puts into them.

Under systemd each line carries its level for the journal; elsewhere a time and the process stand before it.
`logging` costs six times as much a line, and a milter writes one for every message.
"""

from __future__ import annotations

import contextlib
import os
import time
import traceback
from pathlib import Path
from typing import Optional

from gatepost.service import last_errors

_CONTROL = dict.fromkeys((*range(32), 127, *range(128, 160)), "?")
_HELO_LENGTH = 255


def _leads_to_journal(descriptor: int) -> bool:
    """Tell whether *descriptor* is the journal's, by device and inode (systemd.exec(5)): a child's may be a file."""
    with contextlib.suppress(OSError):
        status = os.fstat(descriptor)
        return os.environ.get("JOURNAL_STREAM") == f"{status.st_dev}:{status.st_ino}"
    return False


_journal = _leads_to_journal(2)
_program = "gatepost"
_errors: Optional[Path] = None
_second = (0, "")


def name_process(name: str) -> None:
    """Set the name that this process's lines begin with, as in `gatepost/milter`."""
    global _program
    _program = f"gatepost/{name}"


def keep_errors(file: Path) -> None:
    """Keep errors in *file*, too, where `gatepost status` finds the last ones."""
    global _errors
    _errors = file


def mark(level: int) -> str:
    """Return what stands before a line of such a level (syslog(3)) where standard error is the journal's, else ""."""
    return f"<{level}>" if _journal else ""


def info(text: str) -> None:
    _write(6, text)


def warning(text: str) -> None:
    _write(4, f"warning: {text}")


def error(text: str) -> None:
    _write(3, f"error: {text}")
    _keep(text)


def fault(text: str, raised: BaseException) -> None:
    """Log a fault of gatepost's own, with the traceback, one line of it a line."""
    _write(3, f"error: {text}")
    for chunk in traceback.format_exception(type(raised), raised, raised.__traceback__):
        for line in chunk.splitlines():
            _write(3, f"error: {line}")
    _keep(f"{text} ({type(raised).__name__}: {raised})")


def address(text: str) -> str:
    """Return an address as it stands in a line; no > in it can end it early and begin a field of its own."""
    return "<" + text.replace("<", "?").replace(">", "?") + ">"


def helo(name: str) -> str:
    """Return a HELO name as it stands in a line, as far as a host's name can be long."""
    return address(name[:_HELO_LENGTH])


def _keep(text: str) -> None:
    if _errors:
        last_errors.keep(_errors, f"{_program.rpartition('/')[2]}: {text.translate(_CONTROL)}", time.time())


def _time() -> str:
    global _second
    now = int(time.time())
    if _second[0] != now:  # to make the text takes longer than all the rest of a line
        _second = now, time.strftime("%Y-%m-%dT%H:%M:%S", time.localtime(now))
    return _second[1]


def _write(level: int, text: str) -> None:
    head = mark(level) or f"{_time()} {_program}[{os.getpid()}]: "
    shown = text if text.isprintable() else text.translate(_CONTROL)
    line = f"{head}{shown}\n".encode("utf-8", "backslashreplace")
    with contextlib.suppress(OSError):  # a log that is gone or full must not stop mail
        os.write(2, line)
