# SPDX-License-Identifier: GPL-3.0-or-later
"""What must hold in the end, whatever has happened: each function yields a line for each thing that does not."""

from __future__ import annotations

import contextlib
import re
import sqlite3
from collections import Counter, defaultdict
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from typing import NamedTuple

from gatepost.service.ledger import Entry, record
from gatepost.srs import Address, Compact, Exchange, NotSrs, SrsError, age, stamp
from soak.hosts import FORWARDED_TO, Host
from soak.load import Arrived, Load
from soak.mail import NULL, SAME, Message
from soak.troubles import Event
from soak.watch import Rest

VALIDITY_DAYS = 21
FLAT_KIB = 512
"""So many a minute are no growth yet: a worker takes memory from the system in pieces."""
_TELLING_S = 30.0
_STAMP = re.compile(r"\+SRS=[^=]+=([A-Z2-7]{2})[=@]", re.IGNORECASE)
_FULL_S = 2.0
"""For so long a worker that met a full disk does not try again."""
_QUEUE_S = 10.0
"""How long a message may wait in the queue for its next attempt."""
_MAY_COME = ("last-errors", "metrics/", "ledger/", "gatepost.db")
_NAMELESS = re.compile(r"bounces\+SRS=[a-z2-7]{8}=")
_REFERENCE = re.compile(r"\[([A-Z2-7]{10})\]")


class Row(NamedTuple):
    """What counts of a row of the ledger."""

    reference: str
    recipient: str
    queue_id: str
    egress_queue_id: str


class Books:
    """What a host has written: the ledger and the originals of compact addresses, in whichever files they ended up.

    Where the state folder was taken away a new one took its place for a while; its rows count, too.
    """

    def __init__(self, host: Host) -> None:
        self.host = host
        self.rows: list[Row] = []
        self.originals: dict[str, str] = {}
        self.meanwhile = 0
        self._known: set[tuple[str, ...]] = set()
        own = host.state_directory / "gatepost.db"
        for path in [own, *sorted(set(host.disk.rglob("*gatepost.db")) - {own})]:
            self._read(path, path == own)
        for path in sorted(host.disk.rglob("*.spool")):
            self._read_spool(path)

    def _read(self, path: Path, in_place: bool) -> None:
        with contextlib.closing(sqlite3.connect(path)) as database, contextlib.suppress(sqlite3.OperationalError):
            for row in database.execute(f"SELECT {', '.join(Row._fields)} FROM ledger"):
                self._add(Row(*row), in_place)
            self.originals.update(database.execute("SELECT token, original FROM srs_token"))

    def _read_spool(self, path: Path) -> None:
        """Count what the loader has not taken in, in a folder that was put aside."""
        for line in path.read_bytes().splitlines():
            with contextlib.suppress(ValueError, TypeError):
                entry = record(line)
                if isinstance(entry, Entry):
                    self._add(Row(entry.reference, entry.recipient, entry.queue_id, entry.egress_queue_id), False)

    def _add(self, row: Row, in_place: bool) -> None:
        """Add a row, unless it is there: what a store that stood in has, the right one may have taken in later."""
        if row[:2] not in self._known:
            self._known.add(row[:2])
            self.rows.append(row)
            self.meanwhile += not in_place


# Replies


def replies(load: Load) -> Iterator[str]:
    """Accepted what the rules let through, refused what they do not, nothing left undecided."""
    hosts = {host.name: host for host in load.hosts}
    for item in load.messages:
        kind = f"{item.kind.host} {item.kind.name} {item.number}"
        for rcpt in item.pending:
            yield f"{kind}: to {rcpt} was never decided, put off {item.put_off} times"
        for rcpt, queue_id in item.accepted.items():
            if item.kind.refused:
                yield f"{kind}: {rcpt} was let in as {queue_id}"
            elif item.srs and not _bounce_verdicts(hosts[item.kind.host], item) & {True}:
                yield f"{kind}: {rcpt} was taken back, which is expired or of the future"
        for rcpt, reply in item.refused.items():
            if item.kind.refused:
                if not re.fullmatch(item.kind.refused, reply):
                    yield f"{kind}: {rcpt} was refused with {reply}"
            elif not (item.srs and False in _bounce_verdicts(hosts[item.kind.host], item)):
                yield f"{kind}: {rcpt} was refused with {reply}, and must pass"


def _bounce_verdicts(host: Host, item: Message) -> set[bool]:
    """Return whether the clock let the address of a bounce be good: both, where it has jumped meanwhile."""
    made = _STAMP.search(item.srs)
    assert made
    days = host.clock.days(item.begun - 1, item.ended + 1)
    return {age(made[1].upper(), day) <= VALIDITY_DAYS for day in days}


