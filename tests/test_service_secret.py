# SPDX-License-Identifier: GPL-3.0-or-later
"""The file of SRS secrets: what is read from it, which keys a rotation leaves, and how it is written."""

from __future__ import annotations

import os
from pathlib import Path

import pytest

from gatepost.service.secret import ensure_secret, iso_day, read_keys, read_secret, rotated, target, write_secret
from gatepost.service.tables import ConfigError
from gatepost.srs import Key

TODAY = 20_000  # 2024-10-04
VALIDITY = 21


@pytest.fixture
def file(tmp_path: Path) -> Path:
    return tmp_path / "srs.secret"


def written(file: Path, text: str) -> Path:
    file.write_text(text)
    file.chmod(0o600)
    return file


def problem(file: Path) -> str:
    with pytest.raises(ConfigError) as caught:
        read_secret(file)
    (text,) = caught.value.problems
    return text


# Reading


def test_day_is_written_as_iso_8601() -> None:
    assert iso_day(TODAY) == "2024-10-04"


def test_comment_in_front_of_a_key_says_from_which_day_it_signs(file: Path) -> None:
    text = "# made by hand\n# signs from 2024-10-05\nnew\n\n  old  \n#signs from 1970-01-02\n# and another\nolder\n"
    assert read_secret(written(file, text)) == [Key(b"new", TODAY + 1), Key(b"old"), Key(b"older", 1)]


@pytest.mark.parametrize(
    "comment", ["# Signs from 2024-10-05, by ann", "#SIGNS FROM  2024-10-05.", "# signs from 2024-10-05"]
)
def test_day_is_read_whatever_the_case_and_what_follows_it(file: Path, comment: str) -> None:
    assert read_secret(written(file, f"{comment}\nnew\nold\n")) == [Key(b"new", TODAY + 1), Key(b"old")]


@pytest.mark.parametrize("rest", ["the vault", "tomorrow", "", "\udcff", "now on: 2024-10-05"])
def test_comment_that_names_no_day_is_a_comment(file: Path, rest: str) -> None:
    file.write_bytes(b"# signs from " + os.fsencode(rest) + b"\nnew\n")
    file.chmod(0o600)
    assert read_secret(file) == [Key(b"new")]


@pytest.mark.parametrize(
    "day",
    [
        "2024-10-32",
        "2026-13-01",
        "05.10.2024",
        "2024-1-5",
        "20241005",
        "2024-W40-6",
        "24-10-05",
        "2024-10-05T00:00",
        "1",
    ],
)
def test_day_that_is_none_is_named_with_its_line(file: Path, day: str) -> None:
    file.write_bytes(b"old\n# signs from " + os.fsencode(day) + b"\nnew\n")
    file.chmod(0o600)
    assert problem(file) == f'{file}: line 2: "# signs from" takes a day such as 2026-11-23'


def test_keys_of_a_file_sign_and_verify(file: Path) -> None:
    keys = read_keys(written(file, f"# signs from {iso_day(TODAY + 1)}\nnew\nold\n"))
    assert keys.sign(b"x", TODAY) != keys.sign(b"x", TODAY + 1)
    assert {keys.sign(b"x", TODAY), keys.sign(b"x", TODAY + 1)} == set(keys.digests(b"x"))


@pytest.mark.parametrize("mode", [0o644, 0o602, 0o620])
def test_secret_that_is_open_to_others_is_refused(file: Path, mode: int) -> None:
    written(file, "key\n").chmod(mode)
    assert problem(file) == f"{file}: the SRS secret is open to others (mode {mode:04o}); chmod 0600 {file}"


def test_secret_that_a_group_may_read_is_taken(file: Path) -> None:
    written(file, "key\n").chmod(0o640)
    assert read_secret(file) == [Key(b"key")]


def test_file_without_a_key_is_refused(file: Path) -> None:
    assert (
        problem(written(file, "# rotated\n\n")) == f"{file}: holds no SRS secret; one line a key, the first one signs"
    )


def test_missing_secret_is_made_once_for_its_owner_alone(tmp_path: Path) -> None:
    file = tmp_path / "state" / "srs.secret"
    assert ensure_secret(file)
    made = file.read_bytes()
    assert file.stat().st_mode & 0o777 == 0o600
    assert not ensure_secret(file)
    assert file.read_bytes() == made
    assert [item.name for item in file.parent.iterdir()] == ["srs.secret"]


# Rotation


def rotate(*keys: Key, today: int = TODAY, changed_on: int = TODAY - 1000) -> list[Key]:
    return rotated(keys, b"new", today + 1, today, VALIDITY, changed_on)


def test_new_key_stands_in_front_and_signs_from_its_day() -> None:
    assert rotate(Key(b"old")) == [Key(b"new", TODAY + 1), Key(b"old")]


def test_key_is_dropped_a_day_after_its_last_address_has_expired() -> None:
    # The second one signed up to the day before TODAY; an address of that day is good up to TODAY + 20.
    first, second = Key(b"first", TODAY), Key(b"second", TODAY - 100)
    assert second in rotate(first, second, today=TODAY + VALIDITY)
    assert second not in rotate(first, second, today=TODAY + VALIDITY + 1)


