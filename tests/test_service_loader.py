# SPDX-License-Identifier: GPL-3.0-or-later
"""The ledger's loader: every record of the spool is in the store once, whatever dies, breaks or is damaged."""

from __future__ import annotations

import contextlib
import os
import random
import signal
import sqlite3
import subprocess
import sys
import threading
from collections import Counter
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest
from daemonprocess import ROOTS, poll
from forwarder import Forwarder
from ledgerfiles import BEGIN, configuration, entries, entry, spooled, spooled_octets
from postgresql import PostgreSQL, needs_postgresql
from smalldisk import fill

from gatepost.service import ledger_store, spool
from gatepost.service.config import Config
from gatepost.service.database import Database
from gatepost.service.ledger import Bounced, Entry, line
from gatepost.service.loader import LOADED_NAME, LOCK_NAME, Loader
from gatepost.service.series import Series
from gatepost.service.spool import Spool
from gatepost.service.store import StoreError

DAY_S = 86400
LOADER = Path(__file__).parent / "ledgerloader.py"
Query = Callable[[str, str], list[str]]
Make = Callable[[Config], Loader]

needs_root = pytest.mark.skipif(os.geteuid() != 0, reason="only root can do this")


@pytest.fixture
def config(tmp_path: Path, url: str) -> Config:
    return configuration(tmp_path, url)


@pytest.fixture
def counted() -> Counter[str]:
    """What the loaders of a test have counted."""
    return Counter()


@pytest.fixture
def make(counted: Counter[str]) -> Iterator[Make]:
    """Make loaders that are closed afterwards."""
    made: list[Loader] = []

    def make_loader(config: Config) -> Loader:
        made.append(Loader(config, lambda result, count: counted.update({result: count})))
        return made[-1]

    yield make_loader
    for loader in made:
        loader.close()


def load_all(loader: Loader) -> None:
    while not loader.load():
        pass


def loads(loader: Loader) -> Callable[[], bool]:
    """Return a condition: all is in the store."""

    def check() -> bool:
        try:
            return loader.load()
        except StoreError:
            return False

    return check


def locks_and_loads(loader: Loader) -> bool:
    return loader.lock() and loader.load()


def references(query: Query, url: str) -> list[str]:
    return query(url, "SELECT reference FROM ledger ORDER BY time, id")


def expected(count: int) -> list[str]:
    return [f"r{number}" for number in range(count)]


# What is taken in


def test_file_whose_writer_is_gone_is_in_the_store_and_deleted(
    config: Config, url: str, make: Make, query: Query, counted: Counter[str]
) -> None:
    spooled(config.ledger_folder, entries(3))
    loader = make(config)
    assert loader.lock()
    load_all(loader)
    assert references(query, url) == expected(3)
    assert query(url, "SELECT DISTINCT host FROM ledger") == [os.uname().nodename]
    assert sorted(path.name for path in config.ledger_folder.iterdir()) == [LOADED_NAME, LOCK_NAME]
    assert query(url, "SELECT count(*) FROM ledger_spool") == ["0"]
    assert query(url, "SELECT host FROM ledger_host") == [os.uname().nodename]
    assert (counted["loaded"], loader.waiting_bytes()) == (3, 0)


def test_file_with_a_writer_is_taken_in_as_it_grows(config: Config, url: str, make: Make, query: Query) -> None:
    written = Spool(config.ledger_folder, 1 << 30, Series.unshown())
    loader = make(config)
    for number in range(5):
        written.add([entry(number)])
        load_all(loader)
        assert references(query, url) == expected(number + 1)
    assert len(spool.files(config.ledger_folder)) == 1
    written.close()
    load_all(loader)
    assert spool.files(config.ledger_folder) == []
    assert references(query, url) == expected(5)


