# SPDX-License-Identifier: GPL-3.0-or-later
"""A server as its administrator has it, to which `gatepost setup postfix` is applied, and a day of its mail."""

from __future__ import annotations

import os
import re
import smtplib
import subprocess
import sys
from collections import Counter
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass
from email import message_from_bytes
from email.message import Message
from pathlib import Path
from typing import NamedTuple, Optional

from stages import shape

from gatepost.admin.authority import Credentials
from gatepost.admin.nexthop import Received
from gatepost.admin.sandbox import Postfix
from gatepost.admin.stage import Stage, transact

BOB, APP = "bob@fabrikam.com", "app@contoso.com"
SOMEWHERE, HEAD_OFFICE, NO_CONNECTOR = "198.51.100.7", "192.0.2.5", "192.0.2.77"
"""Clients: outside, in mynetworks and a connector, in mynetworks only."""

_MESSAGE = (
    "From: {sender}\r\nTo: you@example.com\r\nSubject: {kind}\r\nMessage-Id: <{kind}@fabrikam.com>\r\n"
    "Date: Sat, 1 Aug 2026 12:00:00 +0200\r\n\r\nhello\r\n"
)

CONFIGURATION = """
[ledger]
subjects = true
[relay]
mode = "enforce"
action = "rewrite"
local_domains = ["mail.contoso.com", "hub.contoso.com", "localhost"]
"""
EGRESS = """
[egress]
transport = "gatepost-egress:[127.0.0.1]:10027"
daemon_name = "gatepost-egress"
"""
ORGANIZATION = """
[[organization]]
name = "contoso"
[[organization.accepted_domain]]
domain = "contoso.com"
default = true
[[organization.connector]]
name = "head office"
sender_ip_addresses = ["192.0.2.0/28"]
[[organization.connector]]
name = "crm"
tls_sender_certificate_name = "crm.contoso.com"
"""


class Delivery(NamedTuple):
    """One copy, without what differs from one time to the next: IDs, dates, hashes. received: how many Received."""

    where: str
    mail_from: str
    rcpt_to: tuple[str, ...]
    rcpt_options: tuple[str, ...]
    received: int
    content: str


@dataclass(frozen=True)
class Outcome:
    """What became of one message: each reply from MAIL on, and the copies that were delivered."""

    replies: tuple[str, ...]
    copies: tuple[Delivery, ...]

    @property
    def envelopes(self) -> list[tuple[str, str, str]]:
        """Where each copy went, its P1 and its recipients."""
        return [(copy.where, copy.mail_from, ", ".join(copy.rcpt_to)) for copy in self.copies]


@dataclass(frozen=True)
class Kind:
    """One message of the day. rcpt: several are separated by blanks.

    certificate: one that is shown at *port*, where TLS is from the start.
    """

    client: str
    mail_from: str
    rcpt: str
    certificate: Optional[Credentials] = None
    port: int = 0
    header_from: str = ""


DAY: Mapping[str, Kind] = {
    "to-a-mailbox": Kind(SOMEWHERE, BOB, "games@contoso.com"),
    "to-an-alias-outside": Kind(SOMEWHERE, BOB, "john.work@contoso.com"),
    "to-both": Kind(SOMEWHERE, BOB, "games@contoso.com john.work@contoso.com"),
    "accepted-p1": Kind(HEAD_OFFICE, APP, "r1@example.com"),
    "foreign-p1": Kind(HEAD_OFFICE, BOB, "r2@example.com"),
    "no-connector": Kind(NO_CONNECTOR, BOB, "r3@example.com"),
    "no-relay": Kind(SOMEWHERE, BOB, "r4@example.com"),
    "refused-later": Kind(HEAD_OFFICE, BOB, "gone@example.com"),
    "null-sender": Kind(SOMEWHERE, "", "games@contoso.com"),
}
"""The mail of a day, but for what sendmail(1) is given and for a bounce from outside, which `Site.mail` adds."""


class File(NamedTuple):
    """octets: empty for a folder."""

    mode: int
    owner: tuple[int, int]
    octets: bytes


