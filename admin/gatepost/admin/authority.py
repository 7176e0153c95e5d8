# SPDX-License-Identifier: GPL-3.0-or-later
"""Make certificates for the demo and the tests on the spot: an authority, smtpd's, its clients'."""

from __future__ import annotations

import ipaddress
import ssl
from collections.abc import Sequence
from dataclasses import dataclass
from datetime import datetime, timedelta, timezone
from pathlib import Path
from typing import Optional

from cryptography import x509
from cryptography.hazmat.primitives import hashes, serialization
from cryptography.hazmat.primitives.asymmetric import ec
from cryptography.x509.oid import ExtendedKeyUsageOID, NameOID


@dataclass(frozen=True)
class Credentials:
    """The PEM files of a certificate and its key, and its SHA-256 fingerprint as Postfix spells it."""

    certificate: Path
    key: Path
    fingerprint: str


def _name(common_name: Optional[str]) -> x509.Name:
    return x509.Name([x509.NameAttribute(NameOID.COMMON_NAME, common_name)] if common_name else [])


def _alternative(name: str) -> x509.GeneralName:
    try:
        return x509.IPAddress(ipaddress.ip_address(name))
    except ValueError:
        return x509.DNSName(name)


def _usage(is_authority: bool) -> x509.KeyUsage:
    """An authority signs certificates and revocations, everybody else handshakes."""
    return x509.KeyUsage(
        digital_signature=not is_authority,
        content_commitment=False,
        key_encipherment=False,
        data_encipherment=False,
        key_agreement=False,
        key_cert_sign=is_authority,
        crl_sign=is_authority,
        encipher_only=False,
        decipher_only=False,
    )


class Authority:
    """An authority that keeps its files in *folder*. A second one has clients that smtpd does not trust."""

    def __init__(self, folder: Path, common_name: str = "Sandbox CA") -> None:
        folder.mkdir(parents=True, exist_ok=True)
        self._folder = folder
        self._issued = 0
        self._key = ec.generate_private_key(ec.SECP256R1())
        self._subject = _name(common_name)
        certificate = self._sign(self._subject, self._key, timedelta(days=30), [], is_authority=True)
        self.file = folder / "ca.pem"
        """What smtpd_tls_CAfile names."""
        self.file.write_bytes(certificate.public_bytes(serialization.Encoding.PEM))

    def issue(
        self,
        common_name: Optional[str],
        alternative_names: Sequence[str] = (),
        *,
        expired: bool = False,
        self_signed: bool = False,
        client_auth: bool = True,
    ) -> Credentials:
        """Make a certificate that serves as server's and, with *client_auth*, as client's.

        common_name None: an empty subject. alternative_names: DNS names (wildcards too) and IP addresses.
        self_signed: by its own key, not by this authority's.
        """
        key = ec.generate_private_key(ec.SECP256R1())
        lifetime = timedelta(days=-1) if expired else timedelta(days=30)
        signer = key if self_signed else self._key
        certificate = self._sign(
            _name(common_name), key, lifetime, alternative_names, signer=signer, client_auth=client_auth
        )
        self._issued += 1
        stem = self._folder / f"{self._issued}"
        files = stem.with_suffix(".pem"), stem.with_suffix(".key")
        files[0].write_bytes(certificate.public_bytes(serialization.Encoding.PEM))
        files[1].touch(mode=0o600)
        files[1].write_bytes(
            key.private_bytes(
                serialization.Encoding.PEM, serialization.PrivateFormat.PKCS8, serialization.NoEncryption()
            )
        )
        return Credentials(*files, certificate.fingerprint(hashes.SHA256()).hex(":").upper())

    def _sign(
        self,
        subject: x509.Name,
        key: ec.EllipticCurvePrivateKey,
        lifetime: timedelta,
        alternative_names: Sequence[str],
        *,
        signer: Optional[ec.EllipticCurvePrivateKey] = None,
        is_authority: bool = False,
        client_auth: bool = True,
    ) -> x509.Certificate:
        signer = signer or self._key
        issuer_key = x509.AuthorityKeyIdentifier.from_issuer_public_key(signer.public_key())
        now = datetime.now(timezone.utc)
        builder = (
            x509.CertificateBuilder()
            .subject_name(subject)
            .issuer_name(subject if signer is key else self._subject)
            .public_key(key.public_key())
            .serial_number(x509.random_serial_number())
            .not_valid_before(now - timedelta(days=2))
            .not_valid_after(now + lifetime)
            .add_extension(x509.BasicConstraints(ca=is_authority, path_length=None), critical=True)
            .add_extension(x509.SubjectKeyIdentifier.from_public_key(key.public_key()), critical=False)
            .add_extension(issuer_key, critical=False)
            .add_extension(_usage(is_authority), critical=True)
        )
        if not is_authority:
            purposes = [ExtendedKeyUsageOID.SERVER_AUTH, *([ExtendedKeyUsageOID.CLIENT_AUTH] if client_auth else [])]
            builder = builder.add_extension(x509.ExtendedKeyUsage(purposes), critical=False)
        if alternative_names:
            names = x509.SubjectAlternativeName([_alternative(name) for name in alternative_names])
            builder = builder.add_extension(names, critical=not list(subject))
        return builder.sign(signer, hashes.SHA256())

    def smtpd_parameters(self, server: Credentials) -> str:
        """Return main.cf lines: smtpd offers STARTTLS as *server* and asks for a client certificate."""
        return (
            f"smtpd_tls_security_level = may\n"
            f"smtpd_tls_cert_file = {server.certificate}\n"
            f"smtpd_tls_key_file = {server.key}\n"
            f"smtpd_tls_CAfile = {self.file}\n"
            f"smtpd_tls_ask_ccert = yes\n"
            f"smtpd_tls_fingerprint_digest = sha256\n"
            f"smtpd_tls_loglevel = 1\n"
        )

    def client_context(self, client: Optional[Credentials] = None) -> ssl.SSLContext:
        """Return the context for smtplib's starttls(): trusts this authority, shows *client*, if any."""
        context = ssl.create_default_context(cafile=str(self.file))
        if client is not None:
            context.load_cert_chain(client.certificate, client.key)
        return context
