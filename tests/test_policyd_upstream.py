# SPDX-License-Identifier: GPL-3.0-or-later
"""The policy daemon of a hub in front of Exchange Online, where it is what applies the rule."""

from __future__ import annotations

from pathlib import Path

import pytest
from test_policyd_decisions import NOW, Connection

from gatepost.policyd.decisions import Action
from gatepost.relay import Result
from gatepost.service.config import parse
from gatepost.service.snapshot import Snapshot, build
from gatepost.srs import Keys

CERTIFICATE = {"ccert_subject": "crm.contoso.com", "ccert_issuer": "CA"}
NULL = "null-sender-without-certificate"


def hub(*, refuse: bool = True, mode: str = "enforce", by: str = "policyd") -> Snapshot:
    raw: dict[str, object] = {
        "organization": [
            {
                "name": "contoso",
                "srs_domain": "srs.contoso.com",
                "accepted_domain": [{"domain": "contoso.com", "default": True}, {"domain": "srs.contoso.com"}],
                "connector": [{"name": "crm", "tls_sender_certificate_name": "*.contoso.com"}],
            }
        ],
        "relay": {"mode": mode, "enforced_by": by},
        "upstream": {"sender_ip_addresses": ["203.0.113.5"], "refuse": refuse},
    }
    return build(parse(raw, Path("gatepost.toml")), Keys([b"key"]), NOW)


def test_null_sender_to_outside_is_refused_early_with_a_reference_and_its_own_reason() -> None:
    answer = Connection(hub(), "", **CERTIFICATE).ask("RCPT", recipient="x@example.com")
    assert answer.text == "550 5.7.64 TenantAttribution; Relay Access Denied [REFERENCE1]"
    assert answer.log == (
        "NOQUEUE: action=reject, from=<>, to=<x@example.com>, client=198.51.100.7, organization=contoso, "
        f"reason=upstream-null-sender, upstream=refuse, upstream_reason={NULL}, reference=REFERENCE1"
    )
    assert answer.refused
    assert (answer.refused.reason, answer.refused.upstream) == ("upstream-null-sender", NULL)


@pytest.mark.parametrize(("refuse", "mode", "action"), [(False, "enforce", "ok"), (True, "monitor", "dunno")])
def test_null_sender_goes_on_where_it_is_not_to_be_refused(refuse: bool, mode: str, action: str) -> None:
    answer = Connection(hub(refuse=refuse, mode=mode), "", **CERTIFICATE).ask("RCPT", recipient="x@example.com")
    assert answer.action is Action(action)
    assert answer.judgement
    assert answer.judgement.upstream
    assert answer.judgement.upstream.result is Result.REFUSE


def test_recipient_that_only_postfix_can_place_is_not_refused_early() -> None:
    answer = Connection(hub(), "", **CERTIFICATE).ask("RCPT", recipient="x%contoso.com@contoso.com")
    assert answer.action is not Action.REJECT


def test_null_sender_is_the_milters_where_that_applies_the_rule() -> None:
    answer = Connection(hub(by="milter"), "", **CERTIFICATE).ask("RCPT", recipient="x@example.com")
    assert (answer.action, answer.judgement) == (Action.DUNNO, None)


def test_recipients_let_through_are_recorded_with_what_is_said_of_them() -> None:
    connection = Connection(hub(refuse=False), "", **CERTIFICATE)
    connection.ask("RCPT", recipient="x@example.com")
    connection.ask("RCPT", recipient="ann@contoso.com", queue_id="4CgSNs5Q9s")
    answer = connection.ask("DATA", recipient="", recipient_count="2", queue_id="4CgSNs5Q9s")
    assert [entry.upstream for entry in answer.passed] == [NULL, "inside"]
