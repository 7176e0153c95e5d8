# SPDX-License-Identifier: GPL-3.0-or-later
"""What a gatepost that runs has in its ledger, in SQLite in its state directory."""

from __future__ import annotations

import sqlite3
import time
from contextlib import closing
from pathlib import Path

from daemonprocess import poll


class Row(dict[str, object]):
    """One row; `row.some` are the values of some columns, in that order."""

    def some(self, *names: str) -> tuple[object, ...]:
        return tuple(self[name] for name in names)


def rows(state: Path, table: str = "ledger") -> list[Row]:
    """Return the rows, the oldest first, once all that was recorded before this call is in the store."""
    wait_until_loaded(state)
    with closing(sqlite3.connect(f"file:{state}/gatepost.db?mode=ro", uri=True)) as database:
        database.row_factory = sqlite3.Row
        order = "time, recipient" if table == "ledger" else "1"
        return [Row(row) for row in database.execute(f"SELECT * FROM {table} ORDER BY {order}")]


def wait_until_loaded(state: Path) -> None:
    """Wait until all that was recorded before this call is in the store."""
    now, loaded = time.time(), state / "ledger/loaded"
    poll(lambda: loaded.exists() and loaded.stat().st_mtime > now, "the ledger's loader has caught up")
