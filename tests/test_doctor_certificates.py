# SPDX-License-Identifier: GPL-3.0-or-later
"""`gatepost doctor` and certificates: those of the clients in the folder, and this host's own."""

from __future__ import annotations

import shutil
import subprocess
import time
from collections.abc import Sequence
from pathlib import Path
from typing import Optional

import pytest
from cryptography import x509
from doctors import Raw, circumstances, found, no_postfix, texts

from gatepost.admin.authority import Authority, Credentials
from gatepost.admin.check_certificate import may_authenticate
from gatepost.admin.doctor.model import Circumstances
from gatepost.admin.postfix.config import PostfixConfig, Service

DAY_S = 86400
NOW = time.time() + DAY_S / 2
"""Certificates last for 29 days and a half from then on, expired ones have done so for a day and a half."""


@pytest.fixture(scope="module")
def authority(tmp_path_factory: pytest.TempPathFactory) -> Authority:
    return Authority(tmp_path_factory.mktemp("authority"))


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    made = tmp_path / "certificates"
    made.mkdir()
    return made


def contoso(*names: str, domain: str = "contoso.com") -> dict[str, object]:
    """The organisation contoso with a connector for each certificate name."""
    return {
        "name": "contoso",
        "accepted_domain": [{"domain": domain, "default": True}],
        "connector": [{"name": f"c{index}", "tls_sender_certificate_name": name} for index, name in enumerate(names)],
    }


def postfix(services: Sequence[Service] = (), **parameters: str) -> PostfixConfig:
    directory = Path("/etc/postfix")
    defaults = {"config_directory": str(directory)}
    return PostfixConfig(
        "postconf", directory, parameters, frozenset(parameters), defaults, parameters, tuple(services)
    )


def looking(
    folder: Path,
    *names: str,
    now: float = NOW,
    mta: Optional[PostfixConfig] = None,
    domain: str = "contoso.com",
    **more: Raw,
) -> Circumstances:
    raw = {
        "organization": [contoso(*names, domain=domain)],
        "relay": {"mode": "enforce", "certificate_folder": str(folder)},
        **more,
    }
    return circumstances(raw, now=now, read_postfix=lambda: mta or no_postfix())


def put(folder: Path, name: str, credentials: Credentials) -> None:
    shutil.copy(credentials.certificate, folder / name)


# Files


def test_files_that_can_be_read_are_counted(folder: Path, authority: Authority) -> None:
    put(folder, "crm.pem", authority.issue("crm.contoso.com"))
    assert texts(looking(folder, "crm.contoso.com"), "certificate-files") == [f"ok: {folder}: 1 certificate"]


def test_a_file_that_is_none_is_a_warning(folder: Path) -> None:
    (folder / "crm.pem").write_text("soon")
    (finding,) = found(looking(folder, "crm.contoso.com"), "certificate-files")
    assert finding.what == f"{folder}/crm.pem: holds no certificate, neither PEM nor DER"
    assert "none of the names in its SAN" in finding.why


def test_a_certificate_that_is_there_twice_is_mentioned(folder: Path, authority: Authority) -> None:
    client = authority.issue("crm.contoso.com")
    put(folder, "crm.pem", client)
    put(folder, "old.pem", client)
    assert texts(looking(folder, "crm.contoso.com"), "certificate-files") == [
        f"info: the same certificate is in {folder}/crm.pem and {folder}/old.pem",
        f"ok: {folder}: 1 certificate",
    ]


def test_without_certificates_and_connectors_by_certificate_nothing_is_said(folder: Path) -> None:
    for check in ("certificate-files", "certificate-names", "certificate-expiry", "certificate-purpose"):
        assert texts(looking(folder), check) == []


# Names


def test_a_connector_with_its_certificate_is_well(folder: Path, authority: Authority) -> None:
    put(folder, "crm.pem", authority.issue(None, ["crm.contoso.com", "crm2.contoso.com"]))
    assert texts(looking(folder, "crm.contoso.com"), "certificate-names") == [
        'ok: connector "c0" of contoso: crm.contoso.com, crm2.contoso.com (crm.pem)'
    ]


def test_a_connector_without_certificate_is_mentioned(folder: Path) -> None:
    (finding,) = found(looking(folder, "crm.contoso.com"), "certificate-names")
    assert finding.what == f'connector "c0" of contoso: no file in {folder} has crm.contoso.com'
    assert finding.remedy == (f"install -m 0644 CERTIFICATE.pem {folder}/",)


