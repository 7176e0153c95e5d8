# SPDX-License-Identifier: GPL-3.0-or-later
"""The clients' certificates in a folder of PEM files: which names a certificate has that the MTA trusts.

MTAs tell a certificate's CN, and its fingerprint at best; the names in its SAN are in the certificate alone (R8).
Whether it is trusted and still valid is for the MTA to say (R10).
"""

from __future__ import annotations

import binascii
import hashlib
import os
import re
import warnings
from collections.abc import Iterable, Iterator
from datetime import timezone
from pathlib import Path
from typing import TYPE_CHECKING, NamedTuple, Optional

from gatepost.relay import Rules
from gatepost.relay.names import NO_NAME, certificate_domain
from gatepost.service import log
from gatepost.service.regular import open_regular
from gatepost.service.tables import ConfigError

if TYPE_CHECKING:
    from cryptography import x509

DEFAULT_FOLDER = "certificates"
SUFFIXES = (".pem", ".crt", ".cer")
DIGESTS = ("md5", "sha1", "sha256", "sha384", "sha512")
"""What smtpd_tls_fingerprint_digest and Sendmail's CertFingerprintAlgorithm may say; their lengths tell them apart."""
MAX_OCTETS = 1 << 20
MAX_WARNINGS = 20

_PEM = re.compile(rb"-----BEGIN (?:X509 )?CERTIFICATE-----([^-]*)-----END (?:X509 )?CERTIFICATE-----")
_BEGIN = re.compile(rb"-----BEGIN (?:X509 )?CERTIFICATE-----")
_PRIVATE_KEY = re.compile(rb"-----BEGIN [A-Z ]*PRIVATE KEY-----")
_SEQUENCE = b"\x30"
"""A certificate's first octet in DER."""


class Certificate(NamedTuple):
    """One client's certificate. cn, issuer: "" where there is none; names: CN, then the domains of its SAN.

    not_valid_after: Unix seconds.
    """

    cn: str
    issuer: str
    names: tuple[str, ...]
    der: bytes
    not_valid_after: int


class Shown(NamedTuple):
    """What the MTA tells of the certificate that a client came with, where it trusts it; issuer "": it does not (R10).

    fingerprint: in hexadecimal, "" where the MTA does not tell.
    """

    cn: str = ""
    issuer: str = ""
    fingerprint: str = ""


NO_CERTIFICATE = Shown()
UNKNOWN = "unknown"
"""In the place of a fingerprint: it is nobody's, so that no file's names count."""


class Certificates:
    """The certificates of a folder, immutable. *warnings*: what is wrong with single files.

    ends: by names, until when the last certificate with these names is valid, in Unix seconds: a renewed one may lie
    beside that of before.
    """

    def __init__(self, certificates: Iterable[Certificate] = (), found_wrong: Iterable[str] = ()) -> None:
        self.warnings = tuple(found_wrong)
        self._by_fingerprint: dict[bytes, tuple[str, ...]] = {}
        self._by_cn: dict[tuple[str, str], tuple[str, ...]] = {}
        self.ends: dict[tuple[str, ...], int] = {}
        for item in certificates:
            self.ends[item.names] = max(item.not_valid_after, self.ends.get(item.names, item.not_valid_after))
            for digest in DIGESTS:
                self._by_fingerprint[hashlib.new(digest, item.der, usedforsecurity=False).digest()] = item.names
            if item.cn:
                shared = self._by_cn.get((item.cn, item.issuer), item.names)
                self._by_cn[item.cn, item.issuer] = tuple(name for name in shared if name in item.names)

    def __len__(self) -> int:
        return len(self._by_fingerprint) // len(DIGESTS)

    def names(self, fingerprint: str) -> tuple[str, ...]:
        """Return the names of the certificate with *fingerprint*, in hexadecimal; none where it is not here."""
        try:
            return self._by_fingerprint.get(bytes.fromhex(fingerprint.replace(":", "")), ())
        except ValueError:
            return ()

    def names_for(self, cn: str, issuer: str) -> tuple[str, ...]:
        """Return the names that all certificates with this CN and this issuer have, for one known by these only.

        issuer: its CN, where it has none its organization, as Postfix tells it.
        """
        return self._by_cn.get((cn, issuer), ())

    def names_of(self, shown: Shown) -> tuple[str, ...]:
        """Return what the rules know a client's certificate by: its names.

        In the place of the names of one that has none known stands a text that is no name, for explanations.
        """
        known = self.known_names(shown)
        if known or not shown.issuer:
            return known
        return (f"{NO_NAME}: fingerprint {shown.fingerprint}" if shown.fingerprint not in ("", UNKNOWN) else NO_NAME,)

    def known_names(self, shown: Shown) -> tuple[str, ...]:
        """Return the names of the certificate that a client came with.

        The fingerprint tells for sure: where it is known and no file's, the CN alone counts, whatever the files say.
        """
        cn, issuer, fingerprint = shown
        if not issuer:
            return ()
        found = self.names(fingerprint) if fingerprint else self.names_for(cn, issuer)
        return found or ((cn,) if cn else ())

    def log_fields(self, shown: Shown) -> dict[str, str]:
        """Return what log lines say of a client's certificate: its first name; the fingerprint where no file has it."""
        if not shown.issuer:
            return {}
        names = self.known_names(shown)
        missing = shown.fingerprint and not self.names(shown.fingerprint)
        return {
            "certificate": log.address(names[0]) if names else "unknown",
            **({"fingerprint": shown.fingerprint} if missing else {}),
        }


