# SPDX-License-Identifier: GPL-3.0-or-later
"""Checks of the clients' certificates in relay.certificate_folder: names, dates, purpose, and who has issued them."""

from __future__ import annotations

import shlex
import warnings
from collections.abc import Iterator
from dataclasses import dataclass
from itertools import islice
from pathlib import Path
from typing import Callable

from cryptography import x509

from gatepost.admin.check_certificate import may_authenticate
from gatepost.admin.doctor.model import (
    Check,
    Circumstances,
    Edit,
    Finding,
    as_root,
    edit,
    error,
    info,
    ok,
    reload_postfix,
    unknown,
    warning,
)
from gatepost.admin.doctor.openssl import Authorities, Distrust, clients_authorities, distrusted
from gatepost.admin.doctor.postfix_entries import postconf
from gatepost.relay import Client, enumeration
from gatepost.service import certificates
from gatepost.service.certificates import Certificate
from gatepost.service.exports import counted

DAY_S = 86400
SOON_DAYS = 30
"""Its owner needs time to get another one."""
_LINES = 10
"""So many findings of one kind are told."""
_DEBIAN = "/etc/ssl/certs/ca-certificates.crt"
"""All authorities that the system trusts."""
_UNTRUSTED = "its client counts as one without a certificate (R10), and is refused unless a connector has its address."


@dataclass(frozen=True)
class _Filed:
    """A certificate, the files that hold it, and what the rules say of a client that comes with it."""

    certificate: Certificate
    paths: list[Path]
    client: Client

    @property
    def counts(self) -> bool:
        """Whether a connector goes by it."""
        return bool(self.client.enabled)

    def __str__(self) -> str:
        names = enumeration(self.certificate.names) or "(no name)"
        return f"{names} ({', '.join(path.name for path in self.paths)})"


def _filed(circumstances: Circumstances) -> list[_Filed]:
    """Return the certificates of the folder, each once. Files that can't be read are another check's matter."""
    found: dict[bytes, _Filed] = {}
    try:
        paths = certificates.files(circumstances.config.relay.certificate_folder)
    except OSError:
        return []
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # cryptography's, of odd certificates
        for path in paths:
            for item in certificates.read_file(path)[0]:
                known = found.get(item.der)
                if known is None:
                    found[item.der] = _Filed(item, [path], circumstances.snapshot.rules.client(None, item.names))
                elif path not in known.paths:
                    known.paths.append(path)
    return list(found.values())


def files(circumstances: Circumstances) -> Iterator[Finding]:
    """Whether every file of the folder can be read, and holds a certificate that no other one holds."""
    folder = circumstances.config.relay.certificate_folder
    wrong = circumstances.snapshot.certificates.warnings
    for text in wrong:
        closed = text.endswith("Permission denied")
        yield (unknown if closed else warning)(
            text,
            "Of the certificate that should be in it only the CN counts, none of the names in its SAN.",
            as_root(circumstances) if closed else f"ls -l {shlex.quote(str(folder))}",
        )
    filed = _filed(circumstances)
    yield from _some(
        info(f"the same certificate is in {' and '.join(map(str, item.paths))}", "One of them may be out of date soon.")
        for item in filed
        if len(item.paths) > 1
    )
    if filed and not wrong:
        yield ok(f"{folder}: {counted(len(filed), 'certificate')}")


def names(circumstances: Circumstances) -> Iterator[Finding]:
    """Whether each connector by certificate has its certificate here, and each certificate a connector."""
    folder = circumstances.config.relay.certificate_folder
    filed = _filed(circumstances)
    yield from _some(_connectors(circumstances, filed, folder))
    yield from _some(
        info(
            f"{folder}: no enabled connector goes by {item}",
            "Whoever comes with it is known by address only.",
            edit(circumstances, "tls_sender_certificate_name in [[organization.connector]], if it should"),
        )
        for item in filed
        if not item.counts
    )
    yield from _some(
        info(
            f"{item} is in no accepted domain, nor one label below one",
            "It meets condition 2 only: mail needs an accepted P1, and null senders are refused (R9).",
        )
        for item in filed
        if item.counts and (item.client.candidate is None or item.client.candidate.connector is None)
    )


def _connectors(circumstances: Circumstances, filed: list[_Filed], folder: Path) -> Iterator[Finding]:
    having = {
        (name, connector): item
        for item in filed
        for match in item.client.enabled
        for name, connectors in match.connectors.items()
        for connector in connectors
    }
    with_file = []
    for organization in circumstances.snapshot.rules.organizations.values():
        for connector in organization.connectors:
            if not connector.enabled or connector.tls_sender_certificate_name is None:
                continue
            called = f'connector "{connector.name}" of {organization.name}'
            item = having.get((organization.name, connector))
            if item:
                with_file.append(f"{called}: {item}")
            else:
                yield info(
                    f"{called}: no file in {folder} has {connector.tls_sender_certificate_name}",
                    "Of its client's certificate the CN counts alone, none of the names in its SAN (R8).",
                    f"install -m 0644 CERTIFICATE.pem {shlex.quote(str(folder))}/",
                )
    if with_file:
        yield ok("; ".join(with_file) if len(with_file) < _LINES else f"{len(with_file)} connectors have theirs")


