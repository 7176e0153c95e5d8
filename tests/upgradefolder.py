# SPDX-License-Identifier: GPL-3.0-or-later
"""Make a folder for tests/data/upgrade: what the daemons of a source tree leave where all of them are killed at once.

upgradefolder.py TREE FILE.tar.xz, each time that the store's schema or the spool's format has got another version. Of
what comes in the first half is in the store, the rest in the spool: the store is locked meanwhile.
"""

from __future__ import annotations

import contextlib
import json
import os
import shutil
import signal
import socket
import sqlite3
import subprocess
import sys
import tempfile
import time
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Union

from milterclient import MilterClient

CONFIGURATION = """\
state_directory = "@FOLDER@/state"
[relay]
mode = "enforce"
requirements = "2023-11-01"
local_domains = ["mail.contoso.com"]
[srs]
also_reverse = ["srs0"]
validity_days = 21
[milter]
listen = "unix:@FOLDER@/milter.sock"
workers = 1
[policyd]
listen = ["unix:@FOLDER@/policyd.sock"]
workers = 1
[egress]
transport = "gatepost-egress:[127.0.0.1]:10027"
daemon_name = "gatepost-egress"
[metrics]
listen = ""
[ledger]
subjects = false
days = 90
[[organization]]
name = "contoso"
[[organization.accepted_domain]]
domain = "contoso.com"
default = true
[[organization.connector]]
name = "head office"
sender_ip_addresses = ["192.0.2.0/28"]
[[organization]]
name = "fabrikam"
mode = "monitor"
[[organization.accepted_domain]]
domain = "fabrikam.com"
default = true
[[organization.connector]]
name = "crm"
tls_sender_certificate_name = "*.fabrikam.com"
"""
SECRET = "# signs from 2026-11-01\nthe key that signs\nthe key before\n"
LONG = "a-very-long-name-for-which-there-is-no-room-beside-the-hash-and-all@adatum.example"
CHAIN = "SRS0=abcd=JL=adatum.example=bob@elsewhere.example"
OFFICE, STRANGER = "192.0.2.5", "203.0.113.9"
RECEIVED = "from client (unknown [203.0.113.9])\r\n\tby mail.contoso.com (Postfix) with ESMTP id {}"
IN_STORE = 7


class Tree:
    """The program of a source tree, with its configuration in *folder*."""

    def __init__(self, top: Path, folder: Path) -> None:
        self.top = top
        self.folder = folder
        self.state = folder / "state"
        self.addresses: dict[str, str] = {}
        roots = (str(top / name) for name in ("srs", "relay", "service", "milter", "policyd", "admin"))
        self._environment = {"PATH": os.environ["PATH"], "PYTHONPATH": ":".join(roots)}
        text = CONFIGURATION.replace("@FOLDER@", str(folder))
        (folder / "gatepost.toml").write_text(text)
        (folder / "srs0.toml").write_text(text.replace('also_reverse = ["srs0"]', 'format = "srs0"'))
        self.state.mkdir()
        (self.state / "srs.secret").write_text(SECRET)
        (self.state / "srs.secret").chmod(0o600)

    def command(self, *arguments: str, configuration: str = "gatepost.toml") -> list[str]:
        return [sys.executable, "-m", "gatepost.admin", "-c", str(self.folder / configuration), *arguments]

    def run(self, *arguments: str, configuration: str = "gatepost.toml") -> str:
        command = self.command(*arguments, configuration=configuration)
        return subprocess.run(command, env=self._environment, stdout=subprocess.PIPE, text=True, check=True).stdout

    def make_addresses(self) -> None:
        for sender in ("bob@adatum.example", "Odd.Name+tag@adatum.example"):
            for mailbox in ((), ("--mailbox", "staff@contoso.com")):
                self.addresses[self.run("srs", "forward", *mailbox, sender).strip()] = sender
            self.addresses[self.run("srs", "forward", sender, configuration="srs0.toml").strip()] = sender
        self.addresses[self.run("srs", "forward", CHAIN, configuration="srs0.toml").strip()] = CHAIN

    @contextlib.contextmanager
    def daemons(self) -> Iterator[None]:
        """Run the daemons; at the end kill all their processes, and return when the last one is gone."""
        process = subprocess.Popen(
            self.command("run"), env=self._environment, stderr=subprocess.PIPE, text=True, start_new_session=True
        )
        try:
            assert process.stderr
            while not process.stderr.readline().endswith(" ready\n"):
                pass
            yield
        finally:
            os.killpg(process.pid, signal.SIGKILL)
            process.communicate()  # ends when nobody has the log open

    def send(self, client: str, mail_from: str, rcpts: Sequence[str], queue_id: str) -> None:
        with MilterClient(str(self.folder / "milter.sock"), macros={"i": queue_id.encode()}) as milter:
            message_id = f"<{queue_id}@adatum.example>".encode()
            headers = [(b"From", b"<app@contoso.com>"), (b"Message-Id", message_id), (b"Subject", b"hello")]
            milter.open(client).send(f"<{mail_from}>".encode(), [f"<{rcpt}>".encode() for rcpt in rcpts], headers)

    def forward(self, mail_from: str, queue_id: str, ingress: str) -> None:
        """Send what was forwarded over the egress hop; *ingress*: its queue ID before."""
        macros = {"i": queue_id.encode(), "{daemon_name}": b"gatepost-egress"}
        with MilterClient(str(self.folder / "milter.sock"), macros=macros) as milter:
            rcpt = (b"<staff@partner.example>", b"ORCPT=rfc822;staff@contoso.com")
            headers = [(b"Received", RECEIVED.format(ingress).encode()), (b"From", b"<carol@adatum.example>")]
            headers.append((b"Message-Id", f"<{ingress}@adatum.example>".encode()))
            outcome = milter.open("127.0.0.1").send(f"<{mail_from}>".encode(), [rcpt], headers)
        self.addresses[outcome.senders[0].decode().strip("<>")] = mail_from

    def look_up(self, address: str) -> None:
        """Ask the map `reverse`, which counts a bounce."""
        with socket.socket(socket.AF_UNIX) as policyd:
            policyd.connect(str(self.folder / "policyd.sock"))
            request = f"reverse {address}".encode()
            policyd.sendall(b"%d:%s," % (len(request), request))
            assert b"OK " in policyd.recv(1000)