def test_key_behind_one_without_a_day_is_kept_for_nobody_knows_when_that_came() -> None:
    keys = (Key(b"undated"), Key(b"older"), Key(b"oldest"))
    assert rotate(*keys) == [Key(b"new", TODAY + 1), *keys]


def test_keys_without_a_day_go_when_one_with_a_day_in_front_is_old_enough() -> None:
    keys = (Key(b"dated", TODAY - 100), Key(b"undated"), Key(b"older"))
    assert rotate(*keys) == [Key(b"new", TODAY + 1), Key(b"dated", TODAY - 100)]


def test_key_that_signed_until_today_is_kept() -> None:
    assert rotate(Key(b"old", TODAY - 1000)) == [Key(b"new", TODAY + 1), Key(b"old", TODAY - 1000)]


def test_keys_without_a_day_stay_until_what_they_signed_before_the_file_was_changed_has_expired() -> None:
    dated, undated = Key(b"dated", TODAY - 100), (Key(b"undated"), Key(b"older"))
    kept = rotate(dated, *undated, changed_on=TODAY - VALIDITY)
    assert kept == [Key(b"new", TODAY + 1), dated, *undated]
    assert rotate(dated, *undated, changed_on=TODAY - VALIDITY - 1) == [Key(b"new", TODAY + 1), dated]


def test_key_with_a_day_goes_by_it_whenever_the_file_was_changed() -> None:
    first, second = Key(b"first", TODAY - 100), Key(b"second", TODAY - 200)
    assert rotate(first, second, changed_on=TODAY) == [Key(b"new", TODAY + 1), first]


def test_key_that_waits_stays_behind_the_new_one_and_what_signs_today_too() -> None:
    for day in (TODAY + 1, TODAY + 300):
        keys = (Key(b"waits", day), Key(b"old", TODAY - 100))
        assert rotate(*keys) == [Key(b"new", TODAY + 1), *keys]


def test_no_address_that_is_still_good_loses_its_key_in_a_hundred_rotations() -> None:
    keys = [Key(b"0")]
    signed: dict[int, bytes] = {}
    for day in range(TODAY, TODAY + 500):
        signed[day] = next(key.secret for key in keys if key.signs_from <= day)
        assert all(signed[made] in {key.secret for key in keys} for made in signed if day - made <= VALIDITY)
        if day % 5 == 0:
            keys = rotated(keys, str(day).encode(), day + 1, day, VALIDITY, changed_on=TODAY)
    assert len(keys) == 6


# Writing


def test_keys_are_read_as_they_were_written(file: Path) -> None:
    keys = [Key(b"new", TODAY + 1), Key(b"old"), Key(b"older", 1)]
    write_secret(written(file, "old\n"), keys)
    assert read_secret(file) == keys


def test_owner_and_mode_stay_and_nothing_is_left_beside_it(file: Path) -> None:
    written(file, "old\n").chmod(0o640)
    if os.geteuid() == 0:
        os.chown(file, 12345, 23456)
    before = file.stat()
    write_secret(file, [Key(b"new")])
    after = file.stat()
    assert (after.st_mode, after.st_uid, after.st_gid) == (before.st_mode, before.st_uid, before.st_gid)
    assert after.st_ino != before.st_ino
    assert [item.name for item in file.parent.iterdir()] == [file.name]


def test_links_in_a_circle_are_a_file_that_cannot_be_read(tmp_path: Path) -> None:
    (tmp_path / "srs.secret").symlink_to("srs.secret")
    with pytest.raises(ConfigError, match="cannot be read: Too many levels of symbolic links"):
        read_secret(target(tmp_path / "srs.secret"), follow=False)


def test_file_behind_a_link_is_replaced_and_the_link_stays(file: Path, tmp_path: Path) -> None:
    shared = tmp_path / "shared"
    shared.mkdir()
    written(shared / "secret", "old\n")
    file.symlink_to("shared/secret")
    write_secret(target(file), [Key(b"new")])
    assert os.readlink(file) == "shared/secret"
    assert (shared / "secret").read_text() == "new\n"
    assert [item.name for item in shared.iterdir()] == ["secret"]
    assert {item.name for item in tmp_path.iterdir()} == {"shared", file.name}


def test_whoever_has_the_file_open_reads_the_old_keys_whole(file: Path) -> None:
    with written(file, "old\n").open() as reader:
        write_secret(file, [Key(b"new")])
        assert reader.read() == "old\n"


def test_old_file_stays_where_the_new_one_cannot_be_written(file: Path) -> None:
    written(file, "old\n")
    draft = file.with_name(f"{file.name}.{os.getpid()}")
    draft.mkdir()
    with pytest.raises((FileExistsError, IsADirectoryError, PermissionError)):
        write_secret(file, [Key(b"new")])
    assert file.read_text() == "old\n"


def test_missing_file_is_not_made(file: Path) -> None:
    with pytest.raises(FileNotFoundError):
        write_secret(file, [Key(b"new")])
    assert list(file.parent.iterdir()) == []


def test_pipe_in_the_place_of_the_secret_is_an_error(tmp_path: Path) -> None:
    os.mkfifo(tmp_path / "secret", 0o600)
    with pytest.raises(ConfigError) as error:
        read_secret(tmp_path / "secret")
    assert error.value.problems == (f"{tmp_path}/secret: the SRS secret cannot be read: is no regular file",)
