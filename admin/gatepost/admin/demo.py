# SPDX-License-Identifier: GPL-3.0-or-later
"""`gatepost demo`: shows the relay rule and SRS happening to real mail on a private Postfix, and checks each scene."""

from __future__ import annotations

import os
import re
import shutil
import signal
import sys
import time
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path
from types import FrameType
from typing import Optional

from rich import box
from rich.console import Console
from rich.table import Table
from rich.text import Text

from gatepost.admin.demo_scenes import (
    APP_HOST,
    BOB,
    BOBS_SERVER,
    CUSTOMER,
    JOHN,
    Row,
    Scenes,
    configure,
    main_cf,
    path,
    raise_interruption,
    with_requirements,
)
from gatepost.admin.logfile import SandboxError
from gatepost.admin.sandbox import temporary_root
from gatepost.admin.stage import Stage
from gatepost.relay import RuleSet

_EXAMPLES = (
    Path(__file__).parents[3] / "examples/postfix",
    Path(sys.prefix, "share/doc/gatepost/examples/postfix"),
    Path("/usr/share/doc/gatepost/examples/postfix"),
)
_SIGNALS = (signal.SIGINT, signal.SIGTERM, signal.SIGHUP)
_WIDEST = 120
_LABEL = 7
_LOG_TAIL_LINES = 40
_POLL_S = 0.2

_INTRODUCTION = """\
contoso is our organization. It has one accepted domain, contoso.com, and one connector, "our network", which names
its hosts: 192.0.2.0/28. fabrikam.com, example.com and example.net are other people's. The mail is real, but nothing
leaves this machine: a next hop on loopback stands for the Internet.
"""
_TERMS = (
    ("P1", "the envelope sender (MAIL FROM in SMTP), to which bounces go"),
    ("P2", "the From header, which people see"),
    ("NDR", "non-delivery report, a bounce: its P1 is the null sender, <>"),
    (
        "rule",
        "mail to outside is relayed only where a certificate name or P1 is in an accepted domain, and a connector "
        "matches the client's address or certificate",
    ),
    (
        "SRS",
        "sender rewriting scheme: P1 becomes an address of ours that holds the original one, so that the mail passes "
        "the next hop's SPF check and bounces find their way back",
    ),
    ("log", "what gatepost's log says; a refusal has a [REFERENCE] that stands in the log as well"),
)


class _Stopped(SystemExit):
    """A signal asks for the end."""


def run(*, keep: bool) -> int:
    """Play all scenes and print them; return the exit status. keep: leave all running until a signal comes."""
    if os.getuid() != 0:
        print("gatepost demo: a chrooted Postfix can only be run by root: run this with sudo", file=sys.stderr)
        return os.EX_NOPERM
    console = Console(highlight=False, emoji=False, markup=False, soft_wrap=False)
    status, kept = os.EX_OK, False
    try:
        with _signals(), _stage(console) as stage:
            scenes = Scenes(stage)
            status = _show(console, scenes)
            if status:
                for log in (stage.log_file, stage.postfix.log_file):
                    tail = log.read_text(errors="replace").splitlines()[-_LOG_TAIL_LINES:]
                    console.print("\n".join(["", f"--- tail of {log}", *tail]), soft_wrap=True)
            if keep:
                kept = True
                _keep(console, stage, scenes)
            console.print("README.md says how to add gatepost to a Postfix of your own.")
            console.print("With --keep all of this stays up, to try by hand.")
    except _Stopped as stopped:
        if not kept or stopped.code != 128 + signal.SIGINT:
            raise
    except SandboxError as error:
        raise_interruption(error)
        print(f"gatepost demo: {error}", file=sys.stderr)
        return os.EX_UNAVAILABLE
    return status


@contextmanager
def _signals() -> Iterator[None]:
    """Raise _Stopped at the first signal that asks for the end; ignore those that come while that is under way."""

    def stop(number: int, frame: Optional[FrameType]) -> None:
        _ignore_signals()
        raise _Stopped(128 + number)

    before = {number: signal.signal(number, stop) for number in _SIGNALS}
    try:
        yield
    finally:
        for number, handler in before.items():
            signal.signal(number, handler)


def _ignore_signals() -> None:
    for number in _SIGNALS:
        signal.signal(number, signal.SIG_IGN)


@contextmanager
def _stage(console: Console) -> Iterator[Stage]:
    """Start everything in a folder of its own; stop it and delete the folder at the end."""
    example = next((folder / "forwarder" for folder in _EXAMPLES if (folder / "forwarder").is_dir()), None)
    if example is None:
        raise SandboxError("the example configuration is in none of: " + ", ".join(map(str, _EXAMPLES)))
    with temporary_root() as root:
        stage = Stage(
            example,
            root,
            before=main_cf(root),
            configuration=lambda text: with_requirements(text, RuleSet.CURRENT),
            tls=True,
        )
        configure(stage)
        width = _width(console)
        console.print("\n".join(_wrap(_INTRODUCTION, width)), "", _fields(_TERMS, width), "", sep="\n")
        began = time.monotonic()
        console.print(f"Starting a private Postfix and gatepost in {root} ... ", end="")
        with stage:
            stage.postfix.postmap(stage.postfix.config_directory / "virtual")
            console.print(f"{time.monotonic() - began:.1f} s\n")
            try:
                yield stage
            finally:
                _ignore_signals()  # nothing may interrupt the cleaning up


