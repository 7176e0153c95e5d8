# SPDX-License-Identifier: GPL-3.0-or-later
"""Without gatepost, or with it held off, forwarded mail waits or leaves as it came; it is never lost."""

from __future__ import annotations

import contextlib
import os
import signal
import time
from collections.abc import Iterator
from pathlib import Path
from typing import TYPE_CHECKING

import pytest

if TYPE_CHECKING:
    from .conftest import Boot, Forwarder

JOHN_REWRITTEN = ("john.work+SRS=HASH=TT=fabrikam.com=bob@contoso.com", "john.home@example.com")
JOHN_AS_IT_CAME = ("bob@fabrikam.com", "john.home@example.com")
GAMES_REWRITTEN = ("games+SRS=HASH=TT=fabrikam.com=bob@contoso.com", "games.home@example.com")
CARLA_REWRITTEN = ("carla+SRS=HASH=TT=fabrikam.com=bob@contoso.com", "carla.home@example.net")
ALIAS_REWRITTEN = ("john.alias+SRS=HASH=TT=fabrikam.com=bob@contoso.com", "john.alias.home@example.com")
HOP_CLOSED = "defer_transports = gatepost-egress\n"
"""Mail that must take the hop stays in the queue, as after an outage."""
LONG = f"{'b' * 60}@{'.'.join(['d' * 60] * 3)}.example"
"""64 octets of local part are allowed, 254 of address; with an SRS address around it there are more."""


@pytest.fixture
def forwarder(boot_forwarder: Boot) -> Iterator[Forwarder]:
    with boot_forwarder() as booted:
        yield booted


def test_monitor_mode_forwards_mail_as_it_came(boot_forwarder: Boot) -> None:
    with boot_forwarder(configuration=lambda text: text.replace('mode = "enforce"', 'mode = "monitor"')) as forwarder:
        forwarder.bob_writes("john.work@contoso.com")
        assert forwarder.left() == [JOHN_AS_IT_CAME]
        assert "gatepost-egress" not in forwarder.stage.postfix.log()


def test_configuration_without_egress_forwards_mail_as_it_came(boot_forwarder: Boot) -> None:
    def without_egress(text: str) -> str:
        return text[: text.index("[egress]")] + text[text.index("[metrics]") :]

    with boot_forwarder(configuration=without_egress) as forwarder:
        forwarder.bob_writes("john.work@contoso.com")
        assert forwarder.left() == [JOHN_AS_IT_CAME]


def test_bypass_forwards_mail_as_it_came_until_it_is_off(forwarder: Forwarder) -> None:
    bypass = forwarder.stage.state_directory / "bypass"
    bypass.touch()
    forwarder.bob_writes("john.work@contoso.com")
    assert forwarder.left() == [JOHN_AS_IT_CAME]
    forwarder.stage.internet.messages.clear()
    bypass.unlink()
    forwarder.bob_writes("games@contoso.com")  # qmgr remembers the route of the last sender and recipient for 30 s
    assert forwarder.left() == [GAMES_REWRITTEN]


def test_bypass_during_which_mail_is_on_the_hop_lets_it_out_as_it_came(boot_forwarder: Boot) -> None:
    with boot_forwarder(before=HOP_CLOSED) as forwarder:
        forwarder.bob_writes("john.work@contoso.com")
        forwarder.wait_until_deferred()
        (forwarder.stage.state_directory / "bypass").touch()
        forwarder.change("defer_transports=")
        assert forwarder.stage.internet.wait(lambda mail: True).mail_from == "bob@fabrikam.com"
        assert forwarder.left() == [JOHN_AS_IT_CAME]


def test_bounce_comes_back_in_bypass(forwarder: Forwarder) -> None:
    forwarder.bob_writes("john.work@contoso.com")
    p1 = forwarder.only_mail().mail_from
    forwarder.stage.internet.messages.clear()
    (forwarder.stage.state_directory / "bypass").touch()
    forwarder.bob_writes(p1, sender="")
    assert forwarder.left() == [("", "bob@fabrikam.com")]


def test_mail_on_the_hop_waits_for_the_milter_and_is_then_rewritten(boot_forwarder: Boot) -> None:
    with boot_forwarder(before=HOP_CLOSED) as forwarder:
        forwarder.bob_writes("john.work@contoso.com", "list@contoso.com")
        forwarder.wait_until_deferred()
        with forwarder.without_milter():
            start = len(forwarder.stage.postfix.log())
            forwarder.change("defer_transports=")
            forwarder.stage.postfix.wait_for_log(r"status=deferred \(.* 4\d\d 4\.", start=start)
            assert forwarder.left() == []
        forwarder.stage.postfix.flush()
        forwarder.stage.internet.wait(lambda mail: True)
        assert forwarder.left() == [JOHN_REWRITTEN]
        assert forwarder.inside("list") == ["bob@fabrikam.com"]


