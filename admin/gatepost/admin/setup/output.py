# SPDX-License-Identifier: GPL-3.0-or-later
"""Print what setup would change and why, for a person or as JSON."""

from __future__ import annotations

import json
import shutil
import textwrap
from collections.abc import Iterator, Sequence
from itertools import groupby
from typing import Optional

import click

from gatepost.admin.configuration import printable
from gatepost.admin.postfix.config import PostfixConfig
from gatepost.admin.setup.apply import Done
from gatepost.admin.setup.plan import Change, NewService, Plan, hop_line
from gatepost.admin.setup.refusals import Refusal

_WIDTH = 100


def lines(config: PostfixConfig, plan: Plan) -> Iterator[str]:
    """Yield the plan, file by file: what goes, what comes, and why."""
    directory = config.config_directory
    main_cf = [change for change in plan.changes if not change.service]
    if main_cf:
        yield from ("", _heading(f"{directory}/main.cf"))
        yield from _changes(main_cf)
    master_cf = [change for change in plan.changes if change.service]
    if master_cf or plan.services:
        yield from ("", _heading(f"{directory}/master.cf"))
    for service, changes in groupby(master_cf, key=lambda change: change.service):
        yield f"  {' '.join(service.rsplit('/', 1))}"
        yield from _changes(list(changes))
    for new in plan.services:
        yield from _service(new)
    for item in plan.files:
        yield from ("", _heading(str(item.path)))
        yield from (_added(line) for line in item.text.splitlines())
        yield from _reason(item.why)


def _heading(text: str) -> str:
    return click.style(text, bold=True)


def _changes(changes: Sequence[Change]) -> Iterator[str]:
    for why, same in groupby(changes, key=lambda change: change.why):
        for change in same:
            if change.old is not None:
                yield click.style(f"  - {_setting(change, change.old)}", fg="red")
            yield _added(_setting(change, change.new))
        yield from _reason(why)


def _service(new: NewService) -> Iterator[str]:
    yield _added(hop_line(new).partition(" -o ")[0])
    for why, overrides in groupby(new.service.overrides, key=lambda override: override.why):
        yield from (_added(f"  -o {override.name}={override.value}") for override in overrides)
        yield from _reason(why)


def _setting(change: Change, value: str) -> str:
    """Return a setting as it is written in main.cf, or in master.cf, where blanks need braces."""
    if not change.service:
        return printable(f"{change.parameter} = {value}".rstrip())
    setting = f"{{ {change.parameter} = {value} }}" if " " in value else f"{change.parameter}={value}"
    return printable(f"  -o {setting}")


def _added(text: str) -> str:
    return click.style(f"  + {text}", fg="green")


def _reason(text: str) -> Iterator[str]:
    return paragraph(text, "        ")


def paragraph(text: str, indent: str, first: str = "") -> Iterator[str]:
    """Yield *text* wrapped; its line ends, which commands and settings stand behind, stay."""
    width = min(_WIDTH, shutil.get_terminal_size((_WIDTH, 0)).columns)
    for number, line in enumerate(map(printable, text.split("\n"))):
        start = first if first and not number else indent
        if number:
            yield f"{indent}{line}"
        else:
            yield from textwrap.wrap(
                line,
                width,
                initial_indent=start,
                subsequent_indent=indent,
                break_on_hyphens=False,
                break_long_words=False,
            )


def refusal(item: Refusal) -> Iterator[str]:
    """Yield a refusal: what is there, why that will not do, what to do first."""
    yield from paragraph(f"{item.what}.", "  ", "* ")
    yield from paragraph(item.why, "  ")
    yield from paragraph(item.remedy, "  ")


def as_json(
    config: PostfixConfig, plan: Plan, advice: Sequence[str], refusals: Sequence[Refusal], done: Optional[Done]
) -> str:
    """Return all of it as JSON. done: None where nothing was changed."""
    document = {
        "postfix": ".".join(map(str, config.version)),
        "config_directory": str(config.config_directory),
        "topology": plan.topology.value,
        "changes": [vars(change) for change in plan.changes],
        "services": [hop_line(new) for new in plan.services],
        "files": [{"path": str(item.path), "text": item.text, "why": item.why} for item in plan.files],
        "advice": list(advice),
        "refusals": [vars(item) for item in refusals],
        "applied": done is not None,
        "reloaded": done.reloaded == "" if done and done.reloaded is not None else None,
    }
    return json.dumps(document, indent=2)
