# SPDX-License-Identifier: GPL-3.0-or-later
"""Boots examples/postfix/forwarder on a Postfix that serves contoso.com, for the tests in this folder."""

from __future__ import annotations

import re
from collections.abc import Iterator
from contextlib import AbstractContextManager, contextmanager
from pathlib import Path
from typing import Callable, Optional

import pytest
from stages import left, logs_of_running, logs_reported, only_mail

from gatepost.admin.nexthop import Received
from gatepost.admin.sandbox import temporary_root
from gatepost.admin.stage import Stage, Transcript

EXAMPLE = Path(__file__).parents[3] / "examples/postfix/forwarder"

# The server that gatepost is added to. Users games and list are on every Debian system.
SERVER = """
mydestination = mail.contoso.com, localhost, contoso.com
mynetworks = 127.0.0.0/8, 192.0.2.0/28
alias_maps = inline:{
  {john.alias = john.alias.home@example.com}
  {sales = one@example.com, two@example.net}
  {desk = list, desk.home@example.com}}
"""
VIRTUAL = """
john.work@contoso.com john.home@example.com
carla@contoso.com carla.home@example.net
jörg@contoso.com joerg.home@example.com
"""
FORWARD_OF_GAMES = "games.home@example.com\n"

MESSAGE = (
    b"From: Bob <bob@fabrikam.com>\r\nTo: John <john.work@contoso.com>\r\nSubject: lunch\r\n"
    b"Message-Id: <1@fabrikam.com>\r\nDate: Sat, 1 Aug 2026 12:00:00 +0200\r\n\r\nhello\r\n"
)


class Forwarder:
    """The booted example. *stage* has all of it; the methods are what these tests do again and again."""

    def __init__(self, stage: Stage) -> None:
        self.stage = stage

    def bob_writes(self, *rcpt: str, message: bytes = MESSAGE, sender: str = "bob@fabrikam.com", **options: str) -> str:
        """Send a message from Bob's server, an outside one; return its queue ID."""
        transcript = self.attempt(*rcpt, message=message, sender=sender, **options)
        assert transcript.accepted, transcript
        assert all(reply.code == 250 for reply in transcript.rcpt), transcript
        return transcript.queue_id

    def attempt(
        self, *rcpt: str, message: bytes = MESSAGE, sender: str = "bob@fabrikam.com", **options: str
    ) -> Transcript:
        return self.stage.send(sender, rcpt, message, client=options.pop("client", "198.51.100.7"), **options)

    def left(self) -> list[tuple[str, str]]:
        """Return P1 and recipient of all that has left, once the queue is at rest. See `stages.shape`."""
        return left(self.stage)

    def only_mail(self) -> Received:
        """Return the one message that has left."""
        return only_mail(self.stage)

    def inside(self, user: str) -> list[str]:
        """Return the P1 of each message in the mailbox of *user*, once the queue is at rest."""
        self.stage.postfix.wait_until_idle()
        path = self.stage.postfix.mailboxes / user
        return re.findall(r"(?m)^Return-Path: <(.*)>$", path.read_text() if path.exists() else "")

    def wait_until_deferred(self, count: int = 1) -> list[dict[str, object]]:
        """Return the queue once it is at rest, with *count* messages that wait in it."""
        self.stage.postfix.wait_until_idle()
        waiting = self.stage.postfix.queue()
        assert len(waiting) == count, waiting
        return waiting

    def change(self, *settings: str) -> None:
        """Set main.cf parameters, `name=value`, reload Postfix and try all waiting mail again."""
        for setting in settings:
            self.stage.postfix.postconf("-e", setting)
        self.stage.postfix.reload()
        self.stage.postfix.flush()

    @contextmanager
    def without_milter(self) -> Iterator[None]:
        """Take the milter's socket away for a while."""
        socket = self.stage.postfix.queue_directory / "gatepost/milter.sock"
        socket.rename(socket.with_suffix(".away"))
        try:
            yield
        finally:
            socket.with_suffix(".away").rename(socket)

    def forget(self) -> None:
        """Empty what the last test left: mailboxes and the next hop's memory. The queue must be empty."""
        self.stage.postfix.wait_until_idle()
        assert self.stage.postfix.queue() == []
        self.stage.internet.messages.clear()
        self.stage.internet.refuse.clear()
        for mailbox in self.stage.postfix.mailboxes.iterdir():
            mailbox.unlink()


Boot = Callable[..., "AbstractContextManager[Forwarder]"]


@pytest.fixture(scope="session")
def boot_forwarder() -> Boot:
    """Return a function that boots the example; before, after, master_before, configuration, tls: see Stage."""

    @contextmanager
    def booted(
        *,
        before: str = "",
        after: str = "",
        master_before: str = "",
        configuration: Optional[Callable[[str], str]] = None,
        tls: bool = False,
    ) -> Iterator[Forwarder]:
        with temporary_root() as root:
            stage = Stage(
                EXAMPLE,
                root / "s",
                before=SERVER + before,
                after=after,
                master_before=master_before,
                configuration=configuration or (lambda text: text),
                tls=tls,
            )
            with stage:
                virtual = stage.postfix.config_directory / "virtual"
                virtual.write_text(VIRTUAL)
                stage.postfix.postmap(virtual)
                (stage.postfix.forward_files / "games").write_text(FORWARD_OF_GAMES)
                with logs_reported(stage):
                    try:
                        yield Forwarder(stage)
                    except BaseException:  # a test that boots for itself: when its report is made the logs are gone
                        for title, text in logs_of_running():
                            print(f"--- log of {title}\n{text}")
                        raise

    return booted
