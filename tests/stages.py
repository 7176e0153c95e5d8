# SPDX-License-Identifier: GPL-3.0-or-later
"""What the end-to-end tests share: what has left a stage, and the logs of those that run, for a failure's report."""

from __future__ import annotations

import re
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Callable

from gatepost.admin.nexthop import Received
from gatepost.admin.stage import Stage

NDR = (
    b"From: MAILER-DAEMON@mx.example.com\r\nTo: bob@fabrikam.com\r\nSubject: Undelivered Mail\r\n"
    b"Message-Id: <9@mx.example.com>\r\nDate: Sat, 1 Aug 2026 12:00:01 +0200\r\n\r\nno such user\r\n"
)
"""A non-delivery report that another site makes of Bob's forwarded mail."""
_LINES = 60
_running: list[Callable[[], dict[str, str]]] = []


@contextmanager
def logs_reported(stage: Stage, **more: Callable[[], str]) -> Iterator[None]:
    """Have the logs of *stage* in the reports of what fails inside; *more*: those of other programs, by name."""

    def logs() -> dict[str, str]:
        found = {"gatepost": stage.log(), "Postfix": stage.postfix.log()}
        found.update({name: log() for name, log in more.items()})
        return {f"{stage.root.name}: {name}": "\n".join(text.splitlines()[-_LINES:]) for name, text in found.items()}

    _running.append(logs)
    try:
        yield
    finally:
        _running.remove(logs)


def logs_of_running() -> Iterator[tuple[str, str]]:
    """Yield the name and the end of each log of the stages that run."""
    for logs in _running:
        yield from logs().items()


def left(stage: Stage) -> list[tuple[str, str]]:
    """Return P1 and recipient of all that has left, once the queue is at rest. See `shape`."""
    stage.postfix.wait_until_idle()
    return sorted((shape(mail.mail_from), rcpt) for mail in stage.internet.messages for rcpt in mail.rcpt_to)


def only_mail(stage: Stage) -> Received:
    """Return the one message that has left."""
    stage.postfix.wait_until_idle()
    (mail,) = stage.internet.messages
    return mail


def shape(address: str) -> str:
    """Return *address* with HASH and TT for the hash and the timestamp of an SRS address."""
    return re.sub(r"\+SRS=[a-z2-7]{8}=[A-Z2-7]{2}=", "+SRS=HASH=TT=", address)
