# SPDX-License-Identifier: GPL-3.0-or-later
"""`gatepost config`: its options and its help."""

from __future__ import annotations

import click

from gatepost.admin.options import as_path


@click.group("config")
def config_group() -> None:
    """Write, check and show the configuration."""


@config_group.command(
    epilog="""\b
Examples:
  gatepost config init           write /etc/gatepost/gatepost.toml
  gatepost -c ./try.toml config init
  gatepost config init --stdout | less"""
)
@click.option("--stdout", is_flag=True, help="Print it and write no file.")
@click.pass_obj
def init(config: str, stdout: bool) -> None:
    """Write a configuration to start from, every key of it explained.

    It is valid as it stands and refuses nothing (mode = "monitor"). A file that exists is never overwritten.
    """
    from gatepost.admin import config_commands

    config_commands.init(None if stdout else as_path(config))


@config_group.command(
    "check",
    epilog="""\b
Example:
  gatepost config check && systemctl reload gatepost.target""",
)
@click.pass_obj
def config_check(config: str) -> None:
    """Say whether the configuration is right; list everything that is wrong with it.

    Exit status 0 if it can be used, 78 if not.
    """
    from gatepost.admin import config_commands

    config_commands.check(as_path(config))


@config_group.command(
    epilog="""\b
Examples:
  gatepost config show
  gatepost config show | grep -v '# default'"""
)
@click.pass_obj
def show(config: str) -> None:
    """Show the configuration in force, defaults included and marked, as TOML. It holds no secret."""
    from gatepost.admin import config_commands

    config_commands.show(as_path(config))
