# SPDX-License-Identifier: GPL-3.0-or-later
"""Target: an SMTP connection as the milter sees it, stage by stage, in any order and with any arguments."""

from __future__ import annotations

import os
import re
from collections.abc import Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Optional

from gatepost.milter.session import HEADERS, Session
from gatepost.relay import normalize_domain
from gatepost.service.addresses import plain, routed
from gatepost.service.config import parse
from gatepost.service.guesses import Guesses
from gatepost.service.hops import NOTE_SLOTS, Hops
from gatepost.service.ledger import record
from gatepost.service.presented import Presented
from gatepost.service.replies import Reply
from gatepost.service.reversal import Bounce, reverse
from gatepost.service.series import Series
from gatepost.service.shared import Shared
from gatepost.service.snapshot import Snapshot, build
from gatepost.service.spool import Spool
from gatepost.service.store import Store
from gatepost.srs import Address, Keys

from .addresses import ADDRESSES, KEY, NOW, SYNTAX, made, safe, snapshot, text_of
from .engine import Target
from .reference import relays

_EVENT, _ARGUMENT = b"\x1e", b"\x1f"
_LOG_LINE = re.compile(r"(?:<\d>|\S+ gatepost\[\d+\]: )(?:[^ ]*: action=|warning: |error: ).*")
_TURN = 500
"""After so many inputs the ledger's spool is read and begun anew."""
_MACROS = ("i", "{mail_addr}", "{rcpt_addr}", "{cert_subject}", "{cert_issuer}", "{auth_authen}", "{client_resolve}")
_STYLES = (
    *(
        "",
        '[relay]\nrequirements = "legacy"\n',
        "[egress]\n",
        '[srs]\nreverse = "milter"\n',
        '[relay]\naction = "tag"\n',
    ),
    *(
        '[relay]\naction = "quarantine"\n[srs]\nreverse = "milter"\n',
        '[relay]\naction = "rewrite"\n[ledger]\nsubjects = true\n',
    ),
    *(
        '[relay]\nenforced_by = "policyd"\n',
        '[srs]\nformat = "srs0"\nform = "long"\n',
        '[upstream]\nsender_ip_addresses = ["192.0.2.1"]\n',
    ),
)


@dataclass
class _Changes:
    """What the end of a message has changed."""

    senders: list[str] = field(default_factory=list)
    recipients: list[str] = field(default_factory=list)
    others: list[str] = field(default_factory=list)

    def sender(self, address: str) -> None:
        self.senders.append(address)

    def add_recipient(self, address: str) -> None:
        self.recipients.append(address)

    def delete_recipient(self, path: str) -> None:
        self.others.append(path)

    def hold(self, reason: str) -> None:
        self.others.append(reason)

    def add_header(self, name: str, value: str) -> None:
        self.others.append(value)

    def delete_header(self, name: str, index: int) -> None:
        assert index >= 1


def _snapshot(text: str) -> Snapshot:
    from gatepost.service.config import document

    raw = document(text)
    relay = raw.setdefault("relay", {})
    assert isinstance(relay, dict)
    relay["mode"] = "enforce"
    srs = raw.setdefault("srs", {})
    assert isinstance(srs, dict)
    srs["also_reverse"] = ["exchange", "srs0", "compact"]
    organization = {
        "name": "contoso",
        "accepted_domain": [{"domain": "contoso.com"}, {"domain": "srs.contoso.com"}],
        "connector": [
            {"name": "office", "sender_ip_addresses": ["192.0.2.0/28"]},
            {"name": "crm", "tls_sender_certificate_name": "mail.contoso.com"},
        ],
    }
    organization["accepted_domain"][0]["default"] = True  # type: ignore[index]
    if "upstream" in raw:
        organization["srs_domain"] = "srs.contoso.com"
    raw["organization"] = [organization]
    return build(parse(raw, Path("gatepost.toml")), Keys([KEY]), 0.0)