def leave(tree: Tree) -> None:
    """Have the daemons of *tree* leave all that test_upgrade looks for."""
    tree.make_addresses()
    bounced = next(iter(tree.addresses))
    with contextlib.ExitStack() as later, tree.daemons():  # the store is locked until they are gone
        tree.send(OFFICE, "app@contoso.com", ["x@example.com", "y@example.com"], "A1")
        tree.send(OFFICE, "bob@adatum.example", ["x@example.com"], "A2")
        tree.send(STRANGER, "bob@adatum.example", ["ann@contoso.com", "inside@contoso.com"], "A3")
        tree.forward("bob@adatum.example", "E3", "A3")
        tree.forward(LONG, "E4", "A4")
        store = later.enter_context(contextlib.closing(sqlite3.connect(tree.state / "gatepost.db", timeout=10)))
        while list(store.execute("SELECT count(*) FROM ledger")) != [(IN_STORE,)]:
            time.sleep(0.1)
        tree.run("report", "start", "--type", "Refused")
        store.isolation_level = None
        store.execute("BEGIN IMMEDIATE")
        tree.send(OFFICE, "app@contoso.com", ["later@example.com"], "B1")
        tree.send("192.0.2.6", "eve@adatum.example", ["later@example.com"], "B2")
        tree.send(STRANGER, "carol@adatum.example", ["inside@contoso.com"], "B3")
        tree.look_up(bounced)
        while not any(b'"Bounced"' in path.read_bytes() for path in (tree.state / "ledger").glob("*.spool")):
            time.sleep(0.1)
        tree.send(STRANGER, "", [bounced], "B4")


def pack(tree: Tree, file: Path) -> None:
    configuration = tree.folder / "gatepost.toml"
    configuration.write_text(CONFIGURATION)
    (tree.folder / "srs0.toml").unlink()
    (tree.folder / "addresses.json").write_text(json.dumps(tree.addresses, indent=1) + "\n")
    examples = tree.top / "examples"
    for path in (*examples.rglob("gatepost.toml"), tree.top / "admin/gatepost/admin/starting.toml"):
        copy = tree.folder / "configurations" / "-".join(path.relative_to(tree.top).parts)
        copy.parent.mkdir(exist_ok=True)
        shutil.copy(path, copy)
    for path in (*tree.folder.glob("*.sock"), *tree.state.glob("*-shm"), *tree.state.rglob("*.lock")):
        path.unlink()
    command: list[Union[str, Path]] = [
        "tar",
        "--directory",
        tree.folder,
        "--sort=name",
        "--owner=0",
        "--group=0",
        "--numeric-owner",
        "--sparse",
    ]
    subprocess.run([*command, "--create", "--xz", "--file", file, "."], check=True)


def main() -> None:
    top, file = (Path(argument).resolve() for argument in sys.argv[1:])
    with tempfile.TemporaryDirectory() as folder:
        tree = Tree(top, Path(folder))
        leave(tree)
        pack(tree, file)


if __name__ == "__main__":
    main()
