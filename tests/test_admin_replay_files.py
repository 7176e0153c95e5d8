# SPDX-License-Identifier: GPL-3.0-or-later
"""Log files are read in the order of time, compressed or not, whatever their lines are like."""

from __future__ import annotations

import bz2
import gzip
import lzma
from pathlib import Path

import pytest

from gatepost.admin.replay_files import LONGEST_LINE, LogUnreadableError, chunks, in_order, total_size


def lines(*paths: Path) -> list[bytes]:
    return [line for some in chunks(list(map(str, paths)), lambda _: None, lambda: None) for line in some]


def test_rotated_files_come_oldest_first_whatever_the_shell_made_of_them() -> None:
    given = ["/var/log/mail.log", "/var/log/mail.log.1", "/var/log/mail.log.10.gz", "/var/log/mail.log.2.gz"]
    assert in_order(given) == list(reversed([given[0], given[1], given[3], given[2]]))


def test_files_rotated_by_date_come_oldest_first() -> None:
    given = ["maillog", "maillog-20261122.xz", "maillog-20261115.xz"]
    assert in_order(given) == ["maillog-20261115.xz", "maillog-20261122.xz", "maillog"]


def test_logs_of_other_names_stay_in_the_order_given() -> None:
    assert in_order(["mx2.log", "-", "mx1.log.1", "mx1.log", "mx1.log.2"]) == [
        *("mx2.log", "-", "mx1.log.2", "mx1.log.1", "mx1.log")
    ]


@pytest.mark.parametrize(
    ("name", "octets"),
    [
        ("mail.log", b"one\ntwo\n"),
        ("mail.log.gz", gzip.compress(b"one\n") + gzip.compress(b"two\n")),
        ("mail.log.bz2", bz2.compress(b"one\ntwo\n")),
        ("mail.log.xz", lzma.compress(b"one\ntwo\n")),
    ],
    ids=["plain", "gz", "bz2", "xz"],
)
def test_compressed_file_is_read_by_its_name(tmp_path: Path, name: str, octets: bytes) -> None:
    path = tmp_path / name
    path.write_bytes(octets)
    assert lines(path) == [b"one", b"two"]


def test_last_line_needs_no_end(tmp_path: Path) -> None:
    path = tmp_path / "mail.log"
    path.write_bytes(b"one\ntwo")
    assert lines(path) == [b"one", b"two"]


def test_line_of_megabytes_is_cut_and_told(tmp_path: Path) -> None:
    path = tmp_path / "mail.log"
    path.write_bytes(b"one\n" + b"x" * 3_000_000 + b"\ntwo\n" + b"y" * 3_000_000)
    told: list[bool] = []
    found = [line for some in chunks([str(path)], lambda _: None, lambda: told.append(True)) for line in some]
    assert [line[:3] for line in found] == [b"one", b"xxx", b"two", b"yyy"]
    assert max(map(len, found)) <= LONGEST_LINE
    assert len(told) == 2


def test_progress_is_told_in_bytes_on_the_disk(tmp_path: Path) -> None:
    path = tmp_path / "mail.log.gz"
    path.write_bytes(gzip.compress(b"one\n" * 100_000))
    steps: list[int] = []
    for _ in chunks([str(path)], steps.append, lambda: None):
        pass
    assert sum(steps) == path.stat().st_size == total_size([str(path)])


@pytest.mark.parametrize(
    ("name", "octets"),
    [
        ("a.gz", b"no gzip"),
        ("b.gz", gzip.compress(b"one\n" * 1000)[:-20]),
        ("c.xz", b"no xz"),
        ("d.bz2", b"no bzip2"),
        ("e.gz", gzip.compress(b"one\n")[:15] + b"\xff" * 20),
    ],
    ids=["no gzip", "cut gzip", "no xz", "no bzip2", "broken gzip"],
)
def test_broken_file_is_named(tmp_path: Path, name: str, octets: bytes) -> None:
    path = tmp_path / name
    path.write_bytes(octets)
    with pytest.raises(LogUnreadableError, match=name):
        lines(path)


def test_missing_file_and_folder_are_named(tmp_path: Path) -> None:
    with pytest.raises(LogUnreadableError, match=r"nothing: No such file"):
        lines(tmp_path / "nothing")
    with pytest.raises(LogUnreadableError, match=r"Is a directory"):
        lines(tmp_path)


@pytest.mark.parametrize("name", ["mail.log", "mail.log.gz"])
def test_line_may_end_in_cr_lf_wherever_it_is_cut(tmp_path: Path, name: str) -> None:
    octets = b"one\r\n" * 200_000 + b"two\r"
    path = tmp_path / name
    path.write_bytes(gzip.compress(octets) if name.endswith("gz") else octets)
    found = lines(path)
    assert (set(found), len(found)) == ({b"one", b"two"}, 200_001)


def test_long_line_between_short_ones_is_cut_and_told(tmp_path: Path) -> None:
    path = tmp_path / "mail.log"
    path.write_bytes(b"one\n" + b"x" * (LONGEST_LINE + 1) + b"\ntwo\n")
    told: list[bool] = []
    found = [line for some in chunks([str(path)], lambda _: None, lambda: told.append(True)) for line in some]
    assert [len(line) for line in found] == [3, LONGEST_LINE, 3]
    assert len(told) == 1
