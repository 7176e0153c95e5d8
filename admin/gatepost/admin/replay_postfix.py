# SPDX-License-Identifier: GPL-3.0-or-later
"""Reads what Postfix' daemons log (3.x, with long or short queue IDs, any instance or syslog_name)."""

from __future__ import annotations

import re
from typing import TYPE_CHECKING, Optional

from gatepost.admin.replay_message import Certificate, Handler, Message, Origin, name_text, text

if TYPE_CHECKING:
    from gatepost.admin.replay_log import Log

_PROCESSES = 10_000
_NEXT = 1000
_NEXT_BYTES = 64 << 10
_NO_IDS = frozenset((b"warning", b"error", b"fatal", b"panic", b"statistics"))
_DELIVERY = (b"smtp", b"lmtp", b"local", b"virtual", b"pipe", b"error", b"discard", b"relay", b"retry")
_ACTIONS = (
    *(b"reject: ", b"milter-reject: ", b"proxy-reject: ", b"hold: ", b"milter-hold: "),
    *(b"discard: ", b"milter-discard: ", b"bcc: "),
)
# None of these takes more than a few passes over a line, whatever stands in it.
_NAME = rb"([^\s\[\]]*)\[([0-9A-Fa-f.:]{1,45}|unknown)\](?::\w+)?"
# An address as Postfix writes it: < and > may stand between quotes only.
_ADDRESS = rb'<([^">]*(?:"(?:[^"\\]|\\.)*"[^">]*)*)>'
_CLIENT = re.compile(rb"client=" + _NAME)
_SASL = re.compile(rb"$|(?:, sasl_method=[^,]+)?(?:$|(, sasl_username=)|, sasl_sender=)")
_FORWARDED = re.compile(rb"(?:, orig_queue_id=(\w+))?(?:, orig_client=" + _NAME + rb")?$")
_QUEUED = re.compile(rb"from=<(.*)>, size=(\d{1,18}), nrcpt=(\d{1,9}) \(queue \w+\)")
_TO = re.compile(
    rb"to=" + _ADDRESS + rb"(?:, orig_to=" + _ADDRESS + rb")?, relay=([^,]+), (?:\w+=[^,]*, )*?status=(\w+)(.*)"
)
_NOTICE = re.compile(rb"sender non-delivery notification: ([0-9A-Za-z]{6,20})")
_QUEUED_AS = re.compile(rb"queued as ([0-9A-Za-z]{6,20})\)+$")
_ACTION = re.compile(rb"(?:milter-|proxy-)?(\w+): ([\w-]+) ")
_CONTENT = (b"header", b"body", b"content")
"""What an action of header_checks and the like names where others name the stage."""
_REPLY = re.compile(rb"from " + _NAME + rb': ((?:[^";]|"(?:[^"\\]|\\.)*"|;(?! from=<))*)(?=; from=<)')
_ENVELOPE = re.compile(rb"; from=" + _ADDRESS + rb"(?: to=" + _ADDRESS + rb")? proto=")
_COPY = b" triggers BCC "
_PICKUP = re.compile(rb"uid=\d+ from=<(.*?)>( orig_id=\w+)?")
_PEER = re.compile(_NAME + rb": (?:Trusted: |Verified: |Untrusted: )?subject_CN=")
_FINGERPRINT = re.compile(rb", (?:cert )?fingerprint=([0-9A-F:]{1,200}),")
_PROXIED = re.compile(rb"proxy-accept: END-OF-MESSAGE: 250 [^;]*queued as ([0-9A-Za-z]{6,20})[;)]")
_ENDING = (b"reject", b"discard")
_KEPT = {b"reject": "rejected", b"hold": "held", b"discard": "discarded"}
_OUTCOMES = {b"sent": "sent", b"deferred": "deferred", b"SOFTBOUNCE": "deferred", b"bounced": "bounced"}


