# SPDX-License-Identifier: GPL-3.0-or-later
"""The last errors that were logged, as `gatepost status` finds them."""

from __future__ import annotations

import math
import os
import subprocess
import sys
from pathlib import Path

import pytest

from gatepost.service.last_errors import SLOTS, keep, read


def test_lines_come_back_the_newest_first(tmp_path: Path) -> None:
    file = tmp_path / "last-errors"
    keep(file, "the store is away", 1000.5)
    keep(file, "worker 7 died (signal 9)", 1001.0)
    assert read(file) == [(1001.0, "worker 7 died (signal 9)"), (1000.5, "the store is away")]


def test_the_oldest_line_gives_way(tmp_path: Path) -> None:
    file = tmp_path / "last-errors"
    for number in range(SLOTS + 3):
        keep(file, f"line {number}", float(number))
    assert [line for _, line in read(file)] == [f"line {number}" for number in range(SLOTS + 2, 2, -1)]


def test_a_long_line_is_cut(tmp_path: Path) -> None:
    file = tmp_path / "last-errors"
    keep(file, "x" * 2000, 1.0)
    assert read(file) == [(1.0, "x" * 504)]


def test_no_file_is_no_error(tmp_path: Path) -> None:
    assert read(tmp_path / "last-errors") == []


def test_a_file_that_cannot_be_written_stops_nobody(tmp_path: Path) -> None:
    keep(tmp_path / "missing" / "last-errors", "line", 1.0)
    keep(tmp_path, "line", 1.0)


def test_lines_of_the_future_give_way_first(tmp_path: Path) -> None:
    """The clock ran ahead until NTP had set it."""
    file = tmp_path / "last-errors"
    for number in range(SLOTS):
        keep(file, f"ahead {number}", 9000.0 + number)
    for number in range(3):
        keep(file, f"line {number}", 1000.0 + number)
    assert sorted(line for at, line in read(file) if at < 9000) == ["line 0", "line 1", "line 2"]


def test_a_line_of_the_same_moment_in_another_process_stays(tmp_path: Path) -> None:
    file = tmp_path / "last-errors"
    for number in range(SLOTS):
        keep(file, f"line {number}", 1000.0 + number)
    keep(file, "of the milter", 2000.5)
    keep(file, "of policyd", 2000.4)
    assert [line for _, line in read(file)[:2]] == ["of the milter", "of policyd"]


@pytest.mark.parametrize("at", [math.nan, math.inf, 1e300, -1.0])
def test_an_impossible_time_is_left_out_and_gives_way_first(tmp_path: Path, at: float) -> None:
    file = tmp_path / "last-errors"
    for number in range(SLOTS - 1):
        keep(file, f"line {number}", 1000.0)
    keep(file, "odd", at)
    assert "odd" not in [line for _, line in read(file)]
    keep(file, "last", 1001.0)
    assert len(read(file)) == SLOTS


@pytest.mark.parametrize("kind", ["pipe", "folder", "link"])
def test_what_is_no_file_is_not_read(tmp_path: Path, kind: str) -> None:
    path = tmp_path / "last-errors"
    if kind == "pipe":
        os.mkfifo(path)
    elif kind == "folder":
        path.mkdir()
    else:
        path.symlink_to("/etc/passwd")
    with pytest.raises(OSError, match="last-errors"):
        read(path)


def test_other_octets_in_the_file_are_survived(tmp_path: Path) -> None:
    file = tmp_path / "last-errors"
    file.write_bytes(b"\xff" * 700)
    keep(file, "line", 2.0)
    assert (2.0, "line") in read(file)


def test_an_error_that_a_daemon_logs_is_kept_with_its_name_and_of_a_fault_the_first_line(tmp_path: Path) -> None:
    file = tmp_path / "last-errors"
    code = (
        "import pathlib; from gatepost.service import log\n"
        f"log.keep_errors(pathlib.Path({str(file)!r})); log.name_process('milter')\n"
        "log.info('ready'); log.warning('running as root'); log.error('the store is away\\nfor now')\n"
        "try: 1 / 0\n"
        "except ZeroDivisionError as error: log.fault('4CgSNs5Q9s: judging', error)\n"
    )
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True, timeout=30)
    assert "Traceback" in done.stderr
    assert [line for _, line in read(file)] == [
        "milter: 4CgSNs5Q9s: judging (ZeroDivisionError: division by zero)",
        "milter: the store is away?for now",
    ]
