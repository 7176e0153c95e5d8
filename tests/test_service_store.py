# SPDX-License-Identifier: GPL-3.0-or-later
"""The store of compact addresses: nothing that was acknowledged is lost, and an outage is short, worded and passes."""

from __future__ import annotations

import os
import re
import signal
import socket
import sqlite3
import subprocess
import sys
import threading
import time
from collections.abc import Callable, Iterator
from concurrent.futures import wait
from pathlib import Path

import pytest
from daemonprocess import ROOTS, poll
from postgresql import PostgreSQL, needs_postgresql
from smalldisk import fill
from storewriter import original

from gatepost.service.database import Database
from gatepost.service.schema import VERSION
from gatepost.service.store import Store, StoreError

DAY = 20_500
WRITER = Path(__file__).parent / "storewriter.py"
ENVIRONMENT = {"PATH": os.environ["PATH"], "PYTHONPATH": ":".join(ROOTS)}

needs_root = pytest.mark.skipif(os.geteuid() != 0, reason="only root can do this")


@pytest.fixture
def make() -> Iterator[Callable[..., Store]]:
    """Make stores that are closed afterwards."""
    stores: list[Store] = []

    def make_store(url: str, **options: object) -> Store:
        stores.append(Store(url, timeout_s=20, **options))  # type: ignore[arg-type]
        return stores[-1]

    yield make_store
    for store in stores:
        store.close()


def works(store: Store, token: str = "again") -> Callable[[], bool]:
    """Return a condition: the store takes and finds an address."""

    def check() -> bool:
        try:
            store.stored(token, original(token), DAY)
            return store.found(token) == original(token)
        except StoreError:
            return False

    return check


# What it keeps


def test_original_of_a_token_is_found(url: str, make: Callable[..., Store]) -> None:
    store = make(url)
    store.stored("abcdefgh", "Bob.O'Hara@fabrikam.com", DAY)
    assert store.found("abcdefgh") == "Bob.O'Hara@fabrikam.com"


def test_unknown_token_is_none(url: str, make: Callable[..., Store]) -> None:
    assert make(url).found("abcdefgh") is None


def test_row_of_one_store_is_seen_at_once_by_another(url: str, make: Callable[..., Store]) -> None:
    here, there = make(url), make(url)
    for number in range(20):
        assert there.found(f"t{number}") is None
        here.stored(f"t{number}", "bob@fabrikam.com", DAY)
        assert there.found(f"t{number}") == "bob@fabrikam.com"


def test_address_is_there_after_a_restart(url: str, make: Callable[..., Store]) -> None:
    store = make(url)
    store.stored("abcdefgh", "bob@fabrikam.com", DAY)
    store.close()
    assert make(url).found("abcdefgh") == "bob@fabrikam.com"


def test_internationalized_address_comes_back(url: str, make: Callable[..., Store]) -> None:
    store = make(url)
    store.stored("abcdefgh", "jörg.用户@fabrikam.com", DAY)
    assert store.found("abcdefgh") == "jörg.用户@fabrikam.com"


def test_same_token_twice_is_one_row_with_the_later_day(
    url: str, make: Callable[..., Store], query: Callable[[str, str], list[str]]
) -> None:
    store = make(url)
    for day in (DAY, DAY + 1, DAY - 1):
        store.stored("abcdefgh", "bob@fabrikam.com", day)
    assert query(url, "SELECT * FROM srs_token") == ["abcdefgh|bob@fabrikam.com|20501"]


def test_same_token_many_times_at_once_is_one_row(
    url: str, make: Callable[..., Store], query: Callable[[str, str], list[str]]
) -> None:
    stores = [make(url), make(url)]
    puts = [stores[number % 2].put("abcdefgh", "bob@fabrikam.com", DAY + number) for number in range(100)]
    assert [put.result(20) for put in puts] == [None] * 100
    assert query(url, "SELECT * FROM srs_token") == ["abcdefgh|bob@fabrikam.com|20599"]


