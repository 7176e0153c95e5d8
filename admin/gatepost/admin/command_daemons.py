# SPDX-License-Identifier: GPL-3.0-or-later
"""`gatepost run`, `milter` and `policyd`: their options and their help."""

from __future__ import annotations

import signal
import sys

import click

from gatepost.admin import garbage
from gatepost.admin.options import as_path


@click.command(
    epilog="""\b
Examples:
  gatepost run                   both, with /etc/gatepost/gatepost.toml
  gatepost -c ./gatepost.toml run"""
)
@click.pass_obj
def run(config: str) -> None:
    """Run the milter and the policy daemon under one supervisor.

    It stays in the foreground and logs to standard error. SIGHUP loads the configuration anew, SIGTERM ends it.
    """
    _daemons(config, "milter", "policyd")


@click.command(
    epilog="""\b
Example:
  gatepost milter                where policyd runs in a unit of its own"""
)
@click.pass_obj
def milter(config: str) -> None:
    """Run the milter alone."""
    _daemons(config, "milter")


@click.command(
    epilog="""\b
Example:
  gatepost policyd               where Postfix uses no milter"""
)
@click.pass_obj
def policyd(config: str) -> None:
    """Run the policy daemon alone."""
    _daemons(config, "policyd")


def _daemons(config: str, *names: str) -> None:
    garbage.look_as_usual()
    signal.pthread_sigmask(signal.SIG_BLOCK, {signal.SIGHUP})  # one that comes before the supervisor is there is for it
    from gatepost.admin.run import run as run_daemons

    sys.exit(run_daemons(as_path(config), names))
