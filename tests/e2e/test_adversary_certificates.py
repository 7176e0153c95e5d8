# SPDX-License-Identifier: GPL-3.0-or-later
"""Clients who want to pass for another one, by their certificate or by what they say: real TLS to a real Postfix.

See tlsclients.py for who is who: the connector is crm.contoso.com's, and nothing else lets these clients relay. What
test_certificates.py has is not here again.
"""

from __future__ import annotations

import smtplib
from collections.abc import Sequence
from datetime import datetime, timedelta, timezone
from pathlib import Path
from typing import Callable, Optional

import pytest
from cryptography import x509
from cryptography.hazmat.primitives import hashes, serialization
from cryptography.hazmat.primitives.asymmetric import ec
from cryptography.x509.oid import NameOID
from tlsclients import FOREIGN, HUB, OUTSIDE, enforcing, listed, refused, send

from gatepost.admin.authority import Authority, Credentials
from gatepost.admin.stage import Stage, command, transact

PLAIN = "smtpd_authorized_xclient_hosts =\nsmtpd_authorized_xforward_hosts =\n"


def signed(
    folder: Path,
    common_names: Sequence[str],
    names: Sequence[str] = (),
    *,
    by: Optional[tuple[x509.Certificate, ec.EllipticCurvePrivateKey]] = None,
    chain: Sequence[Path] = (),
    begins: timedelta = timedelta(days=-1),
) -> Credentials:
    """Make a certificate that `Authority.issue` would not make; *by* whom it is signed; *chain*: sent with it."""
    folder.mkdir(exist_ok=True)
    key = ec.generate_private_key(ec.SECP256R1())
    subject = x509.Name([x509.NameAttribute(NameOID.COMMON_NAME, name) for name in common_names])
    issuer, signer = (by[0].subject, by[1]) if by else (subject, key)
    now = datetime.now(timezone.utc)
    builder = (
        x509.CertificateBuilder()
        .subject_name(subject)
        .issuer_name(issuer)
        .public_key(key.public_key())
        .serial_number(x509.random_serial_number())
        .not_valid_before(now + begins)
        .not_valid_after(now + timedelta(days=30))
        .add_extension(x509.BasicConstraints(ca=False, path_length=None), critical=True)
    )
    if names:
        builder = builder.add_extension(x509.SubjectAlternativeName(list(map(x509.DNSName, names))), critical=False)
    certificate = builder.sign(signer, hashes.SHA256())
    stem = folder / str(len(list(folder.iterdir())))
    pem = certificate.public_bytes(serialization.Encoding.PEM) + b"".join(path.read_bytes() for path in chain)
    stem.with_suffix(".pem").write_bytes(pem)
    stem.with_suffix(".key").touch(mode=0o600)
    stem.with_suffix(".key").write_bytes(private(key))
    fingerprint = certificate.fingerprint(hashes.SHA256()).hex(":").upper()
    return Credentials(stem.with_suffix(".pem"), stem.with_suffix(".key"), fingerprint)


def private(key: ec.EllipticCurvePrivateKey) -> bytes:
    return key.private_bytes(
        serialization.Encoding.PEM, serialization.PrivateFormat.PKCS8, serialization.NoEncryption()
    )


def loaded(of: Credentials) -> tuple[x509.Certificate, ec.EllipticCurvePrivateKey]:
    key = serialization.load_pem_private_key(of.key.read_bytes(), None)
    assert isinstance(key, ec.EllipticCurvePrivateKey)
    return x509.load_pem_x509_certificate(of.certificate.read_bytes()), key


def authority(stage: Stage) -> tuple[x509.Certificate, ec.EllipticCurvePrivateKey]:
    found = stage.authority
    return x509.load_pem_x509_certificate(found.file.read_bytes()), found._key


class Attackers:
    """Certificates of those who have no connector, all of the authority that Postfix trusts."""

    def __init__(self, stage: Stage) -> None:
        self.folder = stage.root / "attackers"
        ours = stage.authority
        self.own = ours.issue("evil.example", ["evil.example"])
        self.server_only = ours.issue("crm.contoso.com", ["crm.contoso.com"], client_auth=False)
        self.two_organizations = ours.issue("crm.contoso.com", ["crm.contoso.com", "app.fabrikam.com"])
        self.genuine_twin = ours.issue("CRM System 9", ["crm.contoso.com"])
        self.evil_twin = ours.issue("CRM System 9", ["evil.example"])
        listed(stage, self.genuine_twin, self.two_organizations)