def test_token_of_another_address_is_refused_and_nothing_else(url: str, make: Callable[..., Store]) -> None:
    store = make(url)
    store.stored("abcdefgh", "bob@fabrikam.com", DAY)
    wrong = store.put("abcdefgh", "eve@fabrikam.com", DAY + 1)
    right = store.put("bcdefghi", "eve@fabrikam.com", DAY)
    with pytest.raises(StoreError, match="another address for the token abcdefgh"):
        wrong.result(20)
    assert right.result(20) is None
    assert store.found("abcdefgh") == "bob@fabrikam.com"


@pytest.mark.parametrize("text", ["bob\udcff", "bob\0"])
def test_text_that_no_database_holds_is_refused_and_unknown(text: str, url: str, make: Callable[..., Store]) -> None:
    store = make(url)
    with pytest.raises(StoreError, match="not UTF-8"):
        store.stored("abcdefgh", text, DAY)
    assert store.found(text) is None


# Many at once


def start_writers(url: str, writers: int, count: int) -> list[subprocess.Popen[str]]:
    """Start processes that each put *count* addresses, all at once."""
    processes = [
        subprocess.Popen(
            [sys.executable, str(WRITER), url, f"w{writer}", str(count)],
            env=ENVIRONMENT,
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            text=True,
        )
        for writer in range(writers)
    ]
    for process in processes:
        assert process.stdin
        process.stdin.write("\n")
        process.stdin.flush()
    return processes


def all_found(store: Store, tokens: list[str]) -> bool:
    gets = [(token, store.get(token)) for token in tokens]
    return all(get.result(60) == original(token) for token, get in gets)


def test_eight_writers_of_an_empty_store_lose_none_of_20000_addresses(url: str, make: Callable[..., Store]) -> None:
    processes = start_writers(url, 8, 2500)
    acknowledged = [process.communicate(timeout=100)[0].split() for process in processes]
    assert [process.returncode for process in processes] == [0] * 8
    assert [len(tokens) for tokens in acknowledged] == [2500] * 8
    store = make(url)
    assert all(all_found(store, tokens) for tokens in acknowledged)


def test_what_was_acknowledged_before_kill_9_is_found(url: str, make: Callable[..., Store]) -> None:
    processes = start_writers(url, 4, 100_000)
    acknowledged = []
    for process in processes:
        assert process.stdout
        acknowledged += [process.stdout.readline().strip() for _ in range(100)]
    for process in processes:
        process.send_signal(signal.SIGKILL)
    for process in processes:
        acknowledged += process.communicate(timeout=20)[0].split("\n")[1:-1]  # the first one may lack its beginning
    assert [process.returncode for process in processes] == [-9] * 4
    store = make(url)
    assert store.found(acknowledged[0], 20) == original(acknowledged[0])
    assert all_found(store, acknowledged[:9_000])
    assert works(store)()