def expiry(circumstances: Circumstances) -> Iterator[Finding]:
    """Whether the certificates are valid, and will be next month. One with the same names may follow another."""
    filed = _filed(circumstances)
    ends = circumstances.snapshot.certificates.ends
    folder = circumstances.config.relay.certificate_folder
    last = [item for item in filed if item.certificate.not_valid_after == ends.get(item.certificate.names)]
    yield from _some(finding for item in last for finding in _ending(item, circumstances.now, folder))
    lasting = [item.certificate.not_valid_after for item in last]
    if lasting and min(lasting) >= circumstances.now + SOON_DAYS * DAY_S:
        yield ok(f"{counted(len(last), 'certificate')}: the first ends in {days(min(lasting) - circumstances.now)}")


def _ending(item: _Filed, now: float, folder: Path) -> Iterator[Finding]:
    left_s = item.certificate.not_valid_after - now
    remedy = f"install -m 0644 CERTIFICATE.pem {shlex.quote(str(folder))}/   # the renewed one, from its owner"
    if left_s < 0:
        finding: Callable[..., Finding] = error if item.counts else warning
        why = f"Postfix does not trust it: {_UNTRUSTED} Of a renewed one the CN counts alone until its file is here."
        yield finding(f"{item} expired {days(-left_s)} ago", why, remedy)
    elif left_s < SOON_DAYS * DAY_S:
        yield warning(f"{item} expires in {days(left_s)}", f"From then on {_UNTRUSTED}", remedy)


def purpose(circumstances: Circumstances) -> Iterator[Finding]:
    """Whether the certificates that connectors go by are good for a client."""
    filed = [item for item in _filed(circumstances) if item.counts]
    bad = [item for item in filed if not may_authenticate(x509.load_der_x509_certificate(item.certificate.der))]
    yield from _some(
        error(
            f"{item} is not good for client authentication: its extended key usage has no clientAuth",
            f"Postfix does not trust it in a client: {_UNTRUSTED}",
            Edit(
                "its owner: get one with clientAuth; an authority of your own issues it, many public ones do no longer"
            ),
        )
        for item in bad
    )
    if filed and not bad:
        yield ok(f"{counted(len(filed), 'certificate')} good for client authentication")


def trust(circumstances: Circumstances) -> Iterator[Finding]:
    """Whether smtpd trusts who issued the certificates that connectors go by."""
    filed = [item for item in _filed(circumstances) if item.counts]
    if not filed:
        return
    authorities = clients_authorities(circumstances.postfix)
    if not any(authorities):
        yield error(
            "smtpd_tls_CAfile and smtpd_tls_CApath are empty",
            "Postfix trusts no client's certificate: to connectors by certificate all clients come without one (R10).",
            *postconf(circumstances, "smtpd_tls_CAfile", _DEBIAN),
        )
        return
    reasons = distrusted([item.certificate.der for item in filed], authorities)
    if reasons is None:
        yield unknown("who has issued the certificates was not verified: there is no openssl(1)")
        return
    pairs = zip(filed, reasons)
    yield from _some(_distrusted(circumstances, item, reason, authorities) for item, reason in pairs if reason)
    if not any(reasons):
        yield ok(f"{counted(len(filed), 'certificate')} issued by authorities in {authorities}")


def _distrusted(circumstances: Circumstances, item: _Filed, reason: Distrust, authorities: Authorities) -> Finding:
    trusting = f"cat ISSUER.pem >> {shlex.quote(authorities.file or 'CAFILE')}"
    if authorities.file == _DEBIAN:  # which that command makes anew
        trusting = "cp ISSUER.pem /usr/local/share/ca-certificates/ISSUER.crt && update-ca-certificates"
    remedy = f"{trusting} && {reload_postfix(circumstances)}"
    if reason.may_be_sent:
        return warning(
            f'{item}: its issuer "{item.certificate.issuer}" is not in {authorities}',
            f"Unless its client sends along the certificates up to one that is, {_UNTRUSTED}",
            remedy,
        )
    return error(f"{item} is not trusted by {authorities}: {reason.text}", f"So {_UNTRUSTED}", remedy)


def days(seconds: float) -> str:
    """Return *seconds* in whole days, in words."""
    return counted(int(seconds // DAY_S), "day")


def _some(findings: Iterator[Finding]) -> Iterator[Finding]:
    """Yield the first findings of a kind, and how many more there are."""
    yield from islice(findings, _LINES)
    more = sum(1 for _ in findings)
    if more:
        yield info(f"and {more} more of this kind")


CHECKS = (
    Check("certificate-files", "Certificates", files),
    Check("certificate-names", "Certificates", names),
    Check("certificate-expiry", "Certificates", expiry),
    Check("certificate-purpose", "Certificates", purpose),
    Check("certificate-trust", "Certificates", trust),
)
