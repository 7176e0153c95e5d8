# SPDX-License-Identifier: GPL-3.0-or-later
"""The manual pages say what the code does: commands, options, replies, macros, attributes. Keys: test_admin_config."""

from __future__ import annotations

import re
import shutil
import subprocess
from collections.abc import Iterator
from pathlib import Path

import click
import pytest
from click.testing import CliRunner

from gatepost.admin.command import main
from gatepost.milter.daemon import MACROS
from gatepost.service import replies
from gatepost.service.replies import Reply

ROOT = Path(__file__).parent.parent
PAGES = sorted((ROOT / "packaging/man").glob("*.[1-9]"))


def page(name: str) -> str:
    """The text of a manual page without its macros' dots and its line breaks."""
    text = (ROOT / "packaging/man" / name).read_text()
    return " ".join(re.sub(r"^\.(It|Bq|Pq|Ql|Xr)? ?", "", text, flags=re.MULTILINE).split())


def leaves(command: click.Command, path: tuple[str, ...] = ()) -> Iterator[tuple[tuple[str, ...], click.Command]]:
    if not isinstance(command, click.Group):
        yield path, command
        return
    context = click.Context(command)
    for name in command.list_commands(context):
        subcommand = command.get_command(context, name)
        if subcommand:
            yield from leaves(subcommand, (*path, name))


LEAVES = [pytest.param(path, command, id=" ".join(path)) for path, command in leaves(main)]


@pytest.mark.parametrize(("path", "command"), LEAVES)
def test_every_option_is_in_the_manual(path: tuple[str, ...], command: click.Command) -> None:
    manual = (ROOT / "packaging/man/gatepost.8").read_text()
    options = [name for item in command.params for name in item.opts if name.startswith("--")]
    assert [name for name in options if f"Fl Fl {name[2:]}" not in manual] == []


@pytest.mark.parametrize(("path", "command"), LEAVES)
def test_the_help_of_every_subcommand_has_an_example(path: tuple[str, ...], command: click.Command) -> None:
    output = CliRunner().invoke(main, [*path, "--help"], prog_name="gatepost").output
    examples = output.partition("\nExample")[2] or output.partition("\n  Example")[2]
    assert f"gatepost {path[0]}" in examples or f" {path[0]}" in examples


@pytest.mark.parametrize("reply", [value for value in vars(replies).values() if isinstance(value, Reply)], ids=str)
def test_every_reply_is_in_a_daemons_manual(reply: Reply) -> None:
    pages = page("gatepost-milter.8") + page("gatepost-policyd.8")
    assert str(reply) in pages


def test_every_macro_that_is_asked_for_is_in_the_milters_manual() -> None:
    names = {name for names in MACROS.values() for name in names.split()}
    assert names - set(page("gatepost-milter.8").split()) == set()


def test_every_attribute_that_is_read_is_in_the_policy_daemons_manual() -> None:
    sources = "".join(path.read_text() for path in (ROOT / "policyd/gatepost/policyd").glob("*.py"))
    names = set(re.findall(r'(?:\.get\(|request, )b"(\w+)"', sources))
    assert {"protocol_state", "recipient_count", "ccert_fingerprint"} <= names
    assert names - set(re.findall(r"\w+", page("gatepost-policyd.8"))) == set()


@pytest.mark.skipif(shutil.which("groff") is None, reason="no groff")
@pytest.mark.parametrize("path", PAGES, ids=lambda path: path.name)
def test_a_manual_page_is_formatted_without_a_warning(path: Path) -> None:
    done = subprocess.run(
        ["groff", "-mdoc", "-Tutf8", "-ww", str(path)], capture_output=True, text=True, check=True, timeout=30
    )
    assert done.stderr == ""
    title = re.sub(r"\x1b\[\d+m", "", done.stdout.splitlines()[0])  # groff 1.23 underlines it
    assert title.startswith(f"{path.stem.upper()}({path.suffix[1:]})")
