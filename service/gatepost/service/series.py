# SPDX-License-Identifier: GPL-3.0-or-later
"""Keeps one process's metrics in a file that other processes read while it is written.

A series file is an array of 8-byte words in the machine's own byte order. Header: magic, used words, pid,
life (a random number, for file names come again), ready, heartbeat (a double, CLOCK_MONOTONIC in seconds).
Then entries, only ever added: length of the key in words, the key (metric name and label values in UTF-8,
each ended by a line feed, filled up with line feeds), number of values, the values as doubles. The values of
a histogram are the counts of its buckets, each by itself, the count above the last bound, and the sum.

Files: ``<daemon>-<n>.series`` of each process, ``<daemon>-retired.series`` with the sums of those that ended.
Whoever sums attaches the retired files last and leaves out the lives that they list. Retired files stay when their
daemon stops, for what milter and policyd count is one sum, and to Prometheus a sum that falls has begun anew. They
begin with 0 when the host boots, as does the clock of their heartbeat: the time at which they were written.
"""

from __future__ import annotations

import contextlib
import errno
import math
import mmap
import os
import struct
import threading
import time
from bisect import bisect_left
from collections.abc import Callable, Iterable, Iterator, Sequence
from pathlib import Path

from gatepost.service.metrics import BY_NAME, CATALOGUE, Counter, Gauge, Histogram, Metric

# The file is sparse: 10,000 organisations with four outcomes each fit, and only what is used takes room.
CAPACITY_BYTES = 4 * 1024 * 1024
# Room is taken from the file system in steps, ahead of use: a write through mmap to a full disk is a SIGBUS.
STEP_BYTES = 64 * 1024
# How many lives a retired file lists: more than end while somebody sums.
LIVES = 1000

_MAGIC = int.from_bytes(b"gpseri01", "little")
_AT_MAGIC, _AT_USED, _AT_PID, _AT_LIFE, _AT_READY, _AT_HEARTBEAT, _FIRST = range(7)
_FOLDED = "folded"
_NO_SEPARATORS = {0: " ", 10: " "}

Labels = tuple[str, ...]
Totals = dict[tuple[Metric, Labels], list[float]]


class SeriesError(Exception):
    """A file is not a series file, or not one of this version."""