def _show(console: Console, scenes: Scenes) -> int:
    """Play the scenes, print them, and return 1 where one went differently."""
    began = time.monotonic()
    rows = []
    for number, title in enumerate(scenes.titles):
        console.print(f"{number + 1:3}  {title} ... ", end="")
        rows.append(scenes.play(number))
        console.print(_mark(rows[-1]))
    took_s = time.monotonic() - began
    return report(console, rows, took_s)


def report(console: Console, rows: Sequence[Row], took_s: float) -> int:
    """Print what the scenes showed, return the exit status: 1 where one went differently."""
    console.print()
    console.print(_table(rows, _width(console)))
    wrong = [(number, row) for number, row in enumerate(rows, 1) if row.wrong]
    for number, row in wrong:
        console.print(Text.assemble(f"{number:3}  {row.title}: ", _mark(row)))
        console.print("\n".join(row.wrong), soft_wrap=True)
    console.print(f"\n{len(rows) - len(wrong)} of {len(rows)} scenes went as they must, in {took_s:.1f} s.")
    return 1 if wrong else os.EX_OK


def _mark(row: Row) -> Text:
    return Text("NOT AS EXPECTED", "bold red") if row.wrong else Text("as expected", "green")


def _width(console: Console) -> int:
    return min(console.width, _WIDEST)


def _table(rows: Sequence[Row], width: int) -> Table:
    left = max(31, width // 3)
    right = width - left - 4
    table = Table(box=box.HORIZONTALS, show_edge=False, show_lines=True, padding=0)
    table.add_column("", width=2, justify="right")
    table.add_column("What was sent", width=left)
    table.add_column("What was decided and why, where it ended, with which P1", width=right)
    for number, row in enumerate(rows, 1):
        title = Text("\n".join(_wrap(row.title, left - 1)), "bold")
        told = _fields(row.told, right)
        if row.wrong:
            told = Text.assemble(_mark(row), "\n", told)
        table.add_row(str(number), Text.assemble(title, "\n", _fields(row.sent, left - 1)), told)
    return table


def _fields(fields: Sequence[tuple[str, str]], width: int) -> Text:
    """Return a line for each (label, text), or more where *width* asks for it; no label: whole sentences."""
    text = Text()
    for label, value in fields:
        indent = _LABEL if label else 0
        first, *others = _wrap(value, width - indent)
        text.append(label.ljust(indent), "dim").append(first + "\n")
        text.append("".join(" " * indent + line + "\n" for line in others))
    text.rstrip()
    return text


def _wrap(text: str, width: int) -> list[str]:
    """Break *text* at spaces; a word that is too long, which only SRS addresses are, behind = or @."""
    lines = [""]
    for word in text.split():
        if lines[-1] and len(lines[-1]) + 1 + len(word) <= width:
            lines[-1] += f" {word}"
            continue
        for number, piece in enumerate([word] if len(word) <= width else re.findall(r"[^=@]+[=@]?", word)):
            if number and len(lines[-1]) + len(piece) <= width:
                lines[-1] += piece
            else:
                lines.append(piece)
    return lines[1:] or lines


def _keep(console: Console, stage: Stage, scenes: Scenes) -> None:
    """Say where everything is, then tell of each mail that reaches the next hop, until a signal comes."""
    postfix, smtp_port = stage.postfix, stage.postfix.smtp[1]
    gatepost = (
        "gatepost" if shutil.which("gatepost") else f"PYTHONPATH={_import_path()} {sys.executable} -m gatepost.admin"
    )
    host = f"swaks --server 127.0.0.1:{smtp_port} --xclient-addr {APP_HOST}"
    places = {
        "SMTP": f"127.0.0.1:{smtp_port} (STARTTLS; takes XCLIENT, so that you can be any client)",
        "next hop": f"127.0.0.1:{stage.internet.address[1]} (stands for the Internet, takes everything)",
        "metrics": f"http://127.0.0.1:{stage.ports['9797']}/metrics",
        "gatepost": f"{stage.configuration}, log {stage.log_file}",
        "Postfix": f"{postfix.config_directory}/main.cf and master.cf, log {postfix.log_file}",
        "sockets": f"{postfix.queue_directory}/gatepost/",
        "mailboxes": f"{postfix.mailboxes}",
        "folder": f"{stage.root}, deleted at the end",
    }
    console.print("\nEverything keeps running. By hand, for example (apt install swaks libnet-ssleay-perl):\n")
    for command in (
        f"{host} --from news@fabrikam.com --to {CUSTOMER}",
        f"{host} --from news@fabrikam.com --to {CUSTOMER} --tls "
        f"--tls-cert {scenes.certificate.certificate} --tls-key {scenes.certificate.key}",
        f"swaks --server 127.0.0.1:{smtp_port} --xclient-addr {BOBS_SERVER} --from {BOB} --to {JOHN}",
        f"{gatepost} -c {stage.configuration} check --ip {APP_HOST} --mail-from news@fabrikam.com --rcpt {CUSTOMER}",
    ):
        console.print(f"  {command}", soft_wrap=True)
    console.print()
    for name, place in places.items():
        console.print(f"  {name:11}{place}", soft_wrap=True)
    console.print("\nCtrl-C stops it all. Mail that reaches the next hop:\n")
    seen = len(stage.internet.messages)
    while True:
        for mail in stage.internet.messages[seen:]:
            seen += 1
            console.print(f"  P1 {path(mail.mail_from)}, to {', '.join(mail.rcpt_to)}", soft_wrap=True)
        time.sleep(_POLL_S)


def _import_path() -> str:
    return os.pathsep.join(folder for folder in sys.path if Path(folder, "gatepost").is_dir())
