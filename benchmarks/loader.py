# SPDX-License-Identifier: GPL-3.0-or-later
"""The ledger's loader while the milter records at its full rate: does what waits in the spool grow?"""

from __future__ import annotations

import re
import statistics
import threading
import time
import urllib.request
from collections.abc import Iterator
from typing import NamedTuple

from benchmarks.figures import AT_MOST, Effort, Figure
from benchmarks.installation import CERTIFICATE, Installation
from benchmarks.programs import answer, compiled

SUSTAINED_S = 300.0
SHORT_S = 15.0
"""So long instead, for a second of effort, where less than a second is asked for."""
PARTS = 5
SAMPLES = 500
DRAIN_S = 600.0
WAITING_PART = 0.01


class Sample(NamedTuple):
    """What the metrics say: how many records were written to the spool, and how many of them are in the store."""

    spooled: int
    loaded: int

    @property
    def waiting(self) -> int:
        return self.spooled - self.loaded


def run(effort: Effort) -> Iterator[Figure]:
    """Measure once: it is a matter of minutes, not of rounds."""
    seconds = SUSTAINED_S if effort.seconds >= 1 else SHORT_S * effort.seconds
    with Installation("milter") as installation:
        samples: list[Sample] = []
        done = threading.Event()
        sampling = threading.Thread(target=_watch, args=(installation, samples, done, seconds / SAMPLES))
        sampling.start()
        try:
            load = answer(_load(installation, seconds), timeout_s=seconds + 60)
        finally:
            done.set()
            sampling.join()
        ended = time.monotonic()
        while (last := sample(installation)).waiting and time.monotonic() < ended + DRAIN_S:
            time.sleep(0.05)
        drained_s = time.monotonic() - ended
        rows = installation.rows()
    parts = [samples[len(samples) * part // PARTS : len(samples) * (part + 1) // PARTS] for part in range(PARTS)]
    waiting = [statistics.mean(one.waiting for one in part) for part in parts]
    minutes = f"{seconds / 60:.0f} minutes" if seconds >= 60 else f"{seconds:.0f} s"
    yield Figure(f"messages while the loader is at work, {minutes}", "msg/s", [load["messages_s"]])
    yield Figure("p99 of a message", "ms", [load["message_ms"]["p99"]])
    yield Figure(
        f"records that wait, mean of each fifth of {minutes}",
        "records",
        waiting,
        note=", ".join(f"{value:,.0f}" for value in waiting),
    )
    yield Figure(
        "what the backlog has grown by from the second fifth to the last, of the records of that time",
        "",
        [max(0.0, waiting[-1] - waiting[1]) / (samples[-1].spooled - parts[1][0].spooled)],
        target=WAITING_PART if seconds == SUSTAINED_S else None,  # else the loader's start is most of it
        bound=AT_MOST,
    )
    yield Figure("most that waited", "records", [max(one.waiting for one in samples)])
    yield Figure("until all was in the store, when no more came", "s", [drained_s])
    yield Figure(
        "rows in the store",
        "rows",
        [rows],
        "messages",
        [load["total"]],
        target=1.0,
        note="all are there" if rows == load["total"] == last.loaded else "NOT ALL ARE THERE",
    )


def _load(installation: Installation, seconds: float) -> list[str]:
    """Return the load generator's command: 8 connections, mail that is rewritten."""
    options = {"connections": 8, "seconds": seconds, "headers": 12, "body-kb": 4, "certificate": CERTIFICATE}
    sender, rcpt = "app%d@vendor.example", "user%d@customer.example"
    words = [f"--{name}={value}" for name, value in options.items()]
    address = f"--address={installation.milter_address}"
    return [str(compiled("load_milter")), address, *words, f"--sender={sender}", f"--rcpt={rcpt}"]


def _watch(installation: Installation, samples: list[Sample], done: threading.Event, pause_s: float) -> None:
    while True:
        samples.append(sample(installation))
        if done.wait(pause_s):
            return


def sample(installation: Installation) -> Sample:
    """Ask the metrics."""
    url = f"http://127.0.0.1:{installation.metrics_port}/metrics"
    with urllib.request.urlopen(url, timeout=10) as response:
        text = response.read().decode("utf-8")

    def value(name: str) -> int:
        found = re.search(rf"^{re.escape(name)} (\S+)$", text, re.MULTILINE)
        return int(float(found[1])) if found else 0

    records = 'gatepost_ledger_records_total{{result="{}"}}'.format
    return Sample(value(records("spooled")), value(records("loaded")))
