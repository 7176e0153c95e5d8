# SPDX-License-Identifier: GPL-3.0-or-later
"""The relay hub while one of its two daemons is away, while both hang, and while Postfix itself is stopped.

What the daemons' own tests show of failures is in tests/test_failure_daemons.py; docs/reliability.md has all of it.
"""

from __future__ import annotations

import contextlib
import os
import signal
import smtplib
import subprocess
import sys
import time
from collections.abc import Iterator
from typing import Callable

import pytest
from relayhub import HUB, enforcing

from gatepost.admin.stage import Stage, command
from gatepost.service.exporter import collect

IMPATIENT = """
milter_connect_timeout = 2s
milter_command_timeout = 2s
"""
POLICY_AWAY = "451 4.3.0 <{}>: Recipient address rejected: Service unavailable, try again later"
MILTER_AWAY = "451 4.7.1 Service unavailable - try again later"


@pytest.fixture(scope="module")
def hub(boot: Callable[..., Stage]) -> Stage:
    """The milter runs; policyd, a process of its own, does only inside `policyd`."""
    # pickup(8) looks for mail that it could not hand over every two seconds instead of every minute
    pickup = "pickup unix n - y 2 1 pickup"
    return boot(
        "relay-hub", before=HUB, after=IMPATIENT, master_before=pickup, configuration=enforcing, gatepost=("milter",)
    )


@contextlib.contextmanager
def policyd(hub: Stage) -> Iterator[int]:
    """Run policyd; yield its supervisor's process."""
    start = len(hub.log())
    environment = {**os.environ, "PYTHONPATH": os.pathsep.join(os.path.abspath(folder) for folder in sys.path)}
    with hub.log_file.open("ab") as log:
        process = subprocess.Popen(
            [sys.executable, "-m", "gatepost.admin", "-c", str(hub.configuration), "policyd"],
            stderr=log,
            stdin=subprocess.DEVNULL,
            env=environment,
        )
    try:
        hub.wait_for_log("policyd ready$", start=start)
        yield process.pid
    finally:
        process.terminate()
        process.wait(60)


def workers(hub: Stage, name: str) -> list[int]:
    return [item.pid for item in collect(hub.state_directory / "metrics").processes if item.daemon == name]


def test_while_policyd_is_away_and_the_milter_is_not_mail_waits(hub: Stage) -> None:
    refused = hub.send("app@contoso.com", "waits@example.com").last
    assert str(refused) == POLICY_AWAY.format("waits@example.com")
    start = len(hub.postfix.log())
    hub.postfix.sendmail(["-f", "bob@fabrikam.com", "local@example.com"], b"Subject: x\n\nhello\n")
    hub.postfix.wait_for_log(r"warning: .*virtual_alias_maps map lookup problem for local@example\.com", start=start)
    assert "no policyd runs, and the configuration is for one" in " ".join(hub.gatepost("doctor").stdout.split())
    with policyd(hub):
        assert hub.send("app@contoso.com", "waits@example.com").accepted
        hub.internet.wait(lambda mail: mail.rcpt_to == ["waits@example.com"])
        local = hub.internet.wait(lambda mail: mail.rcpt_to == ["local@example.com"])
    assert local.mail_from.startswith("bounces+SRS=")


def test_while_the_milter_is_away_and_policyd_is_not_mail_waits(hub: Stage) -> None:
    with policyd(hub):
        hub.stop_gatepost()
        try:
            for p1, rcpt in (("app@contoso.com", "x@example.com"), ("bob@fabrikam.com", "mary@contoso.com")):
                assert str(hub.send(p1, rcpt).last) == MILTER_AWAY
            assert "no milter runs, and the configuration is for one" in " ".join(hub.gatepost("doctor").stdout.split())
        finally:
            hub.start_gatepost()
        assert hub.send("app@contoso.com", "later@example.com").accepted
    assert {mail.rcpt_to[0] for mail in hub.internet.messages}.isdisjoint({"x@example.com"})


def test_while_the_milter_hangs_with_its_supervisor_mail_is_put_off_by_postfixs_own_limit(hub: Stage) -> None:
    with policyd(hub):
        hanging = [hub.pid, *workers(hub, "milter")]
        for process in hanging:
            os.kill(process, signal.SIGSTOP)
        try:
            began = time.monotonic()
            assert str(hub.send("app@contoso.com", "hangs@example.com").last) == MILTER_AWAY
            assert time.monotonic() - began < 8
        finally:
            for process in hanging:
                os.kill(process, signal.SIGCONT)
        assert hub.send("app@contoso.com", "goes@example.com").accepted
        hub.internet.wait(lambda mail: mail.rcpt_to == ["goes@example.com"])
        assert "exit status 0" not in hub.log()  # a worker that goes on has not been told to drain
        assert not [mail for mail in hub.internet.messages if mail.rcpt_to == ["hangs@example.com"]]


def test_postfix_that_is_killed_within_a_message_leaves_nothing_behind_in_gatepost(hub: Stage) -> None:
    with policyd(hub):
        assert hub.send("app@contoso.com", "before@example.com").accepted
        pids = workers(hub, "milter")
        counted = hub.metric("gatepost_messages_total", daemon="milter")
        with hub.session() as smtp:
            command(smtp, "MAIL FROM:<app@contoso.com>")
            assert command(smtp, "RCPT TO:<cut@example.com>").code == 250
            assert command(smtp, "DATA").code == 354
            hub.postfix.stop()
            with contextlib.suppress(smtplib.SMTPServerDisconnected, ConnectionError):
                smtp.send(b"Subject: cut\r\n")
                smtp.getreply()
            smtp.close()
        hub.postfix.start()
        assert hub.send("app@contoso.com", "after@example.com").accepted
        assert hub.metric("gatepost_messages_total", daemon="milter") == counted + 1
        assert workers(hub, "milter") == pids
