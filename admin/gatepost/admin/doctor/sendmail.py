# SPDX-License-Identifier: GPL-3.0-or-later
"""Checks of how gatepost is wired into Sendmail, in sendmail.cf as the running Sendmail reads it."""

from __future__ import annotations

import re
import stat
from collections.abc import Iterator, Sequence
from pathlib import Path

from gatepost.admin.doctor.model import AbsentError, Check, Circumstances, Finding, command, error, ok, unknown, warning
from gatepost.admin.doctor.postfix_entries import listen_of, same
from gatepost.service.fields import Listen

_SETUP = "setup sendmail --output /etc/mail/gatepost.m4   # then make sendmail.cf anew, and restart Sendmail"
_NEEDED = ("forward", "reverse")
_WITHOUT = {
    "forward": "Aliases and .forward files send mail on with the sender that it came with, and it fails SPF.",
    "reverse": "Bounces that this Sendmail makes itself do not reach the original senders.",
}
_BUILT_IN = ("host", "users")
"""Maps that Sendmail knows without a K line."""
_USED = re.compile(r"\$\(\s*([\w.-]+)")
_WHY_OPTIONS = {
    "-f": "Without -f Sendmail asks in lower case: the case of original senders is lost.",
    "-q": "Without -q Sendmail takes the quotes out of an address before it asks.",
}


def _lines(circumstances: Circumstances) -> list[str]:
    """Return the lines of sendmail.cf, continued ones joined. Raises AbsentError, also where Postfix is the MTA."""
    path = circumstances.sendmail_cf
    if circumstances.has_postfix or not path.exists():
        raise AbsentError
    return re.sub(r"\n(?=[ \t])", "", path.read_text(errors="surrogateescape")).splitlines()


def milter(circumstances: Circumstances) -> Iterator[Finding]:
    """Whether Sendmail hands mail to the milter, and puts it off while that is away."""
    listen = circumstances.config.milter.listen
    lines = _lines(circumstances)
    ours = None
    for line in lines:
        if line.startswith("X"):
            name, _, settings = line[1:].partition(",")
            values = dict(_setting(item) for item in settings.split(",") if "=" in item)
            if _leads_to(values.get("S", ""), [listen]):
                ours = name.strip()
                yield from _flags(circumstances, ours, values.get("F", ""))
    named = [name for line in lines if line.startswith("O InputMailFilters=") for name in _filters(line)]
    if ours is None:
        yield error(
            f"{circumstances.sendmail_cf} has no milter at {listen}",
            "What comes in is neither judged nor rewritten.",
            command(circumstances, _SETUP),
        )
    elif ours not in named:
        yield error(
            f"{circumstances.sendmail_cf}: InputMailFilters is {', '.join(named) or 'unset'}, without {ours}",
            "The milter is declared and not used: what comes in is neither judged nor rewritten.",
            command(circumstances, _SETUP),
        )


def _setting(item: str) -> tuple[str, str]:
    name, _, value = item.partition("=")
    return name.strip(), value.strip()


def _filters(line: str) -> list[str]:
    return [name.strip() for name in re.split(r"[,;]", line.partition("=")[2]) if name.strip()]


def _flags(circumstances: Circumstances, name: str, flags: str) -> Iterator[Finding]:
    if "T" in flags:
        yield ok(f"Sendmail hands mail to the milter {name}, and puts it off while that is away (F=T)")
        return
    text = f"{circumstances.sendmail_cf}: milter {name} has F={flags}" if flags else f"milter {name} has no F=T"
    away = "While gatepost is away, be it for a restart,"
    if "4" in flags:
        yield ok(f"{text}: {away.lower()} Sendmail hangs up (421), and the client comes back")
    elif "R" in flags:
        yield error(text, f"{away} all mail is refused for good.", command(circumstances, _SETUP))
    else:
        yield error(text, f"{away} all mail passes unjudged and unrewritten.", command(circumstances, _SETUP))


