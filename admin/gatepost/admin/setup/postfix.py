# SPDX-License-Identifier: GPL-3.0-or-later
"""Wire gatepost into Postfix: print what is missing, do it, or take it back. `gatepost setup postfix`."""

from __future__ import annotations

import os
import shlex
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Optional

import click

from gatepost.admin.configuration import complain, printable, problems_reported
from gatepost.admin.postfix.config import PostfixConfig, PostfixError
from gatepost.admin.postfix.wiring import Topology
from gatepost.admin.setup import output as setup_output
from gatepost.admin.setup.advice import advice
from gatepost.admin.setup.apply import Done, SetupError, apply, is_running, undo
from gatepost.admin.setup.plan import Plan, Planner, derived_topology
from gatepost.admin.setup.refusals import Refusal, refusals
from gatepost.admin.setup.sockets import UnreachableError, silent, sockets
from gatepost.service.config import Config, load, read
from gatepost.service.paths import DEFAULT_PATH

_REFUSED = 1


@dataclass(frozen=True)
class Options:
    """What the command line says; *path* is gatepost's own configuration. None stands for what is not given."""

    path: Path
    topology: Optional[str] = None
    config_directory: Optional[Path] = None
    instance: Optional[str] = None
    apply: bool = False
    undo: bool = False
    force: bool = False
    as_json: bool = False

    def again(self, *more: str) -> str:
        """Return the command that does the same with *more* options."""
        given = [("--topology", self.topology), ("--instance", self.instance)]
        given.append(("--config-directory", str(self.config_directory) if self.config_directory else None))
        words = [word for name, value in given if value for word in (name, value)]
        own = [] if str(self.path) == DEFAULT_PATH else ["-c", str(self.path)]
        return shlex.join(["gatepost", *own, "setup", "postfix", *words, *more])


def postfix(options: Options) -> int:
    """Do what the options say; return the exit status."""
    if (options.apply or options.undo) and os.geteuid() != 0:
        complain("main.cf and master.cf are root's: run this with sudo. Without --apply and --undo it only looks.")
        return os.EX_NOPERM
    if options.config_directory and not (options.config_directory / "main.cf").exists():
        complain(f"{options.config_directory}: no main.cf there")
        return os.EX_NOINPUT
    try:
        config = _instance(PostfixConfig.read(options.config_directory), options)
        if options.undo:
            return _undo(config, options)
        with problems_reported():
            gatepost, given = load(options.path), read(options.path)
        topology = Topology(options.topology) if options.topology else derived_topology(gatepost, given)
        return _set_up(config, gatepost, topology, options)
    except PostfixError as error:
        complain(str(error))
        return os.EX_UNAVAILABLE
    except SetupError as error:
        for line in str(error).splitlines():
            complain(line)
        return error.status


def _instance(config: PostfixConfig, options: Options) -> PostfixConfig:
    if options.instance is None:
        return config
    instances = config.instances
    for instance in instances:
        if options.instance in (instance.name, str(instance.directory)):
            return PostfixConfig.read(instance.directory)
    names = ", ".join(f"{instance.name} ({instance.directory})" for instance in instances)
    raise SetupError(f'no Postfix instance is called "{options.instance}"; there are: {names}')


def _set_up(config: PostfixConfig, gatepost: Config, topology: Topology, options: Options) -> int:
    try:
        called = sockets(config, gatepost, topology)
    except UnreachableError as error:
        raise SetupError(f"{error}{_other_instances(config, gatepost)}") from error
    planner = Planner(config, gatepost, topology, called)
    plan = planner.plan()
    refused = refusals(config, gatepost, topology)
    notes = advice(config, gatepost, topology)
    if options.apply and not (refused or plan.is_empty or options.force):
        refused += _unanswered(config, gatepost, topology, options)
    if options.as_json:
        done = apply(planner, plan) if options.apply and not refused and not plan.is_empty else None
        click.echo(setup_output.as_json(config, plan, notes, refused, done))
        return _REFUSED if refused else os.EX_TEMPFAIL if done and done.reloaded else 0
    _show(config, plan, notes, options)
    if refused:
        return _refuse(refused)
    if plan.is_empty:
        click.echo(f"\nNothing to change: Postfix has all that topology {topology.value} needs.")
    elif options.apply:
        return _done(apply(planner, plan), options)
    else:
        click.echo(f"\nNothing has been changed. To do it: sudo {options.again('--apply')}")
    return 0


def _other_instances(config: PostfixConfig, gatepost: Config) -> str:
    """Return which other instance of this host has gatepost's sockets in its queue directory."""
    names = []
    for instance in config.instances:
        queue = PostfixConfig.read(instance.directory, config.postconf).queue_directory
        if any(queue in Path(listen.path).parents for listen in (gatepost.milter.listen, *gatepost.policyd.listen)):
            names.append(instance.name)
    return "".join(f"\nIt is in the queue directory of another instance: --instance {name}" for name in names)


def _unanswered(config: PostfixConfig, gatepost: Config, topology: Topology, options: Options) -> list[Refusal]:
    """Return a refusal where mail would be put off from the reload on, because gatepost does not run."""
    missing = silent(config, gatepost, topology)
    if not missing or not is_running(config):
        return []
    return [
        Refusal(
            f"gatepost does not answer at {' and '.join(map(str, missing))}",
            "Postfix runs, and from its reload on it would put off all mail until gatepost answers.",
            f"Start gatepost first (systemctl start gatepost.target), or: sudo {options.again('--apply', '--force')}",
        )
    ]


def _show(config: PostfixConfig, plan: Plan, notes: Sequence[str], options: Options) -> None:
    version = ".".join(map(str, config.version))
    click.echo(f"Postfix {version} in {config.config_directory}, topology {plan.topology.value}")
    others = [instance.name for instance in config.instances if instance.directory != config.config_directory]
    if others and not options.instance:
        click.echo(f"This host has other instances, too: {', '.join(others)} (--instance).")
    for line in setup_output.lines(config, plan):
        click.echo(line)
    if notes:
        click.echo(f"\n{click.style('For you to decide', bold=True)}")
        for note in notes:
            for line in setup_output.paragraph(note, "  ", "* "):
                click.echo(line)


def _refuse(refused: Sequence[Refusal]) -> int:
    click.echo(f"\n{click.style('Stopped here, and nothing has been changed', bold=True)}", err=True)
    for item in refused:
        for line in setup_output.refusal(item):
            click.echo(line, err=True)
    return _REFUSED


def _done(done: Done, options: Options) -> int:
    click.echo(f"\nDone. The files as they were are in {done.copies}; to take it back: sudo {options.again('--undo')}")
    for line in done.complaints:
        complain(f"As before, too: {line}")
    return _reloaded(done)


def _reloaded(done: Done) -> int:
    if done.reloaded:
        complain(f"Postfix has not read it (postfix reload: {done.reloaded})")
        return os.EX_TEMPFAIL
    runs = done.reloaded is not None
    click.echo("Postfix has read it." if runs else "Postfix does not run; it reads this when it starts.")
    return 0


def _undo(config: PostfixConfig, options: Options) -> int:
    done = undo(config, force=options.force)
    kept = ", but for what was changed by hand since:" if done.kept else "."
    click.echo(f"main.cf and master.cf in {config.config_directory} are as they were before setup{kept}")
    for line in done.kept.expandtabs().splitlines():
        click.echo(printable(line))
    status = _reloaded(done)
    if done.topology != Topology.POLICY_ONLY.value:
        click.echo(
            "If mail was rewritten until now, its bounces do not come home any more, but for what gatepost(8), SETUP,"
            " says of them."
        )
    return status
