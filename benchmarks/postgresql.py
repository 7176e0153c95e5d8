# SPDX-License-Identifier: GPL-3.0-or-later
"""A private PostgreSQL under measurement: Debian's settings, so durable, in a folder below /tmp that goes with it."""

from __future__ import annotations

import csv
import os
import shutil
import subprocess
import tempfile
from collections.abc import Iterable, Sequence
from pathlib import Path
from typing import Optional

from benchmarks.programs import Program, cpu_s, tree
from gatepost.admin.sandbox import free_port


def programs() -> Optional[Path]:
    """Return the folder of the newest server's programs, or None where there is none."""
    found = sorted(Path("/usr/lib/postgresql").glob("*/bin/initdb"), key=lambda path: float(path.parts[-3]))
    if not found and (path := shutil.which("initdb")):
        found = [Path(path)]
    return found[-1].parent if found else None


class PostgreSQL:
    """A server; a context manager: started, then stopped and removed. It runs as postgres where this is root."""

    def __init__(self) -> None:
        found = programs()
        if found is None:
            raise FileNotFoundError("no PostgreSQL server: apt install postgresql")
        self._programs = found
        self._as_user = ["runuser", "-u", "postgres", "--"] if os.geteuid() == 0 else []
        self._temporary = tempfile.TemporaryDirectory(prefix="gatepost-benchmark-", dir="/tmp")
        self.folder = Path(self._temporary.name)
        self.port = free_port()
        settings = ("listen_addresses=127.0.0.1", f"unix_socket_directories={self.folder}")
        options = [word for setting in settings for word in ("-c", setting)]
        self.program = Program(
            [*self._as_user, str(found / "postgres"), "-D", str(self.folder / "data"), "-p", str(self.port), *options],
            self.folder / "log",
        )

    def __enter__(self) -> PostgreSQL:
        try:
            if self._as_user:
                shutil.chown(self.folder, "postgres")
            initdb = [str(self._programs / "initdb"), "-D", "data", "-U", "gatepost", "-A", "trust"]
            self._run([*initdb, "-E", "UTF8", "--locale=C"])
            self.program.start()
            self.program.wait_for_log("ready to accept connections")
        except BaseException:
            self.__exit__()
            raise
        return self

    def __exit__(self, *_: object) -> None:
        try:
            self.program.stop()
        finally:
            self._temporary.cleanup()

    def url(self, database: str) -> str:
        """Return the URL of *database*, which is made where it is missing."""
        if not self.query("postgres", f"SELECT 1 FROM pg_database WHERE datname = '{database}'"):
            self.query("postgres", f"CREATE DATABASE {database}")
        return f"postgresql://gatepost@127.0.0.1:{self.port}/{database}"

    def query(self, database: str, statement: str) -> str:
        """Return what psql answers."""
        return self._run(self._psql(database, statement)).strip()

    def copy(self, database: str, table: str, rows: Iterable[Sequence[object]]) -> None:
        """Put *rows* into *table*, "name (columns)"."""
        command = [*self._as_user, *self._psql(database, f"COPY {table} FROM STDIN (FORMAT csv)")]
        with subprocess.Popen(command, cwd=self.folder, stdin=subprocess.PIPE, encoding="utf-8") as psql:
            assert psql.stdin
            csv.writer(psql.stdin, quoting=csv.QUOTE_NONNUMERIC).writerows(rows)  # "" is no NULL then
        if psql.returncode:
            raise RuntimeError(f"COPY {table} failed")

    def _psql(self, database: str, statement: str) -> list[str]:
        options = ["-h", "127.0.0.1", "-p", str(self.port), "-U", "gatepost", "-XAtq", "-v", "ON_ERROR_STOP=1"]
        return [str(self._programs / "psql"), *options, "-c", statement, database]

    def wal_bytes(self) -> int:
        """Return how much it has written to its log since it was made."""
        return int(float(self.query("postgres", "SELECT pg_wal_lsn_diff(pg_current_wal_lsn(), '0/0')")))

    def cpu_s(self) -> float:
        """Return the CPU seconds of all of its processes, those that have ended included."""
        running = tree(self.program.pid)
        return cpu_s(running) + sum(map(_waited_for_s, running))

    def _run(self, command: Sequence[str]) -> str:
        done = subprocess.run(
            [*self._as_user, *command], cwd=self.folder, stdin=subprocess.DEVNULL, capture_output=True, text=True
        )
        if done.returncode:
            raise RuntimeError(f"{' '.join(command)}: {done.stderr}")
        return done.stdout


def _waited_for_s(pid: int) -> float:
    """Return the CPU seconds of children that have ended (proc(5), fields 16 and 17 of stat); 0 if it has, too."""
    try:
        fields = Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()[13:15]
    except OSError:
        return 0.0
    return sum(map(int, fields)) / os.sysconf("SC_CLK_TCK")
