# SPDX-License-Identifier: GPL-3.0-or-later
"""A folder of certificates, real ones made on the spot and odd ones; and the reports of who came with which."""

from __future__ import annotations

import hashlib
import os
import shutil
import ssl
import subprocess
import sys
from collections.abc import Sequence
from datetime import datetime, timedelta, timezone
from pathlib import Path
from typing import Optional

import pytest
from cryptography import x509
from cryptography.hazmat.primitives import hashes, serialization
from cryptography.hazmat.primitives.asymmetric import ec
from cryptography.x509.oid import NameOID
from daemonprocess import ROOTS

from gatepost.admin.authority import Authority, Credentials
from gatepost.relay import AcceptedDomain, Connector, Organization, Rules
from gatepost.relay.names import certificate_domain
from gatepost.service.certificates import (
    UNKNOWN,
    Certificates,
    Shown,
    first_end_by_organization,
    read,
    read_file,
    stamp,
)
from gatepost.service.presented import Presented, client, matter, server
from gatepost.service.tables import ConfigError

KEY = ec.generate_private_key(ec.SECP256R1())
CRM = ["crm.contoso.com", "files.contoso.com"]


@pytest.fixture(scope="module")
def authority(tmp_path_factory: pytest.TempPathFactory) -> Authority:
    return Authority(tmp_path_factory.mktemp("authority"))


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    path = tmp_path / "certificates"
    path.mkdir()
    return path


def der(credentials: Credentials) -> bytes:
    return ssl.PEM_cert_to_DER_cert(credentials.certificate.read_text())


def certificate(
    subject: Sequence[x509.NameAttribute],
    alternative: Sequence[x509.GeneralName] = (),
    issuer: Sequence[x509.NameAttribute] = (),
    not_valid_after: Optional[datetime] = None,
) -> bytes:
    """Return the PEM of a certificate with any names, by default for a day; no basic constraints."""
    end = not_valid_after or datetime.now(timezone.utc) + timedelta(days=1)
    builder = (
        x509.CertificateBuilder()
        .subject_name(x509.Name(subject))
        .issuer_name(x509.Name(issuer or [x509.NameAttribute(NameOID.COMMON_NAME, "Contoso CA")]))
        .public_key(KEY.public_key())
        .serial_number(1)
        .not_valid_before(end - timedelta(days=90))
        .not_valid_after(end)
    )
    if alternative:
        builder = builder.add_extension(x509.SubjectAlternativeName(alternative), critical=False)
    return builder.sign(KEY, hashes.SHA256()).public_bytes(serialization.Encoding.PEM)


def cn(name: str) -> list[x509.NameAttribute]:
    return [x509.NameAttribute(NameOID.COMMON_NAME, name)]


def names_in(folder: Path, pem: bytes) -> tuple[str, ...]:
    """Return the names of a certificate that is the only one."""
    (folder / "only.pem").write_bytes(pem)
    return read(folder).names(hashlib.sha256(ssl.PEM_cert_to_DER_cert(pem.decode())).hexdigest())


# Names by fingerprint


def test_names_are_the_cn_and_then_the_domains_of_the_san_each_once(folder: Path, authority: Authority) -> None:
    issued = authority.issue("crm.contoso.com", ["files.contoso.com", "CRM.contoso.com", "*.contoso.com"])
    shutil.copy(issued.certificate, folder / "crm.pem")
    assert read(folder).names(issued.fingerprint) == ("crm.contoso.com", "files.contoso.com", "*.contoso.com")


@pytest.mark.parametrize("digest", ["md5", "sha1", "sha256", "sha384", "sha512"])
def test_fingerprint_is_known_by_every_digest_in_either_case_with_or_without_colons(
    folder: Path, authority: Authority, digest: str
) -> None:
    issued = authority.issue(None, CRM)
    shutil.copy(issued.certificate, folder / "crm.pem")
    octets = hashlib.new(digest, der(issued)).digest()
    known = read(folder)
    for spelled in (octets.hex(), octets.hex(":"), octets.hex().upper(), octets.hex(":").upper()):
        assert known.names(spelled) == tuple(CRM)


