# SPDX-License-Identifier: GPL-3.0-or-later
"""Move a host from postsrsd to gatepost: `gatepost import postsrsd`."""

from __future__ import annotations

import json
import os
import shlex
import sys
from collections.abc import Callable, Iterator, Sequence
from pathlib import Path
from typing import Optional

import click

from gatepost.admin.config_commands import starting_text
from gatepost.admin.configuration import complain
from gatepost.admin.postsrsd_settings import (
    Given,
    MoveError,
    Settings,
    default_sources,
    read,
    secrets_in,
    settings_of,
)
from gatepost.service.config import PolicydConfig, parse
from gatepost.service.paths import DEFAULT_STATE_DIRECTORY
from gatepost.service.secret import read_secret, replace_file, target, write_secret
from gatepost.service.tables import ConfigError
from gatepost.srs import Key

if sys.version_info >= (3, 11):
    import tomllib
else:
    import tomli as tomllib

_START = "systemctl restart gatepost-policyd"
_NO_SYSTEMD = "Without systemd: runuser -u gatepost -- gatepost policyd, which stays in the foreground."


def run(
    sources: Sequence[Path],
    output: Optional[Path],
    domain: Optional[str] = None,
    *,
    state_directory: Optional[Path] = None,
) -> int:
    """Write gatepost's configuration to *output*, or print it; return the exit status.

    sources: postsrsd's files, none for those that its packages have; a later one wins. domain: the SRS domain where
    they do not name it. The secret is copied to *state_directory*, that of the daemons by default, where the
    configuration is written.
    """
    state_directory = state_directory or Path(os.environ.get("STATE_DIRECTORY", DEFAULT_STATE_DIRECTORY)).absolute()
    kept = False
    try:
        files = list(sources) or default_sources()
        given = read(files)
        settings = settings_of(given, domain)
        secrets = _secrets(settings.secret_file, given, needed=output is not None)
        text = "".join(f"{line}\n" for line in _document(settings, files, state_directory))
        if given.problems:
            raise ConfigError(given.problems)
        parse(tomllib.loads(text), output or Path("gatepost.toml"))
        if output:
            kept = _write(output, text, state_directory / "srs.secret", settings.secret_file, secrets)
    except ConfigError as error:
        for problem in error.problems:
            complain(problem)
        return os.EX_CONFIG
    except MoveError as error:
        complain(str(error))
        return error.status
    for note in given.notes:
        complain(f"note: {note}")
    if output is None:
        click.echo(text, nl=False)
    for line in _next(settings, output, state_directory / "srs.secret", kept=kept):
        click.echo(line, err=output is None)
    return os.EX_OK


def _secrets(path: Path, given: Given, *, needed: bool) -> Sequence[bytes]:
    """Return the secrets in *path*; where they are not needed, a file that can't be read makes a note only."""
    try:
        return secrets_in(path, given)
    except MoveError as error:
        if needed:
            raise
        given.notes.append(str(error))
        return []


def _document(settings: Settings, files: Sequence[Path], state_directory: Path) -> Iterator[str]:
    yield f"# Made by `gatepost import postsrsd` of {', '.join(map(str, files))}. Every key is in gatepost.toml(5)."
    yield f"state_directory = {_toml(str(state_directory))}"
    yield ""
    yield "# Canonical maps ask for addresses only: mode enforce rewrites at once, and refuses nothing. The relay rule"
    yield "# is not applied, for Postfix asks neither the milter nor the policy service."
    yield "[[organization]]"
    yield f"name = {_toml(settings.srs_domain)}"
    yield 'mode = "enforce"'
    for domain in (settings.srs_domain, *settings.domains):
        yield ""
        yield "[[organization.accepted_domain]]"
        yield f"domain = {_toml(domain)}"
        if domain == settings.srs_domain:
            yield "default = true"
    yield ""
    yield "[srs]"
    yield f"# The secrets of {settings.secret_file}."
    yield 'secret_file = "srs.secret"'
    yield 'format = "srs0"'
    yield "also_reverse = []"
    yield f"form = {_toml('compact' if settings.database else 'auto')}"
    yield f"exclude = {_toml(settings.exclude)}"
    if settings.exclude_file:
        yield f"exclude_file = {_toml(settings.exclude_file)}"
    yield ""
    yield "[srs.srs0]"
    yield f"separator = {_toml(settings.separator)}"
    yield f"hash_length = {settings.hash_length}"
    yield f"hash_minimum = {settings.hash_minimum}"
    yield f"base64url = {'true' if settings.base64url else 'false'}"
    yield ""
    yield "[policyd]"
    yield f"listen = {_toml([_own_socket(), *filter(None, [settings.socketmap])])}"
    if settings.tcp_forward:
        yield f"tcp_table_forward = {_toml([settings.tcp_forward])}"
        yield f"tcp_table_reverse = {_toml([settings.tcp_reverse])}"


def _toml(value: object) -> str:
    return json.dumps(value, ensure_ascii=False).replace("\x7f", "\\u007f")


def _own_socket() -> str:
    return str(PolicydConfig().listen[0])


