# SPDX-License-Identifier: GPL-3.0-or-later
"""A few seconds of the soak, tests/soak/run, so that it doesn't rot; and that it sees what it is there to see."""

from __future__ import annotations

import os
import shutil
from pathlib import Path

import pytest
from soak import mail, verdict
from soak.__main__ import Spans, soak
from soak.clock import DAY_S, Clock
from soak.load import Arrived
from soak.troubles import TROUBLES

from gatepost.admin.nexthop import Received

pytestmark = [
    pytest.mark.skipif(os.getuid() != 0, reason="a chrooted Postfix can only be run by root"),
    pytest.mark.skipif(not shutil.which("gcc"), reason="the clock needs a C compiler"),
]
FEW = ("kill", "reload", "good-configuration", "rotate", "lock-store", "clock", "cut-smtp", "cut-milter")


@pytest.mark.timeout(300)
def test_nothing_is_lost_and_nobody_let_in_during_a_short_soak() -> None:
    troubles = [trouble for trouble in TROUBLES if trouble.name in FEW]
    result = soak(Spans(6.0, warm_up=2.0, settled=2.0, calm=2.0), 1, 15.0, troubles, 6.0, list)
    broken = {name: problems for name, problems in result.broken.items() if problems}
    broken.pop("put off only while something was broken", None)  # a busy machine may be late, too
    assert broken == {}
    assert result.figures["messages"] > 50
    assert set(result.figures["troubles"]) & set(FEW)


def test_clock_tells_every_day_that_it_has_shown(tmp_path: Path) -> None:
    clock = Clock(tmp_path)
    ((begin, _),) = clock.jumps
    clock.jump(2 * DAY_S)
    today = int(begin) // DAY_S
    assert today + 2 in clock.days(begin, begin + 1)


def test_forged_bounce_differs_in_one_character_of_the_hash() -> None:
    srs = "bounces+SRS=abcdefgh=JL=fabrikam.com=bob@contoso.com"
    (rcpt,) = mail.forged(1, "forwarder", srs, "198.51.100.7").rcpts
    assert rcpt == "bounces+SRS=bbcdefgh=JL=fabrikam.com=bob@contoso.com"


def copies_of(accepted: bool, *senders: str) -> list[str]:
    """What is said of Bob's message that is relayed by certificate, where a copy arrives from each of *senders*."""
    kind = next(kind for kind in mail.KINDS if kind.name == "certificate")
    item = mail.message(1, kind, "198.51.100.7")
    (rcpt,) = item.rcpts
    item.accepted = {rcpt: "4jXb7P21DczVrJv"} if accepted else {}
    received = [Received(("", 0), "", sender, [], [rcpt], [], b"") for sender in senders]
    arrived = [Arrived(None, 1, False, 0.0, each) for each in received]  # type: ignore[arg-type]
    return list(verdict.copies_of(item, arrived, {kind.host: None}))  # type: ignore[dict-item]


def test_lost_message_is_seen() -> None:
    assert copies_of(True) == [
        "delivered to r1@example.com 0 times, not 1; queue IDs {'r1@example.com': '4jXb7P21DczVrJv'}"
    ]


def test_message_that_came_though_refused_is_seen() -> None:
    assert copies_of(False, "Bob1@fabrikam.com")[0] == "delivered to r1@example.com 1 times, not 0; queue IDs {}"


def test_message_that_was_not_rewritten_is_seen() -> None:
    assert copies_of(True, "Bob1@fabrikam.com") == [
        "r1@example.com got it from <Bob1@fabrikam.com>: it is not rewritten"
    ]
