# SPDX-License-Identifier: GPL-3.0-or-later
"""What stands in the ledger after real mail through a hub, through policyd alone, and through both daemons."""

from __future__ import annotations

import email
import email.policy
import os
from pathlib import Path
from typing import Callable

import pytest
from ledgerrows import Row, rows

from gatepost.admin.stage import Stage, transact

MESSAGE = (
    b"From: The Boss <ceo@contoso.com>\r\nTo: x@example.com\r\nSubject: the figures\r\n"
    b"Message-Id: <77@app.contoso.com>\r\n\r\nhello\r\n"
)
HEAD_OFFICE, ABROAD = "192.0.2.5", "198.51.100.7"


def monitoring(text: str) -> str:
    return text.replace('mode = "enforce"', 'mode = "monitor"') + "\n[ledger]\nsubjects = true\n"


def enforcing(text: str) -> str:
    return text.replace('mode = "monitor"', 'mode = "enforce"')


def of(stage: Stage, reference_or_queue_id: str) -> list[Row]:
    stage.postfix.wait_until_idle()
    return [
        row for row in rows(stage.state_directory) if reference_or_queue_id in row.some("reference", "queue_id")
    ]


# A hub


@pytest.fixture(scope="module")
def hub(boot: Callable[..., Stage]) -> Stage:
    server = "mydestination = mail.contoso.com, localhost\nmynetworks = 127.0.0.0/8, 192.0.2.0/28\n"
    relays = "relay_domains = contoso.com\nrelay_transport = relay:[mailbox.contoso.com]:25\n"
    return boot("relay-hub", before=server + relays, configuration=monitoring)


def test_message_that_relies_on_p2_has_both_verdicts_r1(hub: Stage) -> None:
    sent = hub.send("app@vendor.example", "x@example.com", MESSAGE, client=HEAD_OFFICE, mail_options="SIZE=1234")
    (row,) = of(hub, sent.queue_id)
    assert row.some("verdict_current", "verdict_legacy", "requirements", "reason", "action") == (
        "refuse",
        "relay",
        "2023-11-01",
        "nothing-accepted",
        "pass",
    )
    assert row.some("reverse_path", "sender_domain", "sender_accepted", "header_from") == (
        "app@vendor.example",
        "vendor.example",
        0,
        "ceo@contoso.com",
    )
    assert row.some("client", "organization", "connector") == (HEAD_OFFICE, "contoso", "head office")
    assert row.some("size_bytes", "message_id", "subject") == (1234, "<77@app.contoso.com>", "the figures")


def test_each_recipient_is_a_row_with_the_verdict_on_it(hub: Stage) -> None:
    sent = hub.send("Bob@Contoso.com", ["X@example.com", "mary@contoso.com"], MESSAGE, client=HEAD_OFFICE)
    found = {row["recipient"]: row.some("reverse_path", "verdict_current", "reason") for row in of(hub, sent.queue_id)}
    assert found == {
        "x@example.com": ("bob@contoso.com", "relay", "p1-accepted"),
        "mary@contoso.com": ("bob@contoso.com", "inside", "recipient-accepted"),
    }


def test_the_same_message_twice_is_two_rows(hub: Stage) -> None:
    first, second = (hub.send("bob@contoso.com", "x@example.com", MESSAGE, client=HEAD_OFFICE) for _ in range(2))
    (one,), (other,) = of(hub, first.queue_id), of(hub, second.queue_id)
    assert one["reference"] != other["reference"]


def test_mail_from_sendmail_is_recorded(hub: Stage) -> None:
    hub.postfix.sendmail(["-f", "cron@contoso.com", "reports@example.com"], MESSAGE)
    hub.postfix.wait_until_idle()
    (row,) = [row for row in rows(hub.state_directory) if row["recipient"] == "reports@example.com"]
    assert row.some("reverse_path", "verdict_current", "reason", "client") == (
        "cron@contoso.com",
        "exempt",
        "local-submission",
        "127.0.0.1",
    )


def test_message_that_is_given_up_leaves_no_row(hub: Stage) -> None:
    before = len(rows(hub.state_directory))
    assert hub.send("bob@contoso.com", "", MESSAGE, client=HEAD_OFFICE).end is None
    assert len(rows(hub.state_directory)) == before


# policyd alone

RELAYED = "relay_domains = contoso.com\nrelay_transport = relay:[mailbox.contoso.com]:25\nmynetworks = 127.0.0.0/8\n"


@pytest.fixture(scope="module")
def policy_only(boot: Callable[..., Stage]) -> Stage:
    return boot("policy-only", before=RELAYED, configuration=enforcing, gatepost=["policyd"])


