# SPDX-License-Identifier: GPL-3.0-or-later
"""A forwarded message is explained by the queue ID of either hop, and so is the bounce that comes home."""

from __future__ import annotations

from collections.abc import Iterator
from typing import TYPE_CHECKING

import pytest
from stages import NDR

if TYPE_CHECKING:
    from .conftest import Boot, Forwarder


@pytest.fixture(scope="module")
def forwarder(boot_forwarder: Boot) -> Iterator[Forwarder]:
    with boot_forwarder() as forwarder:
        yield forwarder


def explained(forwarder: Forwarder, name: str) -> str:
    done = forwarder.stage.gatepost("explain", name)
    assert (done.stderr, done.returncode) == ("", 0)
    return " ".join(done.stdout.split())


def test_forwarded_copy_and_its_bounce(forwarder: Forwarder) -> None:
    queue_id = forwarder.bob_writes("john.work@contoso.com")
    mail = forwarder.only_mail()
    hop = forwarder.stage.wait_for_log(r"milter\[\d+\]: (\w+): action=rewrite")[1]
    for name in (queue_id, hop):
        text = explained(forwarder, name)
        assert f"Queue ID {queue_id}; on the egress hop {hop}" in text
        assert "To john.work@contoso.com: let through, no relay No relay: john.work@contoso.com is a recipient" in text
        assert "- A copy was forwarded to john.home@example.com." in text
        assert text.endswith(f"MAIL FROM:<{mail.mail_from.lower()}> RCPT TO:<john.home@example.com>")

    bounced = forwarder.stage.send("", mail.mail_from, NDR, client="203.0.113.5")
    assert bounced.accepted
    text = explained(forwarder, bounced.queue_id)
    assert f"To {mail.mail_from.lower()}: let through, no relay" in text
    assert "today's configuration" not in text
