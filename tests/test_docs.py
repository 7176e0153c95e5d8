# SPDX-License-Identifier: GPL-3.0-or-later
"""The documents: their links lead somewhere, and the commands in them can be given. Answers: test_docs_questions."""

from __future__ import annotations

import re
import shlex
from collections.abc import Iterator
from pathlib import Path

import click
import pytest

from gatepost.admin.command import main

ROOT = Path(__file__).parent.parent
PAGES = sorted([*ROOT.glob("*.md"), *ROOT.glob("docs/*.md"), *ROOT.glob("examples/**/*.md")])


def anchors(page: Path) -> set[str]:
    """The anchors of a page's headings, as code hosts make them."""
    titles = re.findall(r"^#+ (.*)$", page.read_text(), flags=re.MULTILINE)
    return {re.sub(r"[^\w -]", "", title.lower()).replace(" ", "-") for title in titles}


@pytest.mark.parametrize("page", PAGES, ids=lambda page: str(page.relative_to(ROOT)))
def test_every_link_leads_somewhere(page: Path) -> None:
    dead = []
    for link in re.findall(r"\]\(([^)\s]+)\)", page.read_text()):
        name, _, anchor = link.partition("#")
        target = (page.parent / name).resolve() if name else page
        if name.startswith(("http:", "https:")):
            continue
        if not target.exists() or (anchor and anchor not in anchors(target)):
            dead.append(link)
    assert dead == []


def commands(text: str) -> Iterator[str]:
    """Yield each `gatepost …` of a page: in code spans and, joined where a backslash ends a line, in code blocks."""
    joined = re.sub(r"\\\n\s*", "", text)
    spans = re.findall(r"`(gatepost [^`]+)`", joined)
    prompt = r"(?:    +|\$ )(?:\$ |sudo |runuser -u gatepost -- )?"
    blocks = re.findall(rf"^{prompt}(gatepost .*?)(?:$|#|   )", joined, flags=re.MULTILINE)
    for line in [*spans, *blocks]:
        yield from (part for part in line.split(" && ") if part.startswith("gatepost "))


def parsed(line: str) -> None:
    """Have the command line read, and nothing run. Raises click.UsageError."""
    words = shlex.split(re.split(r" [|<>;] ?|;", line)[0])[1:]
    command: click.Command = main
    context = main.make_context("gatepost", words)
    while isinstance(command, click.Group):
        rest = [*context.protected_args, *context.args]
        if not rest:
            return
        name, found, rest = command.resolve_command(context, rest)
        assert found is not None
        command = found
        context = command.make_context(name, list(rest), parent=context)


@pytest.mark.parametrize("page", PAGES, ids=lambda page: str(page.relative_to(ROOT)))
def test_every_command_line_can_be_given(page: Path) -> None:
    wrong = []
    for line in commands(page.read_text()):
        if "…" in line or line.endswith("...") or re.search(r"\b[A-Z]{2,}\b\.\.\.", line):
            continue
        try:
            parsed(line)
        except (click.MissingParameter, click.exceptions.Exit):
            continue  # the command is only named; --help
        except (click.UsageError, ValueError) as error:
            wrong.append(f"{line}: {error}")
    assert wrong == []