def test_fifty_threads_share_a_store(url: str, make: Callable[..., Store]) -> None:
    store = make(url)
    wrong: list[str] = []

    def use(thread: int) -> None:
        for number in range(20):
            token = f"t{thread}x{number}"
            store.stored(token, original(token), DAY, 20)
            if store.found(token, 20) != original(token):
                wrong.append(token)

    threads = [threading.Thread(target=use, args=(number,)) for number in range(50)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join(60)
    assert wrong == []
    assert all_found(store, [f"t{thread}x{number}" for thread in range(50) for number in range(20)])


def test_store_made_before_a_fork_works_after_it(sqlite_url: str, make: Callable[..., Store]) -> None:
    script = (
        "import os, sys; from gatepost.service.store import Store\n"
        "store = Store(sys.argv[1])\n"
        "for name in 'ab':\n"
        "    if os.fork() == 0:\n"
        "        store.stored(name, name + '@fabrikam.com', 20500, 20); os._exit(0)\n"
        "sys.exit(sum(os.wait()[1] for _ in 'ab'))"
    )
    subprocess.run([sys.executable, "-c", script, sqlite_url], env=ENVIRONMENT, check=True, timeout=60)
    assert all_found(make(sqlite_url), ["a", "b"])


def test_store_used_before_a_fork_is_an_error_after_it(sqlite_url: str) -> None:
    script = (
        "import os, sys; from gatepost.service.store import Store\n"
        "store = Store(sys.argv[1]); store.found('a', 20)\n"
        "if os.fork() == 0:\n"
        "    try: store.found('a')\n"
        "    except RuntimeError: os._exit(7)\n"
        "print(os.waitstatus_to_exitcode(os.wait()[1]))"
    )
    command = [sys.executable, "-W", "ignore", "-c", script, sqlite_url]  # 3.12 warns of a fork with threads
    done = subprocess.run(command, env=ENVIRONMENT, capture_output=True, timeout=60)
    assert (done.stdout, done.stderr) == (b"7\n", b"")


def test_process_that_uses_no_store_does_not_pay_for_sqlalchemy() -> None:
    script = "import sys, gatepost.service.store as s; s.Store('sqlite:////x'); print('sqlalchemy' in sys.modules)"
    done = subprocess.run([sys.executable, "-c", script], env=ENVIRONMENT, capture_output=True, check=True)
    assert done.stdout == b"False\n"


# Outages


def fails_soon(call: Callable[[], object], words: str) -> None:
    """Check that *call* raises StoreError with *words* in it, within seconds."""
    begin = time.monotonic()
    with pytest.raises(StoreError, match=words):
        call()
    assert time.monotonic() - begin < 10


def test_missing_folder_is_named_and_used_once_it_is_there(tmp_path: Path, make: Callable[..., Store]) -> None:
    store = make(f"sqlite:///{tmp_path}/state/gatepost.db")
    words = f"^store {tmp_path}/state/gatepost.db: the folder {tmp_path}/state does not exist$"
    fails_soon(lambda: store.found("abcdefgh"), words)
    fails_soon(lambda: store.stored("abcdefgh", "bob@fabrikam.com", DAY), words)
    (tmp_path / "state").mkdir()
    poll(works(store), "the store works again")


def test_full_disk_fails_writing_only_and_passes(small_disk: Path, make: Callable[..., Store]) -> None:
    store = make(f"sqlite:///{small_disk}/gatepost.db")
    store.stored("abcdefgh", "bob@fabrikam.com", DAY)
    fill(small_disk)

    def put_many() -> None:
        for number in range(1000):
            store.stored(f"t{number}", "x" * 2000 + "@fabrikam.com", DAY)

    fails_soon(put_many, "database or disk is full")
    assert store.found("abcdefgh") == "bob@fabrikam.com"
    (small_disk / "ballast").unlink()
    poll(works(store), "the store works again")


def test_full_disk_at_the_start_fails_and_passes(small_disk: Path, make: Callable[..., Store]) -> None:
    fill(small_disk)
    store = make(f"sqlite:///{small_disk}/gatepost.db")
    fails_soon(lambda: store.stored("abcdefgh", "bob@fabrikam.com", DAY), "full|No space left|disk I/O error")
    (small_disk / "ballast").unlink()
    poll(works(store), "the store works again")


def test_read_only_file_system_fails_and_passes(small_disk: Path, make: Callable[..., Store]) -> None:
    subprocess.run(["mount", "-o", "remount,ro", str(small_disk)], check=True)
    store = make(f"sqlite:///{small_disk}/gatepost.db")
    fails_soon(lambda: store.stored("abcdefgh", "bob@fabrikam.com", DAY), "Read-only file system")
    subprocess.run(["mount", "-o", "remount,rw", str(small_disk)], check=True)
    poll(works(store), "the store works again")


def test_lock_of_another_program_fails_writing_in_time_and_passes(
    tmp_path: Path, sqlite_url: str, make: Callable[..., Store]
) -> None:
    store = make(sqlite_url)
    store.stored("abcdefgh", "bob@fabrikam.com", DAY)
    other = sqlite3.connect(tmp_path / "gatepost.db", isolation_level=None)
    other.execute("BEGIN IMMEDIATE")
    fails_soon(lambda: store.stored("bcdefghi", "eve@fabrikam.com", DAY), "gatepost.db: database is locked$")
    assert store.found("abcdefgh") == "bob@fabrikam.com"
    # What is there already needs no lock.
    poll(lambda: store.put("abcdefgh", "bob@fabrikam.com", DAY).exception(20) is None, "it is known to be there")
    other.execute("ROLLBACK")
    other.close()
    poll(works(store), "the store works again")


def test_requests_that_wait_for_a_locked_store_fail_together(
    tmp_path: Path, sqlite_url: str, make: Callable[..., Store]
) -> None:
    store = make(sqlite_url)
    assert store.found("abcdefgh") is None
    other = sqlite3.connect(tmp_path / "gatepost.db", isolation_level=None)
    other.execute("BEGIN IMMEDIATE")
    begin = time.monotonic()
    puts = [store.put(f"t{number}", "bob@fabrikam.com", DAY) for number in range(3000)]
    assert wait(puts, 60).not_done == set()
    assert {str(put.exception()) for put in puts} == {f"store {tmp_path}/gatepost.db: database is locked"}
    assert time.monotonic() - begin < 10
    other.close()


def test_caller_waits_no_longer_than_it_says(tmp_path: Path, sqlite_url: str, make: Callable[..., Store]) -> None:
    store = make(sqlite_url)
    assert store.found("abcdefgh") is None
    other = sqlite3.connect(tmp_path / "gatepost.db", isolation_level=None)
    other.execute("BEGIN IMMEDIATE")
    with pytest.raises(StoreError, match=r"^the store has not answered within 0\.1 s$"):
        store.stored("abcdefgh", "bob@fabrikam.com", DAY, timeout_s=0.1)
    other.close()


def test_request_beyond_10000_that_wait_fails_at_once(
    tmp_path: Path, sqlite_url: str, make: Callable[..., Store]
) -> None:
    store = make(sqlite_url)
    assert store.found("abcdefgh") is None
    other = sqlite3.connect(tmp_path / "gatepost.db", isolation_level=None)
    other.execute("BEGIN IMMEDIATE")
    held = store.put("abcdefgh", "bob@fabrikam.com", DAY)
    gets = [store.get("abcdefgh") for _ in range(10_400)]
    assert str(gets[-1].exception(0)) == "10000 requests wait for the store already"
    other.execute("ROLLBACK")
    other.close()
    assert held.result(20) is None
    assert gets[9_000].result(20) in (None, "bob@fabrikam.com")


def test_file_deleted_under_two_stores_is_made_anew_and_shared(
    tmp_path: Path, sqlite_url: str, make: Callable[..., Store]
) -> None:
    here, there = make(sqlite_url), make(sqlite_url)
    here.stored("old", "bob@fabrikam.com", DAY)
    assert there.found("old") == "bob@fabrikam.com"
    for path in tmp_path.glob("gatepost.db*"):
        path.unlink()
    here.stored("here", "here@fabrikam.com", DAY)
    there.stored("there", "there@fabrikam.com", DAY)
    here.stored("here2", "here2@fabrikam.com", DAY)
    there.close()
    assert all_found(make(sqlite_url), ["here", "there", "here2"])


def test_file_that_is_no_database_fails_until_it_is_gone(
    tmp_path: Path, sqlite_url: str, make: Callable[..., Store]
) -> None:
    (tmp_path / "gatepost.db").write_bytes(b"junk" * 1000)
    store = make(sqlite_url)
    fails_soon(lambda: store.found("abcdefgh"), "gatepost.db: file is not a database$")
    assert (tmp_path / "gatepost.db").read_bytes() == b"junk" * 1000
    (tmp_path / "gatepost.db").unlink()
    poll(works(store), "the store works again")


def test_tables_of_a_later_release_are_left_alone(
    url: str, make: Callable[..., Store], query: Callable[[str, str], list[str]]
) -> None:
    first = make(url)
    first.stored("abcdefgh", "bob@fabrikam.com", DAY)
    first.close()
    query(url, f"UPDATE gatepost_schema SET version = {VERSION + 1}")
    words = f"its tables are of version {VERSION + 1}, which a newer release of gatepost made; this one knows "
    words += f"version {VERSION}$"
    fails_soon(lambda: make(url).found("abcdefgh"), words)


def test_closed_store_fails_at_once(sqlite_url: str) -> None:
    store = Store(sqlite_url)
    done = store.put("abcdefgh", "bob@fabrikam.com", DAY)
    store.close()
    assert done.exception(20) is None
    fails_soon(lambda: store.found("abcdefgh"), "^the store is closed$")


@pytest.mark.parametrize(
    ("url", "words"),
    [
        ("gatepost.db secret", "^the store's URL is not one of a database$"),
        ("postgresql://gatepost:secret@host:port/x", "^the store's URL is not one of a database$"),
        ("sqlite://", "^the store's URL names no file$"),
        ("sqlite:///:memory:", "^the store's URL names no file$"),
        ("mysql://gatepost:secret@localhost/x", "^the store's database is mysql; it must be sqlite or postgresql$"),
    ],
)
def test_url_that_cannot_be_used_is_worded_without_its_password(
    url: str, words: str, make: Callable[..., Store]
) -> None:
    fails_soon(lambda: make(url).found("abcdefgh"), words)


# Files


@needs_root
def test_files_made_by_root_belong_to_the_owner_of_the_folder(
    tmp_path: Path, sqlite_url: str, make: Callable[..., Store]
) -> None:
    os.chown(tmp_path, 65_534, 65_533)
    make(sqlite_url).stored("abcdefgh", "bob@fabrikam.com", DAY)
    files = {path.name: path.stat() for path in tmp_path.iterdir()}
    assert sorted(files) == ["gatepost.db", "gatepost.db-shm", "gatepost.db-wal"]
    assert {(file.st_uid, file.st_gid, file.st_mode & 0o777) for file in files.values()} == {(65_534, 65_533, 0o600)}


def test_files_are_readable_by_their_owner_only(tmp_path: Path, sqlite_url: str, make: Callable[..., Store]) -> None:
    make(sqlite_url).stored("abcdefgh", "bob@fabrikam.com", DAY)
    assert {path.stat().st_mode & 0o777 for path in tmp_path.iterdir()} == {0o600}


def test_sqlite_syncs_every_commit_to_disk(sqlite_url: str) -> None:
    database = Database(sqlite_url)
    database.open()
    assert database._connection
    assert database._connection.exec_driver_sql("PRAGMA journal_mode").scalar() == "wal"
    assert database._connection.exec_driver_sql("PRAGMA synchronous").scalar() == 2
    database.close()


# Expiry


def test_expired_rows_are_deleted_and_valid_ones_kept(
    url: str, make: Callable[..., Store], query: Callable[[str, str], list[str]]
) -> None:
    first = make(url)
    puts = [first.put(f"old{number}", "bob@fabrikam.com", DAY - 1 - number % 3) for number in range(1500)]
    puts += [first.put(f"valid{number}", "bob@fabrikam.com", DAY + number % 3) for number in range(700)]
    assert {put.exception(60) for put in puts} == {None}
    store = make(url, expire=True, expire_after_s=0.0, today=lambda: DAY)
    assert store.found("valid0", 20) == "bob@fabrikam.com"
    poll(lambda: query(url, f"SELECT count(*) FROM srs_token WHERE expires_day < {DAY}") == ["0"], "the old are gone")
    assert query(url, "SELECT count(*) FROM srs_token") == ["700"]
    assert store.found("old0") is None


def test_expiry_of_many_rows_does_not_hold_up_requests(
    sqlite_url: str, make: Callable[..., Store], query: Callable[[str, str], list[str]]
) -> None:
    first = make(sqlite_url)
    first.stored("valid", "bob@fabrikam.com", DAY)
    query(
        sqlite_url,
        "WITH RECURSIVE n(i) AS (SELECT 1 UNION ALL SELECT i + 1 FROM n WHERE i < 100000) "
        f"INSERT INTO srs_token SELECT 'old' || i, 'bob@fabrikam.com', {DAY - 1} FROM n",
    )
    store = make(sqlite_url, expire=True, expire_after_s=0.0, today=lambda: DAY)
    left = 100_000
    answered_between = 0
    while left:
        assert store.found("valid") == "bob@fabrikam.com"
        store.stored(f"t{left}", "eve@fabrikam.com", DAY)
        last, left = left, int(query(sqlite_url, f"SELECT count(*) FROM srs_token WHERE expires_day < {DAY}")[0])
        answered_between += 0 < left < last
    assert answered_between > 3


def test_store_that_is_not_told_to_expire_keeps_everything(
    sqlite_url: str, make: Callable[..., Store], query: Callable[[str, str], list[str]]
) -> None:
    store = make(sqlite_url, expire_after_s=0.0, today=lambda: DAY)
    store.stored("old", "bob@fabrikam.com", DAY - 1)
    assert store.found("old") == "bob@fabrikam.com"
    assert query(sqlite_url, "SELECT count(*) FROM srs_token") == ["1"]


# PostgreSQL


@needs_postgresql
def test_restart_of_the_server_fails_no_request_that_comes_after_it(
    postgresql: PostgreSQL, make: Callable[..., Store]
) -> None:
    store = make(postgresql.database())
    store.stored("before", original("before"), DAY)
    postgresql.stop()
    postgresql.start()
    store.stored("after", original("after"), DAY)
    postgresql.stop()
    postgresql.start()
    assert store.found("before") == original("before")
    assert store.found("after") == original("after")


@needs_postgresql
def test_stopped_server_fails_soon_and_passes(postgresql: PostgreSQL, make: Callable[..., Store]) -> None:
    store = make(postgresql.database())
    store.stored("before", original("before"), DAY)
    postgresql.stop()
    try:
        fails_soon(lambda: store.found("before"), "^store postgresql.*onnection refused")
        fails_soon(lambda: store.stored("later", original("later"), DAY), "onnection refused")
    finally:
        postgresql.start()
    poll(works(store), "the store works again")
    assert store.found("before") == original("before")


def test_silent_server_does_not_cost_every_request_its_timeout(make: Callable[..., Store]) -> None:
    with socket.create_server(("127.0.0.1", 0)) as server:
        store = make(f"postgresql://gatepost:secret@127.0.0.1:{server.getsockname()[1]}/gatepost")
        begin = time.monotonic()
        errors = []
        for number in range(30):
            with pytest.raises(StoreError) as error:
                store.found(f"t{number}")
            errors.append(str(error.value))
        assert time.monotonic() - begin < 20
    assert not any("secret" in text for text in errors)


@pytest.mark.parametrize(
    ("url", "shown"),
    [
        ("postgresql://gatepost:secret@127.0.0.1:1/gatepost", "postgresql://gatepost:***@127.0.0.1:1/gatepost"),
        (
            "postgresql:///gatepost?host=127.0.0.1&port=1&password=secret",
            "postgresql:///gatepost?host=127.0.0.1&port=1&password=***",
        ),
    ],
)
def test_absent_server_is_named_without_its_password(url: str, shown: str, make: Callable[..., Store]) -> None:
    with pytest.raises(StoreError, match=rf"^store {re.escape(shown)}: .*refused"):
        make(url).found("abcdefgh", 20)


@needs_postgresql
def test_database_that_cannot_hold_every_address_is_refused(postgresql: PostgreSQL, make: Callable[..., Store]) -> None:
    postgresql.query("postgres", "CREATE DATABASE latin ENCODING 'LATIN1' TEMPLATE template0 LOCALE 'C'")
    store = make(f"postgresql://gatepost@127.0.0.1:{postgresql.port}/latin")
    fails_soon(lambda: store.found("abcdefgh"), "its encoding is LATIN1; it must be UTF8$")
