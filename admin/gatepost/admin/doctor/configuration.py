# SPDX-License-Identifier: GPL-3.0-or-later
"""Checks of gatepost's own configuration: what `gatepost config check` warns of, and what is switched off."""

from __future__ import annotations

from collections.abc import Iterator

from gatepost.admin.configuration import in_words
from gatepost.admin.doctor.model import Check, Circumstances, Finding, command, edit, info, ok, warning
from gatepost.relay import enumeration
from gatepost.service import ambiguity
from gatepost.service.snapshot import enforces

USABLE = "configuration"
"""The name of the check that fails where the configuration cannot be loaded."""
_SOON_S = 14 * 86400


def usable(circumstances: Circumstances) -> Iterator[Finding]:
    """Whether anything in gatepost.toml is suspect though it can be used."""
    config = circumstances.config
    notes = [*config.warnings, *ambiguity.findings(config.organizations, config.settings)]
    for note in notes:
        why = "The configuration can be used; this part of it may not do what is meant."
        yield warning(note, why, command(circumstances, "config check"))
    if not notes:
        yield ok(f"{config.path} can be used")


def organizations(circumstances: Circumstances) -> Iterator[Finding]:
    """Whether there is anything to do for gatepost."""
    config = circumstances.config
    if config.organizations:
        yield ok(f"organizations: {enumeration(list(config.organizations))}")
    else:
        yield warning(
            "no organization is declared",
            "gatepost refuses nothing and rewrites nothing: mail passes as without it.",
            edit(circumstances, "add [[organization]] with its accepted domains and connectors"),
        )


def mode(circumstances: Circumstances) -> Iterator[Finding]:
    """Whose mail is only watched."""
    config = circumstances.config
    watched = [name for name, item in config.settings.items() if not enforces(item, circumstances.now)]
    if watched:
        yield info(
            f"mode monitor for {enumeration(watched)}",
            "What would be refused or rewritten is logged and counted, and passes untouched.",
            edit(circumstances, 'mode = "enforce", once gatepost report and the log show what you expect'),
        )
    elif config.settings:
        yield ok("mode enforce for every organization")


def switch(circumstances: Circumstances) -> Iterator[Finding]:
    """Whose mode becomes enforce within the next days."""
    config = circumstances.config
    coming = {
        name: item.enforce_from
        for name, item in config.settings.items()
        if item.enforce_from and 0 < item.enforce_from.timestamp() - circumstances.now < _SOON_S
    }
    if coming:
        yield info(
            f"mode enforce from {in_words(min(coming.values()))} on for {enumeration(list(coming))}",
            "From that moment on what the rules refuse is refused, and what leaves with a foreign sender rewritten.",
            command(circumstances, "report start --type Refused   # who is affected"),
            command(circumstances, "report notify   # tells them"),
        )


def bypass(circumstances: Circumstances) -> Iterator[Finding]:
    """Whether gatepost has been taken out of the way."""
    if circumstances.snapshot.bypassed():
        yield warning(
            f"bypass is on ({circumstances.snapshot.bypass_path})",
            "All mail passes gatepost untouched: nothing is refused, nothing gets an SRS address.",
            command(circumstances, "bypass off"),
        )
    else:
        yield ok("bypass is off")


CHECKS = (
    Check(USABLE, "Configuration", usable),
    Check("organizations", "Configuration", organizations),
    Check("mode", "Configuration", mode),
    Check("enforce-from", "Configuration", switch),
    Check("bypass", "Configuration", bypass),
)
