# SPDX-License-Identifier: GPL-3.0-or-later
"""Set up as a relay hub where opendkim signs what leaves. opendkim is Debian's."""

from __future__ import annotations

import base64
from collections.abc import Mapping
from pathlib import Path
from typing import Callable

import dkim
import pytest
from cryptography.hazmat.primitives import serialization
from cryptography.hazmat.primitives.asymmetric import rsa
from realmta_milters import OpenDkim
from realmta_site import BOB, DAY, HEAD_OFFICE, Kind, Site
from realmta_story import REFUSED, REWRITTEN, EveryServer, Story, tell, transcript

from gatepost.admin.sandbox import free_port

SIGNED = Kind(HEAD_OFFICE, BOB, "r6@example.com", header_from="app@contoso.com")


@pytest.fixture(scope="module")
def key() -> rsa.RSAPrivateKey:
    return rsa.generate_private_key(public_exponent=65537, key_size=2048)


@pytest.fixture(scope="module")
def opendkim(root: Path, key: rsa.RSAPrivateKey) -> OpenDkim:
    pem = key.private_bytes(
        serialization.Encoding.PEM, serialization.PrivateFormat.TraditionalOpenSSL, serialization.NoEncryption()
    )
    return OpenDkim(root / "opendkim", free_port(), "contoso.com", "mail", pem)


@pytest.fixture(scope="module")
def site(boot_site: Callable[..., Site], opendkim: OpenDkim) -> Site:
    ports = {":8891": f":{opendkim.port}"}
    return boot_site("opendkim", "relay-hub", replacing=ports, day={**DAY, "signed": SIGNED})


@pytest.fixture(scope="module")
def story(site: Site, opendkim: OpenDkim) -> Story:
    def with_one_of_them_away(site: Site) -> Mapping[str, tuple[str, ...]]:
        site.stage.stop_gatepost()
        gatepost_away = site.send("gatepost-away", DAY["accepted-p1"])
        site.stage.start_gatepost()
        opendkim.stop()
        opendkim_away = site.send("opendkim-away", DAY["foreign-p1"])
        opendkim.start()
        return {"gatepost-away": gatepost_away, "opendkim-away": opendkim_away}

    with opendkim:
        return tell(site, with_one_of_them_away)


class TestOpendkim(EveryServer):
    pass


def test_rule_holds_and_known_hosts_are_rewritten(story: Story) -> None:
    """What is forwarded is left alone in this topology."""
    assert transcript(story.enforced) == [
        "to-a-mailbox: mailbox bob@fabrikam.com -> games",
        "to-an-alias-outside: internet bob@fabrikam.com -> john.home@example.com",
        "to-both: internet bob@fabrikam.com -> john.home@example.com",
        "to-both: mailbox bob@fabrikam.com -> games",
        "accepted-p1: internet app@contoso.com -> r1@example.com",
        f"foreign-p1: internet {REWRITTEN} -> r2@example.com",
        f"no-connector: {REFUSED}",
        "no-relay: 454 4.7.1 <r4@example.com>: Relay access denied",
        "refused-later: internet <> -> bob@fabrikam.com",
        "null-sender: mailbox <> -> games",
        f"signed: internet {REWRITTEN} -> r6@example.com",
        f"sendmail: internet {REWRITTEN} -> r5@example.com",
        "bounce-from-outside: internet <> -> bob@fabrikam.com",
    ]


@pytest.mark.parametrize("kind", ["signed", "accepted-p1"])
def test_signature_verifies_before_and_after(story: Story, site: Site, key: rsa.RSAPrivateKey, kind: str) -> None:
    public = key.public_key().public_bytes(serialization.Encoding.DER, serialization.PublicFormat.SubjectPublicKeyInfo)
    record = b"v=DKIM1; p=" + base64.b64encode(public)
    subject = f"Subject: {kind}\r\n".encode()
    mails = [mail for mail in site.stage.internet.messages if subject in mail.content]
    assert len({mail.mail_from.partition("=")[0] for mail in mails}) == (2 if kind == "signed" else 1)
    assert [dkim.verify(mail.content, dnsfunc=lambda name, timeout=5: record) for mail in mails] == [True] * 4


def test_each_milter_keeps_its_own_way_when_it_is_away(story: Story, site: Site) -> None:
    """milter_default_action = accept is for opendkim: without it mail leaves unsigned, without gatepost it waits."""
    assert story.aside["gatepost-away"] == ("451 4.7.1 Service unavailable - try again later",)
    assert story.aside["opendkim-away"][-1] == "250 2.0.0 Ok: queued as ID"
    (mail,) = [mail for mail in site.stage.internet.messages if b"Subject: opendkim-away\r\n" in mail.content]
    assert mail.mail_from.startswith("bounces+SRS=")
    assert b"DKIM-Signature:" not in mail.content
