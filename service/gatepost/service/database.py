# SPDX-License-Identifier: GPL-3.0-or-later
"""The database under the store: SQLite or PostgreSQL by SQLAlchemy Core, in words that 1.4 and 2 understand.

A Database belongs to the thread that made it. It keeps one connection, and makes a new one where that has broken or
where the SQLite file is another one than it was.
"""

from __future__ import annotations

import contextlib
import fcntl
import importlib
import os
import random
import time
from collections.abc import Callable, Iterator, Sequence
from pathlib import Path
from typing import Any, Optional, TypeVar, Union

import sqlalchemy as sa
from sqlalchemy.dialects import postgresql, sqlite
from sqlalchemy.exc import SQLAlchemyError
from sqlalchemy.pool import NullPool

from gatepost.service import schema
from gatepost.service.store import StoreError
from gatepost.service.tables import without_password

BUSY_S = 1.0
"""How long to try while others keep the database locked. Below the store's timeout: who asks shall hear why."""
STATEMENT_S = 1.5
_CONNECTION = {
    # libpq takes less for 2. A host that falls silent is given up after four seconds.
    "connect_timeout": 2,
    "keepalives_idle": 2,
    "keepalives_interval": 1,
    "keepalives_count": 2,
    "tcp_user_timeout": 4000,
    "client_encoding": "utf8",
    "application_name": "gatepost",
}
_PRAGMAS = ("PRAGMA journal_mode = WAL", "PRAGMA synchronous = FULL")
_SESSION = (
    # A host that goes away inside a transaction shall not keep its rows locked.
    "SET idle_in_transaction_session_timeout = 10000",
    # A row must be on disk before a put is done.
    "SELECT set_config('synchronous_commit', 'on', false) WHERE current_setting('synchronous_commit') = 'off'",
)
_SCHEMA_LOCK = 0x67617465706F7374  # "gatepost"
_LOCKED = ("database is locked", "database schema is locked", "locking protocol")
_FULL = "database or disk is full"

T = TypeVar("T")


