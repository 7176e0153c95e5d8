# SPDX-License-Identifier: GPL-3.0-or-later
"""Have the running daemons load their configuration anew, and wait for what comes of it."""

from __future__ import annotations

import os
import signal
import time
from enum import Enum
from pathlib import Path

from gatepost.service.config import Config
from gatepost.service.metrics import RELOADS
from gatepost.service.series import Series, Totals, attached
from gatepost.service.supervisor import RELOAD_S, series_folder

_POLL_S = 0.05
_SILENT_S = 3.0
"""A supervisor that has not beaten for so long is not running."""


class Outcome(Enum):
    """What became of a reload, in words."""

    LOADED = "loaded"
    KEPT = "refused the configuration and goes on with the one before; its log says why"
    SILENT = "did not answer in time"
    FORBIDDEN = "cannot be told to reload: run this as root or as its user"


def reload_daemons(config: Config) -> list[tuple[str, Outcome]]:
    """Tell every supervisor of this state directory to reload; return names and outcomes, none where none runs."""
    paths = sorted(series_folder(config).glob("supervisor.*-0.series"))
    found = [(path, series) for path in paths for series in attached([path])]
    return [(_name(path), _reload(series)) for path, series in found if _runs(series)]


def _name(path: Path) -> str:
    return path.name[len("supervisor.") : -len("-0.series")]


def _runs(series: Series) -> bool:
    # A heartbeat of the future was written before the last boot; its process is another one by now.
    return 0 <= time.monotonic() - series.heartbeat < _SILENT_S


def _reload(series: Series) -> Outcome:
    before = _reloads(series)
    try:
        os.kill(series.pid, signal.SIGHUP)
    except PermissionError:
        return Outcome.FORBIDDEN
    except ProcessLookupError:
        return Outcome.SILENT
    deadline = time.monotonic() + RELOAD_S + _SILENT_S
    while time.monotonic() < deadline:
        done = _reloads(series)
        if done["kept"] > before["kept"]:
            return Outcome.KEPT
        if done["loaded"] > before["loaded"]:
            return Outcome.LOADED
        time.sleep(_POLL_S)
    return Outcome.SILENT


def _reloads(series: Series) -> dict[str, float]:
    totals: Totals = {}
    series.add_to(totals)
    counts = dict.fromkeys(("loaded", "kept"), 0.0)
    for (metric, labels), values in totals.items():
        if metric is RELOADS:
            counts[labels[1]] = values[0]
    return counts
