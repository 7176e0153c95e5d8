# SPDX-License-Identifier: GPL-3.0-or-later
"""The scenes of `gatepost demo`: each sends real mail, finds where it ended and checks it against what must happen.

Why something was decided is not written here: it is `relay.explain`'s sentence for the verdict whose reason stands in
gatepost's own log line, or the reply that the client got.
"""

from __future__ import annotations

import email
import mailbox
import re
import time
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from functools import partial
from pathlib import Path
from typing import Callable, Optional

from gatepost.admin.logfile import POLL_S, SandboxError
from gatepost.admin.nexthop import Received
from gatepost.admin.stage import Stage, Transcript
from gatepost.relay import Explanation, Mail, RuleSet, explain
from gatepost.service import flow, rewriting
from gatepost.service.reversal import DAY_S, Bounce, reverse
from gatepost.service.snapshot import Snapshot, load_snapshot
from gatepost.srs import Address

APP_HOST, BOBS_SERVER, OTHER_SERVER = "192.0.2.5", "198.51.100.7", "203.0.113.25"
CERTIFICATE = "app.contoso.com"
BOB, ALICE, CUSTOMER = "bob@fabrikam.com", "alice@contoso.com", "customer@example.net"
JOHN, JOHN_AT_HOME = "john.work@contoso.com", "john.home@example.com"
FORWARDED = {
    JOHN: "a virtual alias",
    "john.sales@contoso.com": "an alias",
    "john.lab@contoso.com": "a .forward file",
}
FORWARD_USER = "games"
"""Whose .forward file it is: base-passwd has this account on every Debian system."""

_BOUNCES = r"bounces\+SRS=[a-z2-7]{8}=[A-Z2-7]{2}=fabrikam\.com=news@contoso\.com"
_TIMEOUT_S = 15.0


@dataclass
class Row:
    """One line of the table: what was *sent*, what was *told* of it, each as (label, text); what was *wrong*."""

    title: str
    sent: list[tuple[str, str]] = field(default_factory=list)
    told: list[tuple[str, str]] = field(default_factory=list)
    wrong: list[str] = field(default_factory=list)

    def must(self, condition: object, expected: str) -> None:
        """Note *expected* where *condition* does not hold."""
        if not condition:
            self.wrong.append(f"expected: {expected}")

    def arrived(self, before: str, after: str, place: str) -> None:
        """Tell with which envelope sender a copy arrived at *place*."""
        self.told.append(("ended", place))
        self.told.append(("P1 now", f"{path(after)}, untouched" if after == before else path(after)))


def path(address: str) -> str:
    """Return *address* as a person reads it: the null sender would be nothing at all."""
    return address or "<> (the null sender)"


def configure(stage: Stage) -> None:
    """Put in place, before *stage* starts, what the example leaves to the administrator: users and their forwarding."""
    (stage.postfix.config_directory / "virtual").write_text(f"{JOHN} {JOHN_AT_HOME}\n")
    stage.postfix.forward_files.mkdir(parents=True)
    (stage.postfix.forward_files / FORWARD_USER).write_text(f"{JOHN_AT_HOME}\n")


def main_cf(root: Path) -> str:
    """Return main.cf lines of the server that gatepost is added to, which runs below *root*."""
    return (
        "mydestination = $myhostname, localhost, contoso.com\n"
        "mynetworks = 127.0.0.0/8, 192.0.2.0/28\n"
        f"alias_maps = inline:{{ {{alice = {root}/mta/mail/alice}}, {{john.sales = {JOHN_AT_HOME}}}, "
        f"{{john.lab = {FORWARD_USER}}} }}\n"
    )


def with_requirements(text: str, rule_set: RuleSet) -> str:
    """Return the text of a gatepost.toml with *rule_set* in force, nothing only monitored."""
    text = re.sub(r"(?m)^(?:requirements|mode)\b.*\n", "", text)
    return text.replace("[relay]\n", f'[relay]\nrequirements = "{rule_set.value}"\nmode = "enforce"\n')


def raise_interruption(error: BaseException) -> None:
    """Raise the SystemExit that *error* came from, if any.

    A signal amid an SMTP command: smtplib then says QUIT, takes the reply to that command for QUIT's, and its error
    hides what the signal raised.
    """
    context = error.__context__
    while context:
        if isinstance(context, SystemExit):
            raise context
        context = context.__context__


