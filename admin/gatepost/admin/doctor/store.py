# SPDX-License-Identifier: GPL-3.0-or-later
"""Checks of the store and the ledger: what is there is looked at, and nothing made that is not."""

from __future__ import annotations

import os
import shlex
import time
from collections.abc import Callable, Iterator
from importlib.util import find_spec
from pathlib import Path
from typing import Optional, TypeVar

import sqlalchemy as sa
from sqlalchemy.exc import SQLAlchemyError

from gatepost.admin.configuration import become_owner, resign_ownership
from gatepost.admin.doctor.dns import each, exchanges, srs_domains
from gatepost.admin.doctor.model import (
    Check,
    Circumstances,
    Edit,
    Finding,
    as_root,
    called,
    edit,
    error,
    info,
    installing,
    ok,
    unknown,
    warning,
)
from gatepost.relay import enumeration
from gatepost.service import exporter, schema
from gatepost.service.config import Config
from gatepost.service.database import engine, in_words
from gatepost.service.exporter import collect
from gatepost.service.loader import LOADED_NAME
from gatepost.service.spf import Lookups
from gatepost.service.spool import spooled_bytes
from gatepost.service.srs_config import COMPACT
from gatepost.service.store import StoreError
from gatepost.service.supervisor import series_folder
from gatepost.service.tables import without_password

_NETWORKED = (
    "nfs",
    "nfs4",
    "cifs",
    "smb3",
    "smbfs",
    "ceph",
    "9p",
    "afs",
    "fuse.sshfs",
    "fuse.glusterfs",
    "lustre",
    "ocfs2",
)
_OLDEST_POSTGRESQL = 90600
_AHEAD_S = 3600.0
_FULL_SHARE = 0.9
_STATEMENT_S = 5
_AWAY = "Records wait in the spool, and reports are short of them."
_AWAY_COMPACT = "Compact SRS addresses cannot be made or brought back: their mail and bounces are put off."

T = TypeVar("T")


def store(circumstances: Circumstances) -> Iterator[Finding]:
    """Whether the store can be asked, and is of this release."""
    config = circumstances.config
    url = without_password(config.store_url)
    file = sqlite_file(config)
    if file:
        yield from judged_file_system(config, file, file_system(file.parent))
        if not file.exists():
            yield info(f"{file} is not there yet", "The first record or compact address makes it.")
            return
    try:
        version, found = _asked(config, lambda connection: (_version(connection), list(_server(connection))))
    except PermissionError:
        yield unknown(f"{file} cannot be read", "", f"ls -l {shlex.quote(str(file))}", as_root(circumstances))
        return
    except StoreError as failure:
        away = f"{_AWAY_COMPACT} {_AWAY}" if config.srs.reverses(COMPACT) else _AWAY
        circumstances.store_failed = True
        yield error(f"the store {url} cannot be asked: {failure}", away, *_look_at(config))
        return
    yield from found
    if version > schema.VERSION:
        yield error(
            f"the tables of {url} are of version {version}, and this gatepost knows version {schema.VERSION}",
            f"A newer gatepost has changed them; this one does not use the store. {_AWAY}",
            f"{installing('gatepost')}   # the same release on all hosts that share the store",
        )
    elif version == 0:
        yield info(f"{url} has no tables yet", "The first record or compact address makes them.")
    elif version < schema.VERSION:
        yield info(
            f"the tables of {url} are of version {version}, and become version {schema.VERSION} when they are used",
            "Daemons of an older release on other hosts stop using them then.",
            "systemctl restart gatepost.target",
        )
    elif not found:
        yield ok(f"{url}: answers, tables of version {version}")


def judged_file_system(config: Config, file: Path, kind: str) -> Iterator[Finding]:
    """Yield what is to be said of an SQLite *file* on a file system of this *kind*."""
    if kind in _NETWORKED:
        yield error(
            f"{file} is on a network file system ({kind})",
            "SQLite's locks do not hold there: the file can be damaged, and several hosts damage it for certain.",
            Edit(f'{config.path}: [store] url = "postgresql://gatepost@db.example/gatepost"'),
        )


def _version(connection: sa.engine.Connection) -> int:
    if not sa.inspect(connection).has_table(schema.version.name):
        return 0
    return int(connection.execute(sa.select(schema.version.c.version)).scalar() or 0)


