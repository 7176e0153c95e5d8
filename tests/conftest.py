# SPDX-License-Identifier: GPL-3.0-or-later
"""The databases and disks that several test files use, and what holds for all properties."""

from __future__ import annotations

import itertools
import os
import sqlite3
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest
from doctorpostfix import Looked, postfix_programs
from hypothesis import settings
from postgresql import PostgreSQL, needs_postgresql
from smalldisk import mounted

from gatepost.admin.sandbox import temporary_root

settings.register_profile("gatepost", deadline=None)  # no test is timed
settings.load_profile("gatepost")


@pytest.fixture(scope="session")
def postgresql() -> Iterator[PostgreSQL]:
    with PostgreSQL() as server:
        yield server


@pytest.fixture
def sqlite_url(tmp_path: Path) -> str:
    return f"sqlite:///{tmp_path}/gatepost.db"


@pytest.fixture
def postgresql_url(postgresql: PostgreSQL) -> str:
    """The URL of an empty database."""
    return postgresql.database()


@pytest.fixture(params=["sqlite_url", pytest.param("postgresql_url", marks=needs_postgresql)])
def url(request: pytest.FixtureRequest) -> str:
    """The URL of an empty database, of each kind."""
    found: str = request.getfixturevalue(request.param)
    return found


@pytest.fixture
def query(request: pytest.FixtureRequest) -> Callable[[str, str], list[str]]:
    """Run a statement past the store; rows as psql writes them."""

    def run(url: str, statement: str) -> list[str]:
        if not url.startswith("sqlite"):
            server: PostgreSQL = request.getfixturevalue("postgresql")
            return server.query(url.rpartition("/")[2], statement)
        connection = sqlite3.connect(url.partition("///")[2], timeout=20, isolation_level=None)
        try:
            return ["|".join(map(str, row)) for row in connection.execute(statement)]
        finally:
            connection.close()

    return run


@pytest.fixture
def small_disk(tmp_path: Path) -> Iterator[Path]:
    """A file system of one megabyte."""
    with mounted(tmp_path / "disk") as folder:
        yield folder


@pytest.fixture
def look(monkeypatch: pytest.MonkeyPatch) -> Iterator[Callable[..., Looked]]:
    """Return a function that lays out an example's configuration; see Looked."""
    if os.getuid() != 0:
        pytest.skip("only root can make Postfix's folders")
    postfix_programs(monkeypatch)
    with temporary_root() as root:
        numbers = itertools.count(1)
        yield lambda name, **options: Looked(name, root / str(next(numbers)), **options)
