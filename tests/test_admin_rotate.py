# SPDX-License-Identifier: GPL-3.0-or-later
"""`gatepost srs rotate` where no daemon runs: the file of keys before and after, and what is said of it."""

from __future__ import annotations

import hashlib
import os
import subprocess
import sys
import time
from pathlib import Path

import pytest
from click.testing import CliRunner, Result
from daemonprocess import ROOTS, Gatepost

from gatepost.admin.command import main
from gatepost.service.secret import iso_day, read_secret
from gatepost.srs import Key

TODAY = int(time.time()) // 86400
NEXT = (int(time.time()) + 3600) // 86400 + 1
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
    tomorrow = iso_day(NEXT)
    lines = secret.read_text().splitlines()
    assert lines[0] == f"# signs from {tomorrow}"
    assert (len(lines[1]), lines[2:]) == (44, ["the first key"])
    new = hashlib.sha256(lines[1].encode()).hexdigest()[:8]
    assert result.output == (
        f"{secret}: the new key signs from {tomorrow}, 00:00 UTC; until then it verifies only.\n"
        f"It is the first in the file, with the fingerprint {new} in gatepost config check.\n"
        "Below it, 1 older key to verify bounces of mail rewritten before.\n"
        "No daemon runs here.\n"
        f"{OTHERS} before that; their daemons notice it by themselves.\n"
    )
    assert result.exit_code == 0


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
    assert f"a key that signs from {iso_day(NEXT)}, 00:00 UTC, waits there already." in result.output
    assert secret.read_bytes() == before


def test_at_once_the_new_key_signs_today(secret: Path) -> None:
    result = gatepost(secret, "rotate", "--now")
    assert f"{secret}: the new key signs from this moment.\n" in result.output
    assert "After a leak, delete the line of each older key that leaked, and the comment above it.\n" in result.output
    new, old = read_secret(secret)
    assert (new.signs_from, old) == (TODAY, Key(b"the first key"))


def test_at_once_a_key_that_waits_is_not_taken_for_the_new_one(secret: Path) -> None:
    gatepost(secret, "rotate")
    waiting = read_secret(secret)[0]
    gatepost(secret, "rotate", "--now")
    new, *others = read_secret(secret)
    assert new.secret != waiting.secret
    assert (new.signs_from, others) == (TODAY, [waiting, Key(b"the first key")])


@pytest.mark.parametrize(("age_days", "kept"), [(21, [b"b", b"a"]), (22, [b"b"])])
def test_a_key_goes_when_its_last_address_has_expired_for_a_day(secret: Path, age_days: int, kept: list[bytes]) -> None:
    secret.write_text(f"# signs from {iso_day(TODAY - age_days)}\nb\na\n")
    os.utime(secret, (0, 0))
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
    assert result.output == f"{secret}: there is no SRS secret yet; the first start of a daemon makes it\n"
    assert result.exit_code == 78
    assert not secret.exists()


def test_a_key_without_a_date_stays_while_its_file_is_young(secret: Path) -> None:
    secret.write_text(f"# signs from {iso_day(TODAY - 400)}\nb\na\n")
    gatepost(secret, "rotate")
    assert [key.secret for key in read_secret(secret)][1:] == [b"b", b"a"]


@pytest.mark.parametrize("srs", ['format = "srs0"', 'also_reverse = ["srs0"]'])
def test_that_others_take_comments_for_keys_is_warned_of_where_they_may_share_the_file(secret: Path, srs: str) -> None:
    with (secret.parent / "gatepost.toml").open("a") as file:
        file.write(f"[srs]\n{srs}\n")
    result = gatepost(secret, "rotate")
    assert result.output.startswith("warning: postsrsd, pysrs and Mail::SRS take comment lines for keys, ")
    assert f"grep -v '^#' {secret} prints" in result.output
    assert result.exit_code == 0


def rotate(daemon: Gatepost, *options: str) -> subprocess.CompletedProcess[str]:
    return subprocess.run(
        [sys.executable, "-m", "gatepost.admin", "-c", str(daemon.configuration), "srs", "rotate", *options],
        env={"PATH": os.environ["PATH"], "PYTHONPATH": ":".join(ROOTS)},
        capture_output=True,
        text=True,
        check=False,
        timeout=30,
    )


def test_the_daemons_that_have_loaded_the_key_are_named(tmp_path: Path) -> None:
    with Gatepost(tmp_path, command="policyd") as daemon:
        done = rotate(daemon)
    assert "\nLoaded by policyd.\n" in done.stdout
    assert (done.stderr, done.returncode) == ("", 0)


@pytest.mark.parametrize("options", [[], ["--now"]])
def test_a_daemon_that_does_not_load_the_key_is_named_and_no_bounce_is_promised(
    tmp_path: Path, options: list[str]
) -> None:
    with Gatepost(tmp_path, command="policyd") as daemon:
        daemon.configure(policyd=f"unix:{tmp_path}/elsewhere.sock")  # needs a restart
        done = rotate(daemon, *options)
    secret = daemon.state / "srs.secret"
    assert done.stderr == (
        "policyd: refused the configuration and goes on with the one before; its log says why\n"
        f"{secret}: the new key signs from {iso_day(NEXT)}, 00:00 UTC, but not every daemon has loaded it. One that "
        "has not by then refuses bounces to its addresses: mend what the log names, then reload gatepost.\n"
    )
    assert (done.stdout, done.returncode) == ("", 75)


@pytest.mark.skipif(os.geteuid() != 0, reason="root alone becomes somebody else")
def test_who_may_not_read_the_secret_is_told_who_may(secret: Path) -> None:
    secret.chmod(0o600)
    for folder in secret.parents:
        if folder.stat().st_mode & 0o005 != 0o005:
            folder.chmod(0o755)
    # All is imported before: where the tests lie nobody may read perhaps.
    become_nobody = "import os; from gatepost.admin import command, rotate; os.setuid(65534); command.main()"
    done = subprocess.run(
        [sys.executable, "-c", become_nobody, "-c", str(secret.parent / "gatepost.toml"), "srs", "rotate"],
        env={**os.environ, "PYTHONPATH": ":".join(filter(None, sys.path))},
        capture_output=True,
        text=True,
        check=False,
        timeout=30,
    )
    assert done.stderr == (
        f"{secret}: the SRS secret cannot be read: Permission denied; run this as root or gatepost\n"
    )
    assert done.returncode == 77