class Database:
    """The database at *url*; every method raises StoreError, and connects where there is no connection.

    statement_s: how long one statement may take, where the database can tell (PostgreSQL); 0: as long as it likes.
    makes_tables: where they are missing or an earlier release's; else that is a StoreError.
    """

    def __init__(self, url: str, statement_s: float = STATEMENT_S, *, makes_tables: bool = True) -> None:
        try:
            self._engine = engine(url)
        except (SQLAlchemyError, ValueError):
            # The error may show the password.
            raise StoreError("the store's URL is not one of a database") from None
        self._statement_s = statement_s
        self._makes_tables = makes_tables
        self._is_sqlite = self._engine.dialect.name == "sqlite"
        self._name = str(self._engine.url.database) if self._is_sqlite else without_password(url)
        self._connection: Optional[sa.engine.Connection] = None
        self._file: Optional[tuple[int, int]] = None
        self._deadline = 0.0

    def open(self) -> None:
        """Connect, unless there is a connection already, and make the tables that are missing."""
        self._attempt(lambda _: None)

    def read(self, work: Callable[[sa.engine.Connection], T]) -> T:
        """Do *work* inside a transaction that changes nothing. It may be done anew; see `write`."""

        def reading(connection: sa.engine.Connection) -> T:
            with connection.begin():
                return work(connection)

        return self._attempt(reading)

    def write(self, work: Callable[[sa.engine.Connection], T]) -> T:
        """Do *work* inside a transaction, durable afterwards.

        It is done again from its beginning, transaction and all, where others keep the database locked. Where the
        connection broke, once more; what was done before may then have been committed.
        """

        def writing(connection: sa.engine.Connection) -> T:
            with self._writing(connection):
                return work(connection)

        return self._attempt(writing)

    def insert(self, table: sa.Table) -> Union[sqlite.Insert, postgresql.Insert]:
        """Return an INSERT into *table* that can say what to do on conflict."""
        return sqlite.insert(table) if self._is_sqlite else postgresql.insert(table)

    def close(self) -> None:
        """Close the connection; the next call makes another one."""
        connection, self._connection = self._connection, None
        if connection is not None:
            with contextlib.suppress(SQLAlchemyError):
                connection.close()

    def _attempt(self, work: Callable[[sa.engine.Connection], T]) -> T:
        """Do *work*, again while others keep the database locked, and once more where the connection was dead."""
        self._deadline = time.monotonic() + BUSY_S
        may_reconnect = True
        while True:
            try:
                return work(self._connected())
            except (SQLAlchemyError, OSError) as error:
                text = in_words(error)
                is_locked = self._is_sqlite and text.startswith(_LOCKED)
                if not is_locked and text != _FULL:
                    self.close()
                if is_locked and time.monotonic() < self._deadline:
                    time.sleep(random.uniform(0.001, 0.004))
                elif may_reconnect and getattr(error, "connection_invalidated", False):
                    may_reconnect = False
                else:
                    raise StoreError(f"store {self._name}: {text}") from error

    def _connected(self) -> sa.engine.Connection:
        if self._connection is None or (self._is_sqlite and _identity(self._name) != self._file):
            self.close()
            if self._is_sqlite:
                if self._makes_tables:
                    make_file(Path(self._name))
                elif not os.path.exists(self._name):
                    raise StoreError(f"store {self._name}: is not there; the daemons make it")
                self._file = _identity(self._name)
            connection = self._engine.connect()
            try:
                self._prepare(connection)
            except BaseException:
                connection.close()
                raise
            self._connection = connection
        return self._connection

    def _prepare(self, connection: sa.engine.Connection) -> None:
        with connection.begin():
            timeout = f"SET statement_timeout = {int(self._statement_s * 1000)}"
            for statement in _PRAGMAS if self._is_sqlite else (*_SESSION, timeout):
                connection.exec_driver_sql(statement)
            if not self._is_sqlite:
                encoding = connection.exec_driver_sql("SHOW server_encoding").scalar()
                if encoding != "UTF8":
                    raise StoreError(f"store {self._name}: its encoding is {encoding}; it must be UTF8")
        version = self._version(connection)
        if version < schema.VERSION and not self._makes_tables:
            raise StoreError(
                f"store {self._name}: its tables are of version {version}; "
                "the daemons of this release bring them up to date"
            )
        if version < schema.VERSION:
            self._make_tables(connection)
        elif version > schema.VERSION:
            raise StoreError(
                f"store {self._name}: its tables are of version {version}, which a newer release of gatepost made; "
                f"this one knows version {schema.VERSION}"
            )

    def _version(self, connection: sa.engine.Connection) -> int:
        """Return the version of the tables that are there, 0 for none."""
        with connection.begin():
            if not sa.inspect(connection).has_table(schema.version.name):
                return 0
            return int(connection.execute(sa.select(schema.version.c.version)).scalar() or 0)

    def _make_tables(self, connection: sa.engine.Connection) -> None:
        """Make what is missing. Another process may have been faster."""
        with self._writing(connection):
            if not self._is_sqlite:
                connection.execute(sa.select(sa.func.pg_advisory_xact_lock(_SCHEMA_LOCK)))
            schema.metadata.create_all(connection)
            if not self._is_sqlite:  # an index of millions of rows takes longer than a statement may
                connection.exec_driver_sql(f"SET LOCAL lock_timeout = {int(STATEMENT_S * 1000)}")
                connection.exec_driver_sql("SET LOCAL statement_timeout = 0")
            _complete(connection)
            connection.execute(schema.version.delete().where(schema.version.c.version < schema.VERSION))
            if connection.execute(sa.select(schema.version.c.version)).first() is None:
                connection.execute(schema.version.insert().values(version=schema.VERSION))

    @contextlib.contextmanager
    def _writing(self, connection: sa.engine.Connection) -> Iterator[None]:
        if not self._is_sqlite:
            with connection.begin():
                yield
            return
        with _turn(Path(self._name).parent, self._deadline), connection.begin():
            # A transaction that reads first and is overtaken by another writer could never write.
            connection.exec_driver_sql("BEGIN IMMEDIATE")
            yield


def _complete(connection: sa.engine.Connection) -> None:
    """Give tables of an earlier release the columns and indexes that they lack: none was ever changed or dropped."""
    inspector = sa.inspect(connection)
    for table in schema.metadata.sorted_tables:
        there = {column["name"] for column in inspector.get_columns(table.name)}
        for column in table.columns:
            if column.name not in there:
                added = sa.schema.CreateColumn(column).compile(dialect=connection.dialect)
                connection.exec_driver_sql(f"ALTER TABLE {table.name} ADD COLUMN {added}")
        for index in sorted(table.indexes, key=lambda index: str(index.name)):
            index.create(connection, checkfirst=True)
    for name in schema.OLD_INDEXES:
        connection.exec_driver_sql(f"DROP INDEX IF EXISTS {name}")


