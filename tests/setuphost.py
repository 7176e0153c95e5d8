# SPDX-License-Identifier: GPL-3.0-or-later
"""A host with Postfix's programs and a configuration of its own, on which nothing runs, for gatepost setup."""

from __future__ import annotations

import fcntl
import os
from dataclasses import dataclass
from pathlib import Path
from typing import IO, Optional

import pytest
from click.testing import CliRunner, Result

from gatepost.admin.command import main
from gatepost.admin.postfix.config import PostfixConfig
from gatepost.admin.sandbox import accounts, find_programs

STOCK = Path(__file__).parent / "data/setup"
"""Debian's main.cf of a server for contoso.com, and the services of its master.cf."""
EXAMPLES = Path(__file__).parent.parent / "examples/postfix"

# It stands for postfix(1), which only runs on a whole installation: what it is to do in files beside it, what it did in
# a log.
_POSTFIX = """#!/bin/sh
here=$(dirname "$0")
echo "$3" >> "$here/log"
case $3 in
check)
    test ! -e "$here/always" || { cat "$here/always" >&2; exit 1; }
    grep -q gatepost "$2/main.cf" || exit 0
    test ! -e "$here/signal" || kill -s "$(cat "$here/signal")" $PPID
    test ! -e "$here/complaint" || { cat "$here/complaint" >&2; exit 1; } ;;
reload)
    test ! -e "$here/unwilling" || { echo "postfix: fatal: not today" >&2; exit 1; }
    test ! -e "$here/fatal" || ! grep -q gatepost "$2/main.cf" || rm "$here/../spool/pid/master.pid" ;;
esac
"""


@dataclass
class SetupHost:
    """directory: its /etc/postfix; programs: where postconf is; configuration: its gatepost.toml."""

    root: Path
    directory: Path
    programs: Path
    configuration: Path
    queue: Path
    _lock: Optional[IO[str]] = None

    def setup(self, *options: str) -> Result:
        """Run `gatepost setup postfix`."""
        words = ["-c", str(self.configuration), "setup", "postfix", "--config-directory", str(self.directory)]
        return CliRunner().invoke(main, [*words, *options])

    def read(self) -> PostfixConfig:
        return PostfixConfig.read(self.directory)

    def add(self, main_cf: str = "", master_cf: str = "") -> SetupHost:
        """Append lines to main.cf and master.cf, which win over those before them in main.cf."""
        for name, text in (("main.cf", main_cf), ("master.cf", master_cf)):
            with (self.directory / name).open("a", newline="") as file:
                file.write(text)
        # Every program of Postfix waits until a file has been left alone for two seconds.
        os.utime(self.directory / "main.cf", (0, 0))
        return self

    def configure(self, example: str, *replacements: tuple[str, str]) -> SetupHost:
        """Have an example's gatepost.toml, with its sockets in this host's queue directory."""
        text = (EXAMPLES / example / "gatepost.toml").read_text().replace("/var/spool/postfix", str(self.queue))
        for old, new in replacements:
            assert old in text
            text = text.replace(old, new)
        self.configuration.write_text(text)
        return self

    def files(self) -> dict[str, tuple[bytes, int]]:
        """Return what is in the configuration directory, with its mode."""
        paths = [path for path in self.directory.iterdir() if path.is_file()]
        return {path.name: (path.read_bytes(), path.stat().st_mode) for path in paths}

    @property
    def actions(self) -> list[str]:
        """What postfix(1) was asked to do."""
        log = self.programs / "log"
        return log.read_text().split() if log.exists() else []

    def run_postfix(self) -> None:
        """Hold the lock that master(8) holds while it runs."""
        (self.queue / "pid").mkdir()
        self._lock = (self.queue / "pid/master.pid").open("w")
        fcntl.flock(self._lock, fcntl.LOCK_EX)

    def told(self, result: Result) -> str:
        """Return what was printed, folders of this host replaced."""
        return result.output.replace(str(self.root), "")


def setup_host(root: Path, monkeypatch: pytest.MonkeyPatch, example: Optional[str] = None) -> SetupHost:
    """Make one below *root*, with an example's gatepost.toml."""
    host = SetupHost(root, root / "etc/postfix", root / "bin", root / "gatepost.toml", root / "spool")
    for folder in (host.directory, host.programs, host.queue):
        folder.mkdir(parents=True)
    found = find_programs()
    for name in ("postconf", "postmap"):
        (host.programs / name).symlink_to(found.commands / name)
    (host.programs / "postfix").write_text(_POSTFIX)
    (host.programs / "postfix").chmod(0o755)
    monkeypatch.setenv("PATH", f"{host.programs}:{os.environ['PATH']}")
    monkeypatch.setenv("COLUMNS", "100")
    monkeypatch.delenv("MAIL_CONFIG", raising=False)
    if found.libraries:
        monkeypatch.setenv("LD_LIBRARY_PATH", str(found.libraries))
    owner, group = accounts()
    for name in ("main.cf", "master.cf"):
        (host.directory / name).write_text((STOCK / name).read_text())
    host.add(f"queue_directory = {host.queue}\nmail_owner = {owner}\nsetgid_group = {group}\n")
    return host.configure(example) if example else host
