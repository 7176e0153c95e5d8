# SPDX-License-Identifier: GPL-3.0-or-later
"""Look at the real thing, MTA, DNS, certificates and host, and say what is wrong: `gatepost doctor`."""

from __future__ import annotations

import os
import sys
import time
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import replace
from functools import partial
from pathlib import Path
from typing import Optional

import click

from gatepost.admin.configuration import PLACEHOLDER, snapshot_with_placeholder
from gatepost.admin.doctor import (
    bounces,
    certificates,
    configuration,
    daemons,
    dns,
    host,
    keys,
    output,
    own_certificates,
    postfix,
    postfix_addresses,
    postfix_domains,
    postfix_egress,
    postfix_filters,
    postfix_milter,
    postfix_policy,
    postfix_reverse,
    sendmail,
    sockets,
    spf,
    store,
    units,
    upstream,
)
from gatepost.admin.doctor.model import (
    RANK,
    AbsentError,
    Check,
    Circumstances,
    Finding,
    Severity,
    called,
    error,
    unknown,
)
from gatepost.admin.postfix.config import PostfixConfig, PostfixError
from gatepost.service import certificates as certificates_folder
from gatepost.service.config import load
from gatepost.service.snapshot import build
from gatepost.service.tables import ConfigError

CHECKS: tuple[Check, ...] = (
    *configuration.CHECKS,
    *postfix.CHECKS,
    *postfix_milter.CHECKS,
    *postfix_reverse.CHECKS,
    *postfix_policy.CHECKS,
    *postfix_domains.CHECKS,
    *postfix_addresses.CHECKS,
    *postfix_filters.CHECKS,
    *bounces.CHECKS,
    *postfix_egress.CHECKS,
    *sendmail.CHECKS,
    *sockets.CHECKS,
    *daemons.CHECKS,
    *spf.CHECKS,
    *dns.CHECKS,
    *upstream.CHECKS,
    *certificates.CHECKS,
    *own_certificates.CHECKS,
    *host.CHECKS,
    *units.CHECKS,
    *keys.CHECKS,
    *store.CHECKS,
)
"""In the order in which they run and are shown."""


def run(path: Path, *, config_directory: Optional[Path], addresses: tuple[str, ...], as_json: bool, quiet: bool) -> int:
    """Check the configuration in *path* and its host, print what is found and return the exit status."""
    try:
        circumstances = _circumstances(path, config_directory, addresses)
    except ConfigError as problems:
        found = list(_unusable(path, problems))
        status = os.EX_CONFIG
    else:
        checks = CHECKS if as_json or not sys.stderr.isatty() else _shown(CHECKS)
        found = findings(circumstances, checks)
        status = exit_status(found)
    groups = {check.name: check.group for check in CHECKS}
    if as_json:
        click.echo(output.as_json(found, groups, status))
    else:
        click.echo(output.as_text(found, groups, quiet=quiet))
    return status


def _circumstances(path: Path, config_directory: Optional[Path], addresses: tuple[str, ...]) -> Circumstances:
    """Raises ConfigError."""
    now, closed = time.time(), False
    try:
        snapshot, missing_secret = snapshot_with_placeholder(path, now)
    except ConfigError as error:
        if not isinstance(error.__cause__, PermissionError):
            raise
        config = load(path)  # so it is the secret that this user may not read
        clients = certificates_folder.read(config.relay.certificate_folder)
        snapshot, missing_secret = build(config, PLACEHOLDER, now, clients), config.srs.secret_file
        closed = True
    return Circumstances(
        snapshot,
        now,
        partial(PostfixConfig.read, config_directory),
        missing_secret=missing_secret,
        closed_secret=closed,
        config_directory=config_directory,
        addresses=addresses,
    )


def _shown(checks: Sequence[Check]) -> Iterator[Check]:
    """Yield *checks*, and say on the terminal which one is under way: DNS and databases may take their time."""
    for check in checks:
        click.echo(f"\r{check.name:40}", nl=False, err=True)
        yield check
    click.echo(f"\r{'':40}\r", nl=False, err=True)


def findings(circumstances: Circumstances, checks: Iterable[Check] = CHECKS) -> list[Finding]:
    """Return what *checks* find. One that breaks is a finding itself."""
    return [replace(finding, check=check.name) for check in checks for finding in _found(check, circumstances)]


def _found(check: Check, circumstances: Circumstances) -> Iterator[Finding]:
    try:
        yield from check.run(circumstances)
    except AbsentError:
        return
    except PostfixError as problem:
        why = "Mail for which Postfix must ask the same waits in the queue."
        yield unknown(f"Postfix's own programs complain: {problem}", why)
    except Exception as fault:  # noqa: BLE001  the outermost shell: the other checks go on
        yield unknown(
            f"this could not be checked: {type(fault).__name__}: {fault}",
            "A fault of gatepost doctor, or something that it cannot read; the other checks are not affected.",
        )


def exit_status(found: Sequence[Finding]) -> int:
    """Return 0 where all is well, 1 for warnings or what could not be looked at, 2 for errors."""
    worst = max((RANK[finding.severity] for finding in found), default=0)
    return 0 if worst <= RANK[Severity.INFO] else 2 if worst == RANK[Severity.ERROR] else 1


def _unusable(path: Path, problems: ConfigError) -> Iterator[Finding]:
    why = "No daemon starts with it, and one that runs keeps the configuration from before. Nothing else was checked."
    for problem in problems.problems:
        if isinstance(problems.__cause__, PermissionError):
            finding = unknown(problem, "Nothing was checked.", f"sudo {called(path, 'doctor')}")
        else:
            remedy = "config check" if path.exists() else "config init"
            finding = error(problem, why, called(path, remedy))
        yield replace(finding, check=configuration.USABLE)