class _Surroundings:
    """Everything that a session has around it, in a folder; and the log, in memory."""

    def __init__(self, folder: Path) -> None:
        self.styles = [_snapshot(text) for text in _STYLES]
        self.series = Series.create(folder / "milter-1.series")
        self.spools = folder / "ledger"
        self.shared = Shared(
            Hops(None),
            Guesses(None, 20),
            Store(f"sqlite:///{folder}/gatepost.db"),
            spool=Spool(self.spools, 1 << 30, self.series),
            notes=Hops(None, NOTE_SLOTS),
            presented=Presented(folder / "presented"),
        )
        self._log = os.memfd_create("log")
        self.count = 0

    def begin(self) -> int:
        """Let standard error go into memory; return what it was."""
        before = os.dup(2)
        os.dup2(self._log, 2)
        return before

    def end(self, before: int) -> list[str]:
        """Let standard error be what it was before; return the lines of the log since `begin`."""
        os.dup2(before, 2)
        os.close(before)
        octets = os.pread(self._log, 1 << 24, 0)
        os.ftruncate(self._log, 0)
        os.lseek(self._log, 0, os.SEEK_SET)
        return octets.decode("utf-8", "strict").split("\n")

    def turn(self) -> None:
        """Read what is in the spool, and let it begin anew."""
        self.count += 1
        if self.count % _TURN == 0 and self.shared.spool:
            self.shared.spool.close()
            for path in self.spools.glob("*.spool"):
                for line in path.read_bytes().splitlines():
                    record(line)
                path.unlink()

    def close(self) -> None:
        self.shared.store.close()
        os.close(self._log)


class _Connection:
    """One connection to a session, driven by events."""

    def __init__(self, around: _Surroundings, style: Snapshot) -> None:
        self.macros = {"j": "mail.contoso.com", "{daemon_name}": "mail.contoso.com"}
        self.session = Session(style, around.shared, around.series, lambda name: self.macros.get(name, ""), lambda: NOW)
        self.style = style
        self.store = around.shared.store
        self.ip: Optional[str] = ""
        self.p1 = ""
        self.path = ""
        self.words: list[str] = []

    def event(self, kind: bytes, arguments: Sequence[str]) -> None:
        first = arguments[0] if arguments else ""
        reply: Optional[Reply] = None
        if kind == b"K" and len(arguments) > 1:
            # An MTA makes its queue IDs itself.
            self.macros[first] = re.sub(r"\W", "", arguments[1], flags=re.ASCII)[:20] if first == "i" else arguments[1]
        elif kind == b"C":
            self.ip = first or None
            self.session.connect(self.ip, len(first), "".join(arguments[1:2]))
        elif kind == b"H":
            self.session.helo(first)
        elif kind == b"M":
            self.path = first
            self.session.mail(first, list(arguments[1:]))
        elif kind == b"R":
            self.macros["{rcpt_addr}"] = self.macros.get("{rcpt_addr}", first.strip("<>"))
            reply = self.session.rcpt(first, list(arguments[1:]))
            self._rcpt(first, reply)
        elif kind == b"D":
            reply = self.session.data()
        elif kind == b"L" and first.lower() in HEADERS:
            self.session.header(first, "".join(arguments[1:2]))
        elif kind == b"N":
            reply = self.session.eoh()
        elif kind == b"E":
            changes = _Changes()
            reply = self.session.eom(changes)
            self._changed(changes, reply)
        elif kind == b"A":
            self.session.abort()
        if reply is not None:
            assert reply.text.isprintable()
            assert 400 <= reply.code < 600
            self.words.append(f"{kind.decode()}{reply.code}{reply.status}")

    def _rcpt(self, path: str, reply: Optional[Reply]) -> None:
        """Fail where a stranger's recipient is let through, with the rule set in force at RCPT."""
        config = self.style.config
        if reply is not None or config.egress or config.upstream or self.style.bypassed():
            return
        rcpt = path.strip("<>") if path.startswith("<") else path
        if config.relay.requirements.value == "legacy" or config.relay.enforced_by == "policyd":
            return
        if config.relay.action.value in ("tag", "quarantine", "rewrite") or not plain(rcpt) or routed(rcpt):
            return
        if normalize_domain(rcpt.rpartition("@")[2]) in ("contoso.com", "srs.contoso.com"):
            return
        p1 = self.path.strip("<>") if self.path.startswith("<") else self.path
        if (p1 and not plain(p1)) or self.macros.get("{auth_authen}") or self.session._local:
            return
        names = [self.macros.get("{cert_subject}", "")] if self.macros.get("{cert_issuer}") else []
        if any("+" in name for name in names):
            return
        right = relays(
            self.ip or "", names, [p1], ["contoso.com", "srs.contoso.com"], ["192.0.2.0/28"], "mail.contoso.com"
        )
        assert right, f"relayed: {rcpt!r}"

    def _changed(self, changes: _Changes, reply: Optional[Reply]) -> None:
        for address in changes.senders:
            safe(address)
            assert len(address.encode()) <= 254
            domain = normalize_domain(Address.parse(address).domain)
            assert domain in ("contoso.com", "srs.contoso.com"), f"sender {address!r}"
            found = reverse(self.style, address, NOW, self.store.found)
            assert found.bounce is Bounce.ORIGINAL or self.path.lower().find("srs") >= 0, f"no way back: {address!r}"
            self.words.append("chgfrom")
        for address in changes.recipients:
            safe(address)
            Address.parse(address)
            self.words.append("addrcpt")
        for text in changes.others:
            assert text == "" or "\n" not in text or text in self.path or text


