# SPDX-License-Identifier: GPL-3.0-or-later
"""The relay hub: what the daemons' life does to mail: reload, bypass, crash, drain, stop.

One mail from head office with an accepted sender must pass at the end of each; none may be lost on the way.
"""

from __future__ import annotations

import os
import re
import signal
import time
from typing import Callable

import pytest
from daemonprocess import free_ports
from relayhub import HUB, enforcing

from gatepost.admin.stage import Stage, Transcript, command, transact

FORGED = "bounces+SRS=aaaaaaaa=AA=fabrikam.com=bob@contoso.com"


@pytest.fixture(scope="module")
def hub(boot: Callable[..., Stage]) -> Stage:
    # pickup(8) looks for mail that it could not hand over every two seconds instead of every minute
    pickup = "pickup unix n - y 2 1 pickup"
    return boot("relay-hub", before=HUB, master_before=pickup, configuration=enforcing)


def foreign(stage: Stage) -> Transcript:
    """Send what the rule refuses: a foreign P1 from head office."""
    return stage.send("bob@fabrikam.com", "x@example.com")


def worker(stage: Stage, name: str, start: int = 0) -> int:
    """Return the process of the daemon *name* that wrote the last line after *start* characters of the log."""
    return int(re.findall(rf"gatepost/{name}\[(\d+)\]: ", stage.log()[start:])[-1])


def wait_for_workers(stage: Stage, name: str) -> None:
    """Return when both workers of the daemon *name* serve."""
    deadline = time.monotonic() + 20
    while stage.metric("gatepost_workers", daemon=name) < 2:
        assert time.monotonic() < deadline
        time.sleep(0.05)


# Reload


def test_sighup_loads_the_new_configuration(hub: Stage) -> None:
    before = hub.configuration.read_text()
    assert hub.send("app@contoso.com", "x@example.com", client="192.0.2.77").last.code == 550
    hub.configuration.write_text(before.replace("192.0.2.0/28", "192.0.2.0/24"))
    assert hub.reload() == "configuration reloaded"
    assert hub.send("app@contoso.com", "x@example.com", client="192.0.2.77").accepted
    hub.configuration.write_text(before)
    assert hub.reload() == "configuration reloaded"
    assert hub.send("app@contoso.com", "x@example.com", client="192.0.2.77").last.code == 550


def test_sighup_with_a_bad_configuration_keeps_the_old_one_and_names_the_error(hub: Stage) -> None:
    before = hub.configuration.read_text()
    start = len(hub.log())
    hub.configuration.write_text(before.replace('mode = "enforce"', 'mode = "enforced"'))
    assert hub.reload() == "configuration not reloaded, the one loaded before stays in force"
    hub.configuration.write_text(before)
    hub.wait_for_log(r'error: gatepost\.toml: relay\.mode: "enforced" is not one of .*$', start=start)
    assert foreign(hub).last.code == 550
    assert hub.send("app@contoso.com", "x@example.com").accepted
    assert hub.metric("gatepost_config_last_reload_successful") == 0
    assert hub.reload() == "configuration reloaded"


def test_session_that_is_open_while_reloading_goes_on(hub: Stage) -> None:
    with hub.session() as smtp:
        assert transact(smtp, "app@contoso.com", "x@example.com").accepted
        command(smtp, "MAIL FROM:<app@contoso.com>")
        hub.reload()
        assert command(smtp, "RCPT TO:<open@example.com>").code == 250
        assert command(smtp, "DATA").code == 354
        assert command(smtp, ".").code == 250
        assert transact(smtp, "bob@fabrikam.com", "x@example.com").last.code == 550
    hub.internet.wait(lambda mail: mail.rcpt_to == ["open@example.com"])


# Bypass


def test_bypass_takes_gatepost_out_of_the_way_at_once_and_back(hub: Stage) -> None:
    assert foreign(hub).last.code == 550
    assert hub.gatepost("bypass", "on").returncode == 0
    assert foreign(hub).accepted
    assert hub.gatepost("bypass", "off").returncode == 0
    assert foreign(hub).last.code == 550
    assert hub.internet.messages[-1].mail_from == "bob@fabrikam.com"


# Crash and silence


def test_killed_milter_worker_puts_its_message_off_and_is_replaced(hub: Stage) -> None:
    wait_for_workers(hub, "milter")
    start, mail_log = len(hub.log()), len(hub.postfix.log())
    with hub.session() as smtp:
        assert transact(smtp, "app@contoso.com", "x@example.com").accepted
        command(smtp, "MAIL FROM:<app@contoso.com>")
        command(smtp, "RCPT TO:<killed@example.com>")
        killed = worker(hub, "milter", start)
        os.kill(killed, signal.SIGKILL)
        hub.wait_for_log(rf"milter worker {killed} died \(signal 9\)", start=start)
        # Postfix does not wait for the milter at DATA, so it is at the end that nobody answers.
        assert command(smtp, "DATA").code == 354
        end = command(smtp, "Subject: killed\r\n\r\nkilled\r\n.")
        assert str(end) == "451 4.7.1 Service unavailable - try again later"
    hub.postfix.wait_for_log(r"milter.*can't read", start=mail_log)
    assert hub.send("app@contoso.com", "killed@example.com").accepted
    wait_for_workers(hub, "milter")
    assert foreign(hub).last.code == 550


