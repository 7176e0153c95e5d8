# SPDX-License-Identifier: GPL-3.0-or-later
"""Lays out what `gatepost doctor` found, for a person at 80 columns or as JSON."""

from __future__ import annotations

import json
from collections.abc import Iterator, Mapping, Sequence
from textwrap import wrap

import click

from gatepost.admin.configuration import printable
from gatepost.admin.doctor.model import RANK, Edit, Finding, Severity
from gatepost.service.exports import counted

WIDTH = 80
_COLOURS = {Severity.ERROR: "red", Severity.WARNING: "yellow", Severity.UNKNOWN: "yellow", Severity.INFO: "cyan"}
_SMALL = (Severity.OK, Severity.INFO)


def as_text(found: Sequence[Finding], groups: Mapping[str, str], *, quiet: bool) -> str:
    """Return the findings, the worst first, what is well as a line each, then all of them counted."""
    worst_first = sorted(found, key=lambda finding: -RANK[finding.severity])  # stable: else in the checks' order
    parts = ["\n".join(_problem(finding)) for finding in worst_first if finding.severity not in _SMALL]
    if not quiet:
        parts += ["\n".join(_problem(finding)) for finding in worst_first if finding.severity is Severity.INFO]
        well = [finding for finding in found if finding.severity is Severity.OK]
        for group in dict.fromkeys(groups.get(finding.check, "") for finding in well):
            lines = (_line(finding) for finding in well if groups.get(finding.check, "") == group)
            parts.append("\n".join([f"{group}: well", *lines]))
    return "\n\n".join([*parts, _summary(found)])


def _problem(finding: Finding) -> Iterator[str]:
    label = click.style(finding.severity.name, bold=True, fg=_COLOURS[finding.severity])
    first, *others = _wrapped(printable(finding.what), "  ")
    yield f"{label} {finding.check}"
    yield from (first, *others)
    if finding.why:
        yield from _wrapped(printable(finding.why), "  Why: ", "       ")
    before = ""
    for remedy in finding.remedy:
        label = "  Edit: " if isinstance(remedy, Edit) else "  Do:  "
        yield (label if label != before else " " * len(label)) + printable(remedy)  # to be pasted: never wrapped
        before = label


def _apart(finding: Finding) -> tuple[list[str], list[str]]:
    """Return the commands that mend it, and what to change by hand."""
    commands = [item for item in finding.remedy if not isinstance(item, Edit)]
    return commands, [item for item in finding.remedy if isinstance(item, Edit)]


def _line(finding: Finding) -> str:
    return "\n".join(_wrapped(printable(finding.what), "  - ", "    "))


def _wrapped(text: str, first: str, others: str = "") -> list[str]:
    return wrap(
        text,
        WIDTH,
        initial_indent=first,
        subsequent_indent=others or first,
        break_long_words=False,
        break_on_hyphens=False,
    )


def _summary(found: Sequence[Finding]) -> str:
    counts = {severity: sum(finding.severity is severity for finding in found) for severity in Severity}
    told = [
        counted(counts[severity], severity.value) for severity in (Severity.ERROR, Severity.WARNING) if counts[severity]
    ]
    if counts[Severity.UNKNOWN]:
        told.append(f"{counts[Severity.UNKNOWN]} that could not be looked at")
    well = f"{counts[Severity.OK]} well"
    if not told:
        return click.style(f"All is well ({counted(counts[Severity.OK], 'finding')}).", bold=True, fg="green")
    worst = Severity.ERROR if counts[Severity.ERROR] else Severity.WARNING
    return click.style(f"{', '.join(told)}, {well}.", bold=True, fg=_COLOURS[worst])


def as_json(found: Sequence[Finding], groups: Mapping[str, str], status: int) -> str:
    """Return all findings in the order of their checks."""
    rows = [
        {
            "check": finding.check,
            "group": groups.get(finding.check, ""),
            "severity": finding.severity.value,
            "what": finding.what,
            "why": finding.why,
            "remedy": _apart(finding)[0],
            "edit": _apart(finding)[1],
        }
        for finding in found
    ]
    worst = max((finding.severity for finding in found), key=RANK.__getitem__, default=Severity.OK)
    return json.dumps({"severity": worst.value, "exit_status": status, "findings": rows}, indent=2)
