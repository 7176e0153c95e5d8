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

from gatepost.admin import (
    doctor_bounces,
    doctor_certificates,
    doctor_configuration,
    doctor_daemons,
    doctor_dns,
    doctor_host,
    doctor_keys,
    doctor_output,
    doctor_own_certificates,
    doctor_postfix,
    doctor_postfix_addresses,
    doctor_postfix_domains,
    doctor_postfix_egress,
    doctor_postfix_filters,
    doctor_postfix_milter,
    doctor_postfix_policy,
    doctor_postfix_reverse,
    doctor_sendmail,
    doctor_sockets,
    doctor_spf,
    doctor_store,
    doctor_upstream,
)
from gatepost.admin.configuration import snapshot_with_placeholder
from gatepost.admin.doctor_model import RANK, AbsentError, Check, Circumstances, Finding, Severity, error, unknown
from gatepost.admin.postfix_config import PostfixConfig, PostfixError
from gatepost.service.tables import ConfigError

CHECKS: tuple[Check, ...] = (
    *doctor_configuration.CHECKS,
    *doctor_postfix.CHECKS,
    *doctor_postfix_milter.CHECKS,
    *doctor_postfix_reverse.CHECKS,
    *doctor_postfix_policy.CHECKS,
    *doctor_postfix_domains.CHECKS,
    *doctor_postfix_addresses.CHECKS,
    *doctor_postfix_filters.CHECKS,
    *doctor_bounces.CHECKS,
    *doctor_postfix_egress.CHECKS,
    *doctor_sendmail.CHECKS,
    *doctor_sockets.CHECKS,
    *doctor_daemons.CHECKS,
    *doctor_spf.CHECKS,
    *doctor_dns.CHECKS,
    *doctor_upstream.CHECKS,
    *doctor_certificates.CHECKS,
    *doctor_own_certificates.CHECKS,
    *doctor_host.CHECKS,
    *doctor_keys.CHECKS,
    *doctor_store.CHECKS,
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
        click.echo(doctor_output.as_json(found, groups, status))
    else:
        click.echo(doctor_output.as_text(found, groups, quiet=quiet))
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
        yield replace(error(problem, why, remedy), check=doctor_configuration.USABLE)
