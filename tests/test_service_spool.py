# SPDX-License-Identifier: GPL-3.0-or-later
"""The ledger's spool: what `add` returned True for is there, whatever became of the process or the disk."""

from __future__ import annotations

import fcntl
import os
import resource
import signal
import subprocess
import sys
import threading
import time
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager
from pathlib import Path

import pytest
from daemonprocess import ROOTS, poll
from smalldisk import fill

from gatepost.service import spool
from gatepost.service.ledger import Entry, Record, line, record
from gatepost.service.series import Series
from gatepost.service.spool import Spool

MEGABYTE = 1 << 20
WRITER = """
import sys
from pathlib import Path
from gatepost.service.ledger import Entry
from gatepost.service.series import Series
from gatepost.service.spool import Spool
spool = Spool(Path(sys.argv[1]), 1 << 30, Series.unshown())
number = 0
while spool.add([Entry(f"r{number}", f"{rcpt}@contoso.com", 1.0, subject="x" * 900) for rcpt in "ab"]):
    print(f"r{number}", flush=True)
    number += 1
"""


def entry(name: str, text: str = "") -> Entry:
    return Entry(name, "ann@contoso.com", 1_700_000_000.0, subject=text)


@pytest.fixture
def series() -> Series:
    return Series.unshown()


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    return tmp_path / "ledger"


@pytest.fixture
def make(folder: Path, series: Series) -> Iterator[Callable[..., Spool]]:
    made: list[Spool] = []

    def make_spool(folder: Path = folder, limit_bytes: int = 1 << 30) -> Spool:
        made.append(Spool(folder, limit_bytes, series))
        return made[-1]

    yield make_spool
    for one in made:
        one.close()


def records(folder: Path) -> list[Record]:
    """All that is in the spool; fails where a line is damaged."""
    return [record(text) for path in spool.files(folder) for text in path.read_bytes().splitlines(keepends=True)]


def names(folder: Path) -> list[str]:
    return [made.reference for made in records(folder) if isinstance(made, Entry)]


def counts(series: Series) -> dict[str, int]:
    """How many records were counted, by result."""
    found = {labels[0]: int(values[0]) for name, labels, values in series.entries() if "ledger_records" in name}
    return {result: count for result, count in found.items() if count}


def has_writer(path: Path) -> bool:
    with path.open("rb") as file:
        try:
            fcntl.flock(file, fcntl.LOCK_SH | fcntl.LOCK_NB)
        except BlockingIOError:
            return True
        return False


@contextmanager
def longest_file(size: int) -> Iterator[None]:
    """Have this process write no file longer than *size*."""
    soft, hard = resource.getrlimit(resource.RLIMIT_FSIZE)
    resource.setrlimit(resource.RLIMIT_FSIZE, (size, hard))
    try:
        yield
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, (soft, hard))


# What is there


def test_records_are_in_one_file_in_their_order(make: Callable[..., Spool], folder: Path, series: Series) -> None:
    added = make()
    assert added.add([entry("a"), entry("b")])
    assert added.add([entry("c")])
    assert records(folder) == [entry("a"), entry("b"), entry("c")]
    assert len(spool.files(folder)) == 1
    assert counts(series) == {"spooled": 3}


def test_nothing_is_opened_before_the_first_record(make: Callable[..., Spool], folder: Path) -> None:
    make().close()
    assert not folder.exists()


def test_folder_and_file_are_for_their_owner_only(make: Callable[..., Spool], folder: Path) -> None:
    make().add([entry("a")])
    assert folder.stat().st_mode & 0o777 == 0o700
    assert [path.stat().st_mode & 0o777 for path in folder.iterdir()] == [0o600]


def test_file_is_locked_as_long_as_it_may_grow(make: Callable[..., Spool], folder: Path) -> None:
    written = make()
    written.add([entry("a")])
    (path,) = spool.files(folder)
    assert has_writer(path)
    written.close()
    assert not has_writer(path)


def test_file_of_a_megabyte_is_left_to_the_loader_and_another_begun(make: Callable[..., Spool], folder: Path) -> None:
    written = make()
    for number in range(1500):
        assert written.add([entry(f"r{number}", "x" * 900)])
    old, new = spool.files(folder)
    assert (has_writer(old), has_writer(new)) == (False, True)
    assert names(folder) == [f"r{number}" for number in range(1500)]


def test_spool_that_was_closed_goes_on_in_another_file(make: Callable[..., Spool], folder: Path) -> None:
    written = make()
    written.add([entry("a")])
    written.close()
    written.add([entry("b")])
    assert names(folder) == ["a", "b"]
    assert len(spool.files(folder)) == 2