@pytest.mark.parametrize("fingerprint", ["", "3F:5B", "no fingerprint", "zz" * 32, "00" * 32])
def test_fingerprint_of_no_file_has_no_names(folder: Path, authority: Authority, fingerprint: str) -> None:
    shutil.copy(authority.issue("crm.contoso.com").certificate, folder)
    assert read(folder).names(fingerprint) == ()


def test_file_may_hold_several_certificates_and_text_between_them(folder: Path, authority: Authority) -> None:
    both = [authority.issue(f"{name}.contoso.com") for name in ("a", "b")]
    text = "".join(f"subject=CN={number}\r\n{item.certificate.read_text()}" for number, item in enumerate(both))
    (folder / "both.crt").write_text(text.replace("\n", "\r\n"))
    assert [read(folder).names(item.fingerprint) for item in both] == [("a.contoso.com",), ("b.contoso.com",)]


def test_authorities_in_a_chain_are_left_out(folder: Path, authority: Authority) -> None:
    issued = authority.issue("crm.contoso.com")
    (folder / "chain.pem").write_bytes(issued.certificate.read_bytes() + authority.file.read_bytes())
    known = read(folder)
    assert (len(known), known.warnings) == (1, ())


def test_der_is_read_too(folder: Path, authority: Authority) -> None:
    issued = authority.issue("crm.contoso.com")
    (folder / "crm.cer").write_bytes(der(issued))
    assert read(folder).names(issued.fingerprint) == ("crm.contoso.com",)


@pytest.mark.parametrize("name", ["crm", "crm.pem.bak", "crm.txt", ".crm.pem", "crm.key"])
def test_files_of_other_names_do_not_count(folder: Path, authority: Authority, name: str) -> None:
    shutil.copy(authority.issue("crm.contoso.com").certificate, folder / name)
    assert (len(read(folder)), read(folder).warnings) == (0, ())


# Until when


RULES = Rules(
    [
        Organization("contoso", (AcceptedDomain("contoso.com"),)),
        Organization(
            "fabrikam",
            (AcceptedDomain("fabrikam.com"),),
            (Connector("all", tls_sender_certificate_name="*.example.net"),),
        ),
    ]
)
DAY = 20_000  # 2024-10-04


def put(folder: Path, name: str, *, days: int, file: str = "") -> None:
    """Write a certificate that ends so many days after DAY."""
    end = datetime.fromtimestamp((DAY + days) * 86400, timezone.utc)
    (folder / f"{file or name}.pem").write_bytes(certificate(cn(name), not_valid_after=end))


