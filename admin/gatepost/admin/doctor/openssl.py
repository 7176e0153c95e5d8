# SPDX-License-Identifier: GPL-3.0-or-later
"""Asks openssl(1) whether smtpd would trust clients' certificates: Postfix leaves that to OpenSSL, too."""

from __future__ import annotations

import os
import re
import subprocess
import tempfile
from collections.abc import Sequence
from pathlib import Path
from typing import NamedTuple, Optional

from gatepost.admin.postfix.config import PostfixConfig

_TIMEOUT_S = 30
_PROBLEM = re.compile(r"error (\d+) at (\d+) depth lookup: ?(.*)")
_FAILED = re.compile(r"error (\S+): verification failed")
_ISSUER_NOT_HERE = {"20", "21"}


class Authorities(NamedTuple):
    """Whose certificates smtpd trusts: what smtpd_tls_CAfile and smtpd_tls_CApath name, and OpenSSL's own, perhaps."""

    file: str
    folder: str
    with_default: bool

    def __str__(self) -> str:
        own = "OpenSSL's own authorities" if self.with_default else ""
        return " or ".join(filter(None, (self.file, self.folder, own)))


class Distrust(NamedTuple):
    """Why a certificate is not trusted. may_be_sent: it would be, if its client sends what is missing along."""

    text: str
    may_be_sent: bool


def clients_authorities(postfix: PostfixConfig) -> Authorities:
    """Return the authorities that smtpd trusts."""
    return Authorities(
        postfix.expanded("smtpd_tls_CAfile"),
        postfix.expanded("smtpd_tls_CApath"),
        postfix.expanded("tls_append_default_CA") == "yes",
    )


def distrusted(ders: Sequence[bytes], authorities: Authorities) -> Optional[list[Optional[Distrust]]]:
    """Return for each certificate why it is not trusted, None where it is; whether it is still valid apart.

    None in all: there is no openssl(1).
    """
    options = [] if authorities.with_default else ["-no-CAfile", "-no-CApath", "-no-CAstore"]
    options += ["-CAfile", authorities.file] if authorities.file else []
    options += ["-CApath", authorities.folder] if authorities.folder else []
    with tempfile.TemporaryDirectory() as folder:
        paths = [_written(Path(folder) / f"{number}.pem", der) for number, der in enumerate(ders)]
        command = ["openssl", "verify", "-no_check_time", *options, *map(str, paths)]
        try:
            done = subprocess.run(
                command,
                stdin=subprocess.DEVNULL,
                stdout=subprocess.DEVNULL,
                stderr=subprocess.PIPE,
                env={**os.environ, "LC_ALL": "C"},
                timeout=_TIMEOUT_S,
                check=False,
            )
        except FileNotFoundError:
            return None
    found = _reasons(done.stderr.decode(errors="replace"))
    return [found.get(str(path)) for path in paths]


def _written(path: Path, der: bytes) -> Path:
    from ssl import DER_cert_to_PEM_cert

    path.write_text(DER_cert_to_PEM_cert(der))
    return path


def _reasons(text: str) -> dict[str, Distrust]:
    """Return what `openssl verify` says of each file: problems, then the file that has them."""
    found = {}
    reason = None
    for line in text.splitlines():
        problem, failed = _PROBLEM.match(line), _FAILED.match(line)
        if problem and reason is None:
            reason = Distrust(problem[3], problem[1] in _ISSUER_NOT_HERE and problem[2] == "0")
        elif failed:
            found[failed[1]] = reason or Distrust("openssl verify gives no reason", may_be_sent=False)
            reason = None
    return found
