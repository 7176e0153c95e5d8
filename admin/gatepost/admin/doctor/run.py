# SPDX-License-Identifier: GPL-3.0-or-later
"""Look at the real thing, MTA, DNS, certificates and host, and say what is wrong: `gatepost doctor`."""

from __future__ import annotations

import errno
import os
import time
from collections.abc import Iterator, Sequence
from dataclasses import replace
from functools import partial
from pathlib import Path
from typing import Optional

import click

from gatepost.admin.configuration import snapshot_with_placeholder
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
    upstream,
)
from gatepost.admin.doctor.model import RANK, AbsentError, Check, Circumstances, Finding, Severity, error, unknown
from gatepost.admin.postfix.config import PostfixConfig, PostfixError
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
    *keys.CHECKS,
    *store.CHECKS,
)
"""In the order in which they run and are shown."""


def run(path: Path, *, config_directory: Optional[Path], addresses: tuple[str, ...], as_json: bool, quiet: bool) -> int:
    """Check the configuration in *path* and its host, print what is found and return the exit status."""
    try:
        snapshot, missing_secret = snapshot_with_placeholder(path)
    except ConfigError as problems:
        found = list(_unusable(path, problems))
        status = os.EX_CONFIG
    else:
        read = partial(PostfixConfig.read, config_directory)
        found = findings(Circumstances(snapshot, time.time(), read, missing_secret=missing_secret, addresses=addresses))
        status = exit_status(found)
    groups = {check.name: check.group for check in CHECKS}
    if as_json:
        click.echo(output.as_json(found, groups, status))
    else:
        click.echo(output.as_text(found, groups, quiet=quiet))
    return status


def findings(circumstances: Circumstances, checks: Sequence[Check] = CHECKS) -> list[Finding]:
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
        closed = problem.endswith(os.strerror(errno.EACCES))
        remedy = "sudo gatepost doctor" if closed else f"gatepost -c {path} config check"
        yield replace(error(problem, why, remedy), check=configuration.USABLE)