class Scenes:
    """What is played on *stage*, a running one: a scene at a time, in order."""

    def __init__(self, stage: Stage) -> None:
        self._stage = stage
        self.certificate = stage.authority.issue(CERTIFICATE)
        self._number = 0
        foreign, notice = "news@fabrikam.com", "app@contoso.com"
        relay, current, legacy = self._relay, RuleSet.CURRENT, RuleSet.LEGACY
        self._scenes: list[tuple[str, Callable[[Row], None]]] = [
            ("A host known by its address, P1 ours", partial(relay, notice, leaves_as=re.escape(notice))),
            ("The same host, P1 somebody else's", partial(relay, foreign, leaves_as=None)),
            ("The same mail, with a client certificate", partial(relay, foreign, leaves_as=_BOUNCES, certificate=True)),
            ("An NDR (null sender) to outside", partial(relay, "", leaves_as=None)),
            ("The same NDR, with a client certificate", partial(relay, "", leaves_as="", certificate=True)),
            (
                "Only P2 is ours, rules since 2023-11-01",
                partial(self._under, current, partial(relay, foreign, leaves_as=None, p2=notice)),
            ),
            (
                "Only P2 is ours, rules before (legacy)",
                partial(self._under, legacy, partial(relay, foreign, leaves_as=_BOUNCES, p2=notice)),
            ),
            *((f"Forwarded by {how}", partial(self._forward, rcpt)) for rcpt, how in FORWARDED.items()),
            ("Bounce: the next hop refuses John's copy", partial(self._own_ndr, "550 5.1.1 No such user")),
            ("Bounce: John's copy expires in our queue", partial(self._own_ndr, "450 4.2.1 Mailbox busy, try again")),
            ("Bounce: the NDR of another server", self._remote_ndr),
            ("An SRS recipient that was forged", self._forged),
            ("An SRS recipient that has expired", self._expired),
        ]

    @property
    def titles(self) -> list[str]:
        return [title for title, _ in self._scenes]

    def play(self, number: int) -> Row:
        """Play a scene, the first is 0; whatever goes wrong is in the row."""
        title, play = self._scenes[number]
        self._number = number + 1
        row = Row(title)
        try:
            play(row)
        except (SandboxError, TimeoutError, OSError) as error:
            raise_interruption(error)
            row.wrong.append(str(error).partition("\n")[0])  # without the log, which all scenes share
        return row

    # The relay rule

    def _relay(self, p1: str, row: Row, *, leaves_as: Optional[str], certificate: bool = False, p2: str = "") -> None:
        """Send to outside from the application's host. leaves_as: a pattern for P1 at the next hop, None: refused."""
        message = self._message(p2 or p1 or "postmaster@contoso.com", CUSTOMER)
        with_certificate = f"{APP_HOST}, with certificate {CERTIFICATE}"
        row.sent = [("client", with_certificate if certificate else APP_HOST), ("P1", path(p1))]
        row.sent += [("P2", p2)] if p2 else []
        row.sent += [("to", CUSTOMER)]
        start = len(self._stage.log())
        credentials = self.certificate if certificate else None
        reply = self._stage.send(p1, CUSTOMER, message, client=APP_HOST, certificate=credentials)
        line = self._decision_line(reply, p1, start)
        names = (CERTIFICATE,) if certificate else ()
        explanation = self._explain(row, line, Mail(p1, (p2,) if p2 else ()), CUSTOMER, APP_HOST, names)
        row.told += [("P2", explanation.p2)] if p2 and leaves_as is None else []
        if not reply.accepted:
            row.told.append(("ended", f"refused: {reply.last}"))
            row.must(leaves_as is None, f"the mail is relayed with a P1 like {leaves_as}")
            refusal = r"550 5\.7\.64 TenantAttribution; Relay Access Denied \[[A-Z2-7]{10}\]"
            row.must(re.fullmatch(refusal, str(reply.last)), "550 5.7.64 TenantAttribution; Relay Access Denied [...]")
            row.must(f"[{line.get('reference')}]" in str(reply.last), "the reference in the reply stands in the log")
            return
        mail = self._arrival(CUSTOMER)
        row.arrived(p1, mail.mail_from, "outside, at the next hop")
        if leaves_as is None:
            row.must(False, "the mail is refused with 550 5.7.64")
        else:
            row.must(re.fullmatch(leaves_as, mail.mail_from), f"P1 at the next hop is like {leaves_as or '<>'}")
        row.must(mail.content.endswith(message), "headers and body arrive as they were sent")

    def _under(self, rule_set: RuleSet, play: Callable[[Row], None], row: Row) -> None:
        with self._requirements(row, rule_set):
            play(row)

    @contextmanager
    def _requirements(self, row: Row, rule_set: RuleSet) -> Iterator[None]:
        """Have gatepost decide by *rule_set* meanwhile."""
        before = self._stage.configuration.read_text()
        after = with_requirements(before, rule_set)
        if after == before:
            yield
            return
        self._configure(row, after)
        try:
            yield
        finally:
            self._configure(row, before)

    def _configure(self, row: Row, text: str) -> None:
        """Make *text* gatepost's configuration by SIGHUP; return when no worker of the old one is left."""
        old = self._workers()
        self._stage.configuration.write_text(text)
        said = self._stage.reload()
        row.must("not" not in said, f"SIGHUP loads the changed configuration, not: {said}")
        deadline = time.monotonic() + _TIMEOUT_S
        while old & self._workers():
            if time.monotonic() > deadline:
                raise SandboxError(f"workers of the old configuration are still there after {_TIMEOUT_S} s")
            time.sleep(POLL_S)

    def _workers(self) -> set[str]:
        pid = self._stage.pid
        return set(Path(f"/proc/{pid}/task/{pid}/children").read_text().split())

    # Forwarding

    def _forward(self, rcpt: str, row: Row) -> None:
        """Bob writes to John, whose mailbox *rcpt* forwards, and to Alice, who has hers here."""
        message = self._message(BOB, rcpt)
        row.sent = [("client", f"{BOBS_SERVER}, Bob's server"), ("P1", BOB), ("to", rcpt), ("and to", ALICE)]
        start, log_start = len(self._stage.postfix.log()), len(self._stage.log())
        reply = self._stage.send(BOB, [rcpt, ALICE], message, client=BOBS_SERVER)
        line = self._decision_line(reply, BOB, log_start)
        outside = self._arrival(JOHN_AT_HOME)
        hop = self._hop_line(outside, log_start) if outside.mail_from != BOB else None
        self._explain(row, line, Mail(BOB, (BOB,)), rcpt, BOBS_SERVER, hop=hop)
        row.arrived(BOB, outside.mail_from, f"John's copy outside, at {JOHN_AT_HOME}")
        self._stage.postfix.wait_for_log(rf"to=<{ALICE}>.* status=sent", _TIMEOUT_S, start=start)
        return_path = self._return_path()
        row.arrived(BOB, return_path, "Alice's copy inside, in her mailbox here")
        row.must(re.fullmatch(_srs(rcpt), outside.mail_from), f"P1 of John's copy is like {_srs(rcpt)}")
        row.must(outside.content.endswith(message), "headers and body of John's copy arrive as they were sent")
        row.must(return_path == BOB, f"P1 of Alice's copy is {BOB}")

    def _hop_line(self, mail: Received, start: int) -> dict[str, str]:
        rewritten = re.escape(f"rewritten=<{mail.mail_from}>")
        return _fields(self._stage.wait_for_log(rf"action=.*{rewritten}.*hop=egress.*$", _TIMEOUT_S, start=start)[0])

    def _return_path(self) -> str:
        """Return P1 of this scene's message in Alice's mailbox, as local(8) has written it."""
        for mail in mailbox.mbox(self._stage.postfix.mailboxes / "alice", create=False):
            if mail["Message-Id"] == self._message_id:
                return str(mail["Return-Path"]).strip("<>")
        raise SandboxError("the message is not in Alice's mailbox")

    # Bounces

    def _own_ndr(self, refusal: str, row: Row) -> None:
        """Bob writes to John again, and John's server at home answers *refusal*."""
        row.sent = [("client", "none: this Postfix made the NDR"), ("P1", path(""))]
        before = self._reversed()
        with self._refusing(refusal):
            message = self._message(BOB, JOHN)
            reply = self._stage.send(BOB, JOHN, message, client=BOBS_SERVER)
            row.must(reply.accepted, f"Bob's mail is taken, not {reply.last}")
            ndr = self._arrival(BOB)
        srs = str(email.message_from_bytes(ndr.content)["To"])
        row.sent += [("to", srs), ("cause", f"{JOHN_AT_HOME}: {refusal}")]
        self._brought_back(row, srs, ndr, before)
        row.must(re.fullmatch(_srs(JOHN), srs), f"the NDR goes to an address like {_srs(JOHN)}")
        row.must(refusal.encode() in ndr.content.replace(b"\r\n   ", b""), f"the NDR says {refusal}")

    @contextmanager
    def _refusing(self, refusal: str) -> Iterator[None]:
        """Have John's server at home answer *refusal*, and mail that it defers expire in the queue after a second."""
        postfix, internet = self._stage.postfix, self._stage.internet
        internet.refuse[JOHN_AT_HOME] = refusal
        lifetime = postfix.postconf("-h", "maximal_queue_lifetime").strip()
        try:
            if refusal.startswith("4"):
                postfix.postconf("-e", "maximal_queue_lifetime=1s")
                postfix.reload()
            yield
        finally:
            del internet.refuse[JOHN_AT_HOME]
            if refusal.startswith("4"):
                postfix.postconf("-e", f"maximal_queue_lifetime={lifetime}")
                postfix.reload()

    def _remote_ndr(self, row: Row) -> None:
        """The server at John's home takes the mail and cannot deliver it; and it lower-cases addresses."""
        self._message(BOB, JOHN)
        srs = self._srs_address(0).lower()
        message = self._message("mailer-daemon@example.com", srs)
        row.sent = [("client", f"{OTHER_SERVER}, another server"), ("P1", path("")), ("to", srs)]
        before, start = self._reversed(), len(self._stage.log())
        reply = self._stage.send("", srs, message, client=OTHER_SERVER)
        row.must(reply.accepted, f"the NDR is taken, not {reply.last}")
        line = self._decision_line(reply, "", start)
        self._brought_back(row, srs, self._arrival(BOB), before, line)

    def _brought_back(
        self, row: Row, srs: str, ndr: Received, before: float, line: Optional[dict[str, str]] = None
    ) -> None:
        """Tell of an *ndr* to *srs* that Bob got. *line*: what gatepost's milter logged, which sees no local NDR."""
        reversal = reverse(self._snapshot(), srs, int(time.time()), lambda token: None)
        row.told.append(("", _REVERSAL[reversal.bounce].format(original=reversal.original)))
        row.told += [("log", f"action={line['action']}, reason={line['reason']}")] if line else []
        row.arrived("", ndr.mail_from, f"outside, at {ndr.rcpt_to[0]}")
        row.must(reversal.bounce is Bounce.ORIGINAL, "the SRS address is a valid one of this host")
        row.must(self._reversed() > before, "gatepost counts the reversal")
        row.must(ndr.mail_from == "", "the NDR keeps its null sender")

    def _reversed(self) -> float:
        return self._stage.metric("gatepost_srs_reversals_total", result="original")

    def _srs_address(self, age_days: int) -> str:
        """Return the P1 that a copy of Bob's mail, forwarded *age_days* ago, has."""
        now = int(time.time()) - age_days * DAY_S
        return rewriting.forwarded(self._snapshot(), BOB, Address.parse(JOHN), now).address

    def _forged(self, row: Row) -> None:
        srs = self._srs_address(0).replace("=bob@", "=victim@")
        self._refused_srs(row, srs, ("made", "from the one above: bob became victim"), "srs-forged")

    def _expired(self, row: Row) -> None:
        valid = f"30 days ago, valid for {self._snapshot().config.srs.validity_days}"
        self._refused_srs(row, self._srs_address(30), ("made", valid), "srs-expired")

    def _refused_srs(self, row: Row, srs: str, made: tuple[str, str], reason: str) -> None:
        message = self._message("mailer-daemon@example.com", srs)
        row.sent = [("client", f"{OTHER_SERVER}, another server"), ("P1", path("")), ("to", srs), made]
        start = len(self._stage.log())
        reply = self._stage.send("", srs, message, client=OTHER_SERVER)
        line = self._decision_line(reply, "", start)
        code, _, why = str(reply.last).partition(f" <{srs}>: Recipient address rejected: ")
        row.told.append(("", f"Refused: {why}."))
        row.told.append(("log", f"action={line['action']}, reason={line['reason']}"))
        row.told.append(("ended", f"refused: {code}"))
        row.must(str(reply.last).startswith("550 5.1.1 "), "550 5.1.1")
        row.must(line["reason"] == reason, f"reason={reason} in the log")

    # What all share

    def _message(self, p2: str, to: str) -> bytes:
        """Return this scene's message. The next hop knows it by its Message-Id."""
        self._message_id = f"<{self._number}.{time.time_ns()}@demo.example>"
        date = email.utils.formatdate()
        head = f"From: {p2}\r\nTo: {to}\r\nSubject: scene {self._number}\r\nDate: {date}\r\n"
        return f"{head}Message-Id: {self._message_id}\r\n\r\nhello\r\n".encode()

    def _arrival(self, rcpt: str) -> Received:
        """Return this scene's message, or an NDR that quotes it, which the next hop got for *rcpt*."""
        wanted = self._message_id.encode()
        return self._stage.internet.wait(lambda mail: mail.rcpt_to == [rcpt] and wanted in mail.content, _TIMEOUT_S)

    def _snapshot(self) -> Snapshot:
        return load_snapshot(self._stage.configuration)

    def _decision_line(self, reply: Transcript, p1: str, start: int) -> dict[str, str]:
        """Return gatepost's log line of the message that got *reply*."""
        queue_id = reply.queue_id or r"\w+"
        pattern = rf"{queue_id}: action=\w+, from=<{re.escape(p1)}>.*$"
        return _fields(self._stage.wait_for_log(pattern, _TIMEOUT_S, start=start)[0])

    def _explain(
        self,
        row: Row,
        line: dict[str, str],
        mail: Mail,
        rcpt: str,
        client_ip: str,
        names: tuple[str, ...] = (),
        hop: Optional[dict[str, str]] = None,
    ) -> Explanation:
        """Put gatepost's decision in words; it logged *line*, which must say the same, and *hop* on the egress hop."""
        snapshot = self._snapshot()
        client = snapshot.rules.client(client_ip, names)
        verdict = flow.judge(snapshot, client, mail, rcpt, headers_seen=True).verdict
        explanation = explain(verdict, client, mail, rcpt, snapshot.config.relay.requirements)
        row.told.append(("", explanation.decision))
        logged = f"action={line['action']}, reason={line['reason']}"
        if "rewrite" in (line["action"], hop and hop["action"]):
            row.told.append(
                ("", f"P1 {explanation.p1}, so SRS rewrites {'that of the copy that leaves' if hop else 'it'}.")
            )
        row.told.append(("log", f"{logged}; John's copy, as it leaves: action={hop['action']}" if hop else logged))
        row.must(line["reason"] == verdict.reason.value, f"reason={verdict.reason.value} in the log")
        return explanation


_REVERSAL = {
    Bounce.ORIGINAL: "The SRS address is one of ours and valid: the bounce goes on to its original sender, {original}.",
    Bounce.FORGED: "The SRS address is forged.",
    Bounce.EXPIRED: "The SRS address has expired.",
    Bounce.FOREIGN: "The SRS address is somebody else's.",
    Bounce.NOT_SRS: "The recipient is no SRS address.",
}


def _srs(rcpt: str) -> str:
    """Return a pattern for the P1 of Bob's mail that *rcpt* has forwarded."""
    local, _, domain = rcpt.partition("@")
    return rf"{re.escape(local)}\+SRS=[a-z2-7]{{8}}=[A-Z2-7]{{2}}=fabrikam\.com=bob@{re.escape(domain)}"


def _fields(line: str) -> dict[str, str]:
    """Return the key=<value> pairs of a log line."""
    return {key: value.strip("<>") for key, value in re.findall(r"(\w+)=(<[^>]*>|[^,\s]*)", line)}
