# SPDX-License-Identifier: GPL-3.0-or-later
"""`gatepost srs init`, which packages run when they are installed."""

from __future__ import annotations

import os
import tempfile
from collections.abc import Iterator
from pathlib import Path

import pytest
from click.testing import CliRunner, Result

from gatepost.admin.command import main
from gatepost.service.secret import read_secret


@pytest.fixture
def state() -> Iterator[Path]:
    """A state directory that another user can reach, unlike pytest's own folders."""
    with tempfile.TemporaryDirectory(prefix="gatepost.") as folder:
        os.chmod(folder, 0o755)
        state = Path(folder) / "state"
        state.mkdir()
        (Path(folder) / "gatepost.toml").write_text(f'state_directory = "{state}"\n')
        yield state


def init(state: Path) -> Result:
    return CliRunner().invoke(main, ["-c", str(state.parent / "gatepost.toml"), "srs", "init"])


def test_a_secret_is_made_that_its_owner_and_group_may_read(state: Path) -> None:
    secret = state / "srs.secret"
    result = init(state)
    assert result.output == (
        f"Made a new SRS secret in {secret}. Keep a copy of it: bounces of rewritten mail need it.\n"
    )
    assert result.exit_code == 0
    assert secret.stat().st_mode & 0o777 == 0o640
    assert [len(key.secret) for key in read_secret(secret)] == [44]


def test_a_secret_that_is_there_stays_as_it_is(state: Path) -> None:
    secret = state / "srs.secret"
    secret.write_text("mine\n")
    secret.chmod(0o600)
    before = secret.stat()
    result = init(state)
    assert (result.output, result.exit_code) == (
        f"{secret}: there is an SRS secret already, and it stays as it is.\n",
        0,
    )
    assert (secret.read_text(), secret.stat().st_mode, secret.stat().st_ino) == (
        "mine\n",
        before.st_mode,
        before.st_ino,
    )


@pytest.mark.skipif(os.getuid() != 0, reason="only root can make a file for somebody else")
def test_root_makes_it_for_the_owner_of_the_state_directory(state: Path) -> None:
    os.chown(state, 65534, 65533)
    init(state)
    made = (state / "srs.secret").stat()
    assert (made.st_uid, made.st_gid) == (65534, 65533)


def test_a_wrong_configuration_makes_none_and_ends_with_78(state: Path) -> None:
    configuration = state.parent / "gatepost.toml"
    configuration.write_text(configuration.read_text() + "unknown = 1\n")
    result = init(state)
    assert result.exit_code == 78
    assert "unknown" in result.output
    assert not list(state.iterdir())


def test_a_place_where_it_cannot_be_made_is_named(state: Path) -> None:
    state.rmdir()
    state.touch()
    result = init(state)
    assert result.exit_code == 78
    assert result.output == f"{state}/srs.secret: the SRS secret cannot be made: File exists\n"