def _samples() -> list[bytes]:
    store: dict[str, str] = {}
    addresses = [
        *ADDRESSES,
        *list(made(snapshot("long"), store))[:40],
        *list(made(snapshot("long", "srs0"), store))[:20],
    ]
    found = []
    for number, address in enumerate(addresses):
        sender, rcpt = (f"<{address}>", "<x@gmail.example>") if number % 2 else ("<>", f"<{address}>")
        events = [
            *(("C", "192.0.2.5" if number % 3 else "203.0.113.9", "app.contoso.com"), ("H", "app")),
            *((("K", "{cert_subject}", "mail.contoso.com"), ("K", "{cert_issuer}", "CA")) if number % 4 == 0 else ()),
            *((("K", "{daemon_name}", "gatepost-egress"),) if number % 10 == 2 else ()),
            *(
                ("M", sender, "SIZE=1000"),
                ("R", rcpt, "ORCPT=rfc822;john.work+40contoso.com"),
                ("K", "i", "4CgSNs5Q9s"),
            ),
            *(
                ("D",),
                ("L", "From", "App <app@contoso.com>"),
                ("L", "Message-Id", "<1@x>"),
                ("L", "Subject", "Invoice"),
            ),
            *(
                ("L", "Received", "from x by mail.contoso.com (Postfix) with ESMTP id 4CgSNs5Q9s"),
                ("L", "X-Gatepost-Relay", ""),
            ),
            *(("L", "X-Sieve-Redirected-From", "ann@contoso.com"), ("N",), ("E",), ("A",)),
        ]
        octets = _EVENT.join(_ARGUMENT.join(item.encode() for item in event) for event in events)
        found.append(b"%d" % (number % len(_STYLES)) + _EVENT + octets)
    return found


def session(folder: Path) -> Target:
    around = _Surroundings(folder)
    oracle = (
        "a reply, or none, in one line; nothing relayed against a slow reckoning of the rule; a new sender that is "
        "safe, ours, and leads back; log lines that begin as ours do; the ledger's lines read back"
    )

    def check(octets: bytes) -> str:
        style, *events = octets.split(_EVENT)
        connection = _Connection(around, around.styles[(style[:1] or b"0")[0] % len(around.styles)])
        before = around.begin()
        try:
            for event in events[:200]:
                kind, *arguments = (text_of(item.split(b"\0")[0]) for item in event.split(_ARGUMENT))
                connection.event(kind.encode("utf-8", "surrogateescape"), arguments)
        finally:
            lines = around.end(before)
        for line in lines[:-1]:
            assert _LOG_LINE.fullmatch(line), f"log line {line!r}"
            assert "Traceback" not in line
        around.turn()
        return " ".join(dict.fromkeys((style[:1].hex(), *connection.words)))

    tokens = [
        *(
            _EVENT,
            _ARGUMENT,
            *(_EVENT + kind + _ARGUMENT for kind in (b"C", b"H", b"M", b"R", b"D", b"L", b"N", b"E", b"A", b"K")),
        ),
        *(_ARGUMENT + name.encode() for name in _MACROS),
        *(
            b"ORCPT=rfc822;",
            b"SIZE=",
            b"From",
            b"Received",
            b"192.0.2.5",
            b"127.0.0.1",
            b"<>",
            b"<@a:b@c>",
            b"<x@gmail.example>",
        ),
        *SYNTAX,
    ]
    return Target("session", "milter events", oracle, check, _samples(), tokens, close=around.close)


TARGETS = {"session": session}
