# SPDX-License-Identifier: GPL-3.0-or-later
"""Log lines on standard error: one write(2) each, safe against what mail puts into them.

Under systemd each line carries its level for the journal; elsewhere a time and the process stand before it.
`logging` costs six times as much a line, and a milter writes one for every message.
"""

from __future__ import annotations

import contextlib
import os
import select
import stat
import time
import traceback
from collections.abc import Callable
from pathlib import Path
from typing import Optional

from gatepost.service import last_errors

_CONTROL = dict.fromkeys((*range(32), 127, *range(128, 160)), "?")
_HELO_LENGTH = 255
WAIT_S = 0.5
"""How long a line waits for who reads the log."""


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
_output: Optional[Callable[[bytes], int]] = None
_unlogged = 0
_torn = b""


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


def _shown(character: str) -> str:
    """Return what a reader sees: what moves text or breaks lines (U+202E, U+2028) is escaped."""
    return character if character.isprintable() else character.encode("ascii", "backslashreplace").decode()


def _write(level: int, text: str) -> None:
    head = mark(level) or f"{_time()} {_program}[{os.getpid()}]: "
    shown = text if text.isprintable() else "".join(map(_shown, text.translate(_CONTROL)))
    _put_out(head, f"{head}{shown}\n".encode("utf-8", "backslashreplace"))


def _put_out(head: str, line: bytes) -> None:
    """Write *line*. A log that is gone, full or not read must not stop mail; how many lines were not read is said.

    A reader that is only slow is waited for; not so, until it reads again, one that was in vain.
    """
    global _output, _unlogged, _torn
    _output = _output or _without_waiting()
    lack, until = _unlogged, 0.0
    if lack:
        line = _torn + f"{mark(4) or head}warning: {lack} lines could not be logged\n".encode() + line
    left = line
    try:
        while left:
            try:
                left = left[_output(left) :]
            except BlockingIOError:
                until = until or time.monotonic() + (0.0 if lack else WAIT_S)
                wait_s = until - time.monotonic()
                if wait_s <= 0.0:
                    _unlogged += 1
                    _torn = b"\n" if len(left) < len(line) else _torn
                    return
                select.select([], [2], [], wait_s)
    except OSError:
        return
    if lack:
        _unlogged -= lack
        _torn = b""


def _without_waiting() -> Callable[[bytes], int]:
    """Return what writes to standard error and never waits for its reader, be it the journal or a program."""
    with contextlib.suppress(OSError):
        mode = os.fstat(2).st_mode
        if stat.S_ISSOCK(mode):
            import socket

            journal = socket.socket(fileno=os.dup(2))
            return lambda line: journal.send(line, socket.MSG_DONTWAIT)
        if stat.S_ISFIFO(mode):  # opened anew: O_NONBLOCK is for all who share an open file; fails for another's pipe
            pipe = os.open("/proc/self/fd/2", os.O_WRONLY | os.O_NONBLOCK | os.O_CLOEXEC)
            return lambda line: os.write(pipe, line)
    return lambda line: os.write(2, line)