class Series:
    """The metrics of one process: created for it, by itself or before its fork, or attached by a reader.

    One process writes. Its threads may share it; a signal handler must not, for it may have interrupted the
    holder of the lock.
    """

    def __init__(self, memory: mmap.mmap, fd: int = -1) -> None:
        """Used by create() and attach() only."""
        self._bytes = memoryview(memory)
        self._words = self._bytes.cast("q")
        self._values = self._bytes.cast("d")
        self._fd = fd
        self._allocated = 0
        self._index: dict[Metric, dict[Labels, int]] = {metric: {} for metric in CATALOGUE}
        # CPython 3.10 and later happen not to switch threads inside `values[i] += n`; 3.9 does.
        self._lock = threading.Lock()

    @classmethod
    def create(cls, path: Path) -> Series:
        """Make an empty file in place of what is at *path*. Raises OSError, also where the disk is full."""
        path.unlink(missing_ok=True)
        fd = os.open(path, os.O_RDWR | os.O_CREAT | os.O_EXCL | os.O_CLOEXEC, 0o640)
        try:
            os.ftruncate(fd, CAPACITY_BYTES)
            os.posix_fallocate(fd, 0, STEP_BYTES)
            series = cls(mmap.mmap(fd, CAPACITY_BYTES), fd)
        except OSError:
            os.close(fd)
            path.unlink()
            raise
        return series._begun(STEP_BYTES)

    def _begun(self, allocated: int) -> Series:
        self._allocated = allocated
        self._words[_AT_USED], self._words[_AT_LIFE] = _FIRST, _new_life()
        self.beat(time.monotonic())
        for metric in CATALOGUE:
            self._place(metric, metric.other)
        self._words[_AT_MAGIC] = _MAGIC
        return self

    @classmethod
    def unshown(cls) -> Series:
        """Return one in memory, which a process shares with its children and no reader sees."""
        return cls(mmap.mmap(-1, CAPACITY_BYTES))._begun(CAPACITY_BYTES)

    @classmethod
    def attach(cls, path: Path) -> Series:
        """Open *path* to read; what its owner writes afterwards is seen. Raises OSError, SeriesError."""
        with open(path, "rb") as file:
            size = os.fstat(file.fileno()).st_size // 8 * 8
            if size < _FIRST * 8:
                raise SeriesError(f"{path}: {size} bytes are too few for a series file")
            series = cls(mmap.mmap(file.fileno(), size, access=mmap.ACCESS_READ))
        if series._words[_AT_MAGIC] != _MAGIC:
            raise SeriesError(f"{path}: not a series file of this version")
        return series

    def __del__(self) -> None:
        if self._fd >= 0:
            os.close(self._fd)

    @property
    def pid(self) -> int:
        """The process that last called beat(), or made the file."""
        return self._words[_AT_PID]

    @property
    def life(self) -> int:
        """The number of this one run of the process."""
        return self._words[_AT_LIFE]

    @property
    def heartbeat(self) -> float:
        """When the process last called beat(), or made the file."""
        return self._values[_AT_HEARTBEAT]

    def beat(self, now: float) -> None:
        """Show that the process is alive at *now* (time.monotonic(), one clock for all processes)."""
        self._words[_AT_PID] = os.getpid()
        self._values[_AT_HEARTBEAT] = now

    @property
    def ready(self) -> bool:
        """True while the process takes work."""
        return self._words[_AT_READY] == 1

    @ready.setter
    def ready(self, ready: bool) -> None:
        self._words[_AT_READY] = int(ready)

    def add(self, metric: Counter, labels: Labels = (), amount: float = 1.0) -> None:
        """Add *amount*, not negative, to a counter."""
        with self._lock:
            index = self._index[metric].get(labels)
            if index is None:
                index = self._place(metric, labels)
            self._values[index] += amount

    def observer(self, metric: Histogram, labels: Labels) -> Callable[[float], None]:
        """Return what counts a value, not negative, in its bucket and adds it to the sum. To be kept: it is fast."""
        buckets, values, lock = metric.buckets, self._values, self._lock
        with lock:
            index = self._index[metric].get(labels)
            if index is None:
                index = self._place(metric, labels)
        at_sum = index + len(buckets) + 1

        def observe(value: float) -> None:
            with lock:
                values[index + bisect_left(buckets, value)] += 1.0
                values[at_sum] += value

        return observe

    def set(self, metric: Gauge, labels: Labels, value: float) -> None:
        """Set a gauge; NaN: it is not shown."""
        with self._lock:
            index = self._index[metric].get(labels)
            if index is None:
                index = self._place(metric, labels)
            self._values[index] = value

    def entries(self) -> Iterator[tuple[str, Labels, list[float]]]:
        """Yield name, label values (and what fills up the key) and values, as far as the file is sound."""
        words, at = self._words, _FIRST
        used = min(words[_AT_USED], len(words))
        while at + 2 < used:
            key_words = words[at]
            if not 0 < key_words < used - at - 2:
                return
            key = bytes(self._bytes[(at + 1) * 8 : (at + 1 + key_words) * 8])
            count, first = words[at + 1 + key_words], at + 2 + key_words
            # A zero byte is part of an entry that another processor's write has not wholly reached.
            if not 0 < count <= used - first or b"\0" in key:
                return
            try:
                name, *labels = key.decode().split("\n")
            except UnicodeDecodeError:
                return
            yield name, tuple(labels), list(map(float, self._values[first : first + count]))
            at = first + count

    def folded(self) -> list[int]:
        """The lives whose counts this file holds; of use with a retired file."""
        return [int(life) for name, _, values in self.entries() if name == _FOLDED for life in values]

    def add_to(self, totals: Totals) -> None:
        """Add the counters and histograms to *totals*, put the gauges there, leave out what is unknown."""
        for name, parts, values in self.entries():
            metric = BY_NAME.get(name)
            if metric is None or len(values) != metric.width or len(parts) < len(metric.labels):
                continue
            labels = parts[: len(metric.labels)]
            if labels and labels == metric.other and not any(values):
                continue
            if isinstance(metric, Gauge) and math.isnan(values[0]):
                continue
            known = totals.get((metric, labels))
            if known is None or isinstance(metric, Gauge):
                totals[metric, labels] = values
            else:
                totals[metric, labels] = [a + b for a, b in zip(known, values)]

    def _place(self, metric: Metric, labels: Labels) -> int:
        """Return the place of a new label set's values, the overflow series' where there is no room."""
        if len(labels) != len(metric.labels):
            raise ValueError(f"{metric.name} has labels {metric.labels}, not {labels}")
        entry = _entry(metric.name, labels, [0.0] * metric.width)
        start = self._words[_AT_USED]
        end = start + len(entry) // 8
        if self._allocate(end * 8):
            self._bytes[start * 8 : end * 8] = entry
            # Readers look no further than this word, so it is written when the entry is whole.
            self._words[_AT_USED] = end
            index = end - metric.width
        else:
            index = self._index[metric][metric.other]
        self._index[metric][labels] = index
        return index

    def _allocate(self, size_bytes: int) -> bool:
        """Return whether the file has room on the disk up to *size_bytes*."""
        if size_bytes > CAPACITY_BYTES:
            return False
        while size_bytes > self._allocated:
            try:
                os.posix_fallocate(self._fd, self._allocated, STEP_BYTES)
            except OSError as error:
                if error.errno in (errno.ENOSPC, errno.EDQUOT):
                    return False
                raise
            self._allocated += STEP_BYTES
        return True