def test_every_field_comes_back_as_it_was_recorded(config: Config, make: Make) -> None:
    whole = Entry._make(
        {"time": BEGIN + 0.123456, "sender_accepted": 1, "size_bytes": 10**15 - 1}.get(name, f"{name} ö用'\"%s:x;")
        for name in Entry._fields
    )
    bare = Entry("r1", "bob@contoso.com", BEGIN)
    spooled(config.ledger_folder, [whole, bare])
    load_all(make(config))
    database = Database(config.store_url)
    known = database.read(lambda connection: ledger_store._known(connection, [whole.reference, "r1"]))
    database.close()
    assert sorted(found for _, found in known.values()) == sorted([whole, bare])


def test_entries_of_one_recipient_are_one_row_in_whatever_file_they_come(
    config: Config, url: str, make: Make, query: Query
) -> None:
    parts = [
        entry(0)._replace(queue_id="4Cg1"),
        entry(0)._replace(egress_queue_id="4Cg2", action="rewrite"),
        entry(0)._replace(helo="app"),
    ]
    spooled(config.ledger_folder, [parts[1], parts[0]], 1)
    spooled(config.ledger_folder, [parts[2]], 2)
    loader = make(config)
    load_all(loader)
    spooled(config.ledger_folder, [parts[0], entry(0)._replace(recipient="bob@contoso.com")], 3)
    load_all(loader)
    statement = "SELECT recipient, queue_id, egress_queue_id, helo, action FROM ledger ORDER BY recipient"
    assert query(url, statement) == ["ann@contoso.com|4Cg1|4Cg2|app|rewrite", "bob@contoso.com||||pass"]


def test_look_ups_for_one_bounce_count_once_and_the_next_bounce_again(
    config: Config, url: str, make: Make, query: Query
) -> None:
    times = [BEGIN + 200, BEGIN, BEGIN + 10, BEGIN + 210, BEGIN + 90]
    spooled(config.ledger_folder, [Bounced("a@contoso.com", time) for time in times])
    load_all(make(config))
    assert query(url, "SELECT count, last FROM bounce") in ([f"3|{BEGIN + 210}"], [f"3|{int(BEGIN + 210)}"])


def test_many_files_and_batches_are_each_in_the_store_once(
    config: Config, url: str, make: Make, query: Query, counted: Counter[str]
) -> None:
    for number in range(6):
        spooled(config.ledger_folder, entries(500, 500 * number, "x" * 500), number)
    load_all(make(config))
    assert references(query, url) == expected(3000)
    assert counted["loaded"] == 3000


def test_longest_texts_fit_into_the_store_and_its_index(config: Config, url: str, make: Make, query: Query) -> None:
    noise = random.Random(1)
    text = "".join(chr(noise.randrange(0x10000, 0x20000)) for _ in range(600))
    spooled(config.ledger_folder, [Entry._make((text, text, BEGIN, *[text] * 7, 1, *[text] * 10, None, *[text] * 5))])
    spooled(config.ledger_folder, [Bounced(text, BEGIN), *entries(1)], 1)
    load_all(make(config))
    assert query(url, "SELECT count(*) FROM ledger") == ["2"]


def test_one_call_goes_on_for_its_time_only(config: Config, make: Make) -> None:
    for number in range(3):
        spooled(config.ledger_folder, entries(1, number), number)
    loader = make(config)
    assert [loader.load(0.0) for _ in range(3)] == [False, False, True]


# Damage


