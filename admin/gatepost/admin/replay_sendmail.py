# SPDX-License-Identifier: GPL-3.0-or-later
"""Reads what Sendmail 8 logs (LogLevel 9; names of certificates from LogLevel 12 on)."""

from __future__ import annotations

import re
from typing import TYPE_CHECKING, Optional

from gatepost.admin.replay_message import ALIAS, Certificate, Handler, Origin, name_text, text
from gatepost.service.addresses import decode_xtext

if TYPE_CHECKING:
    from gatepost.admin.replay_log import Log

# None of these takes more than a few passes over a line, whatever stands in it.
_FROM = re.compile(rb"from=(.*?), size=(\d{1,18}), class=-?\d+, nrcpts=(\d{1,9}),")
_TO = re.compile(rb"to=(.*?), (?:ctladdr|delay)=")
_DSN = re.compile(rb", dsn=([245])\.[\d.]+, (reply|stat)=")
_ADDRESSES = re.compile(rb'<((?:[^<>"]|"(?:[^"\\]|\\.)*")*)>|([^,<>\s]+)|(<.*)')
_RELAY = re.compile(rb"(?:(\S+) )?\[(?:IPv6:)?([0-9A-Fa-f.:]{1,45})\](?: \(may be forged\))?")
_CHECK = re.compile(rb"ruleset=check_rcpt, arg1=(.*?), relay=[^,]*, reject=[45]")
_MILTER = re.compile(rb"Milter: to=(.*?), reject=[45]")
_TLS = re.compile(rb"STARTTLS=server, relay=(.*?), version=[^,]*, verify=(\w+),")
_SUBJECT = b"STARTTLS=server, cert-subject="
_COMMON_NAME = re.compile(rb"/CN=([^/]*)")
_AUTH = re.compile(rb"AUTH=server, relay=(.*?), authid=")
_LONGEST_RELAY = 300
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

    def _line(self, line: bytes, head: bytes, tag: bytes) -> None:
        if line.startswith((b"STARTTLS=server", b"AUTH=server")):
            self._session(line, head, tag)
            return
        queue_id, _, rest = line.partition(b": ")
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
                self._log.grow(message.keep(_bare(found[1]), "rejected"), message)
        elif rest.startswith(b"done; "):
            self._log.finish(self._log.key(head, queue_id), whole=True)
        else:
            found = _NOTICE.match(rest)
            if found:
                notice = self._log.begin(self._log.key(head, found[1]), head, None)
                notice.made_here, notice.sender = True, b""
                about = self._log.get(self._log.key(head, queue_id))
                notice.about_denied = about is not None and about.denied

    def _forget(self, process: bytes) -> None:
        self._log.certificates.pop(process, None)
        self._authenticated.pop(process, None)
        self._relays.pop(process, None)

    def _session(self, line: bytes, head: bytes, tag: bytes) -> None:
        """Take note of TLS and SASL; they stand before the messages of the same process, which serves one client."""
        self._log.tls |= line.startswith(b"STARTTLS")
        process = self._log.key(head, tag)
        tls, auth = _TLS.match(line), _AUTH.match(line)
        if max(len(self._relays), len(self._authenticated)) > 10_000:
            self._relays.clear()
            self._authenticated.clear()
        if tls:
            self._relays[process] = tls[1][:_LONGEST_RELAY]
            self._log.remember(process, Certificate(tls[2] == b"OK"))
        elif auth:
            self._authenticated[process] = auth[1][:_LONGEST_RELAY]
        elif line.startswith(_SUBJECT) and process in self._log.certificates:
            names, _, verified = line[len(_SUBJECT) :].rpartition(b", verifymsg=")
            subject, _, issuer = names.rpartition(b", cert-issuer=")
            if verified.startswith(b"ok"):
                known = self._log.certificates[process]
                known = known._replace(common_name=_common_name(subject), issuer=_common_name(issuer))
                self._log.remember(process, known)

    def _from(self, queue_id: bytes, rest: bytes, head: bytes, tag: bytes) -> None:
        found = _FROM.match(rest)
        middle, sep, relay = rest[found.end() :].rpartition(b", relay=") if found else (b"", b"", b"")
        if not found or not sep:
            self._log.unread += 1
            return
        sender, size, taken = found.groups()
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
        name, ip = name_text(found[1] or b""), text(found[2])
        relay = relay[:_LONGEST_RELAY]
        authenticated = self._authenticated.get(process) == relay
        certificate = self._log.certificates.get(process)
        if certificate and certificate.trusted and self._relays.get(process) == relay:
            return Origin(ip, name, *certificate, authenticated=authenticated)
        trusted = b", tls_verify=OK," in middle + b","
        return Origin(ip, name, trusted=trusted, authenticated=authenticated)

    def _to(self, queue_id: bytes, rest: bytes, head: bytes) -> None:
        named_to = _TO.match(rest)
        found = _DSN.search(rest, named_to.end()) if named_to else None
        if named_to is None or found is None:
            self._log.unread += b", stat=" in rest
            return
        middle, reply = rest[named_to.end() : found.start()], rest[found.end() :]
        if found[2] == b"reply":
            reply = reply.partition(b", stat=")[2]
        message = self._log.either(self._log.key(head, queue_id), head)
        message.denied |= found[0].startswith(b", dsn=5.7.64, ")
        local = message.origin is not None and message.origin.local
        for named, plain, broken in _ADDRESSES.findall(named_to[1]):
            if broken:
                self._log.unread += 1
                continue
            # What a client named stands in <>, what an alias here made of it does not.
            given = None if named or local else ALIAS
            self._log.grow(message.outcome(named or plain, given, _OUTCOMES[found[1]]), message)
        accepted = _ACCEPTED.match(reply)
        if accepted and local and b"[127.0.0.1]" in middle:
            message.hop = True  # the submission program hands it to the daemon on this host, which has it as its own


def _bare(path: bytes) -> bytes:
    return path[1:-1] if path.startswith(b"<") and path.endswith(b">") else path


def _common_name(distinguished_name: bytes) -> str:
    names = _COMMON_NAME.findall(distinguished_name)
    return decode_xtext(name_text(names[-1])) if names else ""
