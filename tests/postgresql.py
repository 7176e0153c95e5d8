# SPDX-License-Identifier: GPL-3.0-or-later
"""A private PostgreSQL for tests: a folder, a port of loopback, no password, gone afterwards."""

from __future__ import annotations

import os
import pwd
import shutil
import signal
import subprocess
import tempfile
from collections.abc import Sequence
from pathlib import Path
from typing import Optional

import pytest
from benchmarks.postgresql import programs
from daemonprocess import free_port, poll

needs_postgresql = pytest.mark.skipif(programs() is None, reason="no PostgreSQL server here")


class PostgreSQL:
    """A server; a context manager: started, then stopped and removed. It runs as postgres where this is root."""

    def __init__(self) -> None:
        folder = programs()
        assert folder, "no PostgreSQL server"
        self._programs = folder
        self._user = "postgres" if os.geteuid() == 0 else pwd.getpwuid(os.geteuid()).pw_name
        self._databases = 0
        self._process: Optional[subprocess.Popen[bytes]] = None
        self.port = free_port()

    def __enter__(self) -> PostgreSQL:
        self._folder = Path(tempfile.mkdtemp(prefix="gatepost-pg-"))
        try:
            shutil.chown(self._folder, self._user)
            self._run(["initdb", "-D", "data", "-U", "gatepost", "-A", "trust", "-E", "UTF8", "--locale=C", "-N"])
            self.start()
        except BaseException:
            self.__exit__()
            raise
        return self

    def __exit__(self, *_: object) -> None:
        self.stop()
        shutil.rmtree(self._folder)

    def start(self) -> None:
        """Start the server and return when it takes connections."""
        options = ["listen_addresses=127.0.0.1", f"unix_socket_directories={self._folder}", "fsync=off"]
        settings = [argument for option in options for argument in ("-c", option)]
        arguments = [str(self._programs / "postgres"), "-D", "data", "-p", str(self.port), *settings]
        with (self._folder / "log").open("ab") as log:
            self._process = subprocess.Popen(
                arguments, cwd=self._folder, user=self._user, stdin=subprocess.DEVNULL, stdout=log, stderr=log
            )
        poll(self._is_ready, "PostgreSQL takes connections")

    def stop(self) -> None:
        """End all connections and the server at once, as for a restart."""
        if self._process is not None:
            self._process.send_signal(signal.SIGINT)
            try:
                self._process.wait(20)
            finally:
                self._process.kill()
                self._process.wait(20)
            self._process = None

    def database(self) -> str:
        """Make an empty database and return its URL."""
        self._databases += 1
        name = f"test{self._databases}"
        self.query("postgres", f"CREATE DATABASE {name}")
        return f"postgresql://gatepost@127.0.0.1:{self.port}/{name}"

    def query(self, database: str, statement: str) -> list[str]:
        """Return the lines that psql answers."""
        options = ["-h", "127.0.0.1", "-p", str(self.port), "-U", "gatepost", "-XAtq", "-v", "ON_ERROR_STOP=1"]
        return self._run(["psql", *options, "-c", statement, database]).splitlines()

    def _is_ready(self) -> bool:
        assert self._process
        assert self._process.poll() is None, (self._folder / "log").read_text()
        ready = [str(self._programs / "pg_isready"), "-q", "-h", "127.0.0.1", "-p", str(self.port)]
        return subprocess.run(ready, cwd=self._folder).returncode == 0

    def _run(self, command: Sequence[str]) -> str:
        done = subprocess.run(
            [str(self._programs / command[0]), *command[1:]],
            cwd=self._folder,
            user=self._user,
            stdin=subprocess.DEVNULL,
            capture_output=True,
            text=True,
        )
        assert done.returncode == 0, done.stderr
        return done.stdout
