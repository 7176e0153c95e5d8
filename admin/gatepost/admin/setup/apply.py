# SPDX-License-Identifier: GPL-3.0-or-later
"""Carry out a plan with postconf(1), check the result, reload; and take it back."""

from __future__ import annotations

import contextlib
import fcntl
import os
import pty
import re
import signal
import subprocess
import tempfile
import time
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import NoReturn, Optional

from gatepost.admin.postfix.config import PostfixConfig, PostfixError, run
from gatepost.admin.setup.files import Contents, Copies, DamagedError, EditedError, write
from gatepost.admin.setup.plan import Plan, Planner, entry_line, hop_line

_TIMEOUT_S = 120
_SIGNALS = (signal.SIGINT, signal.SIGTERM, signal.SIGHUP)
_INTERRUPTED = "interrupted"


class SetupError(Exception):
    """It was not done; the text says why, and status is that of the command."""

    def __init__(self, text: str, status: int = 1) -> None:
        super().__init__(text)
        self.status = status


@dataclass(frozen=True)
class Done:
    """What came of it.

    reloaded: None where Postfix was not running, else what `postfix reload` complained of. complaints: what
    `postfix check` had against the configuration before, and still has. kept: what was changed by hand since setup.
    """

    topology: str
    copies: Path
    reloaded: Optional[str] = None
    complaints: tuple[str, ...] = ()
    kept: str = ""


def is_running(config: PostfixConfig) -> bool:
    """Say whether this instance runs: master(8) holds its lock then. `postfix status` asks a sound main.cf first."""
    try:
        with (config.queue_directory / "pid/master.pid").open() as file:
            fcntl.flock(file, fcntl.LOCK_SH | fcntl.LOCK_NB)
    except FileNotFoundError:
        return False
    except BlockingIOError:
        return True
    return False


def apply(planner: Planner, plan: Plan) -> Done:
    """Change the configuration as *plan* says. Raises SetupError with everything put back."""
    config, topology = planner.config, plan.topology.value
    with _at_work(config.config_directory, "Everything is as it was before."):
        copies = Copies(config.config_directory)
        before = copies.record()
        if before and before.topology != topology:
            raise SetupError(
                f"{config.config_directory} was set up for topology {before.topology}. Take that back first: gatepost"
                f" setup postfix --undo"
            )
        complaints = _complaints(config)
        # main.cf last: what starts in between, or after a power cut, then asks for no service that there is not.
        names = [*(item.path.name for item in plan.files), "master.cf", "main.cf"]
        old = copies.read(names)
        made = _made(planner, plan, old)
        ran = is_running(config)
        try:
            copies.keep(topology, old, made)
            copies.put(made, old)
            _check(planner, complaints)
            reloaded = _reload_for_good(config)
        except BaseException:
            _heed_no_signal()
            _take_back(copies, made, old, first=before is None)
            if ran and not is_running(config):
                _postfix(config, "start")
            raise
    return Done(topology, copies.folder, reloaded, tuple(complaints))


def _made(planner: Planner, plan: Plan, old: Contents) -> dict[str, bytes]:
    """Return the files as *plan* wants them. postconf makes them elsewhere: each gets here in one step, and whole."""
    made = {item.path.name: item.text.encode() for item in plan.files}
    with tempfile.TemporaryDirectory(prefix="gatepost-setup-") as name:
        folder = Path(name)
        for file in ("master.cf", "main.cf"):
            octets = old[file] or b""
            # postconf -e would add its line to the last one, to a comment even.
            write(folder / file, octets if octets.endswith(b"\n") else octets + b"\n", mode=0o600)
        _postconf(planner.config, plan, folder)
        return {**made, **{file: (folder / file).read_bytes() for file in ("master.cf", "main.cf")}}


def _postconf(config: PostfixConfig, plan: Plan, folder: Path) -> None:
    postconf = [config.postconf, "-c", str(folder)]
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
            before = time.time() - 3
            os.utime(folder / "main.cf", (before, before))  # or the next postconf waits until it is two seconds old