@pytest.fixture(scope="module")
def attackers() -> dict[str, Attackers]:
    return {}


@pytest.fixture(scope="module")
def hub(boot: Callable[..., Stage], attackers: dict[str, Attackers]) -> Stage:
    def prepare(stage: Stage) -> None:
        attackers["hub"] = Attackers(stage)

    return boot("relay-hub", before=HUB, configuration=enforcing, tls=True, prepare=prepare)


@pytest.fixture
def its(hub: Stage, attackers: dict[str, Attackers]) -> Attackers:
    return attackers["hub"]


# A CN that looks like another one


@pytest.mark.parametrize(
    "common_name",
    [
        "crm.contoso.com\0.evil.example",
        "evil.example\0crm.contoso.com",
        "*",
        "*.*",
        "*.com",
        "*.contoso.com",
        "crm.*.com",
        "crm.contoso.com, evil.example",
        "evil.example, crm.contoso.com",
        "evil.example/CN=crm.contoso.com",
        "/CN=crm.contoso.com",
        "CN=crm.contoso.com",
        "crm.contoso.com evil.example",
        " crm.contoso.com",
        "crm.contoso.com\n",
        "evil.example\r\ncrm.contoso.com",
        "crm.contoso.com..",
        ".crm.contoso.com",
        "crm.c\u043entoso.com",
        "crm\u3002contoso\u3002com",
        "\uff43\uff52\uff4d.contoso.com",
        "crm.conto\u00adso.com",
        "xn--crm-.contoso.com",
        "crm+2Econtoso+2Ecom",
        "no name known: fingerprint crm.contoso.com",
        "192.0.2.5",
    ],
)
def test_cn_that_only_looks_like_the_connectors_name_lets_nothing_relay(
    hub: Stage, its: Attackers, common_name: str
) -> None:
    client = signed(its.folder, [common_name], by=authority(hub))
    assert refused(send(hub, client).last)


def test_cn_of_two_names_is_one_name_to_who_asks_why_it_was_refused(hub: Stage, its: Attackers) -> None:
    reply = send(hub, signed(its.folder, ["evil.example, crm.contoso.com"], by=authority(hub))).last
    explained = hub.gatepost("explain", reply.text[-11:-1]).stdout
    assert 'Certificate name "evil.example; crm.contoso.com" is no domain name' in explained


def test_cn_in_capitals_or_with_the_roots_dot_is_the_same_name(hub: Stage, its: Attackers) -> None:
    for name in ("CRM.Contoso.COM", "crm.contoso.com."):
        assert send(hub, signed(its.folder, [name], by=authority(hub))).accepted


def test_of_two_cns_the_first_alone_counts_as_in_postfix(hub: Stage, its: Attackers) -> None:
    assert refused(send(hub, signed(its.folder, ["evil.example", "crm.contoso.com"], by=authority(hub))).last)


def test_name_in_the_san_of_a_certificate_in_no_file_lets_nothing_relay(hub: Stage, its: Attackers) -> None:
    client = signed(its.folder, ["evil.example"], ["evil.example", "crm.contoso.com"], by=authority(hub))
    assert refused(send(hub, client).last)


# A chain that does not hold


def test_certificate_that_another_client_has_signed_with_its_own_lets_nothing_relay(hub: Stage, its: Attackers) -> None:
    client = signed(its.folder, ["crm.contoso.com"], by=loaded(its.own), chain=[its.own.certificate])
    assert refused(send(hub, client).last)


def test_certificate_of_an_authority_with_the_trusted_ones_name_lets_nothing_relay(hub: Stage, its: Attackers) -> None:
    forger = Authority(its.folder / "forger")
    assert refused(send(hub, forger.issue("crm.contoso.com", ["crm.contoso.com"])).last)


def test_certificate_that_is_valid_from_tomorrow_on_lets_nothing_relay(hub: Stage, its: Attackers) -> None:
    client = signed(its.folder, ["crm.contoso.com"], by=authority(hub), begins=timedelta(days=1))
    assert refused(send(hub, client).last)


def test_certificate_for_servers_only_lets_nothing_relay(hub: Stage, its: Attackers) -> None:
    assert refused(send(hub, its.server_only).last)


# A certificate with the CN and the issuer of one in the folder


