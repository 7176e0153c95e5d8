# SPDX-License-Identifier: GPL-3.0-or-later
"""The replayed log of a real Postfix comes to the verdicts that the milter reached on the very same messages.

The hub is that of test_relay_hub in mode monitor: everything goes through, and gatepost's log has a line for each
message with the reason. Messages are known by their queue IDs.
"""

from __future__ import annotations

import json
import re
from collections.abc import Iterator
from typing import Callable

import pytest

from gatepost.admin.replay_log import Log
from gatepost.admin.replay_message import Message, text
from gatepost.admin.replay_tally import Tally
from gatepost.admin.stage import Stage, transact
from gatepost.service.snapshot import load_snapshot

HUB = """
mynetworks = 127.0.0.0/8, 192.0.2.0/24, 203.0.113.0/24
relay_domains = contoso.com
relay_transport = relay:[mailbox.contoso.com]:25
relay_recipient_maps = inline:{ {mary@contoso.com = x}, {app@contoso.com = x}, {away@contoso.com = x} }
"""
# At smtpd_tls_loglevel = 1 Postfix does not name the certificate.
AFTER = """
smtpd_tls_loglevel = 1,peercert
virtual_alias_maps = socketmap:unix:gatepost/policyd.sock:reverse, inline:{ {away@contoso.com = away.home@example.com} }
"""
REFUSED = {
    "no@example.com": "550 5.1.1 No such user",
    "denied@example.com": "550 5.7.64 TenantAttribution; Relay Access Denied",
}
FOREIGN = "bob@fabrikam.com"
OWN = "app@contoso.com"


@pytest.fixture(scope="module")
def hub(boot: Callable[..., Stage]) -> Stage:
    """Return the hub with all the mail through it."""
    stage = boot("relay-hub", before=HUB, after=AFTER, tls=True, refuse=REFUSED)
    send_everything(stage)
    stage.postfix.wait_until_idle()
    return stage


def send_everything(stage: Stage) -> None:
    crm = stage.authority.issue("crm.contoso.com")
    certificates = [
        crm,
        stage.authority.issue("other.fabrikam.com"),
        stage.authority.issue("crm.contoso.com", self_signed=True),
        stage.authority.issue("crm.contoso.com", expired=True),
    ]
    for number, client in enumerate(("192.0.2.5", "192.0.2.77", "203.0.113.9")):
        for sender in (OWN, FOREIGN, "", "root"):
            stage.send(sender, [f"x{number}@example.com"], client=client)
            stage.send(sender, ["mary@contoso.com"], client=client)
        for certificate in certificates:
            stage.send(FOREIGN, [f"c{number}@example.com"], client=client, certificate=certificate)
            stage.send("", [f"c{number}@example.com"], client=client, certificate=certificate)
    stage.send(FOREIGN, ["away@contoso.com"], client="203.0.113.9")
    stage.send(FOREIGN, ["no@example.com"])
    stage.send(FOREIGN, ["denied@example.com"])
    stage.send(FOREIGN, ["sasl@example.com"], login="mary")
    with stage.session() as smtp:
        transact(smtp, FOREIGN, ["one@example.com", "two@example.com"])
        transact(smtp, OWN, ["three@example.com"])
    with stage.session(helo="client=mail.contoso.com[192.0.2.5]") as smtp:
        transact(smtp, '"x, client=a[192.0.2.5]"@fabrikam.com', ['">, relay=none"@example.com'])
    stage.postfix.sendmail(["-f", FOREIGN, "local@example.com"], b"From: bob@fabrikam.com\n\nhello\n")


@pytest.fixture(scope="module")
def enforcing_hub(boot: Callable[..., Stage]) -> Stage:
    """Return a hub that refuses and rewrites, with a message of each kind through it."""

    def enforcing(text: str) -> str:
        return text.replace('mode = "monitor"', 'mode = "enforce"') + '\n[srs]\nform = "long"\n'

    stage = boot("relay-hub", before=HUB, after=AFTER, tls=True, configuration=enforcing)
    crm = stage.authority.issue("crm.contoso.com")
    assert stage.send(FOREIGN, "c@example.com", client="203.0.113.9", certificate=crm).accepted
    assert not stage.send(FOREIGN, "x@example.com").accepted
    stage.postfix.wait_until_idle()
    return stage