def _server(connection: sa.engine.Connection) -> Iterator[Finding]:
    if connection.dialect.name == "postgresql":
        number, encoding, standby = (
            connection.exec_driver_sql(query).scalar()
            for query in ("SHOW server_version_num", "SHOW server_encoding", "SELECT pg_is_in_recovery()")
        )
        yield from judged_server(int(number or 0), str(encoding), bool(standby))


def judged_server(number: int, encoding: str, standby: bool) -> Iterator[Finding]:
    """Yield what a PostgreSQL server lacks; *number*: its version, 90600 for 9.6."""
    if number < _OLDEST_POSTGRESQL:
        version = f"{number // 10000}.{number // 100 % 100}"
        yield error(f"PostgreSQL is of version {version}; 9.6 is the oldest that will do", f"{_AWAY_COMPACT} {_AWAY}")
    if encoding != "UTF8":
        yield error(
            f"the database's encoding is {encoding}",
            "Addresses and subjects in other scripts would be lost, so that gatepost does not use it.",
            "createdb --encoding UTF8 --template template0 gatepost",
        )
    if standby:
        yield error(
            "PostgreSQL is a standby, which cannot be written",
            f"{_AWAY_COMPACT} {_AWAY}",
            Edit("gatepost.toml: [store] url, with the host of the primary server"),
        )


def _look_at(config: Config) -> list[str]:
    file = sqlite_file(config)
    if file:
        return [f"ls -l {shlex.quote(str(file))}*; df -h {shlex.quote(str(file.parent))}"]
    if find_spec("psycopg2") is None:
        return [installing("python3-psycopg2")]
    return [f"psql {shlex.quote(without_password(config.store_url))} -c 'SELECT 1'"]


def ledger(circumstances: Circumstances) -> Iterator[Finding]:
    """Whether the ledger has room for the days that it is to keep, and no record of the future."""
    config = circumstances.config
    file = sqlite_file(config)
    if not config.ledger.days or (file and not file.exists()) or circumstances.store_failed:
        return

    def look(connection: sa.engine.Connection) -> Optional[tuple[int, float, float]]:
        if _version(connection) < 2:
            return None
        at = schema.ledger.c.time
        newest, oldest = connection.execute(sa.select(sa.func.max(at), sa.func.min(at))).one()
        rows = connection.execute(sa.select(sa.func.count()).select_from(schema.ledger)).scalar()
        return (int(rows or 0), newest, oldest) if rows else None

    try:
        found = _asked(config, look)
    except (StoreError, PermissionError):
        return  # the check of the store says so
    if found is None:
        yield ok("the ledger is empty")
    else:
        yield from judged_ledger(config, circumstances.now, *found)


def judged_ledger(config: Config, now: float, rows: int, newest: float, oldest: float) -> Iterator[Finding]:
    """Yield what is to be said of a ledger with so many rows between two times, in Unix seconds."""
    days = (now - oldest) / 86400
    if newest > now + _AHEAD_S:
        yield warning(
            f"the newest record of the ledger is of {_moment(newest)}, and it is {_moment(now)} here",
            "The clock of a host that writes it is wrong, or this one is: SRS addresses are dated by it.",
            "timedatectl   # on each host that shares the store",
        )
    if rows >= config.ledger.rows * _FULL_SHARE and days < config.ledger.days:
        yield info(
            f"the ledger has {rows} of {config.ledger.rows} rows, and {days:.0f} of {config.ledger.days} days",
            "Where it is full, the oldest go first: reports do not reach back as far as ledger.days says.",
            Edit(f"{config.path}: [ledger] rows = {config.ledger.rows * 2}"),
        )
    else:
        yield ok(f"the ledger has {rows} rows, since {_moment(oldest)}")


def backlog(circumstances: Circumstances) -> Iterator[Finding]:
    """Whether records get from the spool into the store."""
    config = circumstances.config
    if not config.ledger.days or not config.state_directory.is_dir():
        return
    try:
        waiting = spooled_bytes(config.ledger_folder) if config.ledger_folder.is_dir() else 0
        loaded = (config.ledger_folder / LOADED_NAME).stat().st_mtime
    except PermissionError:
        yield unknown(f"{config.ledger_folder} cannot be read by this user", "", as_root(circumstances))
        return
    except FileNotFoundError:
        loaded = circumstances.now  # nothing was ever recorded here
    notes = exporter.notes(collect(series_folder(config)), circumstances.now)
    behind_s = circumstances.now - loaded
    yield from judged_backlog(config, waiting, behind_s if waiting else 0.0, notes)