ODD_PATHS = [
    (FOREIGN, "x(y)@example.com"),
    (FOREIGN, "x@example.com."),
    (FOREIGN, "x @example.com"),
    (FOREIGN, '"x\\y"@example.com'),
    (FOREIGN, "X@EXAMPLE.com"),
    (FOREIGN, "@relay.example,@other.example:x@example.com"),
    ("app(y)@vendor.example", OUTSIDE),
    ("@relay.example:app@vendor.example", OUTSIDE),
    ("app@vendor.example.", OUTSIDE),
    ('"ap\\p"@vendor.example', OUTSIDE),
]


@pytest.mark.parametrize(("mail_from", "rcpt"), ODD_PATHS)
def test_twin_does_not_get_the_names_of_the_listed_one_by_an_address_that_the_daemons_read_differently(
    hub: Stage, its: Attackers, mail_from: str, rcpt: str
) -> None:
    """policyd's report is then of another address than the milter asks for; the CN alone counts."""
    assert send(hub, its.genuine_twin).accepted
    assert not send(hub, its.evil_twin, mail_from, rcpt).accepted


@pytest.mark.parametrize(
    "mail_from", ["scanner", '"John Doe"@vendor.example', "app@[IPv6:2001:db8::1]", "mail.contoso.com!app", ""]
)
def test_listed_certificate_keeps_its_names_where_postfix_completes_p1_or_tells_it_in_lower_case(
    hub: Stage, its: Attackers, mail_from: str
) -> None:
    assert send(hub, its.genuine_twin, mail_from, '"John Doe"@example.com').accepted


def test_certificate_of_two_organizations_is_attributed_to_the_first_name_that_a_connector_has(
    hub: Stage, its: Attackers
) -> None:
    start = len(hub.log())
    assert send(hub, its.two_organizations, "app@fabrikam.com").accepted
    hub.wait_for_log(r"action=pass, from=<app@fabrikam\.com>, .* organization=contoso,", start=start)


def test_certificate_of_one_organization_with_p1_of_another_is_attributed_to_the_certificates(hub: Stage) -> None:
    """P1 stays, as any of an accepted domain does (S2); the ledger says whose certificate it was."""
    start = len(hub.log())
    client = hub.authority.issue("app.fabrikam.com")
    assert send(hub, client, "ceo@contoso.com").accepted
    hub.wait_for_log(r"action=pass, from=<ceo@contoso\.com>, .* organization=fabrikam,", start=start)


# Who says that he is another one


@pytest.fixture(scope="module")
def plain(boot: Callable[..., Stage]) -> Stage:
    def office(text: str) -> str:
        return enforcing(text).replace('sender_ip_addresses = ["192.0.2.0/28"]', 'sender_ip_addresses = ["127.0.0.2"]')

    return boot("relay-hub", before=HUB, after=PLAIN, configuration=office)


def test_xclient_and_xforward_of_a_client_that_may_not_are_refused_and_change_nothing(plain: Stage) -> None:
    with plain.session(client="") as smtp:
        assert command(smtp, "XCLIENT ADDR=127.0.0.2 NAME=crm.contoso.com").code >= 500
        assert command(smtp, "XFORWARD ADDR=127.0.0.2 NAME=crm.contoso.com HELO=crm.contoso.com").code >= 500
        assert command(smtp, "XCLIENT LOGIN=app@contoso.com").code >= 500
        assert refused(transact(smtp, "app@contoso.com", OUTSIDE).last)


def test_helo_and_proxy_line_of_another_one_change_nothing(plain: Stage) -> None:
    for helo in ("crm.contoso.com", "[127.0.0.2]", "127.0.0.2"):
        with plain.session(client="", helo=helo) as smtp:
            assert refused(transact(smtp, "app@contoso.com", OUTSIDE).last)
    with smtplib.SMTP(*plain.postfix.smtp, timeout=30) as smtp:
        assert command(smtp, "PROXY TCP4 127.0.0.2 127.0.0.1 40002 25").code >= 500
        assert refused(transact(smtp, "app@contoso.com", OUTSIDE).last)


def test_the_connectors_own_client_relays(plain: Stage) -> None:
    with smtplib.SMTP(*plain.postfix.smtp, source_address=("127.0.0.2", 0), timeout=30) as smtp:
        smtp.ehlo("x")
        assert transact(smtp, "app@contoso.com", OUTSIDE).accepted