# Copies


def copies(load: Load, books: dict[str, Books]) -> Iterator[str]:
    """Each message that was accepted was delivered once to each of its recipients, with the right sender; no other."""
    by_number: dict[int, list[Arrived]] = defaultdict(list)
    for arrived in load.arrived:
        by_number[arrived.number].append(arrived)
    for item in load.messages:
        found = by_number.pop(item.number, [])
        kind = f"{item.kind.host} {item.kind.name} {item.number}"
        yield from (f"{kind}: {problem}" for problem in copies_of(item, found, books))
    by_number.pop(-1, None)
    for number, found in by_number.items():
        yield f"{len(found)} copies of a message {number} that nobody sent"


def copies_of(item: Message, arrived: Sequence[Arrived], books: dict[str, Books]) -> Iterator[str]:
    """Yield what is wrong with the copies of one message that arrived."""
    notified = sum(copy.notification for copy in arrived)
    expected = Counter(copy.rcpt for rcpt in item.accepted for copy in item.rcpts[rcpt])
    there = Counter(rcpt for copy in arrived if not copy.notification for rcpt in copy.mail.rcpt_to)
    if item.srs and there == Counter([item.srs]) and _clock_in_between(item, books[item.kind.host].host):
        expected = there  # taken, and no SRS address any more when it was looked up: for the mailbox `bounces`
    for rcpt in sorted({*expected, *there}):
        least, most = expected[rcpt], expected[rcpt] + (item.unclear if item.rcpts else 0)
        if not least <= there[rcpt] <= most:
            yield f"delivered to {rcpt} {there[rcpt]} times, not {expected[rcpt]}; queue IDs {item.accepted}"
    if item.kind.notified and item.accepted:
        if notified != len(item.accepted) and not _clock_in_between(item, books[item.kind.host].host):
            yield f"the sender was notified {notified} times, not {len(item.accepted)}; queue IDs {item.accepted}"
    elif notified and not item.unclear:
        yield f"the sender was notified {notified} times of what must arrive; queue IDs {item.accepted}"
    wanted = {copy.rcpt: copy.p1 for each in item.rcpts.values() for copy in each}
    for copy in arrived:
        if copy.notification:
            astray = copy.mail.rcpt_to != [item.mail_from] and not _clock_in_between(item, books[item.kind.host].host)
            if copy.mail.mail_from or astray:
                yield f"a notification from <{copy.mail.mail_from}> to {copy.mail.rcpt_to}"
            continue
        for rcpt in copy.mail.rcpt_to:
            problem = wrong_sender(copy, item, wanted.get(rcpt, SAME), books[item.kind.host])
            if problem:
                yield f"{rcpt} got it from <{copy.mail.mail_from}>: {problem}"


def _clock_in_between(item: Message, host: Host) -> bool:
    """Tell whether a notification may go astray: it is for an address that is of the future once the clock is back."""
    return len(host.clock.days(item.begun - 1, item.ended + _QUEUE_S)) > 1


def wrong_sender(copy: Arrived, item: Message, p1: str, books: Books) -> str:
    """Return what is wrong with the sender of a copy; it is reversed here, by all keys there were."""
    sender = copy.mail.mail_from
    if p1 in (SAME, NULL):
        return "" if sender == item.mail_from else f"it must be <{item.mail_from}>"
    made = _STAMP.search(sender)
    if made is None:
        return "it is not rewritten"
    days = [day for day in copy.host.clock.days(item.begun - 1, copy.at) if stamp(day) == made[1].upper()]
    if not days:
        return "its stamp is of another day"
    try:
        original = _original(copy.host, Address.parse(sender), days[0], books)
    except SrsError as error:
        return f"{type(error).__name__}: {error}"
    if original != item.mail_from:
        return f"it reverses to {original}"
    return "" if sender.startswith((f"{p1}+", "bounces+")) else f"it is not {p1}'s"


def _original(host: Host, address: Address, day: int, books: Books) -> str:
    with contextlib.suppress(NotSrs):
        return str(Exchange(host.keys()).reverse(address, day))
    compact = Compact(host.keys())
    original = books.originals.get(compact.token(address), "")
    if not original:
        raise NotSrs("the store has no original for its token")
    compact.verify(address, Address.parse(original), day)
    return original


