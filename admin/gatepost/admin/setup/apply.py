# SPDX-License-Identifier: GPL-3.0-or-later
"""Carry out a plan with postconf(1), check the result, reload; and take it back."""

from __future__ import annotations

import os
import pty
import re
import subprocess
import time
from collections.abc import Mapping
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Optional

from gatepost.admin.postfix.config import PostfixConfig, PostfixError, run
from gatepost.admin.setup.files import NAMES, Copies, Saved, write
from gatepost.admin.setup.plan import Plan, Planner, entry_line, hop_line

_TIMEOUT_S = 120


class SetupError(Exception):
    """It was not done, and everything is as it was before; the text says why."""


@dataclass(frozen=True)
class Done:
    """What came of it. reloaded: None where Postfix was not running, else what `postfix reload` complained of."""

    topology: str
    copies: Path
    reloaded: Optional[str] = None


def is_running(config: PostfixConfig) -> bool:
    """Say whether this instance runs."""
    return _postfix(config, "status")[0] == 0


def apply(planner: Planner, plan: Plan) -> Done:
    """Change the configuration as *plan* says. Raises SetupError with everything put back."""
    config = planner.config
    directory, copies = config.config_directory, Copies(config.config_directory)
    before = copies.record()
    if before and before.topology != plan.topology.value:
        raise SetupError(
            f"{directory} was set up for topology {before.topology}. Take that back first: gatepost setup postfix"
            f" --undo"
        )
    complaints = _complaints(config)
    saved = {name: Saved.of(directory / name) for name in NAMES}
    files = {item.path: item.path.read_bytes() if item.path.exists() else None for item in plan.files}
    copies.keep(plan.topology.value, [item.path.name for item in plan.files])
    try:
        _write(planner, plan, saved)
        changed = _read_again(planner)
        rest = changed.plan()
        if not rest.is_empty:
            names = [change.parameter for change in rest.changes] + [item.service.name for item in rest.services]
            raise SetupError(f"postconf has not taken over: {', '.join(names)}")
        known = set(map(_numberless, complaints))
        fresh = [line for line in _complaints(changed.config) if _numberless(line) not in known]
        if fresh:
            raise SetupError("Postfix complains of the result:\n" + "\n".join(fresh))
        copies.applied()
    except (SetupError, PostfixError, OSError) as error:
        for name, item in saved.items():
            item.restore(directory / name)
        for path, octets in files.items():
            path.unlink(missing_ok=True)
            if octets is not None:
                write(path, octets, 0o644, (os.geteuid(), os.getegid()))
        if before is None:
            copies.forget()
        raise SetupError(str(error)) from error
    return Done(plan.topology.value, copies.folder, reload(config))


def _write(planner: Planner, plan: Plan, saved: Mapping[str, Saved]) -> None:
    config = planner.config
    for item in plan.files:
        write(item.path, item.text.encode(), 0o644, (os.geteuid(), os.getegid()))
    for name, before in saved.items():
        if not before.octets.endswith(b"\n"):
            # postconf -e would add its line to the last one, to a comment even.
            replace(before, octets=before.octets + b"\n").restore(config.config_directory / name)
    settle(config.config_directory)
    postconf = [config.postconf, "-c", str(config.config_directory)]
    lines = [hop_line(new) for new in plan.services]
    for service in config.services:
        changes = [change for change in plan.changes if change.service == service.key]
        if changes:
            lines.append(entry_line(service, changes))
    if lines:
        run([*postconf, "-M", *(f"{'/'.join(line.split()[:2])}={line}" for line in lines)])
    for change in plan.changes:
        if not change.service:
            # Several at once postconf would write in no order that a person could follow.
            run([*postconf, "-e", f"{change.parameter}={change.new}"])
            settle(config.config_directory)


def settle(config_directory: Path) -> None:
    """Set main.cf's time back a moment: every program of Postfix waits two seconds for a fresh one to be complete."""
    before = time.time() - 3
    os.utime(config_directory / "main.cf", (before, before))


def _read_again(planner: Planner) -> Planner:
    config = PostfixConfig.read(planner.config.config_directory, planner.config.postconf)
    return Planner(config, planner.gatepost, planner.topology, planner.sockets)


def undo(config: PostfixConfig, *, force: bool) -> Done:
    """Put main.cf and master.cf back as they were. Raises SetupError if somebody has changed them since."""
    copies = Copies(config.config_directory)
    record = copies.record()
    if record is None:
        raise SetupError(f"{config.config_directory}: setup has changed nothing here, so there is nothing to take back")
    edits = record.edits + "".join(copies.edits())
    if edits and not force:
        raise SetupError(
            f"{config.config_directory}: changed by hand since setup, and that would be lost:\n{edits}"
            f"Take gatepost's lines out by hand, or run this again with --force and make your changes again. The"
            f" files as"
            f" they were are in {copies.folder}."
        )
    copies.restore()
    settle(config.config_directory)
    reloaded = reload(config)
    copies.forget()  # last: until the reload smtpd reads the tables that go with it
    return Done(record.topology, copies.folder, reloaded)


def reload(config: PostfixConfig) -> Optional[str]:
    """Have a running Postfix read its configuration again."""
    if not is_running(config):
        return None
    status, told = _postfix(config, "reload")
    return told.strip() or f"exit status {status}" if status else ""


def _complaints(config: PostfixConfig) -> list[str]:
    """Return what postconf and `postfix check` have against the configuration."""
    status, told = _postfix(config, "check")
    again = PostfixConfig.read(config.config_directory, config.postconf)
    lines = [line for line in told.splitlines() if line.strip()]
    return [*again.complaints, *lines, *([f"postfix check: exit status {status}"] if status else [])]


def _numberless(complaint: str) -> str:
    """Return a complaint without the number of its line, which changes with the lines before it."""
    return re.sub(r"line \d+", "line", complaint)


def _postfix(config: PostfixConfig, action: str) -> tuple[int, str]:
    """Return exit status and output of `postfix ACTION`, which tells only a terminal what it has to say."""
    command = [str(Path(config.postconf).with_name("postfix")), "-c", str(config.config_directory), action]
    try:
        reader, writer = pty.openpty()
    except OSError:  # none to be had, as in a chroot without /dev/pts: then its exit status must do
        reader, writer = os.pipe()
    try:
        with subprocess.Popen(command, stdin=subprocess.DEVNULL, stdout=writer, stderr=writer) as process:
            os.close(writer)
            told = _read(reader)
            return process.wait(_TIMEOUT_S), told
    except OSError as error:
        raise PostfixError(f"{command[0]}: {error.strerror}") from error
    finally:
        os.close(reader)


def _read(descriptor: int) -> str:
    octets = b""
    while True:
        try:
            more = os.read(descriptor, 65536)
        except OSError:  # how a terminal says that nobody writes to it any more
            break
        if not more:
            break
        octets += more
    return octets.decode(errors="replace").replace("\r\n", "\n")
