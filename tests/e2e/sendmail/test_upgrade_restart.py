# SPDX-License-Identifier: GPL-3.0-or-later
"""gatepost is restarted and killed while Sendmail takes mail: nothing is lost, doubled or wrongly decided."""

from __future__ import annotations

import signal
from contextlib import suppress
from typing import TYPE_CHECKING

import pytest
from daemonprocess import poll
from sendmaildaemon import OURS, Sendmail
from upgradeload import Kind, Load, findings, rows

if TYPE_CHECKING:
    from .conftest import Boot

KINDS = (
    Kind("own", "app{n}@contoso.com", "own@example.com", "own@example.com", r"app{n}@contoso\.com", OURS),
    Kind(
        *("forwarded", "carol{n}@fabrikam.com", "john.work@contoso.com", "john.home@example.com"),
        left=r"[a-z.]+\+SRS=[a-z2-7]+=..=fabrikam\.com=carol{n}@contoso\.com",
        client=OURS,
    ),
    Kind("refused", "eve{n}@fabrikam.com", "you@example.com", "", "", OURS, refused=True),
)
AMONG = 12
"""So many messages are taken before something happens, and after it."""


@pytest.mark.parametrize("how", [signal.SIGTERM, signal.SIGKILL])
def test_nothing_is_lost(boot_sendmail: Boot, how: signal.Signals) -> None:
    with boot_sendmail() as sendmail:
        with Load(sendmail.port, KINDS, clients=2) as load:
            poll(lambda: load.taken() > AMONG, "mail is taken")
            sendmail.gatepost.signal(how)
            sendmail.gatepost.stop()
            sendmail.gatepost.start()
            sendmail.gatepost.wait_for_log(r" ready$")
            there = load.taken()
            poll(lambda: load.taken() > there + AMONG, "mail is taken again")
        sendmail.wait_until_idle()
        sendmail.flush()
        sendmail.wait_until_idle()
        with suppress(AssertionError):  # the ledger's loader comes later
            poll(lambda: not wrong(sendmail, load), "all is there", timeout_s=10)
        assert wrong(sendmail, load) == {}
        poll(lambda: not sendmail.queued(), "the queue is empty")


def wrong(sendmail: Sendmail, load: Load) -> dict[str, list[object]]:
    found = findings(load.sent, sendmail.internet.messages, rows(sendmail.gatepost.state / "gatepost.db"))
    return {what: items for what, items in found.items() if items}
