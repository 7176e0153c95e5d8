# SPDX-License-Identifier: GPL-3.0-or-later
"""Exports of Exchange Online that change under a running daemon."""

from __future__ import annotations

import json
import os
import signal
from collections.abc import Iterator
from pathlib import Path

import pytest
from daemonprocess import Gatepost
from milterclient import MilterClient

EXPORTED = '[[organization]]\nname = "contoso"\nexchange_export = ["domains.json", "connectors.json"]\n'


def domains(*names: str) -> str:
    return json.dumps(
        [
            {"DomainName": name, "DomainType": "Authoritative", "Default": name == names[0], "MatchSubDomains": False}
            for name in names
        ]
    )


def connectors(address: str) -> str:
    return json.dumps(
        {
            "Name": "office",
            "Enabled": True,
            "ConnectorType": "OnPremises",
            "SenderIPAddresses": [address],
            "TlsSenderCertificateName": None,
            "AssociatedAcceptedDomains": [],
        }
    )


def put(file: Path, text: str) -> None:
    """Write a file at once, as an administrator should."""
    file.with_suffix(".new").write_text(text)
    file.with_suffix(".new").rename(file)


def relays(gatepost: Gatepost, reverse_path: bytes = b"<app@contoso.com>") -> bool:
    """Tell whether 192.0.2.5 may send to outside."""
    with MilterClient(gatepost.socket) as client:
        outcome = client.open().send(reverse_path, [b"<x@gmail.example>"])
        client.quit()
    return outcome.rcpt == ["continue"]


@pytest.fixture
def gatepost(tmp_path: Path) -> Iterator[Gatepost]:
    put(tmp_path / "domains.json", domains("contoso.com"))
    put(tmp_path / "connectors.json", connectors("192.0.2.0/28"))
    with Gatepost(tmp_path, organizations=EXPORTED) as process:
        yield process


def test_changed_export_is_loaded_by_itself(gatepost: Gatepost) -> None:
    assert relays(gatepost)
    assert not relays(gatepost, b"<app@fabrikam.com>")
    mark = gatepost.mark()
    put(gatepost.folder / "domains.json", domains("contoso.com", "fabrikam.com"))
    gatepost.wait_for_log(f"changed: {gatepost.folder / 'domains.json'}; loading the configuration anew$", after=mark)
    gatepost.wait_for_log("configuration reloaded$", after=mark)
    assert relays(gatepost, b"<app@fabrikam.com>")


def test_connector_that_is_no_longer_in_the_export_counts_no_more(gatepost: Gatepost) -> None:
    mark = gatepost.mark()
    put(gatepost.folder / "connectors.json", connectors("198.51.100.7"))
    gatepost.wait_for_log("configuration reloaded$", after=mark)
    assert not relays(gatepost)


def test_export_that_cannot_be_read_leaves_the_old_one_in_force_until_it_is_mended(gatepost: Gatepost) -> None:
    mark = gatepost.mark()
    put(gatepost.folder / "connectors.json", connectors("300.0.0.1"))
    gatepost.wait_for_log(
        r"gatepost\.toml: organization\[0\]\.exchange_export\[1\]: connectors\.json: record 1 \(office\): "
        r'SenderIPAddresses: "300\.0\.0\.1" is no IP address or network$',
        after=mark,
    )
    gatepost.wait_for_log("configuration not reloaded, the one loaded before stays in force$", after=mark)
    assert relays(gatepost)
    mark = gatepost.mark()
    (gatepost.folder / "connectors.json").unlink()
    gatepost.wait_for_log("connectors.json: cannot be read: No such file or directory$", after=mark)
    gatepost.wait_for_log("configuration not reloaded", after=mark)
    assert relays(gatepost)
    mark = gatepost.mark()
    put(gatepost.folder / "connectors.json", connectors("192.0.2.0/29"))
    gatepost.wait_for_log("configuration reloaded$", after=mark)
    assert relays(gatepost)


def test_start_says_what_is_taken_and_what_is_left_out(tmp_path: Path) -> None:
    put(tmp_path / "domains.json", domains("contoso.com"))
    put(tmp_path / "connectors.json", f"[{connectors('192.0.2.0/28')}]".replace("OnPremises", "Partner"))
    with Gatepost(tmp_path, organizations=EXPORTED) as process:
        found = [line for line in process.log if "contoso: " in line]
    assert found == [
        "contoso: domains.json: taken: 1 accepted domain",
        "contoso: connectors.json: taken: nothing",
        'contoso: connectors.json: left out connector "office": its ConnectorType is Partner: only connectors of type '
        "OnPremises let mail relay",
        "warning: contoso: its exports have no connector to take, so nothing meets condition 2 for it: whatever its "
        "hosts send to outside is refused. Enable one, or declare [[organization.connector]] with the hosts' addresses "
        "or certificate name",
    ]


def test_export_that_has_lost_its_connectors_is_loaded_with_a_warning(gatepost: Gatepost) -> None:
    mark = gatepost.mark()
    put(gatepost.folder / "connectors.json", "[]")
    gatepost.wait_for_log("contoso: connectors.json: taken: nothing$", after=mark)
    gatepost.wait_for_log("warning: contoso: its exports have no connector to take, ", after=mark)
    gatepost.wait_for_log("configuration reloaded$", after=mark)
    assert not relays(gatepost)


def test_reload_says_nothing_of_exports_that_have_not_changed(gatepost: Gatepost) -> None:
    mark = gatepost.mark()
    gatepost.signal(signal.SIGHUP)
    gatepost.wait_for_log("configuration reloaded$", after=mark)
    mark = gatepost.mark()
    put(gatepost.folder / "connectors.json", connectors("198.51.100.7"))
    gatepost.wait_for_log("contoso: connectors.json: taken: 1 connector$", after=mark)
    assert not [line for line in gatepost.log[:mark] if ": taken: " in line][2:]


def test_pipe_in_the_place_of_an_export_leaves_the_old_one_in_force(gatepost: Gatepost) -> None:
    mark = gatepost.mark()
    (gatepost.folder / "connectors.json").unlink()
    os.mkfifo(gatepost.folder / "connectors.json")
    gatepost.wait_for_log("connectors.json: cannot be read: is no regular file$", after=mark)
    assert relays(gatepost)


def test_certificate_folder_that_cannot_be_read_leaves_the_old_certificates_in_force(tmp_path: Path) -> None:
    folder = tmp_path / "certificates"
    folder.mkdir()
    (folder / "note.pem").touch()
    with Gatepost(tmp_path) as process:
        mark = process.mark()
        folder.rename(tmp_path / "away")
        folder.symlink_to("certificates")
        process.wait_for_log("error: .*/certificates: cannot be read: Too many levels of symbolic links$", after=mark)
        process.wait_for_log("configuration not reloaded, the one loaded before stays in force$", after=mark)
