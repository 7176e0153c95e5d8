# SPDX-License-Identifier: GPL-3.0-or-later
"""Boots examples/postfix/forwarder with Dovecot behind it, whose users redirect mail with Sieve."""

from __future__ import annotations

import re
from collections.abc import Iterator
from contextlib import AbstractContextManager, contextmanager
from pathlib import Path
from typing import Any, Callable

import peers
import pytest
from stages import left, logs_reported, only_mail

from gatepost.admin.nexthop import Received
from gatepost.admin.sandbox import temporary_root
from gatepost.admin.stage import Stage

EXAMPLE = Path(__file__).parents[3] / "examples/postfix/forwarder"
SERVER = """
mydestination = mail.contoso.com, localhost, contoso.com
mynetworks = 127.0.0.0/8, 192.0.2.0/28
recipient_delimiter = +
local_recipient_maps =
mailbox_transport = lmtp:inet:127.0.0.1:@PORT@
alias_maps = inline:{
  {john.alias = john.alias.home@example.com}
  {helpdesk = carol}}
"""
SCRIPTS = {
    "carol": 'redirect "carol.home@example.com";\n',
    "dave": 'require "copy"; redirect :copy "dave.home@example.com";\n',
    "erin": 'redirect "carol@contoso.com";\n',
    "frank": 'redirect "john.alias@contoso.com";\n',
    "grace": 'redirect "one@example.com"; redirect "two@example.net";\n',
    "heidi": "keep;\n",
}
MESSAGE = (
    b"From: Bob <bob@fabrikam.com>\r\nTo: Carol <carol@contoso.com>\r\nSubject: lunch\r\n"
    b"Message-Id: <@N@@fabrikam.com>\r\nDate: Sat, 1 Aug 2026 12:00:00 +0200\r\n\r\nhello\r\n"
)
"""Dovecot drops a message with a Message-Id that it has redirected already, so each one here gets its own."""


class SieveHost:
    """The booted example with Dovecot: *stage* and *dovecot*."""

    def __init__(self, stage: Stage, dovecot: peers.Dovecot) -> None:
        self.stage = stage
        self.dovecot = dovecot
        self._sent = 0

    def message(self, above: bytes = b"") -> bytes:
        """Return a message with the header lines *above* on top."""
        self._sent += 1
        return above + MESSAGE.replace(b"@N@", b"%d" % self._sent)

    def bob_writes(self, *rcpt: str, above: bytes = b"", sender: str = "bob@fabrikam.com", **options: Any) -> str:
        """Send a message from Bob's server, an outside one; return its queue ID."""
        client = options.pop("client", "198.51.100.7")
        transcript = self.stage.send(sender, rcpt, self.message(above), client=client, **options)
        assert transcript.accepted, transcript
        return transcript.queue_id

    def left(self) -> list[tuple[str, str]]:
        """Return P1 and recipient of all that has left, once the queue is at rest; see `stages.shape`."""
        return left(self.stage)

    def only_mail(self) -> Received:
        """Return the one message that has left."""
        return only_mail(self.stage)

    def inside(self, user: str) -> list[str]:
        """Return the P1 of each message that Dovecot has kept for *user*, once the queue is at rest."""
        self.stage.postfix.wait_until_idle()
        kept = sorted((self.dovecot.root / "home" / user / "mail/new").glob("*"))
        return [re.findall(r"(?m)^Return-Path: <(.*)>$", path.read_text())[0] for path in kept]

    def forget(self) -> None:
        """Empty what the last test left. The queue must be empty."""
        self.stage.postfix.wait_until_idle()
        assert self.stage.postfix.queue() == []
        self.stage.internet.messages.clear()
        self.stage.internet.refuse.clear()
        for path in self.dovecot.root.glob("home/*/mail/new/*"):
            path.unlink()


Boot = Callable[..., "AbstractContextManager[SieveHost]"]


@pytest.fixture(scope="session")
def boot_sieve() -> Boot:
    """Return a function that boots it; after: main.cf lines that win over the example's."""

    @contextmanager
    def booted(*, after: str = "") -> Iterator[SieveHost]:
        with temporary_root() as root:
            dovecot = peers.Dovecot(root / "dovecot", SCRIPTS)
            with Stage(EXAMPLE, root / "s", before=SERVER.replace("@PORT@", str(dovecot.port)), after=after) as stage:
                virtual = stage.postfix.config_directory / "virtual"
                virtual.write_text("")
                stage.postfix.postmap(virtual)
                (stage.postfix.forward_files / "games").write_text("games.home@example.com\n")
                with logs_reported(stage, Dovecot=dovecot.log):
                    try:
                        dovecot.start(stage.postfix)
                        yield SieveHost(stage, dovecot)
                    finally:
                        dovecot.stop()

    return booted
