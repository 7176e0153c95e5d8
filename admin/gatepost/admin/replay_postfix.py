# SPDX-License-Identifier: GPL-3.0-or-later
"""Reads what Postfix' daemons log (3.x, with long or short queue IDs, any instance or syslog_name)."""

from __future__ import annotations

import re
from typing import TYPE_CHECKING, Optional

from gatepost.admin.replay_message import Certificate, Handler, Message, Origin

if TYPE_CHECKING:
    from gatepost.admin.replay_log import Log

_PROCESSES = 10_000
_NO_IDS = frozenset((b"warning", b"error", b"fatal", b"panic", b"statistics"))
_DELIVERY = (b"smtp", b"lmtp", b"local", b"virtual", b"pipe", b"error", b"discard", b"relay", b"retry")
_NAME = rb"([^\s\[\]]*)\[([0-9A-Fa-f.:]+|unknown)\](?::\w+)?"
# An address as Postfix writes it: < and > may stand between quotes only.
_ADDRESS = rb'<([^">]*(?:"(?:[^"\\]|\\.)*"[^">]*)*)>'
_CLIENT = re.compile(
    rb"client=" + _NAME + rb"(?:, sasl_method=[^,]+)?(, sasl_username=.*?)?(?:, sasl_sender=.*?)?"
    rb"(?:, orig_queue_id=(\w+))?(?:, orig_client=" + _NAME + rb")?"
)
_QUEUED = re.compile(rb"from=<(.*)>, size=(\d+), nrcpt=(\d+) \(queue \w+\)")
_TO = re.compile(
    rb"to=" + _ADDRESS + rb"(?:, orig_to=" + _ADDRESS + rb")?, relay=([^,]+), (?:\w+=[^,]*, )*?status=(\w+)(.*)"
)
_QUEUED_AS = re.compile(rb"queued as ([0-9A-Za-z]{6,20})\)+$")
_REJECT = re.compile(
    rb"(?:milter-|proxy-)?reject: ([\w-]+) from " + _NAME + rb': (?:[^"]|"(?:[^"\\]|\\.)*")*?; '
    rb"from=" + _ADDRESS + rb" to=" + _ADDRESS + rb" proto="
)
_PICKUP = re.compile(rb"uid=\d+ from=<(.*?)>( orig_id=\w+)?")
_PEER = re.compile(
    _NAME
    + rb": (?:Trusted: |Verified: |Untrusted: )?subject_CN=(.*), issuer=(.*), (?:cert )?fingerprint=([0-9A-F:]+),.*"
)
_PROXIED = re.compile(rb"proxy-accept: END-OF-MESSAGE: 250 [^;]*queued as ([0-9A-Za-z]{6,20})[;)]")
_OUTCOMES = {b"sent": "sent", b"deferred": "deferred", b"SOFTBOUNCE": "deferred", b"bounced": "bounced"}


