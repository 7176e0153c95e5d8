# SPDX-License-Identifier: GPL-3.0-or-later
"""`gatepost srs rotate` where no daemon runs: the file of keys before and after, and what is said of it."""

from __future__ import annotations

import time
from pathlib import Path

import pytest
from click.testing import CliRunner, Result

from gatepost.admin.command import main
from gatepost.service.secret import iso_day, read_secret
from gatepost.srs import Key

TODAY = int(time.time()) // 86400
OTHERS = "Other hosts that share these keys need the same file"


@pytest.fixture
def secret(tmp_path: Path) -> Path:
    (tmp_path / "gatepost.toml").write_text(
        f'state_directory = "{tmp_path}"\n[[organization]]\nname = "contoso"\nmode = "enforce"\n'
        '[[organization.accepted_domain]]\ndomain = "contoso.com"\n'
    )
    secret = tmp_path / "srs.secret"
    secret.write_text("the first key\n")
    secret.chmod(0o640)
    return secret


def gatepost(secret: Path, *arguments: str) -> Result:
    return CliRunner().invoke(main, ["-c", str(secret.parent / "gatepost.toml"), "srs", *arguments])


def test_the_new_key_signs_from_tomorrow_and_the_old_one_stays(secret: Path) -> None:
    result = gatepost(secret, "rotate")
    tomorrow = iso_day(TODAY + 1)
    assert result.output == (
        f"{secret}: the new key signs from {tomorrow}, 00:00 UTC; until then it verifies only.\n"
        "Kept for bounces of mail rewritten before: 1 key.\n"
        f"{OTHERS} before that; their daemons notice it by themselves.\n"
    )
    assert result.exit_code == 0
    lines = secret.read_text().splitlines()
    assert lines[0].startswith("# One secret a line;")
    assert lines[1] == f"# signs from {tomorrow}"
    assert (len(lines[2]), lines[3:]) == (44, ["the first key"])


def test_mode_and_owner_of_the_file_are_kept_and_nothing_is_left_beside_it(secret: Path) -> None:
    before = secret.stat()
    gatepost(secret, "rotate")
    after = secret.stat()
    assert (after.st_mode, after.st_uid, after.st_gid) == (before.st_mode, before.st_uid, before.st_gid)
    assert sorted(path.name for path in secret.parent.iterdir()) == ["gatepost.toml", "srs.secret"]


def test_a_key_that_waits_is_not_followed_by_another(secret: Path) -> None:
    gatepost(secret, "rotate")
    before = secret.read_bytes()
    result = gatepost(secret, "rotate")
    assert f"a key that signs from {iso_day(TODAY + 1)}, 00:00 UTC, waits there already." in result.output
    assert secret.read_bytes() == before


def test_at_once_the_new_key_signs_today(secret: Path) -> None:
    result = gatepost(secret, "rotate", "--now")
    assert f"{secret}: the new key signs from this moment.\n" in result.output
    new, old = read_secret(secret)
    assert (new.signs_from, old) == (TODAY, Key(b"the first key"))


def test_at_once_a_key_that_waits_signs(secret: Path) -> None:
    gatepost(secret, "rotate")
    waiting = read_secret(secret)[0]
    gatepost(secret, "rotate", "--now")
    assert read_secret(secret) == [waiting._replace(signs_from=TODAY), Key(b"the first key")]


@pytest.mark.parametrize(("age_days", "kept"), [(21, [b"b", b"a"]), (22, [b"b"])])
def test_a_key_goes_when_its_last_address_has_expired_for_a_day(secret: Path, age_days: int, kept: list[bytes]) -> None:
    secret.write_text(f"# signs from {iso_day(TODAY - age_days)}\nb\na\n")
    result = gatepost(secret, "rotate")
    assert [key.secret for key in read_secret(secret)][1:] == kept
    assert ("Removed, for all addresses of theirs have expired: 1 key." in result.output) is (kept == [b"b"])


def test_what_was_made_before_comes_back_after(secret: Path) -> None:
    made = gatepost(secret, "forward", "bob@fabrikam.com").output.strip()
    gatepost(secret, "rotate", "--now")
    assert gatepost(secret, "forward", "bob@fabrikam.com").output.strip() != made
    assert gatepost(secret, "reverse", made).output == "bob@fabrikam.com\n"


def test_a_secret_that_is_not_there_is_not_made(secret: Path) -> None:
    secret.unlink()
    result = gatepost(secret, "rotate")
    assert result.output == f"{secret}: the SRS secret cannot be read: No such file or directory\n"
    assert result.exit_code == 78
    assert not secret.exists()
