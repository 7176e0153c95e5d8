# SPDX-License-Identifier: GPL-3.0-or-later
"""How cost grows: with organizations, recipients of a message, SRS keys, rows of the ledger, and hosts on one database.

Each is measured at three sizes, in turn; the ratio is to the smallest. What is said of CPU time is of all of gatepost's
processes, the ledger's loader included, up to the row in the store.
"""

from __future__ import annotations

import contextlib
import json
import multiprocessing
import os
import sqlite3
import subprocess
import sys
import tempfile
import time
from collections.abc import Iterable, Iterator, Mapping, Sequence
from datetime import datetime, timedelta, timezone
from functools import partial
from pathlib import Path
from typing import Any, Callable

from benchmarks import postgresql
from benchmarks.figures import Effort, Figure, in_turn
from benchmarks.installation import CERTIFICATE, ROOTS, TOP, Installation
from benchmarks.ledger_report import fill
from benchmarks.postgresql import PostgreSQL
from benchmarks.programs import answer, compiled, cpu_s
from gatepost.admin.reload import reload_daemons
from gatepost.service.config import load
from gatepost.service.database import Database
from gatepost.service.ledger import Entry, line
from gatepost.service.ledger_store import trim
from gatepost.service.loader import Loader
from gatepost.service.reference import new_reference
from gatepost.service.store import Store
from gatepost.srs import Address, Exchange, HashMismatch, Keys

ORGANIZATIONS = (1, 100, 10_000)
RECIPIENTS = (1, 10, 100)
KEYS = (1, 3, 10)
ROWS = (100_000, 1_000_000, 5_000_000)
ROWS_A_DAY = 50_000
HOSTS = (1, 2, 4)
LOADED = 50_000
"""How many rows a loader takes in a turn."""
REQUESTS = 50_000
TOKENS = (1, 10, 100)
CALLS = 2_000
DAY = 20_000
SECRET = b"tops3cr3t-of-the-benchmark"


def run(effort: Effort) -> Iterator[Figure]:
    yield from by_organizations(effort, ORGANIZATIONS)
    yield from by_recipients(effort, RECIPIENTS)
    yield from by_keys(effort, KEYS)
    with tempfile.TemporaryDirectory(prefix="gatepost-growth-", dir="/tmp") as folder:
        stores = {size: sqlite(Path(folder) / str(size), size) for size in ROWS}
        yield from by_rows(effort, "SQLite", stores)
        yield from by_tokens(effort, "SQLite", stores[ROWS[0]].url)
        if postgresql.programs() is None:
            return
        with PostgreSQL() as server:
            copies = {size: copied(server, stores[size]) for size in ROWS}
            yield from by_rows(effort, "PostgreSQL", copies)
            yield from by_hosts(effort, server, copies[ROWS[1]], HOSTS)
            yield from by_tokens(effort, "PostgreSQL", copies[ROWS[0]].url)


def figures(what: str, unit: str, sizes: Sequence[int], values: Iterable[list[float]], of: str) -> Iterator[Figure]:
    """Yield a figure for each size: its values beside those of the first."""
    (first, smallest), *others = zip(sizes, values)
    yield Figure(f"{what}, {first:,} {of}", unit, smallest)
    for size, found in others:
        yield Figure(f"{what}, {size:,} {of}", unit, found, f"with {first:,}", smallest)


# Organizations and recipients: the daemons under load.


