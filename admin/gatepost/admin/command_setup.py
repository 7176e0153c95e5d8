# SPDX-License-Identifier: GPL-3.0-or-later
"""`gatepost setup`: its options and its help."""

from __future__ import annotations

import sys
from typing import Optional

import click

from gatepost.admin.options import as_json, as_path

_TOPOLOGIES = ["relay-hub", "forwarder", "exchange-online", "policy-only", "postsrsd-replacement"]


@click.group("setup")
def setup() -> None:
    """Wire gatepost into the MTA: say what is missing and why, do it, take it back."""


@setup.command(
    epilog="""\b
Examples:
  gatepost setup postfix                   say what would be added, and why
  sudo gatepost setup postfix --apply      do it, and reload Postfix
  sudo gatepost setup postfix --undo       as it was before
  gatepost setup postfix --topology forwarder
  gatepost setup postfix --instance postfix-out

Exit statuses: 0 done, or nothing to do; 1 refused, and nothing changed; 66 no
main.cf there; 69 no Postfix here; 73 a file cannot be written; 75 done, but
Postfix has not read it; 77 not root; 78 wrong configuration of gatepost."""
)
@click.option(
    "--topology",
    metavar="NAME",
    type=click.Choice(_TOPOLOGIES),
    help="What the server is for, as above. Default: what gatepost.toml is written for.",
)
@click.option("--config-directory", metavar="DIR", help="The folder of main.cf. Default: Postfix's own.")
@click.option("--instance", metavar="NAME", help="One of several Postfix instances (postmulti -l).")
@click.option("--apply", "do", is_flag=True, help="Do it: postconf, postfix check, postfix reload.")
@click.option("--undo", is_flag=True, help="Put main.cf and master.cf back as they were.")
@click.option("--force", is_flag=True, help="Apply though gatepost does not answer; undo though its lines were edited.")
@as_json
@click.pass_obj
def postfix(
    config: str,
    topology: Optional[str],
    config_directory: Optional[str],
    instance: Optional[str],
    do: bool,
    undo: bool,
    force: bool,
    as_json: bool,
) -> None:
    """Say what Postfix lacks for gatepost, line by line; with --apply, add it.

    \b
    relay-hub             hosts submit here; the rule, and SRS as mail enters
    forwarder             aliases and .forward files lead outside ([egress])
    exchange-online       all mail goes on to Exchange Online ([upstream])
    policy-only           no milter; policyd applies the rule
    postsrsd-replacement  canonical maps in place of postsrsd's

    What you have stays, behind gatepost's entries. It refuses an open relay, and what would lead mail past the egress
    hop. A second --apply finds nothing to do.
    """
    from gatepost.admin.setup import postfix as setting_up

    if do and undo:
        raise click.UsageError("--apply and --undo exclude each other")
    if undo and as_json:
        raise click.UsageError("--undo has nothing to say in JSON")
    if "" in (config_directory, instance):  # as of an unset variable in a script
        raise click.UsageError("--config-directory and --instance need a value")
    if config_directory and instance:
        raise click.UsageError("--config-directory and --instance exclude each other")
    folder = as_path(config_directory) if config_directory else None
    options = setting_up.Options(as_path(config), topology, folder, instance, do, undo, force, as_json)
    sys.exit(setting_up.postfix(options))


@setup.command(
    epilog="""\b
Examples:
  gatepost setup sendmail
  sudo gatepost setup sendmail --output /etc/mail/gatepost.m4"""
)
@click.option("--output", metavar="FILE", help="Write them to FILE. Default: standard output.")
@click.pass_obj
def sendmail(config: str, output: Optional[str]) -> None:
    """Print the lines that sendmail.mc needs, each with its reason. Sendmail itself is not touched.

    What to change in gatepost.toml goes to standard error. A FILE that this command has not made is left alone.
    Exit status: 78 if Sendmail cannot do what gatepost.toml asks for, 73 if FILE cannot be written.
    """
    from gatepost.admin.setup import sendmail as setup_sendmail

    sys.exit(setup_sendmail.run(as_path(config), as_path(output) if output else None))