def unnamed(load: Load) -> int:
    """Return how many copies that a mailbox forwarded left as bounces+SRS=, for what ingress had noted was lost."""
    return sum(
        copy.mail.rcpt_to == [FORWARDED_TO] and _NAMELESS.match(copy.mail.mail_from) is not None
        for copy in load.arrived
    )


def sources(load: Load) -> Iterator[str]:
    """What smtp-source sent has arrived, each once, where all of a batch was taken."""
    found: Counter[str] = Counter()
    ids: set[str] = set()
    for arrived in load.arrived:
        subject = re.search(rb"(?m)^Subject: (source-\d+-)", arrived.mail.content)
        if arrived.number < 0 and subject:
            found[subject[1].decode()] += 1
            sender_id = re.findall(rb"(?m)^Message-Id: (\S+)", arrived.mail.content)
            ids.update(item.decode() for item in sender_id)
        elif arrived.number < 0 and b"cut" not in arrived.mail.content:
            yield f"an unknown message to {arrived.mail.rcpt_to}: {arrived.mail.content[:200]!r}"
    for batch in load.batches:
        if (batch.whole and found[batch.subject] != 10) or found[batch.subject] > 10:
            yield f"smtp-source's batch {batch.subject}: {found[batch.subject]} of 10 delivered"


# Ledger


def ledger(load: Load, books: dict[str, Books], events: Sequence[Event]) -> Iterator[str]:
    """Each recipient that was accepted has one row, and each refusal one under the reference that the client was told.

    A refusal is said all the same where its row can't be written.
    """
    for name, book in books.items():
        rows = Counter((row.queue_id, row.recipient) for row in book.rows if row.queue_id)
        references = Counter(row.reference for row in book.rows)
        for item in load.messages:
            if item.kind.host != name:
                continue
            kind = f"{name} {item.kind.name} {item.number}"
            for rcpt, queue_id in item.accepted.items():
                if rows[queue_id, rcpt.lower()] != 1:
                    yield f"{kind}: {rows[queue_id, rcpt.lower()]} rows of {queue_id} to {rcpt}"
            for reply in item.refused.values():
                told = _REFERENCE.search(reply)
                if told and references[told[1]] != 1 and not _unwritable(name, item, events):
                    yield f"{kind}: {references[told[1]]} rows of the refusal {told[1]}"


def _unwritable(host: str, item: Message, events: Sequence[Event]) -> bool:
    return any(
        event.host == host
        and event.trouble in ("read-only-disk", "full-disk", "state-away", "state-hidden")
        and event.begun <= item.ended
        and item.begun <= event.ended + _FULL_S
        for event in events
    )


def surplus_rows(load: Load, books: dict[str, Books]) -> int:
    """Return how many rows are of a message that was not accepted: its worker died between row and answer, say."""
    accepted = {queue_id for item in load.messages for queue_id in item.accepted.values()}
    for arrived in load.arrived:
        accepted.update(re.findall(r"\bid ([0-9A-Za-z]{10,})\b", arrived.mail.content.decode("latin-1")))
    return sum(bool(row.queue_id) and row.queue_id not in accepted for book in books.values() for row in book.rows)


# What is left


def logs(host: Host) -> Iterator[str]:
    """No traceback in a log, and nothing that Postfix calls fatal, a panic or a fault."""
    for line in host.log().splitlines():
        if "Traceback" in line or "Segmentation" in line or "Bus error" in line:
            yield f"{host.name}: gatepost: {line}"
    for line in host.postfix.log().splitlines():
        if re.search(r" (fatal|panic): ", line):
            yield f"{host.name}: Postfix: {line}"


def flat(slopes: Mapping[str, float], span_s: float) -> Iterator[str]:
    """No process grows in calm, as far as so long a span can tell."""
    for name, kib in slopes.items():
        if span_s >= _TELLING_S and kib > FLAT_KIB:
            yield f"{name}: {kib:.0f} KiB a minute"


def rest(host: Host, before: Rest, after: Rest) -> Iterator[str]:
    """The same processes, threads, descriptors, sockets and files as before."""
    for name in Rest._fields:
        old, new = getattr(before, name), getattr(after, name)
        if name == "descriptors":
            # A worker that has used the store has three more.
            if any(count > old.get(role, 0) + 4 for role, count in new.items()):
                yield f"{host.name}: descriptors: {old} before, {new} after"
        elif name == "files":
            more = [item for item in new if item not in old and not item.startswith(_MAY_COME)]
            if more:
                yield f"{host.name}: files that were not there before: {', '.join(more)}"
        elif old != new:
            yield f"{host.name}: {name}: {old} before, {new} after"