def test_a_certificate_without_connector_is_mentioned(folder: Path, authority: Authority) -> None:
    put(folder, "old.pem", authority.issue("old.contoso.com"))
    assert texts(looking(folder), "certificate-names") == [
        f"info: {folder}: no enabled connector goes by old.contoso.com (old.pem)"
    ]


def test_a_certificate_under_a_wildcard_two_labels_below_the_domain_is_mentioned(
    folder: Path, authority: Authority
) -> None:
    put(folder, "deep.pem", authority.issue("a.crm.contoso.com"))
    put(folder, "near.pem", authority.issue("crm.contoso.com"))
    lines = texts(looking(folder, "*.contoso.com"), "certificate-names")
    assert lines[-1] == "info: a.crm.contoso.com (deep.pem) is in no accepted domain, nor one label below one"
    assert not any("near.pem) is in" in line for line in lines)


# Dates


def test_certificates_that_last_are_well(folder: Path, authority: Authority) -> None:
    put(folder, "crm.pem", authority.issue("crm.contoso.com"))
    looked_at = looking(folder, "crm.contoso.com", now=NOW - 10 * DAY_S)
    assert texts(looked_at, "certificate-expiry") == ["ok: 1 certificate: the first ends in 39 days"]


def test_a_certificate_that_ends_soon_is_a_warning(folder: Path, authority: Authority) -> None:
    put(folder, "crm.pem", authority.issue("crm.contoso.com"))
    looked_at = looking(folder, "crm.contoso.com", now=NOW + 20 * DAY_S)
    assert texts(looked_at, "certificate-expiry") == ["warning: crm.contoso.com (crm.pem) expires in 9 days"]


def test_an_expired_certificate_that_a_connector_goes_by_is_an_error(folder: Path, authority: Authority) -> None:
    put(folder, "crm.pem", authority.issue("crm.contoso.com", expired=True))
    (finding,) = found(looking(folder, "crm.contoso.com"), "certificate-expiry")
    assert (finding.severity.value, finding.what) == ("error", "crm.contoso.com (crm.pem) expired 1 day ago")
    assert finding.why == (
        "Postfix does not trust it: its client counts as one without a certificate (R10), and is refused unless a "
        "connector has its address. Of a renewed one the CN counts alone until its file is here."
    )


def test_an_expired_certificate_of_nobody_is_a_warning(folder: Path, authority: Authority) -> None:
    put(folder, "old.pem", authority.issue("old.contoso.com", expired=True))
    assert texts(looking(folder), "certificate-expiry") == ["warning: old.contoso.com (old.pem) expired 1 day ago"]


def test_an_expired_certificate_beside_the_renewed_one_is_well(folder: Path, authority: Authority) -> None:
    put(folder, "2025.pem", authority.issue("crm.contoso.com", expired=True))
    put(folder, "2026.pem", authority.issue("crm.contoso.com"))
    looked_at = looking(folder, "crm.contoso.com", now=NOW - DAY_S)
    assert texts(looked_at, "certificate-expiry") == ["ok: 1 certificate: the first ends in 30 days"]


def test_of_many_certificates_that_end_the_first_are_told(folder: Path, authority: Authority) -> None:
    for number in range(12):
        put(folder, f"{number:02}.pem", authority.issue(f"c{number:02}.contoso.com", expired=True))
    lines = texts(looking(folder), "certificate-expiry")
    assert lines[9:] == ["warning: c09.contoso.com (09.pem) expired 1 day ago", "info: and 2 more of this kind"]


# Purpose


def test_a_certificate_for_clients_is_well(folder: Path, authority: Authority) -> None:
    put(folder, "crm.pem", authority.issue("crm.contoso.com"))
    assert texts(looking(folder, "crm.contoso.com"), "certificate-purpose") == [
        "ok: 1 certificate good for client authentication"
    ]


def test_a_certificate_for_servers_only_is_an_error(folder: Path, authority: Authority) -> None:
    put(folder, "crm.pem", authority.issue("crm.contoso.com", client_auth=False))
    assert texts(looking(folder, "crm.contoso.com"), "certificate-purpose") == [
        "error: crm.contoso.com (crm.pem) is not good for client authentication: its extended key usage has no "
        "clientAuth"
    ]


