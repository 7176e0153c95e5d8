# SPDX-License-Identifier: GPL-3.0-or-later
"""Moves the ledger's records from the spool into the store: one process a host.

How far a file has been taken in is committed together with its records, so that nothing is lost or comes twice,
whatever dies when. Where the store is away, the records wait in the spool.
"""

from __future__ import annotations

import contextlib
import fcntl
import os
import time
from collections.abc import Callable
from pathlib import Path
from typing import Optional

from gatepost.service import spool
from gatepost.service.config import Config
from gatepost.service.database import Database, make_file
from gatepost.service.ledger import Record, newer, record
from gatepost.service.ledger_store import (
    Batch,
    forget_file,
    keep_positions,
    position,
    set_loaded_until,
    take_in,
    trim,
)
from gatepost.service.store import StoreError

BATCH_BYTES = 1 << 18
TELL_EVERY_S = 30.0
"""How often other hosts are told up to when this one's records are in the store."""
STATEMENT_S = 30.0
TURN_S = 5.0
LOCK_NAME = "loader.lock"
LOADED_NAME = "loaded"
"""A file whose time of modification says: what was recorded before is in the store."""


class Loader:
    """The loader for one state directory. *lock* must be had first: two at a time would only be in each other's way."""

    def __init__(self, config: Config, count: Callable[[str, int], None] = lambda result, count: None) -> None:
        self._config = config
        self.folder = config.ledger_folder
        self._count = count
        self._opened: Optional[Database] = None
        self._host = os.uname().nodename
        self._positions: dict[str, int] = {}
        self._tell_at = 0.0
        self._lock_fd = -1

    @property
    def _database(self) -> Database:
        if self._opened is None:
            self._opened = Database(self._config.store_url, STATEMENT_S)
        return self._opened

    def lock(self) -> bool:
        """Take the lock, if nobody has it. Raises OSError."""
        if self._lock_fd >= 0:
            return True
        _make_folder(self.folder)
        make_file(self.folder / LOCK_NAME)
        fd = os.open(self.folder / LOCK_NAME, os.O_RDWR | os.O_CLOEXEC | os.O_NOFOLLOW)
        try:
            fcntl.flock(fd, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except OSError:
            os.close(fd)
            return False
        self._lock_fd = fd
        self._positions.clear()
        return True

    def close(self) -> None:
        if self._opened is not None:
            self._opened.close()
        if self._lock_fd >= 0:
            os.close(self._lock_fd)
            self._lock_fd = -1

    def load(self, turn_s: float = TURN_S) -> bool:
        """Take in one batch of each file that has more; return whether all is in. Raises StoreError, OSError.

        It returns soon after *turn_s*: whoever calls it shows signs of life in between.
        """
        began, begin = time.time(), time.monotonic()
        done = True
        failed: Optional[OSError] = None
        for number, path in enumerate(spool.files(self.folder)):
            if number and time.monotonic() - begin > turn_s:
                done = False
                break
            try:
                done = self._load_from(path) and done
            except OSError as error:  # the other files shall not wait for this one
                failed = error
        if failed is not None:
            raise failed
        if done:
            self._tell(began)
        return done

    def waiting_bytes(self) -> int:
        """Return what is in the spool and not in the store, as far as that is known without the store."""
        try:
            sizes = {path.name: path.stat().st_size for path in spool.files(self.folder)}
        except OSError:
            return 0
        return sum(max(0, size - self._positions.get(name, 0)) for name, size in sizes.items())

    def trim(self) -> int:
        """Forget some of what is too old or too much, unless another one is the loader; return how many rows it was."""
        if self._lock_fd < 0:
            return 0
        ledger, now = self._config.ledger, time.time()
        keep_positions(self._database, [name for name, reached in self._positions.items() if reached], now)
        deleted = trim(self._database, ledger.days, ledger.rows, now)
        self._count("trimmed", deleted)
        return deleted

    def _load_from(self, path: Path) -> bool:
        """Take in a batch and return whether that was all. A file without a writer goes then."""
        with contextlib.ExitStack() as stack:
            try:
                fd = os.open(path, os.O_RDONLY | os.O_CLOEXEC | os.O_NOFOLLOW)
            except FileNotFoundError:
                return True
            stack.callback(os.close, fd)
            written = _is_written(fd)  # before it is read: what comes after that is read the next time
            size = os.fstat(fd).st_size
            begin = self._position(path.name)
            if begin < size:
                octets = os.pread(fd, BATCH_BYTES, begin)
                if newer(octets):
                    raise OSError(f"{path.name}: a newer release has written it, and has to take it in")
                whole = octets.rfind(b"\n") + 1
                if whole == 0 and (len(octets) == BATCH_BYTES or not written):
                    whole = len(octets)  # no line of ours
                if whole:
                    begin = self._take_in(Batch(path.name, begin, begin + whole, self._records(octets[:whole])))
            if not written and begin >= size:
                path.unlink()
                del self._positions[path.name]
                forget_file(self._database, path.name)
            return begin >= size

    def _position(self, name: str) -> int:
        if name not in self._positions:
            self._positions[name] = position(self._database, name)
        return self._positions[name]

    def _take_in(self, batch: Batch) -> int:
        try:
            reached = take_in(self._database, batch, self._host, time.time())
        except StoreError:
            self._positions.pop(batch.file, None)  # it may have been committed
            raise
        self._positions[batch.file] = reached
        if reached == batch.end:
            self._count("loaded", len(batch.records))
        return reached

    def _records(self, octets: bytes) -> list[Record]:
        records = []
        for line in octets.splitlines():
            try:
                records.append(record(line))
            except (ValueError, TypeError):
                self._count("damaged", 1)
        return records

    def _tell(self, until: float) -> None:
        """Say up to when everything is in the store: here by a file's time, to other hosts by the store."""
        loaded = self.folder / LOADED_NAME
        _make_folder(self.folder)
        make_file(loaded)
        os.utime(loaded, (until, until))
        if time.monotonic() >= self._tell_at:
            set_loaded_until(self._database, self._host, until)
            self._tell_at = time.monotonic() + TELL_EVERY_S


def _make_folder(folder: Path) -> None:
    """Make *folder* where it is not there. Made by root, for a report, it is for the daemon's user. Raises OSError."""
    with contextlib.suppress(FileExistsError):
        folder.mkdir(mode=0o700)
        if os.geteuid() == 0:
            state = folder.parent.stat()
            os.chown(folder, state.st_uid, state.st_gid, follow_symlinks=False)


def _is_written(fd: int) -> bool:
    """Tell whether the spool file's writer is alive: it holds a lock."""
    try:
        fcntl.flock(fd, fcntl.LOCK_SH | fcntl.LOCK_NB)
    except BlockingIOError:
        return True
    return False
