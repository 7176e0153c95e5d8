# SPDX-License-Identifier: GPL-3.0-or-later
"""Targets: mail logs that are replayed."""

from __future__ import annotations

import bz2
import contextlib
import gzip
import io
import json
import lzma
import re
from collections.abc import Iterable, Iterator, Sequence
from pathlib import Path

from gatepost.admin import replay_json, replay_output
from gatepost.admin.replay_files import LONGEST_LINE, LogUnreadableError, chunks
from gatepost.admin.replay_log import Log
from gatepost.admin.replay_message import Message
from gatepost.admin.replay_tally import Tally

from .addresses import NOW, snapshot
from .engine import Target, seldom

_DATA = Path(__file__).parent.parent / "data/replay"
_BLOCK = 6
_LINES = 240
_PRINTED = 100
"""Of so many inputs the output of one is looked at, which takes long."""


def _target(name: str, files: Sequence[str], folder: Path, tokens: Sequence[bytes]) -> Target:
    path, style = folder / "mail.log", snapshot()
    # The texts of a message stand near each other; a few lines in the form of journalctl's short-iso.
    samples = []
    for file in files:
        lines = (_DATA / file).read_bytes().splitlines(keepends=True)
        samples += [b"".join(lines[at : at + _BLOCK]) for at in range(0, min(len(lines), _LINES), _BLOCK)]
    samples.append(samples[0].replace(b"Nov 22 07:", b"2026-11-22T07:"))
    oracle = (
        "messages, the same in whatever pieces the lines come; sums that agree; the report and its JSON without a "
        "character that a terminal obeys"
    )

    def check(octets: bytes) -> str:
        lines = octets.split(b"\n")
        if seldom(octets) or max(map(len, lines)) > LONGEST_LINE:
            path.write_bytes(octets)
            lines = [line for some in chunks([str(path)], lambda size: None, lambda: None) for line in some]
            assert max(map(len, lines), default=0) <= LONGEST_LINE
        log = Log()
        messages = [*log.feed(lines), *log.end()]
        whole = _shown(messages)
        if seldom(octets):
            assert whole == _shown(_one_by_one(lines)), "it counts in which pieces lines come"
        tally = Tally(style)
        for message in messages:
            tally.add(message, NOW)
        assert tally.recipients >= tally.messages >= 0
        assert log.unread <= log.mail_lines <= log.lines == len(lines)
        if seldom(octets, _PRINTED):
            _printed(log, tally)
        outcomes = {outcome for message in messages for outcome in message.outcomes.values()}
        return f"{min(len(whole), 4)} {min(log.unread, 3)} {sorted(outcomes)}"

    return Target(name, "mail logs", oracle, check, samples, tokens, longest=1 << 20)


def _one_by_one(lines: Sequence[bytes]) -> Iterator[Message]:
    log = Log()
    for line in lines:
        yield from log.feed([line])
    yield from log.end()


def _shown(messages: Iterable[Message]) -> list[tuple[object, ...]]:
    return [
        (item.queue_id, item.origin, item.sender, item.size_bytes, item.taken, item.whole, item.hop, item.outcomes)
        for item in messages
    ]


def _printed(log: Log, tally: Tally) -> None:
    json.loads(replay_json.as_json(log, tally, 5))
    told = io.StringIO()
    with contextlib.redirect_stdout(told):
        replay_output.print_all(log, tally, 5)
    for line in told.getvalue().split("\n"):
        assert line.isprintable(), f"a terminal obeys: {line!r}"


def postfix(folder: Path) -> Target:
    tokens = [
        *(
            b": client=",
            b": from=<",
            b">, size=",
            b", nrcpt=1 (queue active)",
            b": removed",
            b": to=<",
            b", status=sent (",
        ),
        *(
            b", relay=",
            b"NOQUEUE: reject: RCPT from ",
            b": hold: ",
            b"; from=<",
            b"> to=<",
            b"> proto=",
            b"]: ",
            b" postfix/smtpd[1]",
        ),
        *(
            b"status=bounced (",
            b", dsn=5.7.64, ",
            b"queued as ",
            b", sasl_username=",
            b": subject_CN=",
            b", issuer=",
            b" triggers BCC ",
        ),
        *(
            b"127.0.0.1",
            b"Trusted TLS connection ",
            b"proxy-accept: END-OF-MESSAGE: 250 ",
            b"sender non-delivery notification: ",
        ),
    ]
    return _target("postfix-log", ["certificates.log", "filters.log", "long-ids.log"], folder, tokens)


def sendmail(folder: Path) -> Target:
    tokens = [
        *(
            b": from=<",
            b", size=",
            b", class=0, nrcpts=1,",
            b", relay=",
            b": to=<",
            b", delay=",
            b", dsn=5.7.64, reply=",
            b", stat=",
        ),
        *(
            b"STARTTLS=server, relay=",
            b", verify=OK,",
            b", cert-subject=/CN=",
            b", cert-issuer=/CN=",
            b", verifymsg=ok",
            b"+2F",
        ),
        *(
            b"AUTH=server, relay=",
            b", authid=",
            b": DSN: ",
            b"done; ",
            b"Milter: to=",
            b", reject=550",
            b"ruleset=check_rcpt, arg1=",
        ),
        *(b" (may be forged)", b"[IPv6:2001:db8::1]", b"localhost", b", ctladdr=", b" sendmail[1]: ", b" sm-mta[1]: "),
    ]
    return _target("sendmail-log", ["sendmail.log"], folder, tokens)


def compressed(folder: Path) -> Target:
    text = (_DATA / "sendmail.log").read_bytes()
    ways = {".gz": gzip.compress(text, mtime=0), ".bz2": bz2.compress(text), ".xz": lzma.compress(text)}
    samples = [*ways.values(), gzip.compress(b"x" * (1 << 20), mtime=0), lzma.compress(bytes(1 << 20))]
    oracle = "lines of bounded length, or one line that says which file cannot be read"

    def check(octets: bytes) -> str:
        ending = {b"\x1f": ".gz", b"B": ".bz2", b"\xfd": ".xz"}.get(octets[:1], list(ways)[len(octets) % 3])
        path = folder / f"mail.log{ending}"
        path.write_bytes(octets)
        try:
            longest = max((len(line) for some in chunks([str(path)], _ignore, _ignore) for line in some), default=0)
        except LogUnreadableError as error:
            return ending + re.sub(r"0x\w+|[(].*", "", str(error)[len(str(path)) :])
        if longest > LONGEST_LINE:
            raise AssertionError(f"a line of {longest} octets")
        return f"{ending} lines"

    return Target("compressed-log", "mail logs that are compressed", oracle, check, samples, longest=1 << 20)


def _ignore(*_: object) -> None:
    """Take no note of progress."""


TARGETS = {"postfix-log": postfix, "sendmail-log": sendmail, "compressed-log": compressed}
