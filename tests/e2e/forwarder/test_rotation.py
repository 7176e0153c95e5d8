# SPDX-License-Identifier: GPL-3.0-or-later
"""`gatepost srs rotate`: no bounce is lost, whenever its message was rewritten, deferred and refused."""

from __future__ import annotations

import re
import shutil
import threading
from collections.abc import Iterator
from contextlib import contextmanager
from typing import TYPE_CHECKING

import pytest

from gatepost.admin.nexthop import Received

from .test_bounces import NDR

if TYPE_CHECKING:
    from .conftest import Boot, Forwarder


@pytest.fixture(scope="module")
def booted(boot_forwarder: Boot) -> Iterator[Forwarder]:
    with boot_forwarder() as forwarder:
        yield forwarder


@pytest.fixture
def forwarder(booted: Forwarder) -> Iterator[Forwarder]:
    yield booted
    booted.forget()


@contextmanager
def load(forwarder: Forwarder) -> Iterator[list[str]]:
    """Forward mail without a pause, and return each copy's P1 by an NDR; yield what was refused."""
    refused: list[str] = []
    enough, warm = threading.Event(), threading.Event()

    def go_on() -> None:
        number = 0
        while not enough.is_set():
            number += 1
            sent = forwarder.attempt("john.work@contoso.com", sender=f"load-{number}@fabrikam.com")
            if not sent.accepted:
                refused.append(str(sent))
                continue
            copy = forwarder.stage.internet.wait(lambda mail: f"load-{number}@" in _unwrapped(mail))  # noqa: B023
            answer = forwarder.attempt(copy.mail_from, sender="", message=NDR, client="203.0.113.9")
            if not answer.accepted:
                refused.append(f"{copy.mail_from}: {answer}")
            if number >= 5:
                warm.set()

    thread = threading.Thread(target=go_on)
    thread.start()
    try:
        assert warm.wait(30)
        yield refused
    finally:
        enough.set()
        thread.join()


def _unwrapped(mail: Received) -> str:
    return mail.mail_from.rpartition("=")[2]


@pytest.mark.parametrize("options", [[], ["--now"]], ids=["from tomorrow", "now"])
def test_message_rewritten_before_and_refused_after_a_rotation_under_load_is_returned(
    forwarder: Forwarder, options: list[str]
) -> None:
    forwarder.stage.internet.refuse["carla.home@example.net"] = "450 4.2.2 Mailbox full"
    start = len(forwarder.stage.log())
    forwarder.bob_writes("carla@contoso.com")
    forwarder.stage.wait_for_log(r"rewritten=<carla\+SRS=", start=start)
    with load(forwarder) as refused:
        done = forwarder.stage.gatepost("srs", "rotate", *options)
        assert (done.returncode, done.stderr) == (0, "")
        before = len(forwarder.stage.internet.messages)
        forwarder.stage.internet.wait(lambda mail: len(forwarder.stage.internet.messages) > before + 10)
    assert refused == []
    forwarder.stage.internet.refuse["carla.home@example.net"] = "550 5.2.2 Mailbox full for good"
    forwarder.stage.postfix.flush()
    forwarder.stage.postfix.wait_until_idle()
    returned = [mail for mail in forwarder.stage.internet.messages if mail.rcpt_to == ["bob@fabrikam.com"]]
    assert [mail.mail_from for mail in returned] == [""]
    assert b"550 5.2.2 Mailbox full for good" in returned[0].content
    ndrs = sorted(mail.rcpt_to[0] for mail in forwarder.stage.internet.messages if "load-" in mail.rcpt_to[0])
    copies = [mail for mail in forwarder.stage.internet.messages if "load-" in mail.mail_from]
    assert len(ndrs) == len(copies) == len(set(ndrs)) > 10


def test_new_key_signs_from_tomorrow_or_at_once(forwarder: Forwarder) -> None:
    def made(*options: str) -> str:
        return forwarder.stage.gatepost("srs", "forward", "bob@fabrikam.com", *options).stdout

    before = made()
    done = forwarder.stage.gatepost("srs", "rotate")
    assert re.search(r"the new key signs from \d{4}-\d\d-\d\d, 00:00 UTC; until then it verifies only\.\n", done.stdout)
    assert made() == before
    tomorrow = re.findall(r"signs from (\S+),", done.stdout)[0]
    with_old_key = made("--at", tomorrow)
    again = forwarder.stage.gatepost("srs", "rotate")
    assert f"a key that signs from {tomorrow}, 00:00 UTC, waits there already" in again.stdout
    assert made("--at", tomorrow) == with_old_key
    forwarder.stage.gatepost("srs", "rotate", "--now")
    assert made() != before
    assert forwarder.stage.gatepost("srs", "reverse", before.strip()).stdout == "bob@fabrikam.com\n"


def test_key_that_is_copied_from_another_host_is_loaded_by_itself(forwarder: Forwarder) -> None:
    secret = forwarder.stage.state_directory / "srs.secret"
    start = len(forwarder.stage.log())
    copy = secret.with_name("copy")
    shutil.copy2(secret, copy)
    copy.write_bytes(b"of another host\n" + copy.read_bytes())
    copy.rename(secret)
    forwarder.stage.wait_for_log(rf"changed: {secret}; .*\n(?:.*\n)*?.*configuration reloaded", start=start)
    assert forwarder.stage.metric("gatepost_srs_keys") == len(
        [line for line in secret.read_text().splitlines() if not line.startswith("#")]
    )


def test_rotation_that_a_daemon_does_not_load_says_so(forwarder: Forwarder) -> None:
    stage = forwarder.stage
    daemons, copy = stage.configuration, stage.configuration.with_name("copy.toml")
    good = daemons.read_text()
    copy.write_text(good)
    daemons.write_text("nonsense = 1\n")
    stage.configuration = copy
    try:
        done = stage.gatepost("srs", "rotate", "--now")
    finally:
        stage.configuration = daemons
        daemons.write_text(good)
    assert done.returncode == 75
    assert done.stderr.startswith("milter+policyd: refused the configuration and goes on with the one before;")
    assert stage.reload() == "configuration reloaded"