def first_end_by_organization(certificates: Certificates, rules: Rules) -> dict[str, int]:
    """Return, for each organization that the rules know by certificates, when the first of these ends, in Unix seconds.

    A certificate is an organization's where it matches one of its connectors (R6), or proves its domain (R9).
    """
    found: dict[str, int] = {}
    for names, end in certificates.ends.items():
        client = rules.client(None, names)
        whose = {name for match in client.enabled for name in match.connectors}
        if client.candidate:
            whose.add(client.candidate.accepted.organization.name)
        for name in whose:
            found[name] = min(end, found.get(name, end))
    return found


def read(folder: Path) -> Certificates:
    """Return the certificates in *folder*, none where there is no such folder. A file that can't be read is a warning.

    Raises ConfigError where the folder can't be read: all certificates would be forgotten.
    """
    try:
        paths = files(folder)
    except OSError as error:
        raise ConfigError([f"{folder}: cannot be read: {error.strerror}"]) from error
    if not paths:
        return Certificates()
    found: list[Certificate] = []
    wrong: list[str] = []
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # cryptography's, of odd certificates
        for path in paths:
            certificates, problems = read_file(path)
            found += certificates
            wrong += (f"{path}: {problem}" for problem in problems)
    if len(wrong) > MAX_WARNINGS:
        wrong[MAX_WARNINGS:] = [f"{folder}: {len(wrong) - MAX_WARNINGS} warnings more"]
    return Certificates(found, wrong)


def stamp(folder: Path) -> int:
    """Return a number that is another one after a change in *folder*, for as long as this process lives."""
    try:
        return hash(frozenset((entry.name, _state(entry)) for entry in _entries(folder)))
    except OSError:  # `read` tells why
        return 0


def _state(entry: os.DirEntry[str]) -> tuple[int, ...]:
    try:
        at = entry.stat()
    except OSError:
        return ()
    return at.st_mtime_ns, at.st_ctime_ns, at.st_ino, at.st_size


def files(folder: Path) -> list[Path]:
    """Return the files in *folder* that count, none where there is no such folder. Raises OSError."""
    try:
        return sorted(Path(entry.path) for entry in _entries(folder))
    except FileNotFoundError:
        return []


def _entries(folder: Path) -> Iterator[os.DirEntry[str]]:
    """Yield the files that count. Those that begin with a dot do not: somebody is writing them."""
    with os.scandir(folder) as entries:
        for entry in entries:
            if entry.name.lower().endswith(SUFFIXES) and not entry.name.startswith(".") and _may_be_file(entry):
                yield entry


