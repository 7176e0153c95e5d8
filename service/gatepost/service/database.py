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
from typing import Optional, TypeVar

import sqlalchemy as sa
from sqlalchemy.dialects import postgresql, sqlite
from sqlalchemy.exc import SQLAlchemyError
from sqlalchemy.pool import NullPool

from gatepost.service.store import Row, StoreError

SCHEMA_VERSION = 1
BUSY_S = 1.0
"""How long to try while others keep the database locked. Below the store's timeout: who asks shall hear why."""
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
    "SET statement_timeout = 1500",
    # A host that goes away inside a transaction shall not keep its rows locked.
    "SET idle_in_transaction_session_timeout = 10000",
    # A row must be on disk before a put is done.
    "SELECT set_config('synchronous_commit', 'on', false) WHERE current_setting('synchronous_commit') = 'off'",
)
_SCHEMA_LOCK = 0x67617465706F7374  # "gatepost"
_LOCKED = ("database is locked", "database schema is locked", "locking protocol")
_FULL = "database or disk is full"

metadata = sa.MetaData()
tokens = sa.Table(
    "srs_token",
    metadata,
    sa.Column("token", sa.Text, primary_key=True),
    sa.Column("original", sa.Text, nullable=False),
    sa.Column("expires_day", sa.Integer, nullable=False, index=True),
    sqlite_with_rowid=False,
)
schema = sa.Table("gatepost_schema", metadata, sa.Column("version", sa.Integer, nullable=False))

T = TypeVar("T")


class Database:
    """The database at *url*; every method raises StoreError, and connects where there is no connection."""

    def __init__(self, url: str) -> None:
        try:
            self._engine = _engine(url)
        except (SQLAlchemyError, ValueError):
            # The error may show the password.
            raise StoreError("the store's URL is not one of a database") from None
        self._is_sqlite = self._engine.dialect.name == "sqlite"
        self._name = str(self._engine.url.database) if self._is_sqlite else self._engine.url.render_as_string()
        self._connection: Optional[sa.engine.Connection] = None
        self._file: Optional[tuple[int, int]] = None
        self._deadline = 0.0

    def open(self) -> None:
        """Connect, unless there is a connection already, and make the tables that are missing."""
        self._attempt(lambda _: None)

    def find(self, wanted: Sequence[str]) -> dict[str, str]:
        """Return the original address of each token of *wanted* that is known."""

        def read(connection: sa.engine.Connection) -> dict[str, str]:
            with connection.begin():
                return {token: row.original for token, row in _rows(connection, wanted).items()}

        return self._attempt(read)

    def keep(self, rows: Sequence[Row]) -> dict[str, str]:
        """Make *rows* durable and return the original address of each of their tokens then, whoever put it there."""
        latest: dict[str, Row] = {}
        for row in sorted(rows, key=lambda row: (row.token, row.expires_day)):
            latest[row.token] = row
        return self._attempt(lambda connection: self._keep(connection, latest))

    def _keep(self, connection: sa.engine.Connection, latest: dict[str, Row]) -> dict[str, str]:
        with connection.begin():
            there = _rows(connection, list(latest))
        # What others can see is durable; a message to many recipients asks for the same token again and again.
        lacking = [row for token, row in latest.items() if token not in there or there[token].expires_day < row[2]]
        if lacking:
            with self._writing(connection):
                connection.execute(self._insert, [row._asdict() for row in lacking])
                there.update(_rows(connection, [row.token for row in lacking]))
        return {token: row.original for token, row in there.items()}

    def expire(self, today: int, limit: int) -> int:
        """Delete up to *limit* rows that were of use before *today* only; return how many."""
        old = tokens.c.expires_day < today
        # Another host may be at the same rows.
        chunk = sa.select(tokens.c.token).where(old).limit(limit).with_for_update(skip_locked=True)

        def delete(connection: sa.engine.Connection) -> int:
            with self._writing(connection):
                return int(connection.execute(tokens.delete().where(old, tokens.c.token.in_(chunk))).rowcount)

        return self._attempt(delete)

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
                text = _in_words(error)
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
                _make_file(Path(self._name))
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
            for statement in _PRAGMAS if self._is_sqlite else _SESSION:
                connection.exec_driver_sql(statement)
            if not self._is_sqlite:
                encoding = connection.exec_driver_sql("SHOW server_encoding").scalar()
                if encoding != "UTF8":
                    raise StoreError(f"store {self._name}: its encoding is {encoding}; it must be UTF8")
            is_made = sa.inspect(connection).has_table(schema.name)
        if not is_made:
            self._make_tables(connection)
        with connection.begin():
            version = connection.execute(sa.select(schema.c.version)).scalar()
        if version != SCHEMA_VERSION:
            raise StoreError(
                f"store {self._name}: its tables are of version {version}, which another release of gatepost made; "
                f"this one knows version {SCHEMA_VERSION}"
            )

    def _make_tables(self, connection: sa.engine.Connection) -> None:
        with self._writing(connection):
            if not self._is_sqlite:
                connection.execute(sa.select(sa.func.pg_advisory_xact_lock(_SCHEMA_LOCK)))
            metadata.create_all(connection)
            if connection.execute(sa.select(schema.c.version)).first() is None:
                connection.execute(schema.insert().values(version=SCHEMA_VERSION))

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

    @property
    def _insert(self) -> sa.sql.Executable:
        insert = sqlite.insert(tokens) if self._is_sqlite else postgresql.insert(tokens)
        later = insert.excluded.expires_day
        return insert.on_conflict_do_update(
            index_elements=[tokens.c.token], set_={"expires_day": later}, where=tokens.c.expires_day < later
        )


def _rows(connection: sa.engine.Connection, wanted: Sequence[str]) -> dict[str, Row]:
    """Read the rows of *wanted*, inside a transaction."""
    found = connection.execute(sa.select(tokens).where(tokens.c.token.in_(wanted))).all()
    return {row.token: Row(row.token, row.original, row.expires_day) for row in found}


def _engine(text: str) -> sa.engine.Engine:
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


def _make_file(path: Path) -> None:
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


def _in_words(error: Exception) -> str:
    """Return in one line what went wrong, without the statement."""
    if isinstance(error, FileNotFoundError) and error.filename:
        return f"the folder {Path(error.filename).parent} does not exist"
    if isinstance(error, OSError) and error.strerror:
        return error.strerror
    return " ".join(str(getattr(error, "orig", None) or error).split())
