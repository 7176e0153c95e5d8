# SPDX-License-Identifier: GPL-3.0-or-later
"""A gatepost with everything on: enforcing, with SRS, ledger, metrics and a log in a file."""

from __future__ import annotations

import contextlib
import sqlite3
import sys
import tempfile
from pathlib import Path

from benchmarks.programs import Program
from gatepost.admin.sandbox import free_port

TOP = Path(__file__).parent.parent
ROOTS = ("srs", "relay", "service", "milter", "policyd", "admin")

CERTIFICATE = "mail.contoso.com"
"""The name in the certificate of contoso's connector: with it any sender may be relayed, and is rewritten."""
CLIENT = "192.0.2.5"
"""An address of contoso's other connector."""


class Installation:
    """gatepost's command `milter`, `policyd` or `run`, with all of its files in a folder of its own below /tmp.

    A context manager: started, then stopped, and the folder removed.

    top: the source tree to run. organizations: how many; the first one is contoso, see CERTIFICATE and CLIENT, the
    others have a domain and an address each. ledger: whether messages are recorded. tcp: the milter listens on a port
    of 127.0.0.1 and not on a Unix socket; policyd has both. workers: of each daemon. relay, policyd: lines of [relay]
    and [policyd]. more: TOML of other tables than milter, policyd, metrics, ledger and relay.
    """

    def __init__(
        self,
        command: str = "milter",
        *,
        top: Path = TOP,
        organizations: int = 1,
        ledger: bool = True,
        tcp: bool = False,
        workers: int = 2,
        relay: str = 'mode = "enforce"',
        policyd: str = "",
        more: str = "",
    ) -> None:
        self._temporary = tempfile.TemporaryDirectory(prefix="gatepost-benchmark-", dir="/tmp")
        self.folder = Path(self._temporary.name)
        self.folder.chmod(0o755)  # a Postfix of another user may have to reach the sockets
        self.state = self.folder / "state"
        self.configuration = self.folder / "gatepost.toml"
        self.milter_socket = self.folder / "milter.sock"
        self.policyd_socket = self.folder / "policyd.sock"
        self.milter_port = free_port()
        self.policyd_port = free_port()
        self.metrics_port = free_port()
        self.milter_address = f"inet:127.0.0.1:{self.milter_port}" if tcp else f"unix:{self.milter_socket}"
        """As the load generator takes it, and gatepost.toml."""
        self._write(organizations, ledger, workers, relay, policyd, more)
        path = ":".join(str(top / root) for root in ROOTS)
        arguments = ["-m", "gatepost.admin", "-c", str(self.configuration), command]
        self.program = Program(
            [sys.executable, *arguments],
            self.folder / "log",
            environment={"PYTHONPATH": path},
        )

    def _write(self, organizations: int, ledger: bool, workers: int, relay: str, policyd: str, more: str) -> None:
        self.state.mkdir()
        secret = self.state / "srs.secret"
        secret.touch(0o600)
        secret.write_text("tops3cr3t-of-the-benchmark\n")
        self.configuration.write_text(
            f'state_directory = "{self.state}"\n'
            f"[relay]\n{relay}\n"
            f'[milter]\nlisten = "{self.milter_address}"\nworkers = {workers}\n'
            f'[policyd]\nlisten = ["unix:{self.policyd_socket}", "inet:127.0.0.1:{self.policyd_port}"]\n'
            f"workers = {workers}\n{policyd}\n"
            f'[metrics]\nlisten = "127.0.0.1:{self.metrics_port}"\n'
            f"[ledger]\ndays = {90 if ledger else 0}\n"
            f"{more}\n" + "".join(organization(number) for number in range(organizations))
        )

    def __enter__(self) -> Installation:
        try:
            self.program.start()
            self.program.wait_for_log(r" ready$")
        except BaseException:
            self.__exit__()
            raise
        return self

    def __exit__(self, *_: object) -> None:
        try:
            self.program.stop()
        finally:
            self._temporary.cleanup()

    @property
    def spool(self) -> Path:
        """The folder in which records wait for the loader."""
        return self.state / "ledger"

    def rows(self) -> int:
        """Return how many rows the ledger in the store has; 0 where the loader has made none yet."""
        file = self.state / "gatepost.db"
        if not file.exists():
            return 0
        with contextlib.closing(sqlite3.connect(file)) as database:
            if database.execute("SELECT 1 FROM sqlite_master WHERE name = 'ledger'").fetchone() is None:
                return 0
            return int(database.execute("SELECT count(*) FROM ledger").fetchone()[0])


def organization(number: int) -> str:
    """Return the TOML of one organisation; 0 is contoso."""
    if number:
        name, domain, addresses = f"org{number}", f"org{number}.example", f"10.{number >> 16}.{number >> 8 & 255}"
        connectors = [f'sender_ip_addresses = ["{addresses}.{number & 255}"]']
    else:
        name, domain = "contoso", "contoso.com"
        connectors = ['sender_ip_addresses = ["192.0.2.0/28"]', f'tls_sender_certificate_name = "{CERTIFICATE}"']
    lines = [f'[[organization]]\nname = "{name}"', f'[[organization.accepted_domain]]\ndomain = "{domain}"']
    for index, condition in enumerate(connectors):
        lines.append(f'[[organization.connector]]\nname = "connector {index}"\n{condition}')
    return "\n".join(lines) + "\n"