def by_organizations(effort: Effort, sizes: Sequence[int]) -> Iterator[Figure]:
    starts, memory, running = [], [], []
    for size in sizes:
        with Installation("run", organizations=size) as alone:  # else it would share pages with the others
            memory.append([alone.program.pss_bytes() / (1 << 20)])
    with contextlib.ExitStack() as stack:
        for size in sizes:
            began = time.monotonic()
            running.append(stack.enter_context(Installation("run", organizations=size)))
            starts.append([time.monotonic() - began])
        turns = [partial(message_us, installation, effort.seconds) for installation in running]
        yield from figures("CPU of a message", "µs", sizes, in_turn(effort.rounds, *turns), "organizations")
        reloads = in_turn(effort.rounds, *(partial(reload_s, installation) for installation in running))
    with contextlib.ExitStack() as stack:
        turns = []
        for size in sizes:
            policyd = stack.enter_context(Installation("policyd", organizations=size, ledger=False))
            requests = write_requests(
                policyd.folder / "requests", f"org{size - 1}.example" if size > 1 else "contoso.com"
            )
            turns.append(partial(reverse_lookup_us, policyd, requests, effort.seconds))
        yield from figures("CPU of a look-up in reverse", "µs", sizes, in_turn(effort.rounds, *turns), "organizations")
    yield from figures("start of all daemons", "s", sizes, starts, "organizations")
    yield from figures("reload of all daemons", "s", sizes, reloads, "organizations")
    yield from figures("memory of all daemons", "MiB", sizes, memory, "organizations")


def by_recipients(effort: Effort, sizes: Sequence[int]) -> Iterator[Figure]:
    with Installation("milter") as installation:
        turns = [partial(message_us, installation, effort.seconds, rcpts) for rcpts in sizes]
        yield from figures("CPU of a message", "µs", sizes, in_turn(effort.rounds, *turns), "recipients")


def message_us(installation: Installation, seconds: float, rcpts: int = 1) -> float:
    """Return the CPU time of a message that a certificate relays, that SRS rewrites and the ledger has."""
    command = [str(compiled("load_milter")), "--address", installation.milter_address, "--certificate", CERTIFICATE]
    command += ["--seconds", str(seconds), "--warmup", "0", "--rcpts", str(rcpts)]
    pids = installation.program.processes()
    before = cpu_s(pids)
    count = int(answer(command)["total"])
    ended = time.time()
    loaded = installation.spool / "loaded"
    while not loaded.exists() or loaded.stat().st_mtime < ended:
        time.sleep(0.1)
    return (cpu_s(pids) - before) / count * 1e6


def reverse_lookup_us(installation: Installation, requests: Path, seconds: float) -> float:
    """Return the CPU time of a look-up in the map `reverse`; *requests*: a file of them."""
    command = [str(compiled("load_lookups")), "--protocol", "socketmap", "--address", str(installation.policyd_socket)]
    command += ["--requests", str(requests), "--expect", "OK ", "--connections", "8", "--seconds", str(seconds)]
    command += ["--warm-up", "0", "--json"]

    pids = installation.program.processes()
    before = cpu_s(pids)
    done = subprocess.run(command, stdin=subprocess.DEVNULL, stdout=subprocess.PIPE, check=True)
    return (cpu_s(pids) - before) / int(json.loads(done.stdout.splitlines()[-1])["answers"]) * 1e6


def write_requests(path: Path, domain: str) -> Path:
    """Write requests for originals of SRS addresses in *domain*, no two alike."""
    srs, today = exchange(1), int(time.time()) // 86400
    with path.open("w") as file:
        for number in range(REQUESTS):
            original = Address(f"app{number}", f"vendor{number % 997}.example")
            key = f"reverse {srs.forward(original, 'bounces', domain, today)}"
            file.write(f"{len(key)}:{key},")
    return path


def reload_s(installation: Installation) -> float:
    config = load(installation.configuration)
    began = time.monotonic()
    reload_daemons(config)
    return time.monotonic() - began


# Keys: functions in this process.


def by_keys(effort: Effort, sizes: Sequence[int]) -> Iterator[Figure]:
    cases: Mapping[str, Callable[[int], float]] = {"forward": forward_us, "reverse, oldest key": reverse_us}
    cases = {**cases, "reverse, wrong hash": wrong_us}
    for what, case in cases.items():
        turns = [partial(case, size) for size in sizes]
        yield from figures(f"SRS {what}", "µs", sizes, in_turn(effort.rounds, *turns), "keys")