def retired_path(folder: Path, daemon: str) -> Path:
    """The file with the sums of ended workers."""
    return folder / f"{daemon}-retired.series"


def clear(folder: Path) -> None:
    """Remove what was counted before the last boot: its heartbeat is of the future."""
    for path in folder.glob("*.series"):
        if any(series.heartbeat > time.monotonic() for series in attached([path])):
            path.unlink(missing_ok=True)


def put_away(folder: Path, daemon: str) -> None:
    """Fold what is left of all workers of *daemon*: of those that were killed with their supervisor.

    Before it starts, and as the last thing when it stops in good order. What cannot be folded is dropped.
    """
    for path in folder.glob(f"{daemon}-*.series"):
        if path != retired_path(folder, daemon):
            with contextlib.suppress(OSError):
                fold(folder, daemon, path)
            path.unlink(missing_ok=True)


def fold(folder: Path, daemon: str, dead_path: Path) -> None:
    """Move the counters and histograms of an ended worker into the retired file of *daemon*, gauges not.

    The retired file is replaced in one rename by one that also lists the worker's life; only then the
    worker's file is unlinked. So a sum made at any moment counts the worker exactly once. What cannot be
    read is dropped. Raises OSError, as where the disk is full: the worker's file stays and counts as before.
    """
    totals: Totals = {}
    lives: list[int] = []
    for retired in attached([retired_path(folder, daemon)]):
        retired.add_to(totals)
        lives = retired.folded()
    for dead in attached([dead_path]):
        if dead.life not in lives:
            dead.add_to(totals)
            _write_retired(retired_path(folder, daemon), totals, [*lives, dead.life][-LIVES:])
    dead_path.unlink(missing_ok=True)


def attached(paths: Iterable[Path]) -> list[Series]:
    """Attach all of *paths* that can be read."""
    found = []
    for path in paths:
        try:
            found.append(Series.attach(path))
        except (OSError, SeriesError):
            continue
    return found


def _write_retired(path: Path, totals: Totals, lives: Sequence[float]) -> None:
    entries = [_entry(_FOLDED, (), lives)]
    for (metric, labels), values in totals.items():
        if not isinstance(metric, Gauge):
            entries.append(_entry(metric.name, labels, values))
    body = b"".join(entries)
    header = struct.pack("=qqqqqd", _MAGIC, _FIRST + len(body) // 8, 0, 0, 0, time.monotonic())
    fresh = path.with_suffix(".series-new")
    fresh.write_bytes(header + body)
    os.replace(fresh, path)


def _entry(name: str, labels: Labels, values: Sequence[float]) -> bytes:
    parts = [part.translate(_NO_SEPARATORS) for part in (name, *labels)]
    key = "".join(part + "\n" for part in parts).encode("utf-8", "replace")
    key += b"\n" * (-len(key) % 8)
    return struct.pack(f"=q{len(key)}sq{len(values)}d", len(key) // 8, key, len(values), *values)


def _new_life() -> int:
    # 48 bits, for a retired file lists lives among its doubles.
    return int.from_bytes(os.urandom(6), "little")
