# SPDX-License-Identifier: GPL-3.0-or-later
"""The ledger of real gatepost processes: each message whose end was answered is there once, whatever is killed."""

from __future__ import annotations

import contextlib
import os
import re
import signal
import sqlite3
import threading
import time
from collections import Counter
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest
from daemonprocess import Gatepost, gone, poll
from forwarder import Forwarder
from ledgerfiles import entries, spooled
from milterclient import MilterClient, MilterError, Outcome
from postgresql import PostgreSQL, needs_postgresql
from smalldisk import fill

from gatepost.service.loader import LOCK_NAME
from gatepost.service.schema import VERSION

PASSED = Outcome(rcpt=["continue"], eoh="continue", eom="continue")
PUT_OFF = "451 4.3.0"
Query = Callable[[str, str], list[str]]


class Traffic:
    """Clients that send one message after the other, each with a sender of its own; a context manager.

    A connection that breaks is made anew, and the message that was on its way is not sent again. answered: the senders
    of all messages whose end was answered.
    """

    def __init__(self, *sockets: str) -> None:
        self.answered: list[str] = []
        self.wrong: list[Outcome] = []
        self._stop = threading.Event()
        self._threads = [threading.Thread(target=self._run, args=(*item,)) for item in enumerate(sockets)]

    def __enter__(self) -> Traffic:
        for thread in self._threads:
            thread.start()
        return self

    def __exit__(self, *_: object) -> None:
        self._stop.set()
        for thread in self._threads:
            thread.join(20)

    def more(self, count: int) -> None:
        """Return when *count* more messages have been answered."""
        goal = len(self.answered) + count
        poll(lambda: len(self.answered) >= goal, f"{count} messages are answered")

    def _run(self, number: int, socket: str) -> None:
        sent = 0
        while not self._stop.is_set():
            with contextlib.suppress(OSError, MilterError), MilterClient(socket) as client:
                client.open()
                while not self._stop.is_set():
                    sent += 1
                    sender = f"{number}x{sent}@contoso.com"
                    outcome = client.send(f"<{sender}>".encode(), [b"<ann@contoso.com>"])
                    if outcome == PASSED:
                        self.answered.append(sender)
                    else:
                        self.wrong.append(outcome)
                    self._stop.wait(0.002)
            self._stop.wait(0.01)


def send(gatepost: Gatepost, count: int, name: str = "m") -> list[Outcome]:
    with MilterClient(gatepost.socket) as client:
        client.open()
        paths = [f"<{name}{number}@contoso.com>".encode() for number in range(count)]
        return [client.send(path, [b"<ann@contoso.com>"]) for path in paths]


def each_once(senders: list[str], there: list[str]) -> None:
    """Check that all *senders* are *there*, and none twice."""
    assert set(senders) - set(there) == set()
    assert [sender for sender, count in Counter(there).items() if count > 1] == []


def spool_files(gatepost: Gatepost) -> list[str]:
    return sorted(path.name for path in (gatepost.state / "ledger").glob("*.spool"))


def complaints(gatepost: Gatepost) -> list[str]:
    return [text for text in gatepost.log if "error: ledger:" in text]


def holder(path: Path) -> int:
    """The process that holds a lock on *path*, 0 for none."""
    inode = path.stat().st_ino
    for text in Path("/proc/locks").read_text().splitlines():
        fields = text.split()
        if fields[1:3] == ["FLOCK", "ADVISORY"] and fields[5].endswith(f":{inode}"):
            return int(fields[4])
    return 0


@pytest.fixture
def senders(query: Query) -> Callable[[str], list[str]]:
    """The senders in the ledger of a store, in their order; none where its tables are not there yet."""

    def found(url: str) -> list[str]:
        try:
            return query(url, "SELECT reverse_path FROM ledger ORDER BY time, id")
        except (sqlite3.OperationalError, AssertionError) as error:
            if "ledger" not in str(error):
                raise
            return []

    return found


Senders = Callable[[str], list[str]]


@pytest.fixture(params=["sqlite_url", pytest.param("postgresql_url", marks=needs_postgresql)])
def store(request: pytest.FixtureRequest) -> str:
    found: str = request.getfixturevalue(request.param)
    return found


def recorded(gatepost: Gatepost, name: str, senders: Senders, url: str) -> bool:
    """Send one message and tell whether one of its sender is in the ledger."""
    return send(gatepost, 1, name) == [PASSED] and f"{name}0@contoso.com" in senders(url)


def with_store(url: str, ledger: str = "") -> str:
    return f'[store]\nurl = "{url}"\n[ledger]\n{ledger}\n'