def forward_us(keys: int) -> float:
    srs, original = exchange(keys), Address.parse("bob@fabrikam.com")
    return call_us(lambda: srs.forward(original, "bounces", "contoso.com", DAY))


def reverse_us(keys: int) -> float:
    oldest = exchange(1).forward(Address.parse("bob@fabrikam.com"), "bounces", "contoso.com", DAY)
    srs = exchange(keys)
    return call_us(lambda: srs.reverse(oldest, DAY))


def wrong_us(keys: int) -> float:
    right = exchange(1).forward(Address.parse("bob@fabrikam.com"), "bounces", "contoso.com", DAY)
    srs, wrong = exchange(keys), Address(right.local + "y", right.domain)

    def refused() -> None:
        with contextlib.suppress(HashMismatch):
            srs.reverse(wrong, DAY)

    return call_us(refused)


def exchange(keys: int) -> Exchange:
    """Return the rewriter with so many keys, of which SECRET is the oldest."""
    return Exchange(Keys([b"%d" % number for number in range(1, keys)] + [SECRET]))


def call_us(call: Callable[[], object]) -> float:
    began = time.process_time()
    for _ in range(CALLS):
        call()
    return (time.process_time() - began) / CALLS * 1e6


# Rows of the ledger.


class Ledger:
    """A ledger of *rows* rows up to now in the database at *url*, and a gatepost.toml for it in *folder*."""

    def __init__(self, folder: Path, url: str, rows: int, used_bytes: Callable[[], int]) -> None:
        self.folder, self.url, self.rows, self.used_bytes = folder, url, rows, used_bytes
        folder.mkdir(parents=True, exist_ok=True)
        write_configuration(folder, url)

    def middle(self, column: str) -> str:
        """Return the reference or queue ID of a message in the middle."""
        database = Database(self.url)
        found = database.read(
            lambda connection: connection.exec_driver_sql(
                f"SELECT {column} FROM ledger WHERE id >= {self.rows // 2} ORDER BY id LIMIT 1"
            ).scalar()
        )
        database.close()
        return str(found)

    def command_s(self, *arguments: str) -> float:
        """Return how long a command of gatepost takes, the start of Python included."""
        command = [sys.executable, "-m", "gatepost.admin", "-c", str(self.folder / "gatepost.toml"), *arguments]
        path = os.pathsep.join(str(TOP / root) for root in ROOTS)
        began = time.monotonic()
        done = subprocess.run(
            command, env={**os.environ, "PYTHONPATH": path}, stdout=subprocess.DEVNULL, cwd=self.folder
        )
        took = time.monotonic() - began
        if done.returncode not in (os.EX_OK, os.EX_UNAVAILABLE):  # the latter is what status says where nothing runs
            raise RuntimeError(f"{' '.join(command)}: exit status {done.returncode}")
        return took

    def report_s(self) -> float:
        yesterday = datetime.now(timezone.utc).date() - timedelta(days=1)
        dates = ("--start-date", f"{yesterday}", "--end-date", f"{yesterday + timedelta(days=1)}")
        return self.command_s("report", "start", "--type", "P2SenderAttribution", *dates)

    def loaded_a_second(self) -> float:
        return LOADED / load_at_once(self.folder, self.url, 1)[0]

    def trim_s(self, days: float) -> float:
        """Return how long it takes to forget all but *days*."""
        database = Database(self.url, statement_s=0)
        database.open()
        began = time.monotonic()
        while trim(database, 0, 1_000_000_000, time.time() - days * 86400):
            pass
        took = time.monotonic() - began
        database.close()
        return took


def write_configuration(folder: Path, url: str) -> None:
    (folder / "gatepost.toml").write_text(
        f'state_directory = "{folder}"\n[store]\nurl = "{url}"\n[ledger]\ndays = 3650\n'
        '[[organization]]\nname = "contoso"\n[[organization.accepted_domain]]\ndomain = "contoso.com"\n'
        '[[organization.connector]]\nname = "head office"\nsender_ip_addresses = ["192.0.2.0/24"]\n'
    )