def _write(output: Path, text: str, secret_file: Path, source: Path, secrets: Sequence[bytes]) -> bool:
    """Write both files; tell whether *secret_file* had the secrets before. What somebody has written stays.

    source: postsrsd's file of them. Raises MoveError.
    """
    untouched = _as_packaged(output)
    if os.path.lexists(output) and not untouched:
        raise MoveError(
            os.EX_CANTCREAT,
            f"{output}: exists, and is never overwritten; move it away and run this again, or merge by hand what"
            " --stdout prints",
        )
    kept = False
    leads_to = target(secret_file)
    there = read_secret(leads_to, follow=False) if os.path.exists(secret_file) else []
    if not there:
        _write_secret(secret_file, b"".join(secret + b"\n" for secret in secrets))
    elif set(secrets) <= {key.secret for key in there}:
        kept = True
    elif untouched:  # then it is of the installation, and no address was made with it
        _replace(secret_file, lambda: write_secret(leads_to, [*map(Key, secrets), *there]))
    else:
        raise MoveError(
            os.EX_CANTCREAT,
            f"{secret_file}: exists with other secrets, and is never overwritten. Append postsrsd's and run this again:"
            f" {_append(source, secret_file)}; or move it away if no address was made with it",
        )
    _replace(output, lambda: _write_text(output, text, untouched=untouched))
    return kept


def _as_packaged(path: Path) -> bool:
    """Tell whether *path* is the configuration to start from, unchanged: with no organization, nothing is rewritten."""
    try:
        return path.read_text(encoding="utf-8") == starting_text()
    except (OSError, UnicodeDecodeError):
        return False


def _replace(path: Path, write: Callable[[], None]) -> None:
    try:
        write()
    except OSError as error:
        raise _cannot_write(path, error) from error


def _write_text(path: Path, text: str, *, untouched: bool) -> None:
    """Make the configuration, or replace the *untouched* one at once, with its owner and mode."""
    if not untouched:
        path.parent.mkdir(parents=True, exist_ok=True)
        with path.open("x", encoding="utf-8") as file:
            file.write(text)
        return
    replace_file(path, text.encode())


def _append(source: Path, secret_file: Path) -> str:
    return f"(echo; cat {shlex.quote(str(source))}) >>{shlex.quote(str(secret_file))}"


def _write_secret(path: Path, octets: bytes) -> None:
    """Make the secret's file, of the owner of its folder. Raises MoveError."""
    try:
        folder = path.parent.stat()
        descriptor = os.open(path, os.O_WRONLY | os.O_CREAT | os.O_EXCL | os.O_NOFOLLOW, 0o600)
        try:
            os.write(descriptor, octets)
            if (folder.st_uid, folder.st_gid) != (os.geteuid(), os.getegid()):
                os.fchown(descriptor, folder.st_uid, folder.st_gid)
            os.fsync(descriptor)
        finally:
            os.close(descriptor)
    except FileNotFoundError as error:
        text = f"{path.parent}: is not there; install -d -m 0700 -o gatepost -g gatepost {path.parent}"
        raise MoveError(os.EX_CANTCREAT, text) from error
    except OSError as error:
        raise _cannot_write(path, error) from error


def _cannot_write(path: Path, error: OSError) -> MoveError:
    text = f"{path}: cannot be written: {error.strerror}"
    if isinstance(error, PermissionError):
        return MoveError(os.EX_NOPERM, f"{text}; run this as root")
    return MoveError(os.EX_CANTCREAT, text)


def _next(settings: Settings, output: Optional[Path], secret_file: Path, *, kept: bool) -> Iterator[str]:
    """Yield what was done, and what the reader does with it."""
    if kept:
        yield f"Wrote {output}; kept {secret_file}, which has the secrets of {settings.secret_file} already."
    elif output:
        yield f"Wrote {output}, and {secret_file} with the secrets of {settings.secret_file}."
    elif os.path.exists(secret_file):
        yield f"The secret, unless it is there already: {_append(settings.secret_file, secret_file)}"
    else:
        yield f"The secret: install -m 0600 -o gatepost -g gatepost {settings.secret_file} {secret_file}"
    yield f"Try it: gatepost -c {output or 'gatepost.toml'} config check"
    yield ""
    if not (settings.tcp_forward or settings.socketmap):
        yield from _new_maps(settings)
        return
    yield "main.cf stays as it is: gatepost answers where postsrsd did. Mail waits while neither of them runs:"
    yield "    systemctl disable --now postsrsd"
    yield f"    {_START}"
    yield _NO_SYSTEMD


def _new_maps(settings: Settings) -> Iterator[str]:
    ours = "socketmap:unix:gatepost/policyd.sock"
    reverse = f"{ours}:reverse"
    if settings.database and settings.theirs:
        reverse = f"socketmap:{settings.theirs}:reverse, {reverse}"
    yield f"Start gatepost beside postsrsd; it listens on {_own_socket()}:"
    yield f"    {_START}"
    yield _NO_SYSTEMD
    yield "Then these lines of main.cf, and `postfix reload`:"
    yield f"    sender_canonical_maps = {ours}:forward"
    yield "    sender_canonical_classes = envelope_sender"
    yield f"    recipient_canonical_maps = {reverse}"
    yield "    recipient_canonical_classes = envelope_recipient, header_recipient"
    if settings.database:
        yield "After 21 days: take postsrsd out of main.cf, postfix reload, systemctl disable --now postsrsd"
    else:
        yield "After that: systemctl disable --now postsrsd"