@pytest.fixture
def locked(tmp_path: Path, sqlite_url: str) -> Iterator[sqlite3.Connection]:
    """A connection that can keep others from writing to the store."""
    connection = sqlite3.connect(tmp_path / "gatepost.db", isolation_level=None)
    yield connection
    connection.close()


# Whoever dies


def test_no_message_that_was_answered_is_lost_or_twice_when_processes_are_killed(
    tmp_path: Path, store: str, senders: Senders
) -> None:
    gatepost = Gatepost(tmp_path, more=with_store(store), workers=2)
    with gatepost, Traffic(gatepost.socket, gatepost.socket) as traffic:
        for victim in ("milter", "ledger.milter", "milter", "all", "ledger.milter", "milter", "all"):
            traffic.more(40)
            if victim == "all":
                os.killpg(gatepost.pid, signal.SIGKILL)
                gatepost.wait()
                gatepost.start()
                gatepost.wait_for_log(r" ready$")
                continue
            poll(lambda: gatepost.workers(victim), "there is one")  # noqa: B023
            for pid in gatepost.workers(victim):
                with contextlib.suppress(ProcessLookupError):
                    os.kill(pid, signal.SIGKILL)
        traffic.more(40)
    assert traffic.wrong == []
    assert spool_files(gatepost) == []
    each_once(traffic.answered, senders(store))


def test_two_supervisors_of_one_state_directory_have_one_loader_and_the_other_takes_over(
    tmp_path: Path, sqlite_url: str, senders: Senders
) -> None:
    milter = Gatepost(tmp_path, command="milter", more=with_store(sqlite_url))
    policyd = Gatepost(tmp_path, command="policyd", more=with_store(sqlite_url))
    lock = tmp_path / "state" / "ledger" / LOCK_NAME
    with milter, policyd:
        poll(lambda: lock.exists() and holder(lock), "there is a loader")
        for number in range(3):
            first = holder(lock)
            assert send(milter, 5, f"{number}x") == [PASSED] * 5
            poll(lambda: len(senders(sqlite_url)) == 5 * (number + 1), "all is loaded")  # noqa: B023
            assert holder(lock) == first
            os.kill(first, signal.SIGKILL)
            poll(lambda: holder(lock) not in (0, first), "another one has taken over")  # noqa: B023
        loaders = set(milter.workers("ledger.milter")) | set(milter.workers("ledger.policyd"))
        assert holder(lock) in loaders
    assert len(senders(sqlite_url)) == 15


def test_reloads_under_load_lose_nothing_and_leave_one_loader(
    tmp_path: Path, sqlite_url: str, senders: Senders
) -> None:
    with Gatepost(tmp_path, more=with_store(sqlite_url), workers=2) as gatepost:
        with Traffic(gatepost.socket, gatepost.socket) as traffic:
            for _ in range(2):
                before = gatepost.workers("ledger.milter")
                traffic.more(40)
                mark = gatepost.mark()
                gatepost.signal(signal.SIGHUP)
                gatepost.wait_for_log("configuration reloaded$", after=mark)
                traffic.more(40)
                poll(lambda: gone(before), "the loader from before has ended")  # noqa: B023
        (loader,) = gatepost.workers("ledger.milter")
        poll(lambda: holder(gatepost.state / "ledger" / LOCK_NAME) == loader, "the new one has the lock")
    assert traffic.wrong == []
    assert not [text for text in gatepost.log if "error" in text]
    assert spool_files(gatepost) == []
    each_once(traffic.answered, senders(sqlite_url))


def test_termination_leaves_an_empty_spool(tmp_path: Path, sqlite_url: str, senders: Senders) -> None:
    with Gatepost(tmp_path, more=with_store(sqlite_url)) as gatepost:
        assert send(gatepost, 200) == [PASSED] * 200
    assert spool_files(gatepost) == []
    assert senders(sqlite_url) == [f"m{number}@contoso.com" for number in range(200)]


# Where the store or the disk is away


def test_locked_store_makes_rows_wait_while_mail_goes_on(
    tmp_path: Path, sqlite_url: str, locked: sqlite3.Connection, senders: Senders
) -> None:
    with Gatepost(tmp_path, more=with_store(sqlite_url), metrics=True) as gatepost:
        assert send(gatepost, 5, "before") == [PASSED] * 5
        poll(lambda: gatepost.metric('gatepost_ledger_records_total{result="loaded"}') == 5, "they are loaded")
        locked.execute("BEGIN IMMEDIATE")
        assert send(gatepost, 5, "during") == [PASSED] * 5
        poll(lambda: complaints(gatepost), "it is said")
        waiting = gatepost.metric('gatepost_ledger_backlog_bytes{daemon="ledger.milter"}')
        assert waiting > 1000
        (text,) = complaints(gatepost)
        assert re.fullmatch(
            rf"error: ledger: store {tmp_path}/gatepost.db: database is locked; \d+ bytes of records wait in "
            rf"{gatepost.state}/ledger",
            text,
        )
        locked.execute("ROLLBACK")
        poll(lambda: len(senders(sqlite_url)) == 10, "the rows are there")
        poll(lambda: gatepost.metric('gatepost_ledger_backlog_bytes{daemon="ledger.milter"}') == 0, "nothing waits")
    sent = [f"{name}{number}@contoso.com" for name in ("before", "during") for number in range(5)]
    assert senders(sqlite_url) == sent