@pytest.fixture(scope="module")
def messages(hub: Stage) -> list[Message]:
    log = Log()
    return [*log.feed(hub.postfix.log().encode().split(b"\n")), *log.end()]


def reasons_of_the_milter(stage: Stage) -> dict[str, set[str]]:
    found: dict[str, set[str]] = {}
    for queue_id, reason in re.findall(r"(\w+): action=\w+, from=.*, reason=([\w-]+)", stage.log()):
        found.setdefault(queue_id, set()).add(reason)
    return found


def reasons_by_replay(tally: Tally, messages: list[Message]) -> Iterator[tuple[str, set[str]]]:
    for message in messages:
        if message.origin and message.sender is not None:
            sender = text(message.sender)
            found = [tally.judged(message.origin, sender, text(rcpt)) for rcpt in message.recipients()]
            yield message.queue_id, {item.verdict.reason.value for item in found}


def test_replay_comes_to_the_reasons_of_the_milter(hub: Stage, messages: list[Message]) -> None:
    by_milter = reasons_of_the_milter(hub)
    by_milter.pop("NOQUEUE", None)
    by_replay = dict(reasons_by_replay(Tally(load_snapshot(hub.configuration)), messages))
    assert {name: by_replay.get(name) for name in by_milter} == by_milter
    assert len(by_milter) >= 50
    assert set().union(*by_milter.values()) == {
        *("p1-accepted", "nothing-accepted", "null-sender-without-certificate", "no-connector"),
        *("certificate-accepted", "recipient-accepted", "authenticated", "local-submission"),
    }


def test_every_message_of_a_client_is_whole(hub: Stage, messages: list[Message]) -> None:
    assert [message.queue_id for message in messages if not message.whole] == []


def test_bounce_of_this_postfix_is_no_client_s(hub: Stage, messages: list[Message]) -> None:
    bounce = re.search(r"(\w+): sender non-delivery notification: (\w+)", hub.postfix.log())
    assert bounce
    by_id = {message.queue_id: message for message in messages}
    assert by_id[bounce[2]].made_here
    assert by_id[bounce[1]].outcomes == {b"no@example.com": "bounced"}


def test_what_the_next_hop_refused_with_5_7_64_is_known_and_its_ndr(messages: list[Message]) -> None:
    (denied,) = (message for message in messages if message.denied)
    assert denied.outcomes == {b"denied@example.com": "bounced"}
    (notice,) = (message for message in messages if message.about_denied)
    assert notice.made_here
    assert list(notice.outcomes) == [FOREIGN.encode()]


def test_recipient_is_the_one_that_the_client_named_not_what_the_alias_made_of_it(messages: list[Message]) -> None:
    found = [message for message in messages if b"away.home@example.com" in message.outcomes]
    assert [list(message.recipients()) for message in found] == [[b"away@contoso.com"]]


def test_command_counts_what_the_milter_would_have_refused(hub: Stage) -> None:
    result = hub.gatepost("replay", "--json", str(hub.postfix.log_file))
    assert result.returncode == 0, result.stderr
    references = re.findall(r": action=monitor, .*, reference=(\w+)", hub.log())
    assert json.loads(result.stdout)["refused"]["messages"] == len(set(references)) > 20
    assert "Traceback" not in result.stderr


def test_p1_that_the_milter_has_rewritten_is_judged_as_the_client_gave_it(enforcing_hub: Stage) -> None:
    found = json.loads(enforcing_hub.gatepost("replay", "--json", str(enforcing_hub.postfix.log_file)).stdout)
    assert found["p1_before_srs"]["known"] == 1
    assert (found["messages"], found["relayed"], found["refused"]["messages"]) == (1, 1, 0)


def test_what_the_milter_has_refused_is_counted_as_rejected(enforcing_hub: Stage) -> None:
    found = json.loads(enforcing_hub.gatepost("replay", "--json", str(enforcing_hub.postfix.log_file)).stdout)
    (group,) = found["rejected"]["groups"]
    assert (group["ip"], group["p1_domain"], group["reason"]) == ("192.0.2.5", "fabrikam.com", "nothing-accepted")
