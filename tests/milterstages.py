# SPDX-License-Identifier: GPL-3.0-or-later
"""An MTA around a milter's session, without pymilter: stage by stage, with what each brought and changed."""

from __future__ import annotations

import re
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Optional

import pytest

from gatepost.milter.session import Session
from gatepost.service.config import load
from gatepost.service.exporter import collect
from gatepost.service.metrics import Metric
from gatepost.service.replies import Reply
from gatepost.service.series import Series
from gatepost.service.shared import open_shared
from gatepost.service.snapshot import build
from gatepost.srs import Keys

NOW = 1_700_000_000  # 2023-11-14, stamp G3
TRUSTED = {"{cert_subject}": "mail.contoso.com", "{cert_issuer}": "Contoso CA"}
AT_EGRESS = {"{daemon_name}": "gatepost-egress"}
OUTSIDE, INSIDE = "<x@gmail.example>", "<ann@contoso.com>"

ENFORCE = '[relay]\nmode = "enforce"\n'
EGRESS = '[egress]\ntransport = "gatepost-egress:[127.0.0.1]:10027"\n'


class Mta:
    """What a session has around it: configuration, macros, shared tables, metrics; and the stages in order.

    now: what the clock shows. senders, added, deleted, held, headers: what the ends of messages have changed, in order.
    """

    def __init__(self, folder: Path, text: str) -> None:
        self.folder = folder
        (folder / "gatepost.toml").write_text(f'state_directory = "{folder}"\n' + text)
        self.snapshot = build(load(folder / "gatepost.toml"), Keys([b"key"]), 0.0)
        self.series = Series.create(folder / "milter-1.series")
        self.shared = open_shared(self.snapshot.config, self.series, expire=False)
        self.macros = {"j": "mail.contoso.com", "{daemon_name}": "mail.contoso.com"}
        self.now = NOW
        self.senders: list[str] = []
        self.added: list[str] = []
        self.deleted: list[str] = []
        self.held: list[str] = []
        self.headers: list[str] = []

    def connected(
        self,
        ip: Optional[str] = "192.0.2.1",
        port: int = 40001,
        name: str = "",
        *,
        macros: Optional[Mapping[str, str]] = None,
    ) -> Session:
        self.macros.update(macros or {})
        session = self.session()
        session.connect(ip, port, name)
        return session

    def session(self) -> Session:
        return Session(
            self.snapshot, self.shared, self.series, lambda name: self.macros.get(name, ""), lambda: self.now
        )

    def message(
        self,
        session: Session,
        reverse_path: str,
        rcpts: Sequence[str] = (OUTSIDE,),
        headers: Sequence[tuple[str, str]] = (("From", "app@vendor.example"),),
    ) -> Optional[Reply]:
        """Bring a whole message; return the first refusal."""
        session.mail(reverse_path)
        for rcpt in rcpts:
            reply = session.rcpt(rcpt, [])
            if reply:
                return reply
        self.macros.setdefault("i", "4CgSNs5Q9s")  # an MTA has one from the first recipient on
        return session.data() or self.content(session, headers)

    def content(self, session: Session, headers: Sequence[tuple[str, str]]) -> Optional[Reply]:
        for name, value in headers:
            session.header(name, value)
        config = self.snapshot.config
        with_headers = config.relay.requirements.value == "legacy" or config.egress
        reply = (session.eoh() if with_headers else None) or session.eom(self)
        session.abort()
        return reply

    def sender(self, address: str) -> None:
        self.senders.append(address)

    def add_recipient(self, address: str) -> None:
        self.added.append(address)

    def delete_recipient(self, path: str) -> None:
        self.deleted.append(path)

    def hold(self, reason: str) -> None:
        self.held.append(reason)

    def add_header(self, name: str, value: str) -> None:
        self.headers.append(f"{name}: {value}")

    def delete_header(self, name: str, index: int) -> None:
        self.headers.append(f"no {name} {index}")

    @property
    def unhashed(self) -> list[str]:
        """The senders, each hash or token as HASH."""
        return [unhashed(sender) for sender in self.senders]

    def count(self, metric: Metric, *labels: str) -> float:
        return collect(self.folder).totals.get((metric, labels), [0.0])[0]


def unhashed(text: str) -> str:
    return re.sub(r"SRS=(?:[a-z2-7]{16}|[a-z2-7]{8})=", "SRS=HASH=", text)


def lines(capfd: pytest.CaptureFixture[str]) -> list[str]:
    """Return the log lines since the last call, each from the queue ID on."""
    return [line.split(": ", 1)[1] for line in capfd.readouterr().err.splitlines()]
