# SPDX-License-Identifier: GPL-3.0-or-later
"""The ledger's loader as the supervisor runs it. SQLAlchemy is loaded in its own process only."""

from __future__ import annotations

import os
import signal
import time
from typing import TYPE_CHECKING

from gatepost.service import log, metrics
from gatepost.service.config import Config
from gatepost.service.series import Series
from gatepost.service.signals import wait_for_one
from gatepost.service.snapshot import Snapshot
from gatepost.service.store import StoreError

if TYPE_CHECKING:
    from gatepost.service.loader import Loader

POLL_S = 0.25
RETRY_S = 2.0
DRAIN_S = 10.0
LOG_EVERY_S = 60.0
TRIM_EVERY_S = 600.0
NICENESS = 5
"""Mail comes first; yet where it takes all that the machine has, a third of a worker's share is the loader's, and as
much is more than its rows need. With 10 it would be a tenth."""


class LedgerDaemon:
    """The loader as the supervisor runs it. Of two supervisors with one state directory only one has it work."""

    silence_s = 90.0  # above what one statement may take

    def __init__(self, name: str) -> None:
        self.name = name
        self._complain_at = 0.0

    def workers(self, config: Config) -> int:
        return 1 if config.ledger.days else 0

    def open(self) -> None:
        """It listens nowhere."""

    def release(self) -> None:
        """Nothing is open but in the worker."""

    def close(self) -> None:
        """Nothing is open but in the worker."""

    def serve(self, snapshot: Snapshot, series: Series, index: int) -> None:
        """Load until SIGUSR1, and then what is left, for DRAIN_S at most."""
        series.ready = True  # what follows takes long to load, and no mail waits for it
        os.nice(NICENESS)
        from gatepost.service.loader import Loader

        loader = Loader(snapshot.config, lambda result, count: series.add(metrics.LEDGER_RECORDS, (result,), count))
        pause_s = 0.0
        trim_at = 0.0
        while not wait_for_one({signal.SIGUSR1}, pause_s):
            series.beat(time.monotonic())
            pause_s = self._load(loader, series)
            if pause_s < RETRY_S and time.monotonic() >= trim_at:
                pause_s, trim_at = self._trim(loader, pause_s)
        end = time.monotonic() + DRAIN_S
        while self._load(loader, series) == 0.0 and time.monotonic() < end:
            series.beat(time.monotonic())
        loader.close()

    def _load(self, loader: Loader, series: Series) -> float:
        """Load a batch; return after how many seconds to go on."""
        began = time.time()
        try:
            if not loader.lock():
                return POLL_S
            done = loader.load()
        except (StoreError, OSError) as error:
            self._complain(loader, series, error)
            return RETRY_S
        series.set(metrics.LEDGER_BACKLOG, (self.name,), 0 if done else loader.waiting_bytes())
        if done:
            series.set(metrics.LEDGER_LOADED, (self.name,), began)
        return POLL_S if done else 0.0

    def _trim(self, loader: Loader, pause_s: float) -> tuple[float, float]:
        """Forget some of what is too old; return when to go on with the loop, and when with this."""
        try:
            if loader.trim():
                return 0.0, 0.0
        except (StoreError, OSError) as error:
            log.warning(f"ledger: what is too old cannot be deleted: {error}")
        return pause_s, time.monotonic() + TRIM_EVERY_S

    def _complain(self, loader: Loader, series: Series, error: Exception) -> None:
        series.add(metrics.ERRORS, ("ledger", "store"))
        series.set(metrics.LEDGER_BACKLOG, (self.name,), loader.waiting_bytes())
        if time.monotonic() >= self._complain_at:
            log.error(f"ledger: {error}; {loader.waiting_bytes()} bytes of records wait in {loader.folder}")
            self._complain_at = time.monotonic() + LOG_EVERY_S