def engine(text: str) -> sa.engine.Engine:
    """Return an engine for the URL *text*, which connects only when told to. Raises SQLAlchemyError, StoreError."""
    url = sa.engine.make_url(text)
    if url.drivername == "postgresql":
        url = url.set(drivername=f"postgresql+{_postgresql_driver()}")
    dialect = url.get_backend_name()
    if dialect == "sqlite":
        if url.database in (None, "", ":memory:"):
            raise StoreError("the store's URL names no file")
        # No transaction begins but where we say so; waiting for locks is ours.
        arguments: dict[str, object] = {"isolation_level": None, "timeout": 0}
    elif dialect == "postgresql":
        arguments = {name: value for name, value in _CONNECTION.items() if name not in url.query}
    else:
        raise StoreError(f"the store's database is {dialect}; it must be sqlite or postgresql")
    # Addresses are not for the log.
    return sa.create_engine(url, future=True, poolclass=NullPool, hide_parameters=True, connect_args=arguments)


def _postgresql_driver() -> str:
    # SQLAlchemy 1.4 (Debian 12) knows psycopg2 only.
    for driver in ("psycopg2",) if sa.__version__.startswith("1.") else ("psycopg", "psycopg2"):
        with contextlib.suppress(ImportError):
            importlib.import_module(driver)
            return driver
    raise StoreError("PostgreSQL needs Python's psycopg2, or psycopg with SQLAlchemy 2; install python3-psycopg2")


def insert_rows(
    connection: sa.engine.Connection, table: sa.Table, columns: Sequence[str], rows: Sequence[tuple[Any, ...]]
) -> None:
    """Insert *rows*, each with the values of *columns*."""
    if rows and connection.dialect.name == "sqlite":  # SQLAlchemy's parameters cost twice as much as SQLite's insert
        names, values = ", ".join(columns), ", ".join("?" * len(columns))
        connection.exec_driver_sql(f"INSERT INTO {table.name} ({names}) VALUES ({values})", rows)
    elif rows:
        connection.execute(table.insert(), [dict(zip(columns, row)) for row in rows])


def make_file(path: Path) -> None:
    """Make *path*, for its owner only, where it is not there. Made by root it belongs to the owner of its folder.

    SQLite gives -wal and -shm the owner and mode of the file itself. Raises OSError.
    """
    with contextlib.suppress(FileExistsError):
        descriptor = os.open(path, os.O_RDWR | os.O_CREAT | os.O_EXCL | os.O_CLOEXEC, 0o600)
        try:
            if os.geteuid() == 0:
                folder = path.parent.stat()
                os.fchown(descriptor, folder.st_uid, folder.st_gid)
        finally:
            os.close(descriptor)


@contextlib.contextmanager
def _turn(folder: Path, deadline: float) -> Iterator[None]:
    """Let one process after the other write: SQLite has no queue for them, and some of many would wait for seconds.

    A courtesy among ours by flock on *folder*, with no file of its own: after *deadline*, the database decides.
    """
    descriptor = os.open(folder, os.O_RDONLY | os.O_CLOEXEC)
    try:
        while time.monotonic() < deadline:
            with contextlib.suppress(BlockingIOError):
                fcntl.flock(descriptor, fcntl.LOCK_EX | fcntl.LOCK_NB)
                break
            time.sleep(0.0002)
        yield
    finally:
        os.close(descriptor)


def _identity(path: str) -> Optional[tuple[int, int]]:
    """Return which file *path* is; None: there is none."""
    try:
        found = os.stat(path)
    except OSError:
        return None
    return found.st_dev, found.st_ino


def in_words(error: Exception) -> str:
    """Return in one line what went wrong, without the statement."""
    if isinstance(error, FileNotFoundError) and error.filename:
        return f"the folder {Path(error.filename).parent} does not exist"
    if isinstance(error, OSError) and error.strerror:
        return error.strerror
    return " ".join(str(getattr(error, "orig", None) or error).split())
