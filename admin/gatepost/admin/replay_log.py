# SPDX-License-Identifier: GPL-3.0-or-later
"""Rebuilds messages from the lines of a mail log: who sent them, P1, recipients, outcome. No I/O, bounded memory.

A line is `TIME HOST TAG[PID]: text`, as syslog, Postfix' own log file and `journalctl -o short` or `short-iso` have it;
the time may have any form. What stands in a text is the client's word in places, so each kind of line is recognized at
its beginning, and by the program that wrote it.

Which recipient counts: the one that the client named, as the rule sees it at RCPT, before aliases (orig_to).
"""

from __future__ import annotations

from collections import OrderedDict
from collections.abc import Sequence
from typing import Optional

from gatepost.admin.replay_message import Certificate, Handler, Message, Origin, known, loopback
from gatepost.admin.replay_postfix import PostfixReader
from gatepost.admin.replay_sendmail import SendmailReader

MEMORY_BYTES = 48 << 20
"""How much messages that are not finished may take, roughly."""
SETTLING = 2000
SESSIONS = 20_000
_TAGS = 20_000
_MESSAGE_BYTES = 900
_LONGEST_NAME = 100
"""Of a host, queue ID or tag, in octets; real ones are shorter."""


class Log:
    """Turns lines into messages: `feed` them in the order of time, then `end`.

    lines: how many there were; mail_lines: of those, the ones of an MTA. unread: those that begin like one that counts
    and cannot be read. evicted: messages that were given up unfinished, the oldest first, to keep memory bounded.
    tls: whether an MTA has logged something of its clients' TLS. first, last: time and host of the first and last line
    of an MTA.
    """

    def __init__(self, memory_bytes: int = MEMORY_BYTES) -> None:
        self._limit = memory_bytes
        self._weight = 0
        self._open: OrderedDict[bytes, Message] = OrderedDict()
        self._settling: OrderedDict[bytes, Message] = OrderedDict()
        self._finished: list[Message] = []
        self._handlers: dict[bytes, Handler] = {}
        self._readers = (PostfixReader(self), SendmailReader(self))
        self.certificates: OrderedDict[bytes, Certificate] = OrderedDict()
        self.lines = self.mail_lines = self.unread = self.evicted = 0
        self.tls = False
        self.first = self.last = b""

    def feed(self, lines: Sequence[bytes]) -> list[Message]:
        """Read *lines*, each without its end; return the messages that are finished."""
        handlers = self._handlers
        self.lines += len(lines)
        for line in lines:
            prefix, found, text = line.partition(b"]: ")
            if not found:
                continue
            head, _, tag = prefix.rpartition(b" ")
            handler = handlers.get(tag)
            if handler is None:
                handler = self._learn(tag, head)
            if handler is not _ignore:
                self.mail_lines += 1
                self.last = head
                handler(text, head, tag)
        finished, self._finished = self._finished, []
        return finished

    def end(self) -> list[Message]:
        """Return what is left: messages that wait in the queue, or whose end is not in the log."""
        for message in self._open.values():
            message.whole = known(message) and len(message.outcomes) >= message.taken
            self._emit(message)
        for message in self._settling.values():
            self._emit(message)
        self._open.clear()
        self._settling.clear()
        finished, self._finished = self._finished, []
        return finished

    def _learn(self, tag: bytes, head: bytes) -> Handler:
        if len(self._handlers) >= _TAGS:
            self._handlers.clear()
        name, _, number = tag.rpartition(b"[")
        handler: Optional[Handler] = None
        if number.isdigit() and len(tag) <= _LONGEST_NAME:
            for reader in self._readers:
                handler = handler or reader.handler(name)
        if handler and not self.first:
            self.first = head
        return self._handlers.setdefault(tag, handler or _ignore)

    # For the readers

    def key(self, head: bytes, name: bytes) -> bytes:
        """Return a key for a queue ID or process of the host in *head*."""
        return head.rpartition(b" ")[2][:_LONGEST_NAME] + b" " + name[:_LONGEST_NAME]

    def get(self, key: bytes) -> Optional[Message]:
        """Return the open message *key*."""
        return self._open.get(key)

    def begin(self, key: bytes, head: bytes, origin: Optional[Origin]) -> Message:
        """Open a message; one that is open under the same ID is finished, for IDs come again."""
        if key in self._open:
            self.finish(key)
        message = Message(key.rpartition(b" ")[2].decode("ascii", "replace"), head[-_LONGEST_NAME:], origin)
        self._open[key] = message
        self.grow(_MESSAGE_BYTES, message)
        return message

    def either(self, key: bytes, head: bytes) -> Message:
        """Return the open message *key*; if there is none, the log begins amid it."""
        return self._open.get(key) or self.begin(key, head, None)

    def grow(self, size_bytes: int, message: Message) -> None:
        """Account for what *message* has grown by, and give up others if that is too much."""
        message.weight += size_bytes
        self._weight += size_bytes
        while self._weight > self._limit and len(self._open) > 1:
            if self._settling:
                self._emit(self._settling.popitem(last=False)[1])
                continue
            key, oldest = next(iter(self._open.items()))
            if oldest is message:
                self._open.move_to_end(key)
                continue
            del self._open[key]
            oldest.whole = known(oldest) and len(oldest.outcomes) >= oldest.taken > 0
            self.evicted += not oldest.whole
            self._emit(oldest)

    def finish(self, key: bytes, *, whole: bool = False) -> None:
        """Close the message *key*. Mail from loopback waits: a filter may turn out to have sent it back."""
        message = self._open.pop(key, None)
        if message is None:
            return
        message.whole = known(message) and (whole or len(message.outcomes) >= message.taken > 0)
        if message.origin is None or not loopback(message.origin.ip) or message.origin.local:
            self._emit(message)
            return
        self._settling[key] = message
        if len(self._settling) > SETTLING:
            self._emit(self._settling.popitem(last=False)[1])

    def abandon(self, key: bytes) -> None:
        """Forget the message *key* if the client went on, or went, before it sent the content."""
        message = self._open.get(key)
        if message is None or message.received or message.taken:
            return
        message.kept = {address: outcome for address, outcome in message.kept.items() if outcome != "held"}
        if message.kept:
            self.finish(key, whole=True)
        else:
            del self._open[key]
            self._weight -= message.weight

    def mark_hop(self, key: bytes) -> None:
        """Take note that a message which came from loopback is one that went there."""
        message = self._open.get(key) or self._settling.get(key)
        if message is not None and message.origin is not None and loopback(message.origin.ip):
            message.hop = True

    def give(self, message: Message) -> None:
        """Hand out a message that was never open."""
        message.whole = known(message)
        self._emit(message)

    def remember(self, process: bytes, certificate: Certificate) -> None:
        """Take note of the certificate of a process's session."""
        self.certificates[process] = certificate
        if len(self.certificates) > SESSIONS:
            self.certificates.popitem(last=False)

    def _emit(self, message: Message) -> None:
        self._weight -= message.weight
        self._finished.append(message)


def _ignore(text: bytes, head: bytes, tag: bytes) -> None:
    """Leave out a line of another program."""
