# SPDX-License-Identifier: GPL-3.0-or-later
"""Reads what Sendmail 8 logs (LogLevel 9; names of certificates from LogLevel 12 on)."""

from __future__ import annotations

import re
from typing import TYPE_CHECKING, Optional

from gatepost.admin.replay_message import ALIAS, Certificate, Handler, Origin
from gatepost.service.addresses import decode_xtext

if TYPE_CHECKING:
    from gatepost.admin.replay_log import Log

_FROM = re.compile(rb"from=(.*?), size=(\d+), class=-?\d+, nrcpts=(\d+),(.*), relay=(.*)")
_TO = re.compile(
    rb"to=(.*?), (?:ctladdr=.*?, )?delay=[\d:+]+, (.*?)dsn=([245])\.[\d.]+, "
    rb"(?:reply=.*?, )?stat=(.*)"
)
_ADDRESSES = re.compile(rb'<((?:[^<>"]|"(?:[^"\\]|\\.)*")*)>|([^,<>\s]+)')
_RELAY = re.compile(rb"(?:(\S+) )?\[(?:IPv6:)?([0-9A-Fa-f.:]+)\](?: \(may be forged\))?")
_CHECK = re.compile(rb"ruleset=check_rcpt, arg1=(.*?), relay=[^,]*, reject=[45]")
_MILTER = re.compile(rb"Milter: to=(.*?), reject=[45]")
_TLS = re.compile(rb"STARTTLS=server, relay=(.*?), version=[^,]*, verify=(\w+),")
_SUBJECT = re.compile(rb"STARTTLS=server, cert-subject=(.*), cert-issuer=(.*), verifymsg=ok")
_COMMON_NAME = re.compile(rb"/CN=([^/]*)")
_AUTH = re.compile(rb"AUTH=server, relay=(.*?), authid=")
_NOTICE = re.compile(rb"(\w+): (?:DSN|return to sender|return receipt|(?:postmaster|sender) notify):")
_OUTCOMES = {b"2": "sent", b"4": "deferred", b"5": "bounced"}
_ACCEPTED = re.compile(rb"Sent \((\w+) Message accepted for delivery\)")


class SendmailReader:
    """Takes the lines of Sendmail's processes apart and keeps *log* up to date."""

    def __init__(self, log: Log) -> None:
        self._log = log
        self._authenticated: dict[bytes, bytes] = {}
        self._relays: dict[bytes, bytes] = {}

    def handler(self, name: bytes) -> Optional[Handler]:
        """Return what reads the lines of *name*: sendmail, sm-mta, sm-msp-queue."""
        return self._line if name.startswith((b"sendmail", b"sm-")) and b"/" not in name else None

    def _line(self, text: bytes, head: bytes, tag: bytes) -> None:
        if text.startswith((b"STARTTLS=server", b"AUTH=server")):
            self._session(text, head, tag)
            return
        queue_id, _, rest = text.partition(b": ")
        if not queue_id.isalnum():
            return
        if queue_id == b"NOQUEUE":
            if rest.startswith(b"connect from "):
                self._forget(self._log.key(head, tag))
        elif rest.startswith(b"from="):
            self._from(queue_id, rest, head, tag)
        elif rest.startswith(b"to="):
            self._to(queue_id, rest, head)
        elif rest.startswith((b"ruleset=check_rcpt", b"Milter: to=")):
            found = _CHECK.match(rest) or _MILTER.match(rest)
            if found:
                message = self._log.either(self._log.key(head, queue_id), head)
                self._log.grow(message.reject(_bare(found[1])), message)
        elif rest.startswith(b"done; "):
            self._log.finish(self._log.key(head, queue_id), whole=True)
        else:
            found = _NOTICE.match(rest)
            if found:
                notice = self._log.begin(self._log.key(head, found[1]), head, None)
                notice.made_here, notice.sender = True, b""

    def _forget(self, process: bytes) -> None:
        self._log.certificates.pop(process, None)
        self._authenticated.pop(process, None)
        self._relays.pop(process, None)

    def _session(self, text: bytes, head: bytes, tag: bytes) -> None:
        """Take note of TLS and SASL; they stand before the messages of the same process, which serves one client."""
        process = self._log.key(head, tag)
        tls, subject, auth = _TLS.match(text), _SUBJECT.match(text), _AUTH.match(text)
        if max(len(self._relays), len(self._authenticated)) > 10_000:
            self._relays.clear()
            self._authenticated.clear()
        if tls:
            self._relays[process] = tls[1]
            self._log.remember(process, Certificate(tls[2] == b"OK"))
        elif auth:
            self._authenticated[process] = auth[1]
        elif subject and process in self._log.certificates:
            name, issuer = map(_common_name, subject.groups())
            known = self._log.certificates[process]
            self._log.remember(process, known._replace(common_name=name, issuer=issuer))

    def _from(self, queue_id: bytes, rest: bytes, head: bytes, tag: bytes) -> None:
        found = _FROM.fullmatch(rest)
        if found is None:
            self._log.unread += 1
            return
        sender, size, taken, middle, relay = found.groups()
        key = self._log.key(head, queue_id)
        message = self._log.either(key, head)
        if message.sender is not None:  # the ID comes again
            message = self._log.begin(key, head, None)
        message.origin = self._origin(relay, middle, self._log.key(head, tag))
        message.sender = _bare(sender)
        message.size_bytes = int(size)
        message.taken = int(taken)
        self._log.grow(len(sender), message)
        if not message.taken:
            self._log.finish(key, whole=True)

    def _origin(self, relay: bytes, middle: bytes, process: bytes) -> Origin:
        found = _RELAY.fullmatch(relay)
        if found is None:  # user@localhost
            return Origin("127.0.0.1", "sendmail(1)", local=True)
        name, ip = _text(found[1] or b""), _text(found[2])
        authenticated = self._authenticated.get(process) == relay
        certificate = self._log.certificates.get(process)
        if certificate and certificate.trusted and self._relays.get(process) == relay:
            return Origin(ip, name, *certificate, authenticated=authenticated)
        trusted = b", tls_verify=OK," in middle + b","
        return Origin(ip, name, trusted=trusted, authenticated=authenticated)

    def _to(self, queue_id: bytes, rest: bytes, head: bytes) -> None:
        found = _TO.fullmatch(rest)
        if found is None:
            self._log.unread += b", stat=" in rest
            return
        addresses, middle, digit, reply = found.groups()
        message = self._log.either(self._log.key(head, queue_id), head)
        local = message.origin is not None and message.origin.local
        for named, plain in _ADDRESSES.findall(addresses):
            # What a client named stands in <>, what an alias here made of it does not.
            given = None if named or local else ALIAS
            self._log.grow(message.outcome(named or plain, given, _OUTCOMES[digit]), message)
        accepted = _ACCEPTED.match(reply)
        if accepted and local and b"[127.0.0.1]" in middle:
            message.hop = True  # the submission program hands it to the daemon on this host, which has it as its own


def _bare(path: bytes) -> bytes:
    return path[1:-1] if path.startswith(b"<") and path.endswith(b">") else path


def _common_name(distinguished_name: bytes) -> str:
    names = _COMMON_NAME.findall(distinguished_name)
    return decode_xtext(_text(names[-1])) if names else ""


def _text(octets: bytes) -> str:
    return octets.decode("utf-8", "surrogateescape")
