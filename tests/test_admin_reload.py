# SPDX-License-Identifier: GPL-3.0-or-later
"""Who is told to reload: supervisors that run, never a process that has the number of one that ran."""

from __future__ import annotations

import signal
import time
from pathlib import Path

from gatepost.admin.reload import reload_daemons
from gatepost.service.config import parse
from gatepost.service.series import Series


def test_a_supervisor_of_before_the_last_boot_gets_no_signal(tmp_path: Path) -> None:
    (tmp_path / "metrics").mkdir()
    series = Series.create(tmp_path / "metrics/supervisor.milter-0.series")  # with the number of this process
    series.beat(time.monotonic() + 1e6)
    told: list[int] = []
    before = signal.signal(signal.SIGHUP, lambda number, _: told.append(number))
    try:
        found = reload_daemons(parse({"state_directory": str(tmp_path)}, tmp_path / "gatepost.toml"))
    finally:
        signal.signal(signal.SIGHUP, before)
    assert (found, told) == ([], [])
