# SPDX-License-Identifier: GPL-3.0-or-later
"""What `gatepost doctor` finds, and what its checks look at."""

from __future__ import annotations

import shlex
from collections.abc import Iterator
from dataclasses import dataclass
from enum import Enum
from functools import cached_property
from pathlib import Path
from typing import TYPE_CHECKING, Callable, Optional

from gatepost.admin.postfix.config import PostfixConfig, PostfixError
from gatepost.service.config import Config
from gatepost.service.paths import DEFAULT_PATH
from gatepost.service.resolver import resolver
from gatepost.service.snapshot import Snapshot

if TYPE_CHECKING:
    import dns.resolver

DNS_TIMEOUT_S = 8.0


class Severity(Enum):
    """How bad a finding is. UNKNOWN: it could not be looked at (no permission, no answer)."""

    OK = "ok"
    INFO = "info"
    UNKNOWN = "unknown"
    WARNING = "warning"
    ERROR = "error"


RANK = {severity: rank for rank, severity in enumerate(Severity)}
"""The worse, the higher."""


@dataclass(frozen=True)
class Finding:
    """One thing that a check found.

    what: what is so, naming the parameter or file and its value. why: what becomes of mail. remedy: commands to
    paste, or where no command does it, what to change in which file. check: the runner puts the check's name in.
    """

    severity: Severity
    what: str
    why: str = ""
    remedy: tuple[str, ...] = ()
    check: str = ""


def ok(what: str) -> Finding:
    return Finding(Severity.OK, what)


def info(what: str, why: str = "", *remedy: str) -> Finding:
    return Finding(Severity.INFO, what, why, remedy)


def warning(what: str, why: str, *remedy: str) -> Finding:
    return Finding(Severity.WARNING, what, why, remedy)


def error(what: str, why: str, *remedy: str) -> Finding:
    return Finding(Severity.ERROR, what, why, remedy)


def unknown(what: str, why: str = "", *remedy: str) -> Finding:
    return Finding(Severity.UNKNOWN, what, why, remedy)


def command(circumstances: Circumstances, arguments: str) -> str:
    """Return a command line of gatepost's for the configuration looked at."""
    path = circumstances.config.path
    option = "" if str(path) == DEFAULT_PATH else f" -c {shlex.quote(str(path))}"
    return f"gatepost{option} {arguments}"


class AbsentError(Exception):
    """What a check looks at is not on this host, and another check says so: this one is left out."""


class Circumstances:
    """What checks look at: a configuration of gatepost, and the host that it runs on.

    now: Unix seconds. missing_secret: the SRS secret's file where it is not there yet. read_postfix: called once, and
    only if a check asks; raises PostfixError. make_resolver: bounded in time. sendmail_cf: Sendmail's configuration.
    addresses: from which mail leaves, as others see them, where that was said. dns_timeout_s: for all of one check.
    """

    def __init__(
        self,
        snapshot: Snapshot,
        now: float,
        read_postfix: Callable[[], PostfixConfig],
        *,
        missing_secret: Optional[Path] = None,
        make_resolver: Optional[Callable[[], dns.resolver.Resolver]] = None,
        sendmail_cf: Path = Path("/etc/mail/sendmail.cf"),
        addresses: tuple[str, ...] = (),
        dns_timeout_s: float = DNS_TIMEOUT_S,
    ) -> None:
        self.snapshot = snapshot
        self.now = now
        self.missing_secret = missing_secret
        self.sendmail_cf = sendmail_cf
        self.addresses = addresses
        self.dns_timeout_s = dns_timeout_s
        self._read_postfix = read_postfix
        self._make_resolver = make_resolver or self._configured_resolver

    @property
    def config(self) -> Config:
        return self.snapshot.config

    @property
    def postfix(self) -> PostfixConfig:
        """The running configuration of Postfix. Raises AbsentError."""
        if self._postfix[0] is None:
            raise AbsentError
        return self._postfix[0]

    @property
    def has_postfix(self) -> bool:
        return self._postfix[0] is not None

    @property
    def postfix_problem(self) -> str:
        """What keeps the configuration of Postfix from being read, "" if nothing does."""
        return self._postfix[1]

    @cached_property
    def _postfix(self) -> tuple[Optional[PostfixConfig], str]:
        try:
            return self._read_postfix(), ""
        except PostfixError as problem:
            return None, str(problem)

    def resolver(self) -> dns.resolver.Resolver:
        return self._make_resolver()

    def _configured_resolver(self) -> dns.resolver.Resolver:
        return resolver([(item.host, item.port) for item in self.config.nameservers], self.dns_timeout_s)


Run = Callable[[Circumstances], Iterator[Finding]]


@dataclass(frozen=True)
class Check:
    """A check by its name, which stays the same for programs and manual; *group* is a heading."""

    name: str
    group: str
    run: Run