def test_policyd_records_what_it_lets_through_once_there_is_a_queue_id(policy_only: Stage) -> None:
    rcpts = ["x@example.com", "mary@contoso.com"]
    sent = policy_only.send("app@contoso.com", rcpts, MESSAGE, client=HEAD_OFFICE)
    assert sent.accepted
    found = {row["recipient"]: row for row in of(policy_only, sent.queue_id)}
    assert sorted(found, key=str) == ["mary@contoso.com", "x@example.com"]
    assert found["x@example.com"].some("verdict_current", "reason", "action", "client", "connector") == (
        "relay",
        "p1-accepted",
        "pass",
        HEAD_OFFICE,
        "head office",
    )
    assert found["mary@contoso.com"]["verdict_current"] == "inside"
    assert found["x@example.com"]["reference"] == found["mary@contoso.com"]["reference"]


def test_policyd_records_a_refusal_under_the_reference_in_the_reply(policy_only: Stage) -> None:
    sent = policy_only.send("app@vendor.example", "x@example.com", MESSAGE, client=HEAD_OFFICE)
    reference = sent.rcpt[0].text.rpartition("[")[2].rstrip("]")
    (row,) = of(policy_only, reference)
    assert row.some("action", "verdict_current", "verdict_legacy", "reason", "queue_id") == (
        "reject",
        "refuse",
        "",
        "nothing-accepted",
        "",
    )


def test_recipient_that_postfix_refuses_behind_policyd_leaves_no_row(policy_only: Stage) -> None:
    sent = policy_only.send("app@vendor.example", "stray@example.org", MESSAGE, client=ABROAD)
    assert sent.rcpt[0].code == 554
    assert [row for row in rows(policy_only.state_directory) if row["recipient"] == "stray@example.org"] == []


# Both daemons see a message, policyd decides


@pytest.fixture(scope="module")
def both(boot: Callable[..., Stage]) -> Stage:
    milters = "smtpd_milters = unix:gatepost/milter.sock\nmilter_default_action = tempfail\n"
    return boot("policy-only", before=RELAYED, after=milters, configuration=enforcing)


def test_message_that_both_daemons_see_is_one_row(both: Stage) -> None:
    rcpts = ["x@example.com", "mary@contoso.com"]
    sent = both.send("app@contoso.com", rcpts, MESSAGE, client=HEAD_OFFICE)
    assert sent.accepted
    found = {row["recipient"]: row for row in of(both, sent.queue_id)}
    assert sorted(found, key=str) == ["mary@contoso.com", "x@example.com"]
    assert len(of(both, sent.queue_id)) == 2
    assert found["x@example.com"].some("verdict_current", "verdict_legacy", "reason", "header_from", "message_id") == (
        "relay",
        "relay",
        "p1-accepted",
        "ceo@contoso.com",
        "<77@app.contoso.com>",
    )


def test_both_see_many_messages_of_one_connection_and_each_is_a_row(both: Stage) -> None:
    with both.session(client=HEAD_OFFICE) as smtp:
        sent = [transact(smtp, "app@contoso.com", "many@example.com", MESSAGE) for _ in range(5)]
    assert all(item.accepted for item in sent)
    assert [len(of(both, item.queue_id)) for item in sent] == [1] * 5
    assert len([row for row in rows(both.state_directory) if row["recipient"] == "many@example.com"]) == 5


# A report by mail


@pytest.fixture
def sendmail(hub: Stage, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Have sendmail(1) be the private Postfix's."""
    script = tmp_path / "sendmail"
    settings = "".join(f"export {name}='{value}'\n" for name, value in hub.postfix.environment.items())
    script.write_text(f"#!/bin/sh\n{settings}exec {hub.postfix.program('sendmail')} \"$@\"\n")
    script.chmod(0o755)
    monkeypatch.setenv("PATH", f"{tmp_path}:{os.environ['PATH']}")


def test_report_goes_to_its_notify_address_through_the_local_mta(hub: Stage, sendmail: None) -> None:
    hub.send("app@vendor.example", "customer@example.com", MESSAGE, client=HEAD_OFFICE)
    done = hub.gatepost(
        "report", "start", "--type", "P2SenderAttribution", "--title", "Who?", "--notify-address", "mary@contoso.com"
    )
    assert done.returncode == 0, done.stderr
    mail = hub.inside.wait(lambda mail: mail.rcpt_to == ["mary@contoso.com"] and b"Auto-Submitted" in mail.content)
    assert mail.mail_from == "postmaster@contoso.com"
    message = email.message_from_bytes(mail.content, policy=email.policy.default)
    assert message["Subject"] == "Who?"
    assert message["Auto-Submitted"] == "auto-generated"
    files = {part.get_filename(): part for part in message.iter_attachments()}
    (table,) = [part.get_content() for name, part in files.items() if name.endswith(".csv")]
    assert '"customer@example.com##Relayed"' in table
    assert [name for name in files if name.endswith(".html")]
