# SPDX-License-Identifier: GPL-3.0-or-later
"""Load the configuration for a command, or end it with every problem on standard error."""

from __future__ import annotations

import hashlib
import os
import pwd
import sys
import time
from collections.abc import Iterator, Sequence
from contextlib import contextmanager, suppress
from dataclasses import replace
from datetime import datetime, timezone
from functools import cache
from pathlib import Path
from typing import TYPE_CHECKING, NoReturn, Optional

import click

from gatepost.relay import RuleSet
from gatepost.service import certificates, log
from gatepost.service.config import Config, load, parse, read
from gatepost.service.reversal import Stored
from gatepost.service.secret import read_keys
from gatepost.service.snapshot import Snapshot, build
from gatepost.service.tables import ConfigError
from gatepost.srs import Key, Keys

if TYPE_CHECKING:
    from gatepost.service.store import Store

PLACEHOLDER = Keys([b"placeholder"])
"""In place of the SRS keys, where something is only looked at."""


@contextmanager
def problems_reported() -> Iterator[None]:
    """Turn a ConfigError into a line on standard error for each problem, and exit status 78."""
    try:
        yield
    except ConfigError as error:
        for problem in error.problems:
            complain(problem)
        sys.exit(os.EX_CONFIG)


def complain(text: str) -> None:
    """Print one line to standard error; what could act on a terminal is replaced."""
    click.echo(log.mark(3) + printable(text), err=True)


def unreadable(file: str, error: OSError) -> NoReturn:
    """End the command: an input file cannot be read."""
    complain(f"{file}: {error.strerror or error}")
    sys.exit(os.EX_NOINPUT)


def printable(text: str) -> str:
    if text.isprintable():
        return text
    return "".join(character if character.isprintable() else "?" for character in text)


def secret_missing(error: ConfigError) -> bool:
    """Tell whether `read_keys` failed because there is no secret yet: the first start makes it."""
    return isinstance(error.__cause__, FileNotFoundError)


def fingerprint(key: Key) -> str:
    """Return eight characters that tell a key from others and say nothing of a key that can't be guessed."""
    return hashlib.sha256(key.secret).hexdigest()[:8]


def snapshot_with_placeholder(path: Path, now: Optional[float] = None) -> tuple[Snapshot, Optional[Path]]:
    """Return the snapshot of the configuration in *path*, so that rules can be tried before the first start.

    now: when it is to be in force (enforce_from), in Unix seconds; the present by default. The second result is the SRS
    secret's file where that is missing, and a placeholder in its place. Raises ConfigError.
    """
    config = load(path)
    at = time.time() if now is None else now
    file = config.srs.secret_file
    missing = None
    try:
        keys = read_keys(file)
    except ConfigError as error:
        if not secret_missing(error):
            raise
        keys, missing = PLACEHOLDER, file
    return build(config, keys, at, certificates.read(config.relay.certificate_folder)), missing


def load_usable_part(path: Path) -> tuple[Config, tuple[str, ...]]:
    """Return the configuration in *path*, and what is wrong with it: then it has state folder and store alone.

    Running daemons keep the configuration from before the error. Raises ConfigError for a file that is no TOML.
    """
    try:
        return load(path), ()
    except ConfigError as error:
        raw = read(path)
        kept: dict[str, object] = {key: raw[key] for key in ("state_directory", "store") if key in raw}
        with suppress(ConfigError):
            return parse(kept, path), tuple(error.problems)
        kept.pop("store", None)
        return parse(kept, path), tuple(error.problems)


def become_owner(config: Config) -> None:
    """Make root the owner of the state directory.

    What root made there the daemons could not use, and their user could have it lead root elsewhere.
    """
    if os.geteuid() == 0 and config.state_directory.is_dir():
        owner = config.state_directory.stat()
        os.setegid(owner.st_gid)
        os.seteuid(owner.st_uid)


def resign_ownership() -> None:
    """Make root root again; the state directory must not be touched after."""
    os.seteuid(os.getuid())
    os.setegid(os.getgid())


def closed_to_owner(config: Config, paths: Sequence[Path]) -> tuple[str, list[Path]]:
    """Return whose the state directory is, as the daemons' user, and those of *paths* that this user may not read.

    Nobody but root can tell; for others, and before the first start, there are none.
    """
    if os.geteuid() != 0 or not config.state_directory.is_dir():
        return "", []
    owner = config.state_directory.stat()
    try:
        name = pwd.getpwuid(owner.st_uid).pw_name
        groups = os.getgrouplist(name, owner.st_gid)
    except KeyError:
        name, groups = str(owner.st_uid), [owner.st_gid]
    before = os.getgroups()
    os.setgroups(groups)
    become_owner(config)
    try:
        return name, [path for path in paths if not os.access(path, os.R_OK, effective_ids=True)]
    finally:
        resign_ownership()
        os.setgroups(before)


def open_store(config: Config) -> Store:
    """Return the store. Root first becomes the owner of the state directory, for good."""
    from gatepost.service.store import Store

    become_owner(config)
    return Store(config.store_url)


def originals(config: Config) -> Stored:
    """Return what asks the store for the original of a token; the first time, as `open_store`."""
    store = cache(lambda: open_store(config))
    return lambda token: store().found(token)


def store_error() -> type[Exception]:
    """Return StoreError: behind `except`, the store is loaded only where something is raised."""
    from gatepost.service.store import StoreError

    return StoreError


def in_words(moment: datetime) -> str:
    """Return a moment as it is told to a person, in UTC."""
    utc = moment.astimezone(timezone.utc)
    return f"{utc.day} {utc:%B %Y}, {utc:%H:%M} UTC"


def with_requirements(snapshot: Snapshot, rule_set: RuleSet) -> Snapshot:
    """Return *snapshot* as it would be with another rule set."""
    config = snapshot.config
    return replace(snapshot, config=replace(config, relay=replace(config.relay, requirements=rule_set)))
