# SPDX-License-Identifier: GPL-3.0-or-later
"""The ledger's spool: each worker appends its records to a file of its own, from which the loader takes them.

A record is with the kernel when `add` returns, so it outlives the worker, whatever kills that. A file belongs to its
writer for as long as that holds a lock on it (flock(2), which ends with the process); after that the loader deletes
it once all of it is in the store.
"""

from __future__ import annotations

import contextlib
import fcntl
import os
import threading
import time
from collections.abc import Sequence
from pathlib import Path

from gatepost.service import log, metrics
from gatepost.service.ledger import Record, line
from gatepost.service.series import Series

SEGMENT_BYTES = 1 << 20
"""A file that has grown to this is left to the loader, and another one begun."""
SEGMENT_S = 600.0
"""So is one of this age, for what is in the store shall not stay here for longer than need be."""
REFUSALS = 1000
REFUSALS_PER_S = 5.0
"""Refusals at RCPT that one worker records: so many at once, then so many a second. A flood fills no store."""
LOG_EVERY_S = 60.0
WAIT_S = 5.0
"""How long a thread waits for another one to write. Disks stall for seconds; longer is one that hangs, which takes one
thread of each worker."""
SUFFIX = ".spool"


class Spool:
    """What one worker process adds to the ledger; its threads may share it.

    folder: made where it is missing. limit_bytes: of all files in it together. Nothing is opened before the first
    record; a process that forks after that must not go on using it.
    """

    def __init__(self, folder: Path, limit_bytes: int, series: Series, segment_s: float = SEGMENT_S) -> None:
        self._folder = folder
        self._limit_bytes = limit_bytes
        self._series = series
        self._segment_s = segment_s
        self._lock = threading.Lock()
        self._busy_since = 0.0
        self._refusals_lock = threading.Lock()
        self._fd = -1
        self._size = 0
        self._begun_at = 0.0
        self._full_until = 0.0
        self._refusals = float(REFUSALS)
        self._refused_at = 0.0
        self._complain_at = 0.0
        self._lost = 0

    def add(self, records: Sequence[Record]) -> bool:
        """Append *records*, all or none. False: they are lost, which is counted and logged."""
        octets = b"".join(map(line, records))
        if not self._enter():
            self._lose(len(records), "the disk does not answer")
            return False
        try:
            self._append(octets)
        except OSError as error:
            self._lose(len(records), error.strerror or str(error))
            return False
        finally:
            self._busy_since = 0.0
            self._lock.release()
        self._series.add(metrics.LEDGER_RECORDS, ("spooled",), len(records))
        return True

    def _enter(self) -> bool:
        """Take the lock. False: another thread has been writing for WAIT_S."""
        since = self._busy_since or time.monotonic()
        if not self._lock.acquire(timeout=max(0.0, since + WAIT_S - time.monotonic())):
            return False
        self._busy_since = time.monotonic()
        return True

    def add_refusal(self, record: Record) -> bool:
        """Append a refusal, unless there were too many of late, which is counted. False: it is lost."""
        now = time.monotonic()
        with self._refusals_lock:
            earned = (now - self._refused_at) * REFUSALS_PER_S
            self._refusals = min(float(REFUSALS), self._refusals + earned)
            self._refused_at = now
            may = self._refusals >= 1
            self._refusals -= may
        if not may:
            self._series.add(metrics.LEDGER_RECORDS, ("omitted",))
            return True
        return self.add([record])

    def tick(self) -> None:
        """Leave a file to the loader that is old enough; to be called now and then. It never waits."""
        if self._fd < 0 or time.monotonic() - self._begun_at < self._segment_s:
            return
        if self._lock.acquire(blocking=False):
            try:
                self._leave()
            finally:
                self._lock.release()

    def close(self) -> None:
        """Leave the file to the loader."""
        with self._lock:
            self._leave()

    def _leave(self) -> None:
        if self._fd >= 0:
            os.close(self._fd)
            self._fd = -1

    def _append(self, octets: bytes) -> None:
        if self._fd >= 0 and (self._size >= SEGMENT_BYTES or not os.fstat(self._fd).st_nlink):
            self._leave()  # it is long enough, or somebody has deleted it
        if self._fd < 0:
            self._begin()
        written = os.write(self._fd, octets)
        if written != len(octets):
            self._take_back()
            raise OSError("the file system is full")
        self._size += written

    def _take_back(self) -> None:
        """Remove what is half there. The loader may have read it already, so nothing more goes into this file."""
        with contextlib.suppress(OSError):
            os.ftruncate(self._fd, self._size)
        self._leave()
        self._full_until = time.monotonic() + 1.0

    def _begin(self) -> None:
        """Begin a file. It gets its name once it is locked, for a file without a lock is done with."""
        if time.monotonic() >= self._full_until:
            self._folder.mkdir(mode=0o700, exist_ok=True)
            if spooled_bytes(self._folder) >= self._limit_bytes:
                self._full_until = time.monotonic() + 1.0
        if time.monotonic() < self._full_until:
            raise OSError("the spool or its file system is full")
        name = f"{time.time_ns():020d}-{os.getpid()}"
        new = self._folder / f"{name}.new"
        fd = os.open(new, os.O_WRONLY | os.O_CREAT | os.O_EXCL | os.O_APPEND | os.O_CLOEXEC, 0o600)
        try:
            fcntl.flock(fd, fcntl.LOCK_EX)
            os.rename(new, self._folder / f"{name}{SUFFIX}")
        except OSError:
            os.close(fd)
            new.unlink()
            raise
        self._fd, self._size, self._begun_at = fd, 0, time.monotonic()

    def _lose(self, count: int, why: str) -> None:
        self._series.add(metrics.LEDGER_RECORDS, ("lost",), count)
        self._series.add(metrics.ERRORS, ("ledger", "spool"))
        self._lost += count
        if time.monotonic() >= self._complain_at:
            log.error(f"ledger: {self._folder}: {why}; {self._lost} records are lost")
            self._complain_at = time.monotonic() + LOG_EVERY_S
            self._lost = 0


def files(folder: Path) -> list[Path]:
    """Return the files in the spool, the oldest first."""
    return sorted(folder.glob(f"*{SUFFIX}"))


def spooled_bytes(folder: Path) -> int:
    """Return the size of all files of the spool together."""
    total = 0
    for path in folder.iterdir():
        with contextlib.suppress(FileNotFoundError):
            total += path.stat().st_size
    return total
