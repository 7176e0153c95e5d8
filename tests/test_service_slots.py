# SPDX-License-Identifier: GPL-3.0-or-later
"""The table that worker processes share: what is in it is whole or unknown."""

from __future__ import annotations

import os
import subprocess
import sys
from pathlib import Path

import pytest

from gatepost.service.slots import Slots, octets_for

NOW = 1_700_000_000.5
NEIGHBOURS = 8
SLOT_OCTETS = 16 + 2 + 8 + 4 + 4


def test_what_was_put_is_found_with_its_time() -> None:
    slots = Slots(None, 64, 2)
    slots.put("one", b"ab", NOW)
    assert slots.get("one") == (b"ab", NOW)


def test_unknown_key_is_none() -> None:
    slots = Slots(None, 64, 2)
    slots.put("one", b"ab", NOW)
    assert slots.get("two") is None


def test_empty_table_knows_nothing_even_of_the_empty_key() -> None:
    assert Slots(None, 64, 2).get("") is None


def test_later_payload_takes_the_place_of_the_one_before() -> None:
    slots = Slots(None, NEIGHBOURS, 2)
    for number in range(100):
        slots.put("one", b"%02d" % number, NOW + number)
    slots.put("two", b"cd", NOW)
    assert [slots.get("one"), slots.get("two")] == [(b"99", NOW + 99), (b"cd", NOW)]


def test_key_is_not_put_twice_where_an_older_neighbour_could_give_way() -> None:
    slots = Slots(None, NEIGHBOURS, 2)
    for number in range(NEIGHBOURS):
        slots.put(f"key{number}", b"ab", number + 1.0)
    slots.put("key7", b"cd", 99.0)
    assert [slots.get(f"key{number}") is not None for number in range(NEIGHBOURS)] == [True] * NEIGHBOURS


def test_oldest_of_a_full_neighbourhood_gives_way() -> None:
    # With as many slots as neighbours, all keys share one neighbourhood.
    slots = Slots(None, NEIGHBOURS, 2)
    times = [5.0, 6.0, 1.0, 7.0, 8.0, 2.0, 9.0, 3.0]
    for number, at in enumerate(times):
        slots.put(f"key{number}", b"ab", at)
    slots.put("new", b"cd", 10.0)
    assert [number for number in range(len(times)) if slots.get(f"key{number}") is None] == [2]
    assert slots.get("new") == (b"cd", 10.0)


@pytest.mark.parametrize("position", [0, 15, 16, 17, 18, 25, 30, 33])
def test_slot_with_an_octet_changed_is_unknown_and_can_be_put_again(tmp_path: Path, position: int) -> None:
    slots = Slots(tmp_path / "slots", 64, 2)
    slots.put("one", b"ab", NOW)
    octets = (tmp_path / "slots").read_bytes()
    begin = (len(octets) - len(octets.lstrip(b"\0"))) // SLOT_OCTETS * SLOT_OCTETS
    with (tmp_path / "slots").open("r+b") as file:
        file.seek(begin + position)
        file.write(bytes([octets[begin + position] ^ 0x55]))
    assert slots.get("one") is None
    slots.put("one", b"cd", NOW)
    assert slots.get("one") == (b"cd", NOW)


def test_every_slot_can_be_used() -> None:
    slots = Slots(None, 1000, 2)
    for number in range(100_000):
        slots.put(f"key{number}", b"ab", float(number))
    found = sum(slots.get(f"key{number}") is not None for number in range(90_000, 100_000))
    assert found > 950


def test_payload_may_be_all_zeros() -> None:
    slots = Slots(None, 64, 2)
    slots.put("one", b"\0\0", 0.0)
    assert slots.get("one") == (b"\0\0", 0.0)


def test_key_that_is_not_utf8_is_kept_like_any_other() -> None:
    slots = Slots(None, 64, 2)
    slots.put("a\udcff", b"ab", NOW)
    assert slots.get("a\udcff") == (b"ab", NOW)
    assert slots.get("a?") is None


def test_processes_share_a_file_that_outlives_them(tmp_path: Path) -> None:
    here = Slots(tmp_path / "slots", 64, 2)
    here.put("here", b"ab", NOW)
    script = (
        "import sys; from pathlib import Path; from gatepost.service.slots import Slots\n"
        "slots = Slots(Path(sys.argv[1]), 64, 2); print(slots.get('here')); slots.put('there', b'cd', 1.0)"
    )
    environment = {**os.environ, "PYTHONPATH": ":".join(sys.path)}
    command = [sys.executable, "-c", script, str(tmp_path / "slots")]
    done = subprocess.run(command, env=environment, capture_output=True, check=True)
    assert done.stdout.decode() == f"(b'ab', {NOW})\n"
    assert here.get("there") == (b"cd", 1.0)


def test_file_of_another_layout_is_written_over(tmp_path: Path) -> None:
    Slots(tmp_path / "slots", 64, 7).put("one", b"1234567", NOW)
    slots = Slots(tmp_path / "slots", 128, 2)
    assert slots.get("one") is None
    slots.put("one", b"ab", NOW)
    assert slots.get("one") == (b"ab", NOW)


def test_file_is_its_owners_only(tmp_path: Path) -> None:
    Slots(tmp_path / "slots", 64, 2)
    assert (tmp_path / "slots").stat().st_mode & 0o777 == 0o600


def test_symbolic_link_is_refused_and_what_it_names_left_alone(tmp_path: Path) -> None:
    (tmp_path / "elsewhere").touch()
    (tmp_path / "slots").symlink_to(tmp_path / "elsewhere")
    with pytest.raises(OSError, match="symbolic links"):
        Slots(tmp_path / "slots", 64, 2)
    assert (tmp_path / "elsewhere").stat().st_size == 0


def test_digest_has_the_octets_asked_for_and_depends_on_all_of_the_text() -> None:
    assert [len(octets_for("contoso", size)) for size in (8, 16)] == [8, 16]
    assert octets_for("contoso", 8) != octets_for("contosp", 8)