@pytest.mark.parametrize(
    ("junk", "damaged"),
    [
        (b"junk\n", 1),
        (b"\n", 1),
        (b"\0" * 5000 + b"\n", 1),
        (b"\xff\xfe\n", 1),
        (b"[1]\n" + b"[" * 100_000 + b"\n", 2),
        (line(entry(7))[:100], 1),
        (line(entry(7))[100:], 1),
        (line(entry(7)).replace(b"[2,", b"[3,"), 1),
        (line(entry(7)).replace(b"17900000", b"-1"), 1),
        (line(entry(7)).replace(b"null", b"NaN"), 1),
        (line(entry(7)).replace(b"null", b"99999999999999999999999"), 1),
        (b"x" * 300_000 + b"\n", 2),
        (b"x" * 600_000 + b"\n", 3),
    ],
    ids=lambda value: repr(value[:12]) if isinstance(value, bytes) else "",
)
def test_damaged_lines_are_counted_and_the_rest_is_loaded(
    junk: bytes,
    damaged: int,
    tmp_path: Path,
    sqlite_url: str,
    make: Make,
    query: Query,
    counted: Counter[str],
) -> None:
    config = configuration(tmp_path, sqlite_url)
    # Half a line takes the next one with it: a line feed of its own is what a writer never leaves out.
    ends = junk.endswith(b"\n")
    after = line(entry(1)) if ends else b"\n" + line(entry(1))
    spooled_octets(config.ledger_folder, line(entry(0)) + junk + after)
    spooled(config.ledger_folder, [entry(2)], 1)
    load_all(make(config))
    assert references(query, sqlite_url) == expected(3)
    assert counted["damaged"] == damaged
    assert spool.files(config.ledger_folder) == []


def test_torn_end_of_a_file_is_damaged_only_once_its_writer_is_gone(
    tmp_path: Path, sqlite_url: str, make: Make, counted: Counter[str]
) -> None:
    config = configuration(tmp_path, sqlite_url)
    written = Spool(config.ledger_folder, 1 << 30, Series.unshown())
    written.add([entry(0)])
    (path,) = spool.files(config.ledger_folder)
    with path.open("ab") as file:
        file.write(line(entry(1))[:100])
    loader = make(config)
    assert not loader.load()
    assert (counted["loaded"], counted["damaged"]) == (1, 0)
    written.close()
    load_all(loader)
    assert (counted["loaded"], counted["damaged"]) == (1, 1)


