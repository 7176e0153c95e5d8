# SPDX-License-Identifier: GPL-3.0-or-later
"""What gatepost's processes use: memory second by second, and descriptors, threads and files when all is at rest."""

from __future__ import annotations

import contextlib
import os
import re
import statistics
import threading
import time
from collections import Counter, defaultdict
from collections.abc import Iterable, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import NamedTuple, Optional

from gatepost.service.exporter import collect
from soak.hosts import Host, descendants

EVERY_S = 1.0
SUPERVISOR = "supervisor"
_SETTLED_S = 2.0
"""A worker younger than this is still loading what it needs."""
_ENOUGH = 0.01
"""Of squared minutes: less tells nothing of a slope."""


class Sample(NamedTuple):
    """at: seconds of the monotonic clock. age_s: how long this process had been seen."""

    at: float
    host: str
    role: str
    pid: int
    age_s: float
    kib: int


@dataclass
class Memory:
    """A thread that notes the proportional set size of each process. A context manager."""

    hosts: Sequence[Host]
    samples: list[Sample] = field(default_factory=list)

    def __enter__(self) -> Memory:
        self._stopped = threading.Event()
        self._roles: dict[int, str] = {}
        self._seen: dict[int, float] = {}
        self._thread = threading.Thread(target=self._run, daemon=True)
        self._thread.start()
        return self

    def __exit__(self, *_: object) -> None:
        self._stopped.set()
        self._thread.join()

    def _run(self) -> None:
        while not self._stopped.wait(EVERY_S):
            for host in self.hosts:
                with contextlib.suppress(Exception):
                    self._look(host)

    def _look(self, host: Host) -> None:
        self._roles.update(roles(host))
        now = time.monotonic()
        for pid in descendants(host.pid):
            role = self._roles.get(pid)
            if role:
                age_s = now - self._seen.setdefault(pid, now)
                self.samples.append(Sample(now, host.name, role, pid, age_s, _pss_kib(pid)))

    def slopes(self, begin: float, end: float) -> dict[str, float]:
        """Return by host and role how many KiB a minute a process gained between two moments, by least squares.

        All processes of a role have the slope in common, each with a height of its own.
        """
        series: dict[str, dict[int, list[tuple[float, float]]]] = defaultdict(lambda: defaultdict(list))
        for sample in self.samples:
            if begin <= sample.at <= end and sample.age_s >= _SETTLED_S:
                series[f"{sample.host} {sample.role}"][sample.pid].append((sample.at / 60, sample.kib))
        return {name: slope for name, each in sorted(series.items()) if (slope := _slope(each.values())) is not None}

    def together(self, begin: float, end: float) -> dict[str, float]:
        """Return by host how many KiB a minute all of its processes gained together."""
        sums: dict[str, dict[float, int]] = defaultdict(lambda: defaultdict(int))
        for sample in self.samples:
            if begin <= sample.at <= end:
                sums[sample.host][sample.at] += sample.kib
        series = {host: [(at / 60, float(kib)) for at, kib in each.items()] for host, each in sums.items()}
        return {host: slope for host, points in series.items() if (slope := _slope([points])) is not None}

    def generations(self, begin: float, end: float) -> dict[str, float]:
        """Return by host and role how many KiB a minute more a process has at the same age than the ones before it."""
        young: dict[str, dict[int, list[tuple[float, float]]]] = defaultdict(lambda: defaultdict(list))
        for sample in self.samples:
            if begin <= sample.at <= end and _SETTLED_S <= sample.age_s < _SETTLED_S + 2 * EVERY_S:
                young[f"{sample.host} {sample.role}"][0].append((sample.at / 60, sample.kib))
        return {name: slope for name, each in sorted(young.items()) if (slope := _slope(each.values())) is not None}


def _slope(series: Iterable[Sequence[tuple[float, float]]]) -> Optional[float]:
    """Return the slope that fits all series best, each with a height of its own; None where there is too little."""
    products = squares = 0.0
    for points in series:
        times, values = zip(*points)
        middle, level = statistics.fmean(times), statistics.fmean(values)
        products += sum((time - middle) * (value - level) for time, value in points)
        squares += sum((time - middle) ** 2 for time in times)
    return products / squares if squares > _ENOUGH else None


def roles(host: Host) -> dict[int, str]:
    """Return the role of each of a host's processes, as far as its series files tell."""
    found = {host.pid: SUPERVISOR}
    with contextlib.suppress(OSError):
        for process in collect(host.state_directory / "metrics").processes:
            if not process.daemon.startswith(SUPERVISOR):
                found[process.pid] = process.daemon.partition(".")[0]
    return found


def _pss_kib(pid: int) -> int:
    """Return the proportional set size without files, whose share depends on what else runs on the machine."""
    text = Path(f"/proc/{pid}/smaps_rollup").read_text()
    return sum(map(int, re.findall(r"^Pss_(?:Anon|Shmem): +(\d+) kB", text, re.MULTILINE)))


class Rest(NamedTuple):
    """What there is when nothing is under way: processes by role; of each role the most threads and descriptors of one
    process; the sockets' files; files in the state folder, without those that mail makes."""

    processes: dict[str, int]
    threads: dict[str, int]
    descriptors: dict[str, int]
    sockets: list[str]
    files: list[str]


def at_rest(host: Host) -> Rest:
    known = roles(host)
    processes: Counter[str] = Counter()
    threads: dict[str, int] = {}
    descriptors: dict[str, int] = {}
    for pid in descendants(host.pid):
        role = known.get(pid, "unknown")
        processes[role] += 1
        with contextlib.suppress(OSError):
            threads[role] = max(threads.get(role, 0), len(os.listdir(f"/proc/{pid}/task")))
            descriptors[role] = max(descriptors.get(role, 0), len(os.listdir(f"/proc/{pid}/fd")))
    return Rest(dict(processes), threads, descriptors, sockets(host), _files(host))


def sockets(host: Host) -> list[str]:
    return sorted(path.name for path in (host.postfix.queue_directory / "gatepost").iterdir())


def _files(host: Host) -> list[str]:
    names = (str(path.relative_to(host.state_directory)) for path in host.state_directory.rglob("*"))
    return sorted({re.sub(r"\d+", "N", name) for name in names})
