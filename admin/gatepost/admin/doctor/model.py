# SPDX-License-Identifier: GPL-3.0-or-later
"""What `gatepost doctor` finds, and what its checks look at."""

from __future__ import annotations

import shlex
from collections.abc import Iterator
from dataclasses import dataclass
from enum import Enum
from functools import cached_property
from pathlib import Path
from shutil import which
from typing import TYPE_CHECKING, Callable, Optional

from gatepost.admin.postfix.config import NoPostfixError, PostfixConfig, PostfixError
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


class Edit(str):
    """A remedy that is no command: what to change, and where."""


@dataclass(frozen=True)
class Finding:
    """One thing that a check found.

    what: what is so, naming the parameter or file and its value. why: what becomes of mail. remedy: commands to
    paste, and an Edit where no command does it. check: the runner puts the check's name in.
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
    return called(circumstances.config.path, arguments)


def called(path: Path, arguments: str) -> str:
    """Return a command line of gatepost's for the configuration in *path*."""
    option = "" if str(path) == DEFAULT_PATH else f" -c {shlex.quote(str(path))}"
    return f"gatepost{option} {arguments}"


def again(circumstances: Circumstances, options: str = "") -> str:
    """Return the command line that looks at the same once more."""
    return command(circumstances, "doctor" + instance(circumstances, "--config-directory") + options)


def as_root(circumstances: Circumstances) -> str:
    return f"sudo {again(circumstances)}"


def reload_daemons(circumstances: Circumstances) -> str:
    """Return the command line that loads the configuration anew; systemctl(1) says nothing of one that is wrong."""
    return f"{command(circumstances, 'config check')} && systemctl reload gatepost.target"


def reload_postfix(circumstances: Circumstances) -> str:
    return f"postfix{instance(circumstances)} reload"


def instance(circumstances: Circumstances, option: str = "-c") -> str:
    """Return *option* for the instance of Postfix that is looked at, "" for the default one."""
    directory = circumstances.config_directory
    if directory is None and circumstances.has_postfix:
        postfix = circumstances.postfix
        default = postfix.defaults.get("config_directory", "")
        directory = postfix.config_directory if str(postfix.config_directory) != default else None
    return f" {option} {shlex.quote(str(directory))}" if directory else ""


def installing(package: str) -> str:
    """Return the command line that installs a package, called the same by Debian and Fedora."""
    manager = "apt-get" if which("apt-get") or not which("dnf") else "dnf"
    return f"{manager} install {package}"


def edit(circumstances: Circumstances, text: str) -> Edit:
    """Return what to change in gatepost.toml."""
    return Edit(f"{circumstances.config.path}: {text}")


class AbsentError(Exception):
    """What a check looks at is not on this host, and another check says so: this one is left out."""


class Circumstances:
    """What checks look at: a configuration of gatepost, and the host that it runs on.

    now: Unix seconds. missing_secret: the SRS secret's file where it could not be read; closed_secret: for it is there,
    and this user may not. read_postfix: called once, and only if a check asks; raises PostfixError. config_directory:
    of Postfix, where that was said. make_resolver: bounded in time. sendmail_cf: Sendmail's configuration. addresses:
    from which mail leaves, as others see them, where that was said. dns_left_s: how long DNS may take for the next
    check. store_failed: a check has waited for it in vain.
    """

    def __init__(
        self,
        snapshot: Snapshot,
        now: float,
        read_postfix: Callable[[], PostfixConfig],
        *,
        missing_secret: Optional[Path] = None,
        closed_secret: bool = False,
        config_directory: Optional[Path] = None,
        make_resolver: Optional[Callable[[], dns.resolver.Resolver]] = None,
        sendmail_cf: Path = Path("/etc/mail/sendmail.cf"),
        addresses: tuple[str, ...] = (),
        dns_timeout_s: float = DNS_TIMEOUT_S,
    ) -> None:
        self.snapshot = snapshot
        self.now = now
        self.missing_secret = missing_secret
        self.closed_secret = closed_secret
        self.config_directory = config_directory.absolute() if config_directory else None
        self.sendmail_cf = sendmail_cf
        self.addresses = addresses
        self.dns_left_s = dns_timeout_s
        self.store_failed = False
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
    def postfix_problem(self) -> Optional[PostfixError]:
        """What keeps the configuration of Postfix from being read; NoPostfixError: there is none."""
        return self._postfix[1]

    @property
    def has_mta(self) -> bool:
        """Whether there is an MTA, be it with a configuration that cannot be read."""
        return not isinstance(self.postfix_problem, NoPostfixError) or self.sendmail_cf.exists()

    @cached_property
    def _postfix(self) -> tuple[Optional[PostfixConfig], Optional[PostfixError]]:
        try:
            return self._read_postfix(), None
        except PostfixError as problem:
            return None, problem

    def resolver(self) -> dns.resolver.Resolver:
        return self._make_resolver()

    def _configured_resolver(self) -> dns.resolver.Resolver:
        return resolver([(item.host, item.port) for item in self.config.nameservers], self.dns_left_s)


Run = Callable[[Circumstances], Iterator[Finding]]


@dataclass(frozen=True)
class Check:
    """A check by its name, which stays the same for programs and manual; *group* is a heading."""

    name: str
    group: str
    run: Run