def _check(planner: Planner, complaints: list[str]) -> None:
    """Raise SetupError if something is still to be changed, or Postfix complains of something else than before."""
    config = PostfixConfig.read(planner.config.config_directory, planner.config.postconf)
    rest = Planner(config, planner.gatepost, planner.topology, planner.sockets).plan()
    if not rest.is_empty:
        names = [change.parameter for change in rest.changes] + [item.service.name for item in rest.services]
        raise SetupError(f"postconf has not taken over: {', '.join(names)}")
    known = set(map(_numberless, complaints))
    fresh = [line for line in _complaints(config) if _numberless(line) not in known]
    if fresh:
        raise SetupError("Postfix complains of the result:\n" + "\n".join(fresh))


def _reload_for_good(config: PostfixConfig) -> Optional[str]:
    """Reload; raise SetupError if master(8) ends of it, as it does where it cannot listen."""
    try:
        reloaded = reload(config)
        for _ in range(10 if reloaded is not None else 0):
            time.sleep(0.1)
            if not is_running(config):
                raise SetupError(
                    "Postfix has ended when it read the result, and was started again as it was: see its log"
                )
    except KeyboardInterrupt:
        return _INTERRUPTED
    return reloaded


def _take_back(copies: Copies, made: Contents, old: Contents, *, first: bool) -> None:
    try:
        copies.take_back(made, old)
        if first:
            copies.forget(list(made))
        else:
            copies.left(old)
    except OSError as error:
        raise SetupError(
            f"{_said(error)}. Not everything could be put back: as soon as that is mended, gatepost setup postfix"
            f" --undo does it.",
            os.EX_CANTCREAT,
        ) from error


def undo(config: PostfixConfig, *, force: bool) -> Done:
    """Put main.cf and master.cf back as they were, but for what somebody has changed beside setup's entries since.

    Raises SetupError if somebody has changed those.
    """
    with _at_work(config.config_directory, "To have it whole, run it again."):
        copies = Copies(config.config_directory)
        record = copies.record()
        if record is None:
            raise SetupError(
                f"{config.config_directory}: setup has changed nothing here, so there is nothing to take back"
            )
        edits = "".join(copies.edits())
        if not force and (record.edits or not copies.adopt_edits()):
            raise SetupError(
                f"{config.config_directory}: gatepost's entries were changed by hand since setup, and that would be"
                f" lost:\n{record.edits}{edits}"
                f"Take gatepost's lines out by hand, or run this again with --force and make your changes again. The"
                f" files as they were are in {copies.folder}."
            )
        copies.restore()
        reloaded = reload(config)
        copies.forget()  # last: until the reload smtpd reads the tables that go with it
    return Done(record.topology, copies.folder, reloaded, kept="" if force else edits)


@contextlib.contextmanager
def _at_work(directory: Path, state: str) -> Iterator[None]:
    """Keep others of our kind out, and have whatever goes wrong, or ends it, told as SetupError."""
    handlers = {number: signal.getsignal(number) for number in _SIGNALS}
    heeded = [number for number, handler in handlers.items() if handler is not signal.SIG_IGN]
    descriptor = os.open(directory, os.O_RDONLY)
    try:
        fcntl.flock(descriptor, fcntl.LOCK_EX | fcntl.LOCK_NB)
        for number in heeded:
            signal.signal(number, _interrupt)
        yield
    except BlockingIOError as error:
        raise SetupError(f"{directory}: another gatepost setup is at work here") from error
    except KeyboardInterrupt as error:
        raise SetupError(f"Interrupted. {state}") from error
    except OSError as error:
        raise SetupError(f"{_said(error)}. {state}", os.EX_CANTCREAT) from error
    except (DamagedError, EditedError, PostfixError) as error:
        raise SetupError(str(error)) from error
    finally:
        for number in heeded:
            signal.signal(number, handlers[number])
        os.close(descriptor)


def _interrupt(number: int, frame: object) -> NoReturn:
    """End what is being done as Ctrl-C does: by an exception, so that it is put back, undisturbed by a second one."""
    _heed_no_signal()
    raise KeyboardInterrupt


def _heed_no_signal() -> None:
    for number in _SIGNALS:
        signal.signal(number, signal.SIG_IGN)


def _said(error: OSError) -> str:
    return f"{error.filename}: {error.strerror}"


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
    except (OSError, subprocess.TimeoutExpired) as error:
        raise PostfixError(f"{command[0]}: {error}") from error
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
