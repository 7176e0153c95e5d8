# SPDX-License-Identifier: GPL-3.0-or-later
"""The hop table: what ingress knew of a message, found by queue ID in any process."""

from __future__ import annotations

import os
import subprocess
import sys
from pathlib import Path

import pytest

from gatepost.service.hops import Hop, Hops, organization_digest

CONTOSO = Hop(organization_digest("contoso"), "ABCDEFGHIJ")
SLOT_BYTES = 56
NOW = 1_700_000_000
NEIGHBOURS = 8


def used(path: Path) -> int:
    """Return where the only slot in use begins."""
    octets = path.read_bytes()
    first = len(octets) - len(octets.lstrip(b"\0"))
    return first // SLOT_BYTES * SLOT_BYTES


def test_what_was_put_is_found(tmp_path: Path) -> None:
    hops = Hops(tmp_path / "hops")
    hops.put("4CgSNs5Q9s", CONTOSO, 1_700_000_000)
    assert hops.get("4CgSNs5Q9s", NOW) == CONTOSO


def test_what_is_older_than_a_week_is_unknown_for_queue_ids_come_again(tmp_path: Path) -> None:
    hops = Hops(tmp_path / "hops")
    hops.put("3A1B2C", CONTOSO, NOW)
    assert hops.get("3A1B2C", NOW + 7 * 86400 - 1) == CONTOSO
    assert hops.get("3A1B2C", NOW + 7 * 86400) is None


def test_table_without_a_file_serves_its_own_process() -> None:
    hops = Hops(None)
    hops.put("4CgSNs5Q9s", CONTOSO, NOW)
    assert hops.get("4CgSNs5Q9s", NOW) == CONTOSO


def test_unknown_queue_id_is_none(tmp_path: Path) -> None:
    hops = Hops(tmp_path / "hops")
    hops.put("4CgSNs5Q9s", CONTOSO, 1_700_000_000)
    assert hops.get("4CgSNs5Q9t", NOW) is None


def test_queue_ids_differ_by_case(tmp_path: Path) -> None:
    hops = Hops(tmp_path / "hops")
    hops.put("4CgSNs5Q9s", CONTOSO, 1_700_000_000)
    assert hops.get("4CGSNS5Q9S", NOW) is None


def test_queue_id_that_comes_again_stands_for_the_newer_message(tmp_path: Path) -> None:
    hops = Hops(tmp_path / "hops")
    hops.put("3A1B2C", CONTOSO, 1_700_000_000)
    hops.put("3A1B2C", Hop(b"", "KLMNOPQRST"), 1_700_000_001)
    assert hops.get("3A1B2C", NOW) == Hop(b"", "KLMNOPQRST")


def test_no_organization_comes_back_as_none(tmp_path: Path) -> None:
    hops = Hops(tmp_path / "hops")
    hops.put("4CgSNs5Q9s", Hop(b"", "ABCDEFGHIJ"), 1_700_000_000)
    assert hops.get("4CgSNs5Q9s", NOW) == Hop(b"", "ABCDEFGHIJ")


def test_organization_whose_digest_ends_with_a_zero_octet_comes_back_whole(tmp_path: Path) -> None:
    digest = organization_digest("org401")
    assert digest[-1] == 0
    hops = Hops(tmp_path / "hops")
    hops.put("4CgSNs5Q9s", Hop(digest, "ABCDEFGHIJ"), 1_700_000_000)
    assert hops.get("4CgSNs5Q9s", NOW) == Hop(digest, "ABCDEFGHIJ")


def test_queue_id_that_is_not_utf8_is_kept_like_any_other(tmp_path: Path) -> None:
    hops = Hops(tmp_path / "hops")
    hops.put("4Cg\udcff", CONTOSO, 1_700_000_000)
    assert hops.get("4Cg\udcff", NOW) == CONTOSO


def test_oldest_of_a_full_neighbourhood_gives_way(tmp_path: Path) -> None:
    # With as many slots as neighbours, all queue IDs share one neighbourhood.
    hops = Hops(tmp_path / "hops", NEIGHBOURS)
    times = [5, 6, 1, 7, 8, 2, 9, 3]
    for number, at in enumerate(times):
        hops.put(f"ID{number}", Hop(b"", f"REFERENCE{number}"), at)
    hops.put("NEW", CONTOSO, 10)
    lost = [number for number in range(len(times)) if hops.get(f"ID{number}", 10) is None]
    assert lost == [times.index(1)]
    assert hops.get("NEW", 10) == CONTOSO


@pytest.mark.parametrize("position", [0, 15, 16, 24, 40, 47, 51, 52, 55])
def test_slot_with_any_octet_changed_is_unknown(tmp_path: Path, position: int) -> None:
    path = tmp_path / "hops"
    hops = Hops(path)
    hops.put("4CgSNs5Q9s", CONTOSO, 1_700_000_000)
    at = used(path) + position
    with path.open("r+b") as file:
        file.seek(at)
        octet = file.read(1)[0]
        file.seek(at)
        file.write(bytes([octet ^ 0x55]))
    assert hops.get("4CgSNs5Q9s", NOW) is None


def test_half_written_slot_is_unknown_and_written_over(tmp_path: Path) -> None:
    path = tmp_path / "hops"
    hops = Hops(path)
    hops.put("4CgSNs5Q9s", CONTOSO, 1_700_000_000)
    at = used(path)
    with path.open("r+b") as file:
        file.seek(at + SLOT_BYTES // 2)
        file.write(bytes(SLOT_BYTES // 2))
    assert hops.get("4CgSNs5Q9s", NOW) is None
    hops.put("4CgSNs5Q9s", CONTOSO, 1_700_000_000)
    assert hops.get("4CgSNs5Q9s", NOW) == CONTOSO


def test_two_processes_share_one_table(tmp_path: Path) -> None:
    here = Hops(tmp_path / "hops")
    script = (
        "import sys; from pathlib import Path; from gatepost.service.hops import *\n"
        "hops = Hops(Path(sys.argv[1])); print(hops.get('HERE', 1700000000).reference)\n"
        "hops.put('THERE', Hop(b'', 'FROMTHERE2'), 1700000000)"
    )
    here.put("HERE", CONTOSO, 1_700_000_000)
    environment = {**os.environ, "PYTHONPATH": ":".join(sys.path)}
    done = subprocess.run(
        [sys.executable, "-c", script, str(tmp_path / "hops")], env=environment, capture_output=True, check=True
    )
    assert done.stdout == b"ABCDEFGHIJ\n"
    assert here.get("THERE", NOW) == Hop(b"", "FROMTHERE2")


def test_table_survives_a_restart(tmp_path: Path) -> None:
    Hops(tmp_path / "hops").put("4CgSNs5Q9s", CONTOSO, 1_700_000_000)
    assert Hops(tmp_path / "hops").get("4CgSNs5Q9s", NOW) == CONTOSO


def test_table_is_readable_by_its_owner_only(tmp_path: Path) -> None:
    Hops(tmp_path / "hops")
    assert (tmp_path / "hops").stat().st_mode & 0o777 == 0o600


def test_symbolic_link_in_place_of_the_table_is_refused(tmp_path: Path) -> None:
    (tmp_path / "elsewhere").touch()
    (tmp_path / "hops").symlink_to(tmp_path / "elsewhere")
    with pytest.raises(OSError, match="symbolic links"):
        Hops(tmp_path / "hops")
    assert (tmp_path / "elsewhere").stat().st_size == 0