class PostfixReader:
    """Takes the lines of Postfix' daemons apart and keeps *log* up to date."""

    def __init__(self, log: Log) -> None:
        self._log = log
        self._proxied: dict[bytes, Origin] = {}
        self._current: dict[bytes, bytes] = {}  # the message that each smtpd process has at hand
        self._programs: dict[bytes, Handler] = {
            b"smtpd": self._smtpd,
            b"cleanup": self._cleanup,
            b"pickup": self._pickup,
            b"qmgr": self._qmgr,
            b"postsuper": self._qmgr,
            **dict.fromkeys(_DELIVERY, self._delivery),
        }

    def handler(self, name: bytes) -> Optional[Handler]:
        """Return what reads the lines of *name*, such as postfix-out/submission/smtpd; None for nothing."""
        _, slash, program = name.rpartition(b"/")
        return self._programs.get(program) if slash else None

    def _smtpd(self, text: bytes, head: bytes, tag: bytes) -> None:
        queue_id, _, rest = text.partition(b": ")
        if rest.startswith(b"client="):
            if queue_id.isalnum() and queue_id not in _NO_IDS:
                self._client(queue_id, rest, head, tag)
        elif text.startswith((b"connect from ", b"disconnect from ")):
            process = self._log.key(head, tag)
            self._log.certificates.pop(process, None)
            self._proxied.pop(process, None)
            self._log.abandon(self._current.pop(process, b""))
        elif b" TLS connection " in text:
            self._tls(text, head, tag)
        elif b"reject: " in rest and queue_id.isalnum():
            self._reject(queue_id, rest, head, tag)
        elif b": subject_CN=" in text:
            found = _PEER.fullmatch(text)
            if found:  # trusted or not: the summary comes next
                certificate = Certificate(False, *map(_text, found.groups()[2:]))
                self._log.remember(self._log.key(head, tag), certificate)
        elif text.startswith(b"proxy-accept: "):
            self._proxy_accept(text, head, tag)

    def _tls(self, text: bytes, head: bytes, tag: bytes) -> None:
        process = self._log.key(head, tag)
        if text.startswith((b"Trusted TLS connection ", b"Verified TLS connection ")):
            known = self._log.certificates.get(process, Certificate())
            self._log.remember(process, known._replace(trusted=True))
        elif text.startswith((b"Untrusted TLS connection ", b"Anonymous TLS connection ")):
            self._log.certificates.pop(process, None)

    def _origin(self, name: bytes, ip: bytes, process: bytes, *, authenticated: bool) -> Origin:
        certificate = self._log.certificates.get(process)
        if certificate is None or not certificate.trusted:
            return Origin(_text(ip), _text(name), authenticated=authenticated)
        return Origin(_text(ip), _text(name), *certificate, authenticated=authenticated)

    def _client(self, queue_id: bytes, rest: bytes, head: bytes, tag: bytes) -> None:
        found = _CLIENT.fullmatch(rest)
        if found is None:
            self._log.unread += 1
            return
        name, ip, sasl, first_id, first_name, first_ip = found.groups()
        process = self._log.key(head, tag)
        origin = self._origin(name, ip, process, authenticated=sasl is not None)
        if queue_id == b"NOQUEUE":  # in front of a proxy filter, which sends the message on
            if len(self._proxied) >= _PROCESSES:
                self._proxied.clear()
            self._proxied[process] = origin
            return
        if first_ip is not None and first_id is None:  # behind one: XFORWARD
            origin = Origin(_text(first_ip), _text(first_name))
        key = self._log.key(head, queue_id)
        self._log.abandon(self._current.get(process, b""))
        if len(self._current) >= _PROCESSES:
            self._current.clear()
        self._current[process] = key
        self._log.begin(key, head, origin).hop = first_id is not None

    def _proxy_accept(self, text: bytes, head: bytes, tag: bytes) -> None:
        origin = self._proxied.get(self._log.key(head, tag))
        found = _PROXIED.match(text)
        message = self._log.get(self._log.key(head, found[1])) if found else None
        if message is not None and origin is not None:
            message.origin = origin

    def _reject(self, queue_id: bytes, rest: bytes, head: bytes, tag: bytes) -> None:
        found = _REJECT.match(rest)
        if found is None:
            self._log.unread += rest.startswith((b"reject: RCPT", b"milter-reject: RCPT"))
            return
        stage, name, ip, sender, rcpt = found.groups()
        key = self._log.key(head, queue_id)
        message = self._log.get(key) if queue_id != b"NOQUEUE" else None
        if message is not None:
            message.sender = sender
            self._log.grow(message.reject(rcpt), message)
            if stage != b"RCPT":
                self._log.finish(key, whole=True)
            return
        origin = self._origin(name, ip, self._log.key(head, tag), authenticated=False)
        message = Message("NOQUEUE", head, origin)
        message.sender = sender
        message.reject(rcpt)
        self._log.give(message)

    def _cleanup(self, text: bytes, head: bytes, tag: bytes) -> None:
        queue_id, _, rest = text.partition(b": ")
        if rest.startswith(b"message-id="):
            key = self._log.key(head, queue_id)
            message = self._log.get(key)
            if message is None or message.taken:  # none of a client, or an ID that comes again
                message = self._log.begin(key, head, None)
                message.made_here = True
            message.received = True
        elif b"reject: " in rest and queue_id.isalnum():
            self._reject(queue_id, rest, head, tag)

    def _pickup(self, text: bytes, head: bytes, tag: bytes) -> None:
        queue_id, _, rest = text.partition(b": ")
        found = _PICKUP.match(rest)
        if found and queue_id.isalnum():
            origin = Origin("127.0.0.1", "sendmail(1)", local=True)
            self._log.begin(self._log.key(head, queue_id), head, origin).hop = found[2] is not None

    def _qmgr(self, text: bytes, head: bytes, tag: bytes) -> None:
        queue_id, _, rest = text.partition(b": ")
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
        elif rest.startswith(b"to=<"):
            self._delivery(text, head, tag)

    def _delivery(self, text: bytes, head: bytes, tag: bytes) -> None:
        queue_id, _, rest = text.partition(b": ")
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
        if b"[127." in relay or b"[::1]" in relay:
            hop = _QUEUED_AS.search(reply)
            if hop:
                self._log.mark_hop(self._log.key(head, hop[1]))


def _text(octets: bytes) -> str:
    return octets.decode("utf-8", "surrogateescape")