def test_client_is_put_off_while_the_milter_is_away(forwarder: Forwarder) -> None:
    with forwarder.without_milter():
        transcript = forwarder.attempt("john.work@contoso.com")
    assert transcript.last.code == 451
    assert forwarder.left() == []


def test_waiting_mail_is_deferred_while_gatepost_is_away_and_rewritten_when_it_is_back(boot_forwarder: Boot) -> None:
    with boot_forwarder(before=HOP_CLOSED) as forwarder:
        forwarder.bob_writes("john.work@contoso.com", "list@contoso.com")
        forwarder.wait_until_deferred()
        forwarder.stage.stop_gatepost()
        start = len(forwarder.stage.postfix.log())
        forwarder.change("defer_transports=")
        forwarder.stage.postfix.wait_for_log(r"status=deferred", start=start)
        forwarder.wait_until_deferred()
        assert forwarder.left() == []
        forwarder.stage.start_gatepost()
        forwarder.bob_writes("carla@contoso.com")  # qmgr remembers its last route, failed or not, for 30 s
        forwarder.stage.postfix.flush()
        forwarder.stage.internet.wait(lambda mail: mail.rcpt_to == ["john.home@example.com"])
        assert forwarder.left() == [CARLA_REWRITTEN, JOHN_REWRITTEN]


def test_forward_file_that_is_followed_while_gatepost_is_away_loses_nothing(boot_forwarder: Boot) -> None:
    with boot_forwarder(before="defer_transports = local\n") as forwarder:
        forwarder.bob_writes("games@contoso.com")
        forwarder.wait_until_deferred()
        forwarder.stage.stop_gatepost()
        start = len(forwarder.stage.postfix.log())
        forwarder.change("defer_transports=")
        forwarder.stage.postfix.wait_for_log(r"status=deferred", start=start)
        assert forwarder.left() == []
        forwarder.stage.start_gatepost()
        forwarder.bob_writes("john.alias@contoso.com")  # local remembers, too
        forwarder.stage.postfix.flush()
        forwarder.stage.internet.wait(lambda mail: mail.rcpt_to == ["games.home@example.com"])
        assert forwarder.left() == [GAMES_REWRITTEN, ALIAS_REWRITTEN]


def test_client_is_put_off_while_gatepost_is_away(forwarder: Forwarder) -> None:
    forwarder.stage.stop_gatepost()
    transcript = forwarder.attempt("john.work@contoso.com")
    assert transcript.last.code == 451
    assert forwarder.left() == []


def test_silent_workers_are_replaced_and_mail_flows(forwarder: Forwarder) -> None:
    children = Path(f"/proc/{forwarder.stage.pid}/task/{forwarder.stage.pid}/children").read_text().split()
    for child in children:
        os.kill(int(child), signal.SIGSTOP)
    deadline = time.monotonic() + 60
    while not forwarder.attempt("john.work@contoso.com").accepted and time.monotonic() < deadline:
        pass  # a client that comes again; each answer takes as long as Postfix waits
    forwarder.stage.internet.wait(lambda mail: True, timeout_s=60)
    assert forwarder.left() == [JOHN_REWRITTEN]
    forwarder.stage.wait_for_log(r"policyd worker \d+ silent")
    for child in children:
        with contextlib.suppress(ProcessLookupError):
            os.kill(int(child), signal.SIGCONT)


def test_reload_while_mail_flows_rewrites_every_message_once(forwarder: Forwarder) -> None:
    for _ in range(5):
        forwarder.bob_writes("john.work@contoso.com")
        forwarder.stage.reload()
    assert forwarder.left() == [JOHN_REWRITTEN] * 5


def long_form(text: str) -> str:
    return text + '\n[srs]\nform = "long"\n'


def test_p1_that_is_too_long_to_be_rewritten_is_bounced_at_once_and_kept_for_the_inside_recipient(
    boot_forwarder: Boot,
) -> None:
    with boot_forwarder(configuration=long_form) as forwarder:
        forwarder.bob_writes("john.work@contoso.com", "list@contoso.com", sender=LONG)
        assert forwarder.left() == [("", LONG)]
        assert b"too long" in forwarder.only_mail().content
        assert forwarder.inside("list") == [LONG]
        assert forwarder.stage.postfix.queue() == []


def test_p1_that_is_too_long_for_the_mailbox_form_is_rewritten_with_bounces(boot_forwarder: Boot) -> None:
    mailbox = "a.very.long.mailbox.name.that.leaves.little.room.for.others"
    aliases = f"alias_maps = inline:{{ {{{mailbox} = x@example.com}} }}\n"
    with boot_forwarder(before=aliases, configuration=long_form) as forwarder:
        sender = f"{'b' * 30}@{'.'.join(['d' * 50] * 3)}.example"
        forwarder.bob_writes(f"{mailbox}@contoso.com", sender=sender)
        domain = sender.partition("@")[2]
        assert forwarder.left() == [(f"bounces+SRS=HASH=TT={domain}={'b' * 30}@contoso.com", "x@example.com")]