def ends(folder: Path) -> dict[str, int]:
    """Return by organization how many days after DAY its first certificate ends."""
    return {name: at // 86400 - DAY for name, at in first_end_by_organization(read(folder), RULES).items()}


def test_not_valid_after_is_in_unix_seconds(folder: Path) -> None:
    put(folder, "crm.contoso.com", days=10)
    assert [item.not_valid_after for item in read_file(folder / "crm.contoso.com.pem")[0]] == [(DAY + 10) * 86400]


def test_the_first_certificate_to_end_counts_for_the_organization_that_accepts_or_connects_it(folder: Path) -> None:
    put(folder, "crm.contoso.com", days=30)
    put(folder, "mail.contoso.com", days=20)
    put(folder, "mx.example.net", days=10)
    assert ends(folder) == {"contoso": 20, "fabrikam": 10}


def test_a_certificate_that_a_newer_one_of_the_same_names_replaces_does_not_count(folder: Path) -> None:
    put(folder, "crm.contoso.com", days=-5, file="old")
    put(folder, "crm.contoso.com", days=85, file="new")
    assert ends(folder) == {"contoso": 85}


def test_a_certificate_of_nobody_does_not_count(folder: Path) -> None:
    put(folder, "www.example.org", days=1)
    assert ends(folder) == {}


# Odd names


@pytest.mark.parametrize(
    "odd",
    [
        x509.UniformResourceIdentifier("https://crm.contoso.com/"),
        x509.RFC822Name("crm@contoso.com"),
        x509.DNSName("crm.contoso.com\0.evil.example"),
        x509.DNSName("not a domain"),
        x509.DNSName("crm.*.contoso.com"),
        x509.DNSName("192.0.2.1"),
        x509.DNSName(""),
    ],
    ids=["URI", "address", "NUL", "text", "wildcard within", "IP", "empty"],
)
def test_what_is_no_domain_in_the_san_is_left_out(folder: Path, odd: x509.GeneralName) -> None:
    pem = certificate(cn("CRM"), [odd, x509.DNSName("crm.contoso.com")])
    assert names_in(folder, pem) == ("CRM", "crm.contoso.com")


def test_a_label_in_the_san_is_a_domain(folder: Path) -> None:
    assert names_in(folder, certificate([], [x509.DNSName("xn--bcher-kva.example")])) == ("xn--bcher-kva.example",)


def test_u_label_in_the_san_which_no_certificate_may_have_counts_for_nothing(folder: Path) -> None:
    pem = certificate(cn("CRM"), [x509.DNSName._init_without_validation("bücher.example")])
    assert names_in(folder, pem) in (("CRM",), ())


def test_first_cn_counts_as_in_postfix(folder: Path) -> None:
    assert names_in(folder, certificate([*cn("crm.contoso.com"), *cn("other.contoso.com")])) == ("crm.contoso.com",)


@pytest.mark.parametrize("odd", ["crm.contoso.com\0", "crm\n.contoso.com", "crm\x1b.contoso.com"])
def test_cn_with_a_control_character_is_none(folder: Path, odd: str) -> None:
    assert names_in(folder, certificate(cn(odd), [x509.DNSName("crm.contoso.com")])) == ("crm.contoso.com",)


def test_certificate_without_any_name_is_none(folder: Path) -> None:
    assert names_in(folder, certificate([])) == ()


# Names by CN and issuer


def test_known_by_cn_and_issuer_a_certificate_has_the_names_in_its_file(folder: Path, authority: Authority) -> None:
    shutil.copy(authority.issue("CRM", CRM).certificate, folder)
    known = read(folder)
    assert known.names_for("CRM", "Sandbox CA") == ("CRM", *CRM)
    assert known.names_for("CRM", "Another CA") == ()


def test_of_several_with_one_cn_and_issuer_only_the_names_that_all_have_count(
    folder: Path, authority: Authority
) -> None:
    for names in (["a.contoso.com", "crm.contoso.com"], ["crm.contoso.com", "b.contoso.com"]):
        shutil.copy(authority.issue("CRM", names).certificate, folder)
    assert read(folder).names_for("CRM", "Sandbox CA") == ("CRM", "crm.contoso.com")


def test_certificates_without_cn_are_known_by_fingerprint_only(folder: Path, authority: Authority) -> None:
    shutil.copy(authority.issue(None, CRM).certificate, folder)
    assert read(folder).names_for("", "Sandbox CA") == ()


def test_issuer_without_cn_is_its_organization_as_postfix_tells_it(folder: Path) -> None:
    issuer = [x509.NameAttribute(NameOID.ORGANIZATION_NAME, "Contoso")]
    (folder / "crm.pem").write_bytes(certificate(cn("CRM"), [x509.DNSName("crm.contoso.com")], issuer))
    assert read(folder).names_for("CRM", "Contoso") == ("CRM", "crm.contoso.com")


# What the MTA shows


@pytest.fixture
def known(folder: Path, authority: Authority) -> Certificates:
    shutil.copy(authority.issue("CRM", ["crm.contoso.com"]).certificate, folder)
    return read(folder)


def test_untrusted_certificate_has_no_names_whatever_the_folder_says_r10(known: Certificates) -> None:
    assert known.names_of(Shown("CRM", "")) == ()


def test_trusted_certificate_without_fingerprint_has_the_names_for_its_cn(known: Certificates) -> None:
    assert known.names_of(Shown("CRM", "Sandbox CA")) == ("CRM", "crm.contoso.com")


def test_another_certificate_with_a_cn_that_is_in_the_folder_has_its_cn_only(known: Certificates) -> None:
    assert known.names_of(Shown("CRM", "Sandbox CA", "00" * 32)) == ("CRM",)


def test_trusted_certificate_that_is_nowhere_has_its_cn(known: Certificates) -> None:
    assert known.names_of(Shown("hub.contoso.com", "Sandbox CA")) == ("hub.contoso.com",)


@pytest.mark.parametrize(
    ("fingerprint", "text"), [("3F:5B", "no name known: fingerprint 3F:5B"), ("", "no name known")]
)
def test_trusted_certificate_without_a_known_name_has_a_text_that_is_none(
    known: Certificates, fingerprint: str, text: str
) -> None:
    shown = Shown("", "Sandbox CA", fingerprint)
    assert (known.known_names(shown), known.names_of(shown)) == ((), (text,))
    assert certificate_domain(text) is None


def test_log_names_a_certificate_and_the_fingerprint_of_one_that_is_in_no_file(
    folder: Path, authority: Authority
) -> None:
    issued = authority.issue("CRM", CRM)
    shutil.copy(issued.certificate, folder)
    known = read(folder)
    assert known.log_fields(Shown()) == {}
    assert known.log_fields(Shown("CRM", "CA", issued.fingerprint)) == {"certificate": "<CRM>"}
    assert known.log_fields(Shown("CRM", "CA", "3F:5B")) == {"certificate": "<CRM>", "fingerprint": "3F:5B"}
    assert known.log_fields(Shown("", "CA", "3F:5B")) == {"certificate": "unknown", "fingerprint": "3F:5B"}


# What is wrong with files


@pytest.mark.parametrize(
    ("octets", "warning"),
    [
        (b"", "holds no certificate, neither PEM nor DER"),
        (b"hello", "holds no certificate, neither PEM nor DER"),
        (b"-----BEGIN CERTIFICATE-----\nMIIB", "ends within a certificate"),
        (
            b"-----BEGIN CERTIFICATE-----\nMIIB\n-----END CERTIFICATE-----\n",
            "holds a certificate that cannot be read: ",
        ),
        (b"-----BEGIN CERTIFICATE-----\n=\n-----END CERTIFICATE-----\n", "holds a certificate that cannot be read: "),
        (b"\x30\x82\x01", "holds a certificate that cannot be read: "),
        (b"x" * (1 << 20) + b"x", "is larger than 1 MiB, which no certificate is"),
    ],
    ids=["empty", "text", "half", "broken", "no base64", "half DER", "large"],
)
def test_file_that_cannot_be_used_is_a_warning_and_the_others_count(
    folder: Path, authority: Authority, octets: bytes, warning: str
) -> None:
    (folder / "bad.pem").write_bytes(octets)
    issued = authority.issue("crm.contoso.com")
    shutil.copy(issued.certificate, folder / "crm.pem")
    known = read(folder)
    assert known.names(issued.fingerprint) == ("crm.contoso.com",)
    (found,) = known.warnings
    assert found.startswith(f"{folder}/bad.pem: {warning}")


def test_private_key_in_a_file_is_a_warning_and_the_certificate_counts(folder: Path, authority: Authority) -> None:
    issued = authority.issue("crm.contoso.com")
    (folder / "crm.pem").write_bytes(issued.key.read_bytes() + issued.certificate.read_bytes())
    known = read(folder)
    assert len(known) == 1
    assert known.warnings == (
        f"{folder}/crm.pem: holds a private key, which does not belong here: the certificate is enough",
    )


def test_file_with_authorities_only_is_a_warning(folder: Path, authority: Authority) -> None:
    shutil.copy(authority.file, folder / "ca.pem")
    assert read(folder).warnings == (f"{folder}/ca.pem: holds certificates of authorities only, no client's",)


def test_file_that_may_not_be_read_is_a_warning(folder: Path) -> None:
    (folder / "crm.pem").symlink_to("/proc/self/mem")
    (found,) = read(folder).warnings
    assert found.startswith(f"{folder}/crm.pem: cannot be read: ")


def test_many_warnings_are_cut(folder: Path) -> None:
    for number in range(30):
        (folder / f"{number:02}.pem").touch()
    warnings = read(folder).warnings
    assert len(warnings) == 21
    assert warnings[-1] == f"{folder}: 10 warnings more"


def test_folder_that_is_not_there_is_empty(tmp_path: Path) -> None:
    known = read(tmp_path / "certificates")
    assert (len(known), known.warnings) == (0, ())


def test_something_else_in_the_folders_place_is_an_error(tmp_path: Path) -> None:
    (tmp_path / "certificates").touch()
    with pytest.raises(ConfigError) as error:
        read(tmp_path / "certificates")
    assert error.value.problems == (f"{tmp_path}/certificates: cannot be read: Not a directory",)


def test_link_that_leads_nowhere_but_to_itself_is_a_warning_and_the_others_count(
    folder: Path, authority: Authority
) -> None:
    shutil.copy(authority.issue("crm.contoso.com").certificate, folder / "crm.pem")
    (folder / "loop.pem").symlink_to("loop.pem")
    known = read(folder)
    assert len(known) == 1
    assert known.warnings == (f"{folder}/loop.pem: cannot be read: Too many levels of symbolic links",)


def test_pipe_in_the_folder_does_not_count(folder: Path) -> None:
    os.mkfifo(folder / "crm.pem")
    known = read(folder)
    assert (len(known), known.warnings) == (0, ())


def test_cryptography_is_loaded_only_where_there_are_files(folder: Path) -> None:
    program = (
        "import sys; from pathlib import Path; from gatepost.service.certificates import read\n"
        f"read(Path({str(folder)!r})); print('cryptography' in sys.modules)"
    )
    environment = {**os.environ, "PYTHONPATH": ":".join(ROOTS)}
    (folder / "README").touch()
    found = [subprocess.check_output([sys.executable, "-c", program], env=environment, text=True).strip()]
    (folder / "crm.pem").write_bytes(certificate(cn("crm.contoso.com")))
    found.append(subprocess.check_output([sys.executable, "-c", program], env=environment, text=True).strip())
    assert found == ["False", "True"]


# Changes


def test_stamp_changes_with_each_change_of_a_file_that_counts(folder: Path) -> None:
    stamps = [stamp(folder)]
    path = folder / "crm.pem"
    for change in (
        lambda: path.write_text("a"),
        lambda: path.write_text("ab"),
        lambda: os.utime(path, ns=(1, 1)),
        lambda: shutil.copy(path, folder / "b.pem"),
        lambda: os.replace(folder / "b.pem", path),
        lambda: path.rename(folder / "c.pem"),
    ):
        change()
        stamps.append(stamp(folder))
    assert len(set(stamps)) == len(stamps)
    (folder / "c.pem").unlink()
    assert stamp(folder) == stamps[0]


def test_stamp_sees_changes_beside_a_link_that_leads_to_itself_and_its_mending(folder: Path) -> None:
    (folder / "loop.pem").symlink_to("loop.pem")
    stamps = [stamp(folder)]
    (folder / "crm.pem").touch()
    stamps.append(stamp(folder))
    (folder / "loop.pem").unlink()
    shutil.copy(folder / "crm.pem", folder / "loop.pem")
    stamps.append(stamp(folder))
    assert len({0, *stamps}) == 4


def test_stamp_stays_where_nothing_that_counts_changes(folder: Path) -> None:
    (folder / "crm.pem").touch()
    before = stamp(folder)
    (folder / "README").touch()
    (folder / ".new.pem").touch()
    assert stamp(folder) == before


# Reports of policyd to the milter

ALICE, BOB = client("192.0.2.1", "40001"), client("192.0.2.1", "40002")
AT = server("192.0.2.9", "25")
MATTER = matter("app@vendor.example", "x@example.com", Shown("CRM", "Contoso CA"), AT)


@pytest.fixture(params=[False, True], ids=["one process", "a file that two map"])
def tables(request: pytest.FixtureRequest, tmp_path: Path) -> tuple[Presented, Presented]:
    path = tmp_path / "presented"
    first = Presented(path if request.param else None)
    return first, Presented(path) if request.param else first


def test_report_is_taken_once(tables: tuple[Presented, Presented]) -> None:
    policyd, milter = tables
    policyd.report(ALICE, MATTER, "3f5b9c", 1000.0)
    assert [milter.take(ALICE, MATTER, 1000.5), milter.take(ALICE, MATTER, 1000.5)] == ["3F:5B:9C", UNKNOWN]


@pytest.mark.parametrize("digest", ["md5", "sha512"])
def test_fingerprint_of_any_length_comes_as_postfix_spells_it(tables: tuple[Presented, Presented], digest: str) -> None:
    policyd, milter = tables
    fingerprint = hashlib.new(digest, b"x").digest().hex(":").upper()
    policyd.report(ALICE, MATTER, fingerprint, 1000.0)
    assert milter.take(ALICE, MATTER, 1000.0) == fingerprint


@pytest.mark.parametrize(
    "other",
    [
        matter("other@vendor.example", "x@example.com", Shown("CRM", "Contoso CA"), AT),
        matter("app@vendor.example", "y@example.com", Shown("CRM", "Contoso CA"), AT),
        matter("app@vendor.example", "x@example.com", Shown("CRM", "Another CA"), AT),
        matter("app@vendor.example", "x@example.com", Shown("", "Contoso CA"), AT),
        matter("app@vendor.example", "x@example.com", Shown("CRM", "Contoso CA"), server("192.0.2.9", "587")),
    ],
    ids=["P1", "recipient", "issuer", "CN", "server"],
)
def test_report_is_for_that_very_mail_rcpt_and_certificate_only(
    tables: tuple[Presented, Presented], other: str
) -> None:
    policyd, milter = tables
    policyd.report(ALICE, MATTER, "3f5b9c", 1000.0)
    assert milter.take(ALICE, other, 1000.0) == UNKNOWN
    assert milter.take(ALICE, MATTER, 1000.0) == "3F:5B:9C"


def test_report_is_for_that_client_only(tables: tuple[Presented, Presented]) -> None:
    policyd, milter = tables
    policyd.report(ALICE, MATTER, "3f5b9c", 1000.0)
    assert milter.take(BOB, MATTER, 1000.0) == ""


@pytest.mark.parametrize(("age", "found"), [(60.0, "3F:5B:9C"), (60.5, ""), (-61.0, "")])
def test_report_counts_for_a_minute(tables: tuple[Presented, Presented], age: float, found: str) -> None:
    policyd, milter = tables
    policyd.report(ALICE, MATTER, "3f5b9c", 1000.0)
    assert milter.take(ALICE, MATTER, 1000.0 + age) == found


def test_each_report_replaces_the_one_before_it(tables: tuple[Presented, Presented]) -> None:
    policyd, milter = tables
    policyd.report(ALICE, MATTER, "3f5b9c", 1000.0)
    policyd.report(ALICE, MATTER, "aabbcc", 1000.0)
    assert milter.take(ALICE, MATTER, 1000.0) == "AA:BB:CC"


def test_no_certificate_replaces_the_report_before_it(tables: tuple[Presented, Presented]) -> None:
    policyd, milter = tables
    policyd.report(ALICE, MATTER, "3f5b9c", 1000.0)
    policyd.report_none(ALICE, 1059.0)
    assert milter.take(ALICE, MATTER, 1059.0) == UNKNOWN


def test_no_certificate_leaves_the_reports_on_others_alone(tables: tuple[Presented, Presented]) -> None:
    policyd, milter = tables
    policyd.report(ALICE, MATTER, "3f5b9c", 1000.0)
    policyd.report_none(BOB, 1000.0)
    assert milter.take(ALICE, MATTER, 1000.0) == "3F:5B:9C"


@pytest.mark.parametrize("fingerprint", ["", "no fingerprint"])
def test_report_without_a_fingerprint_is_none(tables: tuple[Presented, Presented], fingerprint: str) -> None:
    policyd, milter = tables
    policyd.report(ALICE, MATTER, fingerprint, 1000.0)
    assert milter.take(ALICE, MATTER, 1000.0) == ""