@pytest.mark.parametrize(
    ("usage", "good"),
    [("clientAuth", True), ("serverAuth", False), ("anyExtendedKeyUsage", False), ("serverAuth,clientAuth", True)],
)
def test_openssl_agrees_on_what_is_good_for_a_client(tmp_path: Path, usage: str, good: bool) -> None:
    file = str(tmp_path / "client.pem")
    made = f"req -x509 -newkey rsa:2048 -nodes -keyout {file}.key -out {file} -subj /CN=x".split()
    subprocess.run(["openssl", *made, "-addext", f"extendedKeyUsage={usage}"], check=True, capture_output=True)
    command = ["openssl", "verify", "-purpose", "sslclient", "-CAfile", file, file]
    assert (subprocess.run(command, capture_output=True).returncode == 0) is good
    assert may_authenticate(x509.load_pem_x509_certificate(Path(file).read_bytes())) is good


# Who issued them


def test_certificates_of_an_authority_that_smtpd_trusts_are_well(folder: Path, authority: Authority) -> None:
    put(folder, "crm.pem", authority.issue("crm.contoso.com"))
    put(folder, "erp.pem", authority.issue("erp.contoso.com", expired=True))  # another check's matter
    mta = postfix(smtpd_tls_CAfile=str(authority.file), tls_append_default_CA="no")
    looked_at = looking(folder, "crm.contoso.com", "erp.contoso.com", mta=mta)
    assert texts(looked_at, "certificate-trust") == [f"ok: 2 certificates issued by authorities in {authority.file}"]


def test_a_certificate_of_another_authority_is_a_warning_for_its_chain_may_be_sent(
    folder: Path, authority: Authority, tmp_path: Path
) -> None:
    put(folder, "crm.pem", authority.issue("crm.contoso.com"))
    put(folder, "erp.pem", Authority(tmp_path / "other", "Other CA").issue("erp.contoso.com"))
    mta = postfix(smtpd_tls_CAfile=str(authority.file))
    (finding,) = found(looking(folder, "crm.contoso.com", "erp.contoso.com", mta=mta), "certificate-trust")
    assert finding.what == f'erp.contoso.com (erp.pem): its issuer "Other CA" is not in {authority.file}'
    assert finding.remedy == (f"cat ISSUER.pem >> {authority.file} && postfix reload",)


def test_a_certificate_that_is_issued_by_itself_is_an_error(folder: Path, authority: Authority) -> None:
    put(folder, "crm.pem", authority.issue("crm.contoso.com", self_signed=True))
    mta = postfix(smtpd_tls_CAfile=str(authority.file))
    (line,) = texts(looking(folder, "crm.contoso.com", mta=mta), "certificate-trust")
    assert line.startswith(f"error: crm.contoso.com (crm.pem) is not trusted by {authority.file}: self")


def test_an_smtpd_that_trusts_nobody_is_an_error(folder: Path, authority: Authority) -> None:
    put(folder, "crm.pem", authority.issue("crm.contoso.com"))
    assert texts(looking(folder, "crm.contoso.com", mta=postfix()), "certificate-trust") == [
        "error: smtpd_tls_CAfile and smtpd_tls_CApath are empty"
    ]


def test_without_openssl_nobody_can_tell(folder: Path, authority: Authority, monkeypatch: pytest.MonkeyPatch) -> None:
    put(folder, "crm.pem", authority.issue("crm.contoso.com"))
    monkeypatch.setenv("PATH", "/nonexistent")
    mta = postfix(smtpd_tls_CAfile=str(authority.file))
    assert texts(looking(folder, "crm.contoso.com", mta=mta), "certificate-trust") == [
        "unknown: who has issued the certificates was not verified: there is no openssl(1)"
    ]


# smtpd's own


def test_the_server_s_certificate_that_lasts_is_well(folder: Path, authority: Authority) -> None:
    own = authority.issue("mail.contoso.com").certificate
    looked_at = looking(folder, mta=postfix(smtpd_tls_cert_file=str(own)))
    assert texts(looked_at, "server-certificate") == [f"ok: {own} is valid for 29 days more"]