def test_store_that_is_away_is_counted_at_each_try_logged_once_a_minute_and_used_once_it_is_there(
    tmp_path: Path, senders: Senders
) -> None:
    url = f"sqlite:///{tmp_path}/elsewhere/gatepost.db"
    with Gatepost(tmp_path, more=with_store(url), metrics=True) as gatepost:
        assert send(gatepost, 5) == [PASSED] * 5
        poll(lambda: gatepost.metric('gatepost_errors_total{daemon="ledger",kind="store"}') >= 2, "it is tried again")
        (text,) = complaints(gatepost)
        assert f"the folder {tmp_path}/elsewhere does not exist; " in text
        (tmp_path / "elsewhere").mkdir()
    assert len(senders(url)) == 5


@pytest.mark.parametrize("required", [False, True])
def test_full_spool_loses_records_or_puts_mail_off_until_the_loader_has_made_room(
    required: bool, tmp_path: Path, sqlite_url: str, locked: sqlite3.Connection, senders: Senders
) -> None:
    locked.execute("BEGIN IMMEDIATE")
    (tmp_path / "state").mkdir()
    spooled(tmp_path / "state" / "ledger", entries(8000, text="x" * 950))
    ledger = f"spool_megabytes = 8\nrequired = {str(required).lower()}"
    with Gatepost(tmp_path, more=with_store(sqlite_url, ledger), metrics=True) as gatepost:
        outcomes = send(gatepost, 10, "during")
        if required:
            assert {(outcome.eom or "")[:9] for outcome in outcomes} == {PUT_OFF}
        else:
            assert outcomes == [PASSED] * 10
        assert gatepost.metric('gatepost_ledger_records_total{result="lost"}') == 10
        assert gatepost.metric('gatepost_errors_total{daemon="ledger",kind="spool"}') == 10
        assert len([text for text in complaints(gatepost) if "is full; 1 records are lost" in text]) == 1
        locked.execute("ROLLBACK")
        poll(lambda: len(senders(sqlite_url)) == 8000, "all is loaded")
        poll(lambda: not spool_files(gatepost), "there is room")
        poll(lambda: recorded(gatepost, "after", senders, sqlite_url), "rows are kept again")
    assert not [sender for sender in senders(sqlite_url) if sender.startswith("during")]


@pytest.mark.parametrize("required", [False, True])
def test_full_disk_under_the_spool_loses_records_or_puts_mail_off_and_passes(
    required: bool, tmp_path: Path, small_disk: Path, sqlite_url: str, senders: Senders
) -> None:
    (tmp_path / "state").mkdir()
    (tmp_path / "state" / "ledger").symlink_to(small_disk)
    with Gatepost(tmp_path, more=with_store(sqlite_url, f"required = {str(required).lower()}")) as gatepost:
        assert send(gatepost, 5, "before") == [PASSED] * 5
        poll(lambda: len(senders(sqlite_url)) == 5, "they are loaded")
        fill(small_disk)
        outcomes = send(gatepost, 50, "during")
        if required:
            assert {(outcome.eom or "")[:9] for outcome in outcomes} <= {PUT_OFF, "continue"}
            assert str(outcomes[-1].eom).startswith(PUT_OFF)
        else:
            assert outcomes == [PASSED] * 50
        assert len([text for text in complaints(gatepost) if "records are lost" in text]) == 1
        (small_disk / "ballast").unlink()
        poll(lambda: recorded(gatepost, "after", senders, sqlite_url), "rows are kept again")
    there = senders(sqlite_url)
    assert there[:5] == [f"before{number}@contoso.com" for number in range(5)]
    if required:
        assert sum(sender.startswith("during") for sender in there) == outcomes.count(PASSED)


# Several hosts, and an older store


