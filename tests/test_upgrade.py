# SPDX-License-Identifier: GPL-3.0-or-later
"""What earlier versions have left, read by this one: configuration, keys, addresses, store, spool, shared tables.

tests/data/upgrade has a folder for each version of the store's schema, as the daemons of that time left it when all of
their processes were killed at once: some records are in the store, the others in the spool (see upgradefolder).
"""

from __future__ import annotations

import json
import re
import sqlite3
import subprocess
import sys
import tarfile
from collections.abc import Iterator
from contextlib import closing
from pathlib import Path

import pytest
from daemonprocess import ROOTS, Gatepost
from ledgerfiles import entry, spooled, spooled_octets

from gatepost.service import reversal, spool
from gatepost.service.config import load
from gatepost.service.hops import Hops, organization_digest
from gatepost.service.loader import Loader
from gatepost.service.reversal import Bounce
from gatepost.service.snapshot import load_snapshot
from gatepost.service.store import Store
from gatepost.srs import Address

DATA = Path(__file__).parent / "data/upgrade"
IN_STORE = [
    ("<A1@adatum.example>", "x@example.com", "app@contoso.com", "pass", "relay"),
    ("<A1@adatum.example>", "y@example.com", "app@contoso.com", "pass", "relay"),
    ("", "x@example.com", "bob@adatum.example", "reject", "refuse"),
    ("<A3@adatum.example>", "ann@contoso.com", "bob@adatum.example", "pass", "inside"),
    ("<A3@adatum.example>", "inside@contoso.com", "bob@adatum.example", "pass", "inside"),
    ("<A3@adatum.example>", "staff@contoso.com", "bob@adatum.example", "rewrite", ""),
    (
        *("<A4@adatum.example>", "staff@partner.example"),
        *("a-very-long-name-for-which-there-is-no-room-beside-the-hash-and-all@adatum.example", "rewrite", ""),
    ),
]
IN_SPOOL = [
    ("<B1@adatum.example>", "later@example.com", "app@contoso.com", "pass", "relay"),
    ("", "later@example.com", "eve@adatum.example", "reject", "refuse"),
    ("<B3@adatum.example>", "inside@contoso.com", "carol@adatum.example", "pass", "inside"),
]
with_a_ledger = pytest.mark.parametrize("left", [2, 3, 4], indirect=True)


@pytest.fixture(params=[1, 2, 3, 4])
def left(request: pytest.FixtureRequest, tmp_path: Path) -> Path:
    """A folder with gatepost.toml and state/ as the version of that schema has left them."""
    with tarfile.open(DATA / f"schema-{request.param}.tar.xz") as archive:
        archive.extraction_filter = lambda member, _: member  # it is ours; newer Pythons ask
        archive.extractall(tmp_path)
    configuration = tmp_path / "gatepost.toml"
    configuration.write_text(configuration.read_text().replace("@FOLDER@", str(tmp_path)))
    return tmp_path


@pytest.fixture
def store(left: Path) -> Iterator[Store]:
    opened = Store(load(left / "gatepost.toml").store_url)
    yield opened
    opened.close()


def left_at(left: Path) -> int:
    """Return when the daemons were killed, in Unix seconds; addresses have expired since."""
    return int(
        (left / "state/ledger/loaded" if (left / "state/ledger").exists() else left / "state/hops").stat().st_mtime
    )


def addresses(left: Path) -> dict[str, str]:
    """Return the SRS addresses that were made, each with its original; a bounce has come back to the first one."""
    found: dict[str, str] = json.loads((left / "addresses.json").read_text())
    return found


def rows(left: Path) -> list[tuple[str, ...]]:
    with closing(sqlite3.connect(left / "state/gatepost.db")) as connection:
        columns = "message_id, recipient, reverse_path, action, verdict_current"
        return list(connection.execute(f"SELECT {columns} FROM ledger ORDER BY id"))


def taken_in(left: Path) -> None:
    """Take in what the spool has, as the daemons do from their start on."""
    loader = Loader(load(left / "gatepost.toml"))
    assert loader.lock()
    assert loader.load()
    loader.close()


def bounced(left: Path) -> str:
    return next(iter(addresses(left))).lower()