def _may_be_file(entry: os.DirEntry[str]) -> bool:
    try:
        return entry.is_file()
    except OSError:  # reading it tells why
        return True


def read_file(path: Path) -> tuple[list[Certificate], list[str]]:
    """Return the clients' certificates in a file, and what is wrong with it."""
    try:
        with open_regular(path) as file:
            octets = file.read(MAX_OCTETS + 1)
    except OSError as error:
        return [], [f"cannot be read: {error.strerror}"]
    if len(octets) > MAX_OCTETS:
        return [], ["is larger than 1 MiB, which no certificate is"]
    problems = []
    if _PRIVATE_KEY.search(octets):
        problems.append("holds a private key, which does not belong here: the certificate is enough")
    found = _PEM.findall(octets)
    if len(found) < len(_BEGIN.findall(octets)):
        problems.append("ends within a certificate")
    elif not found and octets[:1] != _SEQUENCE:
        problems.append("holds no certificate, neither PEM nor DER")
    certificates = []
    ignored = 0
    for der in map(_decoded, found) if found else [octets] if octets[:1] == _SEQUENCE else []:
        try:
            certificate = _certificate(der)
        except Exception as error:  # noqa: BLE001  cryptography raises what it likes, and has changed that
            problems.append(f"holds a certificate that cannot be read: {error}")
            continue
        if certificate is None:
            ignored += 1
        else:
            certificates.append(certificate)
    if ignored and not certificates and not problems:
        problems.append("holds certificates of authorities only, no client's")
    return certificates, problems


def _decoded(base64: bytes) -> bytes:
    try:
        return binascii.a2b_base64(base64)
    except binascii.Error:
        return b""


def _certificate(der: bytes) -> Optional[Certificate]:
    """Return a certificate, None for an authority's. Raises whatever cryptography does."""
    from cryptography import x509  # takes long to load
    from cryptography.x509.oid import NameOID

    loaded = x509.load_der_x509_certificate(der)
    try:
        if loaded.extensions.get_extension_for_class(x509.BasicConstraints).value.ca:
            return None
    except x509.ExtensionNotFound:
        pass
    cn = _first(loaded.subject, NameOID.COMMON_NAME)
    issuer = _first(loaded.issuer, NameOID.COMMON_NAME) or _first(loaded.issuer, NameOID.ORGANIZATION_NAME)
    return Certificate(cn, issuer, names_in(loaded), der, not_valid_after(loaded))


def names_in(certificate: x509.Certificate) -> tuple[str, ...]:
    """Return CN and those names of the SAN that are domains, each once (R8)."""
    from cryptography.x509.oid import NameOID

    return _names(_first(certificate.subject, NameOID.COMMON_NAME), _alternative_names(certificate))


def not_valid_after(certificate: x509.Certificate) -> int:
    """Return until when it is valid, in Unix seconds."""
    if hasattr(certificate, "not_valid_after_utc"):  # cryptography 42 and later
        return int(certificate.not_valid_after_utc.timestamp())
    return int(certificate.not_valid_after.replace(tzinfo=timezone.utc).timestamp())


def _first(name: x509.Name, kind: x509.ObjectIdentifier) -> str:
    """Return the first value of *kind*, as Postfix takes it; "" where there is none or it has odd characters."""
    values = [attribute.value for attribute in name.get_attributes_for_oid(kind)]
    return values[0] if values and isinstance(values[0], str) and values[0].isprintable() else ""


def _alternative_names(certificate: x509.Certificate) -> list[str]:
    from cryptography import x509

    try:
        extension = certificate.extensions.get_extension_for_class(x509.SubjectAlternativeName)
    except x509.ExtensionNotFound:
        return []
    return list(extension.value.get_values_for_type(x509.DNSName))


def _names(cn: str, alternative_names: Iterable[str]) -> tuple[str, ...]:
    """Return CN and those names that are domains, each once."""
    names = {cn.lower(): cn} if cn else {}
    for name in alternative_names:
        if name.isascii() and certificate_domain(name):  # else no dNSName (RFC 5280, 4.2.1.6)
            names.setdefault(name.lower(), name)
    return tuple(names.values())