def sqlite(folder: Path, rows: int) -> Ledger:
    """Make a ledger in SQLite."""
    folder.mkdir(parents=True, exist_ok=True)
    path, days = folder / "gatepost.db", rows / ROWS_A_DAY
    fill(path, rows, time.time() - days * 86400, days)
    return Ledger(folder, f"sqlite:///{path}", rows, lambda: path.stat().st_size)


def copied(server: PostgreSQL, source: Ledger) -> Ledger:
    """Make the same ledger in PostgreSQL."""
    name = f"ledger{source.rows}"
    url = server.url(name)
    Database(url).open()
    with contextlib.closing(sqlite3.connect(source.folder / "gatepost.db")) as connection:
        columns = ", ".join(row[1] for row in connection.execute("PRAGMA table_info(ledger)") if row[1] != "id")
        select = f"SELECT {columns} FROM ledger ORDER BY id LIMIT {source.rows}"
        server.copy(name, f"ledger ({columns})", connection.execute(select))
    server.query(name, "VACUUM ANALYZE")
    used = partial(server.query, name, "SELECT pg_total_relation_size('ledger')")
    return Ledger(source.folder / "postgresql", url, source.rows, lambda: int(used()))


def by_rows(effort: Effort, store: str, ledgers: Mapping[int, Ledger]) -> Iterator[Figure]:
    sizes, of = list(ledgers), f"rows in {store}"

    def measured(what: str, unit: str, turns: Iterable[Callable[[], float]]) -> Iterator[Figure]:
        return figures(what, unit, sizes, in_turn(effort.rounds, *turns), of)

    each = ledgers.values()
    used = [ledger.used_bytes() for ledger in each]
    yield from measured("the loader", "rows/s", [ledger.loaded_a_second for ledger in each])
    octets = [[(ledger.used_bytes() - before) / LOADED / effort.rounds] for ledger, before in zip(each, used)]
    yield from figures("disk for a row", "octets", sizes, octets, of)
    for what, column in (("reference", "reference"), ("queue ID", "queue_id")):
        explain = [partial(ledger.command_s, "explain", ledger.middle(column)) for ledger in each]
        yield from measured(f"explain by {what}", "s", explain)
    yield from measured("status", "s", [partial(ledger.command_s, "status") for ledger in each])
    yield from measured("report on P2, one day", "s", [ledger.report_s for ledger in each])
    yield from measured("trim, nothing to do", "s", [partial(ledger.trim_s, 1000) for ledger in each])
    days = [ledger.rows // ROWS_A_DAY for ledger in each]
    trimmed = [[ledger.trim_s(left - 1)] for ledger, left in zip(each, days)]
    yield from figures(f"trim, one day ({ROWS_A_DAY:,} rows)", "s", sizes, trimmed, of)


# Loaders, on one database or more.


def spool(folder: Path, rows: int) -> None:
    """Write records for a loader, as a worker writes them."""
    folder.mkdir(parents=True, exist_ok=True)
    now = time.time()
    with (folder / f"{time.time_ns():020d}-1.spool").open("wb") as file:
        file.writelines(line(entry(number, now)) for number in range(rows))


def entry(number: int, now: float) -> Entry:
    return Entry(
        reference=new_reference(),
        recipient=f"user{number % 50021}@customer{number % 3001}.example",
        time=now,
        queue_id=f"4ZL{number:08X}z4x",
        client=f"192.0.2.{number % 40 + 1}",
        helo=f"app{number % 40 + 1}.contoso.com",
        certificate_names=CERTIFICATE,
        reverse_path=f"app{number % 211}@vendor{number % 997}.example",
        sender_domain=f"vendor{number % 997}.example",
        rewritten=f"bounces+srs=abcdefgh=jl=vendor{number % 997}.example=app{number % 211}@contoso.com",
        header_from=f"news{number % 307}@contoso.com",
        organization="contoso",
        connector="crm",
        requirements="2023-11-01",
        verdict_current="relay",
        verdict_legacy="relay",
        reason="certificate-accepted",
        action="rewrite",
        size_bytes=2000 + number % 90000,
        message_id=f"<20261122100000.{number}@app.vendor.example>",
        subject=f"Your order {number}",
    )


def load_at_once(folder: Path, url: str, hosts: int) -> tuple[float, float]:
    """Have loaders take in LOADED rows each at the same time; return seconds until all are done, and their CPU time."""
    context = multiprocessing.get_context("fork")
    ready, results = context.Barrier(hosts + 1), context.SimpleQueue()
    loaders = []
    for number in range(hosts):
        state = folder / f"host{number}"
        spool(state / "ledger", LOADED)
        write_configuration(state, url)
        loaders.append(context.Process(target=take_in_all, args=(state, ready, results)))
    for process in loaders:
        process.start()
    ready.wait()
    began = time.monotonic()
    used = [results.get() for _ in loaders]
    took = time.monotonic() - began
    for process in loaders:
        process.join()
    return took, sum(used)


def take_in_all(state: Path, ready: Any, results: Any) -> None:
    """Load all that is in the spool; in a process of its own."""
    loader = Loader(load(state / "gatepost.toml"))
    loader.lock()
    loader._database.open()
    ready.wait()
    began = time.process_time()
    while not loader.load():
        pass
    results.put(time.process_time() - began)
    loader.close()


def by_hosts(effort: Effort, server: PostgreSQL, ledger: Ledger, sizes: Sequence[int]) -> Iterator[Figure]:
    rates: list[list[float]] = [[] for _ in sizes]
    server_us: list[list[float]] = [[] for _ in sizes]
    loader_us: list[list[float]] = [[] for _ in sizes]
    wal: list[list[float]] = [[] for _ in sizes]
    for _ in range(effort.rounds):
        for place, hosts in enumerate(sizes):
            rows, cpu, written = hosts * LOADED, server.cpu_s(), server.wal_bytes()
            took, used = load_at_once(ledger.folder, ledger.url, hosts)
            rates[place].append(rows / took)
            server_us[place].append((server.cpu_s() - cpu) / rows * 1e6)
            loader_us[place].append(used / rows * 1e6)
            wal[place].append((server.wal_bytes() - written) / rows)
    yield from figures("loaders on one PostgreSQL, all together", "rows/s", sizes, rates, "hosts")
    yield from figures("CPU of PostgreSQL for a row", "µs", sizes, server_us, "hosts")
    yield from figures("CPU of the loader for a row", "µs", sizes, loader_us, "hosts")
    yield from figures("write-ahead log for a row", "octets", sizes, wal, "hosts")


# Compact addresses.


def by_tokens(effort: Effort, name: str, url: str) -> Iterator[Figure]:
    of = f"at a time, {name}"
    with contextlib.closing(Store(url)) as store:
        puts = [partial(puts_a_second, store, effort.seconds, size) for size in TOKENS]
        yield from figures("compact addresses kept", "/s", TOKENS, in_turn(effort.rounds, *puts), of)
        store.stored("known", "bob@fabrikam.com", 2 * DAY)
        gets = [partial(gets_a_second, store, effort.seconds, size) for size in TOKENS]
        yield from figures("compact addresses found", "/s", TOKENS, in_turn(effort.rounds, *gets), of)


def puts_a_second(store: Store, seconds: float, together: int) -> float:
    begin, done = time.monotonic(), 0
    while time.monotonic() - begin < seconds:
        for future in [store.put(new_reference(), "bob@fabrikam.com", DAY) for _ in range(together)]:
            future.result()
        done += together
    return done / (time.monotonic() - begin)


def gets_a_second(store: Store, seconds: float, together: int) -> float:
    begin, done = time.monotonic(), 0
    while time.monotonic() - begin < seconds:
        for future in [store.get("known") for _ in range(together)]:
            future.result()
        done += together
    return done / (time.monotonic() - begin)