def command(left: Path, *arguments: str) -> str:
    return subprocess.run(
        [sys.executable, "-m", "gatepost.admin", "-c", left / "gatepost.toml", *arguments],
        env={"PYTHONPATH": ":".join(ROOTS)},
        capture_output=True,
        text=True,
        check=True,
    ).stdout


def test_configurations_are_understood(left: Path) -> None:
    found = list((left / "configurations").rglob("*.toml"))
    assert len(found) >= 5  # every example and the one to start from
    for path in (left / "gatepost.toml", *found):
        load(path)


def test_addresses_come_back_of_each_form(left: Path, store: Store) -> None:
    snapshot = load_snapshot(left / "gatepost.toml")
    made = addresses(left)
    assert sum(address.startswith("SRS") for address in made) == 3
    assert sum(re.fullmatch(r"bounces\+SRS=\w+=..@contoso\.com", address) is not None for address in made) == 1
    for address, original in made.items():
        found = reversal.reverse(snapshot, address, left_at(left), store.found)
        assert (found.bounce, found.original) == (Bounce.ORIGINAL, original), address


def test_address_is_made_as_the_version_before_made_it(left: Path) -> None:
    """Hosts of both versions serve one domain for a while."""
    snapshot = load_snapshot(left / "gatepost.toml")
    day = left_at(left) // 86400
    made = snapshot.exchange.forward(Address("bob", "adatum.example"), "bounces", "contoso.com", day)
    assert addresses(left)[str(made)] == "bob@adatum.example"


@with_a_ledger
def test_records_in_the_store_and_in_the_spool_are_in_the_ledger_once(left: Path) -> None:
    assert rows(left) == IN_STORE
    taken_in(left)
    taken_in(left)
    bounce = ("<B4@adatum.example>", bounced(left), "", "pass", "inside")
    assert rows(left) == [*IN_STORE, *IN_SPOOL, bounce]
    assert spool.files(left / "state/ledger") == []


@with_a_ledger
def test_bounce_in_the_spool_is_counted(left: Path) -> None:
    taken_in(left)
    with closing(sqlite3.connect(left / "state/gatepost.db")) as connection:
        assert list(connection.execute("SELECT address, count FROM bounce")) == [(bounced(left), 1)]


@with_a_ledger
def test_report_of_the_version_before_is_shown(left: Path) -> None:
    (report,) = json.loads(command(left, "report", "list", "--json"))
    shown = command(left, "report", "show", report["JobId"])
    assert re.search(r"1 message from 1 host between .+ was refused\.", " ".join(shown.split()))


@with_a_ledger
def test_message_of_the_version_before_is_explained(left: Path) -> None:
    shown = command(left, "explain", "A2")
    assert "bob@adatum.example" in shown
    assert "Condition 1" in shown


def test_records_of_a_newer_version_wait_for_it_and_hold_up_no_others(left: Path) -> None:
    """After a downgrade, or where one of two units is upgraded before the other."""
    config = load(left / "gatepost.toml")
    newer = b'[3,"Entry","r1","ann@contoso.com",1795366900.0,"of a kind that is not known yet"]\n'
    path = spooled_octets(config.ledger_folder, newer, number=9)
    spooled(config.ledger_folder, [entry(1)], number=10)
    loader = Loader(config)
    assert loader.lock()
    with pytest.raises(OSError, match="a newer release has written it"):
        loader.load()
    loader.close()
    assert spool.files(config.ledger_folder) == [path]
    assert path.read_bytes() == newer
    assert ("", "ann@contoso.com", "", "pass", "") in rows(left)


def test_message_between_ingress_and_egress_is_still_known(left: Path) -> None:
    found = Hops(left / "state/hops").get("A3", left_at(left))
    assert found is not None
    assert found.organization == organization_digest("contoso")
    assert len(found.reference) == 10


def test_daemons_start_where_those_of_the_version_before_were_killed(left: Path) -> None:
    configuration = (left / "gatepost.toml").read_text()
    daemons = Gatepost(left, command="run")  # which writes a configuration of its own
    (left / "gatepost.toml").write_text(configuration)
    with daemons:
        pass
    assert daemons.wait() == 0
    assert [line for line in daemons.log if line.startswith(("error", "Traceback"))] == []