class PostfixReader:
    """Takes the lines of Postfix' daemons apart and keeps *log* up to date."""

    def __init__(self, log: Log) -> None:
        self._log = log
        self._proxied: dict[bytes, Origin] = {}
        self._current: dict[bytes, bytes] = {}  # the message that each smtpd process has at hand
        self._next: dict[bytes, Message] = {}  # what is known of the message whose ID each of them logs next
        self._programs: dict[bytes, Handler] = {
            b"smtpd": self._smtpd,
            b"cleanup": self._cleanup,
            b"pickup": self._pickup,
            b"qmgr": self._qmgr,
            b"postsuper": self._qmgr,
            b"bounce": self._bounce,
            **dict.fromkeys(_DELIVERY, self._delivery),
        }

    def handler(self, name: bytes) -> Optional[Handler]:
        """Return what reads the lines of *name*, such as postfix-out/submission/smtpd; None for nothing."""
        _, slash, program = name.rpartition(b"/")
        return self._programs.get(program) if slash else None

    def _smtpd(self, line: bytes, head: bytes, tag: bytes) -> None:
        queue_id, _, rest = line.partition(b": ")
        if rest.startswith(b"client="):
            if queue_id.isalnum() and queue_id not in _NO_IDS:
                self._client(queue_id, rest, head, tag)
        elif line.startswith((b"connect from ", b"disconnect from ")):
            process = self._log.key(head, tag)
            self._log.certificates.pop(process, None)
            self._proxied.pop(process, None)
            self._next.pop(process, None)
            self._log.abandon(self._current.pop(process, b""))
        elif rest.startswith(_ACTIONS) and queue_id.isalnum():
            self._action(queue_id, rest, head, tag)
        elif b" TLS connection " in line:
            self._tls(line, head, tag)
        elif b": subject_CN=" in line:
            self._peer(line, head, tag)
        elif line.startswith(b"proxy-accept: "):
            self._proxy_accept(line, head, tag)

    def _peer(self, line: bytes, head: bytes, tag: bytes) -> None:
        """Take note of a certificate, trusted or not: the summary comes next."""
        begin, fingerprints = _PEER.match(line), list(_FINGERPRINT.finditer(line))
        if begin and fingerprints:  # what the names hold comes before Postfix' own words
            subject, _, issuer = line[begin.end() : fingerprints[-1].start()].rpartition(b", issuer=")
            certificate = Certificate(False, name_text(subject), name_text(issuer), text(fingerprints[-1][1]))
            self._log.remember(self._log.key(head, tag), certificate)

    def _tls(self, line: bytes, head: bytes, tag: bytes) -> None:
        self._log.tls = True
        process = self._log.key(head, tag)
        if line.startswith((b"Trusted TLS connection ", b"Verified TLS connection ")):
            known = self._log.certificates.get(process, Certificate())
            self._log.remember(process, known._replace(trusted=True))
        elif line.startswith((b"Untrusted TLS connection ", b"Anonymous TLS connection ")):
            self._log.certificates.pop(process, None)

    def _origin(self, name: bytes, ip: bytes, process: bytes, *, authenticated: bool) -> Origin:
        certificate = self._log.certificates.get(process)
        if certificate is None or not certificate.trusted:
            return Origin(text(ip), name_text(name), authenticated=authenticated)
        return Origin(text(ip), name_text(name), *certificate, authenticated=authenticated)

    def _client(self, queue_id: bytes, rest: bytes, head: bytes, tag: bytes) -> None:
        found = _CLIENT.match(rest)
        first = _FORWARDED.search(rest, found.end()) if found else None
        sasl = _SASL.match(rest[found.end() : first.start()]) if found and first else None
        if not (found and first and sasl):
            self._log.unread += 1
            return
        first_id, first_name, first_ip = first.groups()
        process = self._log.key(head, tag)
        origin = self._origin(found[1], found[2], process, authenticated=sasl[1] is not None)
        if queue_id == b"NOQUEUE":  # in front of a proxy filter, which sends the message on
            if len(self._proxied) >= _PROCESSES:
                self._proxied.clear()
            self._proxied[process] = origin
            return
        if first_ip is not None and first_id is None:  # behind one: XFORWARD
            origin = Origin(text(first_ip), name_text(first_name))
        key = self._log.key(head, queue_id)
        self._log.abandon(self._current.get(process, b""))
        if len(self._current) >= _PROCESSES:
            self._current.clear()
        self._current[process] = key
        message = self._log.begin(key, head, origin)
        message.hop = first_id is not None
        known = self._next.pop(process, None)
        if known:
            message.sender, message.kept, message.added = known.sender, known.kept, known.added
            self._log.grow(known.weight, message)

    def _proxy_accept(self, line: bytes, head: bytes, tag: bytes) -> None:
        origin = self._proxied.get(self._log.key(head, tag))
        found = _PROXIED.match(line)
        message = self._log.get(self._log.key(head, found[1])) if found else None
        if message is not None and origin is not None:
            message.origin = origin

    def _action(self, queue_id: bytes, rest: bytes, head: bytes, tag: bytes) -> None:
        """Take note of what an access table, header_checks or a milter does about a message or recipient."""
        action = _ACTION.match(rest)
        if action is None:
            return
        verb, stage = action.groups()
        key, process = self._log.key(head, queue_id), self._log.key(head, tag)
        if stage in _CONTENT:  # what comes next is the client's word, up to the envelope
            reply, envelope = None, _ENVELOPE.match(rest, max(rest.rfind(b"; from=<"), 0))
        else:
            reply = _REPLY.match(rest, action.end())
            envelope = _ENVELOPE.match(rest, reply.end()) if reply else None
        if envelope is None:
            self._log.unread += stage in (b"RCPT", *_CONTENT)
            return
        copy = rest.rpartition(b": ")[2] if reply is None else reply[3].rpartition(_COPY)[2]
        if queue_id == b"NOQUEUE":
            message = None
        else:
            message = self._log.get(key) if verb in _ENDING and reply else self._log.either(key, head)
        if message is not None:
            self._log.grow(_note(message, verb, envelope, copy), message)
            if verb == b"discard" or (verb == b"reject" and stage != b"RCPT"):
                self._log.finish(key, whole=True)
        elif verb in _ENDING and reply and envelope[2] is not None:
            origin = self._origin(reply[1], reply[2], process, authenticated=False)
            message = Message("NOQUEUE", head, origin)
            _note(message, verb, envelope, copy)
            self._log.give(message)
            if process in self._next:
                self._next[process].kept.pop(envelope[2], None)
        elif verb not in _ENDING:
            if len(self._next) >= _NEXT:
                self._next.clear()
            known = self._next.setdefault(process, Message("", b""))
            if known.weight < _NEXT_BYTES:
                known.weight += _note(known, verb, envelope, copy)

    def _cleanup(self, line: bytes, head: bytes, tag: bytes) -> None:
        queue_id, _, rest = line.partition(b": ")
        if rest.startswith(b"message-id="):
            key = self._log.key(head, queue_id)
            message = self._log.get(key)
            if message is None or message.taken:  # none of a client, or an ID that comes again
                message = self._log.begin(key, head, None)
                message.made_here = True
            message.received = True
        elif rest.startswith(_ACTIONS) and queue_id.isalnum():
            self._action(queue_id, rest, head, tag)

    def _pickup(self, line: bytes, head: bytes, tag: bytes) -> None:
        queue_id, _, rest = line.partition(b": ")
        found = _PICKUP.match(rest)
        if found and queue_id.isalnum():
            origin = Origin("127.0.0.1", "sendmail(1)", local=True)
            self._log.begin(self._log.key(head, queue_id), head, origin).hop = found[2] is not None

    def _qmgr(self, line: bytes, head: bytes, tag: bytes) -> None:
        queue_id, _, rest = line.partition(b": ")
        key = self._log.key(head, queue_id)
        if rest == b"removed":
            self._log.finish(key, whole=True)
        elif rest.startswith(b"from=<"):
            found = _QUEUED.fullmatch(rest)
            if found:
                message = self._log.either(key, head)
                if message.sender is None:
                    message.sender = found[1]
                    self._log.grow(len(found[1]), message)
                message.size_bytes = int(found[2])
                message.taken = int(found[3])
            else:  # "status=expired, returned to sender" comes after the other form
                self._log.unread += b">, status=" not in rest
        elif rest.startswith(b"to=<"):
            self._delivery(line, head, tag)

    def _delivery(self, line: bytes, head: bytes, tag: bytes) -> None:
        queue_id, _, rest = line.partition(b": ")
        if not rest.startswith(b"to=<"):
            return
        found = _TO.fullmatch(rest)
        if found is None:
            self._log.unread += 1
            return
        address, given, relay, status, reply = found.groups()
        if status not in _OUTCOMES:  # a probe for address verification
            return
        message = self._log.either(self._log.key(head, queue_id), head)
        self._log.grow(message.outcome(address, given, _OUTCOMES[status]), message)
        message.denied |= status == b"bounced" and b", dsn=5.7.64, " in rest[found.end(3) : found.start(4)]
        if b"[127." in relay or b"[::1]" in relay:
            hop = _QUEUED_AS.search(reply)
            if hop:
                self._log.mark_hop(self._log.key(head, hop[1]))

    def _bounce(self, line: bytes, head: bytes, tag: bytes) -> None:
        queue_id, _, rest = line.partition(b": ")
        found = _NOTICE.fullmatch(rest)
        message, notice = (self._log.get(self._log.key(head, name)) for name in (queue_id, found[1] if found else b""))
        if message is not None and notice is not None:
            notice.about_denied = message.denied


def _note(message: Message, verb: bytes, envelope: re.Match[bytes], copy: bytes) -> int:
    """Enter what was done into *message*; return by how much it has grown, in bytes."""
    if verb == b"bcc":
        return message.add(copy)
    sender, rcpt = envelope.groups()
    message.sender = sender
    return len(sender) + (message.keep(rcpt, _KEPT[verb]) if rcpt is not None else 0)