def judged_backlog(config: Config, waiting_bytes: int, behind_s: float, notes: list[str]) -> Iterator[Finding]:
    """Yield what is to be said of so much in the spool; *notes*: what the daemons themselves say."""
    limit = config.ledger.spool_bytes
    lost = "mail is put off then (ledger.required)" if config.ledger.required else "further records are lost then"
    told = f"{waiting_bytes >> 10} KiB of {limit >> 20} MiB wait in {config.ledger_folder}"
    look = "journalctl -t gatepost-policyd -t gatepost-milter --grep ledger -n 20"
    if waiting_bytes > limit / 2:
        yield error(told, f"The store does not take records; the spool fills up, and {lost}.", look)
    elif notes or behind_s > exporter.BEHIND_S:
        behind = f", the store is {behind_s / 60:.0f} min behind" if behind_s > exporter.BEHIND_S else ""
        yield warning(
            f"{told}{behind}",
            f"No daemon loads them, or the store does not take them. Reports are short of them; at the limit {lost}.",
            called(config.path, "status"),
            look,
        )
    else:
        yield ok(told)


def shared(circumstances: Circumstances) -> Iterator[Finding]:
    """Whether compact addresses can be brought back on every host that an MX leads to."""
    config = circumstances.config
    if not config.srs.reverses(COMPACT):
        return
    if sqlite_file(config) is None:
        yield ok("compact addresses are in a store that hosts can share")
        return

    def ask(domain: str, lookups: Lookups) -> list[Finding]:
        hosts = exchanges(domain, lookups)
        if len(hosts) < 2:
            return [ok(f"{domain}: no second MX, so that SQLite will do")]
        return [
            warning(
                f"{domain} has the MX {enumeration(hosts)}, and compact addresses are in an SQLite file of this host",
                "A bounce to a compact address that comes in elsewhere is refused there: its token is not known.",
                edit(circumstances, '[store] url = "postgresql://gatepost@db.example/gatepost", the same on all'),
                edit(circumstances, 'or [srs] form = "long"'),
            )
        ]

    yield from each(circumstances, srs_domains(circumstances.snapshot)[:1], ask)


def sqlite_file(config: Config) -> Optional[Path]:
    """Return the file of the store, None where it is no SQLite."""
    return Path(config.store_url.partition("///")[2]) if config.store_url.startswith("sqlite:") else None


def file_system(folder: Path) -> str:
    """Return the kind of file system that *folder* is on, "" where that can't be told (proc(5), mountinfo)."""
    try:
        lines = Path("/proc/self/mountinfo").read_text("utf-8", "surrogateescape").splitlines()
        device = os.stat(folder).st_dev
    except OSError:
        return ""
    wanted = f"{os.major(device)}:{os.minor(device)}"
    for line in lines:
        left, _, right = line.partition(" - ")
        if left.split()[2] == wanted:
            return right.split()[0]
    return ""


def _asked(config: Config, look: Callable[[sa.engine.Connection], T]) -> T:
    """Do *look* as the daemons' user. Raises StoreError, PermissionError for an SQLite file."""
    file = sqlite_file(config)
    become_owner(config)
    try:
        if file and not os.access(file, os.R_OK, effective_ids=True):
            raise PermissionError
        made = engine(config.store_url)
        with made.connect() as connection, connection.begin():
            if connection.dialect.name == "postgresql":
                connection.exec_driver_sql(f"SET LOCAL statement_timeout = {_STATEMENT_S * 1000}")
            return look(connection)
    except (SQLAlchemyError, ValueError) as failure:
        raise StoreError(in_words(failure)) from failure
    finally:
        resign_ownership()


def _moment(at: float) -> str:
    return time.strftime("%Y-%m-%d %H:%M UTC", time.gmtime(at))


CHECKS = (
    Check("store", "Store", store),
    Check("ledger", "Store", ledger),
    Check("ledger-backlog", "Store", backlog),
    Check("store-shared", "Store", shared),
)
