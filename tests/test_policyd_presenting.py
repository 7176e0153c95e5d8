# SPDX-License-Identifier: GPL-3.0-or-later
"""policyd and clients' certificates: what it reports to the milter of each RCPT, and its own verdicts."""

from __future__ import annotations

from pathlib import Path

import pytest

from gatepost.admin.authority import Authority, Credentials
from gatepost.policyd.decisions import Aids, Answer, Transaction, decide
from gatepost.policyd.presenting import Presenting
from gatepost.service.certificates import UNKNOWN, Shown, read
from gatepost.service.config import parse
from gatepost.service.presented import Presented, client, matter, server
from gatepost.service.snapshot import Snapshot, build
from gatepost.srs import Keys

NOW = 1_700_000_000.0
ALICE = client("192.0.2.1", "40001")
MATTER = matter("bob@fabrikam.com", "x@example.com", Shown("", "Our CA"), server("192.0.2.9", "25"))


@pytest.fixture
def crm(tmp_path: Path) -> Credentials:
    issued = Authority(tmp_path / "tls").issue(None, ["crm.contoso.com", "files.contoso.net"])
    (tmp_path / "certificates").mkdir()
    (tmp_path / "certificates/crm.pem").write_bytes(issued.certificate.read_bytes())
    return issued


@pytest.fixture(params=["milter", "policyd"])
def hub(request: pytest.FixtureRequest, tmp_path: Path, crm: Credentials) -> Snapshot:
    raw: dict[str, object] = {
        "state_directory": str(tmp_path),
        "organization": [
            {
                "name": "contoso",
                "accepted_domain": [{"domain": "contoso.com"}],
                "connector": [{"name": "crm", "tls_sender_certificate_name": "crm.contoso.com"}],
            }
        ],
        "relay": {"mode": "enforce", "enforced_by": request.param},
    }
    config = parse(raw, tmp_path / "gatepost.toml")
    return build(config, Keys([b"key"]), 0.0, read(config.relay.certificate_folder))


def rcpt(fingerprint: str = "", issuer: str = "Our+20CA", subject: str = "") -> dict[bytes, bytes]:
    attributes = {
        "protocol_state": "RCPT",
        "instance": "1",
        "sender": "bob@fabrikam.com",
        "recipient": "x@example.com",
        "client_address": "192.0.2.1",
        "client_port": "40001",
        "server_address": "192.0.2.9",
        "server_port": "25",
        "ccert_subject": subject,
        "ccert_issuer": issuer,
        "ccert_fingerprint": fingerprint,
    }
    return {name.encode(): value.encode() for name, value in attributes.items()}


def answer(hub: Snapshot, request: dict[bytes, bytes]) -> Answer:
    aids = Aids(lambda: "REFERENCE1", lambda token: None, lambda client: False)
    return decide(hub, request, Transaction(), int(NOW), aids)[0]


def test_certificate_of_a_rcpt_is_reported_whoever_enforces(hub: Snapshot, crm: Credentials) -> None:
    Presenting(hub).report(rcpt(crm.fingerprint), NOW)
    assert Presented(hub.config.state_directory / "presented").take(ALICE, MATTER, NOW) == crm.fingerprint


@pytest.mark.parametrize("issuer", ["", "Another+20CA"], ids=["none that is trusted", "another issuer"])
def test_later_rcpt_of_the_same_client_replaces_the_report(hub: Snapshot, crm: Credentials, issuer: str) -> None:
    presenting = Presenting(hub)
    presenting.report(rcpt(crm.fingerprint), NOW)
    presenting.report(rcpt("3F:5B", issuer), NOW)
    assert Presented(hub.config.state_directory / "presented").take(ALICE, MATTER, NOW) == UNKNOWN


def test_certificate_without_any_name_is_named_in_the_log_once_an_hour(
    hub: Snapshot, capfd: pytest.CaptureFixture[str]
) -> None:
    presenting = Presenting(hub)
    for later in (0, 60, 3599, 3600):
        presenting.report(rcpt("3F:5B:9C"), NOW + later)
    folder = hub.config.relay.certificate_folder
    line = (
        f"warning: the certificate of 192.0.2.1, issued by Our CA, has no CN and is in no file of {folder}, so no name "
        "of it is known and it counts as none: fingerprint=3F:5B:9C"
    )
    assert [found.split(": ", 1)[1] for found in capfd.readouterr().err.splitlines()] == [line, line]


def test_certificate_with_a_name_is_not_named_in_the_log(
    hub: Snapshot, crm: Credentials, capfd: pytest.CaptureFixture[str]
) -> None:
    presenting = Presenting(hub)
    for request in (rcpt(crm.fingerprint), rcpt("3F:5B", subject="CRM"), rcpt("3F:5B", issuer="")):
        presenting.report(request, NOW)
    assert capfd.readouterr().err == ""


@pytest.mark.parametrize("hub", ["policyd"], indirect=True)
def test_name_in_the_san_counts_for_policyds_own_verdict(hub: Snapshot, crm: Credentials) -> None:
    assert answer(hub, rcpt(crm.fingerprint)).text == "OK"
    assert answer(hub, rcpt(crm.fingerprint, issuer="")).text == "DUNNO"
    assert answer(hub, rcpt("3F:5B")).text == "DUNNO"


@pytest.mark.parametrize("hub", ["policyd"], indirect=True)
def test_all_names_are_recorded(hub: Snapshot, crm: Credentials) -> None:
    forged = b"bounces+SRS=aaaaaaaa=AA=fabrikam.com=bob@contoso.com"
    request = {**rcpt(crm.fingerprint), b"recipient": forged}
    refused = answer(hub, request).refused
    assert refused
    assert refused.certificate_names == "crm.contoso.com, files.contoso.net"


@pytest.mark.parametrize("hub", ["policyd"], indirect=True)
def test_refusal_names_the_certificate_that_was_not_enough(hub: Snapshot) -> None:
    request = {**rcpt("3F:5B", subject="CRM"), b"sender": b"app@contoso.com"}
    assert ", reason=no-connector, certificate=<CRM>, fingerprint=3F:5B" in answer(hub, request).log
