# SPDX-License-Identifier: GPL-3.0-or-later
"""Checks of the SRS keys, and of the clock that their addresses are dated by."""

from __future__ import annotations

import ctypes
import shlex
import time
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Optional

from gatepost.admin.config_commands import SAFE_OCTETS
from gatepost.admin.configuration import fingerprint
from gatepost.admin.doctor.model import (
    Check,
    Circumstances,
    Finding,
    as_root,
    command,
    error,
    info,
    ok,
    unknown,
    warning,
)
from gatepost.service import version
from gatepost.service.exports import counted
from gatepost.service.loader import LOADED_NAME
from gatepost.service.reversal import day
from gatepost.service.secret import iso_day, read_secret, rotated
from gatepost.service.tables import ConfigError
from gatepost.srs import Key

OLD_DAYS = 365
"""A key this old is worth a mention, of twice the age a warning."""
_AHEAD_DAYS = 7
"""A rotation has the new key sign from tomorrow: one that waits for longer is a slip of the pen."""
_SKEW_S = 3600.0
_STA_UNSYNC = 0x40


def keys(circumstances: Circumstances) -> Iterator[Finding]:
    """Whether a key signs that is neither old nor to come, and all others are needed."""
    file = circumstances.config.srs.secret_file
    if circumstances.closed_secret:
        yield unknown(f"{file} may not be read by this user", "", as_root(circumstances))
        return
    if circumstances.missing_secret:
        remedy = command(circumstances, "srs init")
        yield info(f"{file} is not there yet", "The first start makes an SRS secret.", remedy)
        return
    try:
        found = read_secret(file)
        changed = file.stat().st_mtime
    except (ConfigError, OSError) as failure:
        yield unknown(f"{file} cannot be read: {failure}", "", as_root(circumstances))
        return
    rotate = command(circumstances, "srs rotate")
    today = day(int(circumstances.now))
    signing = next((key for key in found if key.signs_from <= today), found[-1])
    yield from _age(signing, today, changed, file, rotate)
    yield from _waiting(found, signing, today, file)
    for key in found:
        if len(key.secret) < SAFE_OCTETS:
            yield warning(
                f"{file}: {fingerprint(key)} has {counted(len(key.secret), 'octet')}, safe are {SAFE_OCTETS} and more",
                "Who guesses it can have any mail delivered from here in the name of a bounce.",
                rotate,
            )
    spare = _spare(found, circumstances, changed)
    if spare:
        yield info(
            f"{file}: all addresses of {', '.join(map(fingerprint, spare))} have expired",
            "Nothing needs these keys any more, and whoever has one can still forge addresses with it.",
            f"{rotate}   # removes them; or delete their lines",
        )
    others = [fingerprint(key) for key in found if key is not signing]
    verifying = f", {', '.join(others)} verify" if others else ""
    yield ok(f"SRS key {fingerprint(signing)} signs{verifying}")


def _age(signing: Key, today: int, changed: float, file: Path, rotate: str) -> Iterator[Finding]:
    """A key without a date has signed since it was put into the file at the latest known."""
    since = signing.signs_from or day(int(changed))
    age = today - since
    if signing.signs_from <= today and age > OLD_DAYS:
        yield (warning if age > 2 * OLD_DAYS else info)(
            f"{file}: {fingerprint(signing)} has signed for {counted(age, 'day')}, since {iso_day(since)}",
            "The longer a key is in use, the more backups and hosts have it; who has it can forge SRS addresses.",
            rotate,
        )


def _waiting(found: Sequence[Key], signing: Key, today: int, file: Path) -> Iterator[Finding]:
    if signing.signs_from > today:
        yield warning(
            f"{file}: no key may sign before {iso_day(min(key.signs_from for key in found))}; {fingerprint(signing)} "
            "does so all the same",
            "A clock that is wrong, or a wrong date in the file: hosts may not agree on which key signs.",
            f"date -u; grep '^#' {shlex.quote(str(file))}",
        )
    for key in found:
        if key is not signing and key.signs_from > today + _AHEAD_DAYS:
            yield info(
                f"{file}: {fingerprint(key)} signs from {iso_day(key.signs_from)} on, in "
                f"{counted(key.signs_from - today, 'day')}",
                "A rotation lets a new key wait for a day or two, so that all hosts get it.",
                f"grep '^#' {shlex.quote(str(file))}",
            )


def _spare(found: Sequence[Key], circumstances: Circumstances, changed: float) -> list[Key]:
    """Return the keys that the next rotation would remove."""
    first, *others = found
    today, validity = day(int(circumstances.now)), circumstances.config.srs.validity_days
    kept = rotated(others, first.secret, first.signs_from, today, validity, day(int(changed)))
    return [key for key in others if key not in kept]


def clock(circumstances: Circumstances) -> Iterator[Finding]:
    """Whether the clock can be right."""
    config = circumstances.config
    dated = [Path(version.__file__), config.path, config.srs.secret_file, config.ledger_folder / LOADED_NAME]
    yield judged_clock(circumstances.now, _times(dated), synchronised())


def judged_clock(now: float, dated: Sequence[tuple[Path, float]], synchronised: Optional[bool]) -> Finding:
    """Return what is to be said of a clock that shows *now*; *dated*: files and when they were written.

    synchronised: whether the kernel is told the time by somebody, None where it does not say.
    """
    ahead = max(dated, key=lambda item: item[1], default=None)
    if ahead and ahead[1] > now + _SKEW_S:
        return error(
            f"the clock shows {_moment(now)}, and {ahead[0]} was written on {_moment(ahead[1])}",
            "SRS addresses are dated: those made by the right clock are refused as of the future, bounces are lost.",
            "timedatectl set-ntp true; timedatectl",
        )
    if synchronised is False:
        return info(
            f"nothing keeps the clock right; it shows {_moment(now)}",
            "SRS addresses are dated by day, so that some minutes do not matter; the days of logs and reports do.",
            "timedatectl set-ntp true",
        )
    return ok(f"the clock shows {_moment(now)}{', and is kept right' if synchronised else ''}")


def synchronised() -> Optional[bool]:
    """Tell whether the kernel is told the time (adjtimex(2)), as an NTP client does; None where it does not say."""
    try:
        state = _Timex()
        if ctypes.CDLL(None).adjtimex(ctypes.byref(state)) < 0:
            return None
    except AttributeError:
        return None
    return not state.status & _STA_UNSYNC


class _Timex(ctypes.Structure):
    """struct timex as far as its status, and room for the rest."""

    _fields_ = (
        ("modes", ctypes.c_uint),
        ("offset", ctypes.c_long),
        ("freq", ctypes.c_long),
        ("maxerror", ctypes.c_long),
        ("esterror", ctypes.c_long),
        ("status", ctypes.c_int),
        ("rest", ctypes.c_long * 40),
    )


def _times(paths: Sequence[Path]) -> list[tuple[Path, float]]:
    found = []
    for path in paths:
        try:
            found.append((path, path.stat().st_mtime))
        except OSError:  # not there yet, or closed to this user
            continue
    return found


def _moment(at: float) -> str:
    return time.strftime("%Y-%m-%d %H:%M UTC", time.gmtime(at))


CHECKS = (
    Check("keys", "Host", keys),
    Check("clock", "Host", clock),
)
