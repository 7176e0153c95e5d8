# SPDX-License-Identifier: GPL-3.0-or-later
"""Starts coverage in a process, and on the threads that libmilter makes; see tests/coverage."""

from __future__ import annotations

import os
import sys
import threading
from typing import Any


def start(settings: str) -> None:
    """Measure this process by the file *settings*, and what it forks."""
    import coverage

    os.environ["COVERAGE_PROCESS_START"] = settings
    coverage.process_startup()
    try:
        import milter
    except ImportError:
        return
    register = milter.register

    def registered(name: str, **callbacks: Any) -> None:
        register(name, **{**callbacks, "negotiate": _traced(callbacks["negotiate"])})

    milter.register = registered


def _traced(negotiate: Any) -> Any:
    """Return the callback that begins a session, which has one thread state for all of its callbacks."""

    def callback(*arguments: Any) -> Any:
        trace = getattr(threading, "_trace_hook", None)
        if sys.gettrace() is None and trace is not None:
            sys.settrace(trace)
        return negotiate(*arguments)

    return callback