def files_below(folder: Path) -> dict[str, File]:
    """Return the files and folders below *folder* by their path from there."""
    found = {}
    for path in folder.rglob("*"):
        status = path.stat()
        octets = path.read_bytes() if path.is_file() else b""
        found[str(path.relative_to(folder))] = File(status.st_mode, (status.st_uid, status.st_gid), octets)
    return found


class Site:
    """A folder of configurations/, booted with gatepost beside it, of which Postfix knows nothing yet.

    default_instance: the Postfix that commands mean without an option; this one, unless there are several.
    """

    def __init__(
        self,
        stage: Stage,
        topology: str,
        day: Mapping[str, Kind],
        *,
        instance: Optional[Path] = None,
        default_instance: Optional[Postfix] = None,
    ) -> None:
        self.stage = stage
        self.topology = topology
        self.day = day
        self.instance = instance
        """What --config-directory names."""
        self.default_instance = default_instance or stage.postfix

    # The command

    def setup(self, *options: str) -> subprocess.CompletedProcess[str]:
        """Run `gatepost setup postfix` as the administrator would."""
        where = ["--config-directory", str(self.instance)] if self.instance else []
        command = [sys.executable, "-m", "gatepost.admin", "-c", str(self.stage.configuration), "setup", "postfix"]
        environment = {
            **os.environ,
            **self.default_instance.environment,
            "PATH": f"{self.stage.postfix.program('postfix').parent}:{os.environ['PATH']}",
            "PYTHONPATH": os.pathsep.join(os.path.abspath(folder) for folder in sys.path),
        }
        start = len(self.stage.postfix.log())
        done = subprocess.run(
            [*command, *where, *options], env=environment, capture_output=True, text=True, timeout=120, check=False
        )
        if done.returncode == 0 and {"--apply", "--undo"} & set(options):
            self._wait_for_reload(start)
        return done

    def _wait_for_reload(self, start: int) -> None:
        if re.search(r"master\[\d+\]: reload ", self.stage.postfix.log()[start:]):
            self.stage.postfix.reload()  # once more: it returns when the old queue manager has gone

    def files(self) -> dict[str, File]:
        """Return everything in the configuration directory."""
        return files_below(self.stage.postfix.config_directory)

    def parameters(self) -> dict[str, str]:
        """Return what main.cf sets and, as `service/type/parameter`, what master.cf does."""
        lines = (self.stage.postfix.postconf("-n") + self.stage.postfix.postconf("-P")).splitlines()
        return {name: value for name, _, value in (line.partition(" =") for line in lines)}

    def check(self) -> list[str]:
        """Return what `postfix check` says, and logs of the configuration."""
        postfix, start = self.stage.postfix, len(self.stage.postfix.log())
        command = [str(postfix.program("postfix")), "-c", str(postfix.config_directory), "check"]
        done = subprocess.run(command, env=postfix.environment, capture_output=True, text=True, check=False)
        logged = re.findall(r"(?m)^.*?: ((?:warning|fatal|error).*(?:main|master)\.cf.*)$", postfix.log()[start:])
        return [*(done.stdout + done.stderr).splitlines(), *logged, *([] if done.returncode == 0 else ["failed"])]

    def enforce(self) -> None:
        """Declare the organisation, if that is not done, in mode enforce, and have gatepost load it."""
        path = self.stage.configuration
        text = path.read_text().replace('mode = "monitor"', 'mode = "enforce"')
        path.write_text(text if ORGANIZATION in text else text + ORGANIZATION)
        assert "not reloaded" not in self.stage.reload()

    # Mail

    def mail(self) -> dict[str, Outcome]:
        """Send each kind of mail once, and return what became of it when the queue is at rest."""
        before = Counter(self._delivered())
        replies = {name: self.send(name, kind) for name, kind in self.day.items()}
        self.stage.postfix.sendmail(["-f", BOB, "r5@example.com"], _text("sendmail", BOB))
        replies["sendmail"] = ()
        p1 = self._p1_of("foreign-p1")
        replies["bounce-from-outside"] = self.send("bounce-from-outside", Kind(SOMEWHERE, "", p1))
        new = Counter(self._delivered()) - before
        return {
            name: Outcome(said, tuple(sorted(copy for kind, copy in new.elements() if kind == name)))
            for name, said in replies.items()
        }

    def _p1_of(self, kind: str) -> str:
        """Return with which P1 the last message of that kind has left, not shortened."""
        self.stage.postfix.wait_until_idle()
        subject = f"Subject: {kind}\r\n".encode()
        mails = [mail for mail in self.stage.internet.messages if subject in mail.content]
        return mails[-1].mail_from

    def send(self, name: str, kind: Kind) -> tuple[str, ...]:
        """Send one message, whose Subject is *name*, and return the replies from MAIL on."""
        text = _text(name, kind.header_from or kind.mail_from or "MAILER-DAEMON@example.com")
        with self._session(kind) as smtp:
            sent = transact(smtp, kind.mail_from, kind.rcpt.split(), text)
        replies = [sent.mail, *sent.rcpt, *(reply for reply in (sent.data, sent.end) if reply)]
        return tuple(_constant(str(reply)) for reply in replies)

    @contextmanager
    def _session(self, kind: Kind) -> Iterator[smtplib.SMTP]:
        if not kind.certificate:
            with self.stage.session(client=kind.client) as smtp:
                yield smtp
            return
        context = self.stage.authority.client_context(kind.certificate)
        with smtplib.SMTP_SSL("127.0.0.1", kind.port, context=context, timeout=60) as smtps:
            smtps.ehlo("app.contoso.com")
            yield smtps

    def _delivered(self) -> list[tuple[str, Delivery]]:
        """Return all that was delivered so far, each copy with the name of its kind."""
        self.stage.postfix.wait_until_idle()
        hops = {"internet": self.stage.internet, "groupware": self.stage.inside}
        copies = [_copy(where, mail) for where, hop in hops.items() for mail in hop.messages]
        for path in self.stage.postfix.mailboxes.iterdir():
            for mail in re.split(rb"(?m)^From .*\n", path.read_bytes())[1:]:
                (p1,) = re.findall(rb"(?m)^Return-Path: <(.*)>$", mail)
                copies.append(_copy("mailbox", Received(("", 0), "", p1.decode(), [], [path.name], [], mail)))
        return copies