def test_threads_share_a_spool_and_every_line_is_whole(make: Callable[..., Spool], folder: Path) -> None:
    written = make()

    def add(thread: int) -> None:
        for number in range(200):
            written.add([entry(f"t{thread}x{number}", "ö" * number), entry(f"u{thread}x{number}")])

    threads = [threading.Thread(target=add, args=(number,)) for number in range(8)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join(30)
    expected = [f"{kind}{thread}x{number}" for kind in "tu" for thread in range(8) for number in range(200)]
    assert sorted(names(folder)) == sorted(expected)


def test_disk_that_stalls_for_seconds_loses_nothing(make: Callable[..., Spool], folder: Path) -> None:
    spool = make()
    assert spool._enter()
    spool._busy_since = time.monotonic() - 3.0  # another thread's write has taken so long
    with ThreadPoolExecutor(1) as pool:
        waiting = pool.submit(spool.add, [entry("m1")])
        spool._lock.release()
        assert waiting.result(20)
    assert names(folder) == ["m1"]


def test_every_record_that_was_added_before_kill_9_is_there(folder: Path) -> None:
    for _ in range(3):
        writer = subprocess.Popen(
            [sys.executable, "-c", WRITER, str(folder)],
            env={"PATH": os.environ["PATH"], "PYTHONPATH": ":".join(ROOTS)},
            stdout=subprocess.PIPE,
        )
        assert writer.stdout
        told = [writer.stdout.readline() for _ in range(50)]
        writer.send_signal(signal.SIGKILL)
        told += writer.stdout.readlines()
        writer.wait(20)
        writer.stdout.close()
        added = [octets.decode().strip() for octets in told if octets.endswith(b"\n")]
        octets = b"".join(path.read_bytes() for path in spool.files(folder))
        there = [record(text) for text in octets.splitlines(keepends=True) if text.endswith(b"\n")]
        pairs = {(made.reference, made.recipient) for made in there if isinstance(made, Entry)}
        assert {(name, f"{rcpt}@contoso.com") for name in added for rcpt in "ab"} <= pairs
        for path in spool.files(folder):
            assert not has_writer(path)
            path.unlink()


def test_file_that_is_old_is_left_to_the_loader_without_another_record(folder: Path, series: Series) -> None:
    young, old = Spool(folder, 1 << 30, series, segment_s=60), Spool(folder, 1 << 30, series, segment_s=0)
    for item in (young, old):
        item.add([entry("a")])
        item.tick()
    assert [is_held(path) for path in spool.files(folder)] == [True, False]
    old.add([entry("b")])
    assert names(folder) == ["a", "a", "b"]


def is_held(path: Path) -> bool:
    """Tell whether a file's writer still has it."""
    with path.open("rb") as file:
        try:
            fcntl.flock(file, fcntl.LOCK_SH | fcntl.LOCK_NB)
        except BlockingIOError:
            return True
    return False


# Where there is no room


def test_full_spool_takes_no_more_until_the_loader_has_made_room(
    make: Callable[..., Spool], folder: Path, series: Series, capfd: pytest.CaptureFixture[str]
) -> None:
    written = make(limit_bytes=MEGABYTE)
    added = 0
    while written.add([entry("a", "x" * 900)]):
        added += 1
    assert not any(written.add([entry("a")]) for _ in range(100))
    assert MEGABYTE <= spool.spooled_bytes(folder) < MEGABYTE + 2000
    assert counts(series) == {"spooled": added, "lost": 101}
    errors = capfd.readouterr().err.splitlines()
    assert [text.split("]: ")[1] for text in errors] == [
        f"error: ledger: {folder}: the spool or its file system is full; 1 records are lost"
    ]
    for path in spool.files(folder):
        path.unlink()
    poll(lambda: written.add([entry("b")]), "the spool takes records again")
    assert names(folder) == ["b"]


def test_limit_is_for_all_processes_together(make: Callable[..., Spool], folder: Path) -> None:
    first = make(limit_bytes=MEGABYTE)
    while first.add([entry("a", "x" * 900)]):
        pass
    assert not make(limit_bytes=MEGABYTE).add([entry("b")])


def test_half_written_record_is_taken_back_and_nothing_is_written_after_it(
    make: Callable[..., Spool], folder: Path, series: Series
) -> None:
    written = make()
    assert written.add([entry("before")])
    with longest_file(4096):
        assert not written.add([entry(f"torn{number}", "x" * 900) for number in range(10)])
    # The loader may have read the torn records meanwhile: what took their place in the file it would miss.
    (torn,) = spool.files(folder)
    assert not has_writer(torn)
    assert names(folder) == ["before"]
    poll(lambda: written.add([entry("after")]), "the spool takes records again")
    assert names(folder) == ["before", "after"]
    assert torn.read_bytes() == line(entry("before"))
    assert counts(series)["spooled"] == 2


def test_full_disk_loses_only_what_comes_while_it_is_full(
    make: Callable[..., Spool], small_disk: Path, series: Series
) -> None:
    folder = small_disk / "ledger"
    written = make(folder)
    assert written.add([entry("before")])
    fill(small_disk)
    lost = sum(not written.add([entry(f"during{number}", "x" * 900)]) for number in range(100))
    assert lost > 90
    (small_disk / "ballast").unlink()
    poll(lambda: written.add([entry("after")]), "the spool takes records again")
    there = names(folder)
    assert (there[0], there[-1], len(there)) == ("before", "after", 102 - lost)
    assert counts(series)["spooled"] == 102 - lost
    assert len(list(folder.iterdir())) <= 3


def test_read_only_file_system_loses_records_until_it_is_writable(make: Callable[..., Spool], small_disk: Path) -> None:
    subprocess.run(["mount", "-o", "remount,ro", str(small_disk)], check=True)
    written = make(small_disk / "ledger")
    assert not written.add([entry("during")])
    subprocess.run(["mount", "-o", "remount,rw", str(small_disk)], check=True)
    assert written.add([entry("after")])
    assert names(small_disk / "ledger") == ["after"]


# What somebody does to the folder


def test_missing_state_directory_is_worded_once_and_used_once_it_is_there(
    make: Callable[..., Spool], tmp_path: Path, capfd: pytest.CaptureFixture[str]
) -> None:
    folder = tmp_path / "state" / "ledger"
    written = make(folder)
    assert not any(written.add([entry("a")]) for _ in range(100))
    errors = capfd.readouterr().err.splitlines()
    assert [text.split("]: ")[1] for text in errors] == [
        f"error: ledger: {folder}: No such file or directory; 1 records are lost"
    ]
    (tmp_path / "state").mkdir()
    assert written.add([entry("b")])


@pytest.mark.parametrize("kind", ["file", "dangling link"])
def test_folder_that_is_none_loses_records_and_raises_nothing(
    kind: str, make: Callable[..., Spool], folder: Path
) -> None:
    if kind == "file":
        folder.write_bytes(b"")
    else:
        folder.symlink_to("nowhere")
    written = make()
    assert not written.add([entry("a")])
    folder.unlink()
    assert written.add([entry("b")])


def test_folder_may_be_a_symbolic_link_to_one(make: Callable[..., Spool], folder: Path, tmp_path: Path) -> None:
    (tmp_path / "elsewhere").mkdir()
    folder.symlink_to("elsewhere")
    assert make().add([entry("a")])
    assert names(tmp_path / "elsewhere") == ["a"]


@pytest.mark.skipif(os.geteuid() != 0, reason="only root can do this")
def test_state_directory_of_another_user_loses_records_and_raises_nothing(
    make: Callable[..., Spool], folder: Path, capfd: pytest.CaptureFixture[str]
) -> None:
    written = make()
    os.seteuid(65_534)
    try:
        assert not written.add([entry("a")])
    finally:
        os.seteuid(0)
    assert f"error: ledger: {folder}: Permission denied; 1 records are lost" in capfd.readouterr().err
    assert written.add([entry("b")])


@pytest.mark.parametrize("what", ["the file", "the folder"])
def test_file_that_somebody_deleted_is_not_written_to_any_more(
    what: str, make: Callable[..., Spool], folder: Path
) -> None:
    written = make()
    written.add([entry("a")])
    for path in folder.iterdir():
        path.unlink()
    if what == "the folder":
        folder.rmdir()
    assert written.add([entry("b")])
    assert names(folder) == ["b"]


# A flood of refusals


def test_refusals_beyond_1000_and_5_a_second_are_counted_only(
    make: Callable[..., Spool], folder: Path, series: Series
) -> None:
    written = make()
    begin = time.monotonic()
    assert all(written.add_refusal(entry("refused")) for _ in range(3000))
    earned = 5 * (time.monotonic() - begin)
    there = len(names(folder))
    assert 1000 <= there <= 1000 + earned + 1
    assert counts(series) == {"spooled": there, "omitted": 3000 - there}


def test_flood_of_refusals_leaves_other_records_alone(make: Callable[..., Spool], folder: Path) -> None:
    written = make()
    for number in range(2000):
        written.add_refusal(entry("refused"))
        if number % 100 == 0:
            assert written.add([entry(f"passed{number}")])
    assert sum(name.startswith("passed") for name in names(folder)) == 20


def test_refusal_that_cannot_be_written_is_lost(make: Callable[..., Spool], folder: Path, series: Series) -> None:
    folder.write_bytes(b"")
    assert not make().add_refusal(entry("refused"))
    assert counts(series) == {"lost": 1}