def test_stopped_policyd_worker_is_replaced_while_the_client_waits_for_its_answer(hub: Stage) -> None:
    wait_for_workers(hub, "policyd")
    start = len(hub.log())
    with hub.session() as smtp:
        assert transact(smtp, "", FORGED).last.code == 550
        stopped = worker(hub, "policyd", start)
        os.kill(stopped, signal.SIGSTOP)
        began = time.monotonic()
        assert transact(smtp, "", FORGED).last.code == 550
        assert transact(smtp, "app@contoso.com", "x@example.com").accepted
        assert time.monotonic() - began < 8
    hub.wait_for_log(rf"policyd worker {stopped} silent", start=start)
    wait_for_workers(hub, "policyd")


# Stop and start


def test_sigterm_lets_the_message_under_way_finish_rightly(hub: Stage) -> None:
    with hub.session() as smtp:
        command(smtp, "MAIL FROM:<bob@fabrikam.com>")
        start = len(hub.log())
        os.kill(hub.pid, signal.SIGTERM)
        hub.wait_for_log("draining", start=start)
        began = time.monotonic()
        assert command(smtp, "RCPT TO:<x@example.com>").code == 550
        command(smtp, "RSET")
        transcript = transact(smtp, "app@contoso.com", "drained@example.com")
        assert time.monotonic() - began < 8
    assert transcript.accepted
    assert hub.stop_gatepost() == 0
    hub.start_gatepost()
    assert hub.send("app@contoso.com", "x@example.com").accepted


def test_while_gatepost_is_down_mail_waits_and_nothing_is_lost(hub: Stage) -> None:
    """A map that fails and a milter that is away put off everything, inside mail too; see the README."""
    hub.stop_gatepost()
    for rcpt in ("x@example.com", "mary@contoso.com"):
        assert hub.send("app@contoso.com", rcpt).last.code == 451
    start = len(hub.postfix.log())
    hub.postfix.sendmail(["-f", "bob@fabrikam.com", "waiting@example.com"], b"Subject: x\n\nhello\n")
    hub.postfix.wait_for_log(r"cleanup\[\d+\]: (?:warning: )?.*(?:map lookup|milter|virtual_alias)", start=start)
    hub.start_gatepost()
    mail = hub.internet.wait(lambda mail: mail.rcpt_to == ["waiting@example.com"])
    assert mail.mail_from.startswith("bounces+SRS=")


def test_bounce_that_falls_due_while_gatepost_is_down_comes_later(hub: Stage) -> None:
    hub.internet.refuse["bad@example.com"] = "450 4.2.1 Not now"
    hub.postfix.sendmail(["-f", "bob@fabrikam.com", "bad@example.com"], b"Subject: x\n\nhello\n")
    hub.postfix.wait_for_log(r"to=<bad@example\.com>.*status=deferred")
    hub.stop_gatepost()
    hub.internet.refuse["bad@example.com"] = "550 5.1.1 No such user"
    start = len(hub.postfix.log())
    hub.postfix.flush()
    hub.postfix.wait_for_log(r"virtual_alias_maps map lookup problem for bounces\+SRS=", start=start)
    hub.start_gatepost()
    assert hub.internet.wait(lambda mail: mail.rcpt_to == ["bob@fabrikam.com"], timeout_s=30).mail_from == ""
    assert hub.postfix.queue() == []


# Over TCP


def test_milter_and_policyd_on_tcp_sockets(boot: Callable[..., Stage]) -> None:
    ports = free_ports(2)

    def on_tcp(text: str) -> str:
        text = re.sub(r'"unix:[^"]*/milter\.sock"', f'"inet:127.0.0.1:{ports[0]}"', enforcing(text))
        return re.sub(r'"unix:[^"]*/policyd\.sock"', f'"inet:127.0.0.1:{ports[1]}"', text)

    over_tcp = f"""
smtpd_milters = inet:127.0.0.1:{ports[0]}
non_smtpd_milters = inet:127.0.0.1:{ports[0]}
virtual_alias_maps = socketmap:inet:127.0.0.1:{ports[1]}:reverse
smtpd_recipient_restrictions = check_policy_service inet:127.0.0.1:{ports[1]}
smtpd_data_restrictions = check_policy_service inet:127.0.0.1:{ports[1]}
"""
    stage = boot("relay-hub", before=HUB, after=over_tcp, configuration=on_tcp)
    assert foreign(stage).last.code == 550
    stage.postfix.sendmail(["-f", "bob@fabrikam.com", "tcp@example.com"], b"Subject: x\n\nhello\n")
    rewritten = stage.internet.wait(lambda mail: mail.rcpt_to == ["tcp@example.com"]).mail_from
    assert stage.send("", rewritten, client="198.51.100.7").accepted
    stage.internet.wait(lambda mail: mail.rcpt_to == ["bob@fabrikam.com"])