@needs_postgresql
def test_gatepost_that_lost_the_database_for_a_while_loses_no_row_and_none_is_twice(
    tmp_path: Path, postgresql: PostgreSQL, senders: Senders
) -> None:
    url = postgresql.database()
    with Forwarder(postgresql.port) as forwarder:
        far = f"postgresql://gatepost@127.0.0.1:{forwarder.port}/{url.rpartition('/')[2]}"
        folders = tmp_path / "here", tmp_path / "there"
        for folder in folders:
            folder.mkdir()
        here = Gatepost(folders[0], more=with_store(far))
        there = Gatepost(folders[1], more=with_store(url))
        with here, there, Traffic(here.socket, there.socket) as traffic:
            poll(lambda: {name[0] for name in senders(url)} == {"0", "1"}, "both are loaded")
            forwarder.cut()
            traffic.more(100)
            forwarder.restore()
            forwarder.swallow = b"COMMIT"
            traffic.more(100)
            last = [name for name in traffic.answered if name[0] == "0"][-1]
            poll(lambda: last in senders(url), "the one that was cut off has caught up")
        for gatepost in (here, there):
            assert spool_files(gatepost) == []
    assert traffic.wrong == []
    each_once(traffic.answered, senders(url))


def test_store_of_version_1_is_migrated_by_processes_that_start_at_once(
    tmp_path: Path, sqlite_url: str, query: Query
) -> None:
    for statement in (
        "CREATE TABLE gatepost_schema (version INTEGER NOT NULL)",
        "CREATE TABLE srs_token (token TEXT PRIMARY KEY, original TEXT NOT NULL, expires_day INTEGER NOT NULL)",
        "INSERT INTO gatepost_schema VALUES (1)",
        "INSERT INTO srs_token VALUES ('abcdefgh', 'bob@fabrikam.com', 99999)",
    ):
        query(sqlite_url, statement)
    folders = tmp_path / "one", tmp_path / "two"
    for folder in folders:
        folder.mkdir()
    with contextlib.ExitStack() as stack:
        both = [Gatepost(folder, command="run", more=with_store(sqlite_url)) for folder in folders]
        for gatepost in both:
            stack.callback(gatepost.stop)
            gatepost.start()
        for gatepost in both:
            gatepost.wait_for_log(" ready$")
            assert send(gatepost, 5) == [PASSED] * 5
    assert [complaints(gatepost) for gatepost in both] == [[], []]
    assert query(sqlite_url, "SELECT version FROM gatepost_schema") == [str(VERSION)]
    assert query(sqlite_url, "SELECT * FROM srs_token") == ["abcdefgh|bob@fabrikam.com|99999"]
    assert query(sqlite_url, "SELECT count(*) FROM ledger") == ["10"]


# What is counted


def test_flood_of_refusals_at_rcpt_is_bounded_and_the_rest_counted(
    tmp_path: Path, sqlite_url: str, query: Query
) -> None:
    with Gatepost(tmp_path, more=with_store(sqlite_url), metrics=True) as gatepost:
        begin = time.monotonic()
        with MilterClient(gatepost.socket) as client:
            client.open()
            client.mail(b"<app@vendor.example>")
            for number in range(1500):
                assert client.rcpt(f"<x{number}@gmail.example>".encode()).startswith("550 5.7.64")
        most = 1001 + 5 * (time.monotonic() - begin)
        spooled_ = gatepost.metric('gatepost_ledger_records_total{result="spooled"}')
        assert 1000 <= spooled_ <= most
        assert gatepost.metric('gatepost_ledger_records_total{result="omitted"}') == 1500 - spooled_
        assert send(gatepost, 5) == [PASSED] * 5
    kinds = query(sqlite_url, "SELECT action, count(*) FROM ledger GROUP BY action ORDER BY action")
    assert kinds == ["pass|5", f"reject|{int(spooled_)}"]


def test_metrics_show_what_was_spooled_loaded_and_damaged_and_up_to_when(
    tmp_path: Path, sqlite_url: str, senders: Senders
) -> None:
    (tmp_path / "state").mkdir()
    path = spooled(tmp_path / "state" / "ledger", entries(2))
    path.write_bytes(path.read_bytes() + b"junk\n")
    with Gatepost(tmp_path, more=with_store(sqlite_url), metrics=True) as gatepost:
        begin = time.time()
        assert send(gatepost, 3) == [PASSED] * 3
        loaded = 'gatepost_ledger_loaded_timestamp_seconds{daemon="ledger.milter"}'
        poll(lambda: len(senders(sqlite_url)) == 5 and gatepost.metric(loaded) > begin, "all is loaded")
        assert gatepost.metric(loaded) <= time.time()
        counts = {
            result: gatepost.metric(f'gatepost_ledger_records_total{{result="{result}"}}')
            for result in ("spooled", "loaded", "damaged", "lost", "omitted")
        }
        assert counts == {"spooled": 3, "loaded": 5, "damaged": 1, "lost": 0, "omitted": 0}
        assert gatepost.metric('gatepost_ledger_backlog_bytes{daemon="ledger.milter"}') == 0
        assert 'gatepost_ledger_backlog_bytes{daemon="ledger.milter"} 0' in gatepost.get("/metrics")[1]
