# SPDX-License-Identifier: GPL-3.0-or-later
"""Checks of this host's own certificates: the one smtpd shows, and the one smtp shows Exchange Online ([upstream])."""

from __future__ import annotations

import json
import shlex
from collections.abc import Iterator
from pathlib import Path
from typing import Optional, Union

from cryptography import x509

from gatepost.admin.check_certificate import may_authenticate
from gatepost.admin.doctor.certificates import DAY_S, days
from gatepost.admin.doctor.model import (
    Check,
    Circumstances,
    Edit,
    Finding,
    as_root,
    error,
    instance,
    ok,
    reload_postfix,
    unknown,
    warning,
)
from gatepost.admin.postfix.config import PostfixConfig, Service
from gatepost.relay import enumeration
from gatepost.relay.names import certificate_domain
from gatepost.service.certificates import names_in, not_valid_after
from gatepost.service.regular import open_regular
from gatepost.service.upstream import UpstreamConfig

SOON_DAYS = 14
"""What renews certificates by itself has done so by then."""
_PARAMETERS = ("chain_files", "cert_file", "eccert_file", "dcert_file")
_NONE = ("", "none")


def server(circumstances: Circumstances) -> Iterator[Finding]:
    """Whether the certificates that smtpd shows are valid, and will be next week."""
    postfix = circumstances.postfix
    services: list[Optional[Service]] = [None, *postfix.smtpds]
    paths = dict.fromkeys(path for service in services for path in _files(postfix, service, "smtpd_tls_"))
    why = "Clients that verify it (MTA-STS, DANE, submission) deliver nothing more; without TLS no client certificate."
    for path in paths:
        certificate = _first_in(circumstances, path)
        if isinstance(certificate, Finding):
            yield certificate
        else:
            yield _valid(circumstances, path, certificate, why)


def upstream(circumstances: Circumstances) -> Iterator[Finding]:
    """Whether smtp shows Exchange Online the certificate that [upstream] speaks of."""
    config = circumstances.config.upstream
    if config is None or not config.certificate_names:
        return
    postfix = circumstances.postfix
    service = postfix.service("smtp", "unix")
    level = postfix.effective(service, "smtp_tls_security_level") if service else ""
    paths = list(_files(postfix, service, "smtp_tls_"))
    lost = "Exchange Online does not know this host by certificate, and refuses null senders and foreign P1s."
    if level in _NONE or not paths:
        missing = f"smtp_tls_security_level is {level or 'empty'}" if level in _NONE else "smtp_tls_cert_file is empty"
        yield error(
            f"Postfix shows no certificate: {missing}",
            lost,
            f"postconf{instance(circumstances)} -e smtp_tls_security_level=encrypt "
            "smtp_tls_cert_file=/etc/postfix/hub.pem smtp_tls_key_file=/etc/postfix/hub.key",
            reload_postfix(circumstances),
        )
        return
    for path in paths:
        certificate = _first_in(circumstances, path)
        if isinstance(certificate, Finding):
            yield certificate
            continue
        yield _valid(circumstances, path, certificate, lost)
        yield from _known_there(path, certificate, config, lost)


def _known_there(path: Path, certificate: x509.Certificate, config: UpstreamConfig, lost: str) -> Iterator[Finding]:
    names = names_in(certificate)
    domains = {certificate_domain(name) for name in names}
    missing = [name for name in config.certificate_names if certificate_domain(name) not in domains]
    if missing:
        yield error(
            f"{path} has the names {enumeration(names) or '(none)'}, not {enumeration(missing)}",
            f"{lost} upstream.certificate_names must be what is in the certificate.",
            Edit("gatepost.toml, [upstream]: certificate_names = " + json.dumps([name.lower() for name in names])),
        )
    else:
        yield ok(f"{path} has the names {enumeration(config.certificate_names)}")
    if not may_authenticate(certificate):
        yield error(
            f"{path} is not good for client authentication: its extended key usage has no clientAuth",
            lost,
            Edit("get a certificate with clientAuth from a public authority that still issues it"),
        )
    if certificate.issuer == certificate.subject:
        yield error(f"{path} is issued by itself", f"{lost} It takes those of public authorities only.")


def _files(postfix: PostfixConfig, service: Optional[Service], prefix: str) -> Iterator[Path]:
    """Yield the files of certificates that a service shows; smtpd_tls_chain_files takes the place of all others."""
    for name in _PARAMETERS:
        parameter = prefix + name
        entries = postfix.effective_entries(service, parameter) if service else postfix.entries(parameter)
        found = [Path(entry) for entry in entries if entry not in _NONE]
        yield from found
        if found and name == "chain_files":
            return


def _first_in(circumstances: Circumstances, path: Path) -> Union[x509.Certificate, Finding]:
    """Return the first certificate in *path*, which is the one shown, or what is wrong with the file."""
    try:
        with open_regular(path) as file:
            return x509.load_pem_x509_certificate(file.read())
    except PermissionError:
        return unknown(f"{path} cannot be read by this user", "", as_root(circumstances))
    except OSError as failure:
        return error(f"{path}: {failure.strerror}", "Postfix cannot show the certificate that main.cf names.")
    except ValueError as failure:
        return error(
            f"{path} holds no certificate: {failure}", "Postfix cannot show the certificate that main.cf names."
        )


def _valid(circumstances: Circumstances, path: Path, certificate: x509.Certificate, why: str) -> Finding:
    left_s = not_valid_after(certificate) - circumstances.now
    look = f"openssl x509 -in {shlex.quote(str(path))} -noout -subject -enddate"
    remedy = f"{look}   # then renew it, and: {reload_postfix(circumstances)}"
    if left_s < 0:
        return error(f"{path} expired {days(-left_s)} ago", why, remedy)
    if left_s < SOON_DAYS * DAY_S:
        return warning(f"{path} expires in {days(left_s)}", f"From then on: {why}", remedy)
    return ok(f"{path} is valid for {days(left_s)} more")


CHECKS = (
    Check("server-certificate", "Certificates", server),
    Check("upstream-certificate", "Certificates", upstream),
)
