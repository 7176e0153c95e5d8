# SPDX-License-Identifier: GPL-3.0-or-later
"""The file of SRS secrets: read, made on the first start, rotated.

One secret a line. A comment line `# signs from 2026-11-23` says of the next one on which day (UTC) it begins to sign;
the first one in the file that has begun signs, all of them verify.
"""

from __future__ import annotations

import base64
import contextlib
import os
import re
import stat
from collections.abc import Sequence
from datetime import date, timedelta
from pathlib import Path

from gatepost.service.regular import open_regular
from gatepost.service.tables import ConfigError
from gatepost.srs import Key, Keys

_EPOCH = date(1970, 1, 1)
_SIGNS_FROM = re.compile(rb"#\s*signs from\s+(\d\S*?)(?:[\s,;:.].*)?", re.IGNORECASE)
_DAY = re.compile(rb"\d{4}-\d\d-\d\d")
_NO_TEXT = re.compile(rb"[\x00-\x08\x0e-\x1f\x7f]")
"""A crash leaves NUL octets in the place of what was not on the disk yet, a secret that everybody knows."""


def read_keys(path: Path) -> Keys:
    """Return the keys in *path*. Raises ConfigError."""
    return Keys(read_secret(path))


def read_secret(path: Path, *, follow: bool = True) -> list[Key]:
    """Return the keys in *path*, in its order; *follow*: also where it is a link. Raises ConfigError."""
    try:
        with open_regular(path, follow=follow) as file:
            mode = os.fstat(file.fileno()).st_mode
            octets = file.read()
    except OSError as error:
        raise ConfigError([f"{path}: the SRS secret cannot be read: {error.strerror}"]) from error
    if mode & (stat.S_IROTH | stat.S_IWOTH | stat.S_IWGRP):
        raise ConfigError([f"{path}: the SRS secret is open to others (mode {mode & 0o777:04o}); chmod 0600 {path}"])
    found = _keys(octets, path)
    if not found:
        raise ConfigError([f"{path}: holds no SRS secret; one line a key, the first one signs"])
    return found


def _keys(octets: bytes, path: Path) -> list[Key]:
    found: list[Key] = []
    signs_from = 0
    for number, line in enumerate(map(bytes.strip, octets.splitlines()), 1):
        comment = _SIGNS_FROM.fullmatch(line)
        if comment:
            try:
                signs_from = _day(comment[1])
            except ValueError:
                raise ConfigError([f'{path}: line {number}: "# signs from" takes a day such as 2026-11-23']) from None
        elif line and not line.startswith(b"#"):
            if _NO_TEXT.search(line):
                raise ConfigError([f"{path}: line {number}: is no text, so no SRS secret: the file is damaged"])
            found.append(Key(line, signs_from))
            signs_from = 0
    return found


def _day(text: bytes) -> int:
    """Return YYYY-MM-DD in days since 1970-01-01. Raises ValueError."""
    if _DAY.fullmatch(text) is None:  # fromisoformat takes more from Python 3.11 on
        raise ValueError
    return (date.fromisoformat(text.decode()) - _EPOCH).days


def ensure_secret(path: Path, mode: int = 0o600) -> bool:
    """Make an SRS secret in *path* unless there is one; return whether it was made. Raises ConfigError."""
    draft = path.with_name(f"{path.name}.{os.getpid()}")
    try:
        if path.exists():
            return False
        path.parent.mkdir(parents=True, exist_ok=True)
        _write_new(draft, new_secret() + b"\n", mode)
        try:
            os.link(draft, path)  # unlike rename(2), fails where another daemon was first
        except FileExistsError:
            return False
        finally:
            os.unlink(draft)
    except OSError as error:
        raise ConfigError([f"{path}: the SRS secret cannot be made: {error.strerror}"]) from error
    return True


def new_secret() -> bytes:
    """Return a random secret of 256 bits, in base64."""
    return base64.b64encode(os.urandom(32))


def rotated(
    keys: Sequence[Key], new: bytes, signs_from: int, today: int, validity_days: int, changed_on: int
) -> list[Key]:
    """Return *keys* with *new*, which signs from *signs_from*, in front, less those whose addresses have all expired.

    Days since 1970-01-01. changed_on: when the file was written last; a key without a date may have signed until then.
    """
    kept = [Key(new, signs_from)]
    replaced_on = signs_from
    for key in keys:
        signed_until = replaced_on if key.signs_from else max(replaced_on, changed_on)
        if today <= signed_until + validity_days:  # a day more than the last address lives, for clocks differ
            kept.append(key)
        replaced_on = min(replaced_on, key.signs_from or replaced_on)
    return kept


def target(path: Path) -> Path:
    """Return the file that *path* leads to, what all hosts share perhaps. Raises ConfigError.

    Root follows no link in a folder of another user's, who could have it read and replace any file.
    """
    if os.geteuid() or not path.parent.exists() or not path.parent.stat().st_uid:
        return Path(os.path.realpath(path))  # which raises nothing for links in a circle
    if path.is_symlink():
        raise ConfigError([f"{path}: is a link in a folder that is not root's; srs.secret_file must name its target"])
    return path


def write_secret(path: Path, keys: Sequence[Key]) -> None:
    """Replace the file *path*, no link (see `target`), at once by one with *keys*, same owner and mode.

    Raises OSError; the old one then stays.
    """
    lines: list[bytes] = []
    for key in keys:
        if key.signs_from:
            lines.append(f"# signs from {iso_day(key.signs_from)}\n".encode())
        lines.append(key.secret + b"\n")
    replace_file(path, b"".join(lines))


def replace_file(path: Path, octets: bytes) -> None:
    """Replace the file at once by one with *octets*, same owner and mode. Raises OSError; the old one then stays."""
    before = path.stat()
    draft = path.with_name(f"{path.name}.{os.getpid()}")
    try:
        _write_new(draft, octets, stat.S_IMODE(before.st_mode), (before.st_uid, before.st_gid))
        os.rename(draft, path)
    except OSError:
        with contextlib.suppress(FileNotFoundError):
            os.unlink(draft)
        raise
    folder = os.open(path.parent, os.O_RDONLY | os.O_DIRECTORY)
    try:
        os.fsync(folder)
    finally:
        os.close(folder)


def iso_day(day: int) -> str:
    """Return *day*, since 1970-01-01, as in 2026-11-23."""
    return (_EPOCH + timedelta(days=day)).isoformat()


def _write_new(path: Path, octets: bytes, mode: int, owner: tuple[int, int] = (-1, -1)) -> None:
    descriptor = os.open(path, os.O_WRONLY | os.O_CREAT | os.O_EXCL | os.O_NOFOLLOW, 0o600)
    try:
        os.write(descriptor, octets)
        if owner != (-1, -1) and owner != (os.geteuid(), os.getegid()):
            os.fchown(descriptor, *owner)
        os.fchmod(descriptor, mode)
        os.fsync(descriptor)
    finally:
        os.close(descriptor)