@pytest.mark.parametrize("kind", ["link", "folder"])
def test_file_that_cannot_be_read_is_named_and_the_others_are_loaded(
    kind: str, tmp_path: Path, sqlite_url: str, make: Make, query: Query
) -> None:
    config = configuration(tmp_path, sqlite_url)
    for number in (0, 2):
        spooled(config.ledger_folder, [entry(number // 2)], number)
    bad = config.ledger_folder / f"{1:020d}-1.spool"
    if kind == "link":
        bad.symlink_to("nowhere")
    else:
        bad.mkdir()
    loader = make(config)
    with pytest.raises(OSError, match=bad.name if kind == "link" else "directory"):
        loader.load()
    assert references(query, sqlite_url) == expected(2)
    bad.unlink() if kind == "link" else bad.rmdir()
    assert loader.load()


def test_file_that_somebody_deleted_is_no_error(tmp_path: Path, sqlite_url: str, make: Make) -> None:
    config = configuration(tmp_path, sqlite_url)
    written = Spool(config.ledger_folder, 1 << 30, Series.unshown())
    written.add([entry(0)])
    loader = make(config)
    load_all(loader)
    for path in spool.files(config.ledger_folder):
        path.unlink()
    assert loader.load()
    assert loader.waiting_bytes() == 0
    written.close()


def test_file_that_was_cut_short_after_it_was_read_is_done_with(tmp_path: Path, sqlite_url: str, make: Make) -> None:
    config = configuration(tmp_path, sqlite_url)
    written = Spool(config.ledger_folder, 1 << 30, Series.unshown())
    written.add(entries(3))
    loader = make(config)
    load_all(loader)
    (path,) = spool.files(config.ledger_folder)
    os.truncate(path, 10)
    assert loader.load()
    written.close()
    assert loader.load()
    assert spool.files(config.ledger_folder) == []


# Whoever dies


def test_loader_killed_at_any_moment_loads_every_record_once(
    config: Config, url: str, make: Make, query: Query
) -> None:
    for number in range(8):
        spooled(config.ledger_folder, entries(600, 600 * number, "x" * 500), number)
        bounces = [Bounced(f"b{each}@contoso.com", BEGIN) for each in range(50)]
        spooled(config.ledger_folder, bounces, 100 + number)
    noise = random.Random(2)
    for _ in range(6):
        process = subprocess.Popen(
            [sys.executable, str(LOADER), str(config.path)],
            env={"PATH": os.environ["PATH"], "PYTHONPATH": ":".join(ROOTS)},
            stdout=subprocess.PIPE,
        )
        assert process.stdout
        for _ in range(noise.randrange(1, 4)):
            process.stdout.readline()
        with contextlib.suppress(subprocess.TimeoutExpired):
            process.wait(noise.uniform(0, 0.05))  # somewhere in the midst of a batch
        process.send_signal(signal.SIGKILL)
        process.wait(20)
        process.stdout.close()
    loader = make(config)
    assert loader.lock()
    load_all(loader)
    assert references(query, url) == expected(4800)
    assert query(url, "SELECT count(*), min(count), max(count) FROM bounce") == ["50|1|1"]
    assert query(url, "SELECT count(*) FROM ledger_spool") in (["0"], ["1"])


def test_only_one_loader_has_the_lock_and_the_next_goes_on_where_it_ended(
    config: Config, url: str, make: Make, query: Query, counted: Counter[str]
) -> None:
    written = Spool(config.ledger_folder, 1 << 30, Series.unshown())
    first, second = make(config), make(config)
    assert (first.lock(), second.lock(), first.lock()) == (True, False, True)
    written.add(entries(3))
    load_all(first)
    first.close()
    assert second.lock()
    written.add(entries(3, 3))
    load_all(second)
    written.close()
    assert references(query, url) == expected(6)
    assert counted["loaded"] == 6


def test_two_loaders_at_a_time_load_every_record_once(config: Config, url: str, make: Make, query: Query) -> None:
    # As where somebody deletes the lock file.
    for number in range(6):
        spooled(config.ledger_folder, entries(400, 400 * number, "x" * 500), number)
    bounces = [Bounced(f"b{number}@contoso.com", BEGIN + 100 * time) for time in range(3) for number in range(50)]
    spooled(config.ledger_folder, bounces, 9)

    def load() -> None:
        loader = make(config)
        done = False
        while not done:
            with contextlib.suppress(StoreError, FileNotFoundError):
                done = loader.load()

    threads = [threading.Thread(target=load) for _ in range(2)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join(60)
    assert references(query, url) == expected(2400)
    assert query(url, "SELECT count(*), min(count), max(count) FROM bounce") == ["50|3|3"]


@needs_postgresql
def test_batch_whose_answer_got_lost_is_not_loaded_twice(
    tmp_path: Path, postgresql: PostgreSQL, make: Make, query: Query
) -> None:
    url = postgresql.database()
    name = url.rpartition("/")[2]
    with Forwarder(postgresql.port) as forwarder:
        config = configuration(tmp_path, f"postgresql://gatepost@127.0.0.1:{forwarder.port}/{name}")
        written = Spool(config.ledger_folder, 1 << 30, Series.unshown())
        loader = make(config)
        assert loader.load()
        for number in range(10):
            written.add([entry(number), Bounced("b@contoso.com", BEGIN + number * 100)])
            forwarder.swallow = b"COMMIT"
            poll(loads(loader), "the batch is in the store")
        written.close()
        load_all(loader)
        assert forwarder.swallowed >= 5
    assert references(query, url) == expected(10)
    assert query(url, "SELECT count FROM bounce") == ["10"]


@needs_postgresql
def test_server_that_stops_under_load_has_every_record_once_afterwards(
    tmp_path: Path, postgresql: PostgreSQL, make: Make, query: Query
) -> None:
    url = postgresql.database()
    config = configuration(tmp_path, url)
    written = Spool(config.ledger_folder, 1 << 30, Series.unshown())
    stop = threading.Event()
    added = 0

    def write() -> None:
        nonlocal added
        while not stop.is_set():
            written.add(entries(20, added))
            added += 20
            stop.wait(0.01)

    loader = make(config)
    loads(loader)()
    writer = threading.Thread(target=write)
    writer.start()
    try:
        for _ in range(2):
            poll(loads(loader), "the server is back")
            restart = threading.Thread(target=lambda: (postgresql.stop(), postgresql.start()))
            restart.start()
            while restart.is_alive():
                loads(loader)()
            restart.join(20)
    finally:
        stop.set()
        writer.join(20)
        written.close()
    poll(loads(loader), "all is in the store")
    assert references(query, url) == expected(added)


@needs_postgresql
def test_host_that_lost_the_database_for_a_while_loses_no_row(
    tmp_path: Path, postgresql: PostgreSQL, make: Make, query: Query
) -> None:
    url = postgresql.database()
    name = url.rpartition("/")[2]
    with Forwarder(postgresql.port) as forwarder:
        for host in ("here", "there"):
            (tmp_path / host).mkdir()
        here = configuration(tmp_path / "here", f"postgresql://gatepost@127.0.0.1:{forwarder.port}/{name}")
        there = configuration(tmp_path / "there", url)
        spooled(here.ledger_folder, entries(100))
        spooled(there.ledger_folder, entries(100, 100))
        loaders = make(here), make(there)
        assert loaders[0].load()
        forwarder.cut()
        spooled(here.ledger_folder, entries(100, 200), 1)
        with pytest.raises(StoreError):
            loaders[0].load()
        assert loaders[1].load()
        assert references(query, url) == expected(200)
        assert loaders[0].waiting_bytes() > 0
        forwarder.restore()
        assert loaders[0].load()
    assert references(query, url) == expected(300)


# Where the store is away


def waits(loader: Loader, words: str) -> None:
    """Check that nothing can be loaded, and how that is worded."""
    before = loader.waiting_bytes()
    with pytest.raises(StoreError, match=words):
        loader.load()
    assert loader.waiting_bytes() == before > 0


def test_locked_database_makes_records_wait(tmp_path: Path, sqlite_url: str, make: Make, query: Query) -> None:
    config = configuration(tmp_path, sqlite_url)
    loader = make(config)
    assert loader.load()
    spooled(config.ledger_folder, entries(10))
    other = sqlite3.connect(tmp_path / "gatepost.db", isolation_level=None)
    other.execute("BEGIN IMMEDIATE")
    waits(loader, "database is locked$")
    other.close()
    assert loader.load()
    assert references(query, sqlite_url) == expected(10)


def test_read_only_database_makes_records_wait(tmp_path: Path, small_disk: Path, make: Make, query: Query) -> None:
    url = f"sqlite:///{small_disk}/gatepost.db"
    config = configuration(tmp_path, url)
    loader = make(config)
    spooled(config.ledger_folder, entries(5))
    assert loader.load()
    spooled(config.ledger_folder, entries(5, 5), 1)
    subprocess.run(["mount", "-o", "remount,ro", str(small_disk)], check=False)
    loader.close()  # an open file cannot be made read-only
    subprocess.run(["mount", "-o", "remount,ro", str(small_disk)], check=True)
    waits(make(config), "read-only|readonly|Read-only|unable to open")
    subprocess.run(["mount", "-o", "remount,rw", str(small_disk)], check=True)
    assert make(config).load()
    assert references(query, url) == expected(10)


def test_full_disk_makes_records_wait_and_each_is_there_once_afterwards(
    tmp_path: Path, small_disk: Path, make: Make, query: Query
) -> None:
    url = f"sqlite:///{small_disk}/gatepost.db"
    config = configuration(tmp_path, url)
    loader = make(config)
    spooled(config.ledger_folder, entries(5))
    assert loader.load()
    fill(small_disk)
    spooled(config.ledger_folder, entries(150, 5, "x" * 900), 1)
    waits(loader, "full|disk I/O error")
    waits(loader, "full|disk I/O error")
    (small_disk / "ballast").unlink()
    assert loader.load()
    assert references(query, url) == expected(155)


def test_disk_full_of_everything_at_once_recovers(small_disk: Path, make: Make, query: Query) -> None:
    # State directory and store on the one disk that is full, from the start.
    url = f"sqlite:///{small_disk}/gatepost.db"
    config = configuration(small_disk, url)
    spooled(config.ledger_folder, entries(5))
    fill(small_disk)
    loader = make(config)
    with pytest.raises((StoreError, OSError)):
        locks_and_loads(loader)
    (small_disk / "ballast").unlink()
    assert loader.lock()
    load_all(loader)
    assert references(query, url) == expected(5)


def test_file_of_the_database_that_somebody_deleted_is_made_anew_with_what_is_in_the_spool(
    tmp_path: Path, sqlite_url: str, make: Make, query: Query
) -> None:
    config = configuration(tmp_path, sqlite_url)
    written = Spool(config.ledger_folder, 1 << 30, Series.unshown())
    written.add(entries(5))
    loader = make(config)
    load_all(loader)
    for path in tmp_path.glob("gatepost.db*"):
        path.unlink()
    written.add(entries(5, 5))
    load_all(loader)
    written.close()
    load_all(loader)
    assert references(query, sqlite_url) == expected(10)


def test_missing_table_makes_records_wait(config: Config, url: str, make: Make, query: Query) -> None:
    loader = make(config)
    assert loader.load()
    query(url, "ALTER TABLE ledger RENAME TO elsewhere")
    spooled(config.ledger_folder, entries(5))
    waits(loader, "ledger")
    query(url, "ALTER TABLE elsewhere RENAME TO ledger")
    assert loader.load()
    assert references(query, url) == expected(5)


@needs_root
def test_what_root_makes_for_a_report_is_the_daemons(tmp_path: Path, sqlite_url: str, make: Make) -> None:
    config = configuration(tmp_path, sqlite_url)
    os.chown(config.state_directory, 65_534, 65_533)
    loader = make(config)
    assert loader.lock()
    assert loader.load()
    made = [config.ledger_folder, *config.ledger_folder.iterdir()]
    assert {(path.stat().st_uid, path.stat().st_gid) for path in made} == {(65_534, 65_533)}
    assert len(made) == 3


def test_clock_that_jumps_back_changes_nothing(config: Config, url: str, make: Make, query: Query) -> None:
    spooled(config.ledger_folder, entries(5, 5), 9)
    loader = make(config)
    load_all(loader)
    spooled(config.ledger_folder, [made._replace(time=BEGIN - 9e6) for made in entries(5)], 1)
    load_all(loader)
    assert sorted(references(query, url)) == expected(10)


# What is forgotten


@pytest.fixture
def database(url: str) -> Iterator[Database]:
    opened = Database(url)
    opened.open()
    yield opened
    opened.close()


def filled(database: Database, records: list[Entry]) -> None:
    for first in range(0, len(records), 1000):
        batch = ledger_store.Batch("f", first, first + 1, records[first : first + 1000])
        database.write(lambda connection, batch=batch: ledger_store._add_entries(connection, batch.records, "host"))  # type: ignore[misc]


def trim_all(database: Database, days: int, rows: int, now: float) -> int:
    total = 0
    while deleted := ledger_store.trim(database, days, rows, now):
        total += deleted
    return total


def test_rows_that_are_older_than_the_days_go(database: Database, url: str, query: Query) -> None:
    filled(database, [entry(number)._replace(time=BEGIN - number * DAY_S / 100) for number in range(2500)])
    assert trim_all(database, 10, 10_000, BEGIN) == 1499
    assert query(url, "SELECT count(*), min(time) FROM ledger")[0].startswith(f"1001|{int(BEGIN - 10 * DAY_S)}")
    assert trim_all(database, 10, 10_000, BEGIN) == 0


def test_rows_beyond_the_limit_go_the_oldest_first(database: Database, url: str, query: Query) -> None:
    filled(database, [entry(number) for number in range(3500)])
    assert trim_all(database, 90, 1000, BEGIN) == 2500
    assert references(query, url) == expected(3500)[2500:]


def test_flood_of_refusals_is_trimmed_to_a_tenth_and_nothing_else(database: Database, url: str, query: Query) -> None:
    refused = [entry(number)._replace(action="reject", time=BEGIN + 5000 + number) for number in range(10_000, 12_500)]
    filled(database, [*[entry(number) for number in range(950)], *refused])
    # 950 older rows and 2500 refusals are beyond 1000, and yet none of the former goes but for 50.
    assert trim_all(database, 90, 1000, BEGIN) == 2400 + 50
    kinds = query(url, "SELECT action, count(*) FROM ledger GROUP BY action ORDER BY action")
    assert kinds == ["pass|900", "reject|100"]
    assert query(url, "SELECT min(reference) FROM ledger WHERE action = 'reject'") == ["r12400"]


def test_few_refusals_stay_as_long_as_other_rows(database: Database) -> None:
    filled(database, [entry(number)._replace(action="reject") for number in range(100)])
    filled(database, [entry(number) for number in range(100, 900)])
    assert trim_all(database, 90, 1000, BEGIN) == 0


def test_bounces_positions_hosts_and_reports_of_long_ago_go(database: Database, url: str, query: Query) -> None:
    ages = {"old": BEGIN - 91 * DAY_S, "new": BEGIN - 89 * DAY_S}
    for name, time in ages.items():
        position = BEGIN - (31 if name == "old" else 29) * DAY_S
        query(url, f"INSERT INTO bounce VALUES ('{name}@contoso.com', 1, {time})")
        query(url, f"INSERT INTO ledger_spool VALUES ('{name}.spool', 1, {position})")
        query(url, f"INSERT INTO ledger_host VALUES ('{name}', {time})")
        query(url, f"INSERT INTO report_job VALUES ('{name}', {time}, '', '')")
        query(url, f"INSERT INTO report_row VALUES ('{name}', 1, '')")
    assert trim_all(database, 90, 1000, BEGIN) == 0
    left = {
        table: query(url, f"SELECT {column} FROM {table}")
        for table, column in (
            ("bounce", "address"),
            ("ledger_spool", "file"),
            ("ledger_host", "host"),
            ("report_job", "job_id"),
            ("report_row", "job_id"),
        )
    }
    assert left == {
        "bounce": ["new@contoso.com"],
        "ledger_spool": ["new.spool"],
        "ledger_host": ["new"],
        "report_job": ["new"],
        "report_row": ["new"],
    }


def test_position_in_a_file_that_is_still_there_is_not_forgotten(
    config: Config, url: str, make: Make, query: Query
) -> None:
    written = Spool(config.ledger_folder, 1 << 30, Series.unshown())
    written.add(entries(5))
    loader = make(config)
    loader.lock()
    load_all(loader)
    query(url, "UPDATE ledger_spool SET changed = 1")
    query(url, "DELETE FROM ledger WHERE reference = 'r0'")  # as where somebody has himself erased
    assert loader.trim() == 0
    loader.close()
    written.close()
    load_all(make(config))
    assert references(query, url) == expected(5)[1:]


def test_loader_trims_by_its_configuration(tmp_path: Path, sqlite_url: str, make: Make, counted: Counter[str]) -> None:
    config = configuration(tmp_path, sqlite_url, "days = 3650\nrows = 1000")
    spooled(config.ledger_folder, entries(1800))
    loader = make(config)
    assert loader.trim() == 0  # another one may be the loader
    loader.lock()
    load_all(loader)
    assert [loader.trim(), loader.trim()] == [800, 0]
    assert counted["trimmed"] == 800