def test_the_server_s_certificate_that_ends_next_week_is_a_warning(folder: Path, authority: Authority) -> None:
    own = authority.issue("mail.contoso.com").certificate
    looked_at = looking(folder, mta=postfix(smtpd_tls_cert_file=str(own)), now=NOW + 23 * DAY_S)
    assert texts(looked_at, "server-certificate") == [f"warning: {own} expires in 6 days"]


def test_the_server_s_expired_certificate_is_an_error(folder: Path, authority: Authority) -> None:
    own = authority.issue("mail.contoso.com", expired=True)
    chain = own.key.with_suffix(".chain")
    chain.write_bytes(own.key.read_bytes() + own.certificate.read_bytes())
    looked_at = looking(folder, mta=postfix(smtpd_tls_chain_files=str(chain), smtpd_tls_cert_file="/ignored"))
    assert texts(looked_at, "server-certificate") == [f"error: {chain} expired 1 day ago"]


def test_a_missing_certificate_of_the_server_is_an_error(folder: Path) -> None:
    looked_at = looking(folder, mta=postfix(smtpd_tls_cert_file="/nonexistent/mail.pem"))
    assert texts(looked_at, "server-certificate") == ["error: /nonexistent/mail.pem: No such file or directory"]


def test_a_file_without_certificate_is_an_error(folder: Path) -> None:
    (folder / "own").write_text("nothing")
    (line,) = texts(looking(folder, mta=postfix(smtpd_tls_cert_file=str(folder / "own"))), "server-certificate")
    assert line.startswith(f"error: {folder}/own holds no certificate: ")


# Shown to Exchange Online

BY_CERTIFICATE = {"tls_sender_certificate_name": "hub.contoso.com"}


def shown(
    folder: Path, certificate: str, level: str = "encrypt", now: float = NOW, upstream: Raw = BY_CERTIFICATE
) -> list[str]:
    smtp = Service("smtp", "unix", "-", "-", "n", "-", "-", "smtp")
    mta = postfix([smtp], smtp_tls_cert_file=certificate, smtp_tls_security_level=level)
    return texts(looking(folder, mta=mta, now=now, upstream=upstream), "upstream-certificate")


def test_the_certificate_that_upstream_speaks_of_is_well(folder: Path, authority: Authority) -> None:
    own = authority.issue("hub.contoso.com").certificate
    assert shown(folder, str(own)) == [
        f"ok: {own} is valid for 29 days more",
        f"ok: {own} has the names hub.contoso.com",
    ]


def test_a_certificate_with_other_names_is_an_error(folder: Path, authority: Authority) -> None:
    own = authority.issue("mail.contoso.com").certificate
    assert shown(folder, str(own))[1:] == [f"error: {own} has the names mail.contoso.com, not hub.contoso.com"]


def test_a_certificate_for_servers_is_an_error(folder: Path, authority: Authority) -> None:
    own = authority.issue("hub.contoso.com", client_auth=False).certificate
    assert shown(folder, str(own))[2:] == [
        f"error: {own} is not good for client authentication: its extended key usage has no clientAuth"
    ]


def test_an_expired_certificate_is_an_error(folder: Path, authority: Authority) -> None:
    own = authority.issue("hub.contoso.com", expired=True).certificate
    assert shown(folder, str(own))[0] == f"error: {own} expired 1 day ago"


def test_a_certificate_issued_by_itself_is_an_error(folder: Path, authority: Authority) -> None:
    own = authority.issue("hub.contoso.com", self_signed=True).certificate
    assert shown(folder, str(own))[2:] == [f"error: {own} is issued by itself"]


@pytest.mark.parametrize(
    ("certificate", "level", "why"),
    [("", "encrypt", "smtp_tls_cert_file is empty"), ("/x.pem", "none", "smtp_tls_security_level is none")],
)
def test_no_certificate_shown_is_an_error(folder: Path, certificate: str, level: str, why: str) -> None:
    assert shown(folder, certificate, level) == [f"error: Postfix shows no certificate: {why}"]


def test_by_address_no_certificate_is_wanted(folder: Path) -> None:
    raw: Raw = {"sender_ip_addresses": ["192.0.2.10"]}
    organization = {**contoso(), "srs_domain": "srs.contoso.com"}
    organization["accepted_domain"] = [{"domain": "contoso.com", "default": True}, {"domain": "srs.contoso.com"}]
    looked_at = circumstances({"organization": [organization], "upstream": raw}, read_postfix=postfix)
    assert texts(looked_at, "upstream-certificate") == []