def _text(kind: str, header_from: str) -> bytes:
    return _MESSAGE.format(kind=kind, sender=header_from).encode()


def _copy(where: str, mail: Received) -> tuple[str, Delivery]:
    parsed = message_from_bytes(mail.content)
    kind = re.findall(rb"(?m)^Subject: (\S+)\r?$", mail.content)[-1].decode()
    options = tuple(sorted({" ".join(words) for words in mail.rcpt_options}))
    received = len(parsed.get_all("Received", []))
    content = "\n".join(_notification(mail.content) if parsed.is_multipart() else _lines(parsed))
    return kind, Delivery(where, shape(mail.mail_from), tuple(sorted(mail.rcpt_to)), options, received, content)


def _lines(parsed: Message) -> list[str]:
    """Return header and body; of a DKIM signature only who signed what."""
    headers = [f"{name}: {' '.join(str(value).split())}" for name, value in parsed.items() if name != "Received"]
    headers = [re.sub(r"\b(t|b|bh)=[^;]*", r"\1=", line) if line.startswith("DKIM") else line for line in headers]
    return [*headers, "", str(parsed.get_payload()).replace("\r", "")]


def _notification(content: bytes) -> list[str]:
    """Return what a delivery status notification says, without IDs, dates and boundaries."""
    fields = rb"(?m)^(?:From|To|Subject|Original-Recipient|Final-Recipient|Action|Status|Diagnostic-Code): .*$"
    return [line.decode().rstrip() for line in re.findall(fields, content)]


def _constant(reply: str) -> str:
    """Return a reply without what differs from one time to the next."""
    return re.sub(r"queued as \w+", "queued as ID", re.sub(r"\[[A-Z2-7]{10}\]", "[REFERENCE]", shape(reply)))
