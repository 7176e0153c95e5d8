# SPDX-License-Identifier: GPL-3.0-or-later
"""Two organisations behind one address, as their exports have them, on a real Postfix: whose mail is whose (R3, R5).

192.0.2.5 is in a connector of contoso and one of fabrikam. Each has a certificate name, too.
"""

from __future__ import annotations

import json
import re
from pathlib import Path
from typing import Callable, Optional

import pytest

from gatepost.admin.authority import Credentials
from gatepost.admin.stage import Stage, Transcript

SHARED = "192.0.2.5"
OUTSIDE = "x@example.com"
REFUSED = r"550 5\.7\.64 TenantAttribution; Relay Access Denied \[\w{10}\]"
HUB = """
mynetworks = 127.0.0.0/8, 192.0.2.0/24
relay_domains = contoso.com, fabrikam.com
relay_transport = relay:[mailbox.contoso.com]:25
"""


def export(folder: Path, name: str, encoding: str) -> str:
    """Write the exports of the organisation NAME.com, and return its table."""
    records = [
        {"DomainName": f"{name}.com", "DomainType": "Authoritative", "Default": True, "MatchSubDomains": False},
        *(
            {
                "Name": kind,
                "Enabled": True,
                "ConnectorType": "OnPremises",
                "SenderIPAddresses": addresses,
                "TlsSenderCertificateName": certificate,
                "AssociatedAcceptedDomains": [],
            }
            for kind, addresses, certificate in (("hoster", [SHARED], None), ("own", [], f"*.{name}.com"))
        ),
    ]
    (folder / f"{name}.json").write_text(json.dumps(records, indent=4), encoding=encoding)
    return f'[[organization]]\nname = "{name}"\nexchange_export = "{name}.json"\n'


@pytest.fixture(scope="module")
def hub(boot: Callable[..., Stage]) -> Stage:
    def prepare(stage: Stage) -> None:
        folder = stage.configuration.parent
        tables = export(folder, "contoso", "utf-16") + export(folder, "fabrikam", "utf-8-sig")
        text = stage.configuration.read_text().replace('mode = "monitor"', 'mode = "enforce"')
        stage.configuration.write_text(re.sub(r"(?s)\[\[organization\]\].*?(?=\[relay\])", tables, text))

    return boot("relay-hub", before=HUB, tls=True, prepare=prepare)


def send(hub: Stage, mail_from: str, certificate: Optional[str] = None, rcpt: str = OUTSIDE) -> Transcript:
    credentials: Optional[Credentials] = hub.authority.issue(certificate) if certificate else None
    return hub.send(mail_from, rcpt, client=SHARED, certificate=credentials)


def organization_in_log(hub: Stage, start: int) -> str:
    return hub.wait_for_log(r"action=\w+, .*organization=(\S*), reason=", start=start)[1]


@pytest.mark.parametrize(
    ("mail_from", "certificate", "rcpt", "organization"),
    [
        ("app@contoso.com", None, OUTSIDE, "contoso"),
        ("app@fabrikam.com", None, OUTSIDE, "fabrikam"),
        # The certificate goes before P1, P1 before the recipient (R3).
        ("app@contoso.com", "app.fabrikam.com", OUTSIDE, "fabrikam"),
        ("app@vendor.example", "app.contoso.com", OUTSIDE, "contoso"),
        ("", "app.fabrikam.com", OUTSIDE, "fabrikam"),
        ("app@contoso.com", "app.contoso.com", "mary@fabrikam.com", "fabrikam"),
    ],
)
def test_r3_mail_from_a_shared_address_counts_by_certificate_then_p1(
    hub: Stage, mail_from: str, certificate: Optional[str], rcpt: str, organization: str
) -> None:
    start = len(hub.log())
    assert send(hub, mail_from, certificate, rcpt).accepted
    assert organization_in_log(hub, start) == organization


@pytest.mark.parametrize("mail_from", ["", "app@vendor.example"])
def test_r5_null_sender_or_foreign_p1_from_a_shared_address_is_refused_as_nobodys(hub: Stage, mail_from: str) -> None:
    start = len(hub.log())
    assert re.fullmatch(REFUSED, str(send(hub, mail_from).last))
    line = hub.wait_for_log(r".*action=reject, .*", start=start)[0]
    reason = "null-sender-without-certificate" if not mail_from else "nothing-accepted"
    assert f"reason={reason}" in line
    assert "organization=contoso" not in line
    assert "organization=fabrikam" not in line


def test_check_says_why_and_that_a_certificate_of_its_own_helps(hub: Stage) -> None:
    answer = hub.gatepost("check", "--ip", SHARED, "--mail-from", "<>", "--rcpt", OUTSIDE).stdout
    words = " ".join(answer.split())
    assert "Condition 2 holds for several organizations, so the client alone names none of them." in words
    assert "where an address is shared, give each organization a certificate of its own" in words


def test_config_check_names_the_address_and_both_connectors(hub: Stage) -> None:
    lines = hub.gatepost("config", "check").stdout.splitlines()
    assert [line for line in lines if SHARED in line] == [
        f'warning: {SHARED} is in connector "hoster" of contoso and connector "hoster" of fabrikam: without a '
        "certificate P1 alone tells whose mail comes from there, and mail with a null sender or a foreign P1 is "
        "refused as nobody's (relay.mode and relay.action). Give each organization a certificate of its own "
        "(tls_sender_certificate_name)"
    ]