def maps(circumstances: Circumstances) -> Iterator[Finding]:
    """Whether gatepost's maps are declared as they must be."""
    lines = _lines(circumstances)
    listens = circumstances.config.policyd.listen
    ours: dict[str, list[str]] = {}
    for line in lines:
        words = line[1:].split()
        if line.startswith("K") and words[1:2] == ["socket"] and _leads_to(words[-1], listens):
            ours[words[0].lower()] = words[2:-1]
    for name in _NEEDED:
        if name not in ours:
            yield warning(
                f"{circumstances.sendmail_cf} has no map {name} at {', '.join(map(str, listens))}",
                _WITHOUT[name],
                command(circumstances, _SETUP),
            )
    for name, options in ours.items():
        if name not in _NEEDED:
            yield error(
                f"{circumstances.sendmail_cf}: gatepost is asked for a map {name}, and has {', '.join(_NEEDED)}",
                "Each look-up fails, and mail is put off.",
                command(circumstances, _SETUP),
            )
        yield from _options(circumstances, name, options)
    asked = _asked(lines)
    for name in _NEEDED:
        if name in ours and name not in asked:
            yield error(
                f"{circumstances.sendmail_cf}: no rule asks the map {name}",
                f"It is declared and not used. {_WITHOUT[name]}",
                command(circumstances, _SETUP),
            )
    if set(_NEEDED) <= set(ours) & asked:
        yield ok("Sendmail asks gatepost's maps forward and reverse")


def _asked(lines: Sequence[str]) -> set[str]:
    """Return the maps that rules ask, in lower case."""
    chained = [name for line in lines if line.startswith("K") for name in line.split()[2:]]  # of sequence and switch
    ruled = [name for line in lines if line.startswith("R") for name in _USED.findall(line)]
    return {name.lower() for name in (*chained, *ruled)}


def _options(circumstances: Circumstances, name: str, options: Sequence[str]) -> Iterator[Finding]:
    for option, why in _WHY_OPTIONS.items():
        if option not in options:
            yield warning(
                f"{circumstances.sendmail_cf}: map {name} lacks {option}", why, command(circumstances, _SETUP)
            )
    if "-t" in options:
        yield error(
            f"{circumstances.sendmail_cf}: map {name} has -t",
            "While policyd is away Sendmail takes that for no answer: mail leaves unrewritten, bounces are lost.",
            command(circumstances, _SETUP),
        )


def declared(circumstances: Circumstances) -> Iterator[Finding]:
    """Whether every map that a rule asks is declared; Sendmail takes an undeclared one for one without answer."""
    lines = _lines(circumstances)
    known = {line[1:].split()[0].lower() for line in lines if line.startswith("K") and line[1:].split()}
    used = {name.lower() for line in lines if line.startswith("R") for name in _USED.findall(line)}
    missing = sorted(used - known - set(_BUILT_IN))
    if missing:
        yield error(
            f"{circumstances.sendmail_cf}: rules ask maps that no K line declares: {', '.join(missing)}",
            "Sendmail says nothing of it and goes on without an answer: a misspelt name leaves mail unrewritten.",
            command(circumstances, _SETUP),
        )
    else:
        yield ok("every map in Sendmail's rules is declared")


def folders(circumstances: Circumstances) -> Iterator[Finding]:
    """Whether Sendmail trusts the folders of the sockets."""
    _lines(circumstances)
    config = circumstances.config
    paths = [Path(listen.path) for listen in (config.milter.listen, *config.policyd.listen) if listen.path]
    for folder in dict.fromkeys(path.parent for path in paths):
        try:
            open_ones = [item for item in (folder, *folder.parents) if _open(item)]
        except OSError as failure:
            yield unknown(f"{folder}: {failure.strerror}")
            continue
        if open_ones:
            yield error(
                f"{open_ones[0]} may be written by its group or others",
                "Sendmail opens no socket below such a folder: mail is put off.",
                f"chmod go-w {open_ones[0]}",
            )
        else:
            yield ok(f"Sendmail trusts {folder}")


def _open(folder: Path) -> bool:
    mode = folder.stat().st_mode
    return bool(mode & (stat.S_IWGRP | stat.S_IWOTH)) and not mode & stat.S_ISVTX


def _leads_to(address: str, listens: Sequence[Listen]) -> bool:
    meant = listen_of(address, Path("/"), chrooted=False)
    return any(same(meant, listen) for listen in listens)


CHECKS = (
    Check("sendmail-milter", "Sendmail", milter),
    Check("sendmail-maps", "Sendmail", maps),
    Check("sendmail-rules", "Sendmail", declared),
    Check("sendmail-socket-folders", "Sendmail", folders),
)
